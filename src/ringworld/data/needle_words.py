"""The words of needle tests: LWM's (arXiv 2402.08268 and its released evaluation), written here once, for training
rows and for evaluation, as text and as the ids of a tokenizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np

from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate
from ringworld.tokens.text import TextTokenizer

# Whose words say who speaks: LWM's, the fewest of them, or those of the model's own chat template.
Template = Literal["lwm", "bare", "chat"]

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
