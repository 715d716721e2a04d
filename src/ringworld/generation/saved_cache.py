"""A cache on disk: what was read once, an hour of film or a long book, need not be read again.

One safetensors file, of the slots in use alone and in the order of positions. The mesh that it was saved on leaves no
trace, so it opens on any other:

    tokens             int32 [B, n], n the length of the longest row
    0/keys/data, ...   [B, n, G, K] of each layer, in the type that the cache had
    0/keys/scales, ... float32 [B, n, G, 1], of int8 alone
    checksums          CRC-32 of the metadata and of each of these arrays, in the order in which they lie in the file
    metadata           "ringworld": JSON of `_About`

What is beyond the end of a row is 0. Both ways one layer at a time is in the memory of the host.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Int32
from safetensors import SafetensorError, safe_open

from ringworld.attention.decode import CACHE_AXES, CacheType, Slots, dealing_order, fill
from ringworld.errors import UserError
from ringworld.files import replacing
from ringworld.generation.decode import bucket
from ringworld.mesh import axis_size, named_sharding
from ringworld.model.cache import Cache, empty_cache
from ringworld.model.config import ModelConfig

_METADATA, _KIND, _VERSION = "ringworld", "cache", 1
_TYPES: dict[CacheType, str] = {"float32": "F32", "bfloat16": "BF16", "int8": "I8"}
_BYTES = {"F32": 4, "BF16": 2, "I8": 1, "I32": 4, "U32": 4}


@dataclass(frozen=True)
class _About:
    """What a file says of itself. `lengths` are those of the rows."""

    fingerprint: str
    cache_type: CacheType
    lengths: list[int]
    layers: int
    kv_heads: int
    head_dim: int
    kind: str = _KIND
    version: int = _VERSION

    @property
    def parts(self) -> list[str]:
        return ["data", "scales"] if self.cache_type == "int8" else ["data"]

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Type and shape of every array but the checksums, in the order in which they lie in the file."""
        rows, longest = len(self.lengths), max(self.lengths)
        kinds = {
            "data": (_TYPES[self.cache_type], (rows, longest, self.kv_heads, self.head_dim)),
            "scales": ("F32", (rows, longest, self.kv_heads, 1)),
        }
        slots = {
            f"{layer}/{name}/{part}": kinds[part]
            for layer in range(self.layers)
            for name in ("keys", "values")
            for part in self.parts
        }
        return {"tokens": ("I32", (rows, longest)), **slots}


class _Damaged(Exception):
    """What is in a file is not what was written."""


def save_cache(path: Path, cache: Cache, tokens: Int32[np.ndarray, "B n"], *, fingerprint: str) -> None:
    """Writes what a cache holds to a file, whole or not at all.

    Args:
        tokens: the ids that are in the cache, padded on the right; n is the length of the longest row.
        fingerprint: of all that keys and values depend on but the tokens: weights, tokenizer and frequencies
            (`Model.fingerprint`; and where frequencies depend on the length of the text, that length).

    Raises:
        UserError: the file cannot be written; what was there before is untouched.
        ValueError: there are more or fewer tokens than the cache holds.
    """
    lengths = np.asarray(cache.lengths)
    if tokens.shape != (len(lengths), lengths.max()):
        raise ValueError(f"tokens {tokens.shape} are not those of a cache with rows of {lengths.tolist()}")
    layers, _, _, kv_heads, head_dim = cache.keys.data.shape
    about = _About(fingerprint, cache.keys.cache_type, lengths.tolist(), layers, kv_heads, head_dim)
    said = json.dumps(asdict(about))
    checksums = [zlib.crc32(said.encode())]
    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(_header(said, about))
            for array in _held(cache, tokens):
                checksums.append(zlib.crc32(_bytes(array)))
                file.write(_bytes(array))
            file.write(np.array(checksums, np.uint32).tobytes())
    except OSError as error:
        raise UserError(
            f"could not write the cache to {path} ({error.strerror or error}): free some space, or name another file"
        ) from error


