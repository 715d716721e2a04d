import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ringworld.data.worlds import WHAT_HAPPENS, WHAT_IS_SEEN
from ringworld.errors import UserError
from ringworld.evaluation.asking import Footage, Piece, Turn
from ringworld.evaluation.captions import CaptionsResult, evaluate_captions, score_description
from ringworld.worlds.film import Act, Scene
from ringworld.worlds.language import caption
from ringworld.worlds.shapes import Thing, place
from ringworld.worlds.world import World, is_new_at

RING = Act(Thing("small", "red", "ring"), 0.25, 0.25, 0.0, 0.0, 0.0, 8.0)
CROSS = Act(Thing("large", "blue", "cross"), 0.75, 0.625, 0.0, -0.125, 0.0, 8.0)
PASSING = Act(Thing("small", "green", "square"), -0.125, 0.5, 0.3, 0.0, 2.0, 6.0, passes=True)
TWO = Scene("sand", (RING, CROSS), 0.0)
FILM = Scene("sand", (RING, CROSS, PASSING), 8.0)
OF_THINGS = {"colour", "kind", "size", "place"}


def wrong(words: str, scene: Scene) -> set[str]:
    return {what for what, right in score_description(words, scene).items() if not right}


@pytest.mark.parametrize(
    ("words", "mistakes"),
    [
        (caption(TWO), set()),
        (f" {caption(TWO).upper()}. ", set()),
        ("a large blue cross at the right and a small red ring at the top left on a sand ground", set()),
        ("a small red ring at the top left and a large blue cross at the right on a sky ground", {"all", "ground"}),
        ("a small red ring at the left and a large blue cross at the right on a sand ground", {"all", "place"}),
        ("a large red ring at the top left and a large blue cross at the right on a sand ground", {"all", "size"}),
        ("a red ring at the top left and a blue cross at the right on a sand ground", {"all", "size"}),
        ("a small blue ring at the top left and a large red cross at the right on a sand ground", {"all", "colour"}),
        ("a small red cross at the top left and a large blue ring at the right on a sand ground", {"all", "kind"}),
        ("a small red ring at the top left on a sand ground", {"all", "count", *OF_THINGS}),
        (f"{caption(TWO)} and a small green square", {"all", "count"}),
        (f"I see {caption(TWO)}", {"all"}),
        ("on a sand ground", {"all", "count", *OF_THINGS}),
        ("", {"all", "ground", "count", *OF_THINGS}),
    ],
)
def test_every_mistake_in_a_description_is_seen(words: str, mistakes: set[str]) -> None:
    assert wrong(words, TWO) == mistakes


@pytest.mark.parametrize(
    ("said", "instead", "mistakes"),
    [
        ("stays", "stays", set()),
        ("stays", "moves left", {"motion"}),
        ("stays at", "at", {"motion"}),
        ("moves up from", "moves down from", {"motion"}),
        ("moves up from", "stays at", {"motion"}),
        ("passes right", "moves right", {"motion"}),
        ("passes right", "passes right at the left", {"place"}),
        ("passes right", "passes left", {"motion"}),
    ],
)
def test_of_a_film_it_is_said_how_things_move(said: str, instead: str, mistakes: set[str]) -> None:
    words = caption(FILM)
    assert said in words
    assert wrong(words.replace(said, instead), FILM) == mistakes | ({"all"} if mistakes else set())
    assert "motion" not in score_description(caption(TWO), TWO)


@dataclass
class Witness:
    """Tells what it is shown, in its own way."""

    fingerprint: str = "witness"
    tell: Callable[[str], str] = str
    context_length: int = 1000
    frame_size: int = 16
    tokens_per_frame: int = 10
    calls: list[list[list[str | Footage]]] = field(default_factory=list)

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        asked = [turn["content"] for (turn,) in conversations]
        self.calls.append(asked)
        scenes = [film.film for film, _ in asked if isinstance(film, Piece)]
        return [self.tell(f" {caption(scene)}.") for scene in scenes if isinstance(scene, Scene)]


def run(out: Path, model: Witness | None = None, **changes: Any) -> CaptionsResult:
    settings: dict[str, Any] = {"count": 5, "console": Console(quiet=True)}
    return evaluate_captions(model or Witness(), out, **(settings | changes))


