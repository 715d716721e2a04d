"""Worlds made by rules: film without licence or end, of which everything is known."""
