"""A recipe: the stages that one command trains, from the first to the last.

A stage ends by its number of steps or, earlier, by its `Criterion`, as a short stage must be left only once it is
learned. The criterion is measured on rows of the stage's own mix, or of a mix of its own, from another seed: fresh ones
of a source that makes them up, the same documents in another order of one that has only so many. Held-out prose stays
out of it, so that what is evaluated at the end has decided nothing before.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import PurePath
from typing import Any, Literal, get_args

import numpy as np

from ringworld.data.packing import Batch, Normalization, Policy
from ringworld.data.sources import SourceConfig, TokenizerConfig
from ringworld.errors import UserError
from ringworld.mesh import MeshShape
from ringworld.model.config import ModelConfig
from ringworld.training.optimizer import OptimizerConfig
from ringworld.training.step import Precision

Metric = Literal["accuracy", "loss"]
Schedule = Literal["constant", "cosine"]
Purpose = Literal["training", "validation"]


def _choose(what: str, given: str, allowed: object) -> None:
    if given not in get_args(allowed):
        raise UserError(f"{what} must be one of {', '.join(get_args(allowed))}; got {given!r}")


def _at_least(what: str, given: float | int, least: int) -> None:
    if not (math.isfinite(given) and given >= least):
        raise UserError(f"{what} must be at least {least}; got {given}")


@dataclass(frozen=True)
class Criterion:
    """Ends a stage as soon as it is learned.

    Attributes:
        metric: "accuracy" (at least `value` ends the stage) or "loss" (at most `value` does). Of the answers alone: the
            targets that weigh most in their row.
        value: where the stage ends.
        check_every: steps between measurements.
        rows: fresh rows a measurement takes, rounded up to whole batches.
        sources: what the rows are made of: data, and its share by weight. None: the stage's own mix.
    """

    metric: Metric
    value: float
    check_every: int
    rows: int
    sources: tuple[tuple[SourceConfig, float], ...] | None = None

    def __post_init__(self) -> None:
        _choose("a criterion's metric", self.metric, Metric)
        _at_least("a criterion's check_every", self.check_every, 1)
        _at_least("a criterion's rows", self.rows, 1)

    def reached(self, measured: float) -> bool:
        """Whether the stage is learned. A measurement that is not a number has reached nothing."""
        return measured >= self.value if self.metric == "accuracy" else measured <= self.value


@dataclass(frozen=True)
class Stage:
    """One context length: its data, its RoPE theta, its learning rate, and when it is over.

    Attributes:
        sequence_length: tokens in a row.
        batch_size: rows in a batch, over the whole mesh.
        steps: the stage's end, if no criterion ends it before.
        rope_theta: the base of RoPE's angles, which grows with the length.
        learning_rate: after the warm-up.
        warmup_steps: the first of them takes learning_rate / warmup_steps, the last learning_rate.
        schedule: after the warm-up "constant", or "cosine" down to `final_learning_rate` at the last of `steps`.
        sources: the mix: data, and its share by weight.
        packing: what becomes of a document that does not fit the row: "split" over two, or "whole" in the next one.
        normalization: weights count per "token", or sum to one for each "example".
        until: ends the stage when it is learned.
        mesh: the stage's own mesh; the default is the recipe's.
        reset_optimizer: begin with fresh moments. The default carries them over from the stage before.
    """

    name: str
    sequence_length: int
    batch_size: int
    steps: int
    rope_theta: float
    learning_rate: float
    sources: tuple[tuple[SourceConfig, float], ...]
    warmup_steps: int = 0
    schedule: Schedule = "constant"
    final_learning_rate: float = 0.0
    packing: Policy = "split"
    normalization: Normalization = "token"
    until: Criterion | None = None
    mesh: MeshShape | None = None
    reset_optimizer: bool = False

    def __post_init__(self) -> None:
        stage = f"stage {self.name!r}: "
        for name in ("sequence_length", "batch_size", "steps"):
            _at_least(stage + name, getattr(self, name), 1)
        for name in ("warmup_steps", "learning_rate", "final_learning_rate"):
            _at_least(stage + name, getattr(self, name), 0)
        _at_least(stage + "rope_theta", self.rope_theta, 1)
        _choose(stage + "schedule", self.schedule, Schedule)
        _choose(stage + "packing", self.packing, Policy)
        _choose(stage + "normalization", self.normalization, Normalization)
        if not self.sources or not all(weight > 0 for _, weight in self.sources):
            raise UserError(f"{stage}sources must be one or more, each with a weight above 0; got {self.sources}")

    @property
    def tokens_per_step(self) -> int:
        """Places in a batch, padding included: what a step costs."""
        return self.batch_size * self.sequence_length

    def data(self, purpose: Purpose) -> tuple[tuple[SourceConfig, float], ...]:
        """The mix that this purpose reads."""
        if purpose == "validation" and self.until is not None and self.until.sources is not None:
            return self.until.sources
        return self.sources

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the stage's step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return float(self.learning_rate)
        done = min(1.0, (step - self.warmup_steps) / max(1, self.steps - 1 - self.warmup_steps))
        return (
            self.final_learning_rate
            + (self.learning_rate - self.final_learning_rate) * (1 + math.cos(math.pi * done)) / 2
        )


@dataclass(frozen=True)
class Recipe:
    """All that decides what a run learns; the same recipe on the same mesh gives the same weights, bit for bit.

    Attributes:
        precision: how a step computes.
        mesh: where stages run that name no mesh of their own.
        checkpoint_seconds: time between checkpoints. There is also one at each stage's end.
        checkpoints_kept: the newest so many stay.
    """

    name: str
    summary: str
    model: ModelConfig
    tokenizer: TokenizerConfig
    optimizer: OptimizerConfig
    stages: tuple[Stage, ...]
    seed: int = 0
    precision: Precision = field(default_factory=Precision)
    mesh: MeshShape = field(default_factory=MeshShape)
    checkpoint_seconds: float = 60.0
    checkpoints_kept: int = 3

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) < len(names):
            raise UserError(f"recipe {self.name!r} must have one or more stages, each of another name; got {names}")
        _at_least("seed", self.seed, 0)
        _at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
        _at_least("checkpoints_kept", self.checkpoints_kept, 1)

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


def answers_only(batch: Batch) -> Batch:
    """The batch with its answers alone as targets: those that weigh most in their row.

    Those are they with at least half of the row's largest weight, since answers of different lengths may share a row. A
    row in which all targets weigh the same stays as it is.
    """
    weights = np.asarray(batch.weights)
    return replace(batch, weights=np.where(weights >= weights.max(axis=1, keepdims=True) / 2, weights, np.float32(0)))
