import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from ringworld.errors import UserError
from ringworld.evaluation.asking import Turn
from ringworld.evaluation.questions import read_questions
from ringworld.evaluation.vqa import MediaFile, conversation, evaluate_vqa
from ringworld.tokens.images import write_image
from ringworld.tokens.video import write_video

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
SIZE = 16


def plain(colour: str) -> np.ndarray:
    return np.tile(np.array(COLOURS[colour], np.uint8), (SIZE, SIZE, 1))


@dataclass
class Seer:
    """Answers with the colours that it was shown, in their order, and remembers what it was asked."""

    fingerprint: str = "seer"
    context_length: int = 1024
    frame_size: int = SIZE
    tokens_per_frame: int = 10
    calls: list[list[str]] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)

    def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
        self.calls.append([self._words(turns) for turns in conversations])
        return [f" The {' '.join(self._colours(turns))}. " for turns in conversations]

    def _words(self, turns: Sequence[Turn]) -> str:
        return "".join(part for part in turns[0]["content"] if isinstance(part, str)).strip()

    def _colours(self, turns: Sequence[Turn]) -> list[str]:
        colours = []
        for part in turns[0]["content"]:
            if not isinstance(part, str):
                frames = [*part]
                self.shown.append(len(frames))
                colours += [list(COLOURS)[int(frame.mean((0, 1)).argmax())] for frame in frames]
        return [colour for before, colour in zip([None, *colours], colours, strict=False) if colour != before]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in COLOURS:
        write_image(tmp_path / f"{colour}.png", plain(colour))
    write_video(tmp_path / "film.gif", [plain("red")] * 4 + [plain("blue")] * 4, 2)
    return tmp_path


def ask(folder: Path, records: Sequence[Any], model: Seer | None = None, **settings: Any):
    path = folder / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return evaluate_vqa(model or Seer(), path, folder / "out", console=Console(quiet=True), **settings)


ALL = [
    {"media": "red.png", "question": "Which colour?", "answer": "red", "kind": "colour"},
    {"media": "blue.png", "question": "Which colour?", "answer": ["navy", "Blue"], "kind": "colour"},
    {"media": "film.gif", "fps": 2, "question": "What happens?", "answer": "red, blue", "kind": "film"},
    {"media": "red.png", "question": "Which shape?", "answer": "a square", "kind": "shape"},
    {"media": ["red.png", "green.png"], "question": "Which two?", "answer": "B",
     "options": {"A": "red", "B": "red green"}},
    {"media": "film.gif", "fps": 2, "question": "Which comes first?", "answer": "blue"},
]  # fmt: skip


def test_answers_are_marked_and_written(folder):
    model = Seer()
    result = ask(folder, ALL, model)
    assert [answer.correct for answer in result.answers] == [True, True, True, False, True, False]
    content = json.loads((folder / "out" / "vqa.json").read_text())
    assert content["summary"] == {
        "questions": 6,
        "accuracy": 4 / 6,
        "by_kind": {
            "colour": {"questions": 2, "accuracy": 1.0},
            "film": {"questions": 1, "accuracy": 1.0},
            "shape": {"questions": 1, "accuracy": 0.0},
        },
        "unreadable": {},
    }
    assert content["cases"][0] == {"line": 1, "kind": "colour", "answer": "The red.", "correct": True}
    assert content["cases"][5] == {"line": 6, "answer": "The red blue.", "correct": False}
    assert sorted(model.shown) == [1, 1, 1, 1, 1, 8, 8]  # 4 seconds at 2 a second


def test_questions_about_one_film_are_asked_together(folder):
    model = Seer()
    ask(folder, ALL, model, batch_tokens=100, instructed=False)
    assert model.calls == [
        ["Which colour?", "Which shape?"],  # more than the room there is, but about one picture
        ["Which colour?"],
        ["What happens?", "Which comes first?"],
        ["Which two?\nA. red\nB. red green"],
    ]
    model.calls.clear()
    (folder / "out" / "vqa.json").unlink()
    ask(folder, ALL, model, batch_tokens=10**6)
    assert len(model.calls) == 1


def test_equal_media_are_equal_and_can_be_read_again():
    one, other = MediaFile(Path("a"), 1.0, 8, 2), MediaFile(Path("a"), 1.0, 8, 2)
    assert one == other
    assert len({one, other, MediaFile(Path("a"), 2.0, 8, 2)}) == 2


