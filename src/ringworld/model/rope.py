"""Rotary position embedding, exact at a million tokens. (Su et al., arXiv 2104.09864.)

An angle is position x frequency. In float32 the product of 1,048,575 with a frequency is off by up to 0.06 rad, so
angles are computed in whole numbers: a frequency is turns a position in 64-bit fixed point, and what wraps around in
32 bits is exactly the full turns that do not matter. The angle is then right to 1e-6 rad at every position below
2^32.

Pairs are half-split (dimension i with i + K/2, as in Hugging Face checkpoints); `weights` permutes interleaved ones.
"""

from dataclasses import dataclass
from math import log, pi
from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, Int, UInt32

from ringworld.errors import UserError


class Frequencies(NamedTuple):
    """What turns queries and keys: data of the forward pass, so a stage with another theta runs the same compiled step.

    Attributes:
        turns: a position, of each pair of dimensions, as 64-bit fractions in two words: high and low.
        magnitude: what the turned pairs are multiplied by; 1 but for yarn.
    """

    turns: UInt32[Array | np.ndarray, "2 half"]
    magnitude: Float[Array | np.ndarray, ""]


class Rotation(NamedTuple):
    """Of each token: cosines and sines of its angles, float32 [B, S, K/2], and by how much its query is lengthened,
    [B, S]; None: by nothing. Computed once, used by every layer."""

    cosine: Array
    sine: Array
    sharpness: Array | None = None


@dataclass(frozen=True)
class RopeScaling:
    """How the frequencies of a model were stretched so that it reads longer texts than it was first trained on. The
    kinds and their numbers are those of Hugging Face's configurations.

    Attributes:
        kind: "linear" (Chen et al., arXiv 2306.15595), "dynamic" (NTK-aware, by the length of the text), "yarn" (Peng
            et al., arXiv 2309.00071) or "llama3".
        factor: how many times as long.
        original_length: tokens of the context before.
        low, high: of "llama3", turns in that context: frequencies with fewer are stretched whole, with more not at all.
            Of "yarn" the same under the names of beta_slow and beta_fast.
        magnitude: of "yarn"; None: as its paper has it.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: float
    original_length: int
    low: float = 1.0
    high: float = 32.0
    magnitude: float | None = None


def rope_frequencies(
    theta: float, head_dim: int, scaling: RopeScaling | None = None, length: int | None = None
) -> Frequencies:
    """The frequencies theta^(-2i/K), scaled.

    Args:
        length: tokens of the text, which "dynamic" depends on beyond the original length.
    """
    if not theta >= 1:
        raise UserError(f"RoPE's theta must be at least 1 (given: {theta})")
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    magnitude = 1.0
    if scaling is not None and scaling.kind == "dynamic":
        stretch = scaling.factor * max(length or 0, scaling.original_length) / scaling.original_length
        theta = theta * (stretch - (scaling.factor - 1)) ** (head_dim / (head_dim - 2))
    angles = np.float64(theta) ** -exponents  # radians a position
    if scaling is not None:
        angles = angles * (1 - (1 - 1 / scaling.factor) * _stretched(angles, theta, scaling))
        if scaling.kind == "yarn":
            magnitude = 0.1 * log(max(1.0, scaling.factor)) + 1 if scaling.magnitude is None else scaling.magnitude
    turns = angles / (2 * np.pi)
    high = np.floor(turns * 2.0**32)
    low = np.floor((turns * 2.0**32 - high) * 2.0**32)
    return Frequencies(np.stack([high, low]).astype(np.uint32), np.asarray(magnitude, np.float32))


def _stretched(angles: Float64[np.ndarray, "half"], theta: float, scaling: RopeScaling) -> Float64[np.ndarray, "half"]:
    """How much of each frequency is stretched, from 0 to 1."""
    if scaling.kind == "linear":
        return np.ones_like(angles)
    if scaling.kind == "dynamic":
        return np.zeros_like(angles)
    if scaling.kind == "llama3":
        turns = scaling.original_length * angles / (2 * np.pi)  # in the original context
        return 1 - np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0, 1)

    def pair(turns: float) -> float:
        """Which pair of dimensions makes so many turns in the original context, as a fraction."""
        return len(angles) * log(scaling.original_length / (turns * 2 * pi)) / log(theta)

    first, last = max(0.0, np.floor(pair(scaling.high))), min(2 * len(angles) - 1.0, np.ceil(pair(scaling.low)))
    return np.clip((np.arange(len(angles)) - first) / max(last - first, 0.001), 0, 1)


def _high_product(a: Array, b: Array) -> Array:
    """The upper 32 bits of a x b, to within 2, from products of 16-bit halves."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    return a_high * b_high + ((a_high * b_low) >> 16) + ((a_low * b_high) >> 16)


def rotation(positions: Int[Array, "B S"], frequencies: Frequencies, sharpened_from: int | None = None) -> Rotation:
    """Angles of these positions.

    Args:
        sharpened_from: as in `ModelConfig`.
    """
    places = positions.astype(jnp.uint32)[..., None]
    high, low = jnp.asarray(frequencies.turns)[:, None, None, :]
    turns = places * high + _high_product(places, low)  # modulo 2^32, one full turn
    angles = turns.astype(jnp.int32).astype(jnp.float32) * np.float32(2 * np.pi / 2**32)
    cosine, sine = (turned(angles) * frequencies.magnitude for turned in (jnp.cos, jnp.sin))
    if sharpened_from is None:
        return Rotation(cosine, sine)
    return Rotation(cosine, sine, jnp.maximum(1, jnp.log1p(positions.astype(jnp.float32)) / log(sharpened_from)))


def rotate(heads: Float[Array, "B S N K"], by: Rotation) -> Float[Array, "B S N K"]:
    """Turns each pair of dimensions by its angle, in float32."""
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    cosine, sine = by.cosine[:, :, None], by.sine[:, :, None]
    return jnp.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1).astype(
        heads.dtype
    )


def rotate_queries(heads: Float[Array, "B S N K"], by: Rotation) -> Float[Array, "B S N K"]:
    """Turns queries as `rotate` does, and lengthens them."""
    if by.sharpness is None:
        return rotate(heads, by)
    return (rotate(heads.astype(jnp.float32), by) * by.sharpness[:, :, None, None]).astype(heads.dtype)
