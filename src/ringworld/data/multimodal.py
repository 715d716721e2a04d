"""Tokenised documents as training documents: text encoded, codes as ids of a model's vocabulary.

A text becomes its ids; a picture or a film `<vision>`, its frames with eof and eov, `</vision>`, as in
`ringworld.tokens.vision`. Both directions between text and vision can be learned from one set of pairs, as LWM learns
them (arXiv 2402.08268, section 4.2), and texts can be left out for classifier-free guidance (arXiv 2207.12598).
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Integer

from ringworld.data.conversations import conversation, messages_of, vision_alone
from ringworld.data.documents import Document, Span
from ringworld.data.tokenized import (
    MarkSpan,
    TextSpan,
    TokenizedDocument,
    TokenizedDocuments,
    TokenizedSpan,
    VisionSpan,
    made_with,
)
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Message, Part, Role
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vision import frame_ids, timed, vision_ids
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


def model_spans(
    span: TokenizedSpan, weight: float, tokenizer: TextTokenizer, every: int | None = None
) -> Iterator[Span]:
    """A tokenised span in a model's ids, all of it with this weight.

    Args:
        tokenizer: its vocabulary is the model's.
        every: as in `ShardDocuments`.

    Raises:
        Unfit: it does not fit the vocabulary.
    """
    vocabulary = tokenizer.vocabulary
    if isinstance(span, MarkSpan):
        ids = vocabulary.opening if span.mark == "bos" else (vocabulary.eos,)
        yield Span("text", np.array(ids, np.int32), weight)
        return
    for part in _parts(span, vocabulary, every):
        if isinstance(part, str):
            yield Span("text", np.array(tokenizer.encode(part), np.int32), weight)
        else:
            yield from vision_spans(part, weight, vocabulary)


class ShardDocuments:
    """A source of the documents that `tokenize` wrote: `source[i]` depends on i and the arguments alone.

    Each token's weight as a target is its span's "trained": true is 1, false 0; where no span of a document says it,
    all of it is trained, where any does, the others are not. The delimiters weigh what their vision weighs.

    A pair is a document of one text and one vision. Whether one is swapped or loses its text is drawn from (seed, i),
    so it is the same in every pass.

    A conversation is laid out by the tokenizer's chat template, and its answers alone are trained on (see
    `data.conversations`). One vision that nobody asked for stands for itself.

    Args:
        folder: of the shards.
        tokenizer: its vocabulary is the model's.
        swap: the probability that a pair comes in the other order. Its weights keep their places: where the first is
            read and the second learned, that is so in the other order, too.
        drop_text: the probability that a pair that comes text first, or a conversation in which words ask for a vision
            and nothing else is answered, comes as its vision alone. bos `<vision>` is what a picture is drawn from
            without a prompt.
        every: seconds. A film comes in parts of so many, each a vision of its own that ends with eov, with the time
            behind it as text (see `tokens.vision.timed`), which weighs what its film weighs.
        frames: the model's tokenizer of frames. None: nobody knows whether it made the shards.

    Raises:
        UserError: there are no such shards, another tokenizer of frames made them, or an option is out of its range;
        and of a document, from here or when it is asked for, that its frames do not fit the vocabulary. Here some
        documents of the whole folder are looked at: one tokenizer made them all.
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
        frames: FrameTokenizer | None = None,
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
        if frames is not None and made_with(self.folder) not in (None, frames.fingerprint):
            raise UserError(
                f"another tokenizer of frames than the model's made {self.folder}, so its codes would mean nothing: "
                "tokenise it again with the model's, or give the recipe the one that made it"
            )
        for index in np.unique(np.linspace(0, len(self) - 1, min(_PROBED, len(self)), dtype=np.int64)).tolist():
            self[index]

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index: int) -> Document:
        document = self._documents[index]
        swapped, dropped = np.random.default_rng((self._seed, index)).random(2) < (self._swap, self._drop_text)
        try:
            if any(span.role for span in document.spans):
                return self._conversation(document, dropped=bool(dropped))
            spans = _arranged(_weighed(document), swapped=bool(swapped), dropped=bool(dropped))
            parts = (model_spans(span, weight, self._tokenizer, self._every) for span, weight in spans)
            return Document(tuple(chain.from_iterable(parts)))
        except Unfit as error:
            raise UserError(f"document {index} of {self.folder}, made of {document.source}, {error}") from error
        except UserError as error:
            raise UserError(f"document {index} of {self.folder}, made of {document.source}: {error}") from error

    def _conversation(self, document: TokenizedDocument, *, dropped: bool) -> Document:
        vocabulary = self._tokenizer.vocabulary
        said: list[tuple[Role, Part]] = []
        for span in document.spans:
            if isinstance(span, MarkSpan) or span.role is None:
                raise Unfit("is a conversation in which nobody says one of its spans: tokenise it again")
            for part in _parts(span, vocabulary, self._every):
                said.append((span.role, part if isinstance(part, str) else vision_ids(part, vocabulary)))
        messages = messages_of(said)
        drawn = messages[-1]["content"][0]
        if isinstance(drawn, np.ndarray) and _is_drawing(messages) and (dropped or len(messages) == 1):
            return vision_alone(drawn, vocabulary)
        return conversation(messages, self._template, vocabulary)

    @cached_property
    def _template(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer)


