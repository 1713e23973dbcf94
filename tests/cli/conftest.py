from in_process import call, run  # noqa: F401 -- for pytest
