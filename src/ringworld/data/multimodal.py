"""Tokenised documents as training documents: text encoded, codes as ids of a model's vocabulary.

A text becomes its ids; a picture or a film `<vision>`, its frames with eof and eov, `</vision>`, as in
`ringworld.tokens.vision`. Both directions between text and vision can be learned from one set of pairs, as LWM learns
them (arXiv 2402.08268, section 4.2), and texts can be left out for classifier-free guidance (arXiv 2207.12598).
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Integer

from ringworld.data.documents import Document, Span
from ringworld.data.tokenized import TextSpan, TokenizedDocument, TokenizedDocuments, VisionSpan
from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import frame_ids, timed
from ringworld.tokens.vocabulary import Vocabulary

_PROBED = 64  # documents that are looked at before training begins
_MAX_WEIGHT = float(np.finfo(np.float32).max)


def vision_spans(codes: Integer[np.ndarray, "F h w"], weight: float, vocabulary: Vocabulary) -> tuple[Span, Span, Span]:
    """`<vision>`, the frames, `</vision>`: delimiters are text. All of it weighs `weight`. Raises ValueError as
    `frame_ids`."""
    opening, closing = (np.array(ids, np.int32) for ids in (vocabulary.vision_start, vocabulary.vision_end))
    return (
        Span("text", opening, weight),
        Span("vision", frame_ids(codes, vocabulary), weight),
        Span("text", closing, weight),
    )


class ShardDocuments:
    """A source of the documents that `tokenize` wrote: `source[i]` depends on i and the arguments alone.

    Each token's weight as a target is its span's "trained": true is 1, false 0; where no span of a document says it,
    all of it is trained, where any does, the others are not. The delimiters weigh what their vision weighs.

    A pair is a document of one text and one vision. Whether one is swapped or loses its text is drawn from (seed, i),
    so it is the same in every pass.

    Args:
        folder: of the shards.
        tokenizer: its vocabulary is the model's.
        swap: the probability that a pair comes in the other order. Its weights keep their places: where the first is
            read and the second learned, that is so in the other order, too.
        drop_text: the probability that a pair that comes text first comes as its vision alone. bos `<vision>` is what
            a picture is drawn from without a prompt.
        every: seconds. A film comes in parts of so many, each a vision of its own that ends with eov, with the time
            before it as text (see `tokens.vision.timed`), which weighs what its film weighs.

    Raises:
        UserError: there are no such shards, or an option is out of its range; and of a document, from here or when it
            is asked for, that its frames do not fit the vocabulary. Here some documents of the whole folder are looked
            at: one tokenizer made them all.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        tokenizer: TextTokenizer,
        *,
        swap: float = 0.0,
        drop_text: float = 0.0,
        every: int | None = None,
        seed: int = 0,
    ) -> None:
        for name, value in (("swap", swap), ("drop_text", drop_text)):
            if not 0 <= value <= 1:
                raise UserError(f"{name} must be 0 to 1, a probability; got {value}")
        if every is not None and every < 1:
            raise UserError(f"every must be 1 or more, in seconds, or None for no clock; got {every}")
        self.folder = Path(folder)
        self._documents = TokenizedDocuments(self.folder)
        self._tokenizer = tokenizer
        self._swap = swap
        self._drop_text = drop_text
        self._every = every
        self._seed = seed
        for index in np.unique(np.linspace(0, len(self) - 1, min(_PROBED, len(self)), dtype=np.int64)).tolist():
            self[index]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        document = self._documents[index]
        try:
            spans = self._arranged(_weighed(document), index)
            return Document(tuple(part for span, weight in spans for part in self._spans(span, weight)))
        except _Unfit as error:
            raise UserError(f"document {index} of {self.folder}, made of {document.source}, {error}") from error

    def _arranged(
        self, spans: list[tuple[TextSpan | VisionSpan, float]], index: int
    ) -> list[tuple[TextSpan | VisionSpan, float]]:
        """The spans of document `index` with their weights, in the order that was drawn for it."""
        if {type(span) for span, _ in spans} != {TextSpan, VisionSpan} or len(spans) != 2:
            return spans
        swapped, dropped = np.random.default_rng((self._seed, index)).random(2) < (self._swap, self._drop_text)
        if swapped:
            (first, weight), (second, other) = spans
            spans = [(second, weight), (first, other)]
        return spans[1:] if dropped and isinstance(spans[0][0], TextSpan) else spans

    def _spans(self, span: TextSpan | VisionSpan, weight: float) -> Iterator[Span]:
        if isinstance(span, TextSpan):
            yield self._text(span.text, weight)
            return
        vocabulary = self._tokenizer.vocabulary
        _check(span, vocabulary)
        frames = len(span.codes)
        if self._every is None or frames == 1:
            yield from vision_spans(span.codes, weight, vocabulary)
            return
        if span.fps is None:
            raise _Unfit(
                f"has a film of {frames} frames that does not say its fps, so no clock: tokenise it with an fps"
            )
        for time, part in timed(frames, span.fps, self._every):
            yield self._text(time, weight)
            yield from vision_spans(span.codes[part], weight, vocabulary)

    def _text(self, text: str, weight: float) -> Span:
        return Span("text", np.array(self._tokenizer.encode(text), np.int32), weight)


class _Unfit(Exception):
    """Why a document is none for this vocabulary."""


def _weighed(document: TokenizedDocument) -> list[tuple[TextSpan | VisionSpan, float]]:
    for trained in (span.trained for span in document.spans if span.trained is not None):
        if not isinstance(trained, bool | int | float) or not 0 <= trained <= _MAX_WEIGHT:
            raise _Unfit(f'has "trained" {trained!r}: it must be true, false or a number from 0 up')
    default = all(span.trained is None for span in document.spans)
    return [(span, float(default if span.trained is None else span.trained)) for span in document.spans]


def _check(span: VisionSpan, vocabulary: Vocabulary) -> None:
    if not vocabulary.vision_size:
        raise _Unfit("has vision, but the model's vocabulary has none: give it one with vision")
    frames, *size = span.codes.shape
    if not frames:
        raise _Unfit("has vision without a frame: take it out")
    if tuple(size) != (vocabulary.frame_height, vocabulary.frame_width):
        raise _Unfit(
            f"has frames of {size[0]}x{size[1]} codes, and those of the model's vocabulary are "
            f"{vocabulary.frame_height}x{vocabulary.frame_width}: take the tokenizer of frames that it is for"
        )
    if (largest := int(span.codes.max())) >= vocabulary.codes:
        raise _Unfit(
            f"has the code {largest}, and those of the model's vocabulary are 0 to {vocabulary.codes - 1}: take the "
            "tokenizer of frames that it is for"
        )
