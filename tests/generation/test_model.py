import logging
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from generation.models import random_model, tokenizer
from ringworld.errors import UserError
from ringworld.generation import decode
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.model.transformer import forward, head

PROMPT = "The old keeper counted the lamps by the river in the morning."


def full_forward_greedy(model: Model, ids: np.ndarray, count: int) -> list[int]:
    """Token after token, each by a forward pass over everything so far: what decoding with a cache must come to."""
    vocabulary = model.tokenizer.vocabulary
    positions = jnp.arange(len(ids) + count, dtype=jnp.int32)[None]
    through = jax.jit(partial(forward, config=model.config, frequencies=model.frequencies(1), mesh=model.mesh))
    made: list[int] = []
    for _ in range(count):
        so_far = [*ids, *made]
        tokens = jnp.asarray([so_far + [0] * (positions.shape[1] - len(so_far))], jnp.int32)
        hidden = through(model.weights, tokens, jnp.ones_like(positions), positions)
        logits = np.array(hidden[0, len(so_far) - 1] @ head(model.weights))[: vocabulary.text_size]
        logits[[vocabulary.bos, vocabulary.pad]] = -np.inf
        made.append(int(logits.argmax()))
        if made[-1] == vocabulary.eos:
            return made[:-1]
    return made


def test_greedy_generation_is_the_argmax_of_a_full_forward_pass_at_every_step() -> None:
    model = random_model()
    ids = model.encode(PROMPT)
    (answer,) = model.generate_batch([ids], 12)
    assert answer.tolist() == full_forward_greedy(model, ids, 12)
    assert len(set(answer.tolist())) > 3  # not one token over and over: the test would not see much


def test_rows_of_different_lengths_give_what_each_gives_alone() -> None:
    model = random_model()
    ids = [model.encode(text) for text in (PROMPT, "The miller", PROMPT[:30], "So the doctor and the clerk")]
    together = model.generate_batch(ids, 8)
    for row, answer in zip(ids, together, strict=True):
        assert answer.tolist() == model.generate_batch([row], 8)[0].tolist()


def test_on_another_mesh_the_answer_is_the_same() -> None:
    ids = [random_model().encode(text) for text in (PROMPT, "The miller", "So the doctor", "a")]
    alone = random_model().generate_batch(ids, 8)
    spread = random_model(MeshShape(data=2, tensor=2, sequence=2)).generate_batch(ids, 8)
    assert [row.tolist() for row in spread] == [row.tolist() for row in alone]


def test_streamed_pieces_joined_are_the_generated_text() -> None:
    model = random_model()
    ways: list[dict[str, Any]] = [{}, {"temperature": 0.8, "seed": 3}, {"temperature": 1.0, "top_k": 5, "top_p": 0.9}]
    for settings in ways:
        whole = model.generate(PROMPT, 16, **settings)
        pieces = list(model.stream(PROMPT, 16, **settings))
        assert "".join(pieces) == whole
        assert len(pieces) > 1
        assert "" not in pieces
        assert whole == model.generate(PROMPT, 16, **settings)


def test_another_seed_gives_another_text() -> None:
    model = random_model()
    assert model.generate(PROMPT, 16, temperature=1.0, seed=1) != model.generate(PROMPT, 16, temperature=1.0, seed=2)


