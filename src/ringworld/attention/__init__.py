"""Attention over sequences that no single device holds.

`attention` is the one entry for training and prefill; `reference` says what it computes, `blockwise` how one device
does it, `ring` how many do, `layout` in which order the sequence lies on them, and `decode` how a few new queries
read a long cache.
"""

from ringworld.attention.ring import attention

__all__ = ["attention"]
