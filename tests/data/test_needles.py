import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from golden.chat_renderings import TEMPLATES
from ringworld.data.corpora import load_corpus, split
from ringworld.data.documents import ENDLESS
from ringworld.data.needle_words import (
    ANSWER,
    CHAT,
    CHAT_OF_MANY,
    CITIES,
    NEEDLE,
    PROMPT,
    QUESTION,
    TURN,
    chat_phrases,
    phrases,
)
from ringworld.data.needles import Form, Haystack, NeedleExample, NeedleSource, build_example
from ringworld.data.packing import frame, pack_row
from ringworld.data.sources import TokenizerConfig
from ringworld.errors import UserError
from ringworld.tokens.chat import LWM_TEMPLATE, ChatTemplate, Message, Role
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vision import VISION_END, VISION_START
from ringworld.tokens.vocabulary import Vocabulary
from tokens.test_chat import tokenizer_of

PROMPTS_OF_CHAT = {"turns": CHAT, "multi": CHAT_OF_MANY}
TEXTS = [text for _, text in split(load_corpus("tiny"), "train")]
TOKENIZER = TokenizerConfig(512, ("tiny",)).build()
HAYSTACK = Haystack(TOKENIZER, TEXTS)
# Another tokenizer, for which the wording is nothing special.
PLAIN = Haystack(TokenizerConfig(512, ("tiny",), wording=False).build(), TEXTS)


def example(haystack: Haystack = HAYSTACK, seed: int = 0, length: int = 256, **changes: Any) -> NeedleExample:
    return build_example(np.random.default_rng(seed), haystack, length=length, **changes)


def read(haystack: Haystack, ids: np.ndarray) -> str:
    return haystack.tokenizer.decode(ids)


def answers(one: NeedleExample) -> list[str]:
    """The sentences that a model should say."""
    return [ANSWER.format(city=city, number=number) for city, number in zip(one.cities, one.answers, strict=True)]


