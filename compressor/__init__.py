"""Compression of context: types, pipeline, compressors, models."""
