"""What a model draws of the shapes world: captions go in, or a film's first frames, and a reader that has no part in it
says what is right (`scores`). What is "held out" has combinations that training never shows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.files import earlier_cases, write_cases, write_result
from ringworld.evaluation.parts import NAMES, side_by_side
from ringworld.evaluation.scores import WHATS, Score, What, own_frames, readable_scenes, score
from ringworld.evaluation.sheets import Tile, contact_sheet
from ringworld.generation.drawing import Brush
from ringworld.progress import progress_bar
from ringworld.tokens.images import read_image, to_png
from ringworld.worlds.film import Scene
from ringworld.worlds.language import caption
from ringworld.worlds.world import HeldOut, Part, World

_SHEET = 32  # drawings of a part on a contact sheet, a film's frames counted


@runtime_checkable
class Draws(Protocol):
    """Who can be asked for pictures and films. `fingerprint` tells this model from others, and `frame_size` is the side
    of its frames, in pixels."""

    @property
    def fingerprint(self) -> str: ...

    @property
    def frame_size(self) -> int: ...

    def draw(self, prompts: Sequence[str], frames: int, brush: Brush) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """So many frames of each thing asked for: a picture, or a film at one frame a second.

        Args:
            prompts: what is to be seen, in the words of captions alone: how a model is asked is its own matter.
        """
        ...

    def go_on(
        self, films: UInt8[np.ndarray, "B given H W 3"], frames: int, brush: Brush
    ) -> list[UInt8[np.ndarray, "F H W 3"]]:
        """Whole films of so many frames, one a second, of which the first are given, and no words."""
        ...


@dataclass(frozen=True)
class Drawing:
    """A drawing's caption and score, with the guidance that it was made with. `part` and `index` are those of the
    world's picture or scene.
    """

    guidance: float
    part: Part
    index: int
    caption: str
    score: Score

    @property
    def right(self) -> bool:
        return all(self.score.values())

    @property
    def file(self) -> str:
        """Where it lies in the evaluation's folder."""
        return f"guidance-{_short(self.guidance)}/{NAMES[self.part].replace(' ', '-')}-{self.index:04}.png"

    def to_dict(self) -> dict[str, Any]:
        """A record of the result's file."""
        about = {"guidance": self.guidance, "part": self.part, "index": self.index, "caption": self.caption}
        return about | self.score

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Drawing":
        score: Score = {what: record[what] for what in WHATS if what in record}
        return cls(record["guidance"], record["part"], record["index"], record["caption"], score)


@dataclass(frozen=True)
class DrawnResult:
    """The scores of drawings, and under which settings they were made."""

    settings: dict[str, Any]
    drawings: tuple[Drawing, ...]

    @property
    def guidances(self) -> list[float]:
        return sorted({drawing.guidance for drawing in self.drawings})

    @property
    def best(self) -> float:
        """The guidance with which most of the seen drawings are right in everything, the smaller of two. The share of
        the held-out ones with it is then of drawings that did not choose it.
        """
        return max(self.guidances, key=lambda guidance: (self.share(guidance, "train", "all") or 0.0, -guidance))

    def of(self, guidance: float, part: Part) -> list[Drawing]:
        """The drawings of a guidance and a part."""
        return [drawing for drawing in self.drawings if (drawing.guidance, drawing.part) == (guidance, part)]

    def share(self, guidance: float, part: Part, what: What | Literal["all"]) -> float | None:
        """How many drawings are right in something, 0 to 1; None: none could be. "all": in everything."""
        drawn = self.of(guidance, part)
        marks = [d.right for d in drawn] if what == "all" else [d.score[what] for d in drawn if what in d.score]
        return float(np.mean(marks)) if marks else None

    def summary(self) -> dict[str, Any]:
        """The best guidance; and by guidance and part how many drawings there are, and the shares that are right in
        everything, and by what.
        """
        by_guidance: dict[str, dict[str, Any]] = {}
        for guidance, name, shares in self._columns():
            by_guidance.setdefault(_short(guidance), {})[name] = shares
        return {"best_guidance": self.best, "by_guidance": by_guidance}

    def __str__(self) -> str:
        """A table: what is right, in % of the drawings, seen beside held out, one guidance beside the other."""
        return side_by_side({f"guidance {_short(g)}\n{name}": shares for g, name, shares in self._columns()})

    def _columns(self) -> Iterator[tuple[float, str, dict[str, float | int]]]:
        for guidance, (part, name) in product(self.guidances, NAMES.items()):
            if drawn := self.of(guidance, part):
                shares = {what: self.share(guidance, part, what) for what in ("all", *WHATS)}
                known = {what: share for what, share in shares.items() if share is not None}
                yield guidance, name, {"drawings": len(drawn), **known}


def results_name(frames: int, given: int = 0) -> str:
    """What the names of an evaluation's files begin with: "generation", "generation-film", "generation-film-given3"."""
    return ("generation" if frames == 1 else "generation-film") + (f"-given{given}" if given else "")


