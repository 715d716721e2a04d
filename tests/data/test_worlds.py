"""What is said in the documents is what is shown in them."""

from dataclasses import replace

import numpy as np
import pytest

from data.seeing import TEXT, said
from ringworld.data.documents import Document, Given
from ringworld.data.packing import frame
from ringworld.data.worlds import WHAT_HAPPENS, WHAT_IS_SEEN, WorldDocuments, WorldSourceConfig, with_times
from ringworld.errors import UserError
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vision import visions
from ringworld.worlds.language import caption, questions
from ringworld.worlds.reader import read
from ringworld.worlds.shapes import place
from ringworld.worlds.world import Part, World, is_new_at


def documents(config: WorldSourceConfig, nano: FrameTokenizer, part: Part = "train") -> WorldDocuments:
    source = config.build(Given(TEXT, 1024, 3, part, nano))
    assert isinstance(source, WorldDocuments)
    return source


def trained(document: Document) -> np.ndarray:
    return document.tokens[document.weights > 0]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_a_picture_is_described(nano: FrameTokenizer, part: Part) -> None:
    source = documents(WorldSourceConfig("describe", things=(1, 2)), nano, part)
    for index in range(4):
        document = source[index]
        scene = World(3, part, 1, 2).picture(index)
        expected = f"You are a helpful assistant. USER: * {WHAT_IS_SEEN} ASSISTANT: {caption(scene)}"
        assert said(document) == expected
        (vision,) = visions(document.tokens, TEXT.vocabulary)
        reading = read(nano.decode(vision.codes)[0])
        assert {str(thing.thing) for thing in reading.things} == {str(act.thing) for act in scene.acts}
        assert TEXT.decode(trained(document).tolist()) == f" {caption(scene)}"
        assert trained(document)[-1] == TEXT.vocabulary.eos
        assert document.weights.sum() == pytest.approx(1)


def test_a_film_is_drawn(nano: FrameTokenizer) -> None:
    document = documents(WorldSourceConfig("draw", frames=(3, 3)), nano)[5]
    scene = World(3, "train", 1, 1).scene(5, 3)
    assert said(document) == f"You are a helpful assistant. USER: Generate a video of {caption(scene)} ASSISTANT: *"
    (vision,) = visions(document.tokens, TEXT.vocabulary)
    drawn = nano.encode(np.stack([scene.frame(second, 64) for second in range(3)]))
    np.testing.assert_array_equal(vision.codes, drawn)
    # <vision> is trained too: the model chooses when to draw.
    assert trained(document)[: 1 + len(TEXT.vocabulary.vision_start)].tolist()[1:] == list(TEXT.vocabulary.vision_start)
    assert [span.modality for span in document.spans] == ["text", "text", "vision", "text"]
    assert document.weights.sum() == pytest.approx(3)  # a code weighs as much in a film as in a picture


def test_some_are_drawn_without_words(nano: FrameTokenizer) -> None:
    source = documents(WorldSourceConfig("draw", without_words=0.4), nano)
    wordless = [source[index] for index in range(40) if "USER" not in said(source[index])]
    assert 8 < len(wordless) < 25
    opening = [TEXT.vocabulary.bos, *TEXT.vocabulary.vision_start]
    for document in wordless:
        assert document.tokens[: len(opening)].tolist() == opening
        assert document.tokens[-1] == TEXT.vocabulary.eos
        assert len(trained(document)) == len(document) - len(opening)
        assert len(frame(document, TEXT.vocabulary).tokens) == len(document)  # nothing is to be added


def test_some_are_asked_for_in_a_few_words(nano: FrameTokenizer) -> None:
    whole, brief = (documents(WorldSourceConfig("draw", briefly=briefly), nano) for briefly in (0.0, 0.5))
    pairs = [(said(whole[index]), said(brief[index])) for index in range(40)]
    shorter = [len(few) < len(all_) for all_, few in pairs]
    assert 8 < sum(shorter) < 25
    assert all(all_ == few for (all_, few), less in zip(pairs, shorter, strict=True) if not less)


def test_a_film_is_asked_about_at_the_times_that_stand_in_it(nano: FrameTokenizer) -> None:
    config = WorldSourceConfig("ask", frames=(12, 12), things=(1, 2), scene=4, every=4, asked=3)
    document = documents(config, nano)[2]
    film = World(3, "train", 1, 2).film(2, 12, (4, 4))
    first, *others = questions(film, 2, 3, step=4)
    words = said(document)
    assert words.startswith(
        f"You are a helpful assistant. USER: * 0:00* 0:04* 0:08 {first.text} ASSISTANT: {first.answer}"
    )
    for question in others:
        assert f"USER: {question.text} ASSISTANT: {question.answer}" in words
    assert [len(vision.codes) for vision in visions(document.tokens, TEXT.vocabulary)] == [4, 4, 4]
    assert document.weights.sum() == pytest.approx(3)


def test_kinds_of_questions_are_chosen_and_a_film_has_one(nano: FrameTokenizer) -> None:
    config = WorldSourceConfig(
        "ask", frames=(8, 8), things=(2, 3), scene=4, every=4, asked=2, kinds=("passed", "minute"), documents=50
    )
    source = documents(config, nano)
    for index in range(4):
        words = said(source[index])
        assert "What passed between 0:0" in words or "Between which times did the" in words
    with pytest.raises(
        UserError, match=r"in 100 films of 8 frames nothing can be asked of the kinds passed: take longer"
    ):
        documents(replace(config, kinds=("passed",), things=(1, 1)), nano)[0]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_places_are_held_out_where_they_are_asked_to_be(nano: FrameTokenizer, part: Part) -> None:
    source = documents(WorldSourceConfig("draw", frames=(1, 2), heldout="place"), nano, part)
    for index in range(6):
        world = World(3, part, 1, 1, heldout="place")
        (first,) = [
            scene.acts[0]
            for scene in (world.picture(index), world.scene(index, 2))
            if caption(scene) in said(source[index])
        ]
        assert part == "train" or any(is_new_at(first.thing, word) for word in (place(first.x, first.y),))


def test_a_document_depends_on_its_number_alone(nano: FrameTokenizer) -> None:
    config = WorldSourceConfig("describe", frames=(1, 4))
    one, other = documents(config, nano), documents(config, nano)
    forward = [one[index].tokens for index in range(20)]
    backward = [other[index].tokens for index in reversed(range(20))][::-1]
    for a, b in zip(forward, backward, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(WHAT_HAPPENS in said(one[index]) for index in range(20))
    assert one[0] is one[0]


def test_times() -> None:
    frames = np.zeros((5, 2, 2, 3), np.uint8)
    assert [part if isinstance(part, str) else len(part) for part in with_times(frames, 2)] == [
        2, " 0:00", 2, " 0:02", 1, " 0:04",
    ]  # fmt: skip
    assert [len(part) for part in with_times(frames, 0)] == [5]


def test_without_a_tokenizer_of_frames_there_are_no_pictures() -> None:
    with pytest.raises(UserError, match="need a tokenizer of frames"):
        WorldSourceConfig("draw").build(Given(TEXT, 64, 0))