def _arranged(
    spans: list[tuple[TokenizedSpan, float]], *, swapped: bool, dropped: bool
) -> list[tuple[TokenizedSpan, float]]:
    """The spans with their weights; of a pair, in the order that was drawn for it."""
    if {type(span) for span, _ in spans} != {TextSpan, VisionSpan} or len(spans) != 2:
        return spans
    if swapped:
        (first, weight), (second, other) = spans
        spans = [(second, weight), (first, other)]
    return spans[1:] if dropped and isinstance(spans[0][0], TextSpan) else spans


def _is_drawing(messages: Sequence[Message]) -> bool:
    """Whether words ask for one vision, which is all that is answered."""
    *asked, answer = messages
    return (
        answer["role"] == "assistant"
        and len(answer["content"]) == 1
        and all(message["role"] != "assistant" and _in_words(message) for message in asked)
    )


def _in_words(message: Message) -> bool:
    return all(isinstance(part, str) for part in message["content"])


def _parts(
    span: TextSpan | VisionSpan, vocabulary: Vocabulary, every: int | None
) -> Iterator[str | Int32[np.ndarray, "F h w"]]:
    """Texts, and the codes of visions, of which a film has several where the time stands in it."""
    if isinstance(span, TextSpan):
        yield span.text
        return
    _check(span, vocabulary)
    frames = len(span.codes)
    if every is None or frames == 1:
        yield span.codes
        return
    if span.fps is None:
        raise Unfit(f"has a film of {frames} frames that does not say its fps, so no clock: tokenise it with an fps")
    for part, time in timed(frames, span.fps, every):
        yield span.codes[part]
        yield time


class Unfit(Exception):
    """Why a document is none for this vocabulary."""


def _weighed(document: TokenizedDocument) -> list[tuple[TokenizedSpan, float]]:
    for trained in (span.trained for span in document.spans if span.trained is not None):
        if not isinstance(trained, bool | int | float) or not 0 <= trained <= _MAX_WEIGHT:
            raise Unfit(f'has "trained" {trained!r}: it must be true, false or a number from 0 up')
    default = all(span.trained is None for span in document.spans)
    return [(span, float(default if span.trained is None else span.trained)) for span in document.spans]


def _check(span: VisionSpan, vocabulary: Vocabulary) -> None:
    if not vocabulary.vision_size:
        raise Unfit("has vision, but the model's vocabulary has none: give it one with vision")
    frames, *size = span.codes.shape
    if not frames:
        raise Unfit("has vision without a frame: take it out")
    if tuple(size) != (vocabulary.frame_height, vocabulary.frame_width):
        raise Unfit(
            f"has frames of {size[0]}x{size[1]} codes, and those of the model's vocabulary are "
            f"{vocabulary.frame_height}x{vocabulary.frame_width}: take the tokenizer of frames that it is for"
        )
    if (largest := int(span.codes.max())) >= vocabulary.codes:
        raise Unfit(
            f"has the code {largest}, and those of the model's vocabulary are 0 to {vocabulary.codes - 1}: take the "
            "tokenizer of frames that it is for"
        )