@pytest.mark.parametrize(("frames", "question"), [(1, WHAT_IS_SEEN), (6, WHAT_HAPPENS)])
def test_what_is_shown_is_described_seen_beside_held_out(tmp_path: Path, frames: int, question: str) -> None:
    model = Witness()
    result = run(tmp_path, model, frames=frames)
    content = json.loads((tmp_path / ("captions.json" if frames == 1 else "captions-film.json")).read_text())
    whats = ["all", "ground", "count", "colour", "kind", "size", "place", *(["motion"] if frames > 1 else [])]
    shares = {"pictures" if frames == 1 else "films": 5, **dict.fromkeys(whats, 1.0)}
    assert content["summary"] == {"seen": shares, "held out": shares}
    assert list(content["cases"][0]) == ["part", "index", "caption", "answer", *whats]
    assert len(content["cases"]) == len(result.descriptions) == 10
    assert str(result).split()[:6] == ["seen", "held", "out", next(iter(shares)), "5", "5"]
    ((first, *_),) = model.calls
    assert first[1:] == [f" {question}"]
    scene = World(0, "train", 1, 1).picture(0) if frames == 1 else World(0, "train", 1, 1).scene(0, frames)
    np.testing.assert_array_equal([*first[0]], [scene.frame(number, 16) for number in range(frames)])


def test_what_is_told_wrongly_is_told_in_the_table(tmp_path: Path) -> None:
    result = run(tmp_path, Witness(tell=lambda words: words.replace("small", "large")))
    lines = {line.split()[0]: line.split()[1:] for line in str(result).splitlines()[1:]}
    assert lines["size"] == lines["all"] != ["100.0%", "100.0%"]
    assert lines["colour"] == lines["ground"] == ["100.0%", "100.0%"]
    answers = {one.answer for one in result.descriptions}
    assert all(answer == answer.strip() and "small" not in answer for answer in answers)


def test_what_is_held_out_can_be_things_at_places(tmp_path: Path) -> None:
    for one in run(tmp_path, heldout="place").descriptions:
        act = World(0, one.part, 1, 1, heldout="place").picture(one.index).acts[0]
        assert is_new_at(act.thing, place(act.x, act.y)) == (one.part == "heldout")
        assert place(act.x, act.y) in one.caption
    with pytest.raises(UserError, match="heldout place there, ground now"):
        run(tmp_path)


def test_films_that_do_not_show_what_their_captions_say_are_left_out(tmp_path: Path) -> None:
    result = run(tmp_path, count=3, frames=4, things=(2, 3))
    assert result.summary()["seen"]["films"] == 3
    for part in ("train", "heldout"):
        numbers = [one.index for one in result.descriptions if one.part == part]
        assert len(numbers) == 3 < max(numbers) + 1
        for number in numbers:
            scene = World(0, part, 2, 3).scene(number, 4)
            for act in scene.acts:
                seen = [one for second in range(4) for one in scene.at(second) if one.thing == act.thing]
                assert len(seen) > 1
                assert np.sign(seen[1].x - seen[0].x) == np.sign(act.dx)
                assert np.sign(seen[1].y - seen[0].y) == np.sign(act.dy)


def test_a_stopped_evaluation_goes_on_and_can_be_extended(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    class Dying(Witness):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            if len(self.calls) == 2:
                raise Killed
            return super().answer(conversations, max_tokens)

    room = 3 * (10 + 64)  # of three pictures and their questions
    with pytest.raises(Killed):
        run(tmp_path / "cut", Dying(), batch_tokens=room)
    model = Witness()
    assert run(tmp_path / "cut", model, batch_tokens=room) == whole
    assert [len(call) for call in model.calls] == [3, 1]
    assert (tmp_path / "cut/captions.json").read_bytes() == (tmp_path / "whole/captions.json").read_bytes()
    model = Witness()
    extended = run(tmp_path / "cut", model, count=7)
    assert len(extended.descriptions) == 14
    assert all(one in extended.descriptions for one in whole.descriptions)
    assert [len(call) for call in model.calls] == [4]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Witness("other")}, "model witness there, other now"),
        ({"things": (1, 2)}, r"things \[1, 1\] there, \[1, 2\] now"),
        ({"count": 0}, "count and frames must be 1 or more, .* got 0, 1 and 1 to 1"),
        ({"frames": 0}, "count and frames must be 1 or more, .* got 1, 0 and 1 to 1"),
        ({"things": (0, 2)}, "things from 1 to 4, .* 0 to 2"),
        ({"things": (2, 1)}, "the smaller number first; .* 2 to 1"),
        ({"things": (1, 5)}, "things from 1 to 4, .* 1 to 5"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    run(tmp_path, count=1)
    with pytest.raises(UserError, match=said):
        run(tmp_path, **({"count": 1} | changes))


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "captions.json").write_text('{"settings": {}, "summary": {}, "cases": [{"part": "train"}]}')
    with pytest.raises(UserError, match="does not hold descriptions"):
        run(tmp_path)
