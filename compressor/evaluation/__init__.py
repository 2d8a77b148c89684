"""Evaluation: what each compressor keeps at each budget, how fast, on standard tasks and on the user's own data."""
