"""A small tokenizer of text that knows the codes of the shipped tokenizer of frames, and what a document says in it."""

from dataclasses import replace

from ringworld.data.documents import Document
from ringworld.tokens.chat import LWM_TEMPLATE
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vision import visions


def text_tokenizer() -> TextTokenizer:
    trained = train_tokenizer(["a small red circle at the top left"] * 3, 300, ["<vision>", "</vision>"])
    start, end = (tuple(trained.encode(mark)) for mark in ("<vision>", "</vision>"))
    vocabulary = replace(
        trained.vocabulary, codes=4096, vision_size=4098, vision_start=start, vision_end=end, frame_height=4,
        frame_width=4,
    )  # fmt: skip
    return TextTokenizer(trained.inner, vocabulary, LWM_TEMPLATE)


TEXT = text_tokenizer()


def said(document: Document) -> str:
    """The words of a document, its pictures and films as an asterisk each."""
    ids = document.tokens
    text, start = "", 0
    for vision in visions(ids, TEXT.vocabulary):
        text += TEXT.decode(ids[start : vision.start].tolist()) + "*"
        start = vision.stop
    return text + TEXT.decode(ids[start:].tolist())
