"""`ringworld demo`: what the model that is shipped can do, and how another one begins to learn; a report of both."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ringworld
from ringworld import recipes
from ringworld.errors import UserError
from ringworld.evaluation.needle import evaluate_needle
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.report import write_report
from ringworld.evaluation.showing import Plan, show
from ringworld.evaluation.shown import About
from ringworld.generation.answering import Answering
from ringworld.generation.drawing import Drawing
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.training.curriculum import Recipe
from ringworld.training.loop import train

MODEL = "nano"
TRAINED_ON = "essays with numbers hidden in them, and on pictures and films of shapes"
LESSON = "nano-text"
LESSON_WITHOUT_PROSE = "debug"
# Where and which way something passed, seen in 60 frames, the model does not say well (docs/nano.md).
PLAN = Plan(heldout="place", kinds=("what", "when", "what", "when", "first"))
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
LESSON_SECONDS = 70  # of steps: about two minutes with what is compiled for them


def demo(out: Path, *, seed: int = 0) -> Path:
    """Shows the shipped model, and trains another for two minutes, into `out`; returns the path of the report.

    What is there already is not done again, so a demo that was stopped goes on.

    Raises:
        UserError: the disk is full, or `out` holds something else.
    """
    # A long film is one row, which all devices read together.
    model = ringworld.load(MODEL, MeshShape(sequence=-1))
    return show_and_teach(
        model,
        About.of(model, MODEL, TRAINED_ON),
        out,
        recipes.build(LESSON, seed=seed),
        recipes.build(LESSON_WITHOUT_PROSE, seed=seed),
        plan=replace(PLAN, seed=seed),
        prose=HeldOutProse(model.tokenizer),
    )


def show_and_teach(
    model: Model,
    about: About,
    out: Path,
    lesson: Recipe,
    without_prose: Recipe,
    *,
    plan: Plan,
    prose: HeldOutProse,
    lengths: Sequence[int] = LENGTHS,
    seconds: float | int = LESSON_SECONDS,
) -> Path:
    """Lets a model that sees draw, describe and remember, asks it for needles in prose, trains another one for a
    moment so that one sees the loss fall, and writes the report; returns its path.

    What is there already is not done again, so what was stopped goes on.

    Args:
        lesson: what is trained, in a folder of its name in `out`;
        without_prose: and what in its place where there is no prose, in which case no needles are asked for: it says
            so, and why.
        prose: where needles are hidden.
        seconds: of the lesson; steps count, and not what is compiled for them.

    Raises:
        UserError: the model does not see, the disk is full, or `out` holds something else.
    """
    show(Answering(model), Drawing(model), about, out, plan)
    try:
        prose.for_length(max(lengths))
    except UserError as error:
        print(f"no needles are asked for, and {without_prose.name} is trained, not {lesson.name}: {error}", flush=True)
        lesson = without_prose
    else:
        evaluate_needle(model, prose, lengths=lengths, depths=5, rounds=2, out=out)
    return write_report(out, lesson=train(lesson, out / lesson.name, seconds=seconds))
