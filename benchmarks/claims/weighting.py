"""Losses in which what is asked for weighs more against losses in which every target weighs the same, at equal tokens.

    python benchmarks/claims/weighting.py [--effort 1.0] [--seeds 0 1] [--out runs-out/claims/weighting]

Two tasks, each with models of its own and each with the same rows in all of its arms:

- text: documents that hide needles in prose. Weighted: of a document the answers weigh 1 in all and everything else
  0.02, as in `nano-text`. Unweighted: every token weighs the same. Asked for needles in held-out prose, and for the
  perplexity of that prose, which the weights may cost.
- pictures: captions of pictures, and four times as long answers that draw films. Unweighted: every token of an answer
  weighs the same. By example: each answer weighs the same. By modality: text and vision weigh the same in each row, as
  in LWM's loss. Asked for captions, and for films, of which a reader says what is right.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from ringworld.data.packing import Normalization
from ringworld.data.worlds import WorldSourceConfig
from ringworld.evaluation.drawn import evaluate_drawn
from ringworld.evaluation.parts import NAMES
from ringworld.evaluation.perplexity import evaluate_perplexity
from ringworld.evaluation.scores import What
from ringworld.generation.drawing import Drawing
from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from trials import (
    PICTURE,
    SHORT,
    ChangedRecipe,
    Row,
    across,
    captioned,
    conclude,
    cost,
    drawn_right,
    found,
    kept,
    nano,
    opened,
    pictures,
)

PICTURE_STEPS = 900  # of 4,096 tokens
FRAMES = 4  # of a film
DRAWN = 64  # films of each part
FILM = WorldSourceConfig("draw", frames=(FRAMES, FRAMES), heldout="place")
MIX = ((PICTURE, 0.7), (FILM, 0.3))  # of the documents; of the tokens about half each
PICTURE_ARMS: dict[str, Normalization] = {
    "unweighted": "token",
    "by example": "example",
    "by modality": "modality",
}


@dataclass(frozen=True)
class Settings:
    effort: float = 1.0  # share of the steps that each training takes
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/weighting")


def either(recipe: LanguageRecipe, arm: str) -> LanguageRecipe:
    return ChangedRecipe.of(recipe, "unweighted") if arm == "unweighted" else recipe


def texts(settings: Settings, seed: int) -> list[Row]:
    rows = []
    for arm in ("unweighted", "weighted"):
        run = settings.out / f"text-{arm}-{seed}"
        train(either(nano(SHORT, seed, settings.effort), arm), run)
        rows.append({"seed": seed, "arm": f"text, {arm}"} | cost(run) | found(run, tuple(SHORT), several=(128,)))
        perplexity = kept(run / "prose.json", lambda run=run: {"perplexity": perplexity_of(run)})["perplexity"]
        rows[-1]["perplexity"] = f"{perplexity:.4g}"
    return rows


def perplexity_of(run: Path) -> float:
    return evaluate_perplexity(opened(run), "essays", length=max(SHORT), out=run, rows=256).perplexity


def seen(settings: Settings, seed: int) -> list[Row]:
    rows = []
    for arm, normalization in PICTURE_ARMS.items():
        run = settings.out / f"pictures-{arm.replace(' ', '-')}-{seed}"
        recipe = pictures("weighting", MIX, PICTURE_STEPS, seed, settings.effort)
        stages = tuple(replace(stage, normalization=normalization) for stage in recipe.stages)
        train(either(replace(recipe, stages=stages), arm), run)
        rows.append({"seed": seed, "arm": f"pictures, {arm}"} | cost(run) | captioned(run) | drawn(run))
    return rows


def drawn(run: Path) -> dict[str, float]:
    """The share of films whose object is right, and the share of those that are right in everything."""
    result = evaluate_drawn(Drawing(opened(run)), run, count=DRAWN, frames=FRAMES, heldout="place")
    whats: dict[What | Literal["all"], str] = {"object": "films' objects", "all": "films"}
    return {
        f"{words}, {name}": drawn_right(result, 1.0, part, what)
        for what, words in whats.items()
        for part, name in NAMES.items()
    }


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    rows = [row for seed in settings.seeds for row in (*texts(settings, seed), *seen(settings, seed))]
    conclude(settings.out, "weighting", rows, across(rows), y="right answers")


if __name__ == "__main__":
    main(tyro.cli(Settings))
