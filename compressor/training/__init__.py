"""Training of the networks that compressors read: one file a network, and what their runs share."""
