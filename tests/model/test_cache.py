"""Decoding with a cache, and reading on with one, equal reading everything anew: on every mesh, and nearly so in fewer
bytes."""

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from jax.sharding import Mesh

from drawn import draw
from ringworld.attention import decode as cached_attention
from ringworld.attention.decode import CacheType, Slots
from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.cache import Cache, decode_step, empty_cache, extend, grow, keep, prefill, room
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import forward, head

CONFIG = ModelConfig(
    vocabulary_size=101, dim=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=16, qk_norm=True, sharpened_from=8
)
FREQUENCIES = rope_frequencies(1e4, 16)
TOKENS = np.random.default_rng(0).integers(0, 101, (4, 40)).astype(np.int32)
LENGTHS = np.array([5, 9, 16, 12], np.int32)
STEPS = 9
CAPACITY, PIECE = 32, 8
ROW = np.arange(4)
MESHES = [MeshShape(), MeshShape(sequence=8), MeshShape(fsdp=2, tensor=2, sequence=2)]
TYPES = get_args(CacheType)


def mesh_of(shape: MeshShape) -> Mesh:
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """What is unpacked at once: sizes into which no device's slots divide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_attention, "_PIECE", 3)
        yield


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Logits at every position, from the whole sequence at once. [4, 40, V]."""
    mesh = mesh_of(MeshShape())
    weights = draw(0, CONFIG, mesh)
    positions = np.broadcast_to(np.arange(40, dtype=np.int32), TOKENS.shape)
    whole = jax.jit(partial(forward, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh))
    return np.asarray(whole(weights, TOKENS, np.ones_like(positions), positions)) @ np.asarray(head(weights))


class Reader:
    """Reads `TOKENS` on one mesh: each step returns the logits and a new cache, and leaves the old one alone."""

    def __init__(self, shape: MeshShape, cache_type: CacheType = "float32") -> None:
        self.mesh, self.cache_type = mesh_of(shape), cache_type
        self.weights = draw(0, CONFIG, self.mesh)
        settings: Any = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": self.mesh}
        self._prefill = jax.jit(partial(prefill, capacity=CAPACITY, cache_type=cache_type, **settings))
        self._extend = jax.jit(partial(extend, **settings))
        self._decode = jax.jit(partial(decode_step, **settings))
        self._keep = jax.jit(partial(keep, mesh=self.mesh))

    def prefill(self, lengths: np.ndarray) -> tuple[np.ndarray, Cache]:
        return self._prefill(self.weights, TOKENS[:, :16], lengths)

    def extend(self, cache: Cache, lengths: list[int]) -> tuple[np.ndarray, Cache]:
        places = np.minimum(np.asarray(cache.lengths)[:, None] + np.arange(PIECE), 39)
        return self._extend(self.weights, TOKENS[ROW[:, None], places], np.array(lengths, np.int32), cache)

    def decode(self, cache: Cache) -> tuple[np.ndarray, Cache]:
        return self._decode(self.weights, TOKENS[ROW, np.asarray(cache.lengths)], cache)

    def keep(self, cache: Cache, lengths: list[int]) -> Cache:
        return self._keep(cache, np.array(lengths, np.int32))

    def empty(self, capacity: int = CAPACITY) -> Cache:
        return empty_cache(4, capacity, config=CONFIG, mesh=self.mesh, cache_type=self.cache_type)

    def room(self, cache: Cache) -> int:
        return room(cache, mesh=self.mesh)


reader_on = lru_cache(Reader)  # its programs are compiled once


