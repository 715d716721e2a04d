"""A recipe: the stages that one command trains, from the first to the last.

A stage ends by its number of steps or, earlier, by its `Criterion`, as a short stage must be left only once it is
learned. The criterion is measured on data of the stage's own mix, or of a mix of its own, from another seed: fresh data
of a source that makes it up, the same in another order of one that has only so much. What is held out stays out of it,
so that what is evaluated at the end has decided nothing before.

What is trained is not said here: `Recipe` and `Stage` hold what all training has, and a kind of model adds its own
(`training.language`) together with its `Learner`, which is how the loop trains it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from pathlib import Path, PurePath
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.training.optimizer import OptimizerConfig

Schedule = Literal["constant", "cosine"]
Purpose = Literal["training", "validation"]


def choose(what: str, given: str, allowed: object) -> None:
    """Raises UserError unless `given` is one of a Literal's words."""
    if given not in get_args(allowed):
        raise UserError(f"{what} must be one of {', '.join(get_args(allowed))}; got {given!r}")


def at_least(what: str, given: float | int, least: int) -> None:
    """Raises UserError unless `given` is a finite number from `least` up."""
    if not (math.isfinite(given) and given >= least):
        raise UserError(f"{what} must be at least {least}; got {given}")


@dataclass(frozen=True)
class Criterion:
    """Ends a stage as soon as it is learned.

    Attributes:
        metric: of those that a step gives: "loss" (at most `value` ends the stage), or another (at least `value` does).
        value: where the stage ends.
        check_every: steps between measurements.
        rows: fresh rows a measurement takes, rounded up to whole batches.
        sources: what the rows are made of: data, and its share by weight. None: the stage's own mix.
    """

    metric: str
    value: float
    check_every: int
    rows: int
    sources: tuple[tuple[Any, float], ...] | None = None

    def __post_init__(self) -> None:
        at_least("a criterion's check_every", self.check_every, 1)
        at_least("a criterion's rows", self.rows, 1)

    def reached(self, measured: float) -> bool:
        """Whether the stage is learned. A measurement that is not a number has reached nothing."""
        return measured <= self.value if self.metric == "loss" else measured >= self.value


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Some steps on one mix of data: its learning rate, and when it is over.

    Attributes:
        batch_size: rows in a batch, over the whole mesh.
        steps: the stage's end, if no criterion ends it before,
        more: and so many on top, over which the learning rate goes up and down once more, if there is a criterion that
            is not reached by then.
        learning_rate: after the warm-up.
        warmup_steps: the first of them takes learning_rate / warmup_steps, the last learning_rate.
        schedule: after the warm-up "constant", or "cosine" down to `final_learning_rate` at the last of `steps`.
        sources: the mix: data, and its share by weight.
        until: ends the stage when it is learned.
        mesh: the stage's own mesh; the default is the recipe's.
        reset_optimizer: begin with fresh moments. The default carries them over from the stage before.
    """

    UNIT: ClassVar[str] = "rows"  # what the pace is told in

    name: str
    batch_size: int
    steps: int
    learning_rate: float
    sources: tuple[tuple[Any, float], ...]
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    final_learning_rate: float = 0.0
    until: Criterion | None = None
    mesh: MeshShape | None = None
    reset_optimizer: bool = False
    more: int = 0

    def __post_init__(self) -> None:
        stage = f"stage {self.name!r}: "
        for name in ("batch_size", "steps"):
            at_least(stage + name, getattr(self, name), 1)
        for name in ("warmup_steps", "learning_rate", "final_learning_rate", "more"):
            at_least(stage + name, getattr(self, name), 0)
        choose(stage + "schedule", self.schedule, Schedule)
        if self.more and self.until is None:
            raise UserError(f"{stage}more steps are taken when its criterion is not reached, and it has none: give one")
        if not self.sources or not all(weight > 0 for _, weight in self.sources):
            raise UserError(f"{stage}sources must be one or more, each with a weight above 0; got {self.sources}")

    @property
    def most_steps(self) -> int:
        """As many as it may come to."""
        return self.steps + self.more

    @property
    def units_per_step(self) -> int:
        """How much of `UNIT` a step takes."""
        return self.batch_size

    def __str__(self) -> str:
        return f"{self.batch_size} {self.UNIT} a batch"

    def data(self, purpose: Purpose) -> tuple[tuple[Any, float], ...]:
        """The mix that this purpose reads."""
        if purpose == "validation" and self.until is not None and self.until.sources is not None:
            return self.until.sources
        return self.sources

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the stage's step `step`, counted from 0."""
        if self.more and step >= self.steps:
            return replace(self, steps=self.more, more=0).learning_rate_at(step - self.steps)
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return float(self.learning_rate)
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps))
        return (
            self.final_learning_rate
            + (self.learning_rate - self.final_learning_rate) * (1 + math.cos(math.pi * done)) / 2
        )


