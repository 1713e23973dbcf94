"""The command line: click and rich only."""
