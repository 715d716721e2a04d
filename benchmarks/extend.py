"""What a short extension does for a published model: its needle accuracy before and after.

    python benchmarks/extend.py [--model smollm2] [--stages 8192 12288] [--lengths 4096 8192 12288]

Asks the model for needles in held-out prose, trains it on by the recipe `extend`, and asks again. Started again it goes
on: answers and steps that are there are not done again. Prints a table; both heat-maps are in the folder.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

import ringworld
from ringworld import recipes
from ringworld.evaluation.needle import evaluate_needle
from ringworld.evaluation.prose import HeldOutProse
from ringworld.mesh import MeshShape, default_cpu_devices, use_cpu_devices
from ringworld.recipes.extension import EXTEND, EXTEND_CORPORA
from ringworld.training.loop import train


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2"
    stages: tuple[int, ...] = (8192, 12288)
    lengths: tuple[int, ...] = (4096, 8192, 12288)
    depths: int = 5
    rounds: int = 2
    steps: int | None = None  # of the training in all; None: the recipe's
    out: Path = Path("runs-out/extend")


def found(model: str, settings: Settings, out: Path) -> dict[int, float]:
    """The share of needles found, by length."""
    loaded = ringworld.load(model, MeshShape(data=-1))
    result = evaluate_needle(
        loaded,
        HeldOutProse(loaded.tokenizer, EXTEND_CORPORA),
        lengths=settings.lengths,
        depths=settings.depths,
        rounds=settings.rounds,
        out=out,
    )
    shares, lengths, _ = result.matrix()
    return dict(zip(lengths, shares.mean(axis=0).tolist(), strict=True))


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    before = found(settings.model, settings, settings.out / "before")
    recipe = recipes.build(EXTEND, init=settings.model, lengths=settings.stages)
    run = settings.out / "run"
    train(recipe, run, steps=settings.steps)
    after = found(str(run), settings, settings.out / "after")
    questions = settings.depths * settings.rounds
    print(f"{settings.model}; {recipe.summary}; {questions} questions a length")
    print(f"| needles found | {' | '.join(f'{length} tokens' for length in before)} |")
    print("|---" * (1 + len(before)) + "|")
    for name, shares in (("before", before), ("after", after)):
        print(f"| {name} | {' | '.join(f'{share:.0%}' for share in shares.values())} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
