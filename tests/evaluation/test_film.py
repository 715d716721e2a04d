import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.asking import Footage, Turn
from ringworld.evaluation.film import FilmResult, Minutes, Scenes, Task, evaluate_film
from ringworld.worlds.language import KINDS_OF_QUESTIONS, questions
from ringworld.worlds.passing import KINDS_OF_PASSING, passing_film
from ringworld.worlds.reader import read
from ringworld.worlds.world import World

TASK = Scenes(frames=40, scene=(8, 8))


@dataclass
class Viewer:
    """Knows which ground there is at a moment, by looking, and nothing else."""

    fingerprint: str = "viewer"
    context_length: int = 1000
    frame_size: int = 32
    tokens_per_frame: int = 10
    calls: list[list[tuple[tuple[str | Footage, ...], str]]] = field(default_factory=list)

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        asked = [(tuple(turn["content"][:-1]), str(turn["content"][-1])) for (turn,) in conversations]
        self.calls.append(asked)
        return [self._answer(footage, question) for footage, question in asked]

    def _answer(self, footage: Sequence[str | Footage], question: str) -> str:
        found = re.fullmatch(r" Which ground is there at (\d+):(\d\d)\?", question)
        if found is None:
            return "no idea"
        frames = [frame for part in footage if not isinstance(part, str) for frame in part]
        return f" The {read(frames[60 * int(found[1]) + int(found[2])]).ground.upper()}. "


def run(out: Path, model: Viewer | None = None, task: Task = TASK, **changes: Any) -> FilmResult:
    settings: dict[str, Any] = {"films": 3, "asked": 10, "console": Console(quiet=True)}
    return evaluate_film(model or Viewer(), out, task, **(settings | changes))


def test_all_kinds_of_questions_are_marked_seen_beside_held_out(tmp_path: Path) -> None:
    result = run(tmp_path)
    assert all(answer.correct == (answer.kind == "ground") for answer in result.answers)
    content = json.loads((tmp_path / "film.json").read_text())
    for part in ("seen", "held out"):
        summary = content["summary"][part]
        assert (summary["films"], summary["questions"]) == (3, 30)
        assert {"what", "colour", "count", "where", "ground", "motion"} <= set(summary["by_kind"])
        assert summary["by_kind"]["ground"]["accuracy"] == 1.0
    first = content["cases"][0]
    assert list(first) == ["part", "film", "number", "kind", "question", "expected", "answer", "correct"]
    assert content["settings"]["scene"] == [8, 8]
    lines = [line.split() for line in str(result).splitlines()]
    assert lines[:3] == [["seen", "held", "out"], ["films", "3", "3"], ["questions", "30", "30"]]
    assert ["ground", "100.0%", "100.0%"] in lines
    assert ["what", "0.0%", "0.0%"] in lines


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_what_is_asked_is_what_the_film_shows(part: str) -> None:
    task = Scenes(frames=40, scene=(8, 8), things=(1, 2), every=4, seed=5)
    film = World(5, part, 1, 2).film(2, 40, (8, 8))
    asked = task.about(part, 2, 8, 32)
    expected = questions(film, 2, 8, step=4)
    assert [(one.kind, one.text, one.expected) for one in asked] == [(q.kind, q.text, q.answer) for q in expected]
    (turn,) = asked[0].conversation()
    *shown, question = turn["content"]
    assert question == f" {asked[0].text}"
    assert [part for part in shown if isinstance(part, str)] == [f" 0:{second:02}" for second in range(0, 40, 4)]
    frames = [frame for part in shown if not isinstance(part, str) for frame in part]
    np.testing.assert_array_equal(frames, [*film.frames(32)])


def test_what_is_asked_of_minutes_is_what_training_asks() -> None:
    task = Minutes(3, 6, kinds=("first", "what"), seed=5, heldout="place")
    film = passing_film(World(5, "heldout", heldout="place"), 2, 3)
    asked = task.about("heldout", 2, 5, 32)
    assert [one.kind for one in asked] == ["what", "first", "what", "first", "what"]
    assert len({one.text for one in asked}) == 5
    (turn,) = asked[0].conversation()
    *shown, question = turn["content"]
    assert question == f" {asked[0].text}"
    assert [part for part in shown if isinstance(part, str)] == [f" {minute.time}" for minute in film]
    assert isinstance(shown[-1], str)  # the time stands behind its minute
    frames = [frame for part in shown if not isinstance(part, str) for frame in part]
    moments = [minute.scene.frame(seconds, 32) for minute in film for seconds in minute.moments(2)]
    np.testing.assert_array_equal(frames, moments)
    (time,) = re.findall(r"at (\S+)\?", asked[0].text)
    (thing,) = [minute.thing for minute in film if minute.time == time]
    assert asked[0].expected == f"{time} {thing}."


