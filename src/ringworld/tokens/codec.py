"""A trained tokenizer of frames: uint8 frames to codes and back, in batches, spread over devices."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Integer, UInt8

from ringworld.errors import UserError
from ringworld.mesh import axis_size, named_sharding
from ringworld.tokens.quantizers import look_up
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.tokens.vqgan import VqganConfig, VqganWeights, from_bytes, to_bytes, to_codes, to_frames


@dataclass(frozen=True)
class FrameTokenizer:
    """A VQGAN on a mesh.

    Every call runs a program for `batch` frames (the last ones filled up), so a frame's codes do not depend on how many
    others came with it.

    Attributes:
        batch: frames at a time; a multiple of the devices that frames are spread over.
    """

    weights: VqganWeights
    config: VqganConfig
    mesh: Mesh
    batch: int = field(default=32)

    def __post_init__(self) -> None:
        devices = axis_size(self.mesh, "batch")
        if self.batch < 1 or self.batch % devices:
            raise UserError(f"a batch of {self.batch} frames does not divide over {devices} devices; take a multiple")

    @cached_property
    def fingerprint(self) -> str:
        """What tells tokenizers apart: the same for the same configuration and weights, wherever they came from."""
        digest = hashlib.sha256(json.dumps(self.config.to_dict(), sort_keys=True).encode())
        leaves = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in jax.tree.leaves_with_path(self.weights)
        }
        for name, leaf in sorted(leaves.items()):
            digest.update(name.encode() + np.asarray(leaf).tobytes())
        return digest.hexdigest()

    def vectors(self) -> Float[np.ndarray, "codes d"]:
        """What each code stands for."""
        quantizer = self.config.quantizer
        return np.asarray(look_up(jnp.arange(quantizer.codes), self.weights.codebook, quantizer))

    def require_fit(self, vocabulary: Vocabulary) -> None:
        """Raises UserError when the vocabulary is of frames or codes that this tokenizer does not make."""
        there = (self.config.grid, self.config.grid, self.config.quantizer.codes)
        wanted = (vocabulary.frame_height, vocabulary.frame_width, vocabulary.codes)
        if there != wanted:
            raise UserError(
                "the model has frames of {}x{} of {} codes, ".format(*wanted)
                + "the tokenizer of {}x{} of {}: take the tokenizer that the model was trained with".format(*there)
            )

    def encode_all(self, frames: Iterable[UInt8[np.ndarray, "H W 3"]]) -> Iterator[Int32[np.ndarray, "h w"]]:
        """The codes of each frame of a stream, of which no more than a batch is held.

        Raises:
            UserError: a frame is not of the tokenizer's size.
        """
        frames = iter(frames)
        while some := list(islice(frames, self.batch)):
            yield from self.encode(np.stack(some))

    def encode(self, frames: UInt8[np.ndarray, "N H W 3"]) -> Int32[np.ndarray, "N h w"]:
        """Frames -> codes. Raises UserError when they are not of the tokenizer's size."""
        side = self.config.frame_size
        if frames.shape[1:3] != (side, side):
            raise UserError(
                f"the tokenizer takes frames of {side}x{side} pixels, got {frames.shape[1]}x{frames.shape[2]}: resize "
                "them as they are read"
            )
        return self._in_batches(_encode, frames, (self.config.grid, self.config.grid), np.int32)

    def decode(self, codes: Integer[np.ndarray, "N h w"]) -> UInt8[np.ndarray, "N H W 3"]:
        """Codes -> frames. Raises UserError for a grid of another size, or a code that there is not."""
        grid, count = self.config.grid, self.config.quantizer.codes
        if codes.shape[1:] != (grid, grid):
            raise UserError(f"the tokenizer's frames have {grid}x{grid} codes, got {codes.shape[1]}x{codes.shape[2]}")
        if codes.size and not 0 <= codes.min() <= codes.max() < count:
            raise UserError(f"codes must be 0 to {count - 1}, got {codes.min()} to {codes.max()}")
        side = self.config.frame_size
        return self._in_batches(_decode, codes.astype(np.int32), (side, side, 3), np.uint8)

    def _in_batches(
        self, run: "jax.stages.Wrapped", rows: np.ndarray, shape: tuple[int, ...], dtype: type
    ) -> np.ndarray:
        found = np.empty((len(rows), *shape), dtype)
        sharding = named_sharding(self.mesh, ("batch", *[None] * (rows.ndim - 1)))
        for start in range(0, len(rows), self.batch):
            some = rows[start : start + self.batch]
            full = np.zeros((self.batch, *rows.shape[1:]), rows.dtype)
            full[: len(some)] = some
            made = run(self.weights, jax.device_put(full, sharding), config=self.config)
            found[start : start + len(some)] = np.asarray(made)[: len(some)]
        return found


@partial(jax.jit, static_argnames="config")
def _encode(weights: VqganWeights, frames: Array, config: VqganConfig) -> Array:
    return to_codes(weights, from_bytes(frames), config)


@partial(jax.jit, static_argnames="config")
def _decode(weights: VqganWeights, codes: Array, config: VqganConfig) -> Array:
    return to_bytes(to_frames(weights, codes, config))
