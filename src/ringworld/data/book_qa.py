"""Questions about books: long texts, and after them a question and an answer for each of their chunks.

As LWM makes its chat data (arXiv 2402.08268): one question and answer of every chunk of a book, of about a
thousand tokens; adjacent chunks put together to the length of a row; the questions at the end, as turns of a
conversation, and nothing trained on but the answers.

What makes a question out of a chunk is an `Asks`: somebody's model, whose questions come from a file
(`BookQuestionsConfig`, which reads what `write_questions` writes), or rules that know more of a chunk than its words
(`data.facts` of prose, `data.film_qa` of films).
"""

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from ringworld.data.conversations import Exchange, LongReading
from ringworld.data.corpora import Part, held_out
from ringworld.data.documents import Document, Given, Malformed, Source, checked_lines
from ringworld.data.packing import frame
from ringworld.errors import UserError
from ringworld.files import replacing
from ringworld.tokens.chat import ChatTemplate
from ringworld.tokens.chat import Part as Shown
from ringworld.tokens.text import TextTokenizer

CHUNK = 1000  # tokens, about, of which there is one question
_FIELDS = ("book", "text", "question", "answer")
_KEPT = 4096  # questions whose ids are kept, so that they are counted and then put together at one cost
_NOTHING = np.zeros(0, np.int32)
_SENTENCE_END, _WORD_END = (re.compile(rf"{last}(?=\s)") for last in (r"""[.!?]['")\]]*""", r"\S"))

Chunk = TypeVar("Chunk", contravariant=True)


@dataclass(frozen=True)
class QuestionAnswer:
    """A question and its answer."""

    question: str
    answer: str


@runtime_checkable
class Asks(Protocol[Chunk]):
    """Makes a question and its answer out of a chunk of something long.

    What a chunk is depends on what is known of it: a text alone (`str`), for a model that reads it; the fact that was
    put into it; a scene of a film.
    """

    def __call__(self, chunk: Chunk, random: np.random.Generator) -> QuestionAnswer | None:
        """None: there is nothing in the chunk to ask about. `random`: for whatever is drawn, so that the same chunk has
        the same question again."""
        ...


