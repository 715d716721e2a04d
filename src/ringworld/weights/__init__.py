"""Models on disk: checkpoints of our own."""
