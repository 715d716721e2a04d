from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data.seeing import TEXT, said
from ringworld.data.corpora import Part
from ringworld.data.documents import Given
from ringworld.data.film_qa import FilmDocuments, FilmQuestionsConfig
from ringworld.data.packing import frame
from ringworld.errors import UserError
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vision import clock, visions
from ringworld.worlds.film import Film
from ringworld.worlds.language import KINDS_OF_QUESTIONS, told
from ringworld.worlds.reader import read
from ringworld.worlds.world import World, is_new, is_new_at

WORDS = FilmQuestionsConfig(documents=40)


def source(
    config: FilmQuestionsConfig, length: int = 2048, part: Part = "train", frames: FrameTokenizer | None = None
) -> FilmDocuments:
    made = config.build(Given(TEXT, length, 3, part, frames))
    assert isinstance(made, FilmDocuments)
    return made


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_film_is_told_scene_by_scene_and_asked_about(part: Part) -> None:
    made = source(WORDS, 2048, part)
    for index in range(4):
        document = made[index]
        film, asked = made.plan(index)
        words = " ".join(told(film, number) for number in range(len(film.scenes)))
        (first, *others) = asked
        text = said(document)
        assert text.startswith(
            f"You are a helpful assistant. USER: {words}\n{first.question} ASSISTANT: {first.answer}"
        )
        for one in others:
            assert f"USER: {one.question} ASSISTANT: {one.answer}" in text
        assert film.scenes == World(3, part).film(index, film.seconds, (10, 10)).scenes
        assert len(film.scenes) - 3 <= len(asked) <= len(film.scenes)
        assert document.weights.sum() == pytest.approx(len(asked))
        assert 0.85 * 2048 < len(frame(document, TEXT.vocabulary)) <= 2048


def test_all_kinds_are_asked_and_some_can_be_chosen() -> None:
    made = source(WORDS, 4096)
    starts = {"What is", "Which colour", "How many", "Where is", "Which ground", "When does", "Which way",
              "What passed", "At which", "Which came"}  # fmt: skip
    asked = [one.question for index in range(8) for one in made.plan(index)[1]]
    counts = [sum(question.startswith(start) for question in asked) for start in starts]
    assert sum(counts) == len(asked)
    assert len(starts) == len(KINDS_OF_QUESTIONS)
    assert min(counts) > 0.015 * len(asked)
    assert max(counts) < 0.2 * len(asked)
    chosen = source(replace(WORDS, kinds=("first", "ground")), 4096)
    assert {one.question.split()[1] for one in chosen.plan(0)[1]} == {"came", "ground"}


def test_a_film_in_frames_has_the_time_behind_each_scene(nano: FrameTokenizer) -> None:
    config = FilmQuestionsConfig("frames", scene=4, things=(1, 2), documents=3)
    made = source(config, 700, "train", nano)
    document = made[1]
    film, asked = made.plan(1)
    assert len(film.scenes) > 4
    times = "".join(f"* {clock(4 * number)}" for number in range(len(film.scenes)))
    assert said(document).startswith(
        f"You are a helpful assistant. USER: {times}\n{asked[0].question} ASSISTANT: {asked[0].answer}"
    )
    shown = [*visions(document.tokens, TEXT.vocabulary)]
    codes = np.concatenate([vision.codes for vision in shown])
    assert [len(vision.codes) for vision in shown] == [4] * len(film.scenes)
    np.testing.assert_array_equal(codes, nano.encode(np.stack([*film.frames(64)])))
    assert read(nano.decode(codes[:1])[0]).ground == film.scenes[0].ground
    assert 550 < len(frame(document, TEXT.vocabulary)) <= 700
    again = source(config, 700, "train", nano)
    assert again[1].tokens.tolist() == document.tokens.tolist() == made[1].tokens.tolist()


def combinations(film: Film) -> list[bool]:
    ground = [is_new(act.thing, scene.ground) for scene in film.scenes for act in scene.acts]
    where = [is_new_at(one.thing, one.place) for scene in film.scenes for one in scene.at(0)]
    return [any(ground), any(where)]


def test_what_is_held_out_is_that_of_the_world() -> None:
    found = [
        [combinations(source(replace(WORDS, heldout=heldout), 1024, part).plan(0)[0]) for part in ("train", "heldout")]
        for heldout in ("ground", "place")
    ]
    (ground_train, ground_heldout), (place_train, place_heldout) = found
    assert (ground_train[0], ground_heldout[0]) == (False, True)
    assert (place_train[1], place_heldout[1]) == (False, True)


def test_a_document_depends_on_its_number_alone() -> None:
    one, other = source(WORDS, 1024), source(WORDS, 1024)
    forward = [one[index].tokens.tolist() for index in range(5)]
    assert [other[index].tokens.tolist() for index in reversed(range(5))] == forward[::-1]
    assert len(one) == 40


@pytest.mark.parametrize(
    ("changes", "length", "message"),
    [
        ({"told": "frames"}, 512, "films in frames need a tokenizer of frames"),
        ({}, 60, r"a row of 60 tokens has no room for a scene of 10 seconds and a question about it, which take \d+:"),
        (
            {"kinds": ("minute",), "things": (1, 1)},
            512,
            r"in 100 films of \d+ scenes nothing can be asked .* minute: take",
        ),
        ({"kinds": ("why",)}, 512, "there is no question of the kind 'why'"),
    ],
)
def test_what_cannot_be_made_is_said(changes: dict[str, Any], length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        source(replace(WORDS, **changes), length)
