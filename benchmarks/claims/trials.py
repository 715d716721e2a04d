"""What the scripts of this folder share: short trainings, what is asked of what came of them, a table and a plot.

A run that is there is not done again, one that was stopped goes on, and what was measured of it lies in its folder.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jax.sharding import Mesh
from matplotlib.figure import Figure

import ringworld
from ringworld.data.documents import Given
from ringworld.data.packing import Batch, Framed, frame
from ringworld.data.sources import SourceConfig
from ringworld.data.worlds import WorldSourceConfig
from ringworld.evaluation.drawn import DrawnResult
from ringworld.evaluation.files import read_json, write_json, write_result
from ringworld.evaluation.needle import evaluate_needle
from ringworld.evaluation.parts import NAMES
from ringworld.evaluation.plots import short_decimal
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.scores import What
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.recipes.long_text import NANO_PRECISION, NANO_THETA, nano_text
from ringworld.recipes.nano import MODEL, OPTIMIZER, TOKENIZER
from ringworld.training.curriculum import Course
from ringworld.training.language import LanguageLearner, LanguageRecipe, LanguageStage
from ringworld.training.loop import METRICS
from ringworld.training.metrics import Record, read_metrics
from ringworld.training.step import TrainState
from ringworld.worlds.world import Part

DEPTHS, ROUNDS = 5, 8  # of needles: 40 questions a length
NEEDLES, ASKED = 4, 2  # where several are hidden
SHORT = {64: 1200, 128: 1500}  # steps of 2,048 tokens by the length of the documents, for what two stages show
CAPTIONS = 200  # pictures of each part that are asked about
PICTURE = WorldSourceConfig("describe", heldout="place")
PAINTER = replace(MODEL, heads=6, kv_heads=6, head_dim=16)  # `nano` as it was when docs/claims.md was measured


def nano(steps: Mapping[int, int], seed: int, effort: float) -> LanguageRecipe:
    """`nano-text`'s stages of these lengths, each for so many steps, whatever it has learned by then.

    Args:
        effort: the share of those steps that is taken.
    """
    recipe = nano_text(seed)
    *others, last = (
        replace(stage, steps=of_effort(steps[stage.sequence_length], effort), until=None)
        for stage in recipe.stages
        if stage.sequence_length in steps
    )
    return replace(recipe, stages=(*others, replace(last, schedule="cosine")))


def pictures(
    name: str, sources: tuple[tuple[SourceConfig, float], ...], steps: int, seed: int, effort: float
) -> LanguageRecipe:
    """A model of 0.94M parameters that reads and writes pictures of the shapes world, in rows of 256 tokens."""
    stage = LanguageStage(
        name="pictures",
        sequence_length=256,
        batch_size=16,
        steps=of_effort(steps, effort),
        rope_theta=NANO_THETA * 256,
        learning_rate=4e-3,
        warmup_steps=20,
        schedule="cosine",
        sources=sources,
        packing="whole",
        normalization="example",
    )
    return LanguageRecipe(
        name=name,
        summary="pictures of the shapes world, in minutes of two cores",
        model=PAINTER,
        tokenizer=TOKENIZER,
        optimizer=OPTIMIZER,
        stages=(stage,),
        seed=seed,
        precision=NANO_PRECISION,
        mesh=MeshShape(data=-1),
        frames="nano",
    )


def of_effort(steps: int, effort: float) -> int:
    return max(1, round(steps * effort))


# What is done to the rows that are trained on, since no option of a stage does it: nobody should want it.
Change = Literal["together", "unweighted"]


def together(batch: Batch) -> Batch:
    """The documents of a row see each other: one segment, whose positions go on from document to document.

    Targets stay as they are, so the last token of a document has none.
    """
    there = np.asarray(batch.segments > 0, np.int32)
    return replace(batch, segments=there, positions=there * (np.cumsum(there, axis=1, dtype=np.int32) - 1))


def unweighted(batch: Batch) -> Batch:
    """Every target that has a weight weighs the same."""
    return replace(batch, weights=np.asarray(batch.weights > 0, np.float32))


_CHANGES: dict[Change, Callable[[Batch], Batch]] = {"together": together, "unweighted": unweighted}


@dataclass(frozen=True, kw_only=True)
class ChangedRecipe(LanguageRecipe):
    """A recipe whose rows are changed before they are trained on."""

    changes: tuple[Change, ...]

    @classmethod
    def of(cls, recipe: LanguageRecipe, *changes: Change) -> "ChangedRecipe":
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(recipe)}, changes=changes)

    def learner(self, run: Path) -> LanguageLearner:
        usual = super().learner(run)
        return _ChangedLearner(self, usual.tokenizer, usual.frames)


class _ChangedLearner(LanguageLearner):
    recipe: ChangedRecipe

    def course(self, index: int, mesh: Mesh) -> Course:
        course = super().course(index, mesh)

        def step(state: TrainState, batch: Batch, learning_rate: float) -> Any:
            for change in self.recipe.changes:
                batch = _CHANGES[change](batch)
            return course.step(state, batch, learning_rate)

        return replace(course, step=step)


def opened(run: Path) -> Model:
    return ringworld.load(run, MeshShape(data=-1))


def steps_of(run: Path) -> list[Record]:
    """What the run's metrics say of each step."""
    return [record for record in read_metrics(run / METRICS) if record["kind"] == "step"]


