"""Models on disk: checkpoints and folders of our own, and the formats of others."""
