"""Needles in a haystack: can the model find a fact in a long context, wherever it stands?

The wording is LWM's (arXiv 2402.08268, section 4.4) and lives in `data.needles`; here is the grid of context lengths,
depths and rounds, the marking (a number counts as found when its digits occur in the greedy answer), and the record of
every case.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from rich.console import Console

from ringworld.data.needle_words import Template
from ringworld.data.needles import Haystack, NeedleExample, build_example
from ringworld.errors import UserError
from ringworld.evaluation import plots
from ringworld.evaluation.files import earlier_cases, read_cases, write_cases, write_result
from ringworld.evaluation.prose import HeldOutProse
from ringworld.generation.model import Model
from ringworld.progress import progress_bar

Kind = Literal["needle", "multi-needle"]
# Room for each number of an answer: a sentence with a city's name and seven digits.
_TOKENS_PER_NUMBER = 40
_HELD = "needle results"  # what the files hold


@dataclass(frozen=True, order=True)
class Case:
    """One question: how long the context is, where in it the needle stands (0 to 1), and which round this is."""

    length: int
    depth: float
    round: int


@dataclass(frozen=True)
class Task:
    """What is asked, the same in every case.

    Attributes:
        kind: "needle" asks for the number of the one needle; "multi-needle" for `asked` numbers of `needles`.
        seed: decides cities, digits, prose and, with several needles, where the others stand.
        template: of the prompt. None: the model's own for chats where it has one, else LWM's; and where the length has
            no room for all of its words, the fewest of LWM's.
    """

    kind: Kind = "needle"
    needles: int = 1
    asked: int = 1
    seed: int = 0
    template: Template | None = None

    def __post_init__(self) -> None:
        if self.kind == "needle" and (self.needles, self.asked) != (1, 1):
            raise UserError(
                f"the needle test has one needle, not {self.needles} with {self.asked} asked for: use multi-needle"
            )
        if not 1 <= self.asked <= self.needles:
            raise UserError(f"{self.asked} of {self.needles} needles were asked for: ask for one, some or all of them")


@dataclass(frozen=True)
class Answer:
    """What came of a case.

    Attributes:
        tokens: of the prompt, bos included; a hair under the case's length, of which the answer is part.
        cities, expected, correct: of the numbers asked for, in the question's order.
        text: what the model wrote.
    """

    case: Case
    tokens: int
    cities: tuple[str, ...]
    expected: tuple[str, ...]
    text: str
    correct: tuple[bool, ...]

    def to_dict(self) -> dict[str, Any]:
        """A record of `needle.json`."""
        return {
            **asdict(self.case),
            "tokens": self.tokens,
            "cities": list(self.cities),
            "expected": list(self.expected),
            "answer": self.text,
            "correct": list(self.correct),
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Answer":
        return cls(
            Case(record["length"], record["depth"], record["round"]),
            record["tokens"],
            tuple(record["cities"]),
            tuple(record["expected"]),
            record["answer"],
            tuple(record["correct"]),
        )


@dataclass(frozen=True)
class NeedleResult:
    """The answers to a grid of cases, and under which settings they were given."""

    settings: dict[str, Any]
    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        """The share of numbers found, over all cases."""
        return _share(self.answers)

    def matrix(self) -> tuple[Float[np.ndarray, "depths lengths"], list[int], list[float]]:
        """Accuracy by depth (rows) and length (columns), NaN where there is no case; the lengths; the depths."""
        lengths = sorted({answer.case.length for answer in self.answers})
        depths = sorted({answer.case.depth for answer in self.answers})
        values = np.full((len(depths), len(lengths)), np.nan)
        for row, depth in enumerate(depths):
            for column, length in enumerate(lengths):
                cell = [a for a in self.answers if (a.case.length, a.case.depth) == (length, depth)]
                if cell:
                    values[row, column] = _share(cell)
        return values, lengths, depths

    @property
    def questions_a_cell(self) -> str:
        """How many cases a length and depth have: "4", or "1 to 4" where they differ."""
        counts = Counter((answer.case.length, answer.case.depth) for answer in self.answers).values()
        least, most = min(counts), max(counts)
        return f"{least}" if least == most else f"{least} to {most}"

    def summary(self) -> dict[str, Any]:
        """Accuracy in all, by length and by depth, with the number of cases."""
        lengths = sorted({answer.case.length for answer in self.answers})
        depths = sorted({answer.case.depth for answer in self.answers})
        return {
            "cases": len(self.answers),
            "accuracy": self.accuracy,
            "by_length": {str(n): _share([a for a in self.answers if a.case.length == n]) for n in lengths},
            "by_depth": {str(d): _share([a for a in self.answers if a.case.depth == d]) for d in depths},
        }

    def heat_map(self) -> bytes:
        """PNG: accuracy by length and depth."""
        values, lengths, depths = self.matrix()
        what = (
            "One needle in held-out prose"
            if self.settings["kind"] == "needle"
            else f"{self.settings['asked']} of {self.settings['needles']} needles in held-out prose"
        )
        title = f"{what}: numbers found, % (questions a cell: {self.questions_a_cell})"
        return plots.heat_map(values, lengths, depths, title=title, trained_length=self.settings["context_length"])

    def write(self, path: Path) -> None:
        """To JSON, atomically: settings, summary, and every case in a line of its own."""
        answers = sorted(self.answers, key=lambda answer: answer.case)
        write_cases(path, self.settings, self.summary(), [answer.to_dict() for answer in answers])

    @classmethod
    def read(cls, path: Path) -> "NeedleResult":
        """Raises UserError when the file is not one that `write` wrote."""
        return cls(*read_cases(path, Answer.from_dict, _HELD))


def _share(answers: Iterable[Answer]) -> float:
    marks = [mark for answer in answers for mark in answer.correct]
    return sum(marks) / len(marks) if marks else float("nan")


def depth_grid(depths: int) -> tuple[float, ...]:
    """So many depths, evenly from 0 (the context's beginning) to 1 (just before the question); a single one is in the
    middle.
    """
    if depths < 1:
        raise UserError(f"{depths} depths were asked for: take at least 1")
    return (0.5,) if depths == 1 else tuple(round(i / (depths - 1), 6) for i in range(depths))


def case_grid(lengths: Sequence[int], depths: Sequence[float], rounds: int) -> list[Case]:
    """Every length with every depth in every round, the short lengths first."""
    if not lengths or min(lengths) < 1:
        raise UserError(f"the context lengths are {list(lengths)}: give one or more numbers of tokens")
    if rounds < 1:
        raise UserError(f"{rounds} rounds were asked for: take at least 1")
    return [Case(n, depth, number) for n in sorted(set(lengths)) for depth in depths for number in range(rounds)]


def case_batches(cases: Sequence[Case], batch_tokens: int, each: int = 1) -> Iterator[list[Case]]:
    """Cases of one length together, the short lengths first: of at most `batch_tokens` tokens, or one case.

    The batches of a length are of one size as far as that goes, so that few programs are compiled.

    Args:
        each: tokens of one unit of length.
    """
    for length in sorted({case.length for case in cases}):
        waiting = [case for case in cases if case.length == length]
        batches = math.ceil(len(waiting) / max(1, batch_tokens // (length * each)))
        size = math.ceil(len(waiting) / batches)
        yield from (waiting[first : first + size] for first in range(0, len(waiting), size))


def answer_cases(
    model: Model, prose: HeldOutProse, task: Task, cases: Sequence[Case], *, batch_tokens: int = 32768
) -> Iterator[list[Answer]]:
    """Asks the model, batch by batch, greedily. A case's prompt depends on the task and the case alone.

    Raises:
        UserError: the prose is shorter than a case's length, or a length is too short to hold the needles.
    """
    for batch in case_batches(cases, batch_tokens):
        haystack = prose.for_length(batch[0].length)
        examples = [_example(case, task, haystack) for case in batch]
        room = _TOKENS_PER_NUMBER * task.asked
        texts = model.generate_batch([example.prompt for example in examples], max_tokens=room)
        yield [
            _mark(case, example, model.tokenizer.decode(ids.tolist()))
            for case, example, ids in zip(batch, examples, texts, strict=True)
        ]


def _example(case: Case, task: Task, haystack: Haystack) -> NeedleExample:
    """The case's prompt, in the task's template."""

    def build(template: Template) -> NeedleExample:
        rng = np.random.default_rng([task.seed, case.length, round(case.depth * 1e6), case.round])
        depths = [case.depth, *rng.uniform(size=task.needles - 1).tolist()]
        return build_example(
            rng,
            haystack,
            length=case.length,
            needles=task.needles,
            asked=task.asked,
            depths=depths,
            form="single" if task.kind == "needle" else "multi",
            template=template,
        )

    if task.template is not None:
        return build(task.template)
    try:
        return build("lwm" if haystack.tokenizer.chat_template is None else "chat")
    except UserError:
        return build("bare")


def _mark(case: Case, example: NeedleExample, text: str) -> Answer:
    """A number is found when its digits occur in the answer (LWM's marking)."""
    correct = tuple(digits in text for digits in example.answers)
    return Answer(case, len(example.prompt), example.cities, example.answers, text.strip(), correct)


def evaluate_needle(
    model: Model,
    prose: HeldOutProse,
    *,
    lengths: Sequence[int],
    depths: int,
    rounds: int,
    out: Path,
    kind: Kind = "needle",
    needles: int = 1,
    asked: int = 1,
    seed: int = 0,
    template: Template | None = None,
    batch_tokens: int = 32768,
    console: Console | None = None,
) -> NeedleResult:
    """Runs the grid lengths x depths x rounds, and writes `<kind>.json` and `<kind>.png` into the folder `out`.

    The JSON is written anew after each batch, atomically. Where it is there already, its cases are not run again: an
    evaluation that was stopped goes on, and a grid can be extended. With several needles, a case's depth is that of the
    first one asked for.

    Args:
        template: of the prompts; see `Task`.
        batch_tokens: tokens that are read at once, which bounds the memory.
        console: where the progress is shown; standard error by default.

    Returns:
        All answers in the file, of earlier runs too.

    Raises:
        UserError: a grid or a task that is not possible, too little prose, or results of another model or task in
        `out`.
    """
    task = Task(kind, needles, asked, seed, template)
    cases = case_grid(lengths, depth_grid(depths), rounds)
    prose.for_length(max(lengths))  # too little prose is better known before the first case than after an hour
    settings = {
        **asdict(task),
        "haystack": list(prose.names),
        "model": model.fingerprint,
        "context_length": model.context_length,
    }
    path = out / f"{kind}.json"
    answers = [*earlier_cases(path, settings, Answer.from_dict, _HELD)]
    done = {answer.case for answer in answers}
    waiting = [case for case in cases if case not in done]
    with progress_bar(console) as progress:
        bar = progress.add_task(kind, total=len(cases), completed=len(cases) - len(waiting), note="")
        for batch in answer_cases(model, prose, task, waiting, batch_tokens=batch_tokens):
            answers += batch
            NeedleResult(settings, tuple(answers)).write(path)
            length = batch[0].case.length
            share = _share(a for a in answers if a.case.length == length)
            note = f"{plots.short_count(length)} tokens: {share:.0%} found"
            progress.update(bar, advance=len(batch), note=note)
            if batch[-1].case.length != next((c.length for c in waiting[waiting.index(batch[-1].case) + 1 :]), None):
                progress.console.print(f"{kind} at {note}", highlight=False)
    result = NeedleResult(settings, tuple(sorted(answers, key=lambda answer: answer.case)))
    write_result(out / f"{kind}.png", result.heat_map())
    return result


@runtime_checkable
class _Stage(Protocol):
    """What a check needs to know of a stage of training."""

    @property
    def sequence_length(self) -> int: ...


@dataclass(frozen=True)
class NeedleCheck:
    """A small needle test for the training loop, after each stage: `check(stage, model)` gives ("needle/512", 0.95),
    ...

    Attributes:
        lengths: of which each stage is asked those up to `reach` times its own length: what it was trained on, what
            came before, and a look ahead.
        cases: questions a length, their depths evenly from 0 to 1.
    """

    prose: HeldOutProse
    lengths: tuple[int, ...]
    cases: int = 20
    reach: float = 2.0
    seed: int = 1
    batch_tokens: int = 32768

    def __call__(self, stage: _Stage, model: Model) -> Iterator[tuple[str, float]]:
        for length in sorted(self.lengths):
            if length <= self.reach * stage.sequence_length:
                cases = case_grid([length], depth_grid(self.cases), 1)
                batches = answer_cases(model, self.prose, Task(seed=self.seed), cases, batch_tokens=self.batch_tokens)
                yield f"{NEEDLE_METRIC}{length}", _share(answer for batch in batches for answer in batch)


# What a check's values are called in a run's metrics: this and the length.
NEEDLE_METRIC = "needle/"
