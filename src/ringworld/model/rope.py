"""Rotary position embedding, exact at a million tokens. (Su et al., arXiv 2104.09864.)

An angle is position x frequency. In float32 the product of 1,048,575 with a frequency is off by up to 0.06 rad, so
angles are computed in whole numbers: a frequency is turns a position in 64-bit fixed point, and what wraps around in
32 bits is exactly the full turns that do not matter. The angle is then right to 1e-6 rad at every position below
2^32.

Pairs are half-split (dimension i with i + K/2, as in Hugging Face checkpoints); `weights` permutes interleaved ones.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from ringworld.errors import UserError


class Rotation(NamedTuple):
    """Cosines and sines of each token's angles, float32 [B, S, K/2]. Computed once, used by every layer."""

    cosine: Array
    sine: Array


def rope_frequencies(theta: float, head_dim: int) -> UInt32[np.ndarray, "2 half"]:
    """Turns a position, theta^(-2i/K) / 2 pi, as 64-bit fractions in two words: high and low.

    Theta is data: a stage with another theta runs the same compiled step.
    """
    if not theta >= 1:
        raise UserError(f"RoPE's theta must be at least 1 (given: {theta})")
    turns = np.float64(theta) ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim) / (2 * np.pi)
    high = np.floor(turns * 2.0**32)
    low = np.floor((turns * 2.0**32 - high) * 2.0**32)
    return np.stack([high, low]).astype(np.uint32)


def _high_product(a: Array, b: Array) -> Array:
    """The upper 32 bits of a x b, to within 2, from products of 16-bit halves."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    return a_high * b_high + ((a_high * b_low) >> 16) + ((a_low * b_high) >> 16)


def rotation(positions: Int[Array, "B S"], frequencies: UInt32[Array | np.ndarray, "2 half"]) -> Rotation:
    """Angles of these positions."""
    places = positions.astype(jnp.uint32)[..., None]
    high, low = jnp.asarray(frequencies)[:, None, None, :]
    turns = places * high + _high_product(places, low)  # modulo 2^32, one full turn
    angles = turns.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(heads: Float[Array, "B S N K"], by: Rotation) -> Float[Array, "B S N K"]:
    """Turns each pair of dimensions by its angle, in float32."""
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cosine, sine = by.cosine[:, :, None], by.sine[:, :, None]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(
        heads.dtype
    )
