import numpy as np
import pytest

from data.seeing import TEXT
from golden.chat_renderings import TEMPLATES
from ringworld.data.conversations import LongReading, conversation, vision_alone
from ringworld.errors import UserError
from ringworld.tokens.chat import LWM_TEMPLATE, ChatTemplate, Message
from ringworld.tokens.text import TextTokenizer, train_tokenizer
from ringworld.tokens.vision import vision_ids
from tokens.test_chat import tokenizer_of

PICTURE = vision_ids(np.arange(16).reshape(1, 4, 4), TEXT.vocabulary)
TURNS: list[Message] = [
    {"role": "user", "content": [PICTURE, " What is it?"]},
    {"role": "assistant", "content": "a circle"},
    {"role": "user", "content": "Draw it again."},
    {"role": "assistant", "content": [PICTURE]},
]


def test_each_answer_weighs_one_from_where_it_is_asked_for_to_its_end() -> None:
    template, eos = ChatTemplate(TEXT), TEXT.vocabulary.eos
    document = conversation(TURNS, template, TEXT.vocabulary)
    tokens, weights = document.tokens.tolist(), document.weights
    assert tokens == template.encode(TURNS)
    first = len(template.encode(TURNS[:1], add_generation_prompt=True))
    second = len(template.encode(TURNS[:3], add_generation_prompt=True))
    ends = [index + 1 for index, token in enumerate(tokens) if token == eos]
    assert len(ends) == 2
    expected = np.zeros(len(tokens))
    for start, stop in zip((first, second), ends, strict=True):
        expected[start:stop] = 1 / (stop - start)
    np.testing.assert_allclose(weights, expected)
    assert "".join(span.modality[0] for span in document.spans) == "tvttttvt"


def test_what_comes_after_the_last_answer_is_left_out() -> None:
    template = ChatTemplate(TEXT)
    longer = conversation([*TURNS, {"role": "user", "content": "Thanks."}], template, TEXT.vocabulary)
    assert longer.tokens.tolist() == conversation(TURNS, template, TEXT.vocabulary).tokens.tolist()


def test_vision_alone_is_asked_for_by_nothing() -> None:
    document, vocabulary = vision_alone(PICTURE, TEXT.vocabulary), TEXT.vocabulary
    assert document.tokens.tolist() == [vocabulary.bos, *PICTURE, vocabulary.eos]
    assert document.weights[:2].tolist() == [0, 0]
    assert document.weights.sum() == pytest.approx(1)


def test_a_tokenizer_that_joins_a_prompt_and_its_answer_is_refused() -> None:
    joining = train_tokenizer(["a"], 300, [" ASSISTANT: "])
    tokenizer = TextTokenizer(joining.inner, joining.vocabulary, LWM_TEMPLATE)
    turns: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="written in other tokens once the conversation goes on"):
        conversation(turns, ChatTemplate(tokenizer), tokenizer.vocabulary)


@pytest.mark.parametrize("name", ["lwm", *TEMPLATES])
def test_what_is_read_long_is_the_conversation_put_together(name: str) -> None:
    tokenizer = TEXT if name == "lwm" else tokenizer_of(name)
    template, vocabulary = ChatTemplate(tokenizer), tokenizer.vocabulary
    asked = [("Where is it?", "in the attic"), ("How many are there?", "12"), ("Which colour has it?", "red")]
    shown = ["It was a long story. ", PICTURE, " It ended here."]
    messages: list[Message] = []
    for question, answer in asked:
        before = [] if messages else [*shown, "\n"]
        messages += [{"role": "user", "content": [*before, question]}, {"role": "assistant", "content": answer}]
    whole = conversation(messages, template, vocabulary)
    reading = LongReading(template, vocabulary)
    (question, answer), *others = asked
    built = reading.document(
        [reading.opening([*shown, f"\n{question}"], answer), *(reading.following(*one) for one in others)]
    )
    assert built.tokens.tolist() == whole.tokens.tolist()
    np.testing.assert_array_equal(built.weights, whole.weights)
    assert built.weights.sum() == pytest.approx(3)
