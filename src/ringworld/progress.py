"""A bar for work whose end is known, on standard error."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress_bar(console: Console | None = None) -> Progress:
    """What is done, how much of how many, the time left, and the task's field `note`; see rich.progress.Progress."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console or Console(stderr=True),
    )


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int | None, str], None]]:
    """A bar for work that tells how far it is: told(done, of how many, note). It appears when it is first told, so
    that work which cannot begin says only why."""
    with ExitStack() as stack:
        bars: list[tuple[Progress, TaskID]] = []

        def told(done: int, total: int | None, note: str) -> None:
            if not bars:
                progress = stack.enter_context(progress_bar())
                bars.append((progress, progress.add_task(what, note="")))
            progress, bar = bars[0]
            progress.update(bar, completed=done, total=total, note=note)

        yield told


def tracked(items: Iterable[Item], what: str, total: int | None) -> Iterator[Item]:
    """The items, with a bar that counts how many were used up; `total` None: nobody knows."""
    with counted(what) as told:
        for done, item in enumerate(items, start=1):
            yield item
            told(done, total, "")
