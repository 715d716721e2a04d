"""Files that are there as a whole or not at all."""

import pytest

from ringworld.files import appearing_folder, is_free, write_atomically, write_folder_atomically


def test_a_file_is_whole_or_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "new" / "recipe.json"
    write_atomically(path, "first")
    monkeypatch.setattr("ringworld.files.os.fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["recipe.json"]


def test_text_is_utf8_and_bytes_stay(tmp_path):
    write_atomically(tmp_path / "a", "\u00e9")
    write_atomically(tmp_path / "b", b"\xff")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"\xc3\xa9", b"\xff")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "new" / "pictures"
    with monkeypatch.context() as patch:
        patch.setattr("ringworld.files.os.fsync", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_folder_atomically(path, {"a": b"first"})
    assert list(path.parent.iterdir()) == []
    write_folder_atomically(path, {"a": b"first", "b": b""})
    write_folder_atomically(path, {"a": b"second"})
    assert {p.name: p.read_bytes() for p in path.iterdir()} == {"a": b"first", "b": b""}
    assert [p.name for p in path.parent.iterdir()] == ["pictures"]
    assert path.stat().st_mode & 0o055 == 0o055
    (path.parent / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_folder_atomically(path.parent / "file", {"a": b"third"})


def test_a_folder_appears_when_it_is_done(tmp_path):
    path = tmp_path / "new" / "folder"
    assert is_free(path)
    with pytest.raises(ZeroDivisionError), appearing_folder(path) as folder:
        (folder / "a").write_text(str(1 / 0))
    assert list(path.parent.iterdir()) == []
    path.mkdir()
    assert is_free(path)
    with appearing_folder(path) as folder:
        (folder / "a").touch()
        assert is_free(path)
    assert [p.name for p in path.iterdir()] == ["a"]
    assert not is_free(path)
    with pytest.raises(OSError, match="folder"), appearing_folder(path):
        pass
    assert [p.name for p in path.parent.iterdir()] == ["folder"]