def cost(run: Path) -> dict[str, int]:
    """The tokens that a run took, and the seconds of its steps."""
    last = steps_of(run)[-1]
    return {"tokens": last["tokens"], "seconds": round(last["seconds"])}


def found(run: Path, lengths: Sequence[int], several: Sequence[int] = ()) -> dict[str, float]:
    """The share of needles found in held-out prose at each of these lengths.

    Args:
        several: lengths at which also two of four numbers are asked for in one question.
    """
    model = opened(run)
    ask = partial(evaluate_needle, model, HeldOutProse(model.tokenizer), depths=DEPTHS, rounds=ROUNDS, out=run)
    one = ask(lengths=lengths).summary()["by_length"]
    shares = {f"{length} tokens": one[str(length)] for length in lengths}
    if several:
        many = ask(lengths=several, kind="multi-needle", needles=NEEDLES, asked=ASKED).summary()["by_length"]
        shares |= {f"{ASKED} of {NEEDLES}, {length} tokens": many[str(length)] for length in several}
    return shares


def captioned(run: Path) -> dict[str, float]:
    """The share of one-thing pictures whose caption is right to the last token: of pictures like those trained on, and
    of those with things at places that were held out."""

    def measure() -> dict[str, float]:
        model = opened(run)
        return {f"captions, {name}": answered(model, PICTURE, part, CAPTIONS) for part, name in NAMES.items()}

    return kept(run / "captions.json", measure)


def answered(model: Model, asked: SourceConfig, part: Literal["train", "heldout"], count: int) -> float:
    """Of so many documents of a source, the share whose first answer is right to the last token, greedily."""
    vocabulary = model.tokenizer.vocabulary
    source = asked.build(Given(model.tokenizer, model.context_length, _FRESH, part, model.frames))
    documents = [frame(source[index], vocabulary) for index in range(min(count, len(source)))]
    prompts, answers = zip(*(first_answer(document) for document in documents), strict=True)
    written = model.generate_batch(prompts, max_tokens=max(map(len, answers)))
    # What is written has no eos. Where the answer has one, nothing may come in its place; else the chat goes on.
    right = [
        ids[: len(answer)].tolist() == answer[answer != vocabulary.eos].tolist()
        for ids, answer in zip(written, answers, strict=True)
    ]
    return float(np.mean(right))


_FRESH = 1 << 20  # a seed that no training has


