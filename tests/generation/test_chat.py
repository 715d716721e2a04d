import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generation.models import random_model, tokenizer
from ringworld.attention.decode import CacheType
from ringworld.errors import UserError
from ringworld.generation import decode, memory
from ringworld.generation.chat import Chat
from ringworld.generation.model import Model
from ringworld.mesh import MeshShape
from ringworld.model.rope import RopeScaling
from ringworld.tokens.chat import ChatTemplate
from ringworld.tokens.text import TextTokenizer

QUESTIONS = ("The old keeper counted the lamps.", "So the doctor and the clerk?", "In the morning, by the river")
EOS = tokenizer().vocabulary.eos
pytestmark = pytest.mark.usefixtures("few_programs")
# The words of a turn go up to <pad>; thoughts, in parentheses, are left out as soon as there is another turn.
THOUGHTS = (
    "{% for m in messages %}{{ '<bos>' + m.role + ':' }}{% if m.role == 'assistant' and not loop.last %}"
    "{{ m.content.split(')')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<pad>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<bos>assistant:' }}{% endif %}"
)


def with_template(template: str) -> Model:
    model = random_model()
    return replace(model, tokenizer=TextTokenizer(tokenizer().inner, tokenizer().vocabulary, template))


def prompted(model: Model, chat: Chat, text: str) -> list[int]:
    """What a model that has to answer `text` next should have read."""
    messages: Any = [*chat.messages, {"role": "user", "content": text}]
    return ChatTemplate(model.tokenizer).encode(messages, add_generation_prompt=True)


