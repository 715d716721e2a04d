"""RoPE's theta scaled with the length of the context against one theta for all stages, at equal tokens.

    python benchmarks/claims/theta.py [--fixed 1e4 156.25] [--effort 1.0] [--seeds 0 1] [--out runs-out/claims/theta]

All arms train the stages of `nano-text` up to 1K tokens for the same numbers of steps, whatever is learned by then.
Scaled: theta is 156 times the stage's length. Fixed: theta is the same in every stage; 1e4 is what the first stage has
when theta is scaled, and 156 is to 64 tokens what LLaMA's 1e4 is to its 4K. Asked for needles in held-out prose, at up
to twice the longest trained length.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from trials import across, conclude, cost, found, nano

STEPS = {64: 600, 128: 1000, 256: 300, 512: 250, 1024: 250}  # of 2,048 tokens up to 128, then of 4,096
LENGTHS = (64, 256, 512, 1024, 2048)


@dataclass(frozen=True)
class Settings:
    fixed: tuple[float, ...] = (1e4, 156.25)
    effort: float = 1.0  # share of the steps that each training takes
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/theta")


def fixed(recipe: LanguageRecipe, theta: float) -> LanguageRecipe:
    return replace(recipe, stages=tuple(replace(stage, rope_theta=theta) for stage in recipe.stages))


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    rows = []
    for seed in settings.seeds:
        scaled = nano(STEPS, seed, settings.effort)
        arms = {"scaled": scaled} | {f"fixed at {theta:g}": fixed(scaled, theta) for theta in settings.fixed}
        for arm, recipe in arms.items():
            run = settings.out / f"{arm.replace(' ', '-')}-{seed}"
            train(recipe, run)
            shares = found(run, LENGTHS, several=(256, 1024))
            rows.append({"seed": seed, "arm": arm} | cost(run) | shares)
    conclude(settings.out, "theta", rows, across(rows), y="needles found")


if __name__ == "__main__":
    main(tyro.cli(Settings))