def evaluate_drawn(
    model: Draws,
    out: Path,
    *,
    count: int = 64,
    frames: int = 1,
    given: int = 0,
    things: tuple[int, int] = (1, 1),
    guidance: Sequence[float] = (1.0,),
    temperature: float = 1.0,
    seed: int = 0,
    heldout: HeldOut = "ground",
    batch: int = 16,
    console: Console | None = None,
) -> DrawnResult:
    """Lets a model draw captions, or go on with films, and writes `generation.json` into the folder `out`; for each
    guidance a contact sheet `generation-<guidance>.png`; and the drawings themselves, a film's frames side by side,
    into `out/generation`. Of films the names begin as `results_name` says.

    The JSON is written anew after each batch, atomically. Where it is there already, its captions are not drawn again:
    an evaluation that was stopped goes on, and can be extended, by more captions or another guidance.

    Args:
        count: captions that are like those trained on, and as many that are held out.
        frames: 1 is a picture, more a film at one frame a second.
        given: so many frames of the scene itself begin the film, 2 or more, and no words are said: how it goes on must
            be seen from them (see `score_continuation` and `readable_scenes`). 0: the film is drawn from its caption.
        things: in each, from so many to so many, 1 to 4.
        guidance: of which each draws the same captions,
        temperature: see `Brush`.
        seed: of the world and of the drawing.
        heldout: what the world holds out, things on grounds or at places: what it held out in training.
        batch: captions that are drawn at once.
        console: where the progress is shown; standard error by default.

    Returns:
        All drawings in the file, of earlier runs too.

    Raises:
        UserError: an impossible setting, or results of another model or of other settings in `out`.
    """
    if min(count, frames, batch, len(guidance)) < 1 or not 1 <= things[0] <= things[1] <= 4:
        raise UserError(
            "count, frames and batch must be 1 or more, guidance at least one number, and things from 1 to 4, got "
            f"{count}, {frames}, {batch}, {[*guidance]} and {things[0]} to {things[1]}"
        )
    if given and not 2 <= given < frames:
        raise UserError(
            f"given must be 0, or at least 2, as one frame shows no motion, and smaller than frames, got {given} of "
            f"{frames}"
        )
    if given and {*guidance} != {1}:
        raise UserError(f"guidance follows words, and where frames are given none are said: take 1, got {[*guidance]}")
    name = results_name(frames, given)
    settings = {
        "frames": frames,
        "things": list(things),
        "temperature": temperature,
        "seed": seed,
        "heldout": heldout,
        "model": model.fingerprint,
    } | ({"given": given} if given else {})  # without it, as there was none: results from before go on
    path = out / f"{name}.json"
    drawings = [*earlier_cases(path, settings, Drawing.from_dict, "drawings")]
    done = {(drawing.guidance, drawing.part, drawing.index) for drawing in drawings}
    wanted = {
        part: [*islice(readable_scenes(World(seed, part, *things, heldout=heldout), frames, given), count)]
        for part in NAMES
    }
    scales = sorted(set(map(float, guidance)))
    with progress_bar(console) as progress:
        bar = progress.add_task(name, total=2 * count * len(scales), note="")
        for scale, part in product(scales, NAMES):
            waiting = [(index, scene) for index, scene in wanted[part] if (scale, part, index) not in done]
            progress.advance(bar, count - len(waiting))
            for some in (waiting[first : first + batch] for first in range(0, len(waiting), batch)):
                brush = Brush(temperature=temperature, guidance=scale, seed=seed + some[0][0])
                films = _drawn(model, [scene for _, scene in some], frames, given, brush)
                for (index, scene), film in zip(some, films, strict=True):
                    marks = score(film, scene, given)
                    drawings.append(drawing := Drawing(scale, part, index, caption(scene), marks))
                    write_result(out / name / drawing.file, to_png(np.concatenate([*film], axis=1)))
                drawings.sort(key=lambda d: (d.guidance, [*NAMES].index(d.part), d.index))
                result = DrawnResult(settings, tuple(drawings))
                write_cases(path, settings, result.summary(), [drawing.to_dict() for drawing in drawings])
                note = f"guidance {_short(scale)}, {NAMES[part]}: {result.share(scale, part, 'all'):.0%} right"
                progress.update(bar, advance=len(some), note=note)
    result = DrawnResult(settings, tuple(drawings))
    for scale in scales:
        sheet = contact_sheet(_sections(result, scale, out / name))
        write_result(out / f"{name}-{_short(scale)}.png", to_png(sheet))
    return result


def _drawn(
    model: Draws, scenes: Sequence[Scene], frames: int, given: int, brush: Brush
) -> list[UInt8[np.ndarray, "F H W 3"]]:
    """What a model draws of scenes, from their captions or from so many of their frames."""
    if not given:
        return model.draw([caption(scene) for scene in scenes], frames, brush)
    return model.go_on(np.stack([own_frames(scene, given, model.frame_size) for scene in scenes]), frames, brush)


def _short(guidance: float) -> str:
    """2.0 -> "2"."""
    return str(guidance).removesuffix(".0")


def _sections(result: DrawnResult, guidance: float, folder: Path) -> Iterator[tuple[str, list[Tile]]]:
    """For the contact sheet: a heading and the first drawings of each part, as they are on the disk."""
    frames, given = result.settings["frames"], result.settings.get("given", 0)
    how = f"the {given} underlined frames given" if given else f"guidance {_short(guidance)}"
    for part, name in NAMES.items():
        chosen = result.of(guidance, part)
        right = sum(drawing.right for drawing in chosen)
        tiles = []
        for drawing in chosen[: max(1, _SHEET // frames)]:
            film = np.stack(np.split(read_image(folder / drawing.file), frames, axis=1))
            wrong = [what for what, mark in drawing.score.items() if not mark]
            tiles.append(Tile(film, drawing.caption, wrong, given))
        yield f"{how}, {name}: {right} of {len(chosen)} right", tiles
