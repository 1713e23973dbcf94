"""The embedded target: a folder with a DuckDB database."""