def check(logits: np.ndarray, cache: Cache, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(logits, expected[ROW, np.asarray(cache.lengths) - 1], rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_prefill_and_decoding_equal_the_whole_sequence(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    logits, cache = reader.prefill(LENGTHS)
    check(logits, cache, expected)
    for _ in range(STEPS):
        logits, cache = reader.decode(cache)
        check(logits, cache, expected)
    assert cache.lengths.tolist() == (LENGTHS + STEPS).tolist()
    assert int(cache.segments.sum()) == LENGTHS.sum() + 4 * STEPS


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_reading_on_equals_the_whole_sequence(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    _, cache = reader.prefill(LENGTHS)
    for lengths in ([7, 2, 8, 1], [1, 7, 6, 7]):
        logits, cache = reader.extend(cache, lengths)
        check(logits, cache, expected)
        if reader.room(cache):
            logits, cache = reader.decode(cache)
            check(logits, cache, expected)
    assert cache.lengths.tolist() == np.add(LENGTHS, [9, 10, 15, 9]).tolist()
    assert int(cache.segments.sum()) == int(cache.lengths.sum())
    assert reader.room(cache) == 32 - 16 - 8 - 1 - 7


@pytest.mark.parametrize("shape", MESHES, ids=str)
def test_from_nothing_to_the_last_slot(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    cache = reader.empty()
    for count in (8, 1, 8, 8, 3):
        logits, cache = reader.extend(cache, [count] * 4)
        check(logits, cache, expected)
    logits, cache = reader.decode(cache)
    logits, cache = reader.extend(cache, [3] * 4)  # and of five that are padding, none has a slot
    check(logits, cache, expected)
    assert reader.room(cache) == 0
    assert sorted(np.asarray(cache.positions)[0].tolist()) == list(range(32))


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(sequence=8)], ids=str)
def test_what_was_forgotten_leaves_its_room_and_no_trace(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    _, cache = reader.extend(reader.empty(), [8] * 4)
    cache = reader.keep(cache, [5, 7, 6, 7])
    assert cache.lengths.tolist() == [5, 7, 6, 7]
    assert reader.room(cache) == 32 - 7
    logits, cache = reader.extend(cache, [8, 3, 7, 8])
    check(logits, cache, expected)
    assert int(cache.segments.sum()) == int(cache.lengths.sum())


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(sequence=8)], ids=str)
def test_a_prompts_slots_are_not_free_again(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    _, cache = reader.extend(reader.prefill(LENGTHS)[1], [8] * 4)
    cache = reader.keep(cache, [4, 4, 30, 4])
    assert cache.lengths.tolist() == [4, 4, 24, 4]  # the third has no more
    assert reader.room(cache) == 32 - 16 - 8
    cache = reader.keep(cache, [4] * 4)
    assert reader.room(cache) == 32 - 16
    logits, cache = reader.extend(cache, [8, 3, 7, 8])
    check(logits, cache, expected)


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(sequence=2), MeshShape(sequence=8)], ids=str)
@pytest.mark.parametrize("cache_type", ["bfloat16", "int8"])
def test_fewer_bytes_change_little(cache_type: CacheType, shape: MeshShape, expected: np.ndarray) -> None:
    tolerance = {"bfloat16": 0.03, "int8": 0.09}[cache_type]  # of logits up to 3.6; measured: 0.020 and 0.059
    reader = reader_on(shape, cache_type)
    cache = packed(reader_on(shape).prefill(LENGTHS)[1], cache_type)
    for lengths in ([7, 2, 8, 1], [1, 4, 5, 5]):
        logits, cache = reader.extend(cache, lengths)
        check(logits, cache, expected, tolerance)
        logits, cache = reader.decode(cache)
        check(logits, cache, expected, tolerance)
    cache = reader.keep(cache, [5, 7, 6, 7])
    logits, cache = reader.extend(cache, [3, 3, 2, 3])
    check(logits, cache, expected, tolerance)
    assert cache.lengths.tolist() == [8, 10, 8, 10]
    assert int(cache.segments.sum()) == 36


@pytest.mark.parametrize(("cache_type", "shape"), [("bfloat16", MeshShape()), ("int8", MeshShape(sequence=2))], ids=str)
def test_a_prompt_is_read_as_ever_and_kept_in_fewer_bytes(cache_type: CacheType, shape: MeshShape) -> None:
    logits, cache = reader_on(shape, cache_type).prefill(LENGTHS)
    as_ever, exact = reader_on(shape).prefill(LENGTHS)
    np.testing.assert_allclose(logits, as_ever, atol=1e-5)
    wanted = packed(exact, cache_type)
    assert cache.keys.cache_type == wanted.keys.cache_type == cache_type
    for one, other in zip(jax.tree.leaves(cache), jax.tree.leaves(wanted), strict=True):
        # What is all but a tie may be rounded either way.
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1 if one.dtype.itemsize < 4 else 0)


