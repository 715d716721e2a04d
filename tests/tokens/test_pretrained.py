import base64
import re
import struct
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from ringworld.errors import UserError
from ringworld.tokens.pretrained import (
    SPACE,
    SPLITS,
    Kind,
    Merge,
    byte_level,
    find_split,
    llama_tokenizer,
    merges_of_scores,
    sentencepiece,
)
from ringworld.tokens.text import TextTokenizer
from ringworld.tokens.vocabulary import Vocabulary

# GPT-2's alphabet, so that a letter's place among the tokens is not its byte.
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("Ġ", "hello"), ("1", "2"), ("Ġ", "Ġ"), ("'", "s")]
SPECIALS = ["<|end|>", "<|turn|>"]


def bytes_tokenizer(split: str = "smollm", extra: Sequence[str] = (), merges: Sequence[Merge] = MERGES):
    tokens = [*SPECIALS, *ALPHABET, *("".join(merge) for merge in MERGES), *extra]
    kinds = [Kind.CONTROL] * 2 + [Kind.NORMAL] * (len(tokens) - 2 - len(extra)) + [Kind.USER_DEFINED] * len(extra)
    tokenizer = byte_level(tokens, kinds, merges, find_split(split))
    return TextTokenizer(tokenizer, Vocabulary(text_size=len(tokens), bos=None, eos=0, pad=0))


# Pieces, the best first, and then letters.
PIECES = ["▁a", "ab", "▁ab", "ba", "aba", "▁▁", "<s", "ac", "cab", "▁b", "▁", "a", "b", "c", "<", "s", ">", "é"]
SCORES = [*[0.0] * 259, *(-1.0 - rank for rank in range(len(PIECES)))]
TOKENS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
KINDS = [Kind.UNKNOWN, Kind.CONTROL, Kind.CONTROL, *[Kind.BYTE] * 256, *[Kind.NORMAL] * len(PIECES)]


def pieces_tokenizer(*, space_first: bool = True) -> TextTokenizer:
    tokenizer = sentencepiece(TOKENS, KINDS, merges_of_scores(TOKENS, KINDS, SCORES), space_first=space_first)
    return TextTokenizer(tokenizer, Vocabulary(text_size=len(TOKENS), bos=1, eos=2, pad=0))


def by_sentencepiece(text: str) -> list[str]:
    """What SentencePiece does, spelled out: while two neighbours make a piece, the best of these is made, the leftmost
    of equals; then what is no piece becomes bytes.
    """
    parts = list(("▁" + text).replace(" ", "▁"))
    while True:
        pairs = [(left + right, at) for at, (left, right) in enumerate(pairwise(parts))]
        found = [(PIECES.index(piece), at) for piece, at in pairs if piece in PIECES]
        if not found:
            break
        at = min(found)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [p for part in parts for p in ([part] if part in PIECES else [f"<0x{b:02X}>" for b in part.encode()])]


def said(tokenizer: TextTokenizer, text: str) -> list[str]:
    return [tokenizer.decode([i]) for i in tokenizer.encode(text)]


BYTES_TOKENIZERS = {split: bytes_tokenizer(split) for split in SPLITS}
PIECES_TOKENIZER = pieces_tokenizer()


@given(st.text(), st.sampled_from(sorted(SPLITS)))
def test_any_unicode_comes_back_from_bytes(text: str, split: str) -> None:
    tokenizer = BYTES_TOKENIZERS[split]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids).isdisjoint({0, 1})  # no special token slips in


@given(st.text().map(lambda text: text.replace(SPACE, "")), st.booleans())
def test_any_unicode_comes_back_from_pieces(text: str, space_first: bool) -> None:
    tokenizer = PIECES_TOKENIZER if space_first else pieces_tokenizer(space_first=False)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids).isdisjoint({0, 1, 2})


def test_the_block_that_stands_for_a_space_comes_back_as_one() -> None:
    assert PIECES_TOKENIZER.decode(PIECES_TOKENIZER.encode(f"a{SPACE}b")) == "a b"


@given(st.text(alphabet="abc <s>é漢", max_size=40).filter(bool))
def test_merges_out_of_scores_do_what_sentencepiece_does(text: str) -> None:
    assert [TOKENS[i] for i in PIECES_TOKENIZER.encode(text)] == by_sentencepiece(text)


def test_merges_are_in_the_order_of_their_scores() -> None:
    merges = merges_of_scores(TOKENS, KINDS, SCORES)
    assert merges[:5] == [("▁", "a"), ("a", "b"), ("▁", "ab"), ("▁a", "b"), ("b", "a")]
    assert ("<", "s") in merges
    assert not [merge for merge in merges if "".join(merge) in ("<s>", "</s>", "<unk>")]


@pytest.mark.parametrize("tokenizer", [bytes_tokenizer(), PIECES_TOKENIZER])
def test_special_tokens_are_one_id_and_text_that_spells_them_is_text(tokenizer: TextTokenizer) -> None:
    for special in (0, 1):
        spelled = tokenizer.stream()._tokenizer._tokenizer.id_to_token(special)
        ids = tokenizer.encode(f"a{spelled}b")
        assert special not in ids
        assert tokenizer.decode(ids) == f"a{spelled}b"


def test_a_special_token_that_is_not_silent_is_spelled() -> None:
    tokenizer = bytes_tokenizer()
    assert tokenizer.decode([1, *tokenizer.encode("hello"), 0]) == "<|turn|>hello"


