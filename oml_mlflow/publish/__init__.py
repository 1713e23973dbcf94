"""A version's page in MLflow: where it is live, and the evidence."""
