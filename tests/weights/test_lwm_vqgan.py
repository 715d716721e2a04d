import collections
import os
import pickle
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.parameters import abstract
from ringworld.tokens.vqgan import LWM_VQGAN, declare, decode, from_bytes, look_up, to_codes, to_frames
from ringworld.weights.lwm_vqgan import _path, lwm_name, read_array_pickle, read_lwm_vqgan
from tokens import small_vqgan
from tokens.small_vqgan import SMALL

GOLDEN = Path(__file__).parent.parent / "golden" / "small_vqgan_codes.npy"


def lwm_tree() -> dict:
    """A small tokenizer's weights under LWM's names."""
    tree: dict = {}
    for keys, leaf in jax.tree.leaves_with_path(small_vqgan.draw(SMALL)):
        *folders, name = lwm_name(_path(keys)).split("/")
        place = tree
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    # Codes that vectors come near: those of a frame of noise.
    noise = np.random.default_rng(1).integers(0, 256, (32, 32, 3))
    tree["quantize"]["embeddings"] = small_vqgan.latents(noise, tree, 3, 4).reshape(64, 6).astype(np.float32)
    return tree


def picture() -> np.ndarray:
    rows, columns = np.mgrid[:32, :32]
    waves = [np.sin(rows * (k + 1) / 4) * np.cos(columns * columns / (20 + 9 * k)) for k in range(3)]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def write(path: Path, value: object) -> Path:
    path.write_bytes(pickle.dumps(value))
    return path


def test_every_weight_of_lwms_tokenizer_has_its_place_and_shape():
    shapes = {lwm_name(_path(k)): leaf.shape for k, leaf in jax.tree.leaves_with_path(abstract(declare(LWM_VQGAN)))}
    assert len(shapes) == 277
    assert sum(np.prod(shape) for shape in shapes.values()) == pytest.approx(146e6, rel=0.01)
    assert shapes["decoder/UpsamplingBlock_1/ResnetBlock_0/Conv_2/kernel"] == (1, 1, 768, 512)
    assert shapes["encoder/DownsamplingBlock_3/Downsample_0/Conv_0/kernel"] == (3, 3, 512, 512)
    assert shapes["encoder/MidBlock_0/ResnetBlock_1/GroupNorm_1/scale"] == (768,)
    assert shapes["quantize/embeddings"] == (8192, 64)


@pytest.mark.parametrize("wrap", [lambda tree: tree, lambda tree: {"params": tree}, collections.OrderedDict])
def test_codes_and_frames_are_those_of_a_plain_numpy_forward_pass(tmp_path, wrap):
    tree = lwm_tree()
    weights = jax.tree.map(jnp.asarray, read_lwm_vqgan(write(tmp_path / "vqgan", wrap(tree)), SMALL))
    codes = np.asarray(to_codes(weights, from_bytes(jnp.array(picture()[None])), SMALL))[0]
    np.testing.assert_array_equal(codes, small_vqgan.encode(picture(), tree, 3, 4))
    np.testing.assert_array_equal(codes, np.load(GOLDEN))
    frame = np.asarray(to_frames(weights, jnp.array(codes[None]), SMALL))[0]
    np.testing.assert_allclose(frame, small_vqgan.decode(codes, tree, 3, 4), atol=2e-4)
    assert len(np.unique(codes)) > 5
    assert (
        np.abs(
            np.asarray(decode(weights, look_up(jnp.array(codes[None]), weights.codebook, SMALL.quantizer), SMALL))
        ).max()
        > 0
    )


def test_arrays_that_jax_pickled_are_read(tmp_path):
    tree = read_array_pickle(write(tmp_path / "jax", {"a": jnp.arange(6.0).reshape(2, 3), "b": np.arange(3)}))
    np.testing.assert_array_equal(tree["a"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(tree["b"], [0, 1, 2])


class Runs:
    def __reduce__(self):
        return os.system, ("echo this must not run > ran",)


@pytest.mark.parametrize(
    ("value", "name"), [(Runs(), "posix.system"), ([{"a": Path("x")}], "pathlib"), (len, "builtins.len")]
)
def test_a_pickle_of_anything_else_is_refused_by_name_and_not_run(tmp_path, monkeypatch, value, name):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "bad", value)
    with pytest.raises(UserError, match=rf"was refused: it would make {name}.*only arrays and containers"):
        read_array_pickle(path)
    assert not (tmp_path / "ran").exists()


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*no-file"):
        read_array_pickle(tmp_path / "no-file")
    whole = pickle.dumps(lwm_tree())
    for content in (b"", b"\x80", b"not a pickle", whole[: len(whole) // 2]):
        (tmp_path / "cut").write_bytes(content)
        with pytest.raises(UserError, match="cut is no whole pickle"):
            read_array_pickle(tmp_path / "cut")
    tree = lwm_tree()
    del tree["quant_conv"]["bias"]
    with pytest.raises(UserError, match=r"quant_conv/bias is missing in the file and \[6\] in the model"):
        read_lwm_vqgan(write(tmp_path / "lacks", tree), SMALL)
    tree = lwm_tree()
    tree["quantize"]["embeddings"] = np.zeros((64, 5), np.float32)
    with pytest.raises(UserError, match=r"quantize/embeddings is \[64, 5\] in the file and \[64, 6\] in the model"):
        read_lwm_vqgan(write(tmp_path / "other", tree), SMALL)
