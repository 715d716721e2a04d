"""Conversations to ids: a model's own chat template, as Hugging Face's tokenizers carry one, rendered and taken apart.

A template is a program of whoever published the model, in Jinja's language: it runs in Jinja's sandbox. What it writes
is the same to the byte as what transformers' `apply_chat_template` writes, and so are the ids, with one exception: a
message that spells a special token does not become one, so nobody can put words into another's mouth.
"""

import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypedDict, TypeVar

import numpy as np
from jinja2 import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node, Scope
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from ringworld.errors import UserError
from ringworld.tokens.text import TextTokenizer

Role = Literal["system", "user", "assistant"]


# Whose words stand around a conversation, and in which order what is asked stands: the model's own template, with what
# is shown before the question; or LWM's, with the question first.
TemplateName = Literal["own", "lwm"]
Layout = Literal["media first", "question first"]
Shown = TypeVar("Shown")
Part = str | np.ndarray  # text; or a picture's or film's ids, delimiters and all (see `tokens.vision`)


class Message(TypedDict):
    """One turn of a conversation: what is said, or what is said and shown."""

    role: Role
    content: str | list[Part]


# What a picture or a film is asked for with: LWM's words.
IMAGE_OF = "Generate an image of {prompt}"
VIDEO_OF = "Generate a video of {prompt}"
# LWM's own layout (arXiv 2402.08268), for a model that has no template. Its paper shows one turn: later
# ones are laid out as Vicuna's are (https://github.com/lm-sys/FastChat), as far as we know.
LWM_TEMPLATE = """
{{- bos_token -}}
{%- if messages[0]['role'] != 'system' -%}{{- 'You are a helpful assistant. ' -}}{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- message['content'] | trim + ' ' -}}
{%- elif message['role'] == 'user' -%}{{- 'USER: ' + message['content'] | trim + ' ' -}}
{%- else -%}{{- 'ASSISTANT: ' + message['content'] | trim + eos_token -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'ASSISTANT:' -}}{%- endif -%}
"""


def arranged(words: str, media: Sequence[Shown], layout: Layout) -> list[str | Shown]:
    """A question and what it is about: media, a space and the words; or the words in a line of their own before them,
    as LWM's models were trained (arXiv 2402.08268)."""
    return [*media, f" {words}"] if layout == "media first" else [f"{words}\n", *media]


def parts_of(content: str | list[Part]) -> list[Part]:
    """What is said and shown, one after the other."""
    return [content] if isinstance(content, str) else content