def afresh(model: Model, chat: Chat, path: Path) -> Chat:
    """The same conversation, of which nothing is read yet."""
    chat.save(path)
    other = Chat(model)
    other.load(path)
    return other


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens were read, each time."""
    counts: list[int] = []
    reading = decode.read

    def counted(weights: Any, tokens: np.ndarray, lengths: np.ndarray, *rest: Any, **options: Any) -> Any:
        counts.append(int(lengths.max()))
        return reading(weights, tokens, lengths, *rest, **options)

    monkeypatch.setattr(decode, "read", counted)
    return counts


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "seed": 3}], ids=str)
def test_the_first_answer_is_what_the_model_makes_of_the_prompt(settings: dict[str, Any]) -> None:
    model = random_model()
    chat = model.chat()
    ids = prompted(model, chat, QUESTIONS[0])
    pieces = list(chat.say(QUESTIONS[0], max_tokens=12, **settings))
    (answer,) = model.generate_batch([np.array(ids, np.int32)], 12, **settings)
    stream = model.tokenizer.stream()
    assert "".join(pieces) == "".join(stream.push(i) for i in answer)
    assert len(pieces) > 1
    assert "" not in pieces
    assert chat.messages == [
        {"role": "user", "content": QUESTIONS[0]},
        {"role": "assistant", "content": "".join(pieces)},
    ]


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(data=2, tensor=2, sequence=2)], ids=str)
def test_a_long_conversation_is_answered_as_if_it_were_read_at_once(shape: MeshShape, tmp_path: Path) -> None:
    model = random_model(shape)
    chat = model.chat()
    for question in QUESTIONS:
        other, ids = afresh(model, chat, tmp_path / "chat.json"), prompted(model, chat, question)
        answer = "".join(chat.say(question, max_tokens=8))
        assert answer
        assert answer == "".join(other.say(question, max_tokens=8))
        assert chat.tokens[: len(ids)] == ids
        assert len(chat.tokens) == len(ids) + 7  # the last of the answer is not needed yet


def test_of_each_turn_only_the_new_tokens_are_read(read: list[int], scripted: Callable[..., None]) -> None:
    model = random_model()
    words = [model.tokenizer.encode(text) for text in (" lamps by the river.", " the young keeper")]
    scripted(*([*ids, EOS] for ids in words))
    chat = model.chat()
    assert "".join(chat.say(QUESTIONS[0])) == " lamps by the river."
    turn = model.tokenizer.encode(f"USER: {QUESTIONS[1]} ASSISTANT:")
    assert "".join(chat.say(QUESTIONS[1])) == " the young keeper"
    whole = prompted(model, Chat(model), QUESTIONS[0])
    assert read == [len(whole), 1 + len(turn)]  # the end of the answer, which was only listened to, and the turn
    assert chat.tokens == [*whole, *words[0], EOS, *turn, *words[1]]


def test_where_the_past_is_written_differently_it_is_read_anew_from_there(
    read: list[int], scripted: Callable[..., None], tmp_path: Path
) -> None:
    model = with_template(THOUGHTS)
    pad = model.tokenizer.vocabulary.pad
    thought = model.tokenizer.encode("(hm)So.")
    scripted([*thought, pad], [pad])
    chat = model.chat()
    assert "".join(chat.say("why?")) == "(hm)So."  # it ends with <pad>, as the template has it, and not with <eos>
    before = prompted(model, Chat(model), "why?")
    ids = prompted(model, chat, "and?")
    assert model.tokenizer.decode(ids) == "user:why?assistant:So.user:and?assistant:"
    assert "".join(chat.say("and?")) == ""
    assert read == [len(before), len(ids) - len(before)]
    assert chat.tokens == ids


def test_what_ends_an_answer_may_come_whatever_else_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """<pad> ends an answer in this template; no other answer has one."""
    model = with_template(THOUGHTS)
    allowed: list[np.ndarray] = []
    begin = decode.begin

    def noted(logits: Any, cache: Any, place: Any, sampler: Any, stop: Any) -> decode.Decoding:
        allowed.append(np.asarray(sampler.grammar.text))
        return begin(logits, cache, place, sampler, stop)

    monkeypatch.setattr(decode, "begin", noted)
    for chat in (model.chat(), random_model().chat()):
        list(chat.say("a", max_tokens=1))
    vocabulary = model.tokenizer.vocabulary
    special = [vocabulary.pad, vocabulary.bos, vocabulary.eos]
    assert [mask[special].tolist() for mask in allowed] == [[True, False, True], [False, False, True]]
    assert allowed[0].sum() == len(allowed[0]) - 1


def test_words_that_came_in_other_tokens_are_read_anew(scripted: Callable[..., None]) -> None:
    model = random_model()
    letters = [model.tokenizer.encode(letter)[0] for letter in " the"]
    assert letters != model.tokenizer.encode(" the")
    scripted([*letters, EOS], [EOS])
    chat = model.chat()
    assert "".join(chat.say(QUESTIONS[0])) == " the"
    ids = prompted(model, chat, QUESTIONS[1])
    assert "".join(chat.say(QUESTIONS[1])) == ""
    assert chat.tokens == ids


@pytest.mark.parametrize("advanced", [0, 1, 3])
def test_an_answer_that_is_cut_off_stays_as_far_as_it_came(advanced: int, tmp_path: Path) -> None:
    model = random_model()
    chat = model.chat()
    answer = chat.say(QUESTIONS[0], max_tokens=20)
    pieces = [next(answer) for _ in range(advanced)]
    answer.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert chat.messages[1] == {"role": "assistant", "content": "".join(pieces)}
    other = afresh(model, chat, tmp_path / "chat.json")
    assert "".join(chat.say(QUESTIONS[1], max_tokens=8)) == "".join(other.say(QUESTIONS[1], max_tokens=8))


def test_the_next_turn_ends_an_answer_that_was_left_alone() -> None:
    chat = random_model().chat()
    left = chat.say(QUESTIONS[0], max_tokens=20)
    said = next(left)
    list(chat.say(QUESTIONS[1], max_tokens=2))
    assert list(left) == []
    assert chat.messages[1]["content"] == said


@pytest.mark.parametrize("where", ["step", "read", "_extend", "begin"])
@pytest.mark.parametrize("after", [True, False])
def test_an_interruption_at_any_time_leaves_a_conversation(
    where: str, after: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a compiled function runs, or after it has used the old cache up and before anybody has the new one."""
    model = random_model()
    chat = model.chat()
    list(chat.say(QUESTIONS[0], max_tokens=4))
    before = chat.messages
    function = getattr(decode, where)

    def interrupted(*rest: Any, **options: Any) -> Any:
        if after:
            function(*rest, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(decode, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(chat.say(QUESTIONS[1], max_tokens=4))
    monkeypatch.setattr(decode, where, function)
    reading = where in ("read", "_extend")
    kept = [] if reading else [{"role": "user", "content": QUESTIONS[1]}, {"role": "assistant", "content": ""}]
    assert chat.messages == [*before, *kept]
    other = afresh(model, chat, tmp_path / "chat.json")
    assert "".join(chat.say(QUESTIONS[2], max_tokens=8)) == "".join(other.say(QUESTIONS[2], max_tokens=8))


def test_the_cache_grows_with_the_conversation(monkeypatch: pytest.MonkeyPatch, read: list[int]) -> None:
    model = random_model()
    calm = "".join(model.chat().say(QUESTIONS[0], max_tokens=90, temperature=1.0, seed=1))
    once = read.copy()
    monkeypatch.setattr(memory, "_LEAST_CAPACITY", 128)
    chat = model.chat()
    assert "".join(chat.say(QUESTIONS[0], max_tokens=90, temperature=1.0, seed=1)) == calm
    assert read == once * 2  # nothing was read again
    assert len(chat.tokens) > 128
    cache = chat._memory._cache
    assert cache is not None
    assert cache.segments.shape[1] == 256


def test_keys_turned_for_a_shorter_text_are_made_anew(
    monkeypatch: pytest.MonkeyPatch, read: list[int], tmp_path: Path
) -> None:
    """Dynamic scaling turns keys by the length of the text, so those that are there do not fit a longer one."""
    monkeypatch.setattr(memory, "_LEAST_CAPACITY", 128)
    model = replace(random_model(), rope_scaling=RopeScaling("dynamic", 4.0, 64))
    chat = model.chat()
    list(chat.say(QUESTIONS[0], max_tokens=90))
    assert read[1:] == [128]
    monkeypatch.setattr(memory, "_LEAST_CAPACITY", 256)
    other = afresh(model, chat, tmp_path / "chat.json")
    assert "".join(chat.say(QUESTIONS[1], max_tokens=8)) == "".join(other.say(QUESTIONS[1], max_tokens=8))


def test_beyond_the_trained_context_there_is_one_note(caplog: pytest.LogCaptureFixture) -> None:
    model = replace(random_model(), context_length=40)
    chat = model.chat()
    with caplog.at_level(logging.WARNING):
        list(chat.say(QUESTIONS[0], max_tokens=4))
        list(chat.say(QUESTIONS[0], max_tokens=4))
    length = len(prompted(model, model.chat(), QUESTIONS[0]))
    (note,) = caplog.messages
    assert f"has come to {length} tokens, {length - 40} beyond the 40 that the model was trained on" in note


def test_what_does_not_fit_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LEAST_CAPACITY", 2**36)
    chat = random_model().chat()
    with pytest.raises(UserError, match=r"the conversation has no room to go on: .*GiB.*; or begin a new conversation"):
        chat.say(QUESTIONS[0])
    assert chat.messages == []
    assert chat.tokens == []


@pytest.mark.parametrize(
    ("text", "settings", "said"),
    [
        (" \n", {}, "the message is empty"),
        ("\udc80", {}, "the message holds what is no Unicode text"),
        ("a", {"max_tokens": 0}, "0 tokens leave no room for an answer"),
        ("a", {"temperature": -1.0}, "the temperature is -1.0"),
        ("(refuse)", {}, "refuses this conversation: not that"),
        ("(hush)", {}, "the model's chat template writes nothing for this conversation"),
    ],
)
def test_what_cannot_be_answered_is_said_at_once_and_forgotten(text: str, settings: dict[str, Any], said: str) -> None:
    template = (
        "{% if 'hush' not in messages[-1].content %}{% for m in messages %}{{ m.content + '<eos>' }}"
        "{% if 'refuse' in m.content %}{{ raise_exception('not that') }}{% endif %}{% endfor %}{% endif %}"
    )
    chat = with_template(template).chat()
    list(chat.say("Hello", max_tokens=3))
    before = chat.messages
    with pytest.raises(UserError, match=said):
        chat.say(text, **settings)
    assert chat.messages == before


def test_no_special_token_is_part_of_an_answer(scripted: Callable[..., None]) -> None:
    model = random_model()
    vocabulary = model.tokenizer.vocabulary
    words = model.tokenizer.encode("é né")
    scripted([*words, vocabulary.bos, *words], [*words[:-1], EOS], words)
    chat = model.chat()
    assert "".join(chat.say("a")) == "é né"
    assert "".join(chat.say("b")) == "é n"  # half of the last character is left out
    assert "".join(chat.say("c", max_tokens=len(words) - 1)) == "é n"


def test_the_system_message_is_read_first_and_outlives_a_reset() -> None:
    model = random_model()
    chat = model.chat("Be brief.")
    list(chat.say(QUESTIONS[0], max_tokens=2))
    assert model.tokenizer.decode(chat.tokens).startswith("Be brief. USER: The old keeper")
    chat.reset()
    assert chat.messages == [{"role": "system", "content": "Be brief."}]
    assert chat.tokens == []
    list(chat.say(QUESTIONS[1], max_tokens=2))
    assert model.tokenizer.decode(chat.tokens).startswith("Be brief. USER: So the doctor")


def test_a_saved_conversation_goes_on(tmp_path: Path) -> None:
    model = random_model()
    chat = model.chat("Sois bref, né 東.")
    list(chat.say(QUESTIONS[0], max_tokens=4))
    chat.save(tmp_path / "new" / "chat.json")
    assert "né 東" in (tmp_path / "new" / "chat.json").read_text(encoding="utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["chat.json"]
    other = model.chat()
    other.load(tmp_path / "new" / "chat.json")
    assert other.messages == chat.messages
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot save the conversation as .*file/chat.json: "):
        chat.save(tmp_path / "file" / "chat.json")


def test_what_was_read_is_kept_with_a_conversation(read: list[int], tmp_path: Path) -> None:
    model = random_model()
    chat = model.chat()
    list(chat.say(QUESTIONS[0], max_tokens=4))
    chat.save(tmp_path / "chat.json", memory=True)
    before, other = len(read), model.chat()
    other.load(tmp_path / "chat.json")
    assert other.tokens == chat.tokens
    expected = "".join(afresh(model, chat, tmp_path / "again.json").say(QUESTIONS[1], max_tokens=8))
    assert "".join(other.say(QUESTIONS[1], max_tokens=8)) == expected
    whole, rest = read[before:]
    assert whole - rest >= read[0], "the first turn is not read again"


def test_what_another_model_read_is_read_anew(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    chat, other = random_model().chat(), random_model(seed=1).chat()
    list(chat.say(QUESTIONS[0], max_tokens=4))
    chat.save(tmp_path / "chat.json", memory=True)
    other.load(tmp_path / "chat.json")
    assert "of another model" in caplog.text
    assert other.messages == chat.messages
    assert other.tokens == []


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    chat = random_model().chat()
    with pytest.raises(UserError, match="nothing was read yet"):
        chat.save(tmp_path / "chat.json", memory=True)
    chat = replace(random_model(), rope_scaling=RopeScaling("dynamic", 4.0, 64)).chat()
    list(chat.say(QUESTIONS[0], max_tokens=2))
    with pytest.raises(UserError, match=r"depend on the length of the text \(dynamic NTK\)"):
        chat.save(tmp_path / "chat.json", memory=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cache_type", ["bfloat16", "int8"])
def test_a_cache_in_fewer_bytes(cache_type: CacheType) -> None:
    chat = replace(random_model(), cache_type=cache_type).chat()
    list(chat.say(QUESTIONS[0], max_tokens=4))
    cache = chat._memory._cache
    assert cache is not None
    assert cache.keys.cache_type == cache.values.cache_type == cache_type


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "JSONDecodeError"),
        ("[]", "TypeError"),
        ('{"messages": [{"role": "user"}]}', "KeyError: 'content'"),
        (
            '{"messages": [{"role": "root", "content": "a"}]}',
            "a message has a role of system, user, assistant, not 'root'",
        ),
        ('{"messages": [{"role": "user", "content": [1]}]}', "TypeError"),
        ('{"messages": [{"role": "user", "content": [{"vision": ["a"]}]}]}', "what a message shows must be ids"),
        (b"\xff", "UnicodeDecodeError"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_file_that_holds_no_conversation_changes_nothing(content: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    chat = random_model().chat("a")
    with pytest.raises(UserError, match=f"chat.json holds no conversation .*{said}.*: give a file that was saved"):
        chat.load(path)
    assert chat.messages == [{"role": "system", "content": "a"}]
