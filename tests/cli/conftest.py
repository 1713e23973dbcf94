from in_process import run  # noqa: F401 -- for pytest
