"""In which order a sequence lies on the ring of devices.

Causal attention over contiguous slices is uneven: the last device has work at every hop, the first at one alone. In
*zigzag* order the sequence is cut into 2N chunks, and device r of N holds chunks r and 2N-1-r: an early and a late
one, so that every device has the same number of visible keys, at every hop. (Zhu,
https://github.com/zhuzilin/ring-flash-attention/issues/2; Llama 3, arXiv 2407.21783, section 3.3.2.)

Tokens are brought into order once, on their way to the devices, with targets, segments and positions beside them;
nothing in the model but the choice of key blocks to visit depends on it.
"""

from typing import Literal

import numpy as np

Layout = Literal["zigzag", "contiguous"]


def chunk_count(ring: int, layout: Layout) -> int:
    """Pieces, each contiguous, into which the sequence is cut; its length must be a multiple of them."""
    return 2 * ring if layout == "zigzag" and ring > 1 else ring


def order(length: int, ring: int, layout: Layout) -> np.ndarray:
    """Place i of a row in memory holds index `order(...)[i]` of the sequence. int32 [length].

    Raises:
        ValueError: the length is not a multiple of the number of chunks.
    """
    chunks = chunk_count(ring, layout)
    if length % chunks:
        raise ValueError(f"a sequence of {length} does not divide into {chunks} chunks ({layout} over {ring} devices)")
    indices = np.arange(length, dtype=np.int32).reshape(chunks, -1)
    if chunks > ring:
        devices = np.arange(ring)
        indices = indices[np.stack([devices, chunks - 1 - devices], axis=1).reshape(-1)]
    return indices.reshape(-1)


def inverse(length: int, ring: int, layout: Layout) -> np.ndarray:
    """Index i of the sequence lies at place `inverse(...)[i]` of the row. int32 [length]."""
    return np.argsort(order(length, ring, layout)).astype(np.int32)
