import json
import re
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.asking import Turn
from ringworld.evaluation.needle import Case
from ringworld.evaluation.video_needle import (
    Example,
    Form,
    Task,
    VideoNeedleResult,
    build_example,
    evaluate_video_needle,
)
from ringworld.worlds.reader import read
from ringworld.worlds.shapes import GROUNDS, place
from ringworld.worlds.world import is_new, is_new_at

FORMS = get_args(Form)
SIZE = 32


def grounds(example: Example) -> list[str]:
    """Which ground each frame shows, as the commonest colour of its pixels."""
    names = {colour: name for name, colour in GROUNDS.items()}
    found = []
    for number in range(example.frames):
        pixels = example.frame(number, SIZE).reshape(-1, 3)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        ranked = [tuple(colours[index].tolist()) for index in np.argsort(-counts)]
        found.append(next(names[colour] for colour in ranked if colour in names))
    return found


CASES = st.builds(Case, st.integers(120, 150), st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(0, 5))
TASKS = st.builds(
    Task,
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 9),
    part=st.sampled_from(["train", "heldout"]),
    every=st.sampled_from([0, 7, 60, 500]),
)


@settings(max_examples=8, deadline=None)
@given(TASKS, CASES)
def test_what_is_hidden_is_on_a_ground_of_its_own(task, case):
    example = build_example(task, case)
    shown = grounds(example)
    assert len(shown) == case.length
    for hidden in example.hidden:
        places = [number for number, ground in enumerate(shown) if ground == hidden.scene.ground]
        assert places == [*range(hidden.start, hidden.start + hidden.frames)]
        thing = hidden.scene.acts[0].thing
        assert is_new(thing, hidden.scene.ground) == (task.part == "heldout")
        assert hidden.scene.ground in example.question
    count = sum(hidden.frames for hidden in example.hidden)
    assert count == {"picture": 1, "clip": 4, "order": 2, "when": 1}[task.form]
    # At the case's depth, but for another that stands before it.
    wanted = round(case.depth * (case.length - count))
    assert any(hidden.start in (wanted, wanted + 1) for hidden in example.hidden)


@settings(max_examples=6, deadline=None)
@given(TASKS, CASES)
def test_a_conversation_shows_every_frame_once_and_asks_last(task, case):
    example = build_example(task, case)
    (turn,) = example.conversation(16, task.every)
    *film, question = turn["content"]
    assert question == f" {example.question}"
    frames = [frame for part in film if not isinstance(part, str) for frame in part]
    np.testing.assert_array_equal(frames, [example.frame(number, 16) for number in range(case.length)])
    clocks = [part for part in film if isinstance(part, str)]
    times = range(0, case.length, task.every) if task.every else ()
    assert clocks == [f" {time // 60}:{time % 60:02}" for time in times]
    hidden = {number for one in example.hidden for number in range(one.start, one.start + one.frames)}
    rest = [frame for number, frame in enumerate(frames) if number not in hidden]
    whole = [frame for frame, _ in zip(example.hay.frames(16), rest, strict=False)]
    np.testing.assert_array_equal(rest, whole)  # nothing of the film around it is lost or seen twice
    again = [frame for part in film if not isinstance(part, str) for frame in part]
    np.testing.assert_array_equal(frames, again)


def test_a_case_depends_on_its_task_and_itself_alone():
    def content(task: Task, case: Case) -> tuple[str, str, list[str]]:
        example = build_example(task, case)
        return example.question, example.expected, grounds(example)

    one = content(Task(), Case(120, 0.5, 0))
    assert content(Task(), Case(120, 0.5, 0)) == one
    others = [(Task(), Case(120, 0.5, 1)), (Task(), Case(120, 0.25, 0)), (Task(seed=1), Case(120, 0.5, 0)),
              (Task(), Case(121, 0.5, 0)), (Task("when"), Case(120, 0.5, 0))]  # fmt: skip
    assert all(content(*other)[2][:120] != one[2] for other in others)