@pytest.mark.parametrize(("max_frames", "shown"), [(None, 4), (4, 4), (2, 2), (1, 1)])
def test_long_films_are_thinned_out(folder, max_frames, shown):
    model = Seer()
    result = ask(folder, [ALL[2] | {"fps": 1}], model, max_frames=max_frames)
    assert model.shown == [shown]
    assert result.answers[0].correct == (shown > 1)  # both halves are seen, as long as there are two frames


def test_words_around_a_question(folder):
    path = folder / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, [ALL[0], ALL[4]])))
    open_one, choice = read_questions(path)
    assert conversation(open_one, [[plain("red")]])[0]["content"][1] == (
        " Which colour?\nAnswer the question using a single word or phrase."
    )
    first, _ = conversation(open_one, [[plain("red")]], layout="question first", instructed=False)[0]["content"]
    assert first == "Which colour?\n"
    assert conversation(choice, [])[0]["content"] == [
        " Which two?\nA. red\nB. red green\nAnswer with the option's letter from the given choices directly."
    ]


def test_a_stopped_evaluation_goes_on_where_it_was(folder):
    whole = ask(folder, ALL)
    written = (folder / "out" / "vqa.json").read_bytes()
    (folder / "out" / "vqa.json").unlink()

    class Killed(Exception):
        pass

    class Dying(Seer):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            if len(self.calls) == 2:
                raise Killed
            return super().answer(conversations, max_tokens)

    with pytest.raises(Killed):
        ask(folder, ALL, Dying(), batch_tokens=100)
    assert len(json.loads((folder / "out" / "vqa.json").read_text())["cases"]) == 3
    model = Seer()
    assert ask(folder, ALL, model) == whole
    assert sum(map(len, model.calls)) == 3
    assert (folder / "out" / "vqa.json").read_bytes() == written
    for path in [*folder.glob("*.png"), *folder.glob("*.gif")]:
        path.unlink()
    assert ask(folder, ALL, model) == whole  # nothing is left to ask, nor to read
    assert sum(map(len, model.calls)) == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": Seer("other")}, "model seer there, other now"),
        ({"records": ALL[:3]}, "sha256"),
        ({"layout": "question first"}, "layout media first there, question first now"),
    ],
)
def test_results_of_another_evaluation_are_not_mixed_in(folder, change, said):
    ask(folder, ALL)
    with pytest.raises(UserError, match=said):
        ask(folder, **({"records": ALL} | change))


def test_what_cannot_be_read_is_listed_up_to_a_share(folder):
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    records = [*ALL, {"media": "bad.png", "question": "What?", "answer": "red"}]
    with pytest.raises(UserError, match=r"1 of the pictures and films cannot be read \(.*bad\.png.*0\.05 allowed"):
        ask(folder, records)
    assert not (folder / "out").exists()
    result = ask(folder, records, bad_share=0.5)
    assert len(result.answers) == 6
    (name,) = result.summary()["unreadable"]
    assert name.endswith("bad.png")
    assert json.loads((folder / "out" / "vqa.json").read_text())["summary"]["unreadable"] == result.unreadable
    write_image(folder / "bad.png", plain("red"))  # mended
    assert len(ask(folder, records, bad_share=0.5).answers) == 7


def test_a_film_that_fails_amid_its_frames_takes_no_others_with_it(folder):
    class Losing(Seer):
        def answer(self, conversations: Sequence[Sequence[Turn]], max_tokens: int) -> list[str]:
            (folder / "film.gif").unlink(missing_ok=True)
            return super().answer(conversations, max_tokens)

    with pytest.raises(UserError, match=r"cannot be read \(.*film\.gif"):
        ask(folder, ALL, Losing())
    write_video(folder / "film.gif", [plain("red")] * 2, 2)
    result = ask(folder, ALL, Losing(), bad_share=0.5)
    assert [answer.line for answer in result.answers] == [1, 2, 4, 5]
    assert [*result.unreadable] == [str(folder / "film.gif")]


def test_none_that_can_be_read(folder):
    with pytest.raises(UserError, match="none of the media"):
        ask(folder, [ALL[0] | {"media": "no.png"}], bad_share=1.0)


def test_damaged_results_are_named(folder):
    ask(folder, ALL)
    path = folder / "out" / "vqa.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cases": [{"line": 1}]}))
    with pytest.raises(UserError, match=r"vqa\.json does not hold answers \(KeyError\('answer'\)\)"):
        ask(folder, ALL)


def test_no_frames_at_all(folder):
    with pytest.raises(UserError, match="max_frames must be 1 or more, got 0"):
        ask(folder, ALL, max_frames=0)