@partial(jax.jit, static_argnames="cache_type")
def packed(cache: Cache, cache_type: CacheType) -> Cache:
    """A float32 cache in another type."""
    like = slots_of(cache_type)
    return replace(cache, keys=like.pack(cache.keys.data), values=like.pack(cache.values.data))


def slots_of(cache_type: CacheType) -> Slots:
    return Slots.empty((1, 1, 1, 1, 2), cache_type, mesh_of(MeshShape()))


MAGNITUDES = st.floats(2**-100, 2**100, width=32)
NUMBERS = st.one_of(st.just(0.0), MAGNITUDES, MAGNITUDES.map(lambda number: -number))


@given(arrays.arrays(np.float32, (3, 8), elements=NUMBERS))
@settings(deadline=None)
def test_a_number_is_off_by_half_a_scale_at_most(numbers: np.ndarray) -> None:
    slots = slots_of("int8").pack(jnp.asarray(numbers))
    scales = np.abs(numbers.astype(np.float64)).max(-1, keepdims=True) / 127
    np.testing.assert_allclose(slots.scales, scales, rtol=1e-6)
    assert (np.abs(np.asarray(slots.unpack(), np.float64) - numbers) <= scales * (0.5 + 1e-4)).all()
    kept = slots_of("bfloat16").pack(jnp.asarray(numbers)).unpack()
    np.testing.assert_array_equal(kept, numbers.astype(jnp.bfloat16).astype(np.float32))
    np.testing.assert_array_equal(slots_of("float32").pack(jnp.asarray(numbers)).unpack(), numbers)


def test_what_is_no_number_does_not_become_one() -> None:
    numbers = jnp.array([[1.0, jnp.nan], [1.0, jnp.inf], [1.0, 2.0]])
    for cache_type in TYPES:
        kept = slots_of(cache_type).pack(numbers).unpack()
        assert np.isfinite(np.asarray(kept)).all(-1).tolist() == [False, False, True]