def test_what_is_said_has_whole_characters_and_ends_at_eos(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "né 東🌍!"
    ids = tokenizer().encode(said)
    assert len(ids) > len(said) + 2  # the characters do come in several tokens
    model = random_model(norm_eps=1e-4)
    script = np.array([*ids, model.tokenizer.vocabulary.eos] + [0] * 16)

    def choose(sampler: object, logits: jax.Array, place: object, step: jax.Array) -> jax.Array:
        return jnp.broadcast_to(jnp.asarray(script)[step], logits.shape[:1]).astype(jnp.int32)

    monkeypatch.setattr("ringworld.generation.sampling.Sampler.choose", choose)
    assert model.generate_batch([model.encode(PROMPT)], 16)[0].tolist() == ids
    assert model.generate(PROMPT, 16) == said
    pieces = list(model.stream(PROMPT, 16))
    assert "".join(pieces) == said
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    # Cut off in the middle of the globe's four bytes: what there is of it is left out.
    assert model.generate(PROMPT, len(ids) - 2) == "né 東"
    assert "".join(model.stream(PROMPT, len(ids) - 2)) == "né 東"


def test_bos_stands_once_at_the_start() -> None:
    model = random_model()
    bos = model.tokenizer.vocabulary.bos
    ids = model.encode(PROMPT)
    assert ids[0] == bos
    assert (ids == bos).sum() == 1
    without = model.generate_batch([ids[1:]], 8)[0]
    assert without.tolist() == model.generate_batch([ids], 8)[0].tolist()
    # Text that spells the token is text.
    assert (model.encode("<bos>" + PROMPT) == bos).sum() == 1


def test_prompts_of_about_one_length_run_the_same_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(norm_eps=1e-5)
    compiled: list[tuple[int, ...]] = []
    prefill, decode_step = decode.prefill, decode.decode_step

    def counted_prefill(weights: Any, tokens: jax.Array, *rest: Any, **options: Any) -> Any:
        compiled.append(tokens.shape)
        return prefill(weights, tokens, *rest, **options)

    def counted_step(weights: Any, token: jax.Array, *rest: Any, **options: Any) -> Any:
        compiled.append(token.shape)
        return decode_step(weights, token, *rest, **options)

    monkeypatch.setattr(decode, "prefill", counted_prefill)
    monkeypatch.setattr(decode, "decode_step", counted_step)
    ids = np.resize(model.encode(PROMPT), 200)
    model.generate_batch([ids[:3]], 5)
    once = [(1, 64), *[(1,)] * (len(compiled) - 1)]  # a loop's body is traced more than once
    assert compiled == once
    model.generate_batch([ids[:40]], 16, temperature=0.7)
    model.generate_batch([ids[:64]], 9, temperature=1.0, top_k=3)
    model.generate_batch([ids[:63]], 16, top_p=0.5, seed=4)
    assert compiled == once
    model.generate_batch([ids[:65]], 16)
    assert compiled[len(once)] == (1, 80)
    twice = list(compiled)
    model.generate_batch([ids[:80]], 16)
    assert compiled == twice


def test_buckets_hold_their_size_and_are_few() -> None:
    for size in range(1, 5000):
        assert size <= decode.bucket(size) <= max(64, 1.25 * size)
    assert sorted({decode.bucket(size) for size in range(1, 1025)}) == [
        64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024
    ]  # fmt: skip
    assert [decode.bucket(n, least=1) for n in (1, 2, 3, 4, 5, 8, 9, 10)] == [1, 2, 3, 4, 5, 8, 10, 10]
    assert decode.bucket(70, multiple=16) == 80
    assert decode.bucket(5, least=1, multiple=4) == 8


def test_beyond_the_trained_context_there_is_a_note_and_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    model = random_model()
    with caplog.at_level(logging.WARNING):
        model.generate(PROMPT, 8)
        assert caplog.text == ""
        assert replace(model, context_length=16).generate(PROMPT, 8) == model.generate(PROMPT, 8)
    length = len(model.encode(PROMPT)) + 8
    assert f"may come to {length} tokens, {length - 16} beyond the 16 that the model was trained on" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "count", "said"),
    [
        ("", 8, "the prompt is empty"),
        (PROMPT, 0, "leaves no room for an answer"),
        (PROMPT, 10**12, "GiB for keys and values, but there are"),
    ],
)
def test_prompts_that_cannot_be_answered(prompt: str, count: int, said: str) -> None:
    model = random_model()
    with pytest.raises(UserError, match=said):
        model.generate(prompt, count)
    with pytest.raises(UserError, match=said):
        model.stream(prompt, count)  # at once, before a piece is asked for


def test_what_does_not_fit_the_memory_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ringworld.generation.engine.os.sysconf", {"SC_PHYS_PAGES": 100, "SC_PAGE_SIZE": 2048}.__getitem__
    )
    # 256 bytes a token: keys and values of 2 layers and 2 heads of 8, in float32.
    with pytest.raises(UserError, match=r"0.0 GiB, room for about 800 tokens a row: shorten the prompt"):
        random_model().generate(PROMPT, 1000)


def test_an_empty_row_of_a_batch_is_refused() -> None:
    with pytest.raises(UserError, match="a prompt is empty"):
        random_model().generate_batch([np.array([5], np.int32), np.array([], np.int32)], 4)


def test_fingerprints_tell_models_apart() -> None:
    assert random_model().fingerprint == random_model(norm_eps=1e-5).fingerprint
    assert random_model().fingerprint == random_model(MeshShape(sequence=4)).fingerprint
    assert random_model().fingerprint != random_model(seed=1).fingerprint
    plain = random_model()
    sharpened = replace(plain, config=replace(plain.config, sharpened_from=8))
    assert plain.fingerprint != sharpened.fingerprint