def open_cache(
    path: Path, *, config: ModelConfig, mesh: Mesh, fingerprint: str, capacity: int | None = None
) -> tuple[Cache, Int32[np.ndarray, "B n"]]:
    """The cache that `save_cache` wrote, dealt out over the ring of this mesh, and the ids that it holds.

    Args:
        fingerprint: as it was saved with.
        capacity: slots a row; None: for as many tokens again as it holds, or more.

    Raises:
        UserError: there is no such file, no cache was saved in it, it is damaged or cut short, it is of another model,
            or its rows do not divide over this mesh.
        ValueError: the capacity does not divide over the ring, or is too small.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give one that a cache was saved in")
    try:
        with safe_open(path, framework="numpy") as file:
            about, checksums = _described(path, file)
            _require_fit(path, about, config, mesh, fingerprint)
            return _read(file, about, checksums, config, mesh, capacity)
    except (SafetensorError, OSError, _Damaged) as error:
        raise UserError(
            f"cannot read {path} ({error}): it is damaged, cut short, or no file that a cache was saved in; copy it "
            "again, or read the text anew"
        ) from error


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _header(said: str, about: _About) -> bytes:
    entries, end = {}, 0
    for name, (kind, shape) in {**about.arrays, "checksums": ("U32", (1 + len(about.arrays),))}.items():
        start, end = end, end + _BYTES[kind] * prod(shape)
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
    header = json.dumps({"__metadata__": {_METADATA: said}, **entries}).encode()
    header = header.ljust(-(-len(header) // 8) * 8)
    return struct.pack("<Q", len(header)) + header


def _held(cache: Cache, tokens: np.ndarray) -> Iterator[np.ndarray]:
    """The arrays of a file, as `_About.arrays` has them."""
    segments, positions, lengths = (np.asarray(x) for x in (cache.segments, cache.positions, cache.lengths))
    held = np.arange(tokens.shape[1]) < lengths[:, None]
    places = np.argsort(np.where(segments > 0, positions, np.iinfo(np.int32).max), axis=1)[:, : tokens.shape[1]]
    yield np.where(held, tokens, 0).astype(np.int32)
    for layer in range(len(cache.keys.data)):
        for slots in (cache.keys, cache.values):
            for array in jax.tree.leaves(_layer(slots, jnp.int32(layer))):
                taken = np.stack([row[place] for row, place in zip(np.asarray(array), places, strict=True)])
                taken[~held] = 0  # what was forgotten is nobody's business
                yield taken


@jax.jit
def _layer(slots: Slots, layer: Int[Array, ""]) -> Slots:
    return jax.tree.map(lambda array: lax.dynamic_index_in_dim(array, layer, 0, keepdims=False), slots)


def _described(path: Path, file: Any) -> tuple[_About, dict[str, int]]:
    """What a file says of itself, and the checksums of its arrays."""
    said = (file.metadata() or {}).get(_METADATA, "null")
    try:
        saved = json.loads(said)
    except ValueError as error:
        raise _Damaged(f"its metadata are no JSON: {error}") from error
    if not isinstance(saved, dict) or saved.get("kind") != _KIND:
        raise UserError(f"what was saved in {path} is no cache: give a file that one was saved in")
    if saved.get("version") != _VERSION:
        raise UserError(
            f"the cache in {path} is of version {saved.get('version')}, and this ringworld reads {_VERSION}: read the "
            "text anew"
        )
    checksums = file.get_tensor("checksums").reshape(-1).tolist()
    if checksums[:1] != [zlib.crc32(said.encode())]:
        raise _Damaged("its metadata are not what was written")
    about = _About(**saved)
    if len(checksums) != 1 + len(about.arrays):
        raise _Damaged("its checksums are not what was written")
    return about, dict(zip(about.arrays, checksums[1:], strict=True))


def _require_fit(path: Path, about: _About, config: ModelConfig, mesh: Mesh, fingerprint: str) -> None:
    if about.fingerprint != fingerprint:
        raise UserError(
            f"the cache in {path} is of another model (its fingerprint is {about.fingerprint}, and this one's "
            f"{fingerprint}): open it with the model that read it, or read the text anew"
        )
    there = (about.layers, about.kv_heads, about.head_dim)
    wanted = (config.layers, config.kv_heads, config.head_dim)
    if there != wanted:
        raise UserError(
            f"the cache in {path} has layers, key heads and head size of {there}, and the model {wanted}: open it with "
            "the model that read it"
        )
    rows, devices = len(about.lengths), axis_size(mesh, "batch")
    if rows % devices:
        raise UserError(
            f"the {rows} rows of the cache in {path} do not divide over {devices} devices: choose a mesh with fewer "
            "along data and fsdp"
        )


def _read(
    file: Any, about: _About, checksums: dict[str, int], config: ModelConfig, mesh: Mesh, capacity: int | None
) -> tuple[Cache, Int32[np.ndarray, "B n"]]:
    lengths, longest, ring = np.array(about.lengths, np.int32), max(about.lengths), mesh.shape["sequence"]
    capacity = bucket(2 * longest, multiple=ring) if capacity is None else capacity
    if capacity < longest:
        raise ValueError(f"a capacity of {capacity} is too small for a cache of {longest} tokens")
    cache = empty_cache(len(lengths), capacity, config=config, mesh=mesh, cache_type=about.cache_type)

    def array(name: str) -> np.ndarray:
        kind, shape = about.arrays[name]
        there, read = file.get_slice(name), file.get_tensor(name)
        if there.get_dtype() != kind or read.shape != shape or zlib.crc32(_bytes(read)) != checksums[name]:
            raise _Damaged(f"{name} is not what was written")
        return read

    # As if the tokens had been dealt out one by one: the first to the first device, the second to the second.
    dealt = np.asarray(dealing_order(-(-longest // ring) * ring, jnp.int32(0), ring))

    def lying(name: str, stored: Any) -> Array:
        padded = np.pad(array(name).view(stored), [(0, 0), (0, len(dealt) - longest), (0, 0), (0, 0)])
        return jax.device_put(padded[:, dealt], named_sharding(mesh, CACHE_AXES[1:]))

    tokens, slots = array("tokens"), {"keys": cache.keys, "values": cache.values}
    for layer in range(about.layers):
        for name, there in slots.items():
            new = {part: lying(f"{layer}/{name}/{part}", getattr(there, part).dtype) for part in about.parts}
            slots[name] = _fill(there, Slots(**{"scales": None, **new}), jnp.int32(layer), mesh=mesh)
    positions = np.asarray(dealing_order(capacity, jnp.int32(0), ring))
    segments = (positions < lengths[:, None]).astype(np.int32)
    by_slot, by_row, one = (named_sharding(mesh, axes) for axes in (("batch", "sequence"), ("batch",), ()))
    return replace(
        cache,
        **slots,
        segments=jax.device_put(segments, by_slot),
        positions=jax.device_put(positions * segments, by_slot),
        lengths=jax.device_put(lengths, by_row),
        dealt=jax.device_put(np.int32(longest), one),
    ), tokens


_fill = jax.jit(fill, static_argnames="mesh", donate_argnames="cache")
