"""A version's page in MLflow: where it is live, and how that went."""
