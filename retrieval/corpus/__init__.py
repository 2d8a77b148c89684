"""Corpora on disk: finding files, and reading them as documents."""