def hidden(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\nThe special magic ([A-Z][A-Za-z ]*) number is: (\d{7})\n", text)


def test_the_wording_is_lwms() -> None:
    one = example(depths=[0.5])
    (city,), (number,) = one.cities, one.answers
    prompt = read(HAYSTACK, one.prompt)
    head, middle, tail = (re.escape(part) for part in re.split(r"\{context\}|\{question\}", PROMPT))
    question = r"What is the special magic (.*) number\?"
    needle = r"\nThe special magic (.*) number is: (\d{7})\n"
    pattern = rf"{head}(.*\.){needle}(.*){middle}{question}{tail}"
    match = re.fullmatch(pattern, prompt, re.DOTALL)
    assert match is not None
    assert (match[2], match[3], match[5]) == (city, number, city)
    assert not match[1].startswith(" ")
    assert prompt.startswith("You are a helpful assistant. USER: ")
    assert prompt.endswith(
        f" What is the special magic {city} number? Don't give information outside the document or repeat your "
        "findings. Keep your response short and direct. ASSISTANT: "
    )
    context = prompt.split("USER: ")[1].split(" " + QUESTION.format(city=city))[0]
    assert prompt == PROMPT.format(context=context, question=QUESTION.format(city=city))
    assert read(HAYSTACK, one.document.tokens) == f"{prompt}The special magic {city} number is: {number}"


def test_the_wording_of_many_is_lwms() -> None:
    three = example(needles=4, asked=3, form="multi", length=300)
    a, b, c = three.cities
    text = read(HAYSTACK, three.document.tokens)
    assert text.startswith("You are a helpful assistant. USER: ")
    assert text.endswith(
        f" What are the special magic numbers for {a}, {b}, and {c}? Don't give information outside the document. "
        f"ASSISTANT: {' '.join(answers(three))}"
    )
    two = example(needles=2, asked=2, form="multi")
    assert f"numbers for {two.cities[0]}, and {two.cities[1]}? Don't" in read(HAYSTACK, two.prompt)
    one = example(needles=2, asked=1, form="multi")
    assert read(HAYSTACK, one.document.tokens).endswith(
        f" What is the special magic number for {one.cities[0]}? Don't give information outside the document. "
        f"ASSISTANT: {answers(one)[0]}"
    )


def test_turns_ask_for_the_other_needles_after_the_first_answer() -> None:
    two = example(needles=2, asked=2, form="turns")
    text = read(HAYSTACK, two.document.tokens)
    first, second = answers(two)
    turn = TURN.format(question=QUESTION.format(city=two.cities[1]))
    assert text == read(HAYSTACK, two.prompt) + first + turn + second


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("form", ["turns", "multi"])
def test_a_chat_template_of_the_models_own(name: str, form: Form) -> None:
    """The document is what the template writes of the conversation, to the id."""
    tokenizer = tokenizer_of(name)
    haystack = Haystack(tokenizer, ["no end of sentences here " * 9])
    two = example(haystack, length=900, needles=3, asked=2, depths=[1.0] * 3, form=form, template="chat")
    template, vocabulary = ChatTemplate(tokenizer), tokenizer.vocabulary
    first, second = answers(two)
    content = PROMPTS_OF_CHAT[form].format(context="X", question="Y").partition("Y")[2]
    text = tokenizer.decode(two.prompt)
    asked = text[text.index("no end") : text.index(content) + len(content)]
    follow_up = QUESTION.format(city=two.cities[1])
    turns: list[tuple[Role, str]] = [("user", asked), ("assistant", first), ("user", follow_up), ("assistant", second)]
    if form == "multi":
        turns = [("user", asked), ("assistant", f"{first} {second}")]
    messages = [Message(role=role, content=said) for role, said in turns]
    ids = template.encode(messages)
    assert two.prompt.tolist() == frame_opening(vocabulary, template.encode(messages[:1], add_generation_prompt=True))
    ended = len(ids) - ids[::-1].index(template.end)
    expected = frame_opening(vocabulary, ids[:ended])
    tokens = two.document.tokens.tolist()
    assert tokens == expected + [vocabulary.eos] * (vocabulary.eos != template.end)
    weights = np.concatenate([np.full(len(span.ids), span.weight) for span in two.document.spans])
    assert weights.max() in weights[np.array(tokens) == template.end]
    assert weights[-1] == weights.max()


def frame_opening(vocabulary: Vocabulary, ids: list[int]) -> list[int]:
    return ids if ids[:1] == list(vocabulary.opening) else [*vocabulary.opening, *ids]


def test_no_chat_template_without_one() -> None:
    with pytest.raises(UserError, match="'chat' needs a tokenizer with a chat template"):
        example(template="chat")


def test_a_bare_template_for_short_rows() -> None:
    bare = example(template="bare", length=40, haystack=HAYSTACK)
    text = read(HAYSTACK, bare.document.tokens)
    assert text.startswith("USER: ")
    assert text.endswith(f" What is the special magic {bare.cities[0]} number? ASSISTANT: {answers(bare)[0]}")


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_nothing_is_ever_lost(data: st.DataObject) -> None:
    haystack = data.draw(st.sampled_from([HAYSTACK, PLAIN]))
    form = data.draw(st.sampled_from(["single", "multi", "turns"]))
    needles = data.draw(st.integers(1, 12))
    asked = 1 if form == "single" else data.draw(st.integers(1, needles))
    depths = data.draw(st.none() | st.lists(st.floats(0, 1), min_size=needles, max_size=needles))
    length = data.draw(st.integers(1800, 2000) if haystack is PLAIN else st.integers(460, 900))
    seed = data.draw(st.integers(0, 1 << 32))
    one = example(haystack, seed, needles=needles, asked=asked, depths=depths, form=form, length=length)
    vocabulary = haystack.tokenizer.vocabulary
    tokens = one.document.tokens
    assert len(tokens) == length
    assert (tokens[0], tokens[-1]) == (vocabulary.bos, vocabulary.eos)
    assert not {0, 1, 2} & set(tokens[1:-1].tolist())
    assert tokens[: len(one.prompt)].tolist() == one.prompt.tolist()
    prompt = read(haystack, one.prompt)
    found = dict(hidden(prompt.replace("\n", "\n\n")))
    assert len(found) == needles == len(one.depths)
    assert [found[city] for city in one.cities] == list(one.answers)
    assert len(set(one.cities)) == len(one.cities) == asked
    assert prompt.endswith(" ASSISTANT: ")
    question = prompt[prompt.rindex(" What ") :]
    assert one.cities[0] in question
    assert "number" in question


def test_depths() -> None:
    def place(depth: float) -> tuple[int, int, str, str]:
        text = read(HAYSTACK, example(depths=[depth]).prompt)
        context = text.split("USER: ", 1)[1].split(" What is the special magic")[0]
        before, after = re.split(NEEDLE.format(city="[A-Za-z ]*", number=r"\d*"), context)
        return len(before), len(after), before, after

    assert place(0.0)[0] == 0
    assert place(1.0)[1] == 0
    for depth in (0.25, 0.5, 0.75, 0.99):
        before, after, text, rest = place(depth)
        assert text.endswith(".")
        assert abs(before / (before + after) - depth) < 0.15
        assert rest
    places = [place(depth)[0] for depth in np.linspace(0, 1, 11).tolist()]
    assert places == sorted(places)


def test_depths_belong_to_the_needles_in_the_order_asked() -> None:
    one = example(needles=3, asked=2, form="multi", depths=[1.0, 0.0, 0.5], length=400)
    order = [city for city, _ in hidden(read(HAYSTACK, one.prompt))]
    assert (order[0], order[2]) == (one.cities[1], one.cities[0])
    assert one.depths == (1.0, 0.0, 0.5)


def test_random_depths_reach_the_edges() -> None:
    depths = np.array([example(seed=seed).depths[0] for seed in range(600)])
    assert 0.06 < np.mean(depths == 0) < 0.14
    assert 0.06 < np.mean(depths == 1) < 0.14
    inside = depths[(depths > 0) & (depths < 1)]
    assert np.histogram(inside, 4, (0, 1))[0].min() > 80


@pytest.mark.parametrize(("form", "needles", "asked"), [("single", 1, 1), ("turns", 3, 3), ("multi", 3, 2)])
def test_answers_weigh_one_and_all_else_the_prose_weight(form: Form, needles: int, asked: int) -> None:
    one = example(form=form, needles=needles, asked=asked, length=300)
    framed = frame(one.document, TOKENIZER.vocabulary)
    assert framed.tokens.tolist() == one.document.tokens.tolist()
    _, targets, _, _, weights = pack_row([(framed, 0)], 300, TOKENIZER.vocabulary, "token")
    trained = weights == weights.max()
    np.testing.assert_allclose(weights[trained].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(weights[~trained].sum(), 0.1, rtol=1e-5)
    said = "".join(read(HAYSTACK, targets[trained]))
    assert said == (" " if form == "multi" else "").join(answers(one))
    assert targets[trained][-1] == TOKENIZER.vocabulary.eos
    assert trained[len(one.prompt) - 1]
    assert not trained[: len(one.prompt) - 1].any()


def test_short_numbers_are_distinct_and_leave_room_for_more_needles() -> None:
    with pytest.raises(UserError, match="no room for 6 needles"):
        example(needles=6, asked=6, form="turns", length=128)
    for seed in range(20):
        many = example(needles=6, asked=6, form="turns", length=128, seed=seed, digits=2)
        assert len(many.document) == 128
        assert len(set(many.answers)) == 6
        assert all(re.fullmatch("[1-9][0-9]", answer) for answer in many.answers)
        told = re.findall(r"\nThe special magic ([A-Z][A-Za-z ]*) number is: (\d+)\n", read(HAYSTACK, many.prompt))
        assert sorted(told) == sorted(zip(many.cities, many.answers, strict=True))


def test_cities_are_many_and_distinct() -> None:
    assert len(set(CITIES)) == len(CITIES) >= 100
    assert all(city.isascii() for city in CITIES)


def test_the_wording_costs_few_tokens() -> None:
    words = HAYSTACK.wording
    lwm = words.frames["lwm"]
    assert [len(part) for part in (lwm.head, lwm.tail)] == [1, 1]
    assert {len(ids) for ids in words.needles} == {3}
    assert {len(ids) for ids in words.questions} == {3}
    assert {len(ids) for ids in lwm.turns} == {5}
    assert {len(ids) for ids in (*lwm.answers, *words.next_answers)} == {3}
    # bos, head, space; needle and its digits and newline; question, tail, answer, eos.
    assert len(example(length=29).document) == 29
    assert len(set(phrases())) == len(phrases())


@pytest.mark.parametrize("form", ["single", "turns", "multi"])
def test_ids_put_together_are_the_ids_of_the_text(form: Form) -> None:
    """A prompt that a person types gives the model what it was trained on."""
    asked = 1 if form == "single" else 2
    same = 0
    for seed in range(60):
        one = example(seed=seed, form=form, needles=3, asked=asked)
        tokens = one.document.tokens[1:-1].tolist()
        same += TOKENIZER.encode(TOKENIZER.decode(tokens)) == tokens
    # The prose is cut to length at any token, perhaps within a word.
    assert same > 45


def test_a_source_is_a_pure_function_of_seed_and_index() -> None:
    source, again = (NeedleSource(HAYSTACK, 200, needles=4, seed=3) for _ in range(2))
    assert len(source) == ENDLESS
    for index in (5, 0, 1 << 40, 5):
        assert source[index].tokens.tolist() == again[index].tokens.tolist()
        assert len(source[index]) == 200
    assert source[0].tokens.tolist() != source[1].tokens.tolist()
    assert source[0].tokens.tolist() != NeedleSource(HAYSTACK, 200, needles=4, seed=4)[0].tokens.tolist()
    assert len(source.example(0).answers) == 4


def test_documents_of_random_lengths() -> None:
    source = NeedleSource(HAYSTACK, 120, shortest=100, needles=2)
    examples = [source.example(index) for index in range(400)]
    assert {len(e.document) for e in examples} == set(range(100, 121))
    assert all(len(e.answers) == 2 for e in examples)
    assert source[7].tokens.tolist() == examples[7].document.tokens.tolist()


def test_prose_past_the_end_goes_on_from_the_beginning() -> None:
    short = Haystack(TOKENIZER, ["One keeper. Two boats.", "Three lamps."])
    ids = short.slice(4 * len(short.ids), np.random.default_rng(0))
    text = read(short, ids)
    assert len(ids) == 4 * len(short.ids)
    assert "One keeper. Two boats.\nThree lamps.\nOne keeper. Two" in text


def test_prose_begins_at_a_sentence() -> None:
    rng = np.random.default_rng(0)
    starts = {read(HAYSTACK, HAYSTACK.slice(30, rng)).lstrip().split(" ")[0] for _ in range(200)}
    assert starts == {"The", "Nobody", "So"}


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"a row of 25 tokens has no room for 1 needles .*: they alone take 29 tokens"):
        example(length=25)
    with pytest.raises(UserError, match="a row of 100 tokens has no room for 40 needles"):
        NeedleSource(HAYSTACK, 100, needles=40)
    with pytest.raises(UserError, match="a row of 20 tokens has no room for 1 needles"):
        NeedleSource(HAYSTACK, 100, shortest=20)
    with pytest.raises(ValueError, match="shortest must be at most the length of 100, got 101"):
        NeedleSource(HAYSTACK, 100, shortest=101)
    with pytest.raises(UserError, match=f"at most {len(CITIES)} needles"):
        example(needles=len(CITIES) + 1, length=9000)
    with pytest.raises(UserError, match="there are not 10 different numbers of 1 digits: take fewer needles"):
        example(needles=10, length=500, digits=1)
    for digits in 0, 19:
        with pytest.raises(ValueError, match=f"digits must be 1 to 18, got {digits}"):
            example(digits=digits)
    assert len(example(digits=18).answers[0]) == 18
    with pytest.raises(ValueError, match="asked must be 1 to 2 needles"):
        example(needles=2, asked=3, form="multi")
    with pytest.raises(ValueError, match="and 1 for the form 'single', got 2"):
        example(needles=2, asked=2)
    with pytest.raises(ValueError, match="depths must be 2 numbers"):
        example(needles=2, depths=[0.5])
    with pytest.raises(UserError, match="a haystack needs some text"):
        Haystack(TOKENIZER, [" "])


def test_a_tokenizer_that_joins_digits_is_refused() -> None:

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner.train_from_iterator(["0123456789"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    with pytest.raises(UserError, match="needles need a tokenizer that makes one token of each digit"):
        Haystack(TextTokenizer(inner, train_tokenizer(["a"], 300).vocabulary), ["Some text."])


def test_chat_wording_costs_few_tokens_and_a_conversation_goes_on() -> None:
    tokenizer = TokenizerConfig(640, ("tiny",), wording="chat", sentences=30).build()
    assert tokenizer.chat_template == LWM_TEMPLATE
    assert [len(tokenizer.encode(mark)) for mark in (VISION_START, VISION_END)] == [1, 1]
    assert len(set(chat_phrases())) == len(chat_phrases())
    haystack = Haystack(tokenizer, [text for _, text in load_corpus("tiny")])
    needles = NeedleSource(haystack, 200, needles=3, asked=2, template="chat", seed=1)
    ids = needles[0].tokens[1:-1].tolist()
    assert len(haystack.wording.frames["chat"].tail) == 2
    template = ChatTemplate(tokenizer)
    turns: list[Message] = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Nobody."}]
    asked = template.encode(turns[:1], add_generation_prompt=True)
    assert template.encode(turns)[: len(asked)] == asked
    assert tokenizer.decode(ids).count(" ASSISTANT: The special magic") == 2
