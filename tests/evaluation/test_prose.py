from pathlib import Path

import pytest

from generation.models import tokenizer
from ringworld.data.corpora import load_corpus, split
from ringworld.errors import UserError
from ringworld.evaluation.prose import HeldOutProse, held_out_texts

SENTENCE = "The keeper counted the lamps. "


def test_a_corpus_gives_its_held_out_part_alone() -> None:
    texts = held_out_texts("tiny")
    assert texts == [text for _, text in split(load_corpus("tiny"), "heldout")]
    assert not set(texts) & {text for _, text in split(load_corpus("tiny"), "train")}


def test_a_file_gives_all_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Já.")
    assert held_out_texts(str(tmp_path / "a.txt")) == ["Já."]


def test_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"abc\xff\xfe")
    (tmp_path / "empty").write_text(" \n")
    with pytest.raises(UserError, match=r"binary is not UTF-8 text \(byte 3\)"):
        held_out_texts(str(tmp_path / "binary"))
    with pytest.raises(UserError, match="has no text in it"):
        held_out_texts(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"no corpus and no file 'esays': .* essays"):
        held_out_texts("esays")


def test_further_corpora_are_joined_only_when_they_are_needed() -> None:
    read: list[str] = []

    def texts(name: str) -> list[str]:
        read.append(name)
        return [SENTENCE * {"short": 10, "middle": 100, "long": 1000}[name]]

    prose = HeldOutProse(tokenizer(), ["short", "middle", "long"], texts)
    small = prose.for_length(50)
    assert read == ["short"]
    large = prose.for_length(500)
    assert read == ["short", "middle"]
    assert len(large.ids) >= 500
    assert prose.for_length(50) is small  # a short haystack stays what it was
    assert prose.for_length(len(large.ids)) is large
    assert read == ["short", "middle"]
    assert len(prose.for_length(len(large.ids) + 1).ids) > len(large.ids)
    assert read == ["short", "middle", "long"]


def test_too_little_prose_says_how_much_there_is() -> None:
    prose = HeldOutProse(tokenizer(), ["a", "b"], lambda name: [SENTENCE])
    there = 2 * len(tokenizer().encode(SENTENCE.strip() + "\n"))
    with pytest.raises(
        UserError, match=rf"1,000 tokens was asked for, but the held-out prose \(a, b\) has {there} tokens"
    ):
        prose.for_length(1000)
