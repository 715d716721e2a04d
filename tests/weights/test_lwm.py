import errno
import os
import pickle
import tracemalloc
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import RopeScaling, rope_frequencies
from ringworld.model.transformer import forward, head
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.lwm import half_split, interleaved, open_lwm, write_lwm
from ringworld.weights.lwm_stream import index_stream, read_streamed, write_streamed
from ringworld.weights.portable import open_portable, write_portable
from ringworld.weights.source import Source
from weights.made import TEXT, VISION, Counting, config, same, source, tokenizer

LAYERS = "transformer/h/scan_decoder"
WQ = f"{LAYERS}/attention/wq/kernel"
both = pytest.mark.parametrize("vocabulary", [TEXT, VISION], ids=["text", "vision"])


def extension(array: np.ndarray) -> msgpack.ExtType:
    """An array as flax hands it to msgpack."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes()), use_bin_type=True))


def chunked(array: np.ndarray, elements: int) -> dict:
    """A large one."""
    flat = array.reshape(-1)
    chunks = [extension(flat[i : i + elements]) for i in range(0, flat.size, elements)]
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(axis): size for axis, size in enumerate(array.shape)},
        "chunks": {str(number): chunk for number, chunk in enumerate(chunks)},
    }


def pair(name: str, value: object) -> bytes:
    """What the original's checkpointer writes for a parameter."""
    return msgpack.Packer().pack((tuple(name.split("/")), msgpack.packb(value, strict_types=True)))


def stream(tree: dict[str, np.ndarray]) -> bytes:
    """What it writes for all of them."""
    return b"".join(pair(name, extension(array)) for name, array in tree.items())


def shapes(vocabulary: Vocabulary) -> dict[str, tuple[int, ...]]:
    """The parameters of an LWM of 3 layers, 2 heads of 8, and a feed-forward of 12."""
    text = {
        "lm_head/kernel": (16, vocabulary.text_size),
        f"{LAYERS}/attention/wk/kernel": (3, 16, 16),
        f"{LAYERS}/attention/wo/kernel": (3, 16, 16),
        WQ: (3, 16, 16),
        f"{LAYERS}/attention/wv/kernel": (3, 16, 16),
        f"{LAYERS}/attention_norm/kernel": (3, 16),
        f"{LAYERS}/feed_forward/w1/kernel": (3, 16, 12),
        f"{LAYERS}/feed_forward/w2/kernel": (3, 12, 16),
        f"{LAYERS}/feed_forward/w3/kernel": (3, 16, 12),
        f"{LAYERS}/ffn_norm/kernel": (3, 16),
        "transformer/ln_f/kernel": (16,),
        "transformer/wte/embedding": (vocabulary.text_size, 16),
    }
    vision = {
        "transformer/vte/embedding": (vocabulary.vision_size, 16),
        "vision_head/kernel": (16, vocabulary.vision_size),
    }
    return text | (vision if vocabulary.vision_size else {})


def drawn(vocabulary: Vocabulary, dtype: object = jnp.bfloat16) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {name: rng.normal(size=shape, scale=0.3).astype(dtype) for name, shape in shapes(vocabulary).items()}


def opened(path: Path, vocabulary: Vocabulary = TEXT, **changes: object) -> Source:
    given = {"tokenizer": tokenizer(vocabulary), "rope_theta": 1e6, "context_length": 64, "head_dim": 8}
    return open_lwm(path, **given | changes)


