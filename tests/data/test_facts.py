import re
from collections import Counter
from itertools import islice
from typing import Any

import numpy as np
import pytest

from data.seeing import TEXT
from ringworld.data.corpora import Part, texts_of
from ringworld.data.documents import ENDLESS, Given
from ringworld.data.facts import (
    FACT_KINDS,
    Fact,
    FactDocuments,
    FactQuestionsConfig,
    ask_for_fact,
    facts,
    is_held_out,
)
from ringworld.data.needles import Prose
from ringworld.data.packing import frame
from ringworld.errors import UserError
from tokens.test_chat import tokenizer_of

PROSE = Prose(TEXT, texts_of(("tiny",), "train"))


def source(length: int = 2048, part: Part = "train", **changes: Any) -> FactDocuments:
    return FactDocuments(
        **({"prose": PROSE, "length": length, "chunk": 300, "kinds": FACT_KINDS, "seed": 3, "part": part} | changes)
    )


def some(count: int, part: Part = "train", seed: int = 0) -> list[Fact]:
    return [*islice(facts(np.random.default_rng(seed), part), count)]


@pytest.mark.parametrize("part", ["train", "heldout"])
def test_no_fact_of_training_is_held_out_and_all_of_the_other_part_are(part: Part) -> None:
    for seed in range(5):
        for fact in some(800, part, seed):
            assert is_held_out(fact.kind, fact.thing, fact.value) == (part == "heldout")


def test_all_things_and_values_are_seen_in_training_and_a_fifth_of_their_pairs_is_not() -> None:
    for kind in ("place", "colour"):
        trained, heldout = (
            {(fact.thing, fact.value) for seed in range(8) for fact in some(1500, part, seed) if fact.kind == kind}
            for part in ("train", "heldout")
        )
        assert not trained & heldout
        assert len(heldout) / len(trained | heldout) == pytest.approx(0.2, abs=0.01)
        for word in (0, 1):
            assert {pair[word] for pair in heldout} <= {pair[word] for pair in trained}


def test_facts_say_what_is_asked_in_several_ways_and_never_twice_of_the_same() -> None:
    random = np.random.default_rng(0)
    told, asked = ({kind: Counter() for kind in FACT_KINDS} for _ in range(2))
    chosen = some(2300)
    assert len({(fact.kind, fact.who, fact.thing) for fact in chosen}) == len(chosen)
    for fact in chosen:
        question = ask_for_fact(fact, random)
        assert question.answer == fact.value
        for text in (fact.told, question.question):
            assert fact.thing in text
            assert fact.who in text
            assert "{" not in text
        assert fact.value in fact.told
        assert fact.value not in question.question
        for ways, text in ((told, fact.told), (asked, question.question)):
            for word in filter(None, (fact.value, fact.who, fact.thing)):
                text = text.replace(word, "_")
            ways[fact.kind][text] += 1
    for kind in FACT_KINDS:
        assert len(told[kind]) == (3 if kind == "number" else 4)
        assert len(asked[kind]) == 3


def test_kinds_come_in_equal_shares_as_long_as_there_are_any() -> None:
    counts = Counter(fact.kind for fact in some(400))
    assert set(counts.values()) == {100}
    everything = [*facts(np.random.default_rng(0), kinds=("number",))]
    assert len(everything) == 114


@pytest.mark.parametrize("tokenizer", [TEXT, tokenizer_of("chatml")])
@pytest.mark.parametrize("length", [700, 4096])
def test_a_document_is_as_long_as_asked_and_answers_alone_are_trained_on(tokenizer, length) -> None:
    made = source(length, prose=Prose(tokenizer, texts_of(("tiny",), "train")), chunk=500)
    for index in range(3):
        document, chosen = made.with_facts(index)
        framed = frame(document, tokenizer.vocabulary)
        assert len(framed) == length
        assert len(chosen) == 1 or length > 700
        assert document.weights.sum() == pytest.approx(len(chosen))
        answers = tokenizer.decode(document.tokens[document.weights > 0])
        assert "".join(answers.split()) == "".join("".join(fact.value.split()) for fact in chosen) or all(
            fact.value in answers for fact in chosen
        )
        assert framed.tokens[-1] == tokenizer.vocabulary.eos


def test_each_chunk_has_one_fact_and_every_one_is_asked_for_at_the_end() -> None:
    made = source(4096)
    orders = []
    for index in range(4):
        document, chosen = made.with_facts(index)
        text = TEXT.decode(document.tokens)
        context = text[: text.index("ASSISTANT:")]
        places = [context.index(f"\n{fact.told}\n") for fact in chosen]
        assert len(chosen) > 8
        # One in each equal part of the prose, as near as sentences allow.
        parts = [int(place / len(context) * len(chosen)) for place in sorted(places)]
        assert max(abs(part - number) for number, part in enumerate(parts)) <= 1
        questions = text[context.rindex("\n") :]
        answers = [questions.index(f"ASSISTANT: {fact.value}") for fact in chosen]
        assert answers == sorted(answers)
        orders.append(places != sorted(places))
        for fact in chosen:
            place = context.index(f"\n{fact.told}\n")
            assert place == text.index("USER: ") + 6 or context[place - 1] in ".\n"
    assert all(orders)  # in another order than they are told


def test_a_document_depends_on_seed_part_and_number_alone() -> None:
    one, again = source(), source()
    assert len(one) == ENDLESS
    for index in (3, 0, 1 << 40, 3):
        assert one[index].tokens.tolist() == again[index].tokens.tolist()
    assert one[0].tokens.tolist() != one[1].tokens.tolist()
    assert source(seed=4)[0].tokens.tolist() != one[0].tokens.tolist()
    train, heldout = (source(part=part).with_facts(0)[1] for part in ("train", "heldout"))
    assert not {(fact.thing, fact.value) for fact in train} & {(fact.thing, fact.value) for fact in heldout}


def test_a_configuration_builds_a_source_of_the_part_s_prose() -> None:
    config = FactQuestionsConfig(("tiny",), chunk=200, kinds=("colour",))
    for part in ("train", "heldout"):
        text = TEXT.decode(config.build(Given(TEXT, 800, 0, part))[0].tokens)
        lines = {line for tale in texts_of(("tiny",), part) for line in tale.splitlines()}
        whole = [line for line in text.splitlines()[1:-3] if line.endswith(".")]
        assert sum(line in lines for line in whole) > 3
        assert "Which colour" in text or "hat colour" in text
    assert len(frame(FactQuestionsConfig(("tiny",), length=400).build(Given(TEXT, 800, 0))[0], TEXT.vocabulary)) == 400


def test_in_short_rows_there_is_one_fact_or_room_for_none() -> None:
    with pytest.raises(
        UserError, match="a row of 40 tokens has no room for any fact, its question and some prose"
    ) as told:
        source(40)
    needed = int(re.findall(r"they take up to (\d+);", str(told.value))[0])
    with pytest.raises(UserError, match=f"a row of {needed} tokens has no room"):
        source(needed)
    made = source(needed + 1)
    for index in range(20):
        document, chosen = made.with_facts(index)
        assert len(frame(document, TEXT.vocabulary)) == needed + 1
        assert len(chosen) == 1


@pytest.mark.parametrize("changes", [{"kinds": ()}, {"kinds": ("smell",)}, {"chunk": 0}])
def test_impossible_facts_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="facts in prose are of one or more of the kinds number, place, amount, colour"):
        source(**changes)
