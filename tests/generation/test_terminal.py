import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generation.models import frame_tokenizer, random_model, seeing_model, tokenizer
from ringworld.errors import UserError
from ringworld.generation.chat import Chat
from ringworld.generation.drawing import Film
from ringworld.generation.terminal import COMMANDS, Album, converse
from ringworld.tokens.images import read_image, write_image
from ringworld.tokens.video import video_info, write_video
from ringworld.tokens.vision import vision_ids, visions

pytestmark = pytest.mark.usefixtures("few_programs")
QUESTIONS = ("The old keeper counted the lamps.", "So the doctor and the clerk?")
EOS = tokenizer().vocabulary.eos


def nothing(film: Film) -> str:
    raise AssertionError("nothing was to be drawn")


class Terminal:
    """Lines that are typed, and all that is written. An exception among the lines is raised."""

    def __init__(self, *lines: str | BaseException) -> None:
        self._lines = iter(lines)
        self.written = ""
        self.interrupt_at: str | None = None

    def read_line(self) -> str:
        line = next(self._lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    def write(self, text: str) -> None:
        self.written += text
        if self.interrupt_at and text in self.interrupt_at:
            self.interrupt_at = None
            raise KeyboardInterrupt


def test_a_conversation_at_a_terminal(tmp_path: Path) -> None:
    model = random_model()
    path = tmp_path / "my chat.json"
    terminal = Terminal(
        QUESTIONS[0], "", "/help", "/reset", "/nothing here", "/save", "\udc80", QUESTIONS[1], QUESTIONS[1],
        f"/save {path}", " /quit ", "never read",
    )  # fmt: skip
    converse(model.chat(), terminal.read_line, terminal.write, nothing, max_tokens=8, temperature=1.0, seed=7)

    def answers(chat: Chat, *turns: tuple[str, int]) -> list[str]:
        return ["".join(chat.say(text, max_tokens=8, temperature=1.0, seed=seed)) + "\n" for text, seed in turns]

    first = answers(model.chat(), (QUESTIONS[0], 7))
    rest = answers(model.chat(), (QUESTIONS[1], 8), (QUESTIONS[1], 9))
    commands = [COMMANDS, "(a new conversation)\n"]
    wrong = [f"there is no command {line!r}; there are:\n{COMMANDS}" for line in ("/nothing here", "/save")]
    before, _, after = terminal.written.partition("\nthe message holds what is no Unicode text")
    assert before == "".join([*first, *commands, *wrong])
    assert after.endswith("".join([*rest, f"(saved as {path})\n"]))
    assert len(json.loads(path.read_text(encoding="utf-8"))["messages"]) == 4


def test_an_interruption_stops_the_answer_and_not_the_conversation(scripted: Callable[..., None]) -> None:
    model = random_model()
    scripted(*([*model.tokenizer.encode(text), EOS] for text in ("a b c d", "e")))
    chat = model.chat()
    terminal = Terminal(KeyboardInterrupt(), QUESTIONS[0], QUESTIONS[1])
    terminal.interrupt_at = " b"
    converse(chat, terminal.read_line, terminal.write, nothing)
    stopped = "\n(stopped; /quit ends)\n"
    assert terminal.written == f"{stopped}a b{stopped}e\n\n"
    assert [message["content"] for message in chat.messages] == [QUESTIONS[0], "a b", QUESTIONS[1], "e"]


def frames(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 8, 8, 3), np.uint8)


