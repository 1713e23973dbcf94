"""The port `target`, and what happens through it: promote, verify, roll back."""
