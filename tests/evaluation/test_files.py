import os
from pathlib import Path

import pytest

from ringworld.errors import UserError
from ringworld.evaluation.files import read_json, write_json, write_result


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": [1, "é"]})
    assert read_json(path) == {"a": [1, "é"]}
    write_json(path, {})
    assert read_json(path) == {}
    assert [p.name for p in path.parent.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    write_result(path, b"before")

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*a: No space left on device"):
        write_result(path, b"after")
    assert path.read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*give another folder"):
        write_result(tmp_path / "file" / "a", b"")


def test_what_is_not_json(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\xff")
    for name in ("a", "missing"):
        with pytest.raises(UserError, match="cannot read the results in"):
            read_json(tmp_path / name)
