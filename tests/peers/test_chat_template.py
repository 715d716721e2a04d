"""Conversations rendered and encoded here and by transformers, side by side."""

import pytest
from tokenizers import Tokenizer

from golden.chat_renderings import CONVERSATIONS, RENDERINGS, STRINGS, TEMPLATES, render
from ringworld.tokens.chat import ChatTemplate
from tokens.test_chat import GOLDEN, tokenizer_of

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("prompt", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_renderings_are_equal_to_the_byte(name: str, prompt: bool) -> None:
    template = ChatTemplate(tokenizer_of(name))
    for messages, golden in zip(CONVERSATIONS, GOLDEN[name], strict=True):
        theirs = render(name, messages, prompt)
        assert template.render(messages, add_generation_prompt=prompt) == theirs
        assert golden[prompt] == theirs, f"{RENDERINGS.name} is of another version: make it anew"


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_equal_where_no_message_spells_a_special_token(name: str) -> None:
    ours = tokenizer_of(name)
    inner = Tokenizer.from_str(ours.inner.to_str())  # in which special tokens are found in text, as theirs does
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **STRINGS[name])
    template = ChatTemplate(ours)
    for messages in CONVERSATIONS:
        if not any("<|" in message["content"] for message in messages):
            ids = theirs.apply_chat_template(
                messages, chat_template=TEMPLATES[name], add_generation_prompt=True, return_dict=False
            )
            assert template.encode(messages, add_generation_prompt=True) == ids
