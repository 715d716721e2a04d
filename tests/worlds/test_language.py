from dataclasses import replace

import pytest

from ringworld.worlds.film import Act, Film, Scene, World
from ringworld.worlds.language import caption, clock, questions
from ringworld.worlds.shapes import PLACES, Thing

RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")
STILL = Act(RED, 0.15, 0.15, 0.0, 0.0, 0.0, 8.0)
KINDS = ("what", "colour", "count", "where", "ground", "when", "motion", "passed")


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


def test_questions_have_the_answer_that_the_film_shows():
    film = World(0).film(3, 600)
    asked = questions(film, 1, 64)
    assert len(asked) == 64
    assert {question.kind for question in asked} == set(KINDS)
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
    assert [(q.text, q.answer) for q in questions(film, 0, 10)] == [
        ("How many things are there at 0:00?", "0"),
        ("Which ground is there at 0:00?", "grey"),
    ]


@pytest.mark.parametrize("index", range(5))
def test_places_asked_for_are_places(index):
    for question in questions(World(9).film(index, 120), index, 16):
        if question.kind == "where":
            assert question.answer in PLACES
