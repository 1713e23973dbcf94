"""From a signed delivery of MLflow to a pass of the reconciler."""
