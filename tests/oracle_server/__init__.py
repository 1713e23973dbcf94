"""A stand-in for Oracle Database: an engine that knows the calls we make, and a wire layer.

It shows what the unmodified driver accepts and what our code does with documented answers, not
what Oracle Database does: it was never compared with one.
"""
