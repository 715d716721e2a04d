from pathlib import Path

import numpy as np
import pytest

from ringworld.data.documents import Document, Span, TextDocuments, read_text_folder
from ringworld.errors import UserError
from ringworld.tokens.text import train_tokenizer

TOKENIZER = train_tokenizer(["one two three"], 280)


def test_tokens_and_weights_follow_the_spans() -> None:
    document = Document((Span("text", np.array([5, 6], np.int32), 0.0), Span("text", np.array([7], np.int32), 0.5)))
    assert document.tokens.tolist() == [5, 6, 7]
    assert document.weights.tolist() == [0.0, 0.0, 0.5]
    assert (document.tokens.dtype, document.weights.dtype, len(document)) == (np.int32, np.float32, 3)
    empty = Document(())
    assert (empty.tokens.tolist(), empty.weights.tolist(), len(empty)) == ([], [], 0)


def test_spans_do_not_each_get_a_bos() -> None:
    documents = TextDocuments(["one", "two three"], TOKENIZER)
    assert documents[1].tokens.tolist() == TOKENIZER.encode("two three")
    assert not {1, 2} & set(documents[0].tokens.tolist())


def test_text_folder(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "a.txt").write_text("two")
    (tmp_path / "c.txt").write_text("one\r\n", newline="")
    (tmp_path / "notes.md").write_text("no")
    folder = read_text_folder(tmp_path, TOKENIZER)
    assert [TOKENIZER.decode(folder[i].tokens) for i in range(len(folder))] == ["two", "one\n"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ab\xff", "is not UTF-8 text: byte 0xff at offset 2"),
        (b" \n", "a.txt is empty; take it out"),
        (b"a\0b", "a.txt is not text: it has zero bytes; take it out"),
    ],
)
def test_files_that_are_not_text(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_text_folder(tmp_path, TOKENIZER)


def test_folders_without_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*missing"):
        read_text_folder(tmp_path / "missing", TOKENIZER)
    with pytest.raises(UserError, match=r"holds no \*.txt file"):
        read_text_folder(tmp_path, TOKENIZER)
