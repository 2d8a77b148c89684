"""Named models, where their weights come from, and what loads them."""