@runtime_checkable
class Loader(Protocol):
    """Batches, from anywhere in their stream: see `data.loading.PackedLoader`."""

    def __next__(self) -> Any: ...
    def get_state(self) -> dict[str, Any]: ...
    def set_state(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


Metrics = dict[str, Array]


@dataclass(frozen=True)
class Course:
    """What it takes to train one stage on one mesh.

    Attributes:
        step: (state, batch of the loader, learning rate) -> (state, metrics), the old state's memory being given up.
            Metrics are float32 scalars, "loss", "gradient_norm" and "skipped" (1: the step changed nothing) among them.
        measure: (state, batch) -> those of the metrics that a criterion may ask for.
        loader: of the stage's "training" data.
        validation: of its "validation" data, where it has a criterion.
    """

    step: Callable[[Any, Any, float], tuple[Any, Metrics]]
    measure: Callable[[Any, Any], Metrics]
    loader: Loader
    validation: Loader | None


@runtime_checkable
class Learner(Protocol):
    """How the loop trains one kind of model. A state is a dataclass of arrays; its `weights` are the model's."""

    def abstract(self, mesh: Mesh) -> Any:
        """Shapes, types and places of a state, without numbers."""
        ...

    def init(self, key: Array, mesh: Mesh) -> Any:
        """The state that training begins with."""
        ...

    def reset_optimizer(self, state: Any, mesh: Mesh) -> Any:
        """The same weights with an optimizer that has seen nothing."""
        ...

    def course(self, index: int, mesh: Mesh) -> Course:
        """What trains the stage of this index."""
        ...

    def files(self, index: int) -> dict[str, Any]:
        """What a checkpoint made in this stage holds beside arrays: {name: JSON}. One is "model", which says what the
        weights are of."""
        ...

    def model(self, state: Any, index: int, mesh: Mesh) -> Any:
        """The model as it is after a stage, for evaluators."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe(ABC):
    """All that decides what a run learns; the same recipe on the same mesh gives the same weights, bit for bit.

    Attributes:
        init: what to begin with, by its path or name: a model, or for a tokenizer of frames another one. None: random
            weights.
        mesh: where stages run that name no mesh of their own.
        checkpoint_seconds: time between checkpoints. There is also one at each stage's end.
        checkpoints_kept: the newest so many stay.
    """

    name: str
    summary: str
    optimizer: OptimizerConfig
    stages: Sequence[Stage]
    seed: int = 0
    init: str | None = None
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoint_seconds: float = 60.0
    checkpoints_kept: int = 3

    @abstractmethod
    def learner(self, run: Path) -> Learner:
        """What trains this recipe in the folder `run`, where it keeps the files that it needs again.

        Raises:
            UserError: what it needs cannot be had, or does not fit the recipe.
        """

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise UserError(f"recipe {self.name!r} must have one or more stages, each of another name; got {names}")
        at_least("seed", self.seed, 0)
        at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
        at_least("checkpoints_kept", self.checkpoints_kept, 1)

    def data_seeds(self, stage: int, purpose: Purpose) -> list[int]:
        """Seeds of a stage's data, within int32: one for each source, and the last one for their mix.

        Every stage and purpose has its own.
        """
        words = np.random.SeedSequence([self.seed, stage, get_args(Purpose).index(purpose)])
        return [int(word >> 1) for word in words.generate_state(len(self.stages[stage].data(purpose)) + 1)]


# What may change between a run and its continuation: where it runs, and how it is kept.
FREE = frozenset({"summary", "mesh", "checkpoint_seconds", "checkpoints_kept"})


def to_json(value: Any) -> Any:
    """A recipe, or any part of one, in the types of JSON. A dataclass says its name under "type"."""
    if is_dataclass(value):
        return {"type": type(value).__name__} | {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    return str(value) if isinstance(value, PurePath) else value


def completed(saved: Any, recipe: Any) -> Any:
    """A recipe in JSON with the fields that there were not when it was saved: at their defaults, since it was trained
    as if they had been there.

    Args:
        recipe: the one that is asked for now.
    """
    if isinstance(saved, list) and isinstance(recipe, tuple | list) and len(saved) == len(recipe):
        return [completed(before, now) for before, now in zip(saved, recipe, strict=True)]
    if not (is_dataclass(recipe) and isinstance(saved, dict) and saved.get("type") == type(recipe).__name__):
        return saved
    whole = dict(saved)
    for f in fields(recipe):
        if f.name in saved:
            whole[f.name] = completed(saved[f.name], getattr(recipe, f.name))
        elif f.default is not MISSING:
            whole[f.name] = to_json(f.default)
        elif f.default_factory is not MISSING:
            whole[f.name] = to_json(f.default_factory())
    return whole


def differences(saved: Any, asked: Any, field: str = "") -> Iterator[str]:
    """Where two recipes in JSON differ, but for what is `FREE`: "stages[0].steps: 10 before, 20 now"."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        for key in sorted((saved.keys() | asked.keys()) - FREE):
            yield from differences(saved.get(key), asked.get(key), f"{field}.{key}" if field else key)
    elif isinstance(saved, list) and isinstance(asked, list) and len(saved) == len(asked):
        for index, (before, now) in enumerate(zip(saved, asked, strict=True)):
            yield from differences(before, now, f"{field}[{index}]")
    elif isinstance(saved, list) and isinstance(asked, list):
        yield f"{field}: {len(saved)} of them before, {len(asked)} now"
    elif saved != asked:
        yield f"{field}: {saved!r} before, {asked!r} now"
