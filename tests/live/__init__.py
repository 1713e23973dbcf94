"""The Oracle target against a real database: ``pytest tests/live --oracle-dsn host/service``."""
