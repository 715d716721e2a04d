"""Needles in haystacks: sentences with random numbers hidden in prose, and questions for the numbers.

Examples are put together from ids that were made once (`needle_words`), so that building a row costs microseconds: what
is cut to length is the prose alone, before anything is inserted, so that no needle and no question can be lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int32

from ringworld.data.documents import ENDLESS, Document, Span
from ringworld.data.needle_words import CITIES, Frame, Template, Wording
from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer

Form = Literal["single", "multi", "turns"]
DIGITS = 7  # of a number in LWM's tests
# Depths drawn at random lie at either edge with this probability each: depth 0 was the weak cell without it.
_EDGE = 0.1


class Prose:
    """Texts as ids (`ids`, int32 [tokens]), to be cut to any length. Raises UserError when there is no text."""

    def __init__(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
        self.tokenizer = tokenizer
        ids = [
            i for text in tokenizer.encode_batch([text.strip() + "\n" for text in texts if text.strip()]) for i in text
        ]
        if not ids:
            raise UserError("a haystack needs some text, and there is none")
        self.ids = np.array(ids, np.int32)
        decoded = [tokenizer.decode([i]) for i in range(tokenizer.vocabulary.text_size)]
        self._ends_sentence = np.array([text.endswith(".") for text in decoded])
        self._begins_with_space = np.array([text.startswith(" ") for text in decoded])
        ends = np.flatnonzero(self._ends_sentence[self.ids]) + 1
        self._starts = np.append(0, ends[ends < len(self.ids)])

    def slice(self, length: int, rng: np.random.Generator) -> Int32[np.ndarray, "length"]:
        """`length` ids of prose from the start of a random sentence; past the end it goes on from the beginning."""
        start = int(self._starts[rng.integers(len(self._starts))])
        if start + length <= len(self.ids):
            return self.ids[start : start + length]
        return np.resize(np.roll(self.ids, -start), length)

    def sentence_ends(self, ids: Int32[np.ndarray, "tokens"]) -> np.ndarray:
        """The indices just after a full stop, in order."""
        return np.flatnonzero(self._ends_sentence[ids]) + 1

    def begins_with_space(self, ids: Int32[np.ndarray, "tokens"]) -> bool:
        return len(ids) > 0 and bool(self._begins_with_space[ids[0]])

    def places(self, ids: Int32[np.ndarray, "tokens"], depths: Sequence[float]) -> list[int]:
        """Where in some prose needles go: the last sentence end at or before each depth, the start where there is
        none."""
        ends = np.append(0, self.sentence_ends(ids))
        wanted = np.array(depths) * len(ids)
        found = ends[np.searchsorted(ends, wanted, side="right") - 1]
        return np.where(wanted >= len(ids), len(ids), found).tolist()


class Haystack(Prose):
    """Prose, and the fixed wording as ids, ready to be put together.

    Raises UserError when there is no text, or the tokenizer does not take digits one by one: then numbers in a needle
    and in its answer might be other tokens.
    """

    def __init__(self, tokenizer: TextTokenizer, texts: Sequence[str]) -> None:
        super().__init__(tokenizer, texts)
        self.wording = Wording(tokenizer)


@dataclass(frozen=True)
class NeedleExample:
    """A haystack with needles, questions and answers, bos to eos.

    `prompt` is the document's beginning, bos included, up to the first answer. `cities` and `answers` are those asked
    for, in the order asked. `depths` are those of all the needles, the ones asked for first. In the document the spans
    of answers have the greatest weight.
    """

    document: Document
    prompt: Int32[np.ndarray, "tokens"]
    cities: tuple[str, ...]
    answers: tuple[str, ...]
    depths: tuple[float, ...]


def build_example(
    rng: np.random.Generator,
    haystack: Haystack,
    *,
    length: int,
    needles: int = 1,
    asked: int = 1,
    depths: Sequence[float] | None = None,
    form: Form = "single",
    template: Template = "lwm",
    prose_weight: float = 0.1,
    digits: int = DIGITS,
) -> NeedleExample:
    """A document of exactly `length` tokens, bos to eos, that hides `needles` and asks for `asked` of them.

    form: "single" asks for one; "multi" asks for several in one question, in the words of LWM's multi-needle test;
    "turns" asks for one, and after its answer for the next in another turn, so that a training row need leave no needle
    unasked.
    depths: one a needle, 0 (right after "USER: ") to 1 (right before the question); a needle goes to the last sentence
    end at or before its depth in the prose. Those asked for come first. By default they are random. Cities are
    distinct.
    prose_weight: answers' tokens (and the eos) weigh 1 in all, all the others this much in all.
    digits: of each number, 1 to 18. Numbers are distinct.

    Raises:
        UserError: the length has no room for the wording, or there are more needles than cities or numbers.
        ValueError: `asked` does not go with the form or the needles, or `depths` with the needles, or there cannot be
            so many digits.
    """
    if not 1 <= asked <= needles or (form == "single" and asked != 1):
        raise ValueError(f"asked must be 1 to {needles} needles, and 1 for the form 'single', got {asked} for {form!r}")
    if needles > len(CITIES):
        raise UserError(f"at most {len(CITIES)} needles, a city each, fit in a haystack; got {needles}")
    if not 1 <= digits <= 18:
        raise ValueError(f"digits must be 1 to 18, got {digits}")
    if needles > 9 * 10 ** (digits - 1):
        raise UserError(
            f"there are not {needles} different numbers of {digits} digits: take fewer needles or more digits"
        )
    if depths is None:
        depths = _random_depths(rng, needles)
    elif len(depths) != needles or not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depths must be {needles} numbers from 0 to 1, got {list(depths)}")
    words = haystack.wording
    if template not in words.frames:
        raise UserError(f"the template {template!r} needs a tokenizer with a chat template, and this one has none")
    frame = words.frames[template]
    cities = rng.permutation(len(CITIES))[:needles].tolist()
    numbers = 10 ** (digits - 1) + rng.choice(9 * 10 ** (digits - 1), needles, replace=False)
    spelled = words.digits[numbers[:, None] // 10 ** np.arange(digits - 1, -1, -1) % 10]

    question, answers = _conversation(words, frame, cities[:asked], spelled, form)
    hidden = sum(len(words.needles[city]) for city in cities) + needles * (digits + len(words.needle_end))
    spoken = len(question) + sum(len(part) for pair in answers for part in pair)
    room = length - (len(words.bos) + len(frame.head) + hidden + spoken + len(frame.end))
    if room < len(frame.space):
        raise UserError(
            f"a row of {length} tokens has no room for {needles} needles with {asked} asked for, in the template "
            f"{template!r}: they alone take {length - room + len(frame.space)} tokens; take longer rows or fewer "
            "needles"
        )
    prose = haystack.slice(room, rng)
    places = haystack.places(prose, depths)
    space = frame.space
    if haystack.begins_with_space(prose) and min(places) > 0:
        space = space[:0]
    else:
        prose = prose[: room - len(space)]
        places = haystack.places(prose, depths)

    parts = [words.bos, frame.head, space]
    start = 0
    for place, needle in sorted(zip(places, range(needles), strict=True)):
        parts += [prose[start:place], words.needles[cities[needle]], spelled[needle], words.needle_end]
        start = place
    prompt = np.concatenate([*parts, prose[start:], question])

    # What an answer needs as its targets: the last one's end too, so that a model learns to stop.
    answered = sum(len(answer) for answer, _ in answers) + len(frame.end)
    weight, other = 1 / answered, prose_weight / (length - len(words.bos) - answered)
    spans = [Span("text", prompt, other)]
    for answer, following in answers[:-1]:
        spans += [Span("text", answer, weight), Span("text", following, other)]
    spans.append(Span("text", np.concatenate([answers[-1][0], frame.end]), weight))
    return NeedleExample(
        Document(tuple(spans)),
        prompt,
        tuple(CITIES[city] for city in cities[:asked]),
        tuple(str(number) for number in numbers[:asked].tolist()),
        tuple(depths),
    )


def _conversation(
    words: Wording, frame: Frame, cities: list[int], numbers: np.ndarray, form: Form
) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray]]]:
    """The question up to the answer; and each answer with what follows it."""
    nothing = np.empty(0, np.int32)
    if form != "multi":
        said = [np.concatenate([frame.answers[city], number]) for city, number in zip(cities, numbers, strict=False)]
        said = [*(np.append(answer, frame.stop) for answer in said[:-1]), said[-1]]
        answers = list(zip(said, [*(frame.turns[city] for city in cities[1:]), nothing], strict=True))
        return np.concatenate([words.questions[cities[0]], frame.tail]), answers
    answer = [frame.answers[cities[0]], numbers[0]]
    for city, number in zip(cities[1:], numbers[1:], strict=False):
        answer += [words.next_answers[city], number]
    if len(cities) == 1:
        question = words.questions_of_many[cities[0]]
    else:
        *others, last = (words.cities[city] for city in cities)
        listed = [part for city in others for part in (city, words.comma)]
        question = np.concatenate([words.list_start, *listed, words.conjunction, last, words.list_end])
    return np.concatenate([question, frame.tail_of_many]), [(np.concatenate(answer), nothing)]


def _random_depths(rng: np.random.Generator, count: int) -> list[float]:
    margin = _EDGE / (1 - 2 * _EDGE)
    return np.clip(rng.uniform(-margin, 1 + margin, count), 0, 1).tolist()


class NeedleSource:
    """An endless source of needle examples of exactly `length` tokens, or of random lengths from `shortest` to that:
    document i depends on (seed, i) alone.

    By default every needle of a row is asked for, in turns. Raises UserError when the length has no room for the
    wording, and ValueError when `shortest` is more than it.
    """

    def __init__(
        self,
        haystack: Haystack,
        length: int,
        *,
        needles: int = 1,
        asked: int | None = None,
        form: Form = "turns",
        template: Template = "lwm",
        prose_weight: float = 0.1,
        digits: int = DIGITS,
        shortest: int | None = None,
        seed: int = 0,
    ) -> None:
        shortest = length if shortest is None else shortest
        if shortest > length:
            raise ValueError(f"shortest must be at most the length of {length}, got {shortest}")
        self._haystack = haystack
        self._lengths = shortest, length
        self._needles = needles
        self._asked = asked or (1 if form == "single" else needles)
        self._form: Form = form
        self._template: Template = template
        self._prose_weight = prose_weight
        self._digits = digits
        self._seed = seed
        self._build(np.random.default_rng((seed, 0)), shortest)  # says at once whether there is room

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Document:
        return self.example(index).document

    def example(self, index: int) -> NeedleExample:
        """The document with its prompt and answers."""
        rng = np.random.default_rng((self._seed, index))
        shortest, longest = self._lengths
        return self._build(rng, longest if shortest == longest else int(rng.integers(shortest, longest + 1)))

    def _build(self, rng: np.random.Generator, length: int) -> NeedleExample:
        return build_example(
            rng,
            self._haystack,
            length=length,
            needles=self._needles,
            asked=self._asked,
            form=self._form,
            template=self._template,
            prose_weight=self._prose_weight,
            digits=self._digits,
        )
