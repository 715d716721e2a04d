import re
from collections import Counter
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.worlds.film import Act, Film, Scene
from ringworld.worlds.language import KINDS_OF_QUESTIONS, FilmQuestions, Question, caption, clock, questions, told
from ringworld.worlds.shapes import COLOURS, KINDS, PLACES, Thing
from ringworld.worlds.world import HeldOut, World, is_new, is_new_at

RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")
STILL = Act(RED, 0.15, 0.15, 0.0, 0.0, 0.0, 8.0)


def test_times_are_said_in_minutes_and_seconds():
    assert [clock(t) for t in (0, 59.9, 60, 75, 3599)] == ["0:00", "0:59", "1:00", "1:15", "59:59"]


def test_captions_say_what_is_there_and_how_it_moves():
    film = Scene(
        "grey",
        (STILL, Act(BLUE, 0.5, 0.5, 0.0, 0.1, 0.0, 8.0), Act(RED, 0.0, 0.0, 0.1, 0.0, 2.0, 6.0, passes=True)),
        8.0,
    )
    assert caption(film) == (
        "a small red circle stays at the top left, a large blue square moves down from the centre and "
        "a small red circle passes right on a grey ground"
    )
    assert caption(Scene("sky", (STILL,), 0.0)) == "a small red circle at the top left on a sky ground"


def test_captions_leave_out_at_random_what_people_do_not_say():
    orange = replace(STILL, thing=replace(STILL.thing, colour="orange"))
    captions = [caption(Scene("sky", (orange,), 0.0), np.random.default_rng(seed)) for seed in range(60)]
    assert 20 < captions.count("an orange circle") < 45  # half of them, and an eighth of the others
    assert {*captions} == {
        f"{thing}{place}{ground}"
        for thing in ("a small orange circle", "an orange circle")
        for place in ("", " at the top left")
        for ground in ("", " on a sky ground")
    }
    moving = Scene("grey", (Act(BLUE, 0.5, 0.5, 0.0, 0.1, 0.0, 8.0),), 8.0)
    moves = {caption(moving, np.random.default_rng(seed)) for seed in range(60)}
    assert {"a blue square moves down", "a large blue square moves down from the centre on a grey ground"} < moves
    assert all("moves down" in words for words in moves)  # that it moves is always said


