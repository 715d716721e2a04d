"""What the tests of conversations share."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import pytest

from generation.models import tokenizer
from ringworld.generation import decode, memory

EOS = tokenizer().vocabulary.eos


@pytest.fixture
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """One size of cache and one of what is read at once, so that all tests share their compiled programs."""
    monkeypatch.setattr(memory, "_LEAST_CAPACITY", 256)
    monkeypatch.setattr(decode, "_PIECES", (32,))


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the model give these answers (ids), whatever it thinks."""

    def prepare(*answers: list[int]) -> None:
        coming: Iterator[list[int]] = iter(answers)
        script: list[int] = []
        begin, step = decode.begin, decode.step

        def put(state: decode.Decoding) -> decode.Decoding:
            return replace(state, token=jnp.full_like(state.token, script.pop(0)))

        def scripted_begin(*rest: Any) -> decode.Decoding:
            script[:] = [*next(coming), *[EOS] * 9]
            return put(begin(*rest))

        monkeypatch.setattr(decode, "begin", scripted_begin)
        monkeypatch.setattr(decode, "step", lambda *rest, **options: put(step(*rest, **options)))

    return prepare
