"""Facts made by rules: sentences that are hidden in prose, and questions for what they say.

A fact gives one value to one thing: to a city its special number, to what somebody has its place, its count or its
colour. It is told and asked for in several ways, so that no one template is enough. Of the things and values a fifth
are held out: no fact of the training part brings them together.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

import numpy as np

from ringworld.data.book_qa import CHUNK, QuestionAnswer, Questions
from ringworld.data.corpora import Part, texts_of
from ringworld.data.documents import ENDLESS, Document, Given, Source
from ringworld.data.needle_words import CITIES, NEEDLE, QUESTION
from ringworld.data.needles import Prose
from ringworld.errors import UserError

FactKind = Literal["number", "place", "amount", "colour"]
FACT_KINDS: tuple[FactKind, ...] = get_args(FactKind)
_EVERY = 5  # one of so many pairs of a thing and a value is held out
_LOOKED_AT = 64  # facts, to know how long they are

# fmt: off
_PEOPLE = (
    "Agnes", "Albert", "Beatrix", "Bruno", "Clara", "Conrad", "Daphne", "Dennis", "Edith", "Emil", "Flora", "Frank",
    "Greta", "Gustav", "Hannah", "Henry", "Ingrid", "Isaac", "Judith", "Julius", "Karin", "Kaspar", "Laura", "Leo",
    "Martha", "Max", "Nadia", "Oscar", "Paula", "Peter", "Ruth", "Rufus", "Selma", "Simon", "Thea", "Tobias", "Ursula",
    "Victor", "Wanda", "Walter",
)
_THINGS = (
    "anchor", "basket", "bell", "bottle", "candle", "clock", "compass", "drum", "flute", "hammer", "kettle", "ladder",
    "lantern", "mirror", "needle", "rope", "saddle", "stamp", "umbrella", "violin",
)
_PLACES = (
    "in the attic", "in the cellar", "in the barn", "in the kitchen", "in the library", "in the garden shed",
    "in the bell tower", "in the boat house", "under the stairs", "under the bed", "under the bridge",
    "behind the mill", "behind the stove", "behind the curtain", "on the balcony", "on the top shelf",
    "on the window sill", "beside the well", "beside the fireplace", "at the harbour",
)
_COLOURS = (
    "red", "orange", "yellow", "green", "blue", "purple", "white", "black", "brown", "grey", "silver", "golden",
)
# fmt: on


@dataclass(frozen=True)
class Fact:
    """A fact of one of the kinds.

    Attributes:
        thing: what has the value, and `who` it belongs to ("": nobody).
        told: the sentence that says it.
    """

    kind: FactKind
    who: str
    thing: str
    value: str
    told: str


@dataclass(frozen=True)
class _Rule:
    """How facts of a kind are made: of whom and what, with which values, and in which words."""

    people: Sequence[str]
    things: Sequence[str]
    values: Sequence[str | int]
    telling: Sequence[str]
    asking: Sequence[str]


_RULES: dict[FactKind, _Rule] = {
    "number": _Rule(
        ("",),
        CITIES,
        range(10**6, 10**7),
        (
            NEEDLE.format(city="{thing}", number="{value}").strip(),
            "Keep in mind that {value} is the special magic number of {thing}.",
            "{thing} has a special magic number of its own, {value}.",
        ),
        (
            QUESTION.format(city="{thing}"),
            "Which special magic number does {thing} have?",
            "What is the special magic number of {thing}?",
        ),
    ),
    "place": _Rule(
        _PEOPLE,
        _THINGS,
        _PLACES,
        (
            "{who} keeps the {thing} {value}.",
            "The {thing} that belongs to {who} is {value}.",
            "Whoever looks for {who}'s {thing} will find it {value}.",
            "It was {value} that {who} had left the {thing}.",
        ),
        (
            "Where does {who} keep the {thing}?",
            "Where is {who}'s {thing}?",
            "In which place is the {thing} that belongs to {who}?",
        ),
    ),
    "amount": _Rule(
        _PEOPLE,
        tuple(f"{thing}s" for thing in _THINGS if not thing.endswith("s")),
        range(12, 1000),
        (
            "{who} counted {value} {thing}.",
            "There were {value} {thing} in the house of {who}.",
            "Of {thing} nobody had more than {who}, who owned {value}.",
            "{value} {thing} were what {who} had bought.",
        ),
        (
            "How many {thing} did {who} have?",
            "How many {thing} were there at {who}'s?",
            "What was the number of {who}'s {thing}?",
        ),
    ),
    "colour": _Rule(
        _PEOPLE,
        _THINGS,
        _COLOURS,
        (
            "{who}'s {thing} is {value}.",
            "{who} painted the {thing} {value}.",
            "Everybody knows the {value} {thing} of {who}.",
            "The {thing} that {who} brought along was {value}.",
        ),
        (
            "Which colour is {who}'s {thing}?",
            "What colour does the {thing} of {who} have?",
            "In which colour is the {thing} that {who} has?",
        ),
    ),
}


def is_held_out(kind: FactKind, thing: str, value: str) -> bool:
    """Whether facts of the training part never give this value to this thing. Every thing and every value is seen with
    others."""
    rule = _RULES[kind]
    known = value if isinstance(rule.values[0], str) else int(value)
    return _is_new(rule.things.index(thing), rule.values.index(known))


def _is_new(thing: int, value: int) -> bool:
    return (thing + value) % _EVERY == 0


def facts(random: np.random.Generator, part: Part = "train", kinds: Sequence[FactKind] = FACT_KINDS) -> Iterator[Fact]:
    """Facts of the kinds in turn, no two about the same thing of the same person, until there are no more.

    Those of the part "heldout" are all held out, those of "train" are not.
    """
    waiting = {kind: _shuffled(random, len(_RULES[kind].people) * len(_RULES[kind].things)) for kind in kinds}
    while waiting:
        for number in random.permutation(len(waiting)).tolist():
            kind = list(waiting)[number]
            if waiting[kind]:
                yield _fact(random, kind, waiting[kind].pop(), part)
        waiting = {kind: left for kind, left in waiting.items() if left}


def _shuffled(random: np.random.Generator, count: int) -> list[int]:
    return random.permutation(count).tolist()


def _fact(random: np.random.Generator, kind: FactKind, about: int, part: Part) -> Fact:
    """A fact about person and thing number `about`."""
    rule = _RULES[kind]
    person, thing = divmod(about, len(rule.things))
    value = int(random.integers(len(rule.values)))
    while _is_new(thing, value) != (part == "heldout"):
        value = int(random.integers(len(rule.values)))
    said = {"who": rule.people[person], "thing": rule.things[thing], "value": str(rule.values[value])}
    return Fact(kind, **said, told=_one_of(rule.telling, random).format(**said))


def ask_for_fact(chunk: Fact, random: np.random.Generator) -> QuestionAnswer:
    """An `Asks` of chunks of which is known what fact stands in them."""
    return QuestionAnswer(
        _one_of(_RULES[chunk.kind].asking, random).format(who=chunk.who, thing=chunk.thing), chunk.value
    )


def _one_of(ways: Sequence[str], random: np.random.Generator) -> str:
    return ways[int(random.integers(len(ways)))]


@dataclass(frozen=True)
class FactQuestionsConfig:
    """Prose of `corpora` with facts hidden in it, and questions for them.

    Attributes:
        chunk: tokens of prose for each fact, about.
        kinds: of the facts, in equal shares: see `Fact`.
        length: of the documents, bos to eos; None: as long as the stage's rows.
    """

    corpora: tuple[str, ...] = ("essays",)
    chunk: int = CHUNK
    kinds: tuple[FactKind, ...] = FACT_KINDS
    length: int | None = None

    def build(self, given: Given) -> Source:
        prose = Prose(given.tokenizer, texts_of(self.corpora, given.part))
        return FactDocuments(
            prose, self.length or given.sequence_length, self.chunk, self.kinds, given.seed, given.part
        )


class FactDocuments:
    """An endless source of documents of exactly `length` tokens, bos to eos: prose in which facts are hidden, one in
    about `chunk` tokens, and questions for all of them in another order. Document i depends on (seed, part, i) alone.

    In rows shorter than a chunk there is one fact. No two facts of a document are about the same, and facts are on
    lines of their own, each at the end of a sentence of its chunk.

    Raises:
        UserError: there is no such kind of facts, a chunk has no token, or the length has no room for a fact, its
            question and some prose.
    """

    def __init__(self, prose: Prose, length: int, chunk: int, kinds: Sequence[FactKind], seed: int, part: Part) -> None:
        if chunk < 1 or not kinds or not {*kinds} <= {*FACT_KINDS}:
            raise UserError(
                f"facts in prose are of one or more of the kinds {', '.join(FACT_KINDS)}, in chunks of one or more "
                f"tokens; got {', '.join(kinds) or 'none'} in chunks of {chunk}"
            )
        self._prose, self._length, self._chunk, self._kinds = prose, length, chunk, kinds
        self._questions = Questions(prose.tokenizer)
        self._seed = seed
        self._part: Part = part
        self._room = self._questions.room(length)
        some = islice(self._hidden(np.random.default_rng((seed, *b"facts"))), _LOOKED_AT)
        needed = max(self._cost(hidden, first=True) for hidden in some)
        if needed >= self._room:
            raise UserError(
                f"a row of {length} tokens has no room for any fact, its question and some prose: without the prose "
                f"they take up to {needed + length - self._room}; take longer rows"
            )

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Document:
        return self.with_facts(index)[0]

    def with_facts(self, index: int) -> tuple[Document, tuple[Fact, ...]]:
        """The document, and its facts in the order in which they are asked for."""
        random = np.random.default_rng((self._seed, index, *b"facts", self._part == "heldout"))
        chosen, room = self._chosen(random)
        prose = self._prose.slice(room, random)
        depths = (np.arange(len(chosen)) + random.random(len(chosen))) / len(chosen)
        places = self._prose.places(prose, depths.tolist())
        shown: list[np.ndarray] = []
        start = 0
        for place, number in zip(places, random.permutation(len(chosen)).tolist(), strict=True):
            shown += [prose[start:place], chosen[number].ids]
            start = place
        read = np.concatenate([*shown, prose[start:]])
        document = self._questions.document([read], [hidden.asked for hidden in chosen])
        return document, tuple(hidden.fact for hidden in chosen)

    def _chosen(self, random: np.random.Generator) -> tuple[list["_Hidden"], int]:
        """As many facts as there are chunks, and how many tokens of prose there are with them."""
        chosen: list[_Hidden] = []
        left = self._room
        for hidden in self._hidden(random):
            cost = self._cost(hidden, first=not chosen)
            if chosen and left - cost < self._chunk * (len(chosen) + 1):
                break
            if cost < left:  # a fact may be longer than those that were looked at
                chosen.append(hidden)
                left -= cost
        return chosen, left

    def _hidden(self, random: np.random.Generator) -> Iterator["_Hidden"]:
        for fact in facts(random, self._part, self._kinds):
            ids = np.array(self._prose.tokenizer.encode(f"\n{fact.told}\n"), np.int32)
            yield _Hidden(fact, ids, ask_for_fact(fact, random))

    def _cost(self, hidden: "_Hidden", *, first: bool) -> int:
        """Tokens of a fact and its question, if that is the first and if it is not."""
        exchange = (self._questions.opening if first else self._questions.following)(hidden.asked)
        return len(hidden.ids) + len(exchange.ids)


@dataclass(frozen=True)
class _Hidden:
    """A fact, its line as ids, and what is asked for it."""

    fact: Fact
    ids: np.ndarray
    asked: QuestionAnswer
