"""`report.html`: what a run was, how it learned, and what it can do. One file, no scripts, pictures inside."""

import base64
import html
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ringworld.data.needles import NEEDLE, QUESTION
from ringworld.errors import UserError
from ringworld.evaluation import plots
from ringworld.evaluation.files import read_json, write_result
from ringworld.evaluation.needle import NEEDLE_METRIC, Answer, NeedleResult
from ringworld.evaluation.perplexity import PerplexityResult
from ringworld.model.config import ModelConfig

_STYLE = """
:root { color-scheme: light; --ink: #22303c; --faint: #6b7883; --line: #e3e8ec; --accent: #1f6f78; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 17px/1.6 "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif; }
main { max-width: 54rem; margin: 0 auto; padding: 3.5rem 1.5rem 5rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 .4rem; font-weight: 600; }
h2 { font-size: 1.3rem; margin: 3.2rem 0 .3rem; font-weight: 600; }
p { margin: .3rem 0 1rem; max-width: 42rem; }
.lead { font-size: 1.12rem; color: var(--faint); }
img { max-width: 100%; height: auto; display: block; margin: 1rem 0; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem 2.6rem; margin: 2rem 0 0; padding: 1.2rem 0;
           border-top: 1px solid var(--line); border-bottom: 1px solid var(--line); }
.figures div { font: .82rem/1.35 system-ui, sans-serif; color: var(--faint); }
.figures b { display: block; font: 600 1.55rem/1.25 "Iowan Old Style", Palatino, Georgia, serif; color: var(--accent); }
table { border-collapse: collapse; font: .86rem/1.45 system-ui, sans-serif; margin: 1rem 0; }
.wide { overflow-x: auto; }
th { text-align: left; font-weight: 600; color: var(--faint); }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
blockquote { margin: 1rem 0; max-width: 42rem; padding: .7rem 1.2rem;
             border-left: 3px solid var(--accent); background: #f6f8f9; }
blockquote p { margin: .2rem 0; }
details { margin-top: 1rem; } summary { cursor: pointer; color: var(--faint); }
pre { font: .78rem/1.5 ui-monospace, Menlo, Consolas, monospace; background: #f6f8f9; padding: 1rem; overflow-x: auto; }
footer { margin-top: 4rem; font: .82rem/1.5 system-ui, sans-serif; color: var(--faint); }
""".strip()


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


def write_report(run: Path, *, results: Path | None = None, path: Path | None = None) -> Path:
    """Writes the report of a run: loss over the stages, what each stage bought, and the evaluations that there are.

    Args:
        run: the run folder that training wrote.
        results: where `needle.json`, `multi-needle.json` and `perplexity.json` lie, if any do; by default `run`.
        path: of the report; by default `report.html` in the run folder.

    Returns:
        `path`.

    Raises:
        UserError: no such run, or a damaged file in it.
    """
    results = results or run
    path = path or run / "report.html"
    if not (run / "recipe.json").exists():
        raise UserError(f"there is no run in {run} to report on: give the --out folder of a `ringworld train`")
    recipe = read_json(run / "recipe.json")
    stages = list(_stages(run / "metrics.jsonl", [stage["name"] for stage in recipe["stages"]]))
    needles = {
        kind: NeedleResult.read(file)
        for kind in ("needle", "multi-needle")
        if (file := results / f"{kind}.json").exists()
    }
    perplexity = PerplexityResult.read(file) if (file := results / "perplexity.json").exists() else None
    body = [
        f"<h1>{_text(recipe['name'])}</h1>",
        f'<p class="lead">{_text(recipe["summary"])}</p>',
        _figures(recipe, stages, needles.get("needle")),
        *_training(stages, recipe),
        *(section for kind, result in needles.items() for section in _needles(kind, result)),
        *_bought(stages),
        *(_perplexity(perplexity) if perplexity else ()),
        *_settings(recipe, needles),
        "<footer>Written by ringworld. The file holds all that it shows: it loads nothing and runs no script.</footer>",
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{_text(recipe['name'])} · ringworld</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )
    write_result(path, page.encode())
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


