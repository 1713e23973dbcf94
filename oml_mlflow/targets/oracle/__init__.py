"""Oracle Database as a target."""
