"""Golden probes, their comparison, and the report about it."""
