"""How far beyond the longest trained length needles are found: up to four times it.

    python benchmarks/claims/reach.py [--length 1024] [--seeds 0 1] [--out runs-out/claims/reach]

Each seed trains `nano-text` up to `length`. After every stage the model is asked for needles in held-out prose of the
stage's length, of twice and of four times it. Nothing is done for the longer ones: theta is the stage's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from progressive import progressive
from ringworld.evaluation.needle import NEEDLE_METRIC, NeedleCheck
from ringworld.evaluation.prose import HeldOutProse
from ringworld.generation.model import Model
from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.training.language import LanguageStage
from ringworld.training.loop import METRICS, train
from ringworld.training.metrics import read_metrics
from trials import DEPTHS, ROUNDS, Curve, conclude

TIMES = (1, 2, 4)  # the trained length


@dataclass(frozen=True)
class Settings:
    length: int = 1024
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/reach")


def beyond(stage: LanguageStage, model: Model) -> Iterator[tuple[str, float]]:
    lengths = tuple(times * stage.sequence_length for times in TIMES)
    check = NeedleCheck(HeldOutProse(model.tokenizer), lengths, cases=DEPTHS * ROUNDS, reach=max(TIMES))
    yield from check(stage, model)


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    rows, curves = [], []
    for seed in settings.seeds:
        run, recipe = settings.out / f"nano-{seed}", progressive(settings.length, seed)
        train(recipe, run, evaluators=[beyond])
        asked = {r["stage"]: r["results"] for r in read_metrics(run / METRICS) if r["kind"] == "evaluation"}
        for stage in recipe.stages:
            length = stage.sequence_length
            shares = [asked[stage.name][f"{NEEDLE_METRIC}{times * length}"] for times in TIMES]
            found = {f"{times} x": share for times, share in zip(TIMES, shares, strict=True)}
            rows.append({"seed": seed, "trained to": f"{length} tokens"} | found)
            curves.append(Curve(f"trained to {length}", seed, list(found), shares))
    conclude(settings.out, "reach", rows, curves, x="length asked, in trained lengths", y="needles found")


if __name__ == "__main__":
    main(tyro.cli(Settings))
