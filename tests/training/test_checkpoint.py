import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.data.sources import TokenizerConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.tokens.text import TextTokenizer
from ringworld.training.checkpoint import Checkpoints, Progress, clear_when_full, open_run
from ringworld.training.step import TrainState, abstract_state
from ringworld.weights.checkpoint import Description, complete_checkpoints, load_model, newest_checkpoint
from training.tiny_run import RECIPE

PROGRESS = Progress(
    stage=1, stage_step=3, step=7, units=1792, seconds=0.1 + 0.2, skipped=2, loader={"lanes": {"0": [5, 3]}}
)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return RECIPE.tokenizer.build()


def random_state(seed: int) -> TrainState:
    """Numbers in the places of a state: drawn faster than a real one is compiled."""
    rng = np.random.default_rng(seed)
    like = abstract_state(RECIPE.model, RECIPE.optimizer, build_mesh(RECIPE.mesh))
    return jax.tree.map(
        lambda leaf: jax.device_put(np.asarray(100 * rng.normal(size=leaf.shape), leaf.dtype), leaf.sharding), like
    )


@pytest.fixture(scope="module")
def state() -> TrainState:
    return random_state(0)


@pytest.fixture(scope="module")
def description(tokenizer) -> Description:
    return Description(RECIPE.model, tokenizer.vocabulary, context_length=64, rope_theta=1e4)


def made_of(description: Description, tokenizer: TextTokenizer) -> dict:
    """What a language model's checkpoint holds beside arrays."""
    return {"model": description.to_dict(), "tokenizer": json.loads(tokenizer.to_json())}


@pytest.fixture(scope="module")
def files(description, tokenizer) -> dict:
    return made_of(description, tokenizer)


@pytest.fixture(scope="module")
def saved(tmp_path_factory, state, files) -> Path:
    """A run folder with the checkpoints 5 and 7; not to be changed."""
    run = tmp_path_factory.mktemp("saved")
    with Checkpoints(run, keep=3, files=files) as checkpoints:
        checkpoints.save(state, replace(PROGRESS, step=5), files)
        checkpoints.save(state, PROGRESS, files)
    return run


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def assert_equal(left, right) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


def names(run: Path) -> list[str]:
    return [checkpoint.name for checkpoint in complete_checkpoints(run)]


@pytest.mark.parametrize("shape", [RECIPE.mesh, MeshShape(data=8), MeshShape(tensor=2, sequence=4)])
def test_what_is_saved_comes_back_bit_for_bit_on_any_mesh(saved, state, shape):
    like = abstract_state(RECIPE.model, RECIPE.optimizer, build_mesh(shape))
    with Checkpoints(saved, keep=3) as checkpoints:
        restored = checkpoints.state(like)
        assert checkpoints.progress() == PROGRESS
    assert_equal(restored, state)
    jax.tree.map(lambda array, wanted: array.sharding == wanted.sharding or pytest.fail(str(wanted)), restored, like)


def test_a_checkpoint_is_not_touched_by_the_steps_that_follow(tmp_path, files):
    # The next step takes over the memory of the state that is being written.
    state = random_state(1)
    wanted = jax.tree.map(np.array, state)
    donating = jax.jit(partial(jax.tree.map, lambda array: array + 1), donate_argnums=0)
    with Checkpoints(tmp_path, keep=1, files=files) as checkpoints:
        checkpoints.save(state, PROGRESS, files)
        for _ in range(20):
            state = donating(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert_equal(checkpoints.state(abstract_state(RECIPE.model, RECIPE.optimizer, build_mesh(RECIPE.mesh))), wanted)


def test_the_newest_are_kept(tmp_path, state, files):
    with Checkpoints(tmp_path, keep=2, files=files) as checkpoints:
        assert checkpoints.progress() == Progress()
        for step in (1, 2, 10, 11):
            checkpoints.save(state, replace(PROGRESS, step=step), files)
    assert names(tmp_path) == ["10", "11"]
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "11"]


def test_nothing_in_a_checkpoint_is_pickled(saved):
    files = [path for path in (saved / "checkpoints").rglob("*") if path.is_file()]
    assert files
    assert not [
        path for path in files if path.suffix in (".pkl", ".pickle", ".npy") or path.read_bytes()[:1] == b"\x80"
    ]


def test_halves_are_passed_over_and_cleared(copy, files, state):
    folder = copy / "checkpoints"
    shutil.copytree(folder / "7", folder / "8.orbax-checkpoint-tmp")  # a crash while 8 was written
    shutil.copytree(folder / "7", folder / "9")  # somebody's copy that was cut short
    shutil.rmtree(folder / "9" / "weights")
    assert names(copy) == ["5", "7"]
    assert load_model(copy, build_mesh(RECIPE.mesh)).checkpoint == folder / "7"
    with Checkpoints(copy, keep=3, files=files) as checkpoints:
        assert checkpoints.progress().step == 7
        for step in (8, 9):
            checkpoints.save(state, replace(PROGRESS, step=step), files)
    assert names(copy) == ["7", "8", "9"]
    assert sorted(os.listdir(folder)) == ["7", "8", "9", "9.incomplete"]