def written(tmp_path: Path, tree: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "streaming_params"
    path.write_bytes(stream(tree))
    return path


def lwm_logits(tree: dict[str, np.ndarray], tokens: np.ndarray, vocabulary: Vocabulary, theta: float) -> np.ndarray:
    """LWM's forward pass in a few lines of numpy: two tables, two heads, rotary pairs side by side."""
    text, vision = tokens < vocabulary.text_size, tokens - vocabulary.text_size
    x = tree["transformer/wte/embedding"][np.where(text, tokens, 0)]
    if vocabulary.vision_size:
        x = np.where(text[:, None], x, tree["transformer/vte/embedding"][np.where(text, 0, vision)])

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * gain

    angles = np.outer(np.arange(len(tokens)), theta ** (-np.arange(0, 8, 2) / 8))

    def turned(x: np.ndarray) -> np.ndarray:
        pairs = x.reshape(len(tokens), 2, 4, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * angles)[:, None]
        return np.stack([turned.real, turned.imag], -1).reshape(len(tokens), 2, 8)

    for layer in range(3):
        one = {name.removeprefix(f"{LAYERS}/"): tree[name][layer] for name in tree if name.startswith(LAYERS)}
        h = norm(x, one["attention_norm/kernel"])
        query, key = turned(h @ one["attention/wq/kernel"]), turned(h @ one["attention/wk/kernel"])
        value = (h @ one["attention/wv/kernel"]).reshape(len(tokens), 2, 8)
        scores = np.einsum("qhk,thk->hqt", query, key) / np.sqrt(8)
        scores = np.exp(np.where(np.tri(len(tokens), dtype=bool), scores, -np.inf))
        attended = np.einsum("hqt,thk->qhk", scores / scores.sum(-1, keepdims=True), value)
        x = x + attended.reshape(len(tokens), 16) @ one["attention/wo/kernel"]
        h = norm(x, one["ffn_norm/kernel"])
        gate = h @ one["feed_forward/w1/kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ one["feed_forward/w3/kernel"])) @ one["feed_forward/w2/kernel"]
    x = norm(x, tree["transformer/ln_f/kernel"])
    heads = [tree["lm_head/kernel"]] + ([tree["vision_head/kernel"]] if vocabulary.vision_size else [])
    return np.concatenate([x @ head for head in heads], -1)


def test_a_model_of_the_original_says_here_what_it_says_there(tmp_path):
    tree = drawn(VISION)
    mesh = build_mesh(MeshShape(), jax.devices()[:1])
    model = opened(written(tmp_path, tree), VISION).load(mesh)
    tokens = np.random.default_rng(0).integers(0, VISION.size, (1, 24))
    positions = jnp.arange(24)[None]
    ours = partial(forward, config=model.description.config, frequencies=rope_frequencies(1e6, 8), mesh=mesh)
    hidden = jax.jit(ours)(model.weights, jnp.asarray(tokens), jnp.ones_like(positions), positions)
    wide = {name: array.astype(np.float64) for name, array in tree.items()}
    wanted = lwm_logits(wide, tokens[0], VISION, 1e6)
    np.testing.assert_allclose(hidden[0] @ head(model.weights), wanted, atol=1e-4)


@both
def test_its_shape_follows_from_its_tensors(tmp_path, vocabulary):
    described = opened(written(tmp_path, drawn(vocabulary)), vocabulary).description
    assert described.config == config(vocabulary)
    assert described.vocabulary == vocabulary
    assert (described.rope_theta, described.context_length) == (1e6, 64)


@both
def test_what_is_written_is_the_original_to_the_byte(tmp_path, vocabulary):
    tree = drawn(vocabulary)
    write_lwm(opened(written(tmp_path, tree), vocabulary), tmp_path / "again")
    content = (tmp_path / "again").read_bytes()
    pairs = msgpack.Unpacker()
    pairs.feed(content)
    order = ["/".join(name) for name, _ in pairs]
    assert sorted(order) == sorted(tree)
    assert content == stream({name: tree[name] for name in order})


@both
def test_a_round_trip_changes_no_bit(tmp_path, vocabulary):
    first = source(vocabulary)
    write_lwm(first, tmp_path / "params")
    same(opened(tmp_path / "params", vocabulary), first)
    assert [path.name for path in tmp_path.iterdir()] == ["params"]


@pytest.mark.parametrize("chunk", [100, 256, 10**6])
def test_large_arrays_are_in_chunks(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr("ringworld.weights.lwm_stream.CHUNK", chunk)
    first = source(VISION)
    write_lwm(first, tmp_path / "params")
    back = opened(tmp_path / "params", VISION)
    same(back, first)
    raw = interleaved(first.read("layers/query")).reshape(3, 16, 16)
    value = chunked(raw, chunk // 2) if raw.nbytes > chunk else extension(raw)
    assert pair(WQ, value) in (tmp_path / "params").read_bytes()


@settings(max_examples=30)
@given(st.integers(1, 70000), st.sampled_from(["bfloat16", "float32", "float16"]), st.booleans())
def test_arrays_of_any_size_have_the_original_bytes(tmp_path_factory, size, dtype, flat):
    path = tmp_path_factory.getbasetemp() / "any"
    array = (np.arange(size) / size).astype(dtype).reshape((size,) if flat else (1, size))
    with path.open("wb") as file:
        write_streamed(file, "a/b", array)
    assert path.read_bytes() == pair("a/b", extension(array))
    np.testing.assert_array_equal(read_streamed(path, index_stream(path)["a/b"]), array)


def test_the_orders_of_rotary_pairs_undo_each_other():
    heads = np.arange(2 * 6).reshape(2, 6)
    np.testing.assert_array_equal(half_split(heads), [[0, 2, 4, 1, 3, 5], [6, 8, 10, 7, 9, 11]])
    np.testing.assert_array_equal(interleaved(half_split(heads)), heads)


def test_float32_is_rounded_and_a_tied_head_is_a_copy(tmp_path):
    tied = source(VISION, np.float32, config(VISION, tied=True))
    write_lwm(tied, tmp_path / "params")
    back = opened(tmp_path / "params", VISION)
    assert not back.description.config.tied
    arrays = dict(back.arrays())
    for name, array in tied.arrays():
        np.testing.assert_array_equal(arrays[name], array.astype(jnp.bfloat16))
    np.testing.assert_array_equal(arrays["head"], arrays["embedding"].T)


def test_a_train_state_gives_its_parameters(tmp_path):
    tree = drawn(VISION, np.float32)
    state = {
        "opt_state/1/0/mu/params/params/transformer/h/scan_decoder/attention/wq/kernel": extension(np.ones(3)),
        **{f"params/params/{name}": extension(array) for name, array in tree.items()},
        "step": 7,
    }
    path = tmp_path / "streaming_train_state"
    path.write_bytes(b"".join(pair(name, value) for name, value in state.items()))
    back = opened(path, VISION)
    np.testing.assert_array_equal(back.read("final_norm"), tree["transformer/ln_f/kernel"])
    assert back.read("final_norm").dtype == np.float32
    assert len(dict(back.arrays())) == 12


def test_one_array_is_held_at_a_time(tmp_path):
    counting = Counting(source(VISION))
    write_lwm(counting.source, tmp_path / "params")
    assert counting.most == 1


def test_a_conversion_needs_little_memory(tmp_path):
    large = config(VISION, dim=128, ffn=344, layers=24, heads=16, kv_heads=16)
    write_lwm(source(VISION, model=large), tmp_path / "params")
    back = opened(tmp_path / "params", VISION)
    sizes = [2 * prod(shape) for shape in back.shapes.values()]
    tracemalloc.start()  # numpy reports its arrays to it
    try:
        write_portable(back, tmp_path / "portable")
        write_lwm(open_portable(tmp_path / "portable"), tmp_path / "again")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(sizes) > 4 * max(sizes)
    assert max(sizes) < peak < 1.5 * max(sizes)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "params").read_bytes()


class Runs:
    """Pickled, it is a program."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["metadata.pkl", "streaming_params"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_refused_and_not_opened(tmp_path, name, protocol):
    marker, path = tmp_path / "it-ran", tmp_path / name
    path.write_bytes(pickle.dumps(Runs(marker), protocol))
    old = protocol < 2 and path.suffix != ".pkl"  # nothing tells these from other text
    with pytest.raises(UserError, match=rf"{name} is {'no whole stream' if old else 'a pickle, which may run code'}"):
        opened(path)
    assert not marker.exists()


def test_the_pickles_beside_it_are_not_opened(tmp_path):
    marker = tmp_path / "it-ran"
    for name in ("metadata.pkl", "dataset.pkl"):
        (tmp_path / name).write_bytes(pickle.dumps(Runs(marker)))
    assert len(dict(opened(written(tmp_path, drawn(TEXT))).arrays())) == 12
    assert not marker.exists()


def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = stream(drawn(TEXT))
    path = tmp_path / "params"
    cuts = {*range(0, len(whole), 397), *range(1, 60, 3), *range(len(whole) - 20, len(whole))}
    for cut in sorted(cuts):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=r"params"):
            opened(path)
    with pytest.raises(
        UserError, match=r"params is no whole stream .*within transformer/wte/embedding: it ends 1 byte"
    ):
        opened(path)


@settings(max_examples=50)
@given(st.sampled_from(list(shapes(TEXT))), st.integers(0, 120), st.integers(0, 255))
def test_a_file_with_a_wrong_byte_opens_or_is_refused(tmp_path_factory, name, offset, byte):
    tree = drawn(TEXT)
    whole = bytearray(stream(tree))
    header = whole.index(pair(name, extension(tree[name]))) + offset  # the bytes before an array's own
    whole[header % len(whole)] = byte
    path = tmp_path_factory.getbasetemp() / "wrong"
    path.write_bytes(whole)
    refused = ""
    try:
        assert len(dict(opened(path).arrays())) == 12
    except UserError as error:
        refused = str(error)
    assert refused == "" or str(path) in refused


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path):
    path = written(tmp_path, drawn(TEXT))
    back = opened(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="streaming_params has become shorter"):
        back.read("embedding")
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*streaming_params \(No such file"):
        back.read("embedding")


def test_what_does_not_fit_is_named(tmp_path):
    tree = drawn(VISION)
    wo, vte = f"{LAYERS}/attention/wo/kernel", "transformer/vte/embedding"
    renamed = {name.replace("/wo/", "/w_o/"): array for name, array in tree.items()}
    with pytest.raises(UserError, match=r"2 of its .*attention/w_o/kernel is \[3, 16, 16\] in the file and missing"):
        opened(written(tmp_path, renamed), VISION)
    missing = {name: array for name, array in tree.items() if name != wo}
    with pytest.raises(UserError, match=rf"streaming_params .*{wo} is missing in the file and \[3, 16, 16\] in the m"):
        opened(written(tmp_path, missing), VISION)
    other = tree | {wo: tree[wo][:, :8]}
    with pytest.raises(UserError, match=rf"streaming_params .*{wo} is \[3, 8, 16\] in the file and \[3, 16, 16\] in"):
        opened(written(tmp_path, other), VISION)
    with pytest.raises(UserError, match=rf"0 vision ids .*{vte} is \[7, 16\] in the file and missing in the model"):
        opened(written(tmp_path, tree), TEXT)
    with pytest.raises(UserError, match=rf"7 vision ids .*{vte} is missing in the file and \[7, 16\] in the model"):
        opened(written(tmp_path, drawn(TEXT)), VISION)
    flat = {name.replace("scan_decoder", "0"): array for name, array in tree.items()}
    with pytest.raises(UserError, match=r"feed_forward/w1/kernel is missing in .*streaming_params.*scan_layers=False"):
        opened(written(tmp_path, flat), VISION)
    w1 = f"{LAYERS}/feed_forward/w1/kernel"
    with pytest.raises(UserError, match=r"feed_forward/w1/kernel is \[48, 12\] in .*must be \[layers, width, inner"):
        opened(written(tmp_path, tree | {w1: tree[w1].reshape(48, 12)}), VISION)
    with pytest.raises(UserError, match=r"is 16 wide, which heads of 128 do not divide: give another head_dim"):
        opened(written(tmp_path, tree), VISION, head_dim=128)
    with pytest.raises(UserError, match=r"is 16 wide, which heads of 0 do not divide"):
        opened(written(tmp_path, tree), VISION, head_dim=0)


def test_a_given_configuration_is_held_to(tmp_path):
    path = written(tmp_path, drawn(TEXT))
    asked = config(TEXT, heads=4, kv_heads=4, head_dim=4, norm_eps=1e-5)
    assert opened(path, config=asked).description.config == asked
    with pytest.raises(UserError, match=r"w1/kernel is \[3, 16, 12\] in the file and \[3, 16, 24\] in the model"):
        opened(path, config=config(TEXT, ffn=24))
    with pytest.raises(UserError, match=r"configuration given for .*streaming_params has 1 key heads for 2 query"):
        opened(path, config=config(TEXT, kv_heads=1))


def test_what_is_no_stream_is_said(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*nowhere \(No such file .*name LWM's file"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"cannot read .* \(Is a directory\)"):
        opened(tmp_path)
    path = tmp_path / "file"
    path.write_bytes(b"PK\x03\x04 a zip archive")
    with pytest.raises(
        UserError, match=r"file is no whole stream .*at its beginning: there is 'integer' at byte 0 in place of 'list'"
    ):
        opened(path)
    path.write_bytes(pair("a/b", extension(np.ones(3))))
    with pytest.raises(UserError, match=r"within a/b: it is kept as float64, and weights must be one of bfloat16, flo"):
        opened(path)
    path.write_bytes(pair("a/b", 7))
    with pytest.raises(UserError, match=r"within a/b: there is 'integer' before byte \d+ in place of an array"):
        opened(path)
    path.write_bytes(pair("a/b", msgpack.ExtType(3, b"1234567")))
    with pytest.raises(UserError, match=r"within a/b: the extension at byte \d+ is no array"):
        opened(path)
    path.write_bytes(pair("a/b", {"shape": {"0": 4}, "chunks": {"0": extension(np.ones(3, np.float32))}}))
    with pytest.raises(UserError, match=r"within a/b: 12 bytes do not make an array \[4\] of float32"):
        opened(path)
    path.write_bytes(pair("a/b", {"shape": {"0": 4}, "chunks": {"1": extension(np.ones(4, np.float32))}}))
    with pytest.raises(UserError, match=r"within a/b: the keys before byte \d+ must be numbers from 0 on"):
        opened(path)
    path.write_bytes(pair("a/b", {"shape": {"0": 4}, "lumps": {}}))
    with pytest.raises(UserError, match=r"within a/b: there is 'lumps' before byte \d+ in place of an array's chunks"):
        opened(path)
    path.write_bytes(pair("a/b", {"shape": {"0": 0}, "chunks": {}}))
    with pytest.raises(UserError, match=r"within a/b: the chunks before byte \d+ do not make an array"):
        opened(path)
    nested: object = {}
    for _ in range(100):
        nested = {"chunks": {"0": nested}}
    path.write_bytes(pair("a/b", nested))
    with pytest.raises(UserError, match=r"within a/b: there is 'map' at byte \d+ in place of 'extension'"):
        opened(path)
    path.write_bytes(pair("a/" + 2000 * "b", 7))
    with pytest.raises(UserError, match=r"the string at byte \d+ has the length 2000"):
        opened(path)
    path.write_bytes(b"\x92\x91\xa1a\xc4\x05\xc7\x00\x01\x00\x00")
    with pytest.raises(UserError, match=r"within a: "):
        opened(path)


def test_models_that_lwm_has_not_are_not_written(tmp_path):
    path = tmp_path / "params"
    with pytest.raises(UserError, match=r"made has 1 key heads for 2 query heads, and LWM's"):
        write_lwm(source(model=config(kv_heads=1)), path)
    with pytest.raises(UserError, match=r"made has 2 heads of 4 in a width of 16, and LWM's"):
        write_lwm(source(model=config(head_dim=4)), path)
    with pytest.raises(UserError, match=r"made has norms of queries and keys, and LWM's"):
        write_lwm(source(model=config(qk_norm=True)), path)
    with pytest.raises(UserError, match=r"made has queries that grow with their position, and LWM's"):
        write_lwm(source(model=config(sharpened_from=64)), path)
    first = source()
    scaled = replace(first, description=replace(first.description, rope_scaling=RopeScaling("linear", 2.0, 64)))
    with pytest.raises(UserError, match=r"made scales its RoPE frequencies \(linear\), and LWM has a theta only"):
        write_lwm(scaled, path)
    vast = replace(first, description=replace(first.description, config=config(layers=24_000_000)))
    with pytest.raises(UserError, match=r"wq/kernel \[24000000, 16, 16\] of the model made is too large for LWM's fo"):
        write_lwm(vast, path)
    path.write_text("mine")
    with pytest.raises(UserError, match="params exists already: name another file"):
        write_lwm(first, path)
    assert path.read_text() == "mine"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ringworld.files.os.fsync", full)
    with pytest.raises(UserError, match=r"could not write the model to .*params \(No space left .*nothing is left"):
        write_lwm(source(), tmp_path / "params")
    assert not list(tmp_path.iterdir())
