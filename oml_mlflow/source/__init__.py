"""A model as it lies on disk or on a hub, and the description graphs are built from."""
