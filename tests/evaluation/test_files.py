import json
import os
from pathlib import Path
from typing import Any

import pytest

from ringworld.errors import UserError
from ringworld.evaluation.files import (
    earlier_cases,
    read_cases,
    read_json,
    write_cases,
    write_json,
    write_result,
)


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


def number(record: dict[str, Any]) -> int:
    return record["n"]


def test_cases_stand_a_line_each_behind_settings_and_summary(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_cases(path, {"a": [1]}, {"x": 0.5}, [{"n": 1, "said": "é"}, {"n": 2}])
    assert path.read_text(encoding="utf-8").splitlines()[-4:] == ['  {"n": 1, "said": "é"},', '  {"n": 2}', " ]", "}"]
    assert [*json.loads(path.read_text(encoding="utf-8"))] == ["settings", "summary", "cases"]
    assert read_cases(path, number, "numbers") == ({"a": [1]}, (1, 2))
    write_cases(path, {}, {}, [])
    assert read_cases(path, number, "numbers") == ({}, ())


def test_cases_are_those_of_the_same_settings(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    assert earlier_cases(path, {}, number, "numbers") == ()
    write_cases(path, {"a": [1], "b": 2}, {}, [{"n": 1}])
    assert earlier_cases(path, {"a": [1]}, number, "numbers") == (1,)
    with pytest.raises(UserError, match=r"a \[1\] there, \[2\] now; c None there, 3 now\): give another --out"):
        earlier_cases(path, {"a": [2], "b": 2, "c": 3}, number, "numbers")


@pytest.mark.parametrize("content", ["[]", "{}", '{"settings": [1], "cases": []}', '{"settings": {}, "cases": [{}]}',
                                     '{"settings": {}, "cases": [3]}', '{"settings": {}, "cases": 3}'])  # fmt: skip
def test_what_holds_no_cases_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"r\.json does not hold numbers \(.*\): remove it to begin anew"):
        earlier_cases(path, {}, number, "numbers")
