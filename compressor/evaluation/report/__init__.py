"""Self-contained pages: the report of an evaluation, and one compression to look at."""