class Questions:
    """Documents of something long and questions about it, by the chat template of a tokenizer.

    Raises UserError, there and here, when the template cannot be trained on: see `data.conversations`.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.reading = LongReading(ChatTemplate(tokenizer), tokenizer.vocabulary)
        self._vocabulary = tokenizer.vocabulary
        self.following = lru_cache(_KEPT)(self._following)
        opening = self.opening(QuestionAnswer("?", "?"))
        self._added = self.length(self.reading.document([opening])) - len(opening.ids)

    def opening(self, asked: QuestionAnswer, shown: Sequence[Shown] = (_NOTHING,)) -> Exchange:
        return self.reading.opening([*shown, f"\n{asked.question}"], asked.answer)

    def _following(self, asked: QuestionAnswer) -> Exchange:
        return self.reading.following(asked.question, asked.answer)

    def length(self, document: Document) -> int:
        """Tokens of a document with the bos and eos that packing adds to it."""
        return len(frame(document, self._vocabulary))

    def room(self, length: int) -> int:
        """How many of these tokens are left for the document itself."""
        return length - self._added

    def document(self, shown: Sequence[Shown], asked: Sequence[QuestionAnswer]) -> Document:
        """All that is shown, and then the questions in this order, of which there is one or more."""
        first, *others = asked
        return self.reading.document([self.opening(first, shown), *map(self.following, others)])


@dataclass(frozen=True)
class BookQuestionsConfig:
    """Questions about books that somebody has: a .jsonl file, whose form `read_questions` tells. Some books are held
    out, by their names.

    Attributes:
        length: at most so many tokens in a document, bos to eos; None: as long as the stage's rows.
        bad_share: so many of the lines may be malformed, and are left out.
    """

    path: str
    length: int | None = None
    bad_share: float = 0.01

    def build(self, given: Given) -> Source:
        length = self.length or given.sequence_length
        return read_questions(self.path, given.tokenizer, length, given.part, seed=given.seed, bad_share=self.bad_share)


class BookDocuments:
    """A source of books and questions about them: what `read_questions` returns. Chunks are read when they are asked
    for.

    `groups`: of each document, offset and bytes of its lines.
    """

    def __init__(self, path: Path, tokenizer: TextTokenizer, groups: Sequence[np.ndarray], seed: int) -> None:
        self._path, self._tokenizer, self._groups, self._seed = path, tokenizer, groups, seed
        self._questions = Questions(tokenizer)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Document:
        lines: list[dict[str, str]] = []
        with self._path.open("rb") as file:
            for offset, size in self._groups[index].tolist():
                file.seek(offset)
                lines.append(json.loads(file.read(size)))
        shown = [_chunk_ids(line["text"], self._tokenizer, first=not number) for number, line in enumerate(lines)]
        asked = [QuestionAnswer(line["question"], line["answer"]) for line in lines]
        order = np.random.default_rng((self._seed, index)).permutation(len(asked)).tolist()
        return self._questions.document(shown, [asked[number] for number in order])


def read_questions(
    path: str | Path,
    tokenizer: TextTokenizer,
    length: int,
    part: Part = "train",
    *,
    seed: int = 0,
    bad_share: float = 0.01,
) -> BookDocuments:
    """Documents from a file of JSON objects, one a line, each a chunk of a book with a question and its answer:

        {"book": "Moby-Dick", "text": "Call me Ishmael. ...", "question": "What is he called?", "answer": "Ishmael"}

    The chunks of a book stand together and in its order. Adjacent ones are put together as long as they fit into
    `length` tokens, bos to eos, so that each chunk is in one document; questions come in another order (`seed`). About
    20% of the books, by their names, are the part "heldout". Every line is looked at once.

    Raises:
        UserError: the file cannot be read or holds no line, more than `bad_share` of its lines are malformed, a chunk
            is longer than a document, or no book is of the part.
    """
    path = Path(path)
    questions = Questions(tokenizer)
    room = questions.room(length)
    books: list[str] = []  # of each good line, as its other numbers
    costs: list[tuple[int, int]] = []
    seen: set[str] = set()

    def check(line: bytes, number: int) -> None:
        value = _parsed(line)
        if value["book"] in seen and value["book"] != books[-1]:
            raise Malformed(f"the book {value['book']!r} goes on after {books[-1]!r}: its lines must stand together")
        asked = QuestionAnswer(value["question"], value["answer"])
        text = len(_chunk_ids(value["text"], tokenizer))
        opening, following = (text + len(one.ids) for one in (questions.opening(asked), questions.following(asked)))
        if opening > room:
            raise UserError(
                f"{path}:{number}: a chunk of {text} tokens and its question take {opening + length - room} tokens, "
                f"and a row has {length}: take longer rows or shorter chunks"
            )
        seen.add(value["book"])
        books.append(value["book"])
        costs.append((opening, following))

    lines, _ = checked_lines(path, check, bad_share=bad_share)
    names = list(dict.fromkeys(books))
    sizes = dict.fromkeys(names, 0)
    for book, (_, cost) in zip(books, costs, strict=True):
        sizes[book] += cost
    out = dict(zip(names, held_out(names, list(sizes.values())), strict=True))
    wanted = [index for index, book in enumerate(books) if out[book] == (part == "heldout")]
    if not wanted:
        raise UserError(
            f"of the {len(names)} books of {path} none is small enough to be held out; give it at least five, of about "
            "the same size"
        )
    groups = _groups([(books[index], *costs[index]) for index in wanted], room)
    return BookDocuments(path, tokenizer, [lines[[wanted[i] for i in group], 1:] for group in groups], seed)


def _groups(chunks: Sequence[tuple[str, int, int]], room: int) -> list[range]:
    """Which chunks are one document: of each its book, and its tokens with its question, if that is the first of a
    document and if it is not."""
    groups: list[range] = []
    start, spent, extra = 0, 0, 0
    for index, (book, opening, following) in enumerate(chunks):
        # Any question may come to be the first: by how much that is longer, at most.
        most = max(extra, opening - following)
        if index > start and (book != chunks[start][0] or spent + following + most > room):
            groups.append(range(start, index))
            start, spent, most = index, 0, max(0, opening - following)
        spent, extra = spent + following, most
    return [*groups, range(start, len(chunks))]


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON ({error})") from error
    if not isinstance(value, dict):
        raise Malformed(f"must be a JSON object, got {type(value).__name__}")
    for field in _FIELDS:
        said = value.get(field)
        if not isinstance(said, str) or not said.strip():
            raise Malformed(f'must have "{field}", a string that is not empty; got {said!r}')
        try:
            said.encode()
        except UnicodeEncodeError as error:
            raise Malformed(f'"{field}" is not Unicode: half a surrogate pair at {error.start}') from error
    return value


def _chunk_ids(text: str, tokenizer: TextTokenizer, *, first: bool = False) -> np.ndarray:
    """The ids of a chunk. One that does not begin with space has a line's end before it, unless it is the first: else
    its first word and the last of the chunk before would be one."""
    return np.array(tokenizer.encode(text if first or text[0].isspace() else f"\n{text}"), np.int32)


def write_questions(
    path: str | Path,
    books: Iterable[tuple[str, str]],
    ask: Asks[str],
    tokenizer: TextTokenizer,
    *,
    chunk: int = CHUNK,
    seed: int = 0,
) -> int:
    """Asks about every chunk of some books and writes what `read_questions` reads, whole or not at all.

    Args:
        books: names, all different, and texts.
        ask: makes the questions: with a model, say. A chunk of which it makes none is left out, as one of space alone.
        tokenizer: counts the tokens,
        chunk: of which a chunk has about so many.

    Returns:
        How many questions there are.
    """
    count = 0
    with replacing(Path(path)) as part, part.open("w", encoding="utf-8") as file:
        for number, (book, text) in enumerate(books):
            for index, piece in enumerate(chunks(text, tokenizer, chunk)):
                asked = ask(piece, np.random.default_rng((seed, number, index))) if piece.strip() else None
                if asked is not None:
                    line = {"book": book, "text": piece, "question": asked.question, "answer": asked.answer}
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                    count += 1
    return count


def chunks(text: str, tokenizer: TextTokenizer, size: int = CHUNK) -> Iterator[str]:
    """A text in pieces of at most `size` tokens, which end with a sentence where one ends in their second half, and
    else with a word."""
    ends = [end for _, end in tokenizer.inner.encode(text, add_special_tokens=False).offsets]
    start, token = 0, 0
    while token < len(ends):
        after = token + size
        stop = ends[after - 1] if after < len(ends) else len(text)
        if after < len(ends):
            half = ends[(token + after) // 2]
            for pattern in (_WORD_END, _SENTENCE_END):
                found = [one.end() for one in pattern.finditer(text, half, stop + 1)]
                stop = max(found, default=stop)
        yield text[start:stop]
        start, token = stop, max(token + 1, bisect_right(ends, stop))
