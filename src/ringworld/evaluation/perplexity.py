"""Perplexity of held-out text by position: a model that uses its context predicts late tokens better than early
ones.
"""

import math
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from ringworld.errors import UserError
from ringworld.evaluation import plots
from ringworld.evaluation.files import read_json, write_json, write_result
from ringworld.evaluation.prose import held_out_texts
from ringworld.generation.model import Model
from ringworld.mesh import axis_size, named_sharding
from ringworld.model.cache import prompt_multiple
from ringworld.model.config import ModelConfig
from ringworld.model.rope import Frequencies
from ringworld.model.transformer import Weights, forward, head

# Tokens whose logits are held at once.
_CHUNK = 1024
# The first range of positions; each further one ends at twice the position.
_FIRST_RANGE = 16


@dataclass(frozen=True)
class PositionRange:
    """Positions [start, end) of the rows: how many tokens were predicted there, and their mean loss in nats."""

    start: int
    end: int
    tokens: int
    loss: float

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@dataclass(frozen=True)
class PerplexityResult:
    """Losses by position, and under which settings they were measured."""

    settings: dict[str, Any]
    ranges: tuple[PositionRange, ...]

    @property
    def perplexity(self) -> float:
        """Over all tokens."""
        return math.exp(sum(r.loss * r.tokens for r in self.ranges) / sum(r.tokens for r in self.ranges))

    def to_dict(self) -> dict[str, Any]:
        ranges = [{"start": r.start, "end": r.end, "tokens": r.tokens, "loss": r.loss} for r in self.ranges]
        return {"settings": self.settings, "perplexity": self.perplexity, "positions": ranges}

    @classmethod
    def read(cls, path: Path) -> "PerplexityResult":
        """Raises UserError when the file is not one of ours."""
        content = read_json(path)
        try:
            return cls(content["settings"], tuple(PositionRange(**r) for r in content["positions"]))
        except (KeyError, TypeError) as error:
            raise UserError(f"{path} does not hold perplexities ({error!r}): remove it to begin anew") from error

    def picture(self) -> bytes:
        """PNG: perplexity by position."""
        return plots.perplexity_curve(
            [r.start for r in self.ranges],
            [r.end for r in self.ranges],
            [r.perplexity for r in self.ranges],
            title=f"Perplexity by position, held-out text ({self.settings['data']})",
            trained_length=self.settings["context_length"],
        )


@partial(jax.jit, static_argnames=("config", "mesh", "text_size"))
def token_losses(
    weights: Weights,
    tokens: Int32[Array, "B S"],
    targets: Int32[Array, "B S"],
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
    text_size: int,
) -> Float32[Array, "B S"]:
    """-log p(target) of each token, of one document a row, by a softmax over the text ids; never holding [S, V]."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    segments = jnp.ones_like(tokens)
    hidden = forward(weights, tokens, segments, positions, config=config, frequencies=frequencies, mesh=mesh)
    matrix = head(weights)[:, :text_size]

    def loss(token: tuple[Array, Array]) -> Array:
        hidden, target = token
        logits = (hidden @ matrix).astype(jnp.float32)
        return jax.nn.logsumexp(logits) - logits[target]

    flat = (hidden.reshape(-1, config.dim), targets.reshape(-1))
    return jax.lax.map(loss, flat, batch_size=_CHUNK).reshape(tokens.shape)


def rows_of(
    ids: Int32[np.ndarray, " N"], length: int, rows: int, opening: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Windows of `length` tokens spread evenly over the text, at most `rows`: tokens (bos and all but the last),
    targets. Without bos the first token of a window is no target.
    """
    windows = len(ids) // length
    chosen = np.unique(np.linspace(0, windows - 1, min(rows, windows)).round().astype(int))
    targets = np.stack([ids[w * length : (w + 1) * length] for w in chosen])
    if not opening:
        return targets[:, :-1], targets[:, 1:]
    tokens = np.concatenate([np.full((len(targets), 1), opening, np.int32), targets[:, :-1]], axis=1)
    return tokens, targets


def evaluate_perplexity(
    model: Model, data: str, *, length: int, out: Path, rows: int = 16, batch_tokens: int = 32768
) -> PerplexityResult:
    """Measures windows of `length` tokens of held-out text, and writes `perplexity.json` and `perplexity.png` into
    `out`.

    The texts are joined and cut, so a window may hold the end of one and the beginning of the next; each begins with
    bos, where the model has one, and sees no other.

    Args:
        data: a corpus (its held-out part) or a text file.
        rows: windows at most, spread evenly over the text.
        batch_tokens: tokens that go through the model at once, which bounds the memory.

    Raises:
        UserError: no such text, or it is shorter than one window.
    """
    if length < 2 or rows < 1:
        raise UserError(f"{rows} windows of {length} tokens were asked for: take at least 1 window of 2 tokens")
    ids = np.concatenate([np.array(i, np.int32) for i in model.tokenizer.encode_batch(held_out_texts(data))])
    if len(ids) < length:
        raise UserError(
            f"windows of {length:,} tokens were asked for, but the held-out text {data} has {len(ids):,} tokens: "
            "ask for a shorter length, or give a longer text"
        )
    vocabulary = model.tokenizer.vocabulary
    tokens, targets = rows_of(ids, length, rows, vocabulary.opening)
    losses = np.concatenate(
        [
            _batch_losses(model, tokens[first : first + size], targets[first : first + size], size)
            for size in [max(1, min(len(tokens), batch_tokens // length))]
            for first in range(0, len(tokens), size)
        ]
    )
    end = losses.shape[1]
    edges = [0, *(_FIRST_RANGE * 2**i for i in range(end.bit_length()) if _FIRST_RANGE * 2**i < end), end]
    ranges = tuple(
        PositionRange(start, end, losses[:, start:end].size, float(losses[:, start:end].mean(dtype=np.float64)))
        for start, end in pairwise(edges)
    )
    settings = {
        "data": data,
        "length": length,
        "rows": len(tokens),
        "model": model.fingerprint,
        "context_length": model.context_length,
    }
    result = PerplexityResult(settings, ranges)
    write_json(out / "perplexity.json", result.to_dict())
    write_result(out / "perplexity.png", result.picture())
    return result


def _batch_losses(model: Model, tokens: np.ndarray, targets: np.ndarray, rows: int) -> np.ndarray:
    """`token_losses` of a batch padded to `rows` rows and to what divides over the mesh; the padding is cut off
    again.
    """
    vocabulary = model.tokenizer.vocabulary
    below = -rows % axis_size(model.mesh, "batch") + rows - len(tokens)
    padding = ((0, below), (0, -tokens.shape[1] % prompt_multiple(model.mesh)))
    sharding = named_sharding(model.mesh, ("batch", "sequence"))
    losses = token_losses(
        model.weights,
        jax.device_put(np.pad(tokens, padding, constant_values=vocabulary.pad), sharding),
        jax.device_put(np.pad(targets, padding, constant_values=vocabulary.pad), sharding),
        model.frequencies(tokens.shape[1]),
        config=model.config,
        mesh=model.mesh,
        text_size=vocabulary.text_size,
    )
    return np.asarray(losses)[: len(tokens), : tokens.shape[1]]
