"""The MLflow model registry: its versions and aliases, and what keeps it from answering."""
