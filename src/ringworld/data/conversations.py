"""Conversations as documents: what an assistant says and shows is trained on, the rest is read."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Integer

from ringworld.data.documents import Document, Span
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Message
from ringworld.tokens.vocabulary import Vocabulary


def conversation(messages: Sequence[Message], template: ChatTemplate, vocabulary: Vocabulary) -> Document:
    """The document of a conversation, in the ids that a chat with a model comes to.

    An answer begins where the template asks for it and goes on to the id that ends it. Each answer's tokens weigh 1 in
    all, all else nothing.

    Raises:
        UserError: the template does not write a conversation as a continuation of its beginning.
    """
    ids: list[int] = []
    answers: list[tuple[int, int]] = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
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
    return _spans(np.array(ids, np.int32), answers, vocabulary)


def vision_alone(ids: Integer[np.ndarray, " n"], vocabulary: Vocabulary) -> Document:
    """A picture or a film that no words ask for: LWM's unconditional prompt, bos and `<vision>`, and what follows it,
    whose tokens weigh 1 in all.

    Args:
        ids: with their delimiters (see `tokens.vision`).
    """
    opening = [*vocabulary.opening, *vocabulary.vision_start]
    whole = np.array([*vocabulary.opening, *ids, vocabulary.eos], np.int32)
    return _spans(whole, [(len(opening), len(whole))], vocabulary)


def _spans(ids: Integer[np.ndarray, " n"], answers: Sequence[tuple[int, int]], vocabulary: Vocabulary) -> Document:
    weights = np.zeros(len(ids), np.float32)
    for start, stop in answers:
        weights[start:stop] = 1 / (stop - start)
    kinds = np.stack([weights, ids >= vocabulary.text_size])
    edges = [0, *(np.flatnonzero(np.any(kinds[:, 1:] != kinds[:, :-1], axis=0)) + 1), len(ids)]
    return Document(
        tuple(
            Span("vision" if ids[start] >= vocabulary.text_size else "text", ids[start:stop], float(weights[start]))
            for start, stop in pairwise(edges)
        )
    )
