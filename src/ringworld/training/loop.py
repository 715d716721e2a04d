"""The loop: every stage of a recipe, from where the run was to its end.

The devices never wait for the loop: a step's numbers are read when the next step is on its way. Nothing here knows what
is trained (a `Learner` does) or how a mesh is made up (arrays carry their places).
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.data.loading import local_rows
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.training.checkpoint import Checkpoints, Progress, clear_when_full, open_run
from ringworld.training.curriculum import Course, Learner, Metrics, Recipe, Stage
from ringworld.training.metrics import MetricsFile, Pace, Record, step_line

METRICS = "metrics.jsonl"
SKIPS_IN_A_ROW = 20  # a run that has skipped so many steps will not mend by itself
SECONDS_BETWEEN_LINES = 1.0

Evaluator = Callable[[Any, Any], Iterable[tuple[str, float]]]
Log = Callable[[str], None]


def train(
    recipe: Recipe,
    out: str | Path,
    *,
    mesh: MeshShape | None = None,
    steps: int | None = None,
    seconds: float | int | None = None,
    evaluators: Sequence[Evaluator] = (),
    log: Log = partial(print, flush=True),
) -> Path:
    """Trains a recipe's stages into a run folder, or goes on with the run that is there; returns the folder.

    On the same mesh a run that was stopped gives the weights, the optimizer's state and the metrics of one that was
    not, bit for bit; on another mesh the same up to rounding. SIGTERM and SIGINT take effect once a checkpoint is
    saved; a second one takes effect at once.

    Args:
        out: will hold recipe.json, metrics.jsonl, checkpoints/<step>/, and what the kind of model needs beside them.
        mesh: in place of the recipe's and its stages' own.
        steps: stop after so many in all,
        seconds: or after so many spent in steps; what is compiled and evaluated does not count. A later call without
            them goes on.
        evaluators: asked after every stage, (stage, model) -> (name, value) pairs; the values go to metrics.jsonl.
        log: gets a line of text at a time, about one a second.

    Raises:
        UserError: `out` holds a run of another recipe; the mesh does not match devices, rows or lengths; data is
            missing; the disk is full; or `SKIPS_IN_A_ROW` steps had to be skipped.
    """
    run = Path(out)
    with clear_when_full(run):
        learner = open_run(recipe, run)
        with Checkpoints(run, keep=recipe.checkpoints_kept, files=learner.files(0)) as checkpoints:
            progress = checkpoints.progress()
            with MetricsFile(run / METRICS, step=progress.step) as metrics:
                limits = _Limits(*(math.inf if limit is None else limit for limit in (steps, seconds)))
                _Run(recipe, learner, checkpoints, metrics, progress, mesh, limits, evaluators, log).stages()
    return run


class _StopSignals:
    """Notes a SIGTERM or SIGINT, for the loop to act upon between two steps. A context manager."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread do this
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@dataclass(frozen=True)
class _Here:
    """The stage that a run is in, and what it takes to train it."""

    index: int
    stage: Stage
    mesh: Mesh
    course: Course


@dataclass(frozen=True)
class _Limits:
    """Where a run stops before its end."""

    steps: float | int
    seconds: float | int

    def allow(self, progress: Progress) -> bool:
        """Whether there may be another step."""
        return progress.step < self.steps and progress.seconds < self.seconds


