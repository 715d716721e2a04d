"""Writing checkpoints while training goes on, and finding the way back.

A save copies the arrays to the host, hands them to a thread and returns; the thread writes under a temporary name,
renames at the end, and only then removes the oldest checkpoint. Whatever happens in between (a crash, a full disk), the
earlier checkpoints are whole. What lies where in a checkpoint is told in `ringworld.weights.checkpoint`, which reads
its model.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import jax
import orbax.checkpoint as ocp

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.training.curriculum import Learner, Recipe, completed, differences, to_json
from ringworld.weights.checkpoint import CHECKPOINTS, complete_checkpoints, restore

RECIPE = "recipe.json"
PROGRESS = "progress.json"
State = TypeVar("State", bound=Any)
SLACK = 2**20  # bytes of a checkpoint beside its arrays: tokenizer, indices, what is left of the last blocks


@dataclass(frozen=True)
class Progress:
    """Where a run is: all that is needed, beside the arrays, to go on as if it had never stopped.

    Attributes:
        stage: index of the stage.
        stage_step: its steps so far.
        stage_over: it has ended, by its steps or its criterion; what follows is its evaluation, then the next stage.
        step: steps of all stages so far.
        units: tokens in the batches of these steps, or what else the kind of model counts.
        seconds: time spent in them.
        skipped: steps of all stages that left the weights as they were.
        skipped_in_a_row: how many of those came last.
        loader: state of the stage's data.
        validation: state of the criterion's data.
    """

    stage: int = 0
    stage_step: int = 0
    stage_over: bool = False
    step: int = 0
    units: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    loader: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)

    def entering(self, stage: int) -> Self:
        """At the beginning of a stage."""
        return replace(self, stage=stage, stage_step=0, stage_over=False, loader={}, validation={})

    def after_step(self, units: int) -> Self:
        """One step of so many units further. What it gave is not known yet."""
        return replace(self, stage_step=self.stage_step + 1, step=self.step + 1, units=self.units + units)

    def after_result(self, seconds: float, *, skipped: bool) -> Self:
        """What a step gave is known, too."""
        in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        return replace(self, seconds=self.seconds + seconds, skipped=self.skipped + skipped, skipped_in_a_row=in_a_row)


def _out_of_space(error: BaseException) -> bool:
    # The writers of arrays raise exceptions of their own, with the system's words in them.
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


@contextmanager
def clear_when_full(run: Path) -> Iterator[None]:
    """Turns a full disk, wherever in the block it is met, into one UserError."""
    try:
        yield
    except Exception as error:
        if not _out_of_space(error):
            raise
        whole = complete_checkpoints(run)
        kept = (
            f"checkpoint {whole[-1].name} is whole, and the same command goes on from it"
            if whole
            else "no checkpoint was saved before; the same command starts again"
        )
        raise UserError(f"the disk is full: could not write to {run}; {kept} once there is space") from error


def open_run(recipe: Recipe, run: Path) -> Learner:
    """Begins a run in the folder `run`, or continues the one that is there; returns what trains it.

    Raises:
        UserError: the folder holds a run of another recipe (names the fields that differ), or is no folder.
    """
    asked = to_json(recipe)
    if (run / RECIPE).is_file():
        saved = completed(json.loads((run / RECIPE).read_text(encoding="utf-8")), recipe)
        differing = list(differences(saved, asked))
        if differing:
            raise UserError(
                f"{run} holds a run of another recipe, which cannot go on with this one. They differ in "
                f"{'; '.join(differing[:5])}{f'; and {len(differing) - 5} more' if len(differing) > 5 else ''}. "
                "Give the recipe as it was, or another --out"
            )
        return recipe.learner(run)
    if complete_checkpoints(run):
        raise UserError(f"{run} holds checkpoints but no {RECIPE} that says of what: give another --out")
    try:
        run.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"cannot make the folder {run} to train into ({error.strerror}): give another --out") from error
    learner = recipe.learner(run)
    write_atomically(run / RECIPE, json.dumps(asked, indent=2) + "\n")
    return learner


def _rest(state: Any) -> dict[str, Any]:
    """A state without its weights, which are saved apart, for those who only use them."""
    return {item.name: getattr(state, item.name) for item in fields(state) if item.name != "weights"}


class Checkpoints:
    """The checkpoints of a run: written beside training, the newest `keep` of them kept. A context manager.

    Leaving the block waits for the writer; an error of the writer is raised at the next call.

    Args:
        keep: so many.
        files: names of what `save` is given beside arrays and progress.
    """

    def __init__(self, run: Path, *, keep: int, files: Iterable[str] = ()) -> None:
        self.run = run.absolute()
        whole = complete_checkpoints(self.run)
        self.newest = whole[-1] if whole else None
        self._writing = False
        self._clear_halves()
        self._manager = ocp.CheckpointManager(
            self.run / CHECKPOINTS,
            item_handlers={"weights": ocp.StandardCheckpointHandler(), "optimizer": ocp.StandardCheckpointHandler()}
            | {name: ocp.JsonCheckpointHandler(f"{name}.json") for name in (*files, "progress")},
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, save_root_metadata=False),
        )

    def _clear_halves(self) -> None:
        """Removes what a crash or a full disk left of a checkpoint; renames a half that bears a whole one's name."""
        whole = complete_checkpoints(self.run)
        for folder in (self.run / CHECKPOINTS).glob("*"):
            if ".orbax-checkpoint-tmp" in folder.name:
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.name.isdecimal() and folder not in whole:
                # A copy cut short, maybe. It would be the manager's newest, and later saves of that step would fail.
                aside = folder.with_name(f"{folder.name}.incomplete")
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)

    def __enter__(self) -> Self:
        # What goes wrong reaches us as exceptions, which end in one sentence; orbax would print their tracebacks, too.
        self._levels = {name: logging.getLogger(name).level for name in ("absl", "asyncio")}
        for name in self._levels:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._manager.close()
        except Exception:
            # The block's own error is the first, and often the same.
            if error is None:
                raise
        finally:
            for name, level in self._levels.items():
                logging.getLogger(name).setLevel(level)
            self._clear_halves()

    def save(self, state: Any, progress: Progress, files: dict[str, Any]) -> None:
        """Starts to write a checkpoint. Returns when the arrays are on the host: the next step may take their memory.

        Args:
            files: what lies beside the arrays, as JSON by name.

        Raises:
            OSError, ValueError: the previous checkpoint, or this one, could not be written.
        """
        self.wait()
        # Asked beforehand: the writers of arrays take a full disk badly, with a page for each of them.
        wanted = sum(array.nbytes for array in jax.tree.leaves(state)) + SLACK
        free = shutil.disk_usage(self.run).free
        if free < wanted:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {wanted} bytes to write and {free} free")
        self._manager.save(
            progress.step,
            args=ocp.args.Composite(
                weights=ocp.args.StandardSave(state.weights),
                optimizer=ocp.args.StandardSave(_rest(state)),
                progress=ocp.args.JsonSave(asdict(progress)),
                **{name: ocp.args.JsonSave(content) for name, content in files.items()},
            ),
            force=True,
        )
        self._writing = True

    def check(self) -> None:
        """Raises what went wrong in the background, once the writer has ended. Costs nothing."""
        if self._writing and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when the checkpoint is complete on disk, or raises what kept it from that."""
        self._writing = False
        self._manager.wait_until_finished()

    def progress(self) -> Progress:
        """Where the run was at its newest checkpoint; at its beginning when there is none."""
        if self.newest is None:
            return Progress()
        return Progress(**json.loads((self.newest / "progress" / PROGRESS).read_text(encoding="utf-8")))

    def state(self, like: State) -> State:
        """The newest checkpoint's arrays in the places of `like` (an abstract state), from whatever mesh saved.

        Raises:
            UserError: they do not fit, or are damaged.
        """
        if self.newest is None:
            raise ValueError(f"no checkpoint in {self.run}")
        rest = restore(self.newest / "optimizer", _rest(like))
        return replace(like, weights=restore(self.newest / "weights", like.weights), **rest)
