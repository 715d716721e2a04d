"""Files on the disk: whole, or not there."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file that takes its place when the block is left in peace, and is gone when it is not.

    Raises:
        OSError: the folder cannot be made, the disk is full, or the like. What was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(descriptor)
    try:
        yield Path(name)
        descriptor = os.open(name, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.chmod(name, 0o644)  # mkstemp makes files for their owner alone
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file under another name and renames it: a reader finds the old content or the new, never a part.

    Raises:
        OSError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def appearing_folder(path: Path) -> Iterator[Path]:
    """A folder that takes its place at `path` when the block is left in peace, and is gone when it is not.

    Raises:
        OSError: as `replacing`; or there is something at `path` that is not an empty folder.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as temporary:
        folder = Path(temporary) / path.name  # not the temporary one itself, which is for its owner alone
        folder.mkdir()
        yield folder
        folder.rename(path)


def is_free(path: Path) -> bool:
    """Whether nothing is there but, perhaps, an empty folder."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


def write_folder_atomically(path: Path, files: Mapping[str, bytes]) -> None:
    """Writes a folder of these files under another name and renames it. One that is there already, by another process
    that was faster, stays.

    Raises:
        OSError: as `replacing`.
    """
    try:
        with appearing_folder(path) as folder:
            for name, content in files.items():
                with (folder / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
    except OSError:
        if not path.is_dir():
            raise
