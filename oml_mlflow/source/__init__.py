"""A model on disk or on a hub, and the description of it that graphs are built from."""
