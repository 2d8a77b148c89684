"""The authors' released weights, made into checkpoints of this package: one file a method."""
