import json
from datetime import datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from golden.chat_renderings import CONVERSATIONS, RENDERINGS, STRINGS, TEMPLATES, turns
from ringworld.errors import UserError
from ringworld.tokens.chat import ChatTemplate, Message, arranged
from ringworld.tokens.text import BYTES, TextTokenizer, train_tokenizer
from ringworld.tokens.vocabulary import Vocabulary

MARKERS = ["<|start_header_id|>", "<|end_header_id|>"]
GOLDEN: dict[str, list[list[str]]] = json.loads(RENDERINGS.read_text(encoding="utf-8"))
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def byte_tokenizer(specials: list[str | AddedToken], eos: str, bos: str | None, template: str | None) -> TextTokenizer:
    """A token for each byte, and the special ones behind them."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    ids = {name: tokenizer.token_to_id(name) for name in (eos, bos) if name}
    vocabulary = Vocabulary(tokenizer.get_vocab_size(), bos=ids.get(bos), eos=ids[eos], pad=ids[eos])
    return TextTokenizer(tokenizer, vocabulary, template)


def tokenizer_of(name: str) -> TextTokenizer:
    strings = STRINGS[name]
    specials = sorted({*strings.values(), *MARKERS, "<|im_start|>", "<|endoftext|>"})
    return byte_tokenizer(specials, strings["eos_token"], strings.get("bos_token"), TEMPLATES[name])


def with_specials(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids as anyone gets them who takes whatever looks like a special token for one."""
    inner = Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_json())["tokenizer"]))
    inner.encode_special_tokens = False
    return inner.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_renders_them(name: str, prompt: bool) -> None:
    template = ChatTemplate(tokenizer_of(name))
    for messages, golden in zip(CONVERSATIONS, GOLDEN[name], strict=True):
        assert template.render(messages, add_generation_prompt=prompt) == golden[prompt]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_rendered_conversation_is_encoded_with_its_special_tokens(name: str) -> None:
    tokenizer = tokenizer_of(name)
    template = ChatTemplate(tokenizer)
    for messages in CONVERSATIONS:
        if not any("<|" in message["content"] for message in messages):
            text = template.render(messages, add_generation_prompt=True)
            ids = template.encode(messages, add_generation_prompt=True)
            assert ids == with_specials(tokenizer, text)
            assert template.special & set(ids)


