"""MLflow's flavor of a pipeline pair, and everything private of MLflow."""