def first_answer(document: Framed) -> tuple[np.ndarray, np.ndarray]:
    """What comes before a document's first answer, and that answer: the first tokens that are trained on."""
    trained = np.append(document.weights > 0, False)
    start = int(np.argmax(trained))
    return document.tokens[:start], document.tokens[start : start + int(np.argmin(trained[start:]))]


def kept(path: Path, measure: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """What was measured before and lies there, or else what is measured now."""
    if not path.exists():
        write_json(path, measure())
    return read_json(path)


Row = Mapping[str, str | int | float]


def drawn_right(result: DrawnResult, guidance: float, part: Part, what: What | Literal["all"]) -> float:
    """The share of drawings that are right in something; nan: none could be."""
    share = result.share(guidance, part, what)
    return math.nan if share is None else share


@dataclass(frozen=True)
class Curve:
    """A line of the plot. Arms differ in colour, seeds in style."""

    arm: str
    seed: int
    x: Sequence[float | str]
    y: Sequence[float]


def shares_of(row: Row) -> dict[str, float]:
    return {column: value for column, value in row.items() if isinstance(value, float)}


def across(rows: Sequence[Row]) -> list[Curve]:
    """A line for each row, from share to share."""
    return [Curve(str(row["arm"]), int(row["seed"]), [*shares_of(row)], [*shares_of(row).values()]) for row in rows]


def learning(arm: str, seed: int, run: Path) -> Curve:
    """The accuracy of the loss's targets over the million tokens trained, each the mean of 21 steps."""
    steps = steps_of(run)
    accuracy = [step["accuracy"] for step in steps]
    smooth = [sum(accuracy[max(0, i - 20) : i + 1]) / min(i + 1, 21) for i in range(len(steps))]
    return Curve(arm, seed, [step["tokens"] / 1e6 for step in steps], smooth)


def tokens_until(share: float, curve: Curve) -> int | str:
    """The tokens after which the accuracy of a `learning` curve was this high for the first time; "never"."""
    millions = (float(x) for x, y in zip(curve.x, curve.y, strict=True) if y >= share)
    return next((round(million * 1e6) for million in millions), "never")


def conclude(
    out: Path,
    claim: str,
    rows: Sequence[Row],
    curves: Sequence[Curve],
    *,
    x: str = "",
    y: str,
    scale: Literal["linear", "log"] = "linear",
) -> None:
    """Prints the table, and writes it and the plot into the folder: `<claim>.json` and `<claim>.png`.

    Args:
        scale: of x, where that is numbers.
    """
    write_json(out / f"{claim}.json", rows)
    write_result(out / f"{claim}.png", plot(curves, x=x, y=y, scale=scale))
    print(table(rows))


def table(rows: Sequence[Row]) -> str:
    """Markdown: shares (float) in %, counts (int) in short, words as they are, and "-" where a row has nothing."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([_cell(row.get(column, "-")) for column in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|---" * len(columns) + "|", *body])


def _cell(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0%}" if isinstance(value, float) else short_decimal(value)


def plot(curves: Sequence[Curve], *, x: str, y: str, scale: Literal["linear", "log"] = "linear") -> bytes:
    """PNG: shares, over numbers or over words."""
    figure = Figure(figsize=(7, 4), dpi=140, layout="constrained")
    axes = figure.add_subplot()
    arms = list(dict.fromkeys(curve.arm for curve in curves))
    seeds = sorted({curve.seed for curve in curves})
    for curve in curves:
        style = ("-", "--", ":", "-.")[seeds.index(curve.seed) % 4]
        colour = f"C{arms.index(curve.arm) % 10}"
        marker = "o" if len(curve.x) < 20 else None
        label = f"{curve.arm}, seed {curve.seed}"
        axes.plot(curve.x, curve.y, linestyle=style, color=colour, marker=marker, markersize=4, label=label)
    axes.set(xlabel=x, ylabel=y, ylim=(-0.02, 1.02))
    if any(isinstance(value, str) for curve in curves for value in curve.x):
        axes.tick_params(axis="x", labelrotation=20)
    else:
        axes.set_xscale(scale)
    axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