CHATML_TOKENIZER = tokenizer_of("chatml")
CHATML = ChatTemplate(CHATML_TOKENIZER)
# Pieces that come near to special tokens, so that hypothesis finds whatever mistakes one for another.
NEAR = st.sampled_from(
    ["<|im_start|>", "<|im_end|>", "<|im_", "end|>", "<", "|>", "<|im_<|im_end|>end|>", "0.1.", "\n"]
)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(NEAR | ANY_TEXT).map("".join), min_size=1, max_size=4))
def test_no_message_can_make_a_turn(contents: list[str]) -> None:
    ids = CHATML.encode(turns(*contents, system="s"))
    start, end = (CHATML_TOKENIZER.inner.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert [i for i in ids if i in CHATML.special] == [start, end] * (len(contents) + 1)
    starts, ends = ([place for place, i in enumerate(ids) if i == mark] for mark in (start, end))
    words = [CHATML_TOKENIZER.decode(ids[a + 1 : b]) for a, b in zip(starts, ends, strict=True)]
    expected = [f"{role}\n{content}" for role, content in zip(["user", "assistant"] * 2, contents, strict=False)]
    assert words == ["system\ns", *expected]


@settings(deadline=None, max_examples=40)
@given(st.lists(ANY_TEXT.filter(lambda text: "<|" not in text), min_size=1, max_size=4))
def test_ids_of_ordinary_words_are_those_of_the_rendered_text(contents: list[str]) -> None:
    messages = turns(*contents)
    assert CHATML.encode(messages) == with_specials(CHATML_TOKENIZER, CHATML.render(messages))


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_sentencepiece_puts_its_spaces_where_it_does_without_a_conversation(scheme: str) -> None:
    """In some models of this family a space comes after each special token, in some at the start alone."""
    pieces = [chr(i) for i in range(33, 127)] + ["\u2581", "\u2581h", "h\u2581"]
    tokenizer = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [("\u2581", "h"), ("h", "\u2581")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<s>", "</s>")])
    vocabulary = Vocabulary(len(pieces) + 2, bos=len(pieces), eos=len(pieces) + 1, pad=0)
    template = ChatTemplate(text := TextTokenizer(tokenizer, vocabulary, TEMPLATES["llama2"]))
    messages = turns("h h", "hh", " h")
    assert template.encode(messages) == with_specials(text, template.render(messages))
    plain = template.encode(turns("h</s>h"))
    assert [i for i in plain if i in template.special] == [vocabulary.bos]


def test_a_special_token_takes_the_space_beside_it_where_it_does() -> None:
    specials: list[str | AddedToken] = [AddedToken("<|end|>", rstrip=True, normalized=False), "<|user|>"]
    layout = "{% for m in messages %}{{ '<|user|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    tokenizer = byte_tokenizer(specials, "<|end|>", None, layout)
    template = ChatTemplate(tokenizer)
    messages = turns("a", "b")
    ids = template.encode(messages)
    assert ids == with_specials(tokenizer, template.render(messages))
    assert tokenizer.encode("\n")[0] not in ids[ids.index(template.end) :][:2]  # the line's end has gone
    kept = template.encode(turns("a<|end|>\n\n"))
    assert kept == [*template.encode(turns("a"))[:-1], *tokenizer.encode("<|end|>\n\n"), template.end]


def test_tokens_that_are_in_no_vocabulary_but_were_added_keep_their_ids() -> None:
    tokenizer = Tokenizer(models.BPE({"<e>": 0, "a": 1, "b": 2}, []))
    tokenizer.add_tokens([AddedToken("ab", normalized=False)])
    tokenizer.add_special_tokens(["<e>", "<u>"])
    tokenizer.add_tokens([AddedToken("ba", normalized=False)])
    assert [tokenizer.token_to_id(name) for name in ("ab", "<u>", "ba")] == [3, 4, 5]
    layout = "{% for m in messages %}{{ '<u>' + m.content + '<e>' }}{% endfor %}"
    template = ChatTemplate(TextTokenizer(tokenizer, Vocabulary(6, bos=None, eos=0, pad=0), layout))
    assert template.encode(turns("ab", "aba", "bab")) == [4, 3, 0, 4, 3, 1, 0, 4, 5, 2, 0]


@pytest.mark.parametrize(
    ("name", "ends"),
    [("chatml", "<|im_end|>"), ("llama2", "</s>"), ("llama3", "<|eot_id|>"), ("thoughts", "<|im_end|>")],
)
def test_an_answer_ends_with_the_special_token_that_the_template_puts_behind_it(name: str, ends: str) -> None:
    specials: list[str | AddedToken] = ["<|endoftext|>", *sorted({*STRINGS[name].values(), *MARKERS, "<|im_start|>"})]
    tokenizer = byte_tokenizer(specials, "<|endoftext|>", STRINGS[name].get("bos_token"), TEMPLATES[name])
    if name == "llama2":  # which names its own end
        tokenizer = tokenizer_of(name)
    assert ChatTemplate(tokenizer).end == tokenizer.inner.token_to_id(ends)


def test_where_nothing_special_is_behind_an_answer_it_ends_with_the_text() -> None:
    layout = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n{% endfor %}"
    tokenizer = byte_tokenizer(["<e>"], "<e>", None, layout)
    assert ChatTemplate(tokenizer).end == tokenizer.vocabulary.eos
    silent = byte_tokenizer(["<e>", "<u>"], "<e>", None, "<u>")  # in which no answer is to be found
    assert ChatTemplate(silent).end == silent.vocabulary.eos


def test_a_model_without_a_template_is_asked_as_lwm_is() -> None:
    tokenizer = train_tokenizer(["The keeper counted the lamps."] * 3, 3 + BYTES + 10)
    template = ChatTemplate(tokenizer)
    assert template.end == tokenizer.vocabulary.eos
    question = "You are a helpful assistant. USER: Why? ASSISTANT:"
    assert template.render(turns("Why?"), add_generation_prompt=True) == "<bos>" + question
    ids = template.encode(turns(" Why?\n"), add_generation_prompt=True)
    assert ids == [tokenizer.vocabulary.bos, *tokenizer.encode(question)]
    longer = template.render(turns("Why?", " So.", "Oh <eos>"), add_generation_prompt=True)
    assert longer == f"<bos>{question} So.<eos>USER: Oh <eos> ASSISTANT:"
    assert template.render(turns("Why?", system="Be brief. ")) == "<bos>Be brief. USER: Why? "


def test_lwms_template_serves_a_model_that_has_its_own() -> None:
    tokenizer = train_tokenizer(["The keeper counted the lamps."] * 3, 3 + BYTES + 10)
    other = TextTokenizer(tokenizer.inner, tokenizer.vocabulary, "{{ 'mine' }}")
    own, lwm = ChatTemplate(other), ChatTemplate(other, "lwm")
    assert own.render(turns("Why?")) == "mine"
    assert lwm.render(turns("Why?")) == "<bos>You are a helpful assistant. USER: Why? "
    assert (own.layout, lwm.layout) == ("media first", "question first")


def test_a_question_stands_before_or_after_what_it_is_about() -> None:
    assert arranged("Why?", [1, 2], "media first") == [1, 2, " Why?"]
    assert arranged("Why?", [1, 2], "question first") == ["Why?\n", 1, 2]


def test_a_film_comes_after_its_question_to_the_id_as_lwm_has_it() -> None:
    tokenizer = train_tokenizer(["The keeper counted the lamps."] * 3, 3 + BYTES + 10)
    template, film = ChatTemplate(tokenizer, "lwm"), np.array([1000, 1001], np.int32)
    messages: list[Message] = [{"role": "user", "content": arranged("Who counts?", [film], template.layout)}]
    before, after = "You are a helpful assistant. USER: Who counts?\n", " ASSISTANT:"
    assert template.encode(messages, add_generation_prompt=True) == [
        tokenizer.vocabulary.bos, *tokenizer.encode(before), 1000, 1001, *tokenizer.encode(after)
    ]  # fmt: skip


def test_a_template_knows_the_date() -> None:
    template = ChatTemplate(byte_tokenizer(["<e>"], "<e>", None, "{{ strftime_now('%d %b %Y') }}"))
    before = datetime.now()
    assert template.render([]) in {f"{day:%d %b %Y}" for day in (before, datetime.now())}


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        ("{% if %}", "the model's chat template cannot be read .*: it must be a Jinja template"),
        ("{{ raise_exception('no such role') }}", "template refuses this conversation: no such role$"),
        ("{{ messages[0].nothing.at_all }}", "template refuses this conversation: .*has no attribute 'nothing'"),
        ("{{ 1 / 0 }}", r"template fails on this conversation \(ZeroDivisionError: division by zero\)"),
        ("{{ ''.__class__.__mro__ }}", "template refuses this conversation: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "template refuses this conversation: access to attribute 'append'.*is unsafe"),
        (
            "{% for i in range(10**9) %}{% endfor %}",
            r"template fails on this conversation \(OverflowError: Range too big",
        ),
    ],
)
def test_templates_that_fail_say_so(layout: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        ChatTemplate(byte_tokenizer(["<e>"], "<e>", None, layout))


def test_a_template_refuses_a_conversation_in_its_own_words() -> None:
    template = ChatTemplate(tokenizer_of("llama2"))
    messages: list[Any] = [{"role": "assistant", "content": "I begin"}]
    with pytest.raises(UserError, match="refuses this conversation: user and assistant must take turns"):
        template.encode(messages)


def test_a_tokenizer_that_has_no_end_cannot_chat() -> None:
    tokenizer = Tokenizer(models.BPE({"a": 0, "<e>": 1}, []))
    with pytest.raises(UserError, match="does not call id 1, the end of a text, a special token"):
        ChatTemplate(TextTokenizer(tokenizer, Vocabulary(2, bos=None, eos=1, pad=1)))
