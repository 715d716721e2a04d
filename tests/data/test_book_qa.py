import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.seeing import TEXT
from ringworld.data.book_qa import (
    BookDocuments,
    BookQuestionsConfig,
    QuestionAnswer,
    chunks,
    read_questions,
    write_questions,
)
from ringworld.data.corpora import Part, load_corpus
from ringworld.data.documents import Document, Given
from ringworld.data.packing import frame
from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer
from tokens.test_chat import tokenizer_of

BOOKS = load_corpus("tiny")[:10]


def ask(chunk: str, random: np.random.Generator) -> QuestionAnswer | None:
    """Of every chunk that has a first word, that word."""
    return QuestionAnswer(f"Which word comes first in part {random.integers(10**6)}?", chunk.split()[0])


def written(folder: Path, chunk: int = 100, books: list[tuple[str, str]] = BOOKS) -> Path:
    path = folder / "questions.jsonl"
    write_questions(path, books, ask, TEXT, chunk=chunk)
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def changed(path: Path, *changes: tuple[int, Any]) -> Path:
    lines = [json.dumps(line) for line in lines_of(path)]
    for number, line in changes:
        lines[number - 1] = line if isinstance(line, str) else json.dumps(line)
    path.write_text("\n".join(lines))
    return path


def both(path: Path, length: int = 512, tokenizer: TextTokenizer = TEXT) -> list[BookDocuments]:
    parts: tuple[Part, ...] = ("train", "heldout")
    return [read_questions(path, tokenizer, length, part) for part in parts]


def everything(source: BookDocuments) -> list[Document]:
    return [source[index] for index in range(len(source))]


@pytest.mark.parametrize("size", [20, 100, 100000])
def test_chunks_are_the_text_in_pieces_that_end_with_sentences(size: int) -> None:
    text = BOOKS[0][1]
    pieces = [*chunks(text, TEXT, size)]
    assert "".join(pieces) == text
    assert len(pieces) == 1 if size == 100000 else len(pieces) >= len(TEXT.encode(text)) / size
    for piece in pieces[:-1]:
        assert len(TEXT.encode(piece)) <= size
        assert piece[-1].isalnum() or piece[-1] in ".,"
    if size == 100:
        assert np.mean([piece.endswith(".") for piece in pieces]) > 0.7
    assert [*chunks("a" * 50, TEXT, 7)]
    assert [*chunks("", TEXT, 7)] == []


@pytest.mark.parametrize("tokenizer", [TEXT, tokenizer_of("llama3")])
def test_every_chunk_is_in_one_document_of_its_own_book_and_asked_about(tmp_path: Path, tokenizer) -> None:
    path = written(tmp_path)
    lines = lines_of(path)
    length = 900 if tokenizer is TEXT else 3000
    train, heldout = both(path, length, tokenizer)
    asked: list[str] = []
    for source in (train, heldout):
        for document in everything(source):
            assert len(frame(document, tokenizer.vocabulary)) <= length
            text = tokenizer.decode(document.tokens)
            mine = [line for line in lines if line["question"] in text]
            assert len({line["book"] for line in mine}) == 1
            assert "".join(line["text"] for line in mine) in text  # adjacent, in the book's order
            assert text.index(mine[-1]["text"]) < min(text.index(line["question"]) for line in mine)
            assert document.weights.sum() == pytest.approx(len(mine))
            answers = tokenizer.decode(document.tokens[document.weights > 0])
            assert sorted("".join(answers.split())) == sorted("".join(line["answer"] for line in mine)) or all(
                line["answer"] in answers for line in mine
            )
            asked += [line["question"] for line in mine]
    assert sorted(asked) == sorted(line["question"] for line in lines)
    # As many as fit: two documents of a book one after the other would not fit into one.
    lengths = [len(frame(document, tokenizer.vocabulary)) for document in everything(train)]
    assert max(lengths) > 0.75 * length


def test_questions_come_in_another_order_than_chunks(tmp_path: Path) -> None:
    path = written(tmp_path)
    numbers = {line["question"]: number for number, line in enumerate(lines_of(path))}
    mixed = 0
    for document in everything(both(path, 2000)[0]):
        text = TEXT.decode(document.tokens)
        found = sorted((text.index(question), number) for question, number in numbers.items() if question in text)
        order = [number for _, number in found]
        assert sorted(order) == [*range(min(order), max(order) + 1)]
        mixed += order != sorted(order)
    assert mixed > 4


def test_whole_books_are_held_out_about_a_fifth_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, 200)
    of_book = {line["question"]: line["book"] for line in lines_of(path)}
    texts = ("".join(TEXT.decode(document.tokens) for document in everything(source)) for source in both(path))
    books = [{book for question, book in of_book.items() if question in text} for text in texts]
    assert not books[0] & books[1]
    assert 1 <= len(books[1]) <= 2
    assert len(books[0] | books[1]) == 10
    config = BookQuestionsConfig(str(path))
    assert config.build(Given(TEXT, 512, 0))[3].tokens.tolist() == read_questions(path, TEXT, 512)[3].tokens.tolist()
    short = BookQuestionsConfig(str(path), length=300).build(Given(TEXT, 512, 0))
    assert all(len(frame(short[index], TEXT.vocabulary)) <= 300 for index in range(len(short)))


def test_chunks_without_a_question_or_words_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    count = write_questions(
        path, [("a", "one two"), ("b", "  "), ("c", "three")],
        lambda chunk, random: None if "one" in chunk else QuestionAnswer("?", "!"), TEXT,
    )  # fmt: skip
    assert count == 1
    assert lines_of(path) == [{"book": "c", "text": "three", "question": "?", "answer": "!"}]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r":3: not JSON"),
        ([], r":3: must be a JSON object, got list"),
        ({"text": "a", "question": "b", "answer": "c"}, r':3: must have "book", a string that is not empty; got None'),
        ({"book": "a", "text": " ", "question": "b", "answer": "c"}, r':3: must have "text", a string .* got \' \''),
        ({"book": "a", "text": "a", "question": 3, "answer": "c"}, r':3: must have "question", a string .* got 3'),
        ({"book": "a", "text": "a", "question": "b", "answer": "\ud800"}, r':3: "answer" is not Unicode'),
    ],
)
def test_malformed_lines_are_named(tmp_path: Path, line: Any, said: str) -> None:
    path = changed(written(tmp_path, books=BOOKS[:1]), (3, line))
    with pytest.raises(UserError, match=f"{path}{said}"):
        read_questions(path, TEXT, 512, bad_share=0.0)
    if line == "{":
        assert len(read_questions(path, TEXT, 512, bad_share=0.1)) > 2


def test_a_book_in_two_pieces_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    last = len(lines_of(path))
    changed(path, (last, lines_of(path)[0]))
    with pytest.raises(UserError, match=rf":{last}: the book 'tale-01' goes on after 'tale-10': its lines must stand"):
        read_questions(path, TEXT, 512, bad_share=0.0)


def test_a_chunk_longer_than_a_row_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(
        UserError, match=rf"{path}:1: a chunk of \d+ tokens and its question take \d+ tokens, and a row has 90"
    ):
        read_questions(path, TEXT, 90)


def test_too_few_books_to_hold_out(tmp_path: Path) -> None:
    path = written(tmp_path, books=BOOKS[:2])
    with pytest.raises(UserError, match=r"of the 2 books of .* none is small enough to be held out"):
        read_questions(path, TEXT, 512, "heldout")
    with pytest.raises(UserError, match="cannot read"):
        read_questions(tmp_path / "none.jsonl", TEXT, 512)
