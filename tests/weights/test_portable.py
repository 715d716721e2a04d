import errno
import json
import os
import re
import shutil
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file, save_file

from drawn import draw
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.model.rope import RopeScaling
from ringworld.training.checkpoint import Checkpoints, Progress
from ringworld.weights.checkpoint import Description, load_model, named
from ringworld.weights.portable import open_portable, source_of_checkpoint, write_portable
from ringworld.weights.source import Source
from weights.made import TEXT, VISION, Counting, config, same, source, tokenizer


def portable(tmp_path: Path, first: Source, **given: int) -> Path:
    folder = tmp_path / "model"
    write_portable(first, folder, **given)
    return folder


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
def test_a_round_trip_changes_no_bit_and_no_type(tmp_path, dtype):
    first = source(VISION, dtype)
    folder = portable(tmp_path, first)
    same(open_portable(folder), first)
    assert sorted(path.name for path in folder.iterdir()) == [
        "model.json",
        "tokenizer.json",
        "weights-00001-of-00001.safetensors",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_all_that_describes_a_model_is_kept(tmp_path):
    first = source(TEXT, np.float32, config(TEXT, tied=True, qk_norm=True, kv_heads=1, norm_eps=1e-5))
    scaling = RopeScaling("yarn", 4.0, 64, low=2.0, high=16.0)
    first = replace(first, description=replace(first.description, rope_scaling=scaling))
    first.tokenizer.chat_template = "{{ messages }}"
    back = open_portable(portable(tmp_path, first))
    same(back, first)
    assert back.tokenizer.chat_template == "{{ messages }}"
    assert "head" not in back.shapes


def test_files_of_weights_end_where_they_are_told_to(tmp_path):
    first = source(VISION)
    sizes = {name: array.nbytes for name, array in first.arrays()}
    folder = portable(tmp_path, first, shard_bytes=1500)
    files = weights(folder)
    assert [path.name for path in files] == [
        f"weights-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)
    ]
    held = [sorted(load_file(path), key=list(sizes).index) for path in files]
    assert [name for names in held for name in names] == list(sizes)
    assert any(len(names) > 1 for names in held)
    for names, following in pairwise(held):
        size = sum(sizes[name] for name in names)
        assert size <= 1500 or len(names) == 1
        assert size + sizes[following[0]] > 1500
    same(open_portable(folder), first)


def test_one_array_is_held_at_a_time(tmp_path):
    counting = Counting(source(VISION))
    write_portable(counting.source, tmp_path / "model")
    assert counting.most == 1


def test_other_programs_read_the_files(tmp_path):
    first = source(VISION)
    (file,) = weights(portable(tmp_path, first))
    arrays = load_file(file)
    assert arrays.keys() == first.shapes.keys()
    np.testing.assert_array_equal(arrays["layers/down"], first.read("layers/down"))
    assert arrays["layers/down"].dtype == jnp.bfloat16


def test_a_folder_with_something_in_it_is_left_alone(tmp_path):
    folder = portable(tmp_path, source(seed=1))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=r"model exists already, and is not an empty folder: name another"):
        write_portable(source(seed=2), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file exists already"):
        write_portable(source(), tmp_path / "file")
    (tmp_path / "empty").mkdir()
    write_portable(source(), tmp_path / "empty")
    same(open_portable(tmp_path / "empty"), source())


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ringworld.weights.safetensors_files.os.fsync", full)
    with pytest.raises(UserError, match=r"could not write the model to .*model \(No space left .*nothing is left of"):
        write_portable(source(), tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_files_of_two_models_are_refused(tmp_path):
    folder = portable(tmp_path, source(VISION))
    tokenizer(TEXT).save(folder / "tokenizer.json")
    says = r"tokenizer\.json and model\.json in .* are of two models, with different vocabularies \(of 11 and 18 ids\)"
    with pytest.raises(UserError, match=says):
        open_portable(folder)
    about = json.loads((folder / "model.json").read_text())
    about["config"]["vocabulary_size"] = 17
    (folder / "model.json").write_text(json.dumps(about))
    tokenizer(VISION).save(folder / "tokenizer.json")
    with pytest.raises(UserError, match=r"model\.json in .* has a vocabulary of 18 ids for a model of 17"):
        open_portable(folder)


@pytest.mark.parametrize("known", [True, False, None])
def test_whether_guidance_can_be_used_is_kept(tmp_path, known):
    first = source(VISION)
    first = replace(first, description=replace(first.description, draws_unasked=known))
    folder = portable(tmp_path, first)
    assert open_portable(folder).description.draws_unasked is known
    about = json.loads((folder / "model.json").read_text())
    del about["draws_unasked"]  # as an earlier version wrote it
    (folder / "model.json").write_text(json.dumps(about))
    assert open_portable(folder).description.draws_unasked is None


def test_a_damaged_source_leaves_nothing(tmp_path):
    def damaged(name: str) -> np.ndarray:
        if name == "layers/up":
            raise UserError("layers/up is damaged")
        return first.read(name)

    first = source()
    with pytest.raises(UserError, match=r"^layers/up is damaged"):
        write_portable(replace(first, read=damaged), tmp_path / "model")
    short = replace(first, read=lambda name: first.read(name)[1:])
    with pytest.raises(UserError, match=r"embedding is \[10, 16\] in made and \[11, 16\] in the model"):
        write_portable(short, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_descriptions_are_said(tmp_path):
    folder = portable(tmp_path, source())
    with pytest.raises(
        UserError, match=r"cannot read .*nowhere.model\.json \(No such .*that `ringworld convert` wrote"
    ):
        open_portable(tmp_path / "nowhere")
    about = json.loads((folder / "model.json").read_text())
    for wrong in ("{", "[]", json.dumps(about | {"config": {}}), json.dumps(about | {"vocabulary": {"text_size": 1}})):
        (folder / "model.json").write_text(wrong)
        with pytest.raises(UserError, match=r"model\.json does not describe a model \("):
            open_portable(folder)
    (folder / "model.json").write_text(json.dumps(about))
    (folder / "tokenizer.json").write_text(tokenizer(VISION).to_json())
    with pytest.raises(UserError, match=r"tokenizer\.json and model\.json in .* are of two models"):
        open_portable(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        open_portable(folder)


def test_missing_and_needless_files_are_named(tmp_path):
    folder = portable(tmp_path, source(), shard_bytes=1500)
    files = weights(folder)
    stray = folder / "weights-00001-of-00002.safetensors"
    shutil.copy(files[0], stray)
    with pytest.raises(UserError, match=rf"{stray.name} in .* is none of the {len(files)} files that its other"):
        open_portable(folder)
    stray.unlink()
    files[2].unlink()
    with pytest.raises(UserError, match=rf"{files[2].name} is missing in .* \(1 of {len(files)} are\)"):
        open_portable(folder)
    for path in weights(folder):
        path.unlink()
    with pytest.raises(UserError, match=r"there are no weights in .*model: it must hold weights-00001-of-00001"):
        open_portable(folder)


def test_damaged_files_are_named(tmp_path):
    (file,) = weights(portable(tmp_path, source()))
    whole = file.read_bytes()
    for cut in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(UserError, match=rf"cannot read .*{re.escape(file.name)} \(.*missing or damaged"):
            open_portable(file.parent)
    file.write_bytes(whole)
    back = open_portable(file.parent)
    file.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=rf"cannot read .*{re.escape(file.name)}"):
        back.read("embedding")


def test_arrays_that_do_not_fit_are_named(tmp_path):
    (file,) = weights(portable(tmp_path, source()))
    arrays = load_file(file)

    def opened(changed: dict[str, np.ndarray]) -> None:
        save_file({name: np.ascontiguousarray(array) for name, array in changed.items()}, file)
        open_portable(file.parent)

    other = {name: array for name, array in arrays.items() if name != "layers/up"}
    with pytest.raises(
        UserError, match=r"layers/up \[3, 16, 12\] of the model that model\.json .* is missing in .*mod"
    ):
        opened(other)
    with pytest.raises(
        UserError, match=rf"layers/upp \[3, 16, 12\] in .*{file.name} is one array too many for the mod"
    ):
        opened({**other, "layers/upp": arrays["layers/up"]})
    with pytest.raises(UserError, match=rf"up is \[3, 8, 12\] in .*{file.name} and \[3, 16, 12\] in the model that mo"):
        opened({**other, "layers/up": arrays["layers/up"][:, :8]})
    with pytest.raises(UserError, match=rf"layers/up is kept as F64 in .*{file.name}, and weights must be one of F32"):
        opened({**other, "layers/up": arrays["layers/up"].astype(np.float64)})


@jax.tree_util.register_dataclass
@dataclass
class State:
    """What training saves: weights, and what is of no use without it."""

    weights: Any
    optimizer: Any


@pytest.fixture(scope="module", params=["tied", "untied"])
def run(request, tmp_path_factory) -> Path:
    """A run folder with one checkpoint, written from eight devices."""
    folder = tmp_path_factory.mktemp("run")
    model = config(VISION, tied=request.param == "tied")
    state = State(draw(0, model, build_mesh(MeshShape(data=4, tensor=2))), {"momentum": jnp.zeros(3)})
    about = Description(model, VISION, context_length=64, rope_theta=1e6).to_dict()
    with Checkpoints(folder, keep=1, files=("model", "tokenizer")) as checkpoints:
        made_of = {"model": about, "tokenizer": json.loads(tokenizer(VISION).to_json())}
        checkpoints.save(state, Progress(step=7), made_of)
        checkpoints.wait()
    return folder


def test_a_checkpoint_of_training_is_read_an_array_at_a_time(run, tmp_path, monkeypatch):
    wanted = named(load_model(run, build_mesh(MeshShape(), jax.devices()[:1])).weights)
    restore, leaves = ocp.PyTreeCheckpointHandler.restore, []

    def counted(*args: object, **given: object) -> object:
        restored = restore(*args, **given)
        leaves.append(len(jax.tree.leaves(restored)))
        return restored

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", counted)
    back = source_of_checkpoint(run)
    assert back.place.name == "7"
    arrays = dict(back.arrays())
    assert leaves == [1] * len(wanted)
    assert arrays.keys() == wanted.keys()
    for name, array in arrays.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, wanted[name])
    write_portable(back, tmp_path / "model")
    same(open_portable(tmp_path / "model"), source_of_checkpoint(run / "checkpoints" / "7"))


def test_a_checkpoint_that_is_damaged_or_of_another_model_is_said(run, tmp_path):
    with pytest.raises(UserError, match="there is no model folder"):
        source_of_checkpoint(tmp_path / "nowhere")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    checkpoint = copy / "checkpoints" / "7"
    about = json.loads((checkpoint / "model" / "model.json").read_text())
    about["config"]["ffn"] = 24
    (checkpoint / "model" / "model.json").write_text(json.dumps(about))
    with pytest.raises(
        UserError, match=r"weights are not .* layers/down is \[3, 12, 16\] in the checkpoint and \[3, 24"
    ):
        source_of_checkpoint(copy)
    about["config"]["ffn"] = 12
    (checkpoint / "model" / "model.json").write_text(json.dumps(about))
    back = source_of_checkpoint(copy)
    for path in (checkpoint / "weights").rglob("*"):
        if path.parent.name == "d":
            path.write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read the arrays in .*weights \(.*the checkpoint is damaged"):
        back.read("embedding")
