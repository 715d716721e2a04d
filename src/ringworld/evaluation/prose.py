"""Held-out prose: what no training row has shown the model, for haystacks and for perplexity."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ringworld.data.corpora import CORPORA, load_corpus, split
from ringworld.data.needles import Haystack
from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer

# The classic haystack first, then longer ones (36K, 0.5M and 0.07M held-out tokens or so).
DEFAULT = ("essays", "sotu", "moby-dick")


def held_out_texts(name: str) -> list[str]:
    """The held-out part of a corpus (`data.corpora`), or all of a UTF-8 text file, which the user vouches for.

    Raises:
        UserError: neither a corpus nor a file, an empty file, or one that is not text.
    """
    if name in CORPORA:
        return [text for _, text in split(load_corpus(name), "heldout")]
    path = Path(name)
    if not path.is_file():
        raise UserError(f"there is no corpus and no file {name!r}: give a text file, or one of {', '.join(CORPORA)}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start}): give a text file") from error
    if not text.strip():
        raise UserError(f"{path} has no text in it")
    return [text]


class HeldOutProse:
    """Haystacks out of held-out prose, read when they are asked for.

    A haystack of some length is made of the first corpora that have so many tokens together, so the haystack of a short
    context does not depend on which longer ones are tested beside it.

    Args:
        names: corpora or text files, in the order in which they are used.
        texts: gives the texts of a name; `held_out_texts` unless a test has its own.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        names: Sequence[str] = DEFAULT,
        texts: Callable[[str], list[str]] = held_out_texts,
    ) -> None:
        self.names = tuple(names)
        self._tokenizer = tokenizer
        self._loaders = [partial(texts, name) for name in names]
        self._texts: list[str] = []
        self._haystacks: list[Haystack] = []  # of the first corpus, the first two, ...

    def for_length(self, length: int) -> Haystack:
        """A haystack of at least `length` tokens.

        Raises:
            UserError: all the prose together is shorter; it says by how much.
        """
        for haystack in self._haystacks:
            if len(haystack.ids) >= length:
                return haystack
        while len(self._haystacks) < len(self._loaders):
            self._texts += self._loaders[len(self._haystacks)]()
            self._haystacks.append(Haystack(self._tokenizer, self._texts))
            if len(self._haystacks[-1].ids) >= length:
                return self._haystacks[-1]
        there = len(self._haystacks[-1].ids) if self._haystacks else 0
        raise UserError(
            f"a context of {length:,} tokens was asked for, but the held-out prose ({', '.join(self.names)}) has "
            f"{there:,} tokens: ask for shorter contexts, or add text"
        )
