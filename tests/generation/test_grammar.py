"""Whatever is drawn at random under the grammar can be read; and the compiled automaton agrees with the plain one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.generation.grammar import Grammar, Place
from ringworld.tokens.vision import frame_ids, visions
from ringworld.tokens.vocabulary import LWM, Vocabulary

ONE = Vocabulary(8, 0, 1, 2, codes=5, vision_size=9, vision_start=(3,), vision_end=(4,), frame_height=1, frame_width=3)
# Whose first pieces may begin again in the middle: 3 3 3 4 opens with the last three.
THREE = Vocabulary(
    8, 0, 1, 2, codes=5, vision_size=9, vision_start=(3, 3, 4), vision_end=(5, 6), frame_height=2, frame_width=2
)


def grammar_of(vocabulary: Vocabulary, **limits: int) -> Grammar:
    text = np.zeros(vocabulary.size, bool)
    text[: vocabulary.text_size] = True
    text[[vocabulary.bos or 0, vocabulary.pad]] = False
    return Grammar.build(text, vocabulary, **limits)


@jax.jit
def _written(grammar: Grammar, key: Any, prefer: Any) -> Any:
    """A hundred tokens in each of 64 rows, drawn from what is allowed; `prefer` makes some ids likely."""

    def step(carry: Any, key: Any) -> Any:
        place = carry
        logits = jnp.where(grammar.allowed(place), prefer[None], -jnp.inf)
        token = jax.random.categorical(key, logits).astype(jnp.int32)
        return grammar.advance(place, token), token

    place = Place(jnp.zeros(64, jnp.int32), jnp.zeros(64, jnp.int32))
    place, tokens = jax.lax.scan(step, place, jax.random.split(key, 100))
    return place, tokens.T


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([ONE, THREE]), st.integers(0, 2**31), st.integers(1, 3), st.integers(0, 3))
def test_what_is_written_can_be_read(vocabulary: Vocabulary, seed: int, least: int, more: int) -> None:
    """64 sequences an example; of several turns and several visions each."""
    grammar = grammar_of(vocabulary, least=least, most=least + more)
    prefer = np.zeros(vocabulary.size, np.float32)
    prefer[[*vocabulary.vision_start, vocabulary.eov]] = 1.5
    place, rows = _written(grammar, jax.random.key(seed), jnp.asarray(prefer))
    seen = 0
    for row, state, frames in zip(np.asarray(rows), place.state.tolist(), place.frames.tolist(), strict=True):
        assert grammar.after(row) == (state, frames)  # which raises where a rule is broken
        assert not np.isin(row, [vocabulary.bos, vocabulary.pad]).any()
        assert row.max() <= vocabulary.eov, "an id without a meaning"
        for vision in visions(row, vocabulary):
            whole = row[vision.start : vision.stop]
            if whole[-1] == vocabulary.vision_end[-1]:
                seen += 1
                assert least <= len(vision.codes) <= least + more
                expected = [*vocabulary.vision_start, *frame_ids(vision.codes, vocabulary), *vocabulary.vision_end]
                assert whole.tolist() == expected
    assert seen > 20


def test_a_beginning_may_begin_again() -> None:
    grammar = grammar_of(THREE)
    opened = 3
    for text, state in (([3], 1), ([3, 3], 2), ([3, 3, 3], 2), ([3, 3, 3, 4], opened), ([3, 4], 0), ([3, 7, 3], 1)):
        assert grammar.after(np.array(text)) == (state, 0), text


def test_prompts_that_break_the_rules_are_told_where() -> None:
    grammar = grammar_of(ONE)
    code, eof, eov = 8, ONE.eof, ONE.eov
    for ids, message in (
        ([5, code], "token 1 of the prompt, 8, is vision outside of <vision>"),
        ([3, code, 5], "token 2 of the prompt, 5, is no code"),
        ([3, code, eof], "is no code, and its frame is not whole"),
        ([3, code, code, code, code], "token 4 of the prompt, 8, does not end a frame"),
        ([3, code, code, code, eov, 5], "token 5 of the prompt, 5, does not close the vision"),
    ):
        with pytest.raises(UserError, match=message):
            grammar.after(np.array(ids))


def test_a_vocabulary_without_vision_is_text_alone() -> None:
    grammar = grammar_of(Vocabulary(8, 0, 1, 2))
    place = Place(jnp.zeros(1, jnp.int32), jnp.zeros(1, jnp.int32))
    for token in (3, 4, 7, 1):
        assert np.asarray(grammar.allowed(place))[0].tolist() == [False, True, False, True, True, True, True, True]
        place = grammar.advance(place, jnp.array([token], jnp.int32))
        assert place.state.tolist() == [0]


def test_lwms_three_pieces() -> None:
    grammar = grammar_of(LWM)
    codes = np.random.default_rng(0).integers(0, 8192, (2, 16, 16))
    ids = np.array([1, 529, 4924, 29958, *frame_ids(codes, LWM), 1533, 4924, 29958, 450])
    assert grammar.after(ids) == (0, 0)
    assert grammar.after(ids[:4]) == (3, 0)
    assert grammar.after(ids[: 4 + 257]) == (3, 1)
    (vision,) = visions(ids, LWM)
    np.testing.assert_array_equal(vision.codes, codes)
    assert (vision.start, vision.stop) == (1, len(ids) - 1)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (3, 2)])
def test_limits_that_no_film_keeps(least: int, most: int) -> None:
    with pytest.raises(UserError, match="frames were asked for"):
        grammar_of(ONE, least=least, most=most)
