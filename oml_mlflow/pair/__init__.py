"""Two pipelines and what they are: exported, run, compared with their model."""
