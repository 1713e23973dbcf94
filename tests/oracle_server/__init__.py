"""Stand-in for Oracle Database in tests: a wire layer for python-oracledb thin, and an engine.

It says what the driver accepts and what our own code sends. It says nothing about what Oracle
Database does: no part of it was compared with a real one.
"""
