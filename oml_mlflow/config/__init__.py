"""Declared state: targets, what they accept, and what their names follow."""
