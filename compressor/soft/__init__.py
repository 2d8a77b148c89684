"""Compressors whose output is embeddings: one file a method."""
