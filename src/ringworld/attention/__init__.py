"""Attention over sequences that no single device holds: the reference, blockwise, the ring, and decoding."""