# --- a full disk -------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MB, where we may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    yield folder
    subprocess.run(["umount", folder], check=True)


def fill(run: Path, state: TrainState, files: dict) -> None:
    with clear_when_full(run), Checkpoints(run, keep=100, files=files) as checkpoints:
        for step in range(1, 101):
            checkpoints.save(state, replace(PROGRESS, step=step), files)


def full(run: Path) -> str:
    whole = names(run)
    assert 1 <= len(whole) < 20
    assert sorted(os.listdir(run / "checkpoints"), key=int) == whole
    return (
        f"the disk is full: could not write to {run}; checkpoint {whole[-1]} is whole, and the same command goes on "
        "from it once there is space"
    )


def test_a_full_disk_is_one_sentence_and_earlier_checkpoints_stay(small_disk, state, files, caplog, capfd):
    run = small_disk / "run"
    with pytest.raises(UserError) as caught:
        fill(run, state, files)
    assert str(caught.value) == full(run)
    assert_equal(load_model(run, build_mesh(RECIPE.mesh)).weights, state.weights)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def run_program(program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: orbax leaves threads behind whose complaints would land in the tests to come."""
    environment = os.environ | {"PYTHONPATH": "tests", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program, folder]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


DURING_A_SAVE = """
import shutil, sys
from pathlib import Path
from types import SimpleNamespace
from ringworld.mesh import use_cpu_devices

use_cpu_devices(8)
shutil.disk_usage = lambda _: SimpleNamespace(free=10**9)  # true before somebody else took the space
from training.test_checkpoint import RECIPE, Description, UserError, fill, made_of, random_state

tokenizer = RECIPE.tokenizer.build()
try:
    files = made_of(Description(RECIPE.model, tokenizer.vocabulary, 64, 1e4), tokenizer)
    fill(Path(sys.argv[1]), random_state(0), files)
except UserError as error:
    print(error)
"""


def test_a_disk_that_gets_full_during_a_save_harms_nothing_either(small_disk, state):
    run = small_disk / "run"
    done = run_program(DURING_A_SAVE, run)
    assert done.stdout == full(run) + "\n", done.stderr
    assert_equal(load_model(run, build_mesh(RECIPE.mesh)).weights, state.weights)


def test_a_disk_that_is_full_of_text_is_the_same_sentence(tmp_path, monkeypatch):
    def sync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ringworld.files.os.fsync", sync)
    says = r"^the disk is full: .* no checkpoint was saved before; the same command starts again once there is space$"
    with pytest.raises(UserError, match=says), clear_when_full(tmp_path):
        open_run(RECIPE, tmp_path / "run")


def test_other_errors_pass():
    with pytest.raises(OSError, match="on fire"), clear_when_full(Path("run")):
        raise OSError("on fire")


# --- recipes -------------------------------------------------------------------------------------------------------


def test_a_run_begins_and_is_opened_again(tmp_path, tokenizer):
    run = tmp_path / "a" / "run"
    assert open_run(RECIPE, run).tokenizer.to_json() == tokenizer.to_json()
    assert json.loads((run / "recipe.json").read_text())["name"] == "tiny"
    assert sorted(os.listdir(run)) == ["recipe.json", "tokenizer.json"]
    moved = replace(RECIPE, mesh=MeshShape(data=8), tokenizer=RECIPE.tokenizer)
    assert open_run(moved, run).tokenizer.to_json() == tokenizer.to_json()


def test_another_recipe_is_refused_by_the_field(tmp_path):
    open_run(RECIPE, tmp_path)
    for changed, says in [
        (replace(RECIPE, model=replace(RECIPE.model, dim=64)), "model.dim: 32 before, 64 now"),
        (replace(RECIPE, tokenizer=TokenizerConfig(641, ("tiny",))), "tokenizer.size: 640 before, 641 now"),
        (replace(RECIPE, stages=RECIPE.stages[:1]), "stages: 2 of them before, 1 now"),
    ]:
        with pytest.raises(UserError, match=f"holds a run of another recipe.*{says}.*or another --out"):
            open_run(changed, tmp_path)


def test_a_run_of_an_earlier_version_goes_on(tmp_path, tokenizer):
    open_run(RECIPE, tmp_path)
    saved = json.loads((tmp_path / "recipe.json").read_text())
    del saved["z_loss"], saved["stages"][1]["mixing"]
    (tmp_path / "recipe.json").write_text(json.dumps(saved))
    assert open_run(RECIPE, tmp_path).tokenizer.to_json() == tokenizer.to_json()
    with pytest.raises(UserError, match=r"stages\[1\]\.mixing: 'documents' before, 'rows' now"):
        open_run(replace(RECIPE, stages=(RECIPE.stages[0], replace(RECIPE.stages[1], mixing="rows"))), tmp_path)


def test_a_file_is_no_place_for_a_run(tmp_path):
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot make the folder"):
            open_run(RECIPE, run)


def test_checkpoints_without_a_recipe_are_not_overwritten(copy):
    with pytest.raises(UserError, match=r"holds checkpoints but no recipe\.json"):
        open_run(RECIPE, copy)


# --- reading a model -----------------------------------------------------------------------------------------------


def test_a_model_is_its_newest_checkpoint_or_a_named_one(saved, state, description, tokenizer):
    mesh = build_mesh(MeshShape(data=8))
    model = load_model(saved, mesh)
    assert model.checkpoint == saved / "checkpoints" / "7"
    assert model.description == description
    assert model.tokenizer.to_json() == tokenizer.to_json()
    assert model.mesh == mesh
    assert_equal(model.weights, state.weights)
    assert load_model(saved / "checkpoints" / "5", mesh).checkpoint == saved / "checkpoints" / "5"


def test_a_model_needs_no_optimizer(copy, state):
    shutil.rmtree(copy / "checkpoints" / "7" / "optimizer")
    shutil.rmtree(copy / "checkpoints" / "7" / "progress")
    assert_equal(load_model(copy, build_mesh(RECIPE.mesh)).weights, state.weights)


def test_no_folder_and_no_weights(tmp_path):
    with pytest.raises(UserError, match=r"there is no model folder .*nowhere: give the --out folder"):
        newest_checkpoint(tmp_path / "nowhere")
    (tmp_path / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match=r"holds no weights \(looked for complete checkpoints in .*checkpoints\)"):
        newest_checkpoint(tmp_path)


def edit(checkpoint: Path, **config) -> None:
    path = checkpoint / "model" / "model.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "config": {**saved["config"], **config}}))


def test_another_shape_names_the_array_and_both_shapes(copy):
    mesh = build_mesh(RECIPE.mesh)
    edit(copy / "checkpoints" / "7", ffn=64)
    with pytest.raises(UserError, match=r"layers/down is \[2, 48, 32\] in the folder and \[2, 64, 32\] in the model"):
        load_model(copy, mesh)
    edit(copy / "checkpoints" / "7", ffn=48, qk_norm=True)
    with pytest.raises(UserError, match=r"layers/key_norm is missing in the folder and \[2, 16\] in the model"):
        load_model(copy, mesh)


def test_a_damaged_text_is_named(copy):
    mesh = build_mesh(RECIPE.mesh)
    seven = copy / "checkpoints" / "7"
    (seven / "tokenizer" / "tokenizer.json").write_text('{"half":')
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json .*: the checkpoint is damaged, remove it"):
        load_model(copy, mesh)
    (seven / "model" / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json does not describe a model"):
        load_model(copy, mesh)


def test_a_tokenizer_of_another_model_is_refused(copy):
    seven = copy / "checkpoints" / "7"
    other = TokenizerConfig(641, ("tiny",)).build()
    (seven / "tokenizer" / "tokenizer.json").write_text(other.to_json())
    says = (
        r"tokenizer\.json and model\.json in .*7 are of two models, with different vocabularies \(of 641 and 640 ids\)"
    )
    with pytest.raises(UserError, match=says):
        load_model(copy, build_mesh(RECIPE.mesh))


LOAD = """
import sys
from pathlib import Path
from training.test_checkpoint import MeshShape, UserError, build_mesh, load_model

try:
    load_model(Path(sys.argv[1]), build_mesh(MeshShape()))
except UserError as error:
    print(error)
"""


def missing(folder: Path) -> None:
    for data in ("d", "ocdbt.process_0"):
        shutil.rmtree(folder / data)


def cut_short(folder: Path) -> None:
    # The largest file holds the arrays, and is found out when those are read; the others say where they are.
    os.truncate(max(folder.rglob("d/*"), key=lambda path: path.stat().st_size), 100)


@pytest.mark.parametrize("damage", [missing, cut_short])
def test_damaged_arrays_are_named(copy, damage):
    folder = copy / "checkpoints" / "7" / "weights"
    damage(folder)
    done = run_program(LOAD, copy)
    assert done.stdout.startswith(f"cannot read the arrays in {folder} ("), done.stderr
    assert done.stdout.endswith("): the checkpoint is damaged, remove it\n")


def test_a_description_survives_json(description):
    assert Description.from_dict(json.loads(json.dumps(description.to_dict()))) == description
    assert Progress(**json.loads(json.dumps(asdict(PROGRESS)))) == PROGRESS
    assert jnp.float32(description.rope_theta) == 1e4
