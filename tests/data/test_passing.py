import re
from dataclasses import replace

import numpy as np
import pytest

from data.seeing import TEXT, said
from ringworld.data.documents import Given
from ringworld.data.passing import PassingConfig, before_questions
from ringworld.errors import UserError
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vision import visions
from ringworld.worlds.passing import Kind, passing_film
from ringworld.worlds.passing import said as line
from ringworld.worlds.reader import read
from ringworld.worlds.world import World


@pytest.fixture
def given(nano: FrameTokenizer) -> Given:
    return Given(TEXT, 512, 7, "train", nano)


def test_a_document_shows_its_film_and_trains_the_answers(nano: FrameTokenizer, given: Given) -> None:
    source = PassingConfig((3, 3), frames=2, asked=3, kinds=("what", "when", "way")).build(given)
    document, film = source[4], passing_film(World(7), 4, 3)
    shown = [*visions(document.tokens, TEXT.vocabulary)]
    assert len(shown) == 3
    for minute, vision in zip(film, shown, strict=True):
        frames = nano.decode(vision.codes)
        for frame, seconds in zip(frames, minute.moments(2), strict=True):
            assert read(frame).ground == minute.scene.ground
            assert [one.thing for one in read(frame).things][:1] == [one.thing for one in minute.scene.at(seconds)]
    times = "".join(f"* {minute.time}" for minute in film)
    assert said(document).startswith(f"You are a helpful assistant. USER: {times} W")
    trained = TEXT.decode(np.concatenate([span.ids for span in document.spans if span.weight]))
    assert trained.count(".") == 3
    assert "?" not in trained
    np.testing.assert_allclose(sum(span.weight * len(span.ids) for span in document.spans), 3, rtol=1e-5)


def test_told_in_words_it_shows_nothing(given: Given) -> None:
    config = PassingConfig((2, 5), told=1.0, kinds=("what", "first"), scattered=True, heldout="place")
    source = config.build(replace(given, part="heldout"))
    text = TEXT.decode(source[3].tokens)
    assert not [*visions(source[3].tokens, TEXT.vocabulary)]
    told, _, _ = text.partition("?")
    assert len(re.findall(r"\d+:00", told)) in range(2, 7)
    again = config.build(replace(given, part="heldout"))
    np.testing.assert_array_equal(again[3].tokens, source[3].tokens)


def test_minutes_are_told_in_lines_like_the_answers(given: Given) -> None:
    film = passing_film(World(7), 4, 5)
    lines: dict[Kind, list[str]] = {
        "what": [line(minute, "what") for minute in film],
        "when": [line(minute, "when") for minute in film],
    }
    pairs: list[tuple[Kind, Kind]] = [("what", "when"), ("when", "what")]
    for kind, other in pairs:
        source = PassingConfig((5, 5), told=1.0, kinds=(kind,)).build(given)
        before = said(source[4]).partition("?")[0]
        assert all(told in before for told in lines[kind])
        assert not any(told in before for told in lines[other])
    both = PassingConfig((5, 5), told=1.0, kinds=("first",)).build(given)
    before = said(both[4]).partition("?")[0]
    assert 0 < sum(told in before for told in lines["what"]) < 5


def test_what_is_narrated_stands_behind_its_time_and_is_trained_on(given: Given) -> None:
    document = PassingConfig((3, 3), asked=1, narrated=1.0, kinds=("when",)).build(given)[4]
    film = passing_film(World(7), 4, 3)
    times = "".join(f"* {minute.time} {minute.thing}." for minute in film)
    assert said(document).startswith(f"You are a helpful assistant. USER: {times} W")
    *narrated, answer = [span for span in document.spans if span.weight]
    assert [TEXT.decode(span.ids) for span in narrated] == [f" {minute.thing}." for minute in film]
    assert TEXT.decode(answer.ids).count(":") == 1
    assert [span.weight * len(span.ids) for span in (*narrated, answer)] == pytest.approx([1.0] * 4)


def test_where_and_which_way_are_narrated_where_that_is_asked(given: Given) -> None:
    config = PassingConfig((4, 4), frames=2, asked=1, narrated=1.0, kinds=("where", "way"))
    words = said(config.build(given)[4])
    for minute in passing_film(World(7), 4, 4):
        behind = re.search(rf"\* {minute.time} ([a-z ]+)\.", words)
        assert behind
        assert behind[1] in {minute.lane, minute.act.direction}


def test_some_minutes_are_narrated_and_others_told(given: Given) -> None:
    source = PassingConfig((4, 4), asked=1, told=0.3, narrated=0.4, kinds=("what",)).build(given)
    for index in range(8):
        document = source[index]
        shown = len([*visions(document.tokens, TEXT.vocabulary)])
        trained = [span for span in document.spans if span.weight]
        assert len(trained) - 1 <= shown <= 4
        assert sum(span.weight * len(span.ids) for span in trained) == pytest.approx(len(trained))


def test_before_the_questions_each_minute_has_its_time() -> None:
    film = passing_film(World(7), 4, 3)
    first, second, third = film
    parts = before_questions(film, lambda minute: f"{minute.time} it rains." if minute is second else [minute])
    assert parts == [first, f" {first.time}", f" {second.time} it rains.", third, f" {third.time}", " "]
    of_two = before_questions([first], lambda _: ["one", "two"], lambda minute: f"{minute.time} it snows.")
    assert of_two == ["one", f" {first.time}", "two", f" {first.time} it snows.", " "]


def test_within_a_minute_its_time_stands_behind_each_of_its_parts(given: Given) -> None:
    config = PassingConfig((3, 3), frames=5, every=2, asked=1, narrated=1.0, kinds=("what",))
    document, film = config.build(given)[4], passing_film(World(7), 4, 3)
    times = "".join(f"* {minute.time}* {minute.time}* {minute.time} {minute.thing}." for minute in film)
    assert said(document).startswith(f"You are a helpful assistant. USER: {times} W")
    shown = [vision.codes for vision in visions(document.tokens, TEXT.vocabulary)]
    assert [len(codes) for codes in shown] == [2, 2, 1] * 3
    whole = replace(config, every=0).build(given)[4]
    np.testing.assert_array_equal(
        np.concatenate(shown), np.concatenate([vision.codes for vision in visions(whole.tokens, TEXT.vocabulary)])
    )


def test_no_question_is_asked_twice(given: Given) -> None:
    source = PassingConfig((1, 1), asked=6, kinds=("what", "when", "way")).build(replace(given, seed=1))
    assert TEXT.decode(source[0].tokens).count("?") == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"minutes": (1, 3)}, "2 or more where it is asked what came first"),
        ({"minutes": (3, 61)}, "got 3 to 61 minutes"),
        ({"frames": 0}, "0 frames"),
        ({"every": -1}, "the time every -1"),
        ({"narrated": 1.5}, "told in words or narrated, got 0.0 and 1.5"),
        ({"kinds": ("why",)}, "no question of the kind 'why'; there are what, when, where, way, first"),
        ({"told": 1.5}, "got 1.5"),
        ({"told": 0.5}, "not where or which way"),
        ({"together": (0, 2)}, "4 questions about 0 to 2"),
    ],
)
def test_impossible_films_are_refused(changes: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        PassingConfig(**changes)


def test_films_need_a_tokenizer_of_frames() -> None:
    with pytest.raises(UserError, match="need a tokenizer of frames"):
        PassingConfig().build(Given(TEXT, 512, 0))
