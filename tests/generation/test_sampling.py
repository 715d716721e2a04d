from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.errors import UserError
from ringworld.generation.grammar import Grammar, Place
from ringworld.generation.sampling import Sampler, restrict
from ringworld.tokens.vocabulary import Vocabulary

PROBABILITIES = np.array([0.05, 0.4, 0.15, 0.3, 0.1], np.float32)
EVERYTHING = np.ones(5, bool)
NO_VISION = Vocabulary(5, None, 1, 0)


def grammar(allowed: np.ndarray = EVERYTHING) -> Grammar:
    return Grammar.build(allowed, NO_VISION)


@jax.jit
def choose(sampler: Sampler, logits: jax.Array, step: jax.Array) -> jax.Array:
    return sampler.choose(logits, in_text(len(logits)), step)


def in_text(rows: int) -> Place:
    return Place(jnp.zeros(rows, jnp.int32), jnp.zeros(rows, jnp.int32))


def kept_distribution(top_k: int = 0, top_p: float = 1.0, probabilities: np.ndarray = PROBABILITIES) -> np.ndarray:
    logits = jnp.log(jnp.asarray(probabilities))[None]
    return np.asarray(jax.nn.softmax(restrict(logits, jnp.int32(top_k), jnp.float32(top_p))[0]))


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0.05, 0.4, 0.15, 0.3, 0.1]),
        (5, 1.0, [0.05, 0.4, 0.15, 0.3, 0.1]),
        (2, 1.0, [0, 4 / 7, 0, 3 / 7, 0]),
        (1, 1.0, [0, 1, 0, 0, 0]),
        (0, 0.3, [0, 1, 0, 0, 0]),  # the likeliest alone reaches 0.3
        (0, 0.6, [0, 4 / 7, 0, 3 / 7, 0]),
        (0, 0.75, [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),  # .4 + .3 does not reach it, + .15 does
        (3, 0.8, [0, 4 / 7, 0, 3 / 7, 0]),  # of the three (summing to .85) .4 + .3 is .82
        (3, 0.85, [0, 0.4 / 0.85, 0.15 / 0.85, 0.3 / 0.85, 0]),
    ],
)
def test_restricted_distribution_is_exact(top_k: int, top_p: float, expected: list[float]) -> None:
    np.testing.assert_allclose(kept_distribution(top_k, top_p), expected, atol=1e-6)


def test_of_equal_logits_exactly_k_are_kept_the_lower_ids_first() -> None:
    np.testing.assert_allclose(kept_distribution(2, probabilities=np.full(5, 0.2, np.float32)), [0.5, 0.5, 0, 0, 0])


def test_rounding_in_a_long_tail_drops_nothing_at_top_p_1() -> None:
    tail = np.full(32000, 1e-9, np.float32)
    tail[0] = 1.0
    assert (kept_distribution(probabilities=tail) > 0).all()


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.5}, {"temperature": 1.0, "top_k": 3}, {"temperature": 2.0, "top_p": 0.7}]
)
def test_draws_follow_the_distribution(settings: dict[str, Any]) -> None:
    rows = 20_000
    logits = jnp.log(jnp.asarray(PROBABILITIES))
    sampler = Sampler.build(grammar(), **settings)
    drawn = choose(sampler, jnp.broadcast_to(logits, (rows, 5)), jnp.int32(0))
    wanted = jax.nn.softmax(restrict(logits[None] / settings["temperature"], sampler.top_k, sampler.top_p)[0])
    observed = np.bincount(np.asarray(drawn), minlength=5) / rows
    np.testing.assert_allclose(observed, wanted, atol=4 * 0.5 / np.sqrt(rows))  # four standard deviations
    assert (observed[np.asarray(wanted) == 0] == 0).all()


def test_temperature_0_is_greedy_whatever_else_is_set() -> None:
    logits = jax.random.normal(jax.random.key(0), (64, 5))
    anything: list[dict[str, Any]] = [{}, {"top_k": 2}, {"top_p": 0.5}, {"seed": 7}]
    for settings in anything:
        chosen = choose(Sampler.build(grammar(), temperature=0.0, **settings), logits, jnp.int32(3))
        np.testing.assert_array_equal(chosen, jnp.argmax(logits, axis=-1))


