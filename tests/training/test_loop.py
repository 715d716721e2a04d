import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape, build_mesh
from ringworld.training.checkpoint import Checkpoints
from ringworld.training.curriculum import Criterion
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.loop import SKIPS_IN_A_ROW, train
from ringworld.training.metrics import MetricsFile, Record, read_metrics
from ringworld.training.step import TrainState, abstract_state
from ringworld.weights.checkpoint import complete_checkpoints, load_model
from training.tiny_run import RECIPE, STAGE

pytestmark = pytest.mark.usefixtures("programs")

SHORT = replace(RECIPE, stages=(STAGE,))
ELSEWHERE = MeshShape(data=2, sequence=4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, programs) -> Path:
    """A run that was never stopped."""
    return train(RECIPE, tmp_path_factory.mktemp("whole"), log=lambda line: None)


def final_state(run: Path, recipe: LanguageRecipe = RECIPE, mesh: MeshShape = RECIPE.mesh) -> TrainState:
    with Checkpoints(run, keep=3) as checkpoints:
        return checkpoints.state(abstract_state(recipe.model, recipe.optimizer, build_mesh(mesh)))


def records(run: Path, kind: str = "step") -> list[Record]:
    """What a run wrote down, but for the times."""
    return [
        {key: value for key, value in record.items() if key != "seconds"}
        for record in read_metrics(run / "metrics.jsonl")
        if record["kind"] == kind
    ]


def losses(run: Path) -> np.ndarray:
    return np.array([record["loss"] for record in records(run)])


def assert_same_run(left: Path, right: Path) -> None:
    assert records(left) == records(right)
    jax.tree.map(np.testing.assert_array_equal, final_state(left), final_state(right))
    for run in (left, right):
        assert not [path.name for path in (run / "checkpoints").iterdir() if not path.name.isdecimal()]
    progress = [json.loads((run / "checkpoints/8/progress/progress.json").read_text()) for run in (left, right)]
    assert progress[0] | {"seconds": 0} == progress[1] | {"seconds": 0}


def test_a_run_leaves_all_that_its_use_needs(whole):
    assert {path.name for path in whole.iterdir()} == {"recipe.json", "tokenizer.json", "metrics.jsonl", "checkpoints"}
    assert [path.name for path in complete_checkpoints(whole)] == ["4", "8"]
    assert [(r["stage"], r["stage_step"], r["step"], r["tokens"]) for r in records(whole)] == [
        *(("short", n, n, 512 * n) for n in (1, 2, 3, 4)),
        *(("long", n, 4 + n, 2048 + 1024 * n) for n in (1, 2, 3, 4)),
    ]
    assert losses(whole)[-1] < losses(whole)[0] - 0.3
    model = load_model(whole, build_mesh(ELSEWHERE))
    assert (model.description.context_length, model.description.rope_theta) == (128, 2e4)
    jax.tree.map(np.testing.assert_array_equal, model.weights, final_state(whole).weights)


def test_the_stages_carry_weights_and_optimizer_on(whole):
    assert final_state(whole).step == 8
    assert records(whole)[4]["loss"] < records(whole)[0]["loss"] - 0.3


def test_a_run_stopped_by_its_limit_goes_on_as_if_it_had_not(whole, tmp_path):
    for steps in (2, 4, 6, None):  # in a stage, between two, in the next
        train(RECIPE, tmp_path, steps=steps, log=lambda line: None)
        assert len(records(tmp_path)) == (steps or 8)
    assert_same_run(whole, tmp_path)


def test_a_run_stopped_by_its_time_goes_on_as_if_it_had_not(whole, tmp_path):
    taken = []
    for _ in range(2):  # the second time nothing is left of it
        train(RECIPE, tmp_path, seconds=1e-9, log=lambda line: None)
        taken.append(len(records(tmp_path)))
    assert 0 < taken[0] == taken[1] < 4
    train(RECIPE, tmp_path, log=lambda line: None)
    assert_same_run(whole, tmp_path)


