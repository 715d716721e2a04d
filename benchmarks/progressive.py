"""The progressive curriculum against the long length from the start, at equal tokens.

    python benchmarks/progressive.py [--length 1024] [--seeds 0 1] [--out runs-out/progressive]

Each seed trains `nano-text` up to `length`, then a fresh model on documents of `length` alone, for as many tokens. Both
are asked for needles in held-out prose. Prints a table and draws a plot; runs that are there are not done again.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import tyro

import ringworld
from ringworld import recipes
from ringworld.evaluation.needle import evaluate_needle
from ringworld.evaluation.prose import HeldOutProse
from ringworld.mesh import MeshShape, default_cpu_devices, use_cpu_devices
from ringworld.training.curriculum import Recipe
from ringworld.training.loop import train


@dataclass(frozen=True)
class Settings:
    length: int = 1024
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/progressive")


def progressive(length: int, seed: int) -> Recipe:
    recipe = recipes.build("nano-text", seed=seed)
    return replace(recipe, stages=tuple(stage for stage in recipe.stages if stage.sequence_length <= length))


def direct(length: int, seed: int, tokens: int) -> Recipe:
    """The last stage alone, from random weights, for so many tokens, and of its documents the long ones alone."""
    recipe = progressive(length, seed)
    last = recipe.stages[-1]
    long = tuple((source, share) for source, share in last.sources if source.length == length)
    stage = replace(last, sources=long, steps=round(tokens / last.units_per_step), until=None)
    return replace(recipe, name="direct", stages=(stage,))


def steps_of(run: Path) -> list[dict]:
    records = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())
    return [record for record in records if record["kind"] == "step"]


def found(run: Path, length: int) -> dict[int, float]:
    """The share of needles found at this length and shorter ones."""
    model = ringworld.load(run, MeshShape(data=-1))
    lengths = tuple(stage.sequence_length for stage in progressive(length, seed=0).stages)
    result = evaluate_needle(model, HeldOutProse(model.tokenizer), lengths=lengths, depths=5, rounds=8, out=run)
    shares, lengths, _ = result.matrix()
    return dict(zip(lengths, shares.mean(axis=0).tolist(), strict=True))


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    rows = []
    for seed in settings.seeds:
        runs = {"progressive": settings.out / f"progressive-{seed}", "direct": settings.out / f"direct-{seed}"}
        train(progressive(settings.length, seed), runs["progressive"])
        tokens = steps_of(runs["progressive"])[-1]["tokens"]
        train(direct(settings.length, seed, tokens), runs["direct"])
        for name, run in runs.items():
            steps = steps_of(run)
            smooth = [
                sum(s["accuracy"] for s in steps[max(0, i - 20) : i + 1]) / min(i + 1, 21) for i in range(len(steps))
            ]
            style = {"color": f"C{seed % 10}", "linestyle": "-" if name == "progressive" else ":"}
            axis.plot([s["tokens"] / 1e6 for s in steps], smooth, label=f"{name}, seed {seed}", **style)
            rows.append((seed, name, steps[-1]["tokens"], steps[-1]["seconds"], found(run, settings.length)))
    axis.set(xlabel="million tokens trained", ylabel="accuracy of the loss's targets", ylim=(0, 1))
    axis.legend()
    figure.savefig(settings.out / "progressive.png", dpi=140)
    lengths = sorted(rows[0][-1])
    print(f"| seed | training | tokens | seconds | {' | '.join(f'{n} tokens' for n in lengths)} |")
    print("|---" * (4 + len(lengths)) + "|")
    for seed, name, tokens, seconds, shares in rows:
        cells = " | ".join(f"{shares[n]:.0%}" for n in lengths)
        print(f"| {seed} | {name} | {tokens / 1e6:.1f}M | {seconds:.0f} | {cells} |")


if __name__ == "__main__":
    main(tyro.cli(Settings))