def test_bytes_of_each_type() -> None:
    config, mesh = replace(CONFIG, head_dim=64), mesh_of(MeshShape(sequence=8))
    sizes = {}
    for cache_type in TYPES:
        cache = empty_cache(4, 32, config=config, mesh=mesh, cache_type=cache_type)
        leaves = jax.tree.leaves((cache.keys, cache.values))
        sizes[cache_type] = sum(leaf.nbytes for leaf in leaves)
        assert {shard.data.shape[2] for leaf in leaves for shard in leaf.addressable_shards} == {32 // 8}
    assert sizes["float32"] == 4 * 2 * 2 * 4 * 32 * 2 * 64
    assert sizes["bfloat16"] == sizes["float32"] / 2
    assert sizes["int8"] == sizes["float32"] * (64 + 4) / (4 * 64)


@pytest.mark.parametrize("cache_type", ["bfloat16", "int8"])
def test_no_whole_layer_is_unpacked(cache_type: CacheType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_attention, "_PIECE", 256)
    config, capacity = replace(CONFIG, heads=2, kv_heads=2, head_dim=64), 8192
    mesh = mesh_of(MeshShape())
    step = partial(decode_step, config=config, frequencies=rope_frequencies(1e4, 64), mesh=mesh)
    cache = empty_cache(1, capacity, config=config, mesh=mesh, cache_type=cache_type)
    compiled = jax.jit(step, donate_argnums=2).lower(draw(0, config, mesh), jnp.zeros(1, jnp.int32), cache).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * capacity * 2 * 64 / 4


@pytest.mark.parametrize("cache_type", TYPES)
def test_a_cache_grows_and_loses_nothing(cache_type: CacheType) -> None:
    reader = reader_on(MeshShape(sequence=8), cache_type)
    _, cache = reader.extend(reader.empty(), [7] * 4)
    small = jax.tree.map(lambda leaf, like: front(leaf, like.shape), cache, reader.empty(16))
    grown = jax.jit(partial(grow, capacity=CAPACITY, mesh=reader.mesh))(small)
    jax.tree.map(np.testing.assert_array_equal, grown, cache)
    assert reader.room(small) == 16 - 7
    assert reader.room(grown) == 32 - 7
    with pytest.raises(ValueError, match="a cache of 32 cannot grow to 16"):
        grow(grown, 16, mesh=reader.mesh)


def front(slots: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The first slots of each of 8 devices, as many as `shape` has room for."""
    if slots.shape == shape:
        return slots
    axis = next(i for i, size in enumerate(shape) if size != slots.shape[i])
    each = np.asarray(slots).reshape(*shape[:axis], 8, -1, *shape[axis + 1 :])
    return jax.device_put(each.take(range(shape[axis] // 8), axis + 1).reshape(shape), slots.sharding)


def test_a_long_text_is_read_in_pieces(expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_PIECES", (8,))
    reader = reader_on(MeshShape(fsdp=2, tensor=2, sequence=2))
    lengths = np.array([27, 5, 3, 14], np.int32)
    settings: Any = {"config": CONFIG, "mesh": reader.mesh}
    pieces = list(decode.read(reader.weights, TOKENS[:, :27], lengths, reader.empty(), FREQUENCIES, **settings))
    assert len(pieces) == 4
    logits, cache = pieces[-1]
    assert cache.lengths.tolist() == lengths.tolist()
    check(logits, cache, expected)
    with pytest.raises(UserError, match="6 tokens more do not fit a cache for 32: it has room for 5"):
        decode.read(reader.weights, TOKENS[:, 27:33], np.full(4, 6, np.int32), cache, FREQUENCIES, **settings)


def test_neither_the_cache_moves_nor_are_all_scores_held() -> None:
    length, capacity, ring = 512, 4096, 4
    config = ModelConfig(vocabulary_size=101, dim=16, ffn=16, layers=1, heads=2, kv_heads=1, head_dim=8)
    mesh = mesh_of(MeshShape(sequence=ring))
    reading = jax.jit(partial(extend, config=config, frequencies=rope_frequencies(1e4, 8), mesh=mesh), donate_argnums=3)
    compiled = reading.lower(
        draw(0, config, mesh), jnp.zeros((1, length), jnp.int32), jnp.full(1, length, jnp.int32),
        empty_cache(1, capacity, config=config, mesh=mesh),
    ).compile()  # fmt: skip
    moved = re.findall(
        r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-reduce|all-to-all|collective-permute)\(", compiled.as_text()
    )
    sizes = [int(np.prod([int(side) for side in shape.split(",") if side])) for shape in moved]
    assert max(sizes) == length * config.heads * config.head_dim  # the queries, once around
    assert compiled.memory_analysis().temp_size_in_bytes / ring < 4 * length * capacity / ring


@pytest.mark.parametrize(("length", "capacity"), [(30, 64), (32, 60), (32, 16)])
def test_sizes_that_do_not_fit_the_ring_are_refused(length: int, capacity: int) -> None:
    reader = reader_on(MeshShape(sequence=8))
    with pytest.raises(ValueError, match=f"prompts of {length} and a capacity of {capacity} do not fit a ring of 8"):
        prefill(
            reader.weights, jnp.asarray(TOKENS[:, :length]), jnp.asarray(LENGTHS),
            capacity=capacity, config=CONFIG, frequencies=FREQUENCIES, mesh=reader.mesh,
        )  # fmt: skip


def test_a_piece_must_fit_its_cache() -> None:
    reader = reader_on(MeshShape(sequence=8))
    with pytest.raises(ValueError, match="a piece of 8 tokens is longer than a cache with a capacity of 4"):
        reader_on(MeshShape()).extend(reader_on(MeshShape()).empty(4), [8] * 4)
    with pytest.raises(ValueError, match="a capacity of 30 does not divide over a ring of 8"):
        reader.empty(30)
