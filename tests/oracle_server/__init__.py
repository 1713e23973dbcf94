"""A stand-in for Oracle Database: an engine without transport, and a wire layer in front of it."""
