"""The progressive curriculum against the long length from the start, at equal tokens.

    python benchmarks/claims/progressive.py [--length 1024] [--seeds 0 1] [--out runs-out/claims/progressive]

Each seed trains `nano-text` up to `length`, then a fresh model on documents of `length` alone, for as many tokens. Both
are asked for needles in held-out prose. The plot has the accuracy of the targets of the loss: of other documents in
each stage, so that only the last stage compares.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ringworld.data.sources import NeedleSourceConfig
from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.recipes.long_text import nano_text
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from trials import conclude, cost, found, learning


@dataclass(frozen=True)
class Settings:
    length: int = 1024
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/progressive")


def progressive(length: int, seed: int) -> LanguageRecipe:
    recipe = nano_text(seed)
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.sequence_length <= length))


def direct(length: int, seed: int, tokens: int) -> LanguageRecipe:
    """The last stage alone, from random weights, for so many tokens, and of its documents the long ones alone."""
    recipe = progressive(length, seed)
    last = recipe.stages[-1]
    long = tuple(
        (source, share)
        for source, share in last.sources
        if isinstance(source, NeedleSourceConfig) and source.length == length
    )
    stage = replace(last, sources=long, steps=round(tokens / last.units_per_step), until=None)
    return replace(recipe, name="direct", stages=(stage,))


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    rows, curves = [], []
    for seed in settings.seeds:
        runs = {arm: settings.out / f"{arm}-{seed}" for arm in ("progressive", "direct")}
        recipe = progressive(settings.length, seed)
        train(recipe, runs["progressive"])
        train(direct(settings.length, seed, cost(runs["progressive"])["tokens"]), runs["direct"])
        for arm, run in runs.items():
            lengths = [stage.sequence_length for stage in recipe.stages]
            rows.append({"seed": seed, "arm": arm} | cost(run) | found(run, lengths))
            curves.append(learning(arm, seed, run))
    conclude(settings.out, "progressive", rows, curves, x="million tokens trained", y="accuracy of the loss's targets")


if __name__ == "__main__":
    main(tyro.cli(Settings))