def test_a_clip_goes_its_way_without_a_turn():
    ways = set()
    for number in range(24):
        example = build_example(Task("clip"), Case(40, 0.5, number))
        (hidden,) = example.hidden
        seen = [read(example.frame(hidden.start + i, 64)).things[0] for i in range(hidden.frames)]
        steps = np.diff([(thing.x, thing.y) for thing in seen], axis=0)
        way = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[example.expected]
        np.testing.assert_allclose(steps, np.tile(np.array(way) / 8, (3, 1)), atol=0.02)
        ways.add(example.expected)
    assert len(ways) == 4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_things_at_places_are_held_out_where_they_are_asked_to_be(form, part):
    for number in range(2):
        example = build_example(Task(form, part=part, heldout="place"), Case(120, 0.5, number))
        for hidden in example.hidden:
            (act,) = hidden.scene.acts
            assert is_new_at(act.thing, place(act.x, act.y)) == (part == "heldout")
        film = [one for number in range(example.frames) for one in example.hay.scene_at(number)[0].at(0)]
        assert part == "heldout" or not any(is_new_at(one.thing, one.place) for one in film)
        seen = [one for hidden in example.hidden for time in range(hidden.frames) for one in hidden.scene.at(time)]
        assert part == "heldout" or not any(is_new_at(one.thing, one.place) for one in seen)


def test_both_orders_are_asked_for():
    rights = []
    for number in range(30):
        example = build_example(Task("order"), Case(8, 0.5, number))  # so short that they often stand side by side
        first, second = example.hidden
        assert first.start < second.start
        assert first.scene.ground != second.scene.ground
        thing, other = first.scene.acts[0].thing, second.scene.acts[0].thing
        assert thing.colour != other.colour
        assert thing.kind != other.kind
        assert example.expected == f"the {thing.colour} {thing.kind}"
        rights.append(example.question.index(first.name) < example.question.index(second.name))
    assert 5 < sum(rights) < 25


def marks(form: Form, number: int = 0, length: int = 200) -> Example:
    return build_example(Task(form), Case(length, 0.8, number))


def test_marks_of_a_picture():
    example = marks("picture")
    thing = example.hidden[0].scene.acts[0].thing
    assert example.expected == f"a {thing}"
    assert example.question == f"What was on the {example.hidden[0].scene.ground} ground?"
    assert example.mark(f"A {thing}.")
    assert example.mark(f"It was {thing.colour}: a {thing.kind}, {thing.size.upper()}")
    assert not example.mark(f"a {thing.colour} {thing.kind}")
    assert not example.mark("")
    assert not example.mark("a small red ring, a large red ring, a small blue cross, a large green square")
    assert not example.mark(f"a {thing} or a {thing.size} {thing.colour} {'ring' if thing.kind != 'ring' else 'cross'}")


def test_marks_of_the_others():
    clip = marks("clip")
    assert clip.mark(f"It moved {clip.expected}.")
    assert not clip.mark("left, right, up or down")
    assert not clip.mark("it stayed")
    order = marks("order")
    first, second = (hidden.scene.acts[0].thing for hidden in order.hidden)
    assert order.mark(order.expected)
    assert order.mark(f"The {first.kind} came before the {second.kind}")
    assert not order.mark(f"The {second.colour} {second.kind}")
    assert not order.mark(f"{second.colour} after {first.colour}")
    assert not order.mark("I do not know")
    when = marks("when")
    assert when.expected == "2"  # frame 159
    assert when.mark("At minute 2.")
    assert when.mark("2:39")
    assert not when.mark("12")
    assert not when.mark("1:02")
    assert not when.mark("two hours")


@pytest.mark.parametrize(("form", "length", "least"), [("picture", 7, 8), ("clip", 4, 8), ("when", 119, 120)])
def test_a_film_that_is_too_short(form, length, least, tmp_path):
    with pytest.raises(UserError, match=f"a film of {length} frames is too short for '{form}': take {least} or more"):
        build_example(Task(form), Case(length, 0.5, 0))
    with pytest.raises(UserError, match="too short"):
        run(tmp_path, form=form, lengths=[150, length])
    build_example(Task(form), Case(least, 0.5, 0))


