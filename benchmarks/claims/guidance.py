"""What guidance (CFG) does for drawings: how many are right, by its scale.

    python benchmarks/claims/guidance.py --model DIR [--guidance 1 1.5 2 3 4 6] [--seeds 0 1]
        [--out runs-out/claims/guidance]

Draws the same captions of the shapes world with each scale, like those trained on and held out, and has a reader of the
world's rules say what is right. The model must have been trained to draw, without words at times; a seed is one of the
captions and of the draws.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from ringworld.evaluation.drawn import evaluate_drawn
from ringworld.evaluation.parts import NAMES
from ringworld.evaluation.scores import What
from ringworld.generation.drawing import Drawing
from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.worlds.world import HeldOut
from trials import Curve, conclude, drawn_right, opened

WHATS: tuple[What, ...] = ("ground", "colour", "kind", "size", "place")


@dataclass(frozen=True)
class Settings:
    model: Path
    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
    count: int = 128  # captions of each part
    frames: int = 1  # more: a film
    things: tuple[int, int] = (1, 1)
    heldout: HeldOut = "place"  # what the model's training held out
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/guidance")


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    model = Drawing(opened(settings.model))
    rows, curves = [], []
    for seed in settings.seeds:
        result = evaluate_drawn(
            model,
            settings.out / f"drawn-{seed}",
            count=settings.count,
            frames=settings.frames,
            things=settings.things,
            guidance=settings.guidance,
            seed=seed,
            heldout=settings.heldout,
        )
        for part, name in NAMES.items():
            shares = [drawn_right(result, scale, part, "all") for scale in settings.guidance]
            curves.append(Curve(name, seed, settings.guidance, shares))
            for scale, right in zip(settings.guidance, shares, strict=True):
                whats = {what: drawn_right(result, scale, part, what) for what in WHATS}
                rows.append({"seed": seed, "captions": name, "guidance": f"{scale:g}", "all right": right} | whats)
    conclude(settings.out, "guidance", rows, curves, x="guidance", y="drawings right in everything")


if __name__ == "__main__":
    main(tyro.cli(Settings))
