"""Pipeline pairs: exported, run, compared with the model they were made from."""