def test_a_film_is_never_held():
    example = build_example(Task("when"), Case(300, 0.9, 0))
    (turn,) = example.conversation(64)
    tracemalloc.start()
    count = sum(1 for frame in next(iter(turn["content"])))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300
    assert peak < 1_000_000  # of 3.7 MB
    assert example.expected == str(example.hidden[0].start // 60) == "4"


@dataclass
class Viewer:
    """Watches a film frame by frame and answers by what is read there; beyond `memory` frames it has forgotten."""

    fingerprint: str = "viewer"
    context_length: int = 1000
    frame_size: int = 64
    tokens_per_frame: int = 10
    memory: int = 10**9
    batches: list[int] = field(default_factory=list)

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        self.batches.append(len(conversations))
        return [self._answer(*turns) for turns in conversations]

    def _answer(self, turn: Turn) -> str:
        *film, question = turn["content"]
        assert isinstance(question, str)
        frames = [frame for part in film if not isinstance(part, str) for frame in part]
        if len(frames) > self.memory:
            return "I do not know."
        asked = re.findall(r"(?:(\w+ \w+) )?on the (\w+) ground", question)
        commonest = [tuple(np.median(frame.reshape(-1, 3), axis=0).astype(int)) for frame in frames]
        seen = [[n for n, colour in enumerate(commonest) if colour == GROUNDS[ground]] for _, ground in asked]
        if question.startswith(" Which came first"):
            return f" The {asked[int(seen[0][0] > seen[1][0])][0]}"
        things = [read(frames[number]).things[0] for number in seen[0]]
        if question.startswith(" What was"):
            return str(things[0].thing)
        if question.startswith(" At which minute"):
            return f"{seen[0][0] // 60}:{seen[0][0] % 60:02}"
        x, y = things[-1].x - things[0].x, things[-1].y - things[0].y
        return ("right" if x > 0 else "left") if abs(x) > abs(y) else ("down" if y > 0 else "up")


def run(out: Path, model: Viewer | None = None, **changes) -> VideoNeedleResult:
    settings = {"lengths": [30, 40], "depths": 3, "rounds": 1, "console": Console(quiet=True)}
    return evaluate_video_needle(model or Viewer(), out=out, **(settings | changes))


@pytest.mark.parametrize("form", FORMS)
def test_who_watches_the_film_is_right(tmp_path, form):
    result = run(tmp_path, form=form, every=20, lengths=[120, 150])
    assert [(answer.expected, answer.text) for answer in result.answers if not answer.correct] == []
    content = json.loads((tmp_path / f"video-needle-{form}.json").read_text())
    assert content["summary"]["accuracy"] == 1.0
    assert content["summary"]["by_length"] == {"120": 1.0, "150": 1.0}
    assert content["settings"]["every"] == 20
    assert list(content["cases"][0]) == [
        "length", "depth", "round", "starts", "question", "expected", "answer", "correct"
    ]  # fmt: skip
    assert (tmp_path / f"video-needle-{form}.png").read_bytes().startswith(b"\x89PNG")


def test_who_forgets_is_wrong_and_batches_are_bound_by_tokens(tmp_path):
    model = Viewer(memory=35)
    result = run(tmp_path, model, rounds=2, batch_tokens=1250)
    assert model.batches == [3, 3, 3, 3]  # of 300 and of 400 tokens each
    values, lengths, depths = result.grid.matrix()
    assert (lengths, depths) == ([30, 40], [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(values, [[1, 0]] * 3)


def test_a_stopped_evaluation_goes_on_and_a_grid_can_be_extended(tmp_path):
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", lengths=[30])
    model = Viewer()
    assert run(tmp_path / "cut", model) == whole
    assert sum(model.batches) == 3
    path = "video-needle-picture.json"
    assert (tmp_path / "cut" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    model = Viewer()
    assert run(tmp_path / "cut", model) == whole
    assert model.batches == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 1}, "seed 0 there, 1 now"),
        ({"model": Viewer("other")}, "model viewer there, other now"),
        ({"every": 5}, "every 0 there, 5 now"),
        ({"heldout": "place"}, "heldout ground there, place now"),
        ({"every": -1}, "every must be a number of frames"),
        ({"lengths": []}, "lengths of the films are"),
        ({"depths": 0}, "0 depths"),
    ],
)
def test_what_cannot_be_asked(tmp_path, changes, said):
    run(tmp_path, lengths=[30], depths=1)
    with pytest.raises(UserError, match=said):
        run(tmp_path, **changes)


def test_damaged_results_are_named(tmp_path):
    run(tmp_path, lengths=[30], depths=1)
    path = tmp_path / "video-needle-picture.json"
    content = json.loads(path.read_text())
    content["cases"] = [{"length": 3}]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="does not hold needles in films"):
        run(tmp_path, lengths=[30], depths=1)
