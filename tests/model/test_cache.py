"""Decoding with a cache, and reading on with one, equal reading everything anew, on every mesh."""

import re
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from drawn import draw
from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.cache import Cache, decode_step, empty_cache, extend, grow, keep, prefill, room
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies
from ringworld.model.transformer import forward, head

CONFIG = ModelConfig(vocabulary_size=101, dim=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=16, qk_norm=True)
FREQUENCIES = rope_frequencies(1e4, 16)
TOKENS = np.random.default_rng(0).integers(0, 101, (4, 40)).astype(np.int32)
LENGTHS = np.array([5, 9, 16, 12], np.int32)
STEPS = 9


def mesh_of(shape: MeshShape):
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


@pytest.fixture(scope="module")
def expected() -> np.ndarray:
    """Logits at every position, from the whole sequence at once. [4, 40, V]."""
    mesh = mesh_of(MeshShape())
    weights = draw(0, CONFIG, mesh)
    positions = jnp.broadcast_to(jnp.arange(40), TOKENS.shape)
    hidden = forward(
        weights,
        jnp.asarray(TOKENS),
        jnp.ones_like(positions),
        positions,
        config=CONFIG,
        frequencies=FREQUENCIES,
        mesh=mesh,
    )
    return np.asarray(hidden @ head(weights))


@pytest.mark.parametrize(
    "shape",
    [MeshShape(), MeshShape(sequence=2), MeshShape(data=2, tensor=2, sequence=2), MeshShape(fsdp=2, sequence=4)],
    ids=str,
)
def test_prefill_and_decoding_equal_the_whole_sequence(shape, expected):
    mesh = mesh_of(shape)
    weights = draw(0, CONFIG, mesh)
    prompts = np.where(np.arange(16)[None] < LENGTHS[:, None], TOKENS[:, :16], 0)
    settings = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": mesh}
    read = jax.jit(lambda w, t, n: prefill(w, t, n, capacity=32, **settings))
    step = jax.jit(lambda w, t, c: decode_step(w, t, c, **settings))
    row = np.arange(4)
    logits, cache = read(weights, jnp.asarray(prompts), jnp.asarray(LENGTHS))
    np.testing.assert_allclose(logits, expected[row, LENGTHS - 1], atol=2e-5)
    for i in range(STEPS):
        logits, cache = step(weights, jnp.asarray(TOKENS[row, LENGTHS + i]), cache)
        np.testing.assert_allclose(logits, expected[row, LENGTHS + i], atol=2e-5)
    assert cache.lengths.tolist() == (LENGTHS + STEPS).tolist()
    assert int(cache.segments.sum()) == LENGTHS.sum() + 4 * STEPS


def test_no_device_holds_the_whole_cache():
    mesh = mesh_of(MeshShape(sequence=8))
    weights = draw(0, CONFIG, mesh)
    settings = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": mesh}
    read = jax.jit(lambda w, t, n: prefill(w, t, n, capacity=64, **settings))
    _, cache = read(weights, jnp.asarray(TOKENS[:, :32]), jnp.full(4, 32, jnp.int32))
    assert {shard.data.shape[2] for shard in cache.keys.addressable_shards} == {8}


@pytest.mark.parametrize(("length", "capacity"), [(30, 64), (32, 60), (32, 16)])
def test_sizes_that_do_not_fit_the_ring_are_refused(length, capacity):
    mesh = mesh_of(MeshShape(sequence=8))
    weights = draw(0, CONFIG, mesh)
    with pytest.raises(ValueError, match=f"prompts of {length} and a capacity of {capacity} do not fit a ring of 8"):
        prefill(
            weights, jnp.asarray(TOKENS[:, :length]), jnp.asarray(LENGTHS),
            capacity=capacity, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh,
        )  # fmt: skip


MESHES = [
    MeshShape(),
    MeshShape(sequence=2),
    MeshShape(sequence=4),
    MeshShape(sequence=8),
    MeshShape(data=2, tensor=2, sequence=2),
]
CAPACITY, PIECE = 32, 8
ROW = np.arange(4)


class Reader:
    """Reads `TOKENS` on one mesh: each step returns the logits and a new cache, and leaves the old one alone."""

    def __init__(self, shape: MeshShape) -> None:
        self.mesh = mesh_of(shape)
        self.weights = draw(0, CONFIG, self.mesh)
        settings: Any = {"config": CONFIG, "frequencies": FREQUENCIES, "mesh": self.mesh}
        self._prefill = jax.jit(partial(prefill, capacity=CAPACITY, **settings))
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
        return empty_cache(4, capacity, config=CONFIG, mesh=self.mesh)

    def room(self, cache: Cache) -> int:
        return room(cache, mesh=self.mesh)


reader_on = lru_cache(Reader)  # its programs are compiled once


def check(logits: np.ndarray, cache: Cache, expected: np.ndarray) -> None:
    np.testing.assert_allclose(logits, expected[ROW, np.asarray(cache.lengths) - 1], atol=1e-5)


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


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(sequence=4)], ids=str)
def test_what_was_forgotten_leaves_its_room_and_no_trace(shape: MeshShape, expected: np.ndarray) -> None:
    reader = reader_on(shape)
    _, cache = reader.extend(reader.empty(), [8] * 4)
    cache = reader.keep(cache, [5, 7, 6, 7])
    assert cache.lengths.tolist() == [5, 7, 6, 7]
    assert reader.room(cache) == 32 - 7
    logits, cache = reader.extend(cache, [8, 3, 7, 8])
    check(logits, cache, expected)
    assert int(cache.segments.sum()) == int(cache.lengths.sum())


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(sequence=4)], ids=str)
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


def test_a_cache_grows_and_loses_nothing(expected: np.ndarray) -> None:
    reader = reader_on(MeshShape(sequence=4))
    _, cache = reader.extend(reader.empty(12), [7] * 4)
    cache = jax.jit(partial(grow, capacity=32, mesh=reader.mesh))(cache)
    assert reader.room(cache) == 32 - 7
    logits, cache = reader.extend(cache, [8] * 4)
    check(logits, cache, expected)
    with pytest.raises(ValueError, match="a cache of 32 cannot grow to 12"):
        grow(cache, 12, mesh=reader.mesh)


def test_a_long_text_is_read_in_pieces(expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "_PIECES", (8,))
    reader = reader_on(MeshShape(data=2, sequence=2))
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


def test_a_piece_must_fit_its_cache() -> None:
    reader = reader_on(MeshShape(sequence=8))
    with pytest.raises(ValueError, match="a piece of 8 tokens is longer than a cache with a capacity of 4"):
        reader_on(MeshShape()).extend(reader_on(MeshShape()).empty(4), [8] * 4)
    with pytest.raises(ValueError, match="a capacity of 30 does not divide over a ring of 8"):
        reader.empty(30)
