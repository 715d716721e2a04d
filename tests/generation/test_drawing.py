import logging
from dataclasses import replace

import numpy as np
import pytest

from generation.models import TINY_FRAMES, frame_tokenizer, random_model, seeing_model
from ringworld.data.conversations import vision_alone
from ringworld.errors import UserError
from ringworld.generation.drawing import Brush, Drawing, pixels
from ringworld.mesh import MeshShape
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.vision import vision_ids, visions
from tokens.small_vqgan import SMALL
from tokens.small_vqgan import draw as draw_vqgan

BRUSH = Brush(seed=3)


def drawing(shape: MeshShape = MeshShape()) -> Drawing:
    return Drawing(seeing_model(shape))


def test_a_film_comes_frame_by_frame_as_it_is_drawn_at_once() -> None:
    (whole,) = drawing().draw(["a red circle"], 3, BRUSH)
    assert whole.shape == (3, 8, 8, 3)
    assert whole.dtype == np.uint8
    np.testing.assert_array_equal(list(drawing().film("a red circle", 3, BRUSH)), whole)
    (other,) = drawing().draw(["a red circle"], 3, Brush(seed=4))
    assert (other != whole).any()
    (greedy,) = drawing().draw(["a red circle"], 3, Brush(temperature=0.0))
    np.testing.assert_array_equal(greedy, drawing().draw(["a red circle"], 3, Brush(temperature=0.0, seed=9))[0])


def test_pictures_are_drawn_side_by_side() -> None:
    """Greedily each is the one that is drawn alone, whatever is drawn beside it, on any mesh."""
    prompts = ["a red circle", "a square on a very long ground of words", "two"]
    brush = Brush(temperature=0.0)
    together = drawing().draw(prompts, 1, brush)
    for prompt, film in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(drawing().draw([prompt], 1, brush)[0], film)
    spread = drawing(MeshShape(data=2, sequence=2)).draw(prompts, 1, brush)
    np.testing.assert_array_equal(spread, together)
    assert drawing().draw([]) == []


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, sequence=2)])
def test_guidance_goes_from_no_words_to_more_than_the_words(shape: MeshShape) -> None:
    brush = {guidance: Brush(temperature=0.0, guidance=guidance) for guidance in (0.0, 1.0, 1.0001, 8.0)}
    prompts = ["a red circle", "something else", "two"]
    drawn = {guidance: np.stack(drawing(shape).draw(prompts, 2, brush[guidance])) for guidance in brush}
    np.testing.assert_array_equal(drawn[1.0], drawn[1.0001])
    assert (drawn[8.0] != drawn[1.0]).any()
    assert len(np.unique(drawn[0.0], axis=0)) == 1, "words must not matter"
    assert len(np.unique(drawn[1.0], axis=0)) == 3
    streamed = list(drawing(shape).film(prompts[0], 2, brush[8.0]))
    np.testing.assert_array_equal(streamed, drawn[8.0][0])


def test_a_film_goes_on_from_frames_that_are_given() -> None:
    random = np.random.default_rng(0)
    given = random.integers(0, 256, (2, 8, 8, 3), np.uint8)
    one, two = (
        list(drawing().film("a red circle", 4, Brush(temperature=0.0), frames)) for frames in (given, given[:1])
    )
    np.testing.assert_array_equal(one[:2], given)
    assert len(one) == len(two) == 4
    plain = list(drawing().film("a red circle", 4, Brush(temperature=0.0)))
    assert any((a != b).any() for a, b in zip(one[2:], plain[2:], strict=True)), "what is given must matter"


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, sequence=2)])
def test_films_go_on_from_their_frames_alone(shape: MeshShape) -> None:
    """As a document without words does: bos, `<vision>`, the frames that are given, and what the model makes of it."""
    given = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
    model, brush = seeing_model(shape), Brush(temperature=0.0)
    films = Drawing(model).go_on(given, 4, brush)
    vocabulary, tokenizer = model.tokenizer.vocabulary, frame_tokenizer()
    for film, beginning in zip(films, given, strict=True):
        np.testing.assert_array_equal(film[:2], beginning)
        document = vision_alone(vision_ids(tokenizer.encode(beginning), vocabulary), vocabulary)
        whole = np.concatenate([span.ids for span in document.spans])
        end = len(vocabulary.opening) + len(vocabulary.vision_start) + 2 * 5
        prompt = np.append(whole[: end - 1], np.int32(vocabulary.eof))
        (ids,) = model.complete([prompt], 10, *model.sampler(0.0, 0, 1.0, 0, frames=4))
        np.testing.assert_array_equal(film[2:], pixels(ids, tokenizer, vocabulary))
    assert len(np.unique(films, axis=0)) == 3
    np.testing.assert_array_equal(Drawing(model).go_on(given, 4, replace(brush, guidance=3.0)), films)
    assert Drawing(model).go_on(given[:0], 4) == []


def test_the_model_may_draw_when_it_is_not_asked_to() -> None:
    """Generated text opens a vision only to fill it with whole frames."""
    model = seeing_model()
    prompt = np.array([*model.encode("Look: "), *model.tokenizer.vocabulary.vision_start], np.int32)
    (ids,) = model.generate_batch([prompt], 40, temperature=1.0, seed=1)
    (vision, *_) = visions(np.concatenate([prompt, ids]), model.tokenizer.vocabulary)
    assert vision.start == len(prompt) - len(model.tokenizer.vocabulary.vision_start)
    assert len(vision.codes) >= 1


def test_a_film_beyond_the_trained_context_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    model = replace(seeing_model(), context_length=40)
    with caplog.at_level(logging.WARNING):
        Drawing(model).draw(["a red circle"], 1, BRUSH)
        assert "beyond the 40 that the model was trained on" in caplog.text
        caplog.clear()
        drawing().draw(["a red circle"], 1, BRUSH)
    assert caplog.text == ""


def test_mistakes() -> None:
    with pytest.raises(UserError, match="reads and writes text alone"):
        Drawing(replace(random_model(), frames=frame_tokenizer()))
    with pytest.raises(UserError, match="came without its tokenizer of frames"):
        Drawing(replace(seeing_model(), frames=None))
    other = FrameTokenizer(draw_vqgan(SMALL), SMALL, frame_tokenizer().mesh, batch=4)
    with pytest.raises(UserError, match="frames of 2x2 of 64 codes, the tokenizer of 8x8 of 64"):
        Drawing(replace(seeing_model(), frames=other))
    with pytest.raises(UserError, match="the prompt is empty"):
        drawing().draw([" "])
    with pytest.raises(UserError, match=r"^0 frames were asked for"):
        drawing().draw(["a"], 0)
    unasked = Drawing(replace(seeing_model(), draws_unasked=False))
    with pytest.raises(UserError, match=r"the guidance \(CFG\) is 2.0, and this model was never trained on a picture"):
        unasked.draw(["a"], 1, Brush(guidance=2.0))
    given = np.zeros((2, 8, 8, 3), np.uint8)
    with pytest.raises(UserError, match="from frames alone, and this model was never trained on a picture"):
        unasked.go_on(given[None], 3)
    with pytest.raises(UserError, match="2 frames were asked for, and 2 are given"):
        drawing().go_on(given[None], 2)
    with pytest.raises(UserError, match="2 frames were asked for, and 2 are given"):
        drawing().film("a", 2, like=given)
    with pytest.raises(UserError, match="takes frames of 8x8 pixels, got 4x4"):
        drawing().film("a", 3, like=given[:, :4, :4])
    assert TINY_FRAMES.grid == 2
