"""The transformer: its configuration, its weights and forward pass, rotary positions, and the cache for decoding."""
