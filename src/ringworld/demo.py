"""`ringworld demo`: the whole pipeline once, small, from prose to a report. And what a trained model that sees can show
without it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import ringworld
from ringworld import recipes
from ringworld.evaluation.needle import NeedleCheck, evaluate_needle
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.report import write_report
from ringworld.evaluation.showing import Plan, show
from ringworld.evaluation.shown import About
from ringworld.generation.answering import Answering
from ringworld.generation.drawing import Drawing
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.training.language import LanguageRecipe, LanguageStage
from ringworld.training.loop import train

RECIPE = "nano-text"
# Up to what it is trained on, and twice as far.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)
LESSON_SECONDS = 120


def demo(out: Path, *, seed: int = 0) -> Path:
    """Trains `nano-text` into `out`, asks it for needles in held-out prose, and writes the report; returns its path.

    What is there already is not done again, so a demo that was stopped goes on.

    Raises:
        UserError: the prose cannot be fetched, the disk is full, or `out` holds another run.
    """
    train(recipes.build(RECIPE, seed=seed), out, evaluators=[after_stage])
    model = ringworld.load(out, MeshShape(data=-1))
    evaluate_needle(model, HeldOutProse(model.tokenizer), lengths=LENGTHS, depths=5, rounds=4, out=out)
    return write_report(out)


def after_stage(stage: LanguageStage, model: Model) -> Iterator[tuple[str, float]]:
    """What a stage bought: the share of needles found at each length, up to twice the stage's own."""
    yield from NeedleCheck(HeldOutProse(model.tokenizer), (64, 128, *LENGTHS))(stage, model)


def show_and_teach(
    model: Model,
    about: About,
    out: Path,
    lesson: LanguageRecipe,
    *,
    plan: Plan = Plan(),
    prose: HeldOutProse | None = None,
    lengths: Sequence[int] = LENGTHS,
    seconds: float | int = LESSON_SECONDS,
) -> Path:
    """Lets a model that sees draw, describe and remember, asks it for needles in prose, trains another one for a
    moment so that one sees the loss fall, and writes the report; returns its path.

    What is there already is not done again, so what was stopped goes on.

    Args:
        lesson: what is trained, into `out/lesson`,
        seconds: and for so long; steps count, and not what is compiled for them.
        prose: where needles are hidden; by default what `HeldOutProse` takes.

    Raises:
        UserError: the model does not see, prose cannot be fetched, the disk is full, or `out` holds something else.
    """
    show(Answering(model), Drawing(model), about, out, plan)
    prose = prose or HeldOutProse(model.tokenizer)
    evaluate_needle(model, prose, lengths=lengths, depths=5, rounds=2, out=out)
    train(lesson, out / "lesson", seconds=seconds)
    return write_report(out, lesson=out / "lesson")