class ChatTemplate:
    """How a model reads a conversation.

    Attributes:
        layout: in which order what is asked and what is shown stand in a message.
        end: the id that ends an answer: the first special token after an assistant's words.
        special: all special ids, none of which can be part of an answer.
    """

    def __init__(self, tokenizer: TextTokenizer, name: TemplateName = "own") -> None:
        """
        Args:
            name: "lwm" is LWM's, whatever the model's own is. A model that has none of its own has LWM's words in any
                case.

        Raises:
            UserError: the template is not one, or the tokenizer has nothing that ends an answer.
        """
        inner, vocabulary = tokenizer.inner, tokenizer.vocabulary
        names = {index: token.content for index, token in inner.get_added_tokens_decoder().items() if token.special}
        if vocabulary.eos not in names:
            raise UserError(
                f"the tokenizer does not call id {vocabulary.eos}, the end of a text, a special token: no answer would "
                "end, so this model cannot chat"
            )
        self._strings = {"eos_token": names[vocabulary.eos]}
        if vocabulary.bos in names:
            self._strings["bos_token"] = names[vocabulary.bos]
        self.layout: Layout = "question first" if name == "lwm" else "media first"
        self._template = _compiled(LWM_TEMPLATE if name == "lwm" else tokenizer.chat_template or LWM_TEMPLATE)
        self._markers = _Markers(inner, names)
        self.special = frozenset(names)
        self.end = self._found_end(vocabulary.eos)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """A conversation in words alone as text.

        Args:
            add_generation_prompt: with the words that come before the next answer.

        Raises:
            UserError: the template refuses the conversation, or fails.
        """
        try:
            return self._template(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._strings,
            )
        except TemplateError as error:
            raise UserError(f"the model's chat template refuses this conversation: {error.message}") from error
        except Exception as error:  # somebody else's program: it can fail in any way
            raise UserError(
                f"the model's chat template fails on this conversation ({type(error).__name__}: {error})"
            ) from error

    def encode(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """The ids of `render`'s text. Special tokens that the template writes are one id each; those that a message
        spells are text. Raises UserError as `render`."""
        media: list[np.ndarray] = []

        def disguised(part: Part) -> str:
            if isinstance(part, str):
                return self._markers.disguise(part)
            media.append(part)
            return self._markers.medium(len(media) - 1)

        said: list[Message] = [
            {"role": message["role"], "content": "".join(map(disguised, parts_of(message["content"])))}
            for message in messages
        ]
        return self._markers.encode(self.render(said, add_generation_prompt=add_generation_prompt), media)

    def parts(self) -> "Parts":
        """What the template writes around the words of a conversation, for who puts one together from ids. Raises
        UserError as `render`."""
        said, answer = self._markers.nonce, f"{self._markers.nonce}0"
        turns: list[Message] = [
            {"role": "user", "content": said},
            {"role": "assistant", "content": answer},
            {"role": "user", "content": said},
        ]
        asked = self.render(turns[:1], add_generation_prompt=True)
        before, _, after = asked.partition(said)
        start, _, rest = self.render(turns).partition(answer)
        between = self._markers.encode(rest.partition(said)[0])
        ended = between.index(self.end) + 1 if self.end in between else 0
        return Parts(
            head=self._markers.encode(before),
            tail=self._markers.encode(after),
            lead=start.removeprefix(asked) if start.startswith(asked) else "",
            stop=between[:ended],
            between=between[ended:],
        )

    def _found_end(self, eos: int) -> int:
        answer = self._markers.nonce
        text = self.render([{"role": "user", "content": "?"}, {"role": "assistant", "content": answer}])
        after = text.rpartition(answer)[2] if answer in text else ""
        return next(iter(self._markers.find(after)), eos)


@dataclass(frozen=True)
class Parts:
    """What a template writes around words. All but `lead`, which is text and goes before an answer, are ids."""

    head: list[int]  # before a conversation's first words, the user's
    tail: list[int]  # from the user's words to where an answer begins
    lead: str  # what an answer begins with, mostly nothing
    stop: list[int]  # after an answer, to the id that ends it
    between: list[int]  # from there to the user's next words


class _Markers:
    """Special tokens in a text, told from words that spell them.

    For the length of the rendering, what a message spells goes under a name that nobody can guess, hence the nonce.
    Afterwards it is what the template itself wrote that gets such names, and a second tokenizer has them as its special
    tokens, with their ways of treating the space around them.
    """

    def __init__(self, tokenizer: Tokenizer, names: dict[int, str]) -> None:
        """`names`: of the tokenizer's special tokens."""
        self.nonce = str(secrets.randbits(128))  # digits: whatever a template does to the case of letters
        self._ids = {name: index for index, name in names.items()}
        self._names = names
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._spelled = re.compile("|".join(map(re.escape, longest_first)))
        self._disguised = re.compile(rf"{self.nonce}\.(\d+)\.")
        self._tokenizer, self._original = self._renaming(tokenizer)

    def disguise(self, content: str) -> str:
        """The content with another name for each special token that it spells."""
        return self._spelled.sub(lambda found: f"{self.nonce}.{self._ids[found[0]]}.", content)

    def medium(self, number: int) -> str:
        """What stands in a text for a picture or a film."""
        return f"{self.nonce}-{number}-"

    def encode(self, text: str, media: Sequence[np.ndarray] = ()) -> list[int]:
        """Ids of a text in which spelled special tokens are disguised and real ones are not, with media in their
        places."""
        between = re.split(rf"{self.nonce}-(\d+)-", text)  # texts, and between them numbers of media
        return [
            index
            for place, part in enumerate(between)
            for index in (media[int(part)].tolist() if place % 2 else self._encode_text(part))
        ]

    def _encode_text(self, text: str) -> list[int]:
        real = self._spelled.sub(lambda found: self._real(self._ids[found[0]]), text)
        plain = self._disguised.sub(lambda found: self._names[int(found[1])], real)
        ids = self._tokenizer.encode(plain, add_special_tokens=False).ids
        return [self._original.get(index, index) for index in ids]

    def find(self, text: str) -> list[int]:
        """The special tokens that stand in a text."""
        return [self._ids[found[0]] for found in self._spelled.finditer(text)]

    def _real(self, index: int) -> str:
        return f"{self.nonce}:{index}:"

    def _renaming(self, tokenizer: Tokenizer) -> tuple[Tokenizer, dict[int, int]]:
        """The second tokenizer, and the first one's ids for those of its added tokens: another name has another id."""
        second = Tokenizer(tokenizer.model)
        if tokenizer.normalizer is not None:
            second.normalizer = tokenizer.normalizer
        if tokenizer.pre_tokenizer is not None:
            second.pre_tokenizer = tokenizer.pre_tokenizer
        original = {}
        for index, token in tokenizer.get_added_tokens_decoder().items():
            added = token
            if token.special:
                name, ways = self._real(index), {"lstrip": token.lstrip, "rstrip": token.rstrip}
                added = AddedToken(name, special=True, normalized=False, **ways)
            second.add_tokens([added])
            original[second.token_to_id(added.content)] = index
        return second, original


class _Generation(Extension):
    """`{% generation %}`, which marks an assistant's words for training and writes them as they are."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _compiled(template: str) -> Callable[..., str]:
    """The function that renders a template, with what transformers gives to templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(template).render
    except TemplateError as error:
        raise UserError(
            f"the model's chat template cannot be read ({error}): it must be a Jinja template, as Hugging Face's "
            "tokenizers carry one"
        ) from error


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own, it leaves HTML's signs as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
