"""Compressors whose output is a key-value cache: one file a method."""
