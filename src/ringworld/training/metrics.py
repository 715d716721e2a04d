"""What a run tells of itself: `metrics.jsonl`, and one line a step on the terminal.

A record is a JSON object a line, of one of three kinds:

    {"kind": "step", "stage", "stage_step", "step", "tokens", "seconds", "learning_rate", "loss", "gradient_norm",
     "skipped", ...}                          after each step; "accuracy" or what else the kind of model measures
    {"kind": "check", "stage", "stage_step", "step", "metric", "value", "wanted", "reached"}   of a stage's criterion
    {"kind": "evaluation", "stage", "stage_step", "step", "results"}      after each stage; results: {name: value}

`step` counts over all stages, `tokens` the places in the batches so far (for a model of frames it is "frames"),
`seconds` the time spent in steps so far. A number that is not finite is null.
"""

import json
import math
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ringworld.files import write_atomically

Record = dict[str, Any]


def read_metrics(path: Path) -> Iterator[Record]:
    """The records of a `metrics.jsonl`, to the first line that a crash cut short."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            if not line.endswith("\n"):
                return
            yield json.loads(line)


class MetricsFile:
    """The `metrics.jsonl` of a run, appended to. A context manager.

    Args:
        step: where the run goes on: later records, of steps that will be taken again, are removed.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        kept = [r for r in read_metrics(path) if r["step"] <= step] if path.exists() else []
        self.evaluated = {record["stage"] for record in kept if record["kind"] == "evaluation"}
        write_atomically(path, "".join(_line(record) for record in kept))
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, record: Record) -> None:
        """Appends a record. It outlives the process's death from here on, and the machine's from `sync` on."""
        self._file.write(_line(record))
        self._file.flush()

    def sync(self) -> None:
        """Returns when all records are on the disk: no checkpoint may be newer than them."""
        os.fsync(self._file.fileno())


def _line(record: Record) -> str:
    finite = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(finite, allow_nan=False) + "\n"


class Pace:
    """Tokens, or the like, a second over the last `window` seconds of steps.

    Pauses (a compilation, an evaluation) are left out.
    """

    def __init__(self, window: float = 10.0) -> None:
        self._window = window
        self._steps: deque[tuple[float, int]] = deque()
        self._began: float | None = None

    def start(self, now: float) -> None:
        """The next step begins at `now`, in seconds of any clock."""
        self._began = now

    def pause(self) -> None:
        """The next step's time tells nothing."""
        self._began = None

    def step(self, now: float, units: int) -> float:
        """A step of so many units ended at `now`, and the next begins. Returns its seconds, 0 after a pause."""
        took = 0.0 if self._began is None else now - self._began
        if self._began is not None:
            self._steps.append((took, units))
            while len(self._steps) > 1 and sum(seconds for seconds, _ in self._steps) > self._window:
                self._steps.popleft()
        self._began = now
        return took

    @property
    def units_per_second(self) -> float | None:
        """None before there is anything to tell it from."""
        seconds = sum(seconds for seconds, _ in self._steps)
        return sum(units for _, units in self._steps) / seconds if seconds > 0 else None


def duration(seconds: float | int) -> str:
    """Seconds as a person says them: 42s, 3m05s, 2h14m, 3d04h."""
    whole = round(seconds)
    for limit, large, small, letters in ((3600, 60, 1, "ms"), (86400, 3600, 60, "hm"), (math.inf, 86400, 3600, "dh")):
        if whole >= 60 and whole < limit:
            return f"{whole // large}{letters[0]}{whole % large // small:02d}{letters[1]}"
    return f"{whole}s"


def count(number: float | int) -> str:
    """A large number in three digits: 950, 25.1K, 1.05M."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{letter}" if number / size < 999.5 else f"{number / size:.0f}{letter}"
    return f"{number:.0f}"


def step_line(
    record: Record,
    *,
    stage: str,
    steps: int,
    skipped: int,
    unit: str,
    units_per_second: float | None,
    seconds_left: float | None,
) -> str:
    """A step on the terminal.

    Args:
        record: of kind "step".
        stage: its number and name.
        steps: of the stage, at most.
        skipped: steps of the run so far that changed nothing.
        unit: what the pace is told in.
        seconds_left: if every stage takes all its steps.
    """
    always = (
        "kind",
        "stage",
        "stage_step",
        "step",
        unit,
        "seconds",
        "learning_rate",
        "loss",
        "gradient_norm",
        "skipped",
    )
    parts = [
        f"stage {stage}",
        f"step {record['stage_step']}/{steps}",
        f"loss {record['loss']:.4f}",
        *(f"{name} {value:.3f}" for name, value in record.items() if name not in always),
        f"gradient {record['gradient_norm']:.3g}",
        f"{'-' if units_per_second is None else count(units_per_second)} {unit}/s",
    ]
    if seconds_left is not None:
        parts.append(f"at most {duration(seconds_left)} left")
    if record["skipped"]:
        parts.append("SKIPPED")
    if skipped:
        parts.append(f"{skipped} skipped in all")
    return "  ".join(parts)
