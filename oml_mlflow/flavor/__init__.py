"""The MLflow flavor of pipeline pairs: save, log, load and serve them."""
