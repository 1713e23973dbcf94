"""The verbs of this package, one function each; all ways in call these."""
