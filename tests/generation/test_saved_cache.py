"""A cache comes back from the disk on any mesh, and from a file that is not what it should be, not at all."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from drawn import draw
from ringworld.attention.decode import CACHE_AXES, CacheType
from ringworld.errors import UserError
from ringworld.generation.saved_cache import open_cache, save_cache
from ringworld.mesh import MeshShape, build_mesh, named_sharding
from ringworld.model.cache import Cache, decode_step, empty_cache, keep, prefill, room
from ringworld.model.config import ModelConfig
from ringworld.model.rope import rope_frequencies

CONFIG = ModelConfig(vocabulary_size=101, dim=32, ffn=48, layers=2, heads=4, kv_heads=2, head_dim=16, qk_norm=True)
FREQUENCIES = rope_frequencies(1e4, 16)
SMALL = ModelConfig(vocabulary_size=9, dim=8, ffn=8, layers=2, heads=2, kv_heads=2, head_dim=4)
TOKENS = np.random.default_rng(0).integers(1, 101, (2, 16)).astype(np.int32)
TYPES = get_args(CacheType)


@lru_cache
def mesh_of(shape: MeshShape) -> jax.sharding.Mesh:
    return build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])


@lru_cache
def step_on(shape: MeshShape) -> Callable[[np.ndarray, Cache], tuple[np.ndarray, Cache]]:
    """One token more on a mesh, the likeliest."""
    mesh = mesh_of(shape)
    weights = draw(0, CONFIG, mesh)
    step = jax.jit(partial(decode_step, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh))

    def likeliest(token: np.ndarray, cache: Cache) -> tuple[np.ndarray, Cache]:
        logits, cache = step(weights, token, cache)
        return np.asarray(logits).argmax(-1).astype(np.int32), cache

    return likeliest


def go_on(shape: MeshShape, token: np.ndarray, cache: Cache, count: int) -> list[list[int]]:
    tokens = []
    for _ in range(count):
        token, cache = step_on(shape)(token, cache)
        tokens.append(token.tolist())
    return tokens


def made(shape: MeshShape, lengths: list[int], cache_type: CacheType = "float32", capacity: int = 16) -> Cache:
    """A cache of random numbers, whose tokens lie anywhere among older ones that were forgotten."""
    rng, mesh, rows = np.random.default_rng(1), mesh_of(shape), len(lengths)
    cache = empty_cache(rows, capacity, config=SMALL, mesh=mesh, cache_type=cache_type)
    positions = np.stack([rng.permutation(capacity) for _ in range(rows)]).astype(np.int32)

    def drawn(array: jax.Array) -> jax.Array:
        numbers = rng.normal(0, 50, array.shape).astype(array.dtype)
        return jax.device_put(numbers, named_sharding(mesh, CACHE_AXES))

    by_slot = named_sharding(mesh, ("batch", "sequence"))
    return replace(
        cache,
        keys=jax.tree.map(drawn, cache.keys),
        values=jax.tree.map(drawn, cache.values),
        segments=jax.device_put((positions < np.array(lengths)[:, None]).astype(np.int32), by_slot),
        positions=jax.device_put(positions, by_slot),
        lengths=jax.device_put(np.array(lengths, np.int32), named_sharding(mesh, ("batch",))),
    )


def ids(lengths: list[int]) -> np.ndarray:
    return np.arange(1, 1 + len(lengths) * max(lengths), dtype=np.int32).reshape(len(lengths), max(lengths))


@pytest.mark.parametrize(
    ("cache_type", "saved_on", "opened_on"),
    [
        ("float32", MeshShape(sequence=2), MeshShape()),
        ("int8", MeshShape(data=2, tensor=2, sequence=2), MeshShape(sequence=8)),
    ],
    ids=str,
)
def test_what_follows_is_the_same(
    cache_type: CacheType, saved_on: MeshShape, opened_on: MeshShape, tmp_path: Path
) -> None:
    mesh, lengths = mesh_of(saved_on), np.array([13, 9], np.int32)
    read = partial(prefill, capacity=32, config=CONFIG, frequencies=FREQUENCIES, mesh=mesh, cache_type=cache_type)
    _, cache = jax.jit(read)(draw(0, CONFIG, mesh), TOKENS, lengths)
    for at in range(3):
        _, cache = step_on(saved_on)(TOKENS[[0, 1], lengths + at], cache)
    cache = jax.jit(partial(keep, mesh=mesh))(cache, np.array([15, 7], np.int32))
    save_cache(tmp_path / "cache", cache, TOKENS[:, :15], fingerprint="a")
    opened, tokens = open_cache(tmp_path / "cache", config=CONFIG, mesh=mesh_of(opened_on), fingerprint="a")
    assert tokens[0].tolist() == TOKENS[0, :15].tolist()
    assert tokens[1].tolist() == [*TOKENS[1, :7].tolist(), *[0] * 8]
    assert opened.keys.cache_type == cache_type
    assert opened.lengths.tolist() == [15, 7]
    assert go_on(opened_on, TOKENS[:, 15], opened, 6) == go_on(saved_on, TOKENS[:, 15], cache, 6)


@pytest.mark.parametrize("cache_type", TYPES)
@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, sequence=4)], ids=str)
def test_no_mesh_leaves_a_trace(shape: MeshShape, cache_type: CacheType, tmp_path: Path) -> None:
    lengths = [11, 3]
    cache = made(MeshShape(sequence=2), lengths, cache_type)
    save_cache(tmp_path / "first", cache, ids(lengths), fingerprint="a")
    opened, tokens = open_cache(tmp_path / "first", config=SMALL, mesh=mesh_of(shape), fingerprint="a", capacity=24)
    assert room(opened, mesh=mesh_of(shape)) == 24 - 11
    assert {shard.data.shape[2] for shard in opened.keys.data.addressable_shards} == {24 // shape.sequence}
    save_cache(tmp_path / "second", opened, tokens, fingerprint="a")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    with safe_open(tmp_path / "first", framework="numpy") as file:
        for name, slots in (("keys", cache.keys), ("values", cache.values)):
            for layer in range(2):
                data = file.get_tensor(f"{layer}/{name}/data").view(slots.data.dtype)
                for row, length in enumerate(lengths):
                    order = np.argsort(np.asarray(cache.positions)[row])[:length]
                    assert np.array_equal(data[row, :length], np.asarray(slots.data)[layer, row, order])
                    assert not data[row, length:].any()


@pytest.mark.parametrize("capacity", [None, 8])
def test_a_cache_without_tokens(capacity: int | None, tmp_path: Path) -> None:
    mesh = mesh_of(MeshShape(sequence=2))
    save_cache(tmp_path / "cache", made(MeshShape(), [0, 0]), np.zeros((2, 0), np.int32), fingerprint="a")
    cache, tokens = open_cache(tmp_path / "cache", config=SMALL, mesh=mesh, fingerprint="a", capacity=capacity)
    assert tokens.shape == (2, 0)
    assert room(cache, mesh=mesh) == (capacity or 64)
    assert not np.asarray(cache.segments).any()


def test_room_for_as_much_again(tmp_path: Path) -> None:
    mesh = mesh_of(MeshShape(sequence=4))
    save_cache(tmp_path / "cache", made(MeshShape(), [70], capacity=80), ids([70]), fingerprint="a")
    cache, _ = open_cache(tmp_path / "cache", config=SMALL, mesh=mesh, fingerprint="a")
    assert room(cache, mesh=mesh) >= 70
    with pytest.raises(ValueError, match="a capacity of 68 is too small for a cache of 70 tokens"):
        open_cache(tmp_path / "cache", config=SMALL, mesh=mesh, fingerprint="a", capacity=68)
    with pytest.raises(ValueError, match="a capacity of 75 does not divide over a ring of 4"):
        open_cache(tmp_path / "cache", config=SMALL, mesh=mesh, fingerprint="a", capacity=75)
    with pytest.raises(ValueError, match=r"tokens \(1, 69\) are not those of a cache with rows of \[70\]"):
        save_cache(tmp_path / "cache", made(MeshShape(), [70], capacity=80), ids([69]), fingerprint="a")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "film.cache"
    save_cache(path, made(MeshShape(), [5, 3], "int8"), ids([5, 3]), fingerprint="0123")
    return path


def opening(path: Path, config: ModelConfig = SMALL, shape: MeshShape = MeshShape(), fingerprint: str = "0123"):
    return open_cache(path, config=config, mesh=mesh_of(shape), fingerprint=fingerprint)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_damaged_byte_anywhere_is_noticed(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    place = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, 700)))
    content[place] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged").write_bytes(content)
    with pytest.raises(UserError):
        opening(tmp_path / "damaged")


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_a_file_that_was_cut_short(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = saved.read_bytes()
    (tmp_path / "short").write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(UserError, match=r"short .*: it is damaged, cut short, or no file that a cache was saved in"):
        opening(tmp_path / "short")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"there is no file {tmp_path}/nothing: give one that a cache was saved in"):
        opening(tmp_path / "nothing")
    with pytest.raises(UserError, match=f"there is no file {tmp_path}: give one"):
        opening(tmp_path)
    (tmp_path / "text").write_text("Call me Ishmael.")
    with pytest.raises(UserError, match="no file that a cache was saved in; copy it again, or read the text anew"):
        opening(tmp_path / "text")
    array = {"checksums": np.zeros(1, np.uint32)}
    for said, reason in (
        (None, "what was saved in .*other is no cache: give a file that one was saved in"),
        ("[]", "is no cache"),
        ("{", "its metadata are no JSON"),
        (json.dumps({"kind": "vqgan"}), "is no cache"),
        (
            json.dumps({"kind": "cache", "version": 2}),
            "is of version 2, and this ringworld reads 1: read the text anew",
        ),
        (json.dumps({"kind": "cache", "version": 1}), "its metadata are not what was written"),
    ):
        save_file(array, tmp_path / "other", None if said is None else {"ringworld": said})
        with pytest.raises(UserError, match=reason):
            opening(tmp_path / "other")


def test_what_the_cache_is_not_of(saved: Path) -> None:
    with pytest.raises(
        UserError, match=r"of another model \(its fingerprint is 0123, and this one's 4567\): open it w"
    ):
        opening(saved, fingerprint="4567")
    for wrong in (replace(SMALL, layers=3), replace(SMALL, heads=1, kv_heads=1), replace(SMALL, head_dim=8)):
        wanted = rf"\({wrong.layers}, {wrong.kv_heads}, {wrong.head_dim}\)"
        with pytest.raises(UserError, match=rf"key heads and head size of \(2, 2, 4\), and the model {wanted}: open"):
            opening(saved, config=wrong)
    with pytest.raises(UserError, match=r"the 2 rows of the cache in .* do not divide over 4 devices: choose a mesh"):
        opening(saved, shape=MeshShape(data=4))


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "cache"
    save_cache(path, made(MeshShape(), [5]), ids([5]), fingerprint="a")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ringworld.files.os.fsync", full)
    with pytest.raises(
        UserError, match=r"could not write the cache to .* \(No space left on device\): free some space"
    ):
        save_cache(path, made(MeshShape(), [7]), ids([7]), fingerprint="a")
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == ["cache"]
