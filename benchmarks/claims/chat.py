"""How many needles a model still finds that is trained on with more and more chats in the mix.

    python benchmarks/claims/chat.py [--shares 0 0.5 0.7 0.9 1] [--effort 1.0] [--seeds 0 1]
        [--out runs-out/claims/chat]

Each seed trains the first stages of `nano-text`, which teach to find needles. From there a model for each share is
trained on: so many of the rows are chats, the others have needles as before. The chats are questions about scenes of
the shapes world that are told in words, each answered in a word or two. Asked for needles in held-out prose, and for
the answers in chats that were held out.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import tyro

from ringworld.data.needle_words import BARE_PROMPT, TURN
from ringworld.data.sources import JsonlConfig, NeedleSourceConfig, SourceConfig
from ringworld.evaluation.files import write_result
from ringworld.mesh import default_cpu_devices, use_cpu_devices
from ringworld.training.language import LanguageRecipe
from ringworld.training.loop import train
from ringworld.worlds.film import Film
from ringworld.worlds.language import caption, questions
from ringworld.worlds.world import World
from trials import Curve, answered, conclude, cost, found, kept, nano, of_effort, opened, shares_of

STEPS = {64: 600, 128: 1000, 256: 300}  # of 2,048 tokens, the last of 4,096
MIXED = 300  # steps of 4,096 tokens on chats and needles
CHATS = 10_000  # of which a fifth are held out
ASKED = 3  # questions of a chat
KINDS = ("colour", "where", "count", "ground")
ANSWERED = 400  # chats that are asked


@dataclass(frozen=True)
class Settings:
    shares: tuple[float, ...] = (0.0, 0.5, 0.7, 0.9, 1.0)  # of chats in the rows; LWM's is 0.7
    effort: float = 1.0  # share of the steps that each training takes
    seeds: tuple[int, ...] = (0, 1)
    out: Path = Path("runs-out/claims/chat")


def chat(index: int) -> dict[str, list[dict[str, str | bool]]]:
    """A chat about a scene with one to three things, in the words that stand around questions for needles."""
    scene = World(0, "train", 1, 3).picture(index)
    spans: list[dict[str, str | bool]] = []
    for question in questions(Film((scene,)), index, ASKED, KINDS):
        asking = TURN if spans else BARE_PROMPT.replace("{context}", f"{caption(scene)}.")
        spans.append({"text": asking.format(question=question.text), "trained": False})
        spans.append({"text": question.answer, "trained": True})
    return {"spans": spans}


def chats(path: Path) -> JsonlConfig:
    """A file of chats, made where it is not."""
    if not path.exists():
        write_result(path, "".join(json.dumps(chat(index)) + "\n" for index in range(CHATS)))
    return JsonlConfig(str(path))


def mixed(base: LanguageRecipe, init: Path, share: float, asked: JsonlConfig, effort: float) -> LanguageRecipe:
    """On from the base: rows like those of its last stage, but so many of them of chats."""
    last = base.stages[-1]
    needles = [
        (s, documents * (s.length or last.sequence_length))
        for s, documents in last.sources
        if isinstance(s, NeedleSourceConfig)
    ]
    whole = sum(tokens for _, tokens in needles)
    sources: list[tuple[SourceConfig, float]] = [
        (source, (1 - share) * tokens / whole) for source, tokens in needles if share < 1
    ]
    if share > 0:
        sources.append((asked, share))
    stage = replace(
        last,
        name="mixed",
        steps=of_effort(MIXED, effort),
        sources=tuple(sources),
        mixing="rows",
        learning_rate=3e-3,
    )
    return replace(base, name="mixed", init=str(init), tokenizer=None, stages=(stage,))


def main(settings: Settings) -> None:
    use_cpu_devices(default_cpu_devices())
    asked = chats(settings.out / "chats.jsonl")
    rows = []
    for seed in settings.seeds:
        base, before = nano(STEPS, seed, settings.effort), settings.out / f"base-{seed}"
        train(base, before)
        runs = {"before": before} | {
            f"{share:.0%}": settings.out / f"chats-{share:g}-{seed}" for share in settings.shares
        }
        for share in settings.shares:
            train(mixed(base, before, share, asked, settings.effort), runs[f"{share:.0%}"])
        for arm, run in runs.items():
            right = kept(
                run / "answers.json", lambda run=run: {"chats": answered(opened(run), asked, "heldout", ANSWERED)}
            )
            rows.append({"seed": seed, "chats in the rows": arm} | cost(run) | found(run, (64, 256), (256,)) | right)
    curves = []
    for seed in settings.seeds:
        of_seed = [row for row in rows if row["seed"] == seed]
        mix = [row["chats in the rows"] for row in of_seed]
        curves += [
            Curve(asked_for, seed, mix, [row[asked_for] for row in of_seed]) for asked_for in shares_of(of_seed[0])
        ]
    conclude(settings.out, "chat", rows, curves, x="chats in the rows", y="right answers")


if __name__ == "__main__":
    main(tyro.cli(Settings))