def test_a_small_temperature_comes_to_greedy() -> None:
    logits = jax.random.normal(jax.random.key(0), (64, 5))
    chosen = choose(Sampler.build(grammar(), temperature=1e-6), logits, jnp.int32(0))
    np.testing.assert_array_equal(chosen, jnp.argmax(logits, axis=-1))


def test_ids_that_may_not_come_do_not() -> None:
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(PROBABILITIES)), (1000, 5))
    allowed = np.array([True, False, True, False, True])
    drawn = choose(Sampler.build(grammar(allowed), temperature=1.0, top_k=4), logits, jnp.int32(0))
    assert set(np.asarray(drawn).tolist()) == {0, 2, 4}
    greedy = choose(Sampler.build(grammar(allowed)), logits, jnp.int32(0))
    assert set(np.asarray(greedy).tolist()) == {2}


def test_draws_depend_on_seed_step_and_row_but_not_on_the_number_of_rows() -> None:
    logits = jnp.zeros((32, 5))

    def draw(rows: int, *, seed: int, step: int) -> list[int]:
        sampler = Sampler.build(grammar(), temperature=1.0, seed=seed)
        return np.asarray(choose(sampler, logits[:rows], jnp.int32(step))).tolist()

    assert draw(32, seed=1, step=0) == draw(32, seed=1, step=0)
    assert draw(32, seed=1, step=0)[:8] == draw(8, seed=1, step=0)
    assert draw(32, seed=1, step=0) != draw(32, seed=1, step=1)
    assert draw(32, seed=1, step=0) != draw(32, seed=2, step=0)
    assert len(set(draw(32, seed=1, step=0))) > 1


def test_changed_settings_compile_nothing_again() -> None:
    traces = 0

    @jax.jit
    def counted(sampler: Sampler, logits: jax.Array) -> jax.Array:
        nonlocal traces
        traces += 1
        return sampler.choose(logits, in_text(len(logits)), jnp.int32(0))

    anything: list[dict[str, Any]] = [{}, {"temperature": 1.0}, {"temperature": 0.3, "top_k": 4}, {"top_p": 0.5}]
    for settings in anything:
        counted(Sampler.build(grammar(), **settings), jnp.zeros((2, 5)))
    assert traces == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_k": -1}, "top-k is -1"),
        ({"top_p": 0.0}, "top-p is 0.0"),
        ({"top_p": 1.5}, "top-p is 1.5"),
    ],
)
def test_settings_outside_their_range(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Sampler.build(grammar(), **settings)


def test_guidance_draws_once_for_both_halves_from_the_sharpened_logits() -> None:
    guided, free = jnp.array([[0.0, 1.0, 0.5, 0.0, 0.0]]), jnp.array([[0.0, 1.0, 0.2, 0.9, 0.0]])
    logits = jnp.concatenate([guided, free])
    for guidance, token in ((0.0, 1), (1.0, 1), (3.0, 2)):  # at 3: 0, 1, 1.1, -1.8, 0
        sampler = Sampler.build(grammar(), guidance=guidance)
        assert choose(sampler, logits, jnp.int32(0)).tolist() == [token, token]
    rows = 5000
    sampler = Sampler.build(grammar(), temperature=1.0, guidance=2.0)
    drawn = np.asarray(choose(sampler, jnp.repeat(logits, rows, axis=0), jnp.int32(0)))
    np.testing.assert_array_equal(drawn[:rows], drawn[rows:])
    observed = np.bincount(drawn[:rows], minlength=5) / rows
    np.testing.assert_allclose(observed, jax.nn.softmax(2 * guided - free)[0], atol=4 * 0.5 / np.sqrt(rows))


@pytest.mark.parametrize("guidance", [-1.0, float("inf"), float("nan")])
def test_guidance_outside_its_range(guidance: float) -> None:
    with pytest.raises(UserError, match=r"the guidance \(CFG\) is"):
        Sampler.build(grammar(), guidance=guidance)
