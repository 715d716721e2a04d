"""Integers out of media: the one id space and what turns text into it."""