def _figures(recipe: dict[str, Any], stages: Sequence[_Stage], needle: NeedleResult | None) -> str:
    """The row of large numbers at the top."""
    config = ModelConfig.from_dict({key: value for key, value in recipe["model"].items() if key != "type"})
    figures = [(plots.short_decimal(config.parameters), "parameters")]
    if stages:
        context = max(planned["sequence_length"] for planned in recipe["stages"][: len(stages)])
        figures.append((plots.short_count(context), "tokens of context trained on"))
        figures.append((plots.short_decimal(float(stages[-1].curve.tokens[-1])), "tokens of training"))
        figures.append((_duration(sum(stage.seconds for stage in stages)), "of training steps"))
    if needle:
        figures.append((f"{needle.accuracy:.0%}", f"of {len(needle.answers)} needles found"))
    return (
        '<div class="figures">'
        + "".join(f"<div><b>{_text(n)}</b>{_text(what)}</div>" for n, what in figures)
        + "</div>"
    )


def _training(stages: Sequence[_Stage], recipe: dict[str, Any]) -> Iterator[str]:
    if not stages:
        return
    yield "<h2>How it learned</h2>"
    yield (
        "<p>The loss on the training rows: each panel is a stage, which goes on from the weights of the one before, on "
        "longer rows, so that the loss jumps and falls again.</p>"
    )
    yield _image(
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
            f"{stage.steps:,} of {planned['steps']:,}",
            plots.short_decimal(tokens - before),
            _duration(stage.seconds),
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
    yield _table(heads, rows, numbers=range(1, 8))


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
    yield _image(result.heat_map(), "heat-map of numbers found by context length and depth")
    if several:
        return
    example = max(result.answers, key=lambda answer: (all(answer.correct), answer.case.length))
    city, number = example.cities[0], example.expected[0]
    yield (
        f"<blockquote><p>… {_text(NEEDLE.format(city=city, number=number).strip())} …</p>"
        f"<p>{_text(QUESTION.format(city=city))}</p><p><b>{_text(example.text)}</b></p></blockquote>"
    )
    yield "<p>Some of its answers, one a length, a wrong one where there is one:</p>"
    yield _table(
        ["context", "depth", "city", "hidden number", "the model's answer", ""],
        [
            [
                f"{a.case.length:,}",
                f"{a.case.depth:.0%}",
                a.cities[0],
                a.expected[0],
                _shortened(a.text),
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
    yield _image(plots.stage_matrix(values, [stage.name for stage in asked], lengths, title=title), "accuracy by stage")


def _perplexity(result: PerplexityResult) -> Iterator[str]:
    seen = "" if result.vision_perplexity is None else f", and of pictures and films {result.vision_perplexity:.1f}"
    yield "<h2>Perplexity by position</h2>"
    yield (
        f"<p>How surprised the model is by held-out text, by how much of it has gone before: {result.perplexity:.1f} "
        f"over all positions{seen}; the curve falls where the model makes use of what it has read.</p>"
    )
    yield _image(result.picture(), "perplexity by position")


def _settings(recipe: dict[str, Any], needles: dict[str, NeedleResult]) -> Iterator[str]:
    yield "<h2>Settings</h2>"
    yield "<p>Everything that decided this run: the same recipe on the same mesh gives the same weights.</p>"
    contents = {"recipe.json": recipe} | {f"{kind}.json": result.settings for kind, result in needles.items()}
    for name, content in contents.items():
        code = _text(json.dumps(content, indent=1, ensure_ascii=False))
        yield f"<details><summary>{name}</summary><pre>{code}</pre></details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: range) -> str:
    """A table; the columns in `numbers` are aligned to the right."""

    def cell(tag: str, column: int, content: str) -> str:
        return f'<{tag} class="number">{content}</{tag}>' if column in numbers else f"<{tag}>{content}</{tag}>"

    head = "".join(cell("th", column, _text(name)) for column, name in enumerate(heads))
    lines = ["".join(cell("td", column, _text(content)) for column, content in enumerate(row)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _image(png: bytes, description: str) -> str:
    return f'<img alt="{_text(description)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _text(content: str) -> str:
    return html.escape(content)


def _shortened(answer: str) -> str:
    """The beginning of an answer, for a table."""
    line = " ".join(answer.split())
    return line if len(line) <= 60 else line[:59] + "…"


def _number(value: int | float | None) -> float:
    """A number of the metrics, where null stands for what was not finite."""
    return float("nan") if value is None else float(value)


def _last(values: np.ndarray) -> float:
    """The mean over the last tenth, of what is finite; NaN if nothing is."""
    last = values[-max(1, len(values) // 10) :]
    return float(last[np.isfinite(last)].mean()) if np.isfinite(last).any() else float("nan")


def _duration(seconds: int | float) -> str:
    """90 -> "1 min 30 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