def test_within_a_minute_the_time_stands_as_often_as_one_likes() -> None:
    film = passing_film(World(), 0, 3)
    (turn,) = Minutes(3, 12, every=2).about("train", 0, 1, 32)[0].conversation()
    *shown, _ = turn["content"]
    assert [part for part in shown if isinstance(part, str)] == [f" {m.time}" for m in film for _ in range(2)]
    assert [len([*part]) for part in shown if not isinstance(part, str)] == [2] * 6


def test_films_of_minutes_are_evaluated_like_the_others(tmp_path: Path) -> None:
    result = run(tmp_path, task=Minutes(3, 3), films=2, asked=None)
    assert len(result.answers) == 2 * 2 * len(KINDS_OF_PASSING)
    assert result.settings["minutes"] == 3


def test_a_film_is_asked_about_at_once_and_shown_by_the_same_footage(tmp_path: Path) -> None:
    model = Viewer()
    run(tmp_path, model, batch_tokens=1, asked=4)
    assert [len(call) for call in model.calls] == [4] * 6
    for call in model.calls:
        assert len({footage for footage, _ in call}) == 1
    assert len({footage for call in model.calls for footage, _ in call}) == 6
    model = Viewer()
    run(tmp_path / "wide", model, batch_tokens=10**6, asked=4)
    assert [len(call) for call in model.calls] == [24]


def test_a_stopped_evaluation_goes_on_and_can_be_extended(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")

    class Killed(Exception):
        pass

    class Dying(Viewer):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            if len(self.calls) == 2:
                raise Killed
            return super().answer(conversations, max_tokens)

    with pytest.raises(Killed):
        run(tmp_path / "cut", Dying(), batch_tokens=1)
    model = Viewer()
    assert run(tmp_path / "cut", model) == whole
    assert sum(map(len, model.calls)) == 40
    assert (tmp_path / "cut" / "film.json").read_bytes() == (tmp_path / "whole" / "film.json").read_bytes()
    model = Viewer()
    extended = run(tmp_path / "cut", model, films=4, asked=12)
    assert sum(map(len, model.calls)) == len(extended.answers) - 60
    assert set(whole.answers) < set(extended.answers)


def test_some_kinds_alone(tmp_path: Path) -> None:
    result = run(tmp_path, task=Scenes(frames=200, kinds=("passed", "motion")), films=4, asked=None)
    assert {answer.kind for answer in result.answers} == {"passed", "motion"}
    assert len(result.answers) == 2 * 4 * 2
    (tmp_path / "film.json").unlink()
    assert len(run(tmp_path, films=1, asked=None).answers) == 2 * len(KINDS_OF_QUESTIONS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": Viewer("other")}, "model viewer there, other now"),
        ({"task": Scenes(frames=41, scene=(8, 8))}, "frames 40 there, 41 now"),
        ({"films": 0}, "films and asked must be 1 or more, got 0 and 10"),
        ({"asked": 0}, "films and asked must be 1 or more, got 3 and 0"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    run(tmp_path, films=1, asked=1)
    with pytest.raises(UserError, match=said):
        run(tmp_path, **changes)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"frames": 0}, "a film has 1 frame or more, .* got 0 frames"),
        ({"every": -1}, "got 64 frames and the time every -1"),
        ({"scene": (0, 3)}, "got 0 to 3 seconds and 1 to 3 things"),
        ({"scene": (5, 3)}, "the smaller number first"),
        ({"things": (1, 5)}, "1 to 5 things"),
        ({"kinds": ("what", "why")}, "there are no questions of the kind 'why': take what, colour"),
    ],
)
def test_a_task_that_is_none(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Scenes(**settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minutes": 61}, "1 to 60 minutes, .* got 61"),
        ({"minutes": 1}, "2 or more where it is asked what came first; got 1"),
        ({"minutes": 7, "frames": 64}, "a multiple of 7 of them; got 64"),
        ({"minutes": 2, "frames": 64, "every": -1}, "behind the last; got -1"),
        ({"kinds": ("what", "why")}, "there are no questions of the kind 'why': take what, when, where, way, first"),
    ],
)
def test_minutes_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Minutes(**settings)


def test_films_without_an_answer(tmp_path: Path) -> None:
    task = Scenes(frames=2, things=(1, 1), kinds=("passed",))
    with pytest.raises(UserError, match="these 3 films of 2 frames have no answer to questions of the kinds passed"):
        run(tmp_path, task=task)


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "film.json").write_text('{"settings": {}, "summary": {}, "cases": [{"part": "train"}]}')
    with pytest.raises(UserError, match="does not hold answers about films"):
        run(tmp_path)
