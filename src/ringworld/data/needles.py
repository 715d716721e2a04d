"""Needles in haystacks: sentences with random numbers hidden in prose, and questions for the numbers.

The wording is LWM's (arXiv 2402.08268 and its released evaluation), written here once, for training rows and for
evaluation. Examples are put together from ids that were made once, so that building a row costs microseconds: what is
cut to length is the prose alone, before anything is inserted, so that no needle and no question can be lost.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Int32

from ringworld.data.documents import ENDLESS, Document, Span
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate
from ringworld.tokens.text import TextTokenizer

Form = Literal["single", "multi", "turns"]
# Whose words say who speaks: LWM's, the fewest of them, or those of the model's own chat template.
Template = Literal["lwm", "bare", "chat"]

DIGITS = 7  # of a number in LWM's tests
NEEDLE = "\nThe special magic {city} number is: {number}\n"
QUESTION = "What is the special magic {city} number?"
# How training rows answer; LWM scores the digits alone, wherever they stand. A sentence leads up to the number in the
# needle's own words, so that to go on as the text did before is enough. Not shown to help: see docs/results.md.
ANSWER = "The special magic {city} number is: {number}"
NEXT_ANSWER = " " + ANSWER
# LWM's multi-needle test asks in these words, with another closing sentence in its prompt.
QUESTION_OF_MANY = "What is the special magic number for {city}?"
QUESTIONS_OF_MANY = "What are the special magic numbers for {cities}?"
PROMPT = (
    "You are a helpful assistant. USER: {context} {question} Don't give information outside the document or repeat "
    "your findings. Keep your response short and direct. ASSISTANT: "
)
PROMPT_OF_MANY = (
    "You are a helpful assistant. USER: {context} {question} Don't give information outside the document. ASSISTANT: "
)
# What is asked of a model that has a chat template, whose own words stand around it.
CHAT = (
    "{context} {question} Don't give information outside the document or repeat your findings. Keep your response "
    "short and direct."
)
CHAT_OF_MANY = "{context} {question} Don't give information outside the document."
# For rows too short for the whole of it.
BARE_PROMPT = "USER: {context} {question} ASSISTANT: "
TURN = " USER: {question} ASSISTANT: "

# Depths drawn at random lie at either edge with this probability each: depth 0 was the weak cell without it.
_EDGE = 0.1

# fmt: off
CITIES = (
    "Accra", "Algiers", "Almaty", "Amman", "Amsterdam", "Ankara", "Antananarivo", "Astana", "Athens", "Auckland",
    "Baghdad", "Baku", "Bangalore", "Bangkok", "Barcelona", "Beijing", "Beirut", "Belgrade", "Berlin", "Bogota",
    "Boston", "Bratislava", "Brussels", "Bucharest", "Budapest", "Buenos Aires", "Cairo", "Caracas", "Casablanca",
    "Chennai", "Chicago", "Colombo", "Copenhagen", "Dakar", "Damascus", "Delhi", "Dhaka", "Doha", "Dubai", "Dublin",
    "Hanoi", "Harare", "Havana", "Helsinki", "Ho Chi Minh City", "Istanbul", "Jakarta", "Johannesburg", "Kabul",
    "Kampala", "Karachi", "Kathmandu", "Khartoum", "Kigali", "Kingston", "Kinshasa", "Kuala Lumpur", "Lagos", "Lahore",
    "Lima", "Lisbon", "London", "Los Angeles", "Luanda", "Lusaka", "Madrid", "Manila", "Maputo", "Melbourne",
    "Mexico City", "Milan", "Minsk", "Montevideo", "Montreal", "Moscow", "Mumbai", "Nairobi", "Osaka", "Oslo", "Ottawa",
    "Paris", "Port Louis", "Prague", "Quito", "Rabat", "Riga", "Riyadh", "Rome", "San Francisco", "Santiago",
    "Sarajevo", "Seattle", "Seoul", "Shanghai", "Singapore", "Sofia", "Stockholm", "Sydney", "Taipei", "Tashkent",
    "Tbilisi", "Tehran", "Thimphu", "Tokyo", "Toronto", "Tripoli", "Tunis", "Vancouver", "Vienna", "Vilnius", "Warsaw",
    "Yangon", "Yerevan", "Zagreb",
)
# fmt: on


def phrases() -> tuple[str, ...]:
    """The fixed wording around contexts, cities and numbers, and the cities: for a tokenizer to make one id of each."""
    prompts = [_pieces(text, " {context} {question}") for text in (PROMPT, PROMPT_OF_MANY, BARE_PROMPT)]
    answers = [_pieces(text, " {city}")[0] for text in (ANSWER, NEXT_ANSWER)]
    turn, _ = _pieces(TURN, " {question}")
    return _wording(answers, turn, [piece for pair in prompts for piece in pair])


def chat_phrases() -> tuple[str, ...]:
    """The like for conversations in the layout of LWM's chat (`tokens.chat.LWM_TEMPLATE`). None of them joins what an
    answer begins with to what stands before it, so that a conversation may go on."""
    answer = _pieces(NEXT_ANSWER, " {city}")[0]
    closings = [_pieces(text, "{context} {question}")[1] for text in (CHAT, CHAT_OF_MANY)]
    return _wording([answer], "USER:", ["You are a helpful assistant. USER:", " ASSISTANT:", *closings])


def _wording(answers: Sequence[str], turn: str, prompts: Sequence[str]) -> tuple[str, ...]:
    needle, number, _ = _pieces(NEEDLE, " {city}", "{number}")
    ask, asked = _pieces(" " + QUESTION, " {city}")
    many = _pieces(" " + QUESTIONS_OF_MANY, " {cities}")[0]
    fixed = dict.fromkeys([needle, number, *answers, ask, asked, turn, many, *prompts])
    return (*fixed, *(f" {city}" for city in CITIES))


def _pieces(text: str, *separators: str) -> list[str]:
    pieces = []
    for separator in separators:
        piece, found, text = text.partition(separator)
        assert found
        pieces.append(piece)
    return [*pieces, text]


Ids = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Frame:
    """What one template puts around contexts, questions and answers, in ids."""

    head: np.ndarray  # before the context
    space: np.ndarray  # between the two, where the context does not begin with one
    tail: np.ndarray  # from the question to the answer
    tail_of_many: np.ndarray  # the same after a question for several numbers
    answers: list[np.ndarray]  # for each city: an answer up to the number
    turns: list[np.ndarray]  # for each city: from the end of an answer, through the question for it, to the next answer
    stop: np.ndarray  # the end of an answer that is not the last
    end: np.ndarray  # the end of the last one

    @classmethod
    def of_words(cls, ids: Ids, prompt: str, prompt_of_many: str, eos: int) -> Self:
        head, tail = _pieces(prompt, " {context} {question}")
        _, tail_of_many = _pieces(prompt_of_many, " {context} {question}")
        turns = [ids(TURN.format(question=QUESTION.format(city=city))) for city in CITIES]
        end = np.array([eos], np.int32)
        answers = _answers(ids, ANSWER)
        return cls(ids(head), ids(" "), ids(tail), ids(tail_of_many), answers, turns, end[:0], end)

    @classmethod
    def of_chat(cls, ids: Ids, tokenizer: TextTokenizer) -> Self:
        template, eos, opening = ChatTemplate(tokenizer), tokenizer.vocabulary.eos, tokenizer.vocabulary.opening
        parts = template.parts()
        opened = tuple(parts.head[: len(opening)]) == opening  # every document has its opening already
        tail, tail_of_many = (
            np.append(ids(_pieces(text, "{context} {question}")[1]), parts.tail).astype(np.int32)
            for text in (CHAT, CHAT_OF_MANY)
        )
        between, closing, stop = (np.array(part, np.int32) for part in (parts.between, parts.tail, parts.stop))
        return cls(
            head=np.array(parts.head[opened * len(opening) :], np.int32),
            space=stop[:0],
            tail=tail,
            tail_of_many=tail_of_many,
            answers=_answers(ids, parts.lead + ANSWER),
            turns=[np.concatenate([between, ids(QUESTION.format(city=city)), closing]) for city in CITIES],
            stop=stop,
            end=stop if template.end == eos else np.append(stop, np.int32(eos)),
        )


def _answers(ids: Ids, answer: str) -> list[np.ndarray]:
    """For each city, the answer up to the number."""
    return [ids(_pieces(answer, "{number}")[0].format(city=city)) for city in CITIES]


class Wording:
    """The fixed wording in one tokenizer's ids."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        digits = tokenizer.encode("0123456789")
        if len(digits) != 10:
            raise UserError(
                "needles need a tokenizer that makes one token of each digit; this one makes "
                f"{len(digits)} of '0123456789': train one here, or take a LLaMA tokenizer"
            )

        def ids(text: str) -> np.ndarray:
            return np.array(tokenizer.encode(text), np.int32)

        vocabulary = tokenizer.vocabulary
        self.bos = np.array(vocabulary.opening, np.int32)
        self.digits = np.array(digits, np.int32)
        self.comma, self.conjunction = ids(","), ids(" and")
        self.frames: dict[Template, Frame] = {
            "lwm": Frame.of_words(ids, PROMPT, PROMPT_OF_MANY, vocabulary.eos),
            "bare": Frame.of_words(ids, BARE_PROMPT, BARE_PROMPT, vocabulary.eos),
        }
        if tokenizer.chat_template is not None:
            self.frames["chat"] = Frame.of_chat(ids, tokenizer)
        needle, needle_end = _pieces(NEEDLE, "{number}")
        self.needles = [ids(needle.format(city=city)) for city in CITIES]
        self.needle_end = ids(needle_end)
        self.next_answers = _answers(ids, NEXT_ANSWER)
        self.questions = [ids(" " + QUESTION.format(city=city)) for city in CITIES]
        self.questions_of_many = [ids(" " + QUESTION_OF_MANY.format(city=city)) for city in CITIES]
        self.list_start, self.list_end = (ids(piece) for piece in _pieces(" " + QUESTIONS_OF_MANY, " {cities}"))
        self.cities = [ids(f" {city}") for city in CITIES]


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
