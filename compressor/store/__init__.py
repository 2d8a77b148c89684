"""Compressed segments and what models said of texts, kept by what they are made of."""