def test_questions_have_the_answer_that_the_film_shows():
    film = World(0).film(3, 600)
    asked = questions(film, 1, 64)
    assert len(asked) == 64
    assert {question.kind for question in asked} == set(KINDS_OF_QUESTIONS)
    assert len({question.text for question in asked}) == 64
    assert questions(film, 1, 64) == asked != questions(film, 2, 64)
    for question in asked:
        scene, within = film.scene_at(question.seconds)
        things = scene.at(within)
        match question.kind:
            case "what":
                (there,) = [
                    one for one in things if f" {one.place} at" in question.text and one.place == spot(question)
                ]
                assert question.answer == f"a {there.thing}"
            case "colour":
                (there,) = [one for one in things if one.thing.kind in question.text]
                assert question.answer == there.thing.colour
            case "count":
                assert question.answer == str(len(things))
            case "where":
                (there,) = [one for one in things if f"{one.thing.colour} {one.thing.kind}" in question.text]
                assert question.answer == there.place
            case "ground":
                assert question.answer == scene.ground
            case "when":
                assert question.answer == clock(question.seconds)
                assert len(scene.at(within)) > len(scene.at(within - 0.1))
            case "motion":
                (act,) = [a for a in scene.acts if f"{a.thing.colour} {a.thing.kind}" in question.text]
                assert question.answer == act.direction
            case "passed":
                minute = int(question.text.split()[-1][:-1])
                passing = [e for e in film.events if e.happening == "passes" and e.seconds // 60 == minute]
                assert [f"a {event.thing}" for event in passing] == [question.answer]
            case "minute" | "first":
                assert answered(film, question) == question.answer


def named(film: Film, name: str) -> list[tuple[Scene, float, Act]]:
    """All that a name fits, with their scenes, and when these begin."""
    words = set(name.split()) - {"on", "the", "ground"}
    return [
        (scene, start, act)
        for scene, start in zip(film.scenes, film.starts, strict=True)
        for act in scene.acts
        if words <= {*str(act.thing).split(), scene.ground}
    ]


def answered(film: Film, question: Question, step: int = 1) -> str:
    """What somebody says who has seen all of a film. Raises ValueError where more than one answer is right."""
    if found := re.fullmatch(r"Which came first, the (.*) or the (.*)\?", question.text):
        first, second = ((start, name) for name in found.groups() for ((_, start, _),) in [named(film, name)])
        assert first[0] != second[0]
        return f"the {min(first, second)[1]}"
    found = re.fullmatch(r"(At which minute|Between which times) did the (.*) pass\?", question.text)
    assert found
    ((_, start, act),) = (one for one in named(film, found[2]) if one[2].passes)
    begin, end = start + act.enters, start + act.leaves
    length = 60 if found[1] == "At which minute" else step
    number = int(begin // length)
    assert end <= (number + 1) * length <= film.seconds
    assert any(begin <= second < end for second in range(int(film.seconds)))  # it is seen at a frame a second
    return str(number) if length == 60 else f"{clock(number * length)} and {clock((number + 1) * length)}"


def spot(question) -> str:
    return question.text.removeprefix("What is at the ").split(" at ")[0]


def test_no_question_is_asked_that_has_two_answers():
    # The same thing appears twice, two things pass in one minute, and the thing lies on a border of ninths.
    again = replace(STILL, x=1 / 3, y=1 / 3, enters=2.0)
    passing = Act(BLUE, 0.0, 0.5, 0.0, 0.0, 2.0, 6.0, passes=True)
    film = Film((Scene("grey", (again, passing), 8.0), Scene("grey", (again, passing), 8.0)))
    assert {question.kind for question in questions(film, 0, 40)} <= {"count", "ground"}


def test_fewer_questions_come_where_there_are_no_more():
    film = Film((Scene("grey", (), 1.0),))
    assert sorted((q.text, q.answer) for q in questions(film, 0, 10)) == [
        ("How many things are there at 0:00?", "0"),
        ("Which ground is there at 0:00?", "grey"),
    ]


@pytest.mark.parametrize("index", range(5))
def test_places_asked_for_are_places(index):
    for question in questions(World(9).film(index, 120), index, 16):
        if question.kind == "where":
            assert question.answer in PLACES


@pytest.mark.parametrize(
    ("seconds", "scene", "step"), [(16, 4, 4), (60, 10, 10), (150, 7, 15), (600, 20, 60), (3600, 10, 60)]
)
def test_what_passed_when_and_first_is_asked_of_films_of_any_length(seconds, scene, step):
    kinds = ("passed", "minute", "first")
    found = Counter()
    for index in range(40 if seconds < 600 else 2):
        film = World(4).film(index, seconds, (scene, scene))
        asked = questions(film, index, 6, kinds, step)
        found.update(question.kind for question in asked)
        for question in asked:
            if question.kind == "passed":
                asked_for = re.findall(r"\d+", question.text)
                if seconds >= 120:
                    begin, end = 60 * int(asked_for[0]), 60 * int(asked_for[0]) + 60
                else:
                    begin, end = (60 * int(asked_for[i]) + int(asked_for[i + 1]) for i in (0, 2))
                    assert (begin % step, end - begin) == (0, step)
                seen = [
                    act.thing
                    for one, start in zip(film.scenes, film.starts, strict=True)
                    for act in one.acts
                    if act.passes and start + act.enters < end and start + act.leaves > begin
                ]
                assert [f"a {thing}" for thing in seen] == [question.answer]
            else:
                assert answered(film, question, step) == question.answer
    assert min(found[kind] for kind in kinds) >= 4


def test_kinds_are_asked_for_evenly_and_can_be_chosen():
    film = World(0).film(3, 3600)
    counts = Counter(question.kind for question in questions(film, 5, 40))
    assert set(counts.values()) == {4}
    assert set(counts) == set(KINDS_OF_QUESTIONS)
    assert {question.kind for question in questions(film, 5, 9, ("minute", "where"))} == {"minute", "where"}
    first = Counter(questions(film, index, 1)[0].kind for index in range(100))
    assert set(first) == set(KINDS_OF_QUESTIONS)
    assert max(first.values()) < 30
    with pytest.raises(UserError, match="there is no question of the kind 'whence'; there are what, colour"):
        questions(film, 5, 9, ("where", "whence"))


def test_who_has_not_seen_the_film_does_no_better_than_chance():
    minutes, named_first, first = Counter(), 0, 0
    for index in range(120):
        film = World(11, least=3).film(index, 290, (14, 14))  # scenes do not end with minutes
        for question in questions(film, index, 6, ("minute", "first")):
            if question.kind == "minute":
                minutes[question.answer] += 1
            else:
                first += 1
                named_first += question.text.index(question.answer) < question.text.index(" or the ")
    assert set(minutes) == {"0", "1", "2", "3"}  # the last minute is not whole
    expected = sum(minutes.values()) / 4
    assert expected > 50
    assert sum((count - expected) ** 2 / expected for count in minutes.values()) < 16.3  # chi-square, one in a thousand
    assert abs(named_first / first - 0.5) < 3.3 * 0.5 / np.sqrt(first)


def test_long_films_have_longer_names():
    film = World(0).film(1, 7200)
    names = [question.text for question in questions(film, 0, 30, ("first", "minute"))]
    assert len(names) == 30
    assert any(re.search(r"(small|large) \w+ \w+ on the \w+ ground", name) for name in names)
    short = questions(World(0, least=2).film(1, 20, (10, 10)), 0, 3, ("first",))
    assert short
    assert not any("ground" in question.text for question in short)


def test_one_scene_can_be_asked_about():
    film = World(2).film(1, 300, (10, 10))
    asking = FilmQuestions(film, 5)
    for number in range(30):
        asked = asking.ask(number, 8, (), number)
        assert len(asked) > 3
        for question in asked:
            start = film.starts[number]
            if question.kind == "first":
                assert {number} & {scene for scene in range(30) for act in film.scenes[scene].acts
                                   if f"{act.thing.colour} {act.thing.kind}" in question.text}  # fmt: skip
            else:
                assert start <= question.seconds < start + 10
            if question.kind in ("what", "colour", "count", "where", "ground"):
                assert question.seconds % 5 == 0
    assert asking.ask(3, 2, (), 3) == asking.ask(3, 2, (), 3) != asking.ask(4, 2, (), 3)


@pytest.mark.parametrize("heldout", get_args(HeldOut))
def test_no_question_of_training_names_what_is_held_out(heldout):
    for index in range(12):
        film = World(13, heldout=heldout).film(index, 120)
        for question in questions(film, index, 20):
            words = f"{question.text} {question.answer}"
            for colour in COLOURS:
                for kind in KINDS:
                    thing = Thing("small", colour, kind)
                    if f"{colour} {kind}" not in words:
                        continue
                    for ground in re.findall(rf"{colour} {kind} on the (\w+) ground", words):
                        assert heldout == "place" or not is_new(thing, ground)
                    if heldout == "place" and question.kind in ("what", "where"):
                        word = question.answer if question.kind == "where" else spot(question)
                        assert not is_new_at(thing, word)


def test_scenes_are_told_with_their_times():
    acts = (
        STILL,
        Act(BLUE, 0.5, 0.5, 0.0, 0.1, 3.0, 8.0),
        Act(replace(RED, kind="ring"), 0.0, 0.5, 0.2, 0.0, 2.0, 6.0, passes=True),
        Act(replace(BLUE, kind="cross"), 0.85, 0.5, 0.0, 0.0, 0.0, 5.0),
    )
    film = Film((Scene("sky", (STILL,), 62.0), Scene("grey", acts, 8.0)))
    assert told(film, 1) == (
        "1:02: a small red circle stays at the top left and a large blue cross stays at the right on a grey ground. "
        "1:05: a large blue square appears at the centre and moves down. "
        "1:06: a small red ring passes right. "
        "1:07: the large blue cross leaves."
    )
    assert told(Film((Scene("sky", (), 5.0),)), 0) == "0:00: nothing on a sky ground."