@pytest.mark.slow
def test_a_run_killed_at_any_moment_goes_on_as_if_it_had_not(whole, tmp_path, programs):
    run = tmp_path / "run"
    environment = os.environ | {
        "PYTHONPATH": "tests",
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(programs),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    command = [sys.executable, "-m", "training.tiny_run", run]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "step 1/" in line:
                break
        time.sleep(random.uniform(0, 1.5))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    train(RECIPE, run, log=lambda line: None)
    assert_same_run(whole, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_before_it_takes_effect(whole, tmp_path, number):
    lines: list[str] = []
    taken: list[list[str]] = []

    def log(line: str) -> None:
        lines.append(line)
        if "step 2/4" in line or "step 1/4" in line:
            os.kill(os.getpid(), number)

    before = signal.signal(number, lambda *_: taken.append([path.name for path in complete_checkpoints(tmp_path)]))
    try:
        train(RECIPE, tmp_path, log=log)
    finally:
        signal.signal(number, before)
    assert taken == [["2"]]  # once, and after the checkpoint
    assert lines[-1] == f"stopped by {number.name} after step 2; the same command goes on from there"
    train(RECIPE, tmp_path, log=lines.append)
    assert f"going on after step 2, from {tmp_path}/checkpoints/2" in lines
    assert_same_run(whole, tmp_path)


def test_a_complete_run_has_nothing_left_to_do(whole):
    lines: list[str] = []
    before = (whole / "metrics.jsonl").read_bytes()
    train(RECIPE, whole, log=lines.append)
    assert lines == [
        f"going on after step 8, from {whole}/checkpoints/8",
        f"complete after 8 steps: {whole}",
    ]
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_checkpoints_come_by_time_and_the_newest_are_kept(tmp_path):
    train(replace(SHORT, checkpoint_seconds=0.0, checkpoints_kept=2), tmp_path, log=lambda line: None)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["3", "4"]


@pytest.mark.slow
def test_on_another_mesh_the_losses_are_the_same(whole, tmp_path):
    # From the start, and from a checkpoint of the first mesh.
    train(RECIPE, tmp_path / "all", mesh=ELSEWHERE, steps=4, log=lambda line: None)
    train(RECIPE, tmp_path / "half", steps=2, log=lambda line: None)
    train(RECIPE, tmp_path / "half", mesh=ELSEWHERE, steps=4, log=lambda line: None)
    for run in ("all", "half"):
        np.testing.assert_allclose(losses(tmp_path / run), losses(whole)[:4], rtol=0, atol=1e-5)


def test_a_stage_may_have_a_mesh_of_its_own(whole, tmp_path):
    stages = (replace(STAGE, mesh=ELSEWHERE), RECIPE.stages[1])
    lines: list[str] = []
    train(replace(RECIPE, stages=stages), tmp_path, log=lines.append)
    assert [line.split("mesh ")[1] for line in lines if "mesh " in line] == ["data=2,sequence=4", "data=4,fsdp=2"]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=0, atol=1e-5)


def test_a_stage_may_begin_with_a_fresh_optimizer(whole, tmp_path):
    stages = (STAGE, replace(RECIPE.stages[1], reset_optimizer=True))
    train(replace(RECIPE, stages=stages), tmp_path, log=lambda line: None)
    assert final_state(tmp_path).step == 4
    assert records(tmp_path)[:5] == records(whole)[:5]  # the fifth step sees the weights of the first stage
    assert records(tmp_path)[6] != records(whole)[6]


def test_a_criterion_ends_a_stage_and_is_measured_alike_after_a_stop(tmp_path):
    never = Criterion("accuracy", 1.0, check_every=3, rows=12)
    recipe = replace(SHORT, stages=(replace(STAGE, steps=5, until=never),))
    lines: list[str] = []
    train(recipe, tmp_path / "never", log=lines.append)
    checks = records(tmp_path / "never", "check")
    assert [(check["step"], check["reached"]) for check in checks] == [(3, False), (5, False)]
    assert any("NOT learned, but its steps are used up" in line for line in lines)

    train(recipe, tmp_path / "stopped", steps=4, log=lambda line: None)
    train(recipe, tmp_path / "stopped", log=lambda line: None)
    assert records(tmp_path / "stopped", "check") == checks

    reached = Criterion("loss", 20.0, check_every=3, rows=12)
    recipe = replace(recipe, stages=(replace(recipe.stages[0], until=reached),))
    train(recipe, tmp_path / "reached", log=lines.append)
    assert [r["step"] for r in records(tmp_path / "reached")] == [1, 2, 3]
    assert lines[-2].endswith(": learned")
    assert lines[-1].startswith("complete after 3 steps")


def test_a_stage_that_is_not_learned_takes_the_steps_on_top(tmp_path):
    unlearned = Criterion("accuracy", 1.0, check_every=3, rows=12)
    recipe = replace(SHORT, stages=(replace(STAGE, steps=3, more=2, until=unlearned),))
    lines: list[str] = []
    train(recipe, tmp_path / "unlearned", log=lines.append)
    checks = records(tmp_path / "unlearned", "check")
    assert [(check["step"], check["reached"]) for check in checks] == [(3, False), (5, False)]
    assert [line for line in lines if "NOT learned" in line] == [line for line in lines if "step 5: accuracy" in line]

    train(recipe, tmp_path / "stopped", steps=3, log=lambda line: None)
    train(recipe, tmp_path / "stopped", log=lambda line: None)
    assert records(tmp_path / "stopped") == records(tmp_path / "unlearned")
    assert records(tmp_path / "stopped", "check") == checks

    learned = replace(unlearned, metric="loss", value=20.0)
    recipe = replace(recipe, stages=(replace(recipe.stages[0], until=learned),))
    train(recipe, tmp_path / "learned", log=lambda line: None)
    assert records(tmp_path / "learned") == records(tmp_path / "unlearned")[:3]


def test_evaluators_are_asked_once_after_each_stage(whole, tmp_path):
    asked: list[tuple[str, int]] = []

    def evaluator(stage: LanguageStage, model: Model) -> Iterator[tuple[str, float]]:
        asked.append((stage.name, model.context_length))
        yield "length", stage.sequence_length

    for steps in (5, None, None):
        train(RECIPE, tmp_path, steps=steps, evaluators=[evaluator], log=lambda line: None)
    assert asked == [("short", 64), ("long", 128)]
    assert [(r["stage"], r["step"], r["results"]) for r in records(tmp_path, "evaluation")] == [
        ("short", 4, {"length": 64.0}),
        ("long", 8, {"length": 128.0}),
    ]
    assert records(tmp_path) == records(whole)


def test_an_evaluation_that_was_cut_short_is_made_again(tmp_path):
    def failing(stage: LanguageStage, model: Model) -> Iterator[tuple[str, float]]:
        yield "one", 1.0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(SHORT, tmp_path, evaluators=[failing], log=lambda line: None)
    assert records(tmp_path, "evaluation") == []
    train(SHORT, tmp_path, evaluators=[lambda stage, model: [("two", 2.0)]], log=lambda line: None)
    assert [record["results"] for record in records(tmp_path, "evaluation")] == [{"two": 2.0}]


def test_skipped_steps_are_seen_and_many_of_them_end_the_run(tmp_path):
    # The first update makes the weights infinite; no later loss is finite.
    recipe = replace(SHORT, stages=(replace(STAGE, steps=100, learning_rate=1e38, warmup_steps=0),))
    lines: list[str] = []
    with pytest.raises(UserError, match=rf"{SKIPS_IN_A_ROW} steps in a row were skipped.*lower the learning rate"):
        train(recipe, tmp_path, log=lines.append)
    skipped = [record for record in records(tmp_path) if record["skipped"]]
    assert len(skipped) == SKIPS_IN_A_ROW
    assert all(None in (record["loss"], record["gradient_norm"]) for record in skipped)
    assert sum("SKIPPED" in line for line in lines) == SKIPS_IN_A_ROW
    assert f"{SKIPS_IN_A_ROW} skipped in all" in lines[-1]


def test_numbers_are_read_when_the_next_step_is_on_its_way(tmp_path, monkeypatch):
    events: list[str] = []
    write = MetricsFile.write
    monkeypatch.setattr(MetricsFile, "write", lambda self, record: events.append("written") or write(self, record))
    place = sys.modules["ringworld.training.language"].place
    monkeypatch.setattr("ringworld.training.language.place", lambda *args: events.append("sent") or place(*args))
    train(SHORT, tmp_path, log=lambda line: None)
    assert events == ["sent", "sent", "written", "sent", "written", "sent", "written", "written"]


def test_another_recipe_or_mesh_is_refused(whole):
    with pytest.raises(UserError, match=r"stages\[0\]\.rope_theta: 10000\.0 before, 500\.0 now"):
        train(replace(RECIPE, stages=(replace(STAGE, rope_theta=500.0), RECIPE.stages[1])), whole)
    with pytest.raises(UserError, match="needs 3 devices but there are 8"):
        train(RECIPE, whole, mesh=MeshShape(data=3))
    with pytest.raises(UserError, match="a batch of 6 rows cannot be shared out over 8 devices"):
        train(replace(RECIPE, stages=(replace(STAGE, batch_size=6),)), whole.parent / "uneven", log=lambda line: None)


def test_a_vocabulary_that_is_too_small_is_refused(tmp_path):
    with pytest.raises(UserError, match="a model for 600 ids and a tokenizer of 640"):
        train(replace(SHORT, model=replace(RECIPE.model, vocabulary_size=600)), tmp_path)