class _Run:
    """A run of a recipe, somewhere between its beginning and its end."""

    def __init__(
        self,
        recipe: Recipe,
        learner: Learner,
        checkpoints: Checkpoints,
        metrics: MetricsFile,
        progress: Progress,
        mesh: MeshShape | None,
        limits: _Limits,
        evaluators: Sequence[Evaluator],
        log: Log,
    ) -> None:
        self.recipe = recipe
        self.learner = learner
        self.checkpoints = checkpoints
        self.metrics = metrics
        self.progress = progress
        self.limits = limits
        self.evaluators = evaluators
        self.log = log
        # All of them now: a mesh that does not match the devices should not come to light after days of training.
        self.meshes = [build_mesh(mesh or stage.mesh or recipe.mesh) for stage in recipe.stages]
        for stage, devices in zip(recipe.stages, self.meshes, strict=True):
            local_rows(devices, stage.batch_size)
        if checkpoints.newest is None:
            self.state = learner.init(jax.random.key(recipe.seed), self.meshes[0])
        else:
            self.state = checkpoints.state(learner.abstract(self.meshes[progress.stage]))
            log(f"going on after step {progress.step}, from {checkpoints.newest}")
        self.pace = Pace()
        self.pending: tuple[Record, Metrics] | None = None
        self.next_line = -math.inf
        self.next_save = time.monotonic() + recipe.checkpoint_seconds
        self.saved = progress.step

    def stages(self) -> None:
        """Trains and evaluates the stages that are left."""
        for index in range(self.progress.stage, len(self.recipe.stages)):
            with self._enter(index) as here:
                if not self.progress.stage_over and not self._train(here):
                    return
                self._evaluate(here)
        self.log(f"complete after {self.progress.step} steps: {self.checkpoints.run}")

    @contextmanager
    def _enter(self, index: int) -> Iterator[_Here]:
        """Brings the state to the stage's mesh, and begins the stage unless the run is in it."""
        stage, mesh = self.recipe.stages[index], self.meshes[index]
        if index != self.progress.stage:
            self.state = jax.device_put(
                self.state, jax.tree.map(lambda array: array.sharding, self.learner.abstract(mesh))
            )
            if stage.reset_optimizer:
                self.state = self.learner.reset_optimizer(self.state, mesh)
            self.progress = self.progress.entering(index)
        course = self.learner.course(index, mesh)
        with ExitStack() as stack:
            saved = (course.loader, self.progress.loader), (course.validation, self.progress.validation)
            for loader, state in saved:
                if loader is not None:
                    stack.enter_context(closing(loader))
                    if state:
                        loader.set_state(state)
            yield _Here(index, stage, mesh, course)

    def _train(self, here: _Here) -> bool:
        """Takes the stage's steps. False when the run goes no further: its limit is reached, or a signal came."""
        stage = here.stage
        self.log(f"stage {self._number(here)}: {stage}, at most {stage.most_steps} steps, mesh {_shape(here.mesh)}")
        self.pace.pause()  # the first step compiles
        with _StopSignals() as stop:
            while not self.progress.stage_over and self.limits.allow(self.progress) and stop.asked is None:
                self._step(here)
                over = self._learned(here) or self.progress.stage_step == stage.most_steps
                self.progress = replace(self.progress, stage_over=over)
                if over or time.monotonic() >= self.next_save:
                    self._save(here)
                self.checkpoints.check()
            if self.saved != self.progress.step:
                self._save(here)
            self.checkpoints.wait()
        if stop.asked is not None:
            self.log(
                f"stopped by {stop.asked.name} after step {self.progress.step}; the same command goes on from there"
            )
            signal.raise_signal(stop.asked)
            return False
        if not self.progress.stage_over:
            self.log(f"stopped after {self.progress.step} steps, as asked; the same command without a limit goes on")
        return self.progress.stage_over

    def _step(self, here: _Here) -> None:
        """Sends a step on its way, and writes down what the one before it gave."""
        learning_rate = here.stage.learning_rate_at(self.progress.stage_step)
        self.state, metrics = here.course.step(self.state, next(here.course.loader), learning_rate)
        self._settle(here)
        self.progress = self.progress.after_step(here.stage.units_per_step)
        record = self._record(here, "step", **{here.stage.UNIT: self.progress.units}, learning_rate=learning_rate)
        self.pending = record, metrics

    def _settle(self, here: _Here) -> None:
        """Waits for the step that is under way, if one is, and writes down what it gave.

        Raises:
            UserError: it was the last of so many skipped ones that the run will not mend.
        """
        if self.pending is None:
            return
        (record, metrics), self.pending = self.pending, None
        record |= {name: float(value) for name, value in jax.device_get(metrics).items()}
        now = time.monotonic()
        seconds = self.pace.step(now, here.stage.units_per_step)
        skipped = record["skipped"] > 0
        self.progress = self.progress.after_result(seconds, skipped=skipped)
        self.metrics.write({**record, "seconds": self.progress.seconds})
        if skipped or now >= self.next_line or record["stage_step"] == here.stage.most_steps:
            self.next_line = now + SECONDS_BETWEEN_LINES
            self.log(self._line(here, record))
        if self.progress.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise UserError(
                f"stopped after step {record['step']}: {SKIPS_IN_A_ROW} steps in a row were skipped, the last with a "
                f"loss of {record['loss']:.4g} and a gradient norm of {record['gradient_norm']:.4g} (a step is skipped "
                f"when one of them is not finite, or the norm over {self.recipe.optimizer.spike:g} times its running "
                f"mean); lower the learning rate, which was {record['learning_rate']:.3g}, or warm up longer"
            )

    def _line(self, here: _Here, record: Record) -> str:
        rate = self.pace.units_per_second
        left = None if rate is None else self._units_ahead(here, record) / rate
        return step_line(
            record,
            stage=self._number(here),
            steps=here.stage.most_steps,
            skipped=self.progress.skipped,
            unit=here.stage.UNIT,
            units_per_second=rate,
            seconds_left=None if left is None else min(left, max(0.0, self.limits.seconds - self.progress.seconds)),
        )

    def _units_ahead(self, here: _Here, record: Record) -> float:
        """Tokens, or the like, from a step to the end of the run, if no stage ends before its last step."""
        ahead, allowed = 0.0, self.limits.steps - record["step"]
        for stage in self.recipe.stages[here.index :]:
            steps = min(stage.most_steps - (record["stage_step"] if stage is here.stage else 0), allowed)
            ahead, allowed = ahead + steps * stage.units_per_step, allowed - steps
        return ahead

    def _learned(self, here: _Here) -> bool:
        """Measures the stage's criterion when it is due, also where the stage's steps are over, and those that come on
        top; tells whether it is reached."""
        criterion, step = here.stage.until, self.progress.stage_step
        last = step == here.stage.most_steps
        if (
            criterion is None
            or here.course.validation is None
            or (step % criterion.check_every and step != here.stage.steps and not last)
        ):
            return False
        self._settle(here)
        results = []
        for _ in range(-(-criterion.rows // here.stage.batch_size)):
            results.append(here.course.measure(self.state, next(here.course.validation))[criterion.metric])
        value = float(np.mean(jax.device_get(results)))
        reached = criterion.reached(value)
        verdict = ": learned" if reached else ": NOT learned, but its steps are used up" if last else ""
        self.metrics.write(
            self._record(here, "check", metric=criterion.metric, value=value, wanted=criterion.value, reached=reached)
        )
        self.log(
            f"stage {self._number(here)}  step {step}: {criterion.metric} of fresh data "
            f"{value:.4f}, wanted {criterion.value:g}{verdict}"
        )
        self.pace.start(time.monotonic())
        return reached

    def _save(self, here: _Here) -> None:
        """Starts to write a checkpoint of this moment."""
        self._settle(here)
        course = here.course
        validation = {} if course.validation is None else course.validation.get_state()
        self.progress = replace(self.progress, loader=course.loader.get_state(), validation=validation)
        self.metrics.sync()
        self.checkpoints.save(self.state, self.progress, self.learner.files(here.index))
        self.saved = self.progress.step
        self.next_save = time.monotonic() + self.recipe.checkpoint_seconds

    def _evaluate(self, here: _Here) -> None:
        """Asks the evaluators about the stage, unless that was done before the run was stopped."""
        if not self.evaluators or here.stage.name in self.metrics.evaluated:
            return
        model = self.learner.model(self.state, here.index, here.mesh)
        results: dict[str, float] = {}
        for evaluator in self.evaluators:
            for name, value in evaluator(here.stage, model):
                results[name] = float(value)
                self.log(f"stage {self._number(here)}  {name}: {value:.4g}")
        self.metrics.write(self._record(here, "evaluation", results=results))

    def _number(self, here: _Here) -> str:
        return f"{here.index + 1}/{len(self.recipe.stages)} {here.stage.name}"

    def _record(self, here: _Here, kind: str, **values: Any) -> Record:
        step = {"stage_step": self.progress.stage_step, "step": self.progress.step}
        return {"kind": kind, "stage": here.stage.name, **step, **values}


def _shape(mesh: Mesh) -> str:
    return ",".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "of one device"
