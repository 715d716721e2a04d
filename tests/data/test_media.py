import json

import numpy as np
import pytest

from ringworld.data.frames import MediaConfig
from ringworld.data.media import media_files, raw_documents
from ringworld.errors import UserError
from ringworld.tokens.images import write_image
from ringworld.tokens.video import write_video


def grey(level: int, size: int = 16) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures in groups of two, a film of ten seconds, and what is neither."""
    for number in range(20):
        write_image(tmp_path / "pictures" / f"{number // 2:02}-{number % 2}.png", grey(number))
    write_video(tmp_path / "film.gif", (grey(100 + 2 * k) for k in range(40)), 4)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_text("no picture either")
    return tmp_path


def levels(source) -> list[int]:
    return [int(source[i][0, 0, 0]) for i in range(len(source))]


def test_frames_of_a_folder_are_its_pictures_and_its_films_at_a_rate(folder):
    train, heldout = (MediaConfig(str(folder), fps=2.0).build(16, 0, part) for part in ("train", "heldout"))
    assert len(train) + len(heldout) == 20 + 20
    film = [100 + 4 * k for k in range(20)]
    assert [n for n in levels(train) if n >= 100] == film[:16]
    assert [n for n in levels(heldout) if n >= 100] == film[16:]
    pictures = [[n for n in levels(source) if n < 100] for source in (train, heldout)]
    assert sorted(pictures[0] + pictures[1]) == list(range(20))
    assert len(pictures[1]) == 4


def test_what_belongs_together_is_held_out_together(folder):
    source = MediaConfig(str(folder / "pictures"), group=r"\d\d(?=-)").build(16, 0, "heldout")
    found = sorted(levels(source))
    assert found[::2] == [n for n in found if n % 2 == 0]
    assert [n + 1 for n in found[::2]] == found[1::2]
    assert len(found) == 4


def test_frames_are_resized_and_read_once(folder, monkeypatch):
    source = MediaConfig(str(folder), fps=2.0).build(8, 0)
    first = [source[i] for i in (0, 5, len(source) - 1)]
    assert {frame.shape for frame in first} == {(8, 8, 3)}
    monkeypatch.setattr("ringworld.data.frames.read_image", None)
    monkeypatch.setattr("ringworld.data.frames.read_video", None)
    for frame, index in zip(first, (0, 5, len(source) - 1), strict=True):
        assert source[index] is frame


def test_only_so_much_is_kept(folder, monkeypatch):
    monkeypatch.setattr("ringworld.data.frames._KEPT_BYTES", 3 * 16 * 16 * 3)
    source = MediaConfig(str(folder), fps=2.0).build(16, 0)
    assert levels(source) == levels(source)
    assert len(source._kept) == 3  # pyright: ignore[reportAttributeAccessIssue]


def test_bad_files_are_left_out_up_to_a_share(folder, caplog):
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"1 of the 22 pictures and films .* cannot be read \(.*broken\.png"):
        MediaConfig(str(folder)).build(16, 0)
    assert len(MediaConfig(str(folder), bad_share=0.05).build(16, 0)) > 0
    assert "broken.png" in caplog.text


def test_raw_documents_name_their_files_beside_themselves(folder):
    lines = [
        {"spans": [{"text": "a"}, {"image": "pictures/00-0.png", "trained": True}]},
        {"image": "pictures/01-1.png"},
        {"spans": [{"video": "film.gif", "fps": 3}]},
        {"spans": [{"video": 7}]},
    ]
    path = folder / "documents.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\nnot json\n\n")
    documents = raw_documents(path, 1.0)
    assert [document.source for document in documents] == [f"documents.jsonl:{n}" for n in (1, 2, 3, 4, 5)]
    assert documents[0].spans == (
        {"text": "a"},
        {"media": str(folder / "pictures/00-0.png"), "fps": 1.0, "still": True, "trained": True},
    )
    assert documents[2].spans[0]["fps"] == 3
    assert [bool(document.wrong) for document in documents] == [False, False, False, True, True]
    assert [file.name for file in media_files(path)] == ["film.gif", "00-0.png", "01-1.png"]


def test_nothing_to_look_at_is_said(tmp_path):
    with pytest.raises(UserError, match=r"there is no .*nowhere: name a picture"):
        raw_documents(tmp_path / "nowhere", None)
    with pytest.raises(UserError, match=r"holds no picture, film or \.jsonl"):
        raw_documents(tmp_path, None)
    write_image(tmp_path / "one.png", grey(1))
    assert len(MediaConfig(str(tmp_path)).build(16, 0)) == 1
    with pytest.raises(UserError, match="none is left to be held out"):
        MediaConfig(str(tmp_path)).build(16, 0, "heldout")
