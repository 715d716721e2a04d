import json
import pickle
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.recipes.vqgan import VQGAN_NANO
from ringworld.tokens.vocabulary import Vocabulary
from ringworld.weights.tokenizer import SHIPPED, load_tokenizer, save_tokenizer
from ringworld.worlds.reader import read
from ringworld.worlds.world import World
from tokens.small_vqgan import SMALL, draw
from weights.test_lwm_vqgan import lwm_tree

ONE = MeshShape()


def mesh():
    return build_mesh(ONE, jax.devices()[:1])


def saved(tmp_path: Path, dtype: type = np.float32) -> Path:
    path = tmp_path / "small.safetensors"
    save_tokenizer(path, SMALL, draw(SMALL), dtype)
    return path


def test_a_file_comes_back(tmp_path):
    ours = load_tokenizer(saved(tmp_path), mesh())
    assert ours.config == SMALL
    jax.tree.map(np.testing.assert_array_equal, ours.weights, draw(SMALL))
    frames = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    spread = load_tokenizer(saved(tmp_path), build_mesh(MeshShape(data=4, tensor=2)))
    np.testing.assert_array_equal(ours.encode(frames), spread.encode(frames))


def test_a_fingerprint_tells_tokenizers_apart(tmp_path):
    one = load_tokenizer(saved(tmp_path), mesh())
    again = load_tokenizer(tmp_path / "small.safetensors", build_mesh(MeshShape(data=4, tensor=2)))
    save_tokenizer(tmp_path / "other.safetensors", SMALL, draw(SMALL, seed=1))
    other = load_tokenizer(tmp_path / "other.safetensors", mesh())
    assert one.fingerprint == again.fingerprint != other.fingerprint


def test_lwms_own_file_is_a_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setattr("ringworld.weights.tokenizer.LWM_VQGAN", SMALL)
    (tmp_path / "vqgan").write_bytes(pickle.dumps(lwm_tree()))
    ours = load_tokenizer(tmp_path / "vqgan", build_mesh(MeshShape(data=4, tensor=2)))
    assert ours.config == SMALL
    save_tokenizer(tmp_path / "same.safetensors", ours.config, ours.weights)
    again = load_tokenizer(tmp_path / "same.safetensors", mesh())
    assert again.fingerprint == ours.fingerprint
    (tmp_path / "vqgan").write_bytes(b"\x80\x02")
    with pytest.raises(UserError, match="vqgan is no whole pickle"):
        load_tokenizer(tmp_path / "vqgan", mesh())


def test_a_tokenizer_fits_the_frames_of_a_vocabulary(tmp_path):
    ours = load_tokenizer(saved(tmp_path), mesh())
    text = Vocabulary(text_size=300, bos=1, eos=2, pad=0)
    ours.require_fit(text.seeing(64, 8, 8, (3,), (4,)))
    for other in (text, text.seeing(65, 8, 8, (3,), (4,)), text.seeing(64, 8, 7, (3,), (4,))):
        with pytest.raises(UserError, match=r"the model has frames of .*, the tokenizer of 8x8 of 64: take the"):
            ours.require_fit(other)


def test_half_the_bytes_change_few_codes(tmp_path):
    whole = saved(tmp_path).stat().st_size
    frames = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    codes = load_tokenizer(tmp_path / "small.safetensors", mesh()).encode(frames)
    assert saved(tmp_path, np.float16).stat().st_size < 0.6 * whole
    halved = load_tokenizer(tmp_path / "small.safetensors", mesh())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(halved.weights))
    assert (halved.encode(frames) == codes).mean() > 0.9


def test_a_shipped_tokenizer_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nano = load_tokenizer(Path("nano"), mesh())
    assert nano.config == VQGAN_NANO
    assert SHIPPED["nano"].stat().st_size <= 8e6
    scenes = [World(5, "heldout").picture(i) for i in range(32)]
    frames = np.stack([scene.frame(0, 64) for scene in scenes])
    painted = nano.decode(nano.encode(frames))
    error = ((frames.astype(float) - painted) ** 2).mean((1, 2, 3))
    assert (10 * np.log10(255**2 / error)).mean() > 35  # PSNR, in dB
    right = [read(frame).agrees(scene.ground, scene.at(0)) for frame, scene in zip(painted, scenes, strict=True)]
    assert np.mean(right) > 0.95

    (tmp_path / "nano").mkdir()  # of two things with that name the one that was made here
    with pytest.raises(UserError, match="holds no weights"):
        load_tokenizer(Path("nano"), mesh())


def test_what_is_no_tokenizer_is_said(tmp_path):
    with pytest.raises(UserError, match=r"there is no tokenizer .*nowhere: .* shipped one: nano"):
        load_tokenizer(tmp_path / "nowhere", mesh())
    (tmp_path / "text.safetensors").write_text("not arrays")
    with pytest.raises(UserError, match=r"cannot read .*text\.safetensors .*must be a whole"):
        load_tokenizer(tmp_path / "text.safetensors", mesh())
    path = saved(tmp_path)
    (tmp_path / "cut.safetensors").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read .*cut\.safetensors"):
        load_tokenizer(tmp_path / "cut.safetensors", mesh())
    arrays = load_file(path)
    save_file(arrays, tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="holds no tokenizer of frames"):
        load_tokenizer(tmp_path / "bare.safetensors", mesh())
    about = {"ringworld": json.dumps({"kind": "vqgan", "config": SMALL.to_dict()})}
    save_file({**arrays, "codebook": arrays["codebook"][:, :5].copy()}, tmp_path / "other.safetensors", about)
    with pytest.raises(UserError, match=r"codebook is \[64, 5\] in the file and \[64, 6\] in the model"):
        load_tokenizer(tmp_path / "other.safetensors", mesh())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no weights"):
        load_tokenizer(tmp_path / "empty", mesh())


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = saved(tmp_path)
    before = path.read_bytes()

    def broken(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ringworld.files.os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        save_tokenizer(path, SMALL, draw(SMALL, seed=1))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    shutil.rmtree(tmp_path)
