"""The comparisons of the README: each module is one command, ``make bench-NAME``."""
