"""The port `target`, and promotion, verification and rollback through it."""
