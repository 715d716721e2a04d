"""Conversations as documents: what an assistant says and shows is trained on, the rest is read."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import Any, get_args

import numpy as np
from jaxtyping import Float, Int32, Integer

from ringworld.data.documents import Document, Span
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Message, Part, Role
from ringworld.tokens.vocabulary import Vocabulary


def said_in(messages: Any) -> list[tuple[Role, dict[str, Any]]]:
    """The spans of what a raw document has under "messages", each with who says or shows it.

        [{"role": "user", "content": "Draw a cat."}, {"role": "assistant", "content": [{"image": "cat.png"}]}]

    Raises:
        ValueError: it is no conversation, or nobody answers in it; says why.
    """
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError('"messages" must be a list of objects with "role" and "content"')
    said: list[tuple[Role, dict[str, Any]]] = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if role not in get_args(Role):
            raise ValueError(f'a message must have a "role", one of {", ".join(get_args(Role))}, got {role!r}')
        parts = [{"text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f'a message must have "content", a string or a list of spans, got {content!r}')
        if any("trained" in part for part in parts):
            raise ValueError('"trained" does not stand in "messages", of which the answers are trained on')
        said += [(role, part) for part in parts]
    if not any(role == "assistant" for role, _ in said):
        raise ValueError('"messages" must have an answer, what an assistant says or shows')
    return said


def messages_of(said: Iterable[tuple[Role, Part]]) -> list[Message]:
    """A conversation from who says or shows what, in order: what one says on end is one message."""
    return [{"role": role, "content": [part for _, part in parts]} for role, parts in groupby(said, key=itemgetter(0))]


def conversation(messages: Sequence[Message], template: ChatTemplate, vocabulary: Vocabulary) -> Document:
    """The document of a conversation, in the ids that a chat with a model comes to.

    An answer begins where the template asks for it and goes on to the id that ends it. Each answer's tokens weigh 1 in
    all, or as much as it has frames; all else weighs nothing.

    Raises:
        UserError: the template does not write a conversation as a continuation of its beginning.
    """
    ids, answers = _encoded(messages, template)
    return _spans(np.array(ids, np.int32), answers, vocabulary)


@dataclass(frozen=True)
class Exchange:
    """A question and its answer in ids, of which the answer's begin at `answer`."""

    ids: Int32[np.ndarray, "n"]
    answer: int


class LongReading:
    """Puts together conversations in which something long is shown once and then asked about, turn by turn.

    The ids are those of `conversation`, in a time that grows with the turns and not with their square: of a turn but
    the first it is taken for granted that its ids do not depend on what was said in those before.
    """

    def __init__(self, template: ChatTemplate, vocabulary: Vocabulary) -> None:
        """Raises UserError as `conversation`."""
        self._template, self._vocabulary = template, vocabulary
        self._before = _turns("?", "?")
        self._before_ids, _ = _encoded(self._before, template)

    def opening(self, asked: str | list[Part], answer: str | list[Part]) -> Exchange:
        """What is shown and the first question about it, and the answer. Raises UserError as `conversation`."""
        ids, ((start, _),) = _encoded(_turns(asked, answer), self._template)
        return Exchange(np.array(ids, np.int32), start)

    def following(self, asked: str | list[Part], answer: str | list[Part]) -> Exchange:
        """Another question. Raises UserError as `conversation`."""
        turns = [*self._before, *_turns(asked, answer)]
        ids, ((start, _),) = _encoded(turns, self._template, self._before_ids, len(self._before))
        known = len(self._before_ids)
        return Exchange(np.array(ids[known:], np.int32), start - known)

    def document(self, exchanges: Sequence[Exchange]) -> Document:
        """An opening and what follows it, as a document whose answers are trained on, with the weights of
        `conversation`."""
        ends = np.cumsum([len(exchange.ids) for exchange in exchanges]).tolist()
        answers = [
            (end - len(exchange.ids) + exchange.answer, end) for exchange, end in zip(exchanges, ends, strict=True)
        ]
        return _spans(np.concatenate([exchange.ids for exchange in exchanges]), answers, self._vocabulary)


def _turns(asked: str | list[Part], answer: str | list[Part]) -> list[Message]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _encoded(
    messages: Sequence[Message], template: ChatTemplate, ids: list[int] | None = None, known: int = 0
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a conversation up to the end of its last answer, and from where to where in them each answer is.

    Args:
        ids: those of the first `known` turns, whose answers are left out of what is returned.
    """
    ids = ids or []
    answers: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if turn < known or message["role"] != "assistant":
            continue
        asked = template.encode(messages[:turn], add_generation_prompt=True)
        answered = template.encode(messages[: turn + 1])
        if asked[: len(ids)] != ids or answered[: len(asked)] != asked or template.end not in answered[len(asked) :]:
            raise UserError(
                "the beginning of a conversation is written in other tokens once the conversation goes on, so no model "
                "can be trained on its answers one after another: use another chat template, or a tokenizer that does "
                "not join what the template ends with and what an answer begins with"
            )
        stop = len(asked) + answered[len(asked) :].index(template.end) + 1
        answers.append((len(asked), stop))
        ids = answered[:stop]
    return ids, answers


def vision_alone(ids: Integer[np.ndarray, " n"], vocabulary: Vocabulary) -> Document:
    """A picture or a film that no words ask for: LWM's unconditional prompt, bos and `<vision>`, and what follows it,
    with the weights of an answer.

    Args:
        ids: with their delimiters (see `tokens.vision`).
    """
    opening = [*vocabulary.opening, *vocabulary.vision_start]
    whole = np.array([*vocabulary.opening, *ids, vocabulary.eos], np.int32)
    return _spans(whole, [(len(opening), len(whole))], vocabulary)


def _spans(ids: Integer[np.ndarray, " n"], answers: Sequence[tuple[int, int]], vocabulary: Vocabulary) -> Document:
    weights = np.zeros(len(ids), np.float32)
    seen = ids >= vocabulary.text_size
    for start, stop in answers:
        # A code weighs as much in a film as in a picture.
        frames = seen[start:stop].sum() / (vocabulary.codes_per_frame + 1)
        weights[start:stop] = max(1, frames) / (stop - start)
    return weighted(ids, weights, vocabulary)


def weighted(ids: Integer[np.ndarray, " n"], weights: Float[np.ndarray, " n"], vocabulary: Vocabulary) -> Document:
    """A document of ids of text and vision, each with its weight as a target."""
    seen = ids >= vocabulary.text_size
    kinds = np.stack([weights, seen])
    edges = [0, *(np.flatnonzero(np.any(kinds[:, 1:] != kinds[:, :-1], axis=0)) + 1), len(ids)]
    return Document(
        tuple(
            Span("vision" if ids[start] >= vocabulary.text_size else "text", ids[start:stop], float(weights[start]))
            for start, stop in pairwise(edges)
        )
    )
