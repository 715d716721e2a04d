"""Text to ids and back: byte-level BPE, so that any Unicode round-trips and nothing is unknown.

Whoever frames a document writes bos and eos, once; the tokenizer never does. Text that spells a special token stays
text.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self, SupportsIndex

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.tokens.vocabulary import Vocabulary

SPECIALS = ("<pad>", "<bos>", "<eos>")
BYTES = 256

# Digits stand alone, so that a number is copied digit by digit; otherwise GPT-2's split into words, signs and space.
WORDS = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


class TextTokenizer:
    """A `tokenizers.Tokenizer` and the `Vocabulary` whose text ids it speaks.

    Attributes:
        chat_template: how turns of a conversation become text: a Jinja template, as Hugging Face's tokenizers carry
            one. None: the model was trained on no conversations.
    """

    def __init__(self, tokenizer: Tokenizer, vocabulary: Vocabulary, chat_template: str | None = None) -> None:
        if tokenizer.get_vocab_size() > vocabulary.text_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.get_vocab_size()} ids, more than the vocabulary's {vocabulary.text_size}"
            )
        # Without this, a user who writes "<eos>" would end the document.
        tokenizer.encode_special_tokens = True
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self.chat_template = chat_template
        self._silent = frozenset((*vocabulary.opening, vocabulary.eos, vocabulary.pad))

    @property
    def inner(self) -> Tokenizer:
        """What it is made of, for those who build on that."""
        return self._tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def of(self, vocabulary: Vocabulary) -> "TextTokenizer":
        """The same tokenizer for another vocabulary with its text ids in it."""
        return TextTokenizer(self._tokenizer, vocabulary, self.chat_template)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: no bos, no eos."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, on all cores."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of the ids; bos, eos and pad are silent. Bytes that are no UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids if i not in self._silent], skip_special_tokens=False)

    def stream(self) -> "TextStream":
        """A decoder that takes one id at a time."""
        return TextStream(self)

    def to_json(self) -> str:
        parts = {"vocabulary": self._vocabulary.to_dict(), "tokenizer": json.loads(self._tokenizer.to_str())}
        if self.chat_template is not None:
            parts["chat_template"] = self.chat_template
        return json.dumps(parts, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Raises UserError when the text is not what `to_json` wrote."""
        try:
            parts = json.loads(text)
            vocabulary = Vocabulary.from_dict(parts["vocabulary"])
            tokenizer = Tokenizer.from_str(json.dumps(parts["tokenizer"], ensure_ascii=False))
        except Exception as error:  # `tokenizers` raises bare Exception
            raise UserError(
                f"this is not a tokenizer of ours ({type(error).__name__}: {error}); it must be a JSON object with "
                "'vocabulary' and 'tokenizer', as a run folder's tokenizer.json is"
            ) from error
        return cls(tokenizer, vocabulary, parts.get("chat_template"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes what `load` reads, whole or not at all."""
        write_atomically(Path(path), self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Raises UserError when there is no such file or it is not a tokenizer."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot read the tokenizer {path}: {error}") from error
        try:
            return cls.from_json(text)
        except UserError as error:
            raise UserError(f"cannot read the tokenizer {path}: {error}") from error


class TextStream:
    """Decodes ids as they come. All that `push` and a last `flush` return, joined, equals `decode` of all the ids."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._said: list[int] = []
        self._held: list[int] = []

    def push(self, token: SupportsIndex) -> str:
        """The text that became complete with this id: perhaps "", never half a character."""
        self._held.append(int(token))
        text = self._new_text()
        # A character of several tokens decodes to U+FFFD until its last byte is there.
        if text.endswith("\N{REPLACEMENT CHARACTER}"):
            return ""
        self._said, self._held = self._held, []
        return text

    def flush(self) -> str:
        """What is held back still, when no more ids come."""
        text = self._new_text()
        self._said, self._held = [], []
        return text

    def _new_text(self) -> str:
        # The ids said last stand before the new ones, since some decoders treat the start of a text differently.
        before = self._tokenizer.decode(self._said)
        return self._tokenizer.decode(self._said + self._held)[len(before) :]


def train_tokenizer(texts: Iterable[str], size: int, phrases: Sequence[str] = ()) -> TextTokenizer:
    """Byte-level BPE with `size` ids: <pad> 0, <bos> 1, <eos> 2, then bytes and merges, then `phrases`, one id each.

    A phrase (ASCII) is one token wherever it occurs in a text: fixed wording, such as a prompt's, costs little then.
    The vocabulary has `size` ids even where the texts are too few to give so many merges. The same texts give the same
    tokenizer.

    Raises:
        ValueError: `size` has no room for the specials, the bytes and the phrases.
    """
    if size < len(SPECIALS) + BYTES + len(phrases):
        raise ValueError(
            f"size must be at least {len(SPECIALS) + BYTES + len(phrases)}, got {size}: "
            f"{len(SPECIALS)} special ids, {BYTES} bytes and {len(phrases)} phrases"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(phrases),
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    pad, bos, eos = range(len(SPECIALS))
    return TextTokenizer(tokenizer, Vocabulary(text_size=size, bos=bos, eos=eos, pad=pad))
