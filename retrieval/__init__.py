"""Retrieval over stored compressed segments."""
