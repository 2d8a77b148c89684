"""Compressors whose output is text, one file a method."""
