from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer, train_tokenizer

PROSE = ["The old keeper counted the lamps. The young keeper did not.\nIn 1999 they sold 27 lamps."] * 3
PHRASES = ("\nThe magic", " number is: ", " Oslo")
TOKENIZER = train_tokenizer(PROSE, 320, PHRASES)
HARD = [
    "<bos><eos><pad>",
    "日本語 🎉👨‍👩‍👧 ½²",
    "\x00\u00ff\ud7ff",
    "a  b\t\n\n c",
    "\N{REPLACEMENT CHARACTER}",
    "",
    " Oslo\nThe magic",
]


@settings(deadline=None)
@given(st.text())
def test_any_unicode_round_trips(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@settings(deadline=None)
@given(st.text())
def test_a_stream_says_the_same_and_never_half_a_character(text: str) -> None:
    ids = TOKENIZER.encode(text)
    stream = TOKENIZER.stream()
    pushed = [stream.push(i) for i in ids]
    assert "".join([*pushed, stream.flush()]) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pushed)
        assert "".join(pushed) == text


def test_a_stream_gives_back_bytes_that_are_no_utf8() -> None:
    ids = [*TOKENIZER.encode("a"), *TOKENIZER.encode("🎉")[:2], *TOKENIZER.encode("b"), *TOKENIZER.encode("é")[:1]]
    stream = TOKENIZER.stream()
    assert "".join([*(stream.push(i) for i in ids), stream.flush()]) == TOKENIZER.decode(ids)


@pytest.mark.parametrize("text", HARD)
def test_encoding_never_makes_special_ids(text: str) -> None:
    vocabulary = TOKENIZER.vocabulary
    assert (vocabulary.pad, vocabulary.bos, vocabulary.eos) == (0, 1, 2)
    loaded = TextTokenizer.from_json(TOKENIZER.to_json())
    for tokenizer in (TOKENIZER, loaded):
        assert not {0, 1, 2} & set(tokenizer.encode(text))
        assert tokenizer.encode_batch([text, "x"]) == [tokenizer.encode(text), tokenizer.encode("x")]
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_ids_are_silent() -> None:
    ids = TOKENIZER.encode("lamps")
    assert TOKENIZER.decode([1, *ids, 2, 0, 0]) == "lamps"
    stream = TOKENIZER.stream()
    assert "".join(stream.push(i) for i in [1, *ids, 2]) == "lamps"


def test_digits_stand_alone() -> None:
    assert [TOKENIZER.decode([i]) for i in TOKENIZER.encode("1999 27")] == ["1", "9", "9", "9", " ", "2", "7"]


def test_phrases_are_one_id_each_wherever_they_occur() -> None:
    ids = TOKENIZER.encode("end.\nThe magic Oslo number is: 12")
    assert [TOKENIZER.decode([i]) for i in ids[-5:]] == ["\nThe magic", " Oslo", " number is: ", "1", "2"]


def test_training_is_deterministic_and_has_the_size_asked_for() -> None:
    assert train_tokenizer(PROSE, 320, PHRASES).to_json() == TOKENIZER.to_json()
    assert TOKENIZER.vocabulary.size == 320
    assert train_tokenizer(["ab"], 5000).vocabulary.size == 5000
    with pytest.raises(ValueError, match="size must be at least 262, got 261"):
        train_tokenizer(PROSE, 261, PHRASES)


def test_save_and_load(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.vocabulary == TOKENIZER.vocabulary
    assert loaded.to_json() == TOKENIZER.to_json()


@pytest.mark.parametrize("content", [b"{}", b"not json", b"\xff\xfe", b'{"vocabulary": {}, "tokenizer": {}}', b"[]"])
def test_what_is_no_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"cannot read the tokenizer {path}"):
        TextTokenizer.load(path)
    with pytest.raises(UserError, match=r"cannot read the tokenizer .*missing"):
        TextTokenizer.load(tmp_path / "missing")