def test_pictures_and_films_are_shown_and_drawn(tmp_path: Path, scripted: Callable[..., None]) -> None:
    model = seeing_model()
    vocabulary, words = model.tokenizer.vocabulary, model.tokenizer.encode
    codes = np.random.default_rng(0).integers(0, 64, (3, 2, 2))
    scripted(
        [*words("yes"), EOS],
        [*words(" A "), *vision_ids(codes[:1], vocabulary), EOS],
        [*vision_ids(codes, vocabulary), *words("so"), EOS],
    )
    picture, film = tmp_path / "a picture.png", tmp_path / "a film.mp4"
    write_image(picture, frames(1)[0])
    write_video(film, np.repeat(np.repeat(frames(4), 4, 1), 4, 2), 2)
    terminal = Terminal(
        f"/image {picture}", "what?", "draw", f"/video {film} 1", "film", "/image nowhere.png", f"/video {film} x"
    )
    chat = model.chat()
    album = Album(tmp_path / "drawings", 2)
    converse(chat, terminal.read_line, terminal.write, album, every=1, resolution=2)
    one, two = (tmp_path / "drawings" / name for name in ("drawn-1.png", "drawn-2.mp4"))
    assert f"(shown: {picture})\nyes\n A \n(drawn: {one})\n" in terminal.written
    assert f"(shown: 2 frames of {film})\nso\n(drawn: {two})\n" in terminal.written
    assert "nowhere.png" in terminal.written
    assert "a film.mp4 x" in terminal.written
    np.testing.assert_array_equal(read_image(one), frame_tokenizer().decode(codes[:1])[0])
    assert video_info(two).seconds == pytest.approx(1.5)
    # All of it is in the conversation, with the times of the film's two seconds, to two of them.
    (shown, drawn, first, second, filmed) = visions(np.array(chat.tokens), vocabulary)
    np.testing.assert_array_equal(shown.codes, frame_tokenizer().encode(frames(1)))
    np.testing.assert_array_equal(drawn.codes, codes[:1])
    assert (len(first.codes), len(second.codes)) == (1, 1)
    np.testing.assert_array_equal(filmed.codes, codes)
    text = model.tokenizer.decode(chat.tokens)
    assert text.count("0:00") == 2
    assert "0:01" not in text
    assert text.rindex("0:00") < text.index("film")


def test_in_lwms_template_a_film_comes_after_its_question() -> None:
    model = seeing_model()
    chat = model.chat(template="lwm")
    chat.show(frames(2))
    list(chat.say("what?", max_tokens=1))
    film = vision_ids(frame_tokenizer().encode(frames(2)), model.tokenizer.vocabulary)
    before, after = "You are a helpful assistant. USER: what?\n", " ASSISTANT:"
    encode = model.tokenizer.encode
    asked = [model.tokenizer.vocabulary.bos, *encode(before), *film.tolist(), *encode(after)]
    assert chat.tokens[: len(asked)] == asked
    list(chat.say("and?", max_tokens=1))
    assert model.tokenizer.decode(chat.tokens).endswith("USER: and? ASSISTANT:")


def test_what_was_shown_is_saved_and_opened_again(tmp_path: Path) -> None:
    chat, other = seeing_model().chat(), seeing_model().chat()
    chat.show(frames(3), fps=1, every=2)
    first = list(chat.say("what?", max_tokens=6))
    chat.save(tmp_path / "chat.json")
    other.load(tmp_path / "chat.json")
    assert json.dumps([str(m) for m in other.messages]) == json.dumps([str(m) for m in chat.messages])
    assert list(chat.say("and?", max_tokens=6)) == list(other.say("and?", max_tokens=6))
    assert chat.tokens == other.tokens
    again = seeing_model().chat()
    again.show(frames(3), fps=1, every=2)
    assert list(again.say("what?", max_tokens=6)) == first
    blind = seeing_model().chat()
    assert list(blind.say("what?", max_tokens=6)) != first, "what is shown must matter"


@pytest.mark.parametrize(
    ("count", "settings", "says"),
    [
        (0, {}, "there is no frame to be shown"),
        (2, {"every": 5}, "every 5 seconds in a film of no known rate"),
        (2, {"fps": 1, "every": 5, "resolution": 0}, "1 or more whole seconds .*, got 0"),
    ],
)
def test_what_cannot_be_shown(count: int, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        seeing_model().chat().show(frames(count), **settings)


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    model = random_model()
    path = tmp_path / "chat.json"
    terminal = Terminal("/keep", f"/keep {path}", QUESTIONS[0], f"/keep {path}")
    converse(model.chat(), terminal.read_line, terminal.write, nothing, max_tokens=4)
    assert "there is no command '/keep'" in terminal.written
    assert "nothing was read yet" in terminal.written
    assert f"(saved as {path}, and what was read as {path}.cache)" in terminal.written
    other = model.chat()
    other.load(path)
    assert len(other.tokens) > 4
