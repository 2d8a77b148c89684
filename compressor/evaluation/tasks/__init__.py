"""The tasks, one file each: rows of a data folder become examples."""