def test_what_a_user_defined_is_one_id_wherever_it_stands() -> None:
    tokenizer = bytes_tokenizer(extra=["hello hello"])
    assert said(tokenizer, "ahello hellohello") == ["a", "hello hello", "hello"]


@pytest.mark.parametrize(
    ("split", "text", "parts"),
    [
        ("gpt-2", "hello hello12's  hello", ["hello", " hello", "12", "'s", " ", " hello"]),
        ("smollm", "hello hello12's  hello", ["hello", " hello", "1", "2", "'s", " ", " hello"]),
        ("llama-bpe", "hello hello12's  hello", ["hello", " hello", "12", "'s", " ", " hello"]),
        ("gpt-2", "hello'S", ["hello", "'", "S"]),
        ("llama-bpe", "!hello", ["!", "hello"]),
    ],
)
def test_texts_are_split_as_the_name_says(split: str, text: str, parts: list[str]) -> None:
    assert said(bytes_tokenizer(split), text) == parts


def test_only_llama3_takes_a_whole_word_without_merges() -> None:
    for split, parts in {"llama-bpe": ["hello"], "gpt-2": list("hello")}.items():
        assert said(bytes_tokenizer(split, merges=()), "hello") == parts


def test_numbers_are_split_from_words_and_by_three_in_llama3() -> None:
    merges = [*MERGES, ("12", "3")]
    tokens = [*ALPHABET, *("".join(merge) for merge in merges)]
    vocabulary = Vocabulary(text_size=len(tokens), bos=None, eos=0, pad=0)
    tokenizer = TextTokenizer(byte_level(tokens, [Kind.NORMAL] * len(tokens), merges, SPLITS["llama3"]), vocabulary)
    assert [tokens[i] for i in tokenizer.encode("123123")] == ["123", "123"]
    assert [tokens[i] for i in tokenizer.encode("1231234")] == ["123", "123", "4"]


def test_a_byte_without_a_token_is_left_out() -> None:
    tokens = [letter for letter in ALPHABET if letter != "z"]
    tokenizer = byte_level(tokens, [Kind.NORMAL] * len(tokens), [], SPLITS["smollm"])
    vocabulary = Vocabulary(text_size=len(tokens), bos=None, eos=0, pad=0)
    assert TextTokenizer(tokenizer, vocabulary).encode("fuzzy") == [tokens.index(letter) for letter in "fuy"]


def test_a_saved_tokenizer_is_the_same() -> None:
    for tokenizer in (*BYTES_TOKENIZERS.values(), PIECES_TOKENIZER):
        again = TextTokenizer.from_json(tokenizer.to_json())
        text = "hello <s> <|turn|> 123 é漢 \n ab"
        assert again.encode(text) == tokenizer.encode(text)
        assert again.decode(again.encode(text)) == text


def test_a_split_that_is_not_known_is_refused_by_its_name() -> None:
    with pytest.raises(UserError, match="split in a way named 'tekken', which ringworld does not know: it knows gpt-2"):
        find_split("tekken")


def test_parts_that_contradict_each_other_are_named() -> None:
    with pytest.raises(UserError, match="it has 2 tokens, and says of 1 what they are"):
        byte_level(["a", "b"], [1], [], SPLITS["gpt-2"])
    with pytest.raises(UserError, match="it has the token 'a' more than once"):
        byte_level(["a", "b", "a"], [1, 1, 1], [], SPLITS["gpt-2"])
    with pytest.raises(UserError, match="it merges 'a' and 'b', and has no token 'ab'"):
        byte_level(["a", "b"], [1, 1], [("a", "b")], SPLITS["gpt-2"])
    with pytest.raises(UserError, match="it has no token for 1 of the 256 bytes, such as <0x41>"):
        sentencepiece(*zip(*((t, k) for t, k in zip(TOKENS, KINDS, strict=True) if t != "<0x41>"), strict=True), [])


def module(tokens: Sequence[str], pairs: Sequence[tuple[int, int]]) -> str:
    """What llama-tokenizer-js looks like where its data is."""
    merges = struct.pack(f"<{2 * len(pairs)}H", *(index for pair in pairs for index in pair))
    texts = {"vocab_base64": "\n".join(tokens).encode(), "merges_binary": merges}
    constants = (f'const llama_{name} = "{base64.b64encode(content).decode()}"' for name, content in texts.items())
    return "class LlamaTokenizer {}\n" + "\n\n".join(constants) + "\n"


def test_llamas_tokenizer_is_read_out_of_its_module() -> None:
    merges = merges_of_scores(TOKENS, KINDS, SCORES)
    pairs = [(TOKENS.index(left), TOKENS.index(right)) for left, right in merges]
    tokenizer = llama_tokenizer(module(TOKENS, pairs))
    assert tokenizer.vocabulary == Vocabulary(text_size=len(TOKENS), bos=1, eos=2, pad=0)
    for text in ("ab ab<s>", "é漢", ""):
        assert tokenizer.encode(text) == PIECES_TOKENIZER.encode(text)


@pytest.mark.parametrize(
    "spoilt",
    [
        "",
        module(TOKENS, [(0, 60000)]),
        module(TOKENS[:100], []),
        re.sub(r"_base64 = \"....", '_base64 = "****', module(TOKENS, [])),
    ],
    ids=["empty", "merge of no token", "cut short", "no base64"],
)
def test_a_module_that_is_none_is_refused(spoilt: str) -> None:
    with pytest.raises(UserError, match=r"this is not the module of llama-tokenizer-js .*fetch version 1\.2\.2"):
        llama_tokenizer(spoilt)
