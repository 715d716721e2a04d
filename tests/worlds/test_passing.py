import re

import numpy as np
import pytest

from ringworld.tokens.vision import clock
from ringworld.worlds.passing import KINDS_OF_PASSING, Minute, ask, passing_film, said
from ringworld.worlds.reader import read
from ringworld.worlds.shapes import place
from ringworld.worlds.world import HeldOut, Part, World, is_new, is_new_at


def film_of(part: Part = "train", heldout: HeldOut = "ground", minutes: int = 60, **how: bool) -> tuple[Minute, ...]:
    return passing_film(World(5, part, heldout=heldout), 2, minutes, **how)


def found(pattern: str, text: str) -> tuple[str, ...]:
    match = re.fullmatch(pattern, text)
    assert match is not None, text
    return match.groups()


def test_no_thing_passes_twice_in_an_hour() -> None:
    film = film_of()
    assert [minute.number for minute in film] == list(range(60))
    assert len({minute.thing for minute in film}) == 60


@pytest.mark.parametrize("scattered", [False, True])
def test_a_short_film_is_somewhere_in_the_hour(scattered: bool) -> None:
    steps, starts = set(), set()
    for index in range(40):
        numbers = [minute.number for minute in passing_film(World(), index, 3, scattered=scattered)]
        assert 0 <= numbers[0] < numbers[1] < numbers[2] < 60
        steps |= {*np.diff(numbers).tolist()}
        starts.add(numbers[0])
    assert (steps == {1}) != scattered
    assert len(starts) > 15


def test_a_thing_crosses_the_frame_from_edge_to_edge() -> None:
    for minute in film_of(minutes=12):
        x, y = (np.array([getattr(seen, axis) for t in range(60) for seen in minute.scene.at(t)]) for axis in "xy")
        along, across = (x, y) if minute.act.direction in ("left", "right") else (y, x)
        assert np.ptp(across) == 0
        assert np.ptp(along) >= 1
        assert (np.diff(along) >= 0).all() == (minute.act.direction in ("right", "down"))
        (middle,) = read(minute.scene.frame(minute.moments(1)[0], 64)).things
        assert middle.thing == minute.thing


def test_a_minute_is_seen_in_parts() -> None:
    (minute,) = film_of(minutes=1)
    assert minute.parts(6) == minute.parts(6, 6) == minute.parts(6, 9) == [minute.moments(6)]
    first, second, rest = minute.parts(5, 2)
    assert [*first, *second, *rest] == minute.moments(5)
    assert (len(first), len(second), len(rest)) == (2, 2, 1)


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_what_is_held_out_passes_in_its_part_alone(part: Part) -> None:
    for minute in film_of(part):
        assert is_new(minute.thing, minute.scene.ground) == (part == "heldout")
    for minute in film_of(part, "place"):
        if part == "heldout":
            assert is_new_at(minute.thing, place(minute.act.x, minute.act.y))
        else:
            seen = [spot for t in range(60) for spot in minute.scene.at(t)]
            assert not any(is_new_at(minute.thing, spot.place) for spot in seen)


@pytest.mark.parametrize("kind", KINDS_OF_PASSING)
def test_answers_are_true_of_the_film(kind: str) -> None:
    film, random = film_of(minutes=8), np.random.default_rng(0)
    by_time = {minute.time: minute for minute in film}
    by_thing = {str(minute.thing): minute for minute in film}
    answers = set()
    for _ in range(60):
        question, answer = ask(film, kind, random)
        answers.add(answer)
        if kind == "what":
            (time,) = found(r"What passed at (\d+:00)\?", question)
            assert answer == f"{time} {by_time[time].thing}."
        elif kind == "when":
            (thing,) = found(r"When did the (.*) pass\?", question)
            assert answer == f"{thing} {clock(60 * by_thing[thing].number)}."
        elif kind == "where":
            (thing,) = found(r"Where did the (.*) pass\?", question)
            (seen,) = by_thing[thing].scene.at(30.0)  # halfway, in the middle of its lane
            assert answer == f"{thing} {seen.place}."
        elif kind == "way":
            (thing,) = found(r"Which way did the (.*) pass\?", question)
            assert answer == f"{thing} {by_thing[thing].act.direction}."
        else:
            one, other = found(r"Which came first, the (.*) or the (.*)\?", question)
            first = one if by_thing[one].number < by_thing[other].number else other
            times = f"{one} {by_thing[one].time}. {other} {by_thing[other].time}."
            assert answer == f"{times} {first} first."
    assert len(answers) > 5


def test_several_minutes_are_asked_about_together() -> None:
    film, random = film_of(minutes=3), np.random.default_rng(0)
    question, answer = ask(film, "when", random, together=2)
    things = found(r"When did the (.*), the (.*) pass\?", question)
    by_thing = {str(minute.thing): minute for minute in film}
    assert answer == " ".join(f"{thing} {by_thing[thing].time}." for thing in things)
    question, answer = ask(film, "what", random, together=9)
    times = question.removeprefix("What passed at ").removesuffix("?").split(", ")
    assert sorted(times) == sorted(minute.time for minute in film)
    assert answer == " ".join(said(minute, "what") for time in times for minute in film if minute.time == time)


def test_things_pass_in_every_third_of_the_frame() -> None:
    assert {minute.lane for minute in film_of()} == {"top", "bottom", "left", "right", "centre"}


def test_of_two_things_either_may_be_named_first() -> None:
    film, random = film_of(minutes=2), np.random.default_rng(1)
    named = [ask(film, "first", random)[0].startswith(f"Which came first, the {film[0].thing} ") for _ in range(200)]
    assert 70 < sum(named) < 130


@pytest.mark.parametrize("minutes", [0, 61])
def test_a_film_has_an_hour_at_most(minutes: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 60 minutes, got {minutes}"):
        passing_film(World(), 0, minutes)
