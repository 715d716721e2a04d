"""Perplexity of held-out text, or of documents of text and codes, by position: a model that uses its context predicts
late tokens better than early ones.

Text and vision are told apart: each target's probability is of the ids of its own modality, as LWM's two heads have it.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32

from ringworld.data.corpora import CORPORA
from ringworld.data.documents import Given, Source
from ringworld.data.packing import Batch, Framed, frame, pack_row
from ringworld.data.sources import ShardsConfig
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
from ringworld.tokens.vocabulary import Vocabulary

# Tokens whose logits are held at once.
_CHUNK = 1024
# The first range of positions; each further one ends at twice the position.
_FIRST_RANGE = 16
_MODALITIES = ("text", "vision")  # in the order of their slices


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
    """Losses by position, and under which settings they were measured.

    Attributes:
        ranges: of text,
        vision: and of codes, eof and eov, where there were any. A range without a token is left out.
    """

    settings: dict[str, Any]
    ranges: tuple[PositionRange, ...]
    vision: tuple[PositionRange, ...] = ()

    @property
    def perplexity(self) -> float:
        """Over all tokens of text."""
        return _over_all(self.ranges)

    @property
    def vision_perplexity(self) -> float | None:
        """Over all tokens of vision; None: there were none."""
        return _over_all(self.vision) if self.vision else None

    def to_dict(self) -> dict[str, Any]:
        about = {"settings": self.settings, "perplexity": self.perplexity, "positions": [*map(asdict, self.ranges)]}
        if not self.vision:
            return about
        return about | {"vision": {"perplexity": self.vision_perplexity, "positions": [*map(asdict, self.vision)]}}

    @classmethod
    def read(cls, path: Path) -> "PerplexityResult":
        """Raises UserError when the file is not one of ours."""
        content = read_json(path)
        try:
            vision = content.get("vision", {"positions": ()})
            ranges = [tuple(PositionRange(**r) for r in part["positions"]) for part in (content, vision)]
            return cls(content["settings"], *ranges)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} does not hold perplexities ({error!r}): remove it to begin anew") from error

    def picture(self) -> bytes:
        """PNG: perplexity by position; of text and of vision, where there is vision."""
        what = "held-out documents" if self.vision else "held-out text"
        return plots.perplexity_curves(
            {
                name: [(r.start, r.end, r.perplexity) for r in ranges]
                for name, ranges in zip(_MODALITIES, (self.ranges, self.vision), strict=True)
                if ranges
            },
            title=f"Perplexity by position, {what} ({self.settings['data']})",
            trained_length=self.settings["context_length"],
        )


def _over_all(ranges: tuple[PositionRange, ...]) -> float:
    return math.exp(sum(r.loss * r.tokens for r in ranges) / sum(r.tokens for r in ranges))


@partial(jax.jit, static_argnames=("config", "mesh", "bounds"))
def token_losses(
    weights: Weights,
    batch: Batch,
    frequencies: Frequencies,
    *,
    config: ModelConfig,
    mesh: Mesh,
    bounds: tuple[tuple[int, int], ...],
) -> Float32[Array, "B S"]:
    """-log p(target) of each token of packed rows; never holding [S, V].

    Args:
        bounds: of the slices of the vocabulary. p is a softmax over the slice that the target lies in; 0 is the loss
            of a target in none.
    """
    tokens, segments, positions = (jnp.asarray(x) for x in (batch.tokens, batch.segments, batch.positions))
    hidden = forward(weights, tokens, segments, positions, config=config, frequencies=frequencies, mesh=mesh)
    matrices = [head(weights)[:, start:stop] for start, stop in bounds]

    def loss(token: tuple[Array, Array]) -> Array:
        hidden, target = token
        found = jnp.float32(0)
        for matrix, (start, stop) in zip(matrices, bounds, strict=True):
            logits = (hidden @ matrix).astype(jnp.float32)
            inside = (start <= target) & (target < stop)
            found = jnp.where(inside, jax.nn.logsumexp(logits) - logits[target - start], found)
        return found

    flat = (hidden.reshape(-1, config.dim), batch.targets.reshape(-1))
    return jax.lax.map(loss, flat, batch_size=_CHUNK).reshape(batch.targets.shape)


def text_rows(ids: Int32[np.ndarray, " N"], length: int, rows: int, opening: tuple[int, ...]) -> Batch:
    """Windows of `length` tokens spread evenly over the text, at most `rows`: tokens (bos and all but the last),
    targets. Without bos the first token of a window is no target.
    """
    windows = len(ids) // length
    chosen = np.unique(np.linspace(0, windows - 1, min(rows, windows)).round().astype(int))
    tokens = targets = np.stack([ids[w * length : (w + 1) * length] for w in chosen])
    if opening:
        tokens = np.concatenate([np.full((len(targets), 1), opening, np.int32), targets[:, :-1]], axis=1)
    else:
        tokens, targets = targets[:, :-1], targets[:, 1:]
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return Batch(tokens, targets, np.ones_like(tokens), positions, np.ones(tokens.shape, np.float32))


def document_rows(documents: Source, length: int, rows: int, vocabulary: Vocabulary) -> Batch:
    """Documents in an order drawn once and for all, whole and side by side as they are packed for training, in at most
    `rows` rows; of a document that is longer than a row, its beginning.
    """
    packed: list[list[tuple[Framed, int]]] = []
    room = 0
    for index in np.random.default_rng(0).permutation(len(documents)).tolist():
        document = frame(documents[index], vocabulary)
        if len(document) > room:
            if len(packed) == rows:
                break
            packed.append([])
            room = length
        packed[-1].append((document, 0))
        room -= len(document)
    arrays = zip(*(pack_row(pieces, length, vocabulary, "token") for pieces in packed), strict=True)
    return Batch(*map(np.stack, arrays))


def evaluate_perplexity(
    model: Model, data: str, *, length: int, out: Path, rows: int = 16, every: int = 0, batch_tokens: int = 32768
) -> PerplexityResult:
    """Measures rows of `length` tokens of held-out text or documents, and writes `perplexity.json` and
    `perplexity.png` into `out`.

    Texts are joined and cut, so a row may hold the end of one and the beginning of the next; each row begins with bos,
    where the model has one, and sees no other. Documents that `tokenize` wrote share rows without seeing each other, as
    in training, and a position is one in its document. What counts of them is what is trained on, each token once;
    text then has the delimiters of vision in it, and the ends of documents.

    Args:
        data: a corpus (its held-out part), a text file, or a folder of shards: of these, those documents that training
            holds out.
        rows: at most; windows are spread evenly over the text.
        every: seconds. In shards, the time stands in a film behind every so many; 0: nowhere.
        batch_tokens: tokens that go through the model at once, which bounds the memory.

    Raises:
        UserError: no such data, a text that is shorter than one window, or documents that are none for the model or in
            which nothing is trained on.
    """
    if length < 2 or rows < 1:
        raise UserError(f"{rows} windows of {length} tokens were asked for: take at least 1 window of 2 tokens")
    vocabulary = model.tokenizer.vocabulary
    settings: dict[str, Any] = {"data": data, "length": length}
    if data not in CORPORA and Path(data).is_dir():
        source = ShardsConfig(data, every=every or None).build(
            Given(model.tokenizer, length, 0, "heldout", model.frames)
        )
        batch, slices = document_rows(source, length, rows, vocabulary), vocabulary.modalities
        settings["every"] = every
    else:
        batch = text_rows(_ids(model, data, length), length, rows, vocabulary.opening)
        slices = vocabulary.modalities[:1]
    losses = _losses(model, batch, slices, max(1, min(len(batch.tokens), batch_tokens // length)))
    text, *vision = [tuple(_ranges(losses, batch, part)) for part in slices]
    if not text:
        raise UserError(
            f"in rows of {length} tokens the held-out documents of {data} have no text that is trained on: ask for a "
            "greater length, or take other documents"
        )
    settings |= {
        "rows": len(batch.tokens),
        "model": model.fingerprint,
        "context_length": model.context_length,
    }
    result = PerplexityResult(settings, text, *vision)
    write_json(out / "perplexity.json", result.to_dict())
    write_result(out / "perplexity.png", result.picture())
    return result


def _ids(model: Model, data: str, length: int) -> Int32[np.ndarray, " N"]:
    """All of the text, one after the other."""
    ids = np.concatenate([np.array(i, np.int32) for i in model.tokenizer.encode_batch(held_out_texts(data))])
    if len(ids) < length:
        raise UserError(
            f"windows of {length:,} tokens were asked for, but the held-out text {data} has {len(ids):,} tokens: "
            "ask for a shorter length, or give a longer text"
        )
    return ids


def _losses(model: Model, batch: Batch, slices: tuple[slice, ...], size: int) -> Float32[np.ndarray, "B S"]:
    """`token_losses` of so many rows at a time, padded to what divides over the mesh; the padding is cut off again."""
    rows, length = batch.tokens.shape
    height = size + -size % axis_size(model.mesh, "batch")
    width = length + -length % prompt_multiple(model.mesh)
    sharding = named_sharding(model.mesh, ("batch", "sequence"))

    def put(array: np.ndarray) -> jax.Array:
        return jax.device_put(np.pad(array, ((0, height - len(array)), (0, width - length))), sharding)

    losses: list[np.ndarray] = []
    for first in range(0, rows, size):
        found = token_losses(
            model.weights,
            jax.tree.map(lambda array, first=first: put(array[first : first + size]), batch),
            model.frequencies(length),
            config=model.config,
            mesh=model.mesh,
            bounds=tuple((part.start, part.stop) for part in slices),
        )
        losses.append(np.asarray(found)[:size, :length])
    return np.concatenate(losses)[:rows]


def _ranges(losses: Float32[np.ndarray, "B S"], batch: Batch, part: slice) -> Iterator[PositionRange]:
    """The mean loss of the targets in a slice of the vocabulary, by position."""
    counted = (batch.weights > 0) & (batch.targets >= part.start) & (batch.targets < part.stop)
    end = losses.shape[1]
    edges = [0, *(_FIRST_RANGE * 2**i for i in range(end.bit_length()) if _FIRST_RANGE * 2**i < end), end]
    for start, stop in pairwise(edges):
        chosen = losses[counted & (start <= batch.positions) & (batch.positions < stop)]
        if chosen.size:
            yield PositionRange(start, stop, chosen.size, float(chosen.mean(dtype=np.float64)))
