"""What a model says that it sees in the shapes world: pictures and films go in, and its words are compared with the
caption.

A description is right as a whole, in its ground and count, and in its things' colours, kinds, sizes and places, of a
film also in their motion. "held out" scenes have combinations that training never shows.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, permutations
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.asking import QUESTION_TOKENS, Answers, asked_to_describe, called, together
from ringworld.evaluation.files import earlier_cases, write_cases
from ringworld.evaluation.parts import NAMES, side_by_side
from ringworld.evaluation.questions import normalise
from ringworld.evaluation.scores import moving_as_said, paired, readable_scenes
from ringworld.progress import progress_bar
from ringworld.worlds.captions import Said, read_caption
from ringworld.worlds.film import Scene
from ringworld.worlds.language import caption
from ringworld.worlds.world import HeldOut, Part, World

What = Literal["all", "ground", "count", "colour", "kind", "size", "place", "motion"]
Score = dict[What, bool]
_MAX_TOKENS = 64  # of what is said of one thing


def score_description(words: str, scene: Scene) -> Score:
    """What of a description is as the caption of a scene says.

    - `all`: after `normalise` it is the caption, word for word. Its things may stand in any order: nothing in a scene
      says which comes first.
    - `ground`; `count`: it names as many things as there are.
    - `colour`, `kind`, `size`, `place`, and of a film `motion`: right of every thing that there is. One that passes has
      no place.
    """
    wanted, heard = read_caption(caption(scene)), read_caption(words)
    captions = (caption(replace(scene, acts=acts)) for acts in permutations(scene.acts))
    pairs = paired(wanted.things, heard.things, _likeness)
    parts: tuple[What, ...] = ("colour", "kind", "size", "place", *(("motion",) if scene.seconds > 0 else ()))
    as_a_whole: Score = {
        "all": normalise(words) in map(normalise, captions),
        "ground": heard.ground == wanted.ground,
        "count": len(heard.things) == len(wanted.things),
    }
    of_things: Score = {
        part: all(said is not None and getattr(said, part) == getattr(thing, part) for thing, said in pairs)
        for part in parts
    }
    return as_a_whole | of_things


def _likeness(thing: Said, said: Said) -> int:
    """In how much they are the same."""
    return sum(one == other for one, other in zip(vars(thing).values(), vars(said).values(), strict=True))


@dataclass(frozen=True)
class Description:
    """What was said of a picture or scene of the world, by part and number; its caption; and what of it is right."""

    part: Part
    index: int
    caption: str
    answer: str
    score: Score

    def to_dict(self) -> dict[str, Any]:
        """A record of the result's file."""
        return {"part": self.part, "index": self.index, "caption": self.caption, "answer": self.answer} | self.score

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> "Description":
        score: Score = {what: record[what] for what in get_args(What) if what in record}
        return cls(record["part"], record["index"], record["caption"], record["answer"], score)


@dataclass(frozen=True)
class CaptionsResult:
    """The descriptions of pictures or films, and under which settings they were given."""

    settings: dict[str, Any]
    descriptions: tuple[Description, ...]

    def summary(self) -> dict[str, dict[str, float | int]]:
        """By part: how many pictures or films there are, and of which share the description is right, as a whole and by
        what.
        """
        found: dict[str, dict[str, float | int]] = {}
        for part, name in NAMES.items():
            if scores := [one.score for one in self.descriptions if one.part == part]:
                shares = {what: float(np.mean([score[what] for score in scores])) for what in scores[0]}
                found[name] = {called(self.settings["frames"]): len(scores), **shares}
        return found

    def __str__(self) -> str:
        """A table: what is right, in % of the descriptions, seen beside held out."""
        return side_by_side(self.summary())


def evaluate_captions(
    model: Answers,
    out: Path,
    *,
    count: int = 64,
    frames: int = 1,
    things: tuple[int, int] = (1, 1),
    seed: int = 0,
    heldout: HeldOut = "ground",
    batch_tokens: int = 32768,
    console: Console | None = None,
) -> CaptionsResult:
    """Shows a model pictures or films, asks for a description in the words of training, and writes `captions.json` into
    the folder `out`; of films `captions-film.json`.

    The JSON is written anew after each batch, atomically; where it is there already, its descriptions are not asked for
    again: an evaluation that was stopped goes on, and can be extended.

    Args:
        count: pictures or films that are like those trained on, and as many with what is held out.
        frames: 1 is a picture, more a film at one frame a second.
        things: in each, from so many to so many, 1 to 4.
        seed: of the world.
        heldout: what the world holds out, things on grounds or at places: what it held out in training.
        batch_tokens: tokens of questions and frames that are asked together, unless one film's come to more.
        console: where the progress is shown; standard error by default.

    Returns:
        All descriptions in the file, of earlier runs too.

    Raises:
        UserError: an impossible setting, or results of another model or of other settings in `out`.
    """
    if min(count, frames) < 1 or not 1 <= things[0] <= things[1] <= 4:
        raise UserError(
            "count and frames must be 1 or more, and things from 1 to 4, the smaller number first; got "
            f"{count}, {frames} and {things[0]} to {things[1]}"
        )
    settings = {
        "frames": frames,
        "things": list(things),
        "seed": seed,
        "heldout": heldout,
        "model": model.fingerprint,
    }
    path = out / ("captions.json" if frames == 1 else "captions-film.json")
    descriptions = [*earlier_cases(path, settings, Description.from_dict, "descriptions")]
    done = {(one.part, one.index) for one in descriptions}
    waiting: list[tuple[Part, int, Scene]] = [
        (part, index, scene)
        for part in NAMES
        for index, scene in islice(_scenes(World(seed, part, *things, heldout=heldout), frames), count)
        if (part, index) not in done
    ]
    each = frames * model.tokens_per_frame + QUESTION_TOKENS
    with progress_bar(console) as progress:
        bar = progress.add_task(called(frames), total=2 * count, completed=2 * count - len(waiting), note="")
        for batch in together((([one], each) for one in waiting), batch_tokens):
            asked = [asked_to_describe(scene, frames, model.frame_size) for _, _, scene in batch]
            answers = model.answer(asked, _MAX_TOKENS * things[1])
            for (part, index, scene), words in zip(batch, answers, strict=True):
                score = score_description(words, scene)
                descriptions.append(Description(part, index, caption(scene), words.strip(), score))
            descriptions.sort(key=lambda one: ([*NAMES].index(one.part), one.index))
            summary = CaptionsResult(settings, tuple(descriptions)).summary()
            write_cases(path, settings, summary, [one.to_dict() for one in descriptions])
            note = ", ".join(f"{name} {shares['all']:.0%}" for name, shares in summary.items())
            progress.update(bar, advance=len(batch), note=f"{note} right")
    return CaptionsResult(settings, tuple(descriptions))


def _scenes(world: World, frames: int) -> Iterator[tuple[int, Scene]]:
    """The readable scenes of a world by number, of films those whose frames show how everything in them moves."""
    for index, scene in readable_scenes(world, frames):
        if frames == 1 or len(moving_as_said(scene, frames)) == len(scene.acts):
            yield index, scene
