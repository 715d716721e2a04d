"""`ringworld demo`: the whole pipeline once, small, from prose to a report."""

from collections.abc import Iterator
from pathlib import Path

import ringworld
from ringworld import recipes
from ringworld.evaluation.needle import NeedleCheck, evaluate_needle
from ringworld.evaluation.prose import HeldOutProse
from ringworld.evaluation.report import write_report
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.training.language import LanguageStage
from ringworld.training.loop import train

RECIPE = "nano-text"
# Up to what it is trained on, and twice as far.
LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384)


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
