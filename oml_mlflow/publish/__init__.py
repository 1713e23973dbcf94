"""What a version's page in MLflow says about where it is live."""
