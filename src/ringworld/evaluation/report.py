"""`report.html`: what a run was, how it learned, and what it can do; or of a model that came without its run, the
latter alone.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.data.needle_words import NEEDLE, QUESTION
from ringworld.errors import UserError
from ringworld.evaluation import plots, report_shown
from ringworld.evaluation.files import read_json, write_result
from ringworld.evaluation.needle import NEEDLE_METRIC, Answer, NeedleResult
from ringworld.evaluation.page import duration, figures, image, page, shortened, table, text
from ringworld.evaluation.perplexity import PerplexityResult
from ringworld.evaluation.shown import SHOWN, Shown
from ringworld.model.config import ModelConfig


@dataclass(frozen=True)
class _Stage:
    """A stage of a run, as its metrics tell it."""

    name: str
    steps: int
    curve: plots.Curve
    accuracy: float
    seconds: float
    found: dict[int, float]  # needles found after it, by length
    reached: bool | None  # whether its criterion was; None where it has none


@dataclass(frozen=True)
class _Run:
    """A run folder: its recipe, and the stages that it has come to."""

    recipe: dict[str, Any]
    stages: list[_Stage]

    @classmethod
    def read(cls, folder: Path) -> "_Run":
        recipe = read_json(folder / "recipe.json")
        return cls(recipe, [*_stages(folder / "metrics.jsonl", [stage["name"] for stage in recipe["stages"]])])


def write_report(
    run: Path, *, results: Path | None = None, path: Path | None = None, lesson: Path | None = None
) -> Path:
    """Writes the report of a run: loss over the stages, what each stage bought, what the model showed, and the
    evaluations that there are. Of what is not there it says nothing.

    Args:
        run: the run folder that training wrote; or of a model that was not trained here, a folder with the
            `shown.json` of `showing.show`.
        results: where that, `needle.json`, `multi-needle.json` and `perplexity.json` lie, if any do; by default `run`.
        path: of the report; by default `report.html` in the run folder.
        lesson: the folder of another run, a short one: how it began to learn is shown, too.

    Returns:
        `path`.

    Raises:
        UserError: neither such a run nor such a model, or a damaged file.
    """
    results = results or run
    path = path or run / "report.html"
    trained = _Run.read(run) if (run / "recipe.json").exists() else None
    shown = Shown.read(results) if (results / SHOWN).exists() else None
    needles = {
        kind: NeedleResult.read(file)
        for kind in ("needle", "multi-needle")
        if (file := results / f"{kind}.json").exists()
    }
    perplexity = PerplexityResult.read(file) if (file := results / "perplexity.json").exists() else None
    if trained is not None:
        name, summary = trained.recipe["name"], trained.recipe["summary"]
    elif shown is not None:
        name, summary = shown.about.name, "What this model draws, sees, remembers and reads."
    else:
        raise UserError(f"there is no run in {run} to report on: give the --out folder of a `ringworld train`")
    begun = None if lesson is None else _Run.read(lesson)
    body = [
        f"<h1>{text(name)}</h1>",
        f'<p class="lead">{text(summary)}</p>',
        figures(_numbers(trained, shown, needles.get("needle"))),
        *(_training(trained.stages, trained.recipe) if trained else ()),
        *(report_shown.sections(shown, results) if shown else ()),
        *(section for kind, result in needles.items() for section in _needles(kind, result)),
        *(_bought(trained.stages) if trained else ()),
        *(_perplexity(perplexity) if perplexity else ()),
        *(_lesson(begun) if begun else ()),
        *_settings(trained, shown, needles, begun),
        "<footer>Written by ringworld. The file holds all that it shows: it loads nothing and runs no script.</footer>",
    ]
    write_result(path, page(f"{name} · ringworld", body).encode())
    return path


def _stages(metrics: Path, names: Sequence[str]) -> Iterator[_Stage]:
    """The stages that the run has come to, in order. A last line that a crash cut short is left out."""
    if not metrics.exists():
        raise UserError(f"there is no {metrics}: give the --out folder of a `ringworld train`")
    lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        records = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"cannot read {metrics} ({error}): it is damaged") from error
    seconds_before = 0.0
    for name in names:
        mine = [record for record in records if record["stage"] == name]
        steps = [record for record in mine if record["kind"] == "step"]
        if not steps:
            continue
        checks = [record for record in mine if record["kind"] == "check"]
        values = {key: np.array([_number(step[key]) for step in steps]) for key in ("tokens", "loss", "accuracy")}
        yield _Stage(
            name=name,
            steps=len(steps),
            curve=plots.Curve(name, values["tokens"], values["loss"]),
            accuracy=_last(values["accuracy"]),
            seconds=steps[-1]["seconds"] - seconds_before,
            found={
                int(key.removeprefix(NEEDLE_METRIC)): _number(value)
                for record in mine
                if record["kind"] == "evaluation"
                for key, value in record["results"].items()
                if key.startswith(NEEDLE_METRIC)
            },
            reached=checks[-1]["reached"] if checks else None,
        )
        seconds_before = steps[-1]["seconds"]


def _numbers(trained: _Run | None, shown: Shown | None, needle: NeedleResult | None) -> Iterator[tuple[str, str]]:
    """The large numbers at the top, each with what it is of."""
    context = "tokens of context trained on"
    if trained is not None:
        recipe, stages = trained.recipe, trained.stages
        config = ModelConfig.from_dict({key: value for key, value in recipe["model"].items() if key != "type"})
        yield plots.short_decimal(config.parameters), "parameters"
        if stages:
            longest = max(planned["sequence_length"] for planned in recipe["stages"][: len(stages)])
            yield plots.short_count(longest), context
            yield plots.short_decimal(float(stages[-1].curve.tokens[-1])), "tokens of training"
            yield duration(sum(stage.seconds for stage in stages)), "of training steps"
    elif shown is not None:
        yield plots.short_decimal(shown.about.parameters), "parameters"
        yield plots.short_count(shown.about.context_length), context
    if shown is not None and (film := shown.long_film) is not None:
        right = sum(one.right for one in film.asked)
        yield f"{right} of {len(film.asked)}", f"answers right about {len(film.times)} minutes of film"
    if needle:
        yield f"{needle.accuracy:.0%}", f"of {len(needle.answers)} needles found"


def _training(stages: Sequence[_Stage], recipe: dict[str, Any]) -> Iterator[str]:
    if not stages:
        return
    yield "<h2>How it learned</h2>"
    yield (
        "<p>The loss on the training rows: each panel is a stage, which goes on from the weights of the one before, on "
        "longer rows, so that the loss jumps and falls again.</p>"
    )
    yield image(
        plots.loss_curve([stage.curve for stage in stages], title="Training loss, stage by stage"), "loss curve"
    )
    by_name = {stage["name"]: stage for stage in recipe["stages"]}
    ended = {True: "learned", False: "steps ran out", None: "steps done"}
    rows = []
    before = 0.0
    for stage in stages:
        planned, tokens = by_name[stage.name], float(stage.curve.tokens[-1])
        rows.append([
            stage.name,
            f"{planned['sequence_length']:,}",
            f"{planned['rope_theta']:,.0f}",
            f"{stage.steps:,} of {planned['steps'] + planned.get('more', 0):,}",
            plots.short_decimal(tokens - before),
            duration(stage.seconds),
            f"{_last(stage.curve.loss):.3f}",
            f"{stage.accuracy:.3f}",
            ended[stage.reached],
        ])  # fmt: skip
        before = tokens
    yield (
        "<p>The stages: RoPE's theta grows with the length of the rows; loss and accuracy are of the last tenth of a "
        "stage's steps, each token by its weight in training; “learned” says that the stage reached its own measure "
        "before its steps ran out.</p>"
    )
    heads = ["stage", "row, tokens", "theta", "steps", "tokens", "time", "loss", "accuracy", "ended"]
    yield table(heads, rows, numbers=range(1, 8))


def _needles(kind: str, result: NeedleResult) -> Iterator[str]:
    several = kind == "multi-needle"
    yield f"<h2>{'Several needles in a haystack' if several else 'A needle in a haystack'}</h2>"
    if several:
        yield (
            f"<p>The same with {result.settings['needles']} such sentences hidden, of which one question asks for "
            f"{result.settings['asked']}; every number counts by itself, and the depth is that of the first one.</p>"
        )
    else:
        yield (
            "<p>In prose that the model has never seen one sentence is hidden, which gives a city's seven-digit magic "
            "number: a cell says how often the model, when asked, gave all seven digits back, by the length of the "
            "text (across) and by where in it the sentence stood (0% is the beginning).</p>"
        )
    yield image(result.heat_map(), "heat-map of numbers found by context length and depth")
    if several:
        return
    example = max(result.answers, key=lambda answer: (all(answer.correct), answer.case.length))
    city, number = example.cities[0], example.expected[0]
    yield (
        f"<blockquote><p>… {text(NEEDLE.format(city=city, number=number).strip())} …</p>"
        f"<p>{text(QUESTION.format(city=city))}</p><p><b>{text(example.text)}</b></p></blockquote>"
    )
    yield "<p>Some of its answers, one a length, a wrong one where there is one:</p>"
    yield table(
        ["context", "depth", "city", "hidden number", "the model's answer", ""],
        [
            [
                f"{a.case.length:,}",
                f"{a.case.depth:.0%}",
                a.cities[0],
                a.expected[0],
                shortened(a.text),
                "found" if all(a.correct) else "missed",
            ]
            for a in _samples(result.answers)
        ],
        numbers=range(2),
    )


def _samples(answers: Sequence[Answer]) -> Iterator[Answer]:
    """One answer a length: the first wrong one, or the first."""
    for length in sorted({answer.case.length for answer in answers}):
        yield min((a for a in answers if a.case.length == length), key=lambda a: all(a.correct))


def _bought(stages: Sequence[_Stage]) -> Iterator[str]:
    lengths = sorted({length for stage in stages for length in stage.found})
    if not lengths:
        return
    asked = [stage for stage in stages if stage.found]
    values = np.array([[stage.found.get(length, np.nan) for length in lengths] for stage in asked])
    yield "<h2>What each stage bought</h2>"
    yield (
        "<p>Needles found in held-out prose right after each stage, in a smaller test of its own: a row is a stage, a "
        "column a length of context, and lengths far beyond a stage's rows were not asked for (-).</p>"
    )
    title = "Needles found after each stage, %"
    yield image(plots.stage_matrix(values, [stage.name for stage in asked], lengths, title=title), "accuracy by stage")


def _perplexity(result: PerplexityResult) -> Iterator[str]:
    seen = "" if result.vision_perplexity is None else f", and of pictures and films {result.vision_perplexity:.1f}"
    yield "<h2>Perplexity by position</h2>"
    yield (
        f"<p>How surprised the model is by held-out text, by how much of it has gone before: {result.perplexity:.1f} "
        f"over all positions{seen}; the curve falls where the model makes use of what it has read.</p>"
    )
    yield image(result.picture(), "perplexity by position")


def _lesson(begun: _Run) -> Iterator[str]:
    if not begun.stages:
        return
    first, last = begun.stages[0].curve.loss, begun.stages[-1].curve.loss
    known = first[np.isfinite(first)]
    went = f": the loss on its training rows went from {known[0]:.2f} to {_last(last):.2f}" if len(known) else ""
    yield "<h2>How a model begins to learn</h2>"
    yield (
        f"<p>Another model, of the recipe {text(begun.recipe['name'])} ({text(begun.recipe['summary'])}), was trained "
        f"here for {duration(sum(stage.seconds for stage in begun.stages))} of steps{went}. Each panel is a stage, on "
        "longer rows than the one before.</p>"
    )
    yield image(
        plots.loss_curve([stage.curve for stage in begun.stages], title="Training loss of the beginning"),
        "loss curve of the beginning",
    )


def _settings(
    trained: _Run | None, shown: Shown | None, needles: Mapping[str, NeedleResult], begun: _Run | None
) -> Iterator[str]:
    contents: dict[str, Mapping[str, Any]] = {}
    if trained is not None:
        contents["recipe.json"] = trained.recipe
    if shown is not None:
        contents[SHOWN] = shown.settings
    contents |= {f"{kind}.json": result.settings for kind, result in needles.items()}
    if begun is not None:
        contents[f"recipe.json of {begun.recipe['name']}"] = begun.recipe
    yield "<h2>Settings</h2>"
    if trained is None:
        yield "<p>Under which settings all of this was made.</p>"
    else:
        yield "<p>Everything that decided this run: the same recipe on the same mesh gives the same weights.</p>"
    for name, content in contents.items():
        code = text(json.dumps(content, indent=1, ensure_ascii=False))
        yield f"<details><summary>{text(name)}</summary><pre>{code}</pre></details>"


def _number(value: int | float | None) -> float:
    """A number of the metrics, where null stands for what was not finite."""
    return float("nan") if value is None else float(value)


def _last(values: np.ndarray) -> float:
    """The mean over the last tenth, of what is finite; NaN if nothing is."""
    last = values[-max(1, len(values) // 10) :]
    return float(last[np.isfinite(last)].mean()) if np.isfinite(last).any() else float("nan")
