"""From vectors to codes and back: the bottleneck of a VQGAN.

A codebook [codes, dim] with nearest codes by L2, learned by moving averages (van den Oord et al., arXiv 1711.00937,
appendix A) or by gradient; or no codebook at all: FSQ rounds each dimension to a few levels (Mentzer et al., arXiv
2309.15505).
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ringworld.errors import UserError

Kind = Literal["ema", "gradient", "fsq"]
_VECTORS = 4096  # whose distances to all codes are held at once


@dataclass(frozen=True)
class QuantizerConfig:
    """A quantiser.

    Attributes:
        kind: how the codebook is learned: "ema", moving averages of the vectors that chose a code; "gradient"; or
            "fsq", where there is none and `levels` decide.
        codes: how many; with "fsq" the product of `levels`.
        dim: of a code.
        normalized: compare directions alone: vectors and codes have length 1 (Yu et al., arXiv 2110.04627).
        levels: of each dimension, for "fsq".
        decay: of the moving averages.
        restart_after: a code that no vector has chosen for so many steps starts again at one of the batch's vectors; 0:
            never.
        commitment: weight of the pull of vectors towards their codes.
    """

    kind: Kind
    codes: int
    dim: int
    normalized: bool = False
    levels: tuple[int, ...] = ()
    decay: float = 0.99
    restart_after: int = 0
    commitment: float = 0.25

    def __post_init__(self) -> None:
        if self.codes < 2 or self.dim < 1:
            raise UserError(
                f"a quantiser needs 2 or more codes of 1 or more dimensions; got {self.codes} of {self.dim}"
            )
        if self.kind == "fsq":
            if len(self.levels) != self.dim or min(self.levels) < 2 or prod(self.levels) != self.codes:
                raise UserError(
                    f"fsq needs 2 or more levels for each of its {self.dim} dimensions, and their product is the "
                    f"number of codes; got levels {self.levels} for {self.codes} codes"
                )
        elif self.levels:
            raise UserError(f"levels are for the quantiser fsq; got {self.levels} for {self.kind!r}")

    @property
    def has_codebook(self) -> bool:
        return self.kind != "fsq"


def directions(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors of length 1."""
    return x * lax.rsqrt((x * x).sum(-1, keepdims=True) + 1e-12)


def nearest(vectors: Float[Array, "*n d"], codebook: Float[Array, "codes d"]) -> Int[Array, "*n"]:
    """The index of the code nearest to each vector, by L2; of two equally near the first."""
    half = (codebook * codebook).sum(-1)[None] / 2

    def some(vectors: Array) -> Array:
        return jnp.argmin(half - vectors @ codebook.T, axis=-1).astype(jnp.int32)

    flat = vectors.reshape(-1, vectors.shape[-1])
    if len(flat) <= _VECTORS:
        return some(flat).reshape(vectors.shape[:-1])
    padded = jnp.pad(flat, ((0, -len(flat) % _VECTORS), (0, 0)))
    found = lax.map(some, padded.reshape(-1, _VECTORS, flat.shape[-1]))
    return found.reshape(-1)[: len(flat)].reshape(vectors.shape[:-1])


def quantize(vectors: Float[Array, "*n d"], codebook: Any, config: QuantizerConfig) -> Int[Array, "*n"]:
    """The codes of vectors. `codebook` is None for "fsq"."""
    if config.kind == "fsq":
        half, places = (_along_last(values, vectors) for values in (_halves(config.levels), _places(config.levels)))
        digits = jnp.round(_squeeze(vectors, config.levels)) + half
        return (digits * places).sum(-1).astype(jnp.int32)
    if config.normalized:
        vectors, codebook = directions(vectors), directions(codebook)
    return nearest(vectors, codebook)


def look_up(codes: Int[Array, "*n"], codebook: Any, config: QuantizerConfig) -> Float[Array, "*n d"]:
    """The vectors that codes stand for."""
    if config.kind == "fsq":
        codes = codes[..., None]
        levels, half, places = (
            _along_last(values, codes) for values in (config.levels, _halves(config.levels), _places(config.levels))
        )
        return (codes // places % levels - half) / half.astype(np.float32)
    return (directions(codebook) if config.normalized else codebook)[codes]


def straight_through(vectors: Float[Array, "*n d"], quantized: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """`quantized`, with gradients as if it were `vectors`."""
    return vectors + lax.stop_gradient(quantized - vectors)


def bounded(vectors: Float[Array, "*n d"], config: QuantizerConfig) -> Float[Array, "*n d"]:
    """What gradients flow through in place of `look_up`: the vectors; for "fsq" squeezed into the levels' range, for
    normalised codes of length 1."""
    if config.kind == "fsq":
        return _squeeze(vectors, config.levels) / _along_last(_halves(config.levels), vectors)
    return directions(vectors) if config.normalized else vectors


def _squeeze(vectors: Array, levels: tuple[int, ...]) -> Array:
    """Into the range of each dimension's levels, which for an even number lie half a step to the left."""
    count = _along_last(levels, vectors)
    half = ((count - 1) * (1 - 1e-3) / 2).astype(np.float32)
    offset = np.where(count % 2, 0.0, 0.5).astype(np.float32)
    return jnp.tanh(vectors + np.tan(offset / half)) * half - offset


def _halves(levels: tuple[int, ...]) -> tuple[int, ...]:
    """The middle level of each dimension."""
    return tuple(level // 2 for level in levels)


def _places(levels: tuple[int, ...]) -> tuple[int, ...]:
    """What a step of each dimension is worth in the code's number: the first counts ones."""
    return tuple(prod(levels[:i]) for i in range(len(levels)))


def _along_last(values: tuple[int, ...], like: Array) -> np.ndarray:
    return np.array(values).reshape((1,) * (like.ndim - 1) + (-1,))


def drawn_codebook(vectors: Float[Array, "n d"], codes: int, key: Array) -> Float[Array, "codes d"]:
    """A codebook to begin with: so many of the vectors, drawn at random, a little apart where one is drawn twice."""
    place, noise = jax.random.split(key)
    drawn = vectors[jax.random.randint(place, (codes,), 0, len(vectors))]
    return drawn + 0.01 * vectors.std(0)[None] * jax.random.normal(noise, drawn.shape)
