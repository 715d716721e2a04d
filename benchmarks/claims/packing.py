"""Documents in a row that do not see each other against documents that do, at equal tokens.

    python benchmarks/claims/packing.py [--effort 1.0] [--seeds 0 1] [--out runs-out/claims/packing]

Apart: as ringworld packs. Together: the same rows, in which a token sees all that is before it in its row, at positions
that go on through the row. Targets and their weights are the same. Two tasks, each with models of its own:

- text: documents of 64 tokens and then of up to 128 that hide needles, eight and then four or more in a row of 512;
  asked for needles in held-out prose, alone as a prompt is.
- captions: pictures with one thing and their captions, five or so in a row of 256; asked for captions of other
  pictures, and of pictures with things at places that training never shows.

The plot has the accuracy of the loss's targets, of each arm in rows like those that it is trained on.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from trials import (
    PICTURE,
    SHORT,
    Change,
    ChangedRecipe,
    captioned,
    conclude,
    cost,
    found,
    learning,
    nano,
    pictures,
    tokens_until,
)

ROW = 512  # tokens, of the task of text
PICTURE_STEPS = 800  # of 4,096 tokens
LEARNED = 0.9  # accuracy of the loss's targets
ARMS: dict[str, tuple[Change, ...]] = {"apart": (), "together": ("together",)}


@dataclass(frozen=True)
class Settings:
    effort: float = 1.0  # share of the steps that each training takes
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/packing")


def text(seed: int, effort: float) -> LanguageRecipe:
    """The first stages of `nano-text` with several documents in each row, and theta still of the documents' length: its
    slowest pairs turn once in 20,000 positions, so rows of 512 are short for it, too."""
    recipe = nano(SHORT, seed, effort)
    stages = tuple(
        replace(stage, sequence_length=ROW, batch_size=stage.units_per_step // ROW) for stage in recipe.stages
    )
    return replace(recipe, stages=stages)


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    rows, curves = [], []
    for seed in settings.seeds:
        for arm, changes in ARMS.items():
            runs = {task: settings.out / f"{task}-{arm}-{seed}" for task in ("text", "captions")}
            words, captions = runs.values()
            train(ChangedRecipe.of(text(seed, settings.effort), *changes), words)
            recipe = pictures("captions", ((PICTURE, 1.0),), PICTURE_STEPS, seed, settings.effort)
            train(ChangedRecipe.of(recipe, *changes), captions)
            seconds = cost(words)["seconds"] + cost(captions)["seconds"]
            learned = {task: learning(f"{task}, {arm}", seed, run) for task, run in runs.items()}
            tokens = {f"tokens to {LEARNED:.0%}, {task}": tokens_until(LEARNED, learned[task]) for task in runs}
            shares = found(words, tuple(SHORT), several=(128,)) | captioned(captions)
            rows.append({"seed": seed, "arm": arm, "seconds": seconds} | tokens | shares)
            curves += learned.values()
    conclude(
        settings.out,
        "packing",
        rows,
        curves,
        x="million tokens trained",
        y="accuracy of the loss's targets",
        scale="log",
    )


if __name__ == "__main__":
    main(tyro.cli(Settings))
