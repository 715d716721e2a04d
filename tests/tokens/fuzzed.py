"""Reads mutants in a process of its own, since native code that fails takes its process with it.

    python -m tokens.fuzzed FOLDER SEED FIRST END

FOLDER/originals has the whole files. Of each mutant from FIRST to END, its name is printed before it is read, and after
that, as JSON, what came of it. One that fails is left in FOLDER, which otherwise stays as it is.
"""

import faulthandler
import json
import re
import resource
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ringworld.errors import UserError
from ringworld.tokens.images import read_image
from ringworld.tokens.video import read_video, video_info
from tokens.mutants import Mutant, mutant

SECONDS = 20  # for one reading
BYTES = 2 << 30
SIZE = (64, 64)


def main(folder: Path, seed: int, first: int, end: int) -> None:
    warnings.simplefilter("error")
    # What knows no bounds is to fail here, and not in whatever else runs on this machine.
    resource.setrlimit(resource.RLIMIT_AS, (4 * BYTES, 4 * BYTES))
    originals = {path.name: path.read_bytes() for path in sorted((folder / "originals").iterdir())}
    for number in range(first, end):
        found = mutant(originals, seed, number)
        print(found.name, flush=True)
        print(json.dumps(report(folder, found)), flush=True)


def report(folder: Path, found: Mutant) -> dict[str, object]:
    path = folder / found.name
    path.write_bytes(found.content)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory is that of this file
    begun = time.perf_counter()
    frames: dict[str, int] = {}
    errors: dict[str, str] = {}
    failure = None
    try:
        for name, read in READINGS.items():
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                frames[name] = read(path)
            except UserError as error:
                check(error, path)
                errors[name] = str(error)
        check_kind(found, frames)
        peak = peak_memory()
        assert peak < BYTES, f"{peak:,} bytes of memory were needed"
    except Exception:
        failure = traceback.format_exc()
    else:
        path.unlink()
    faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "peak": peak_memory(), "frames": frames, "errors": errors, "failure": failure}


def whole(path: Path) -> int:
    frame = read_image(path)
    assert frame.dtype == np.uint8
    assert frame.ndim == 3
    assert frame.shape[2] == 3
    return 1


def described(path: Path) -> int:
    info = video_info(path)
    assert min(info.height, info.width) >= 1, info
    assert all(number is None or 0 < number < float("inf") for number in (info.seconds, info.fps, info.frames)), info
    assert (info.seconds or 0) * (info.fps or 1) <= path.stat().st_size, info
    return 1


def counted(frames: Iterable[np.ndarray]) -> int:
    count, last = 0, None
    for frame in frames:
        count += 1
        if frame is not last:  # it may be repeated for a day
            assert (frame.shape, frame.dtype) == ((*SIZE, 3), np.uint8)
        last = frame
    assert count
    return count


READINGS: dict[str, Callable[[Path], int]] = {
    "picture": whole,
    "info": described,
    "sampled": lambda path: counted(read_video(path, 1, SIZE)),
    "all": lambda path: counted(read_video(path, None, SIZE)),
    "late": lambda path: counted(read_video(path, None, SIZE, start=0.25)),
}


def check(error: UserError, path: Path) -> None:
    """Whether an error is one sentence that names the file."""
    assert type(error.__cause__) is not MemoryError, "Python ran out of memory"
    message = str(error)
    assert message.count(str(path)) == 1, message
    assert message.isprintable(), message
    assert "()" not in message, message
    assert len(message) < len(str(path)) + 200, message


def check_kind(found: Mutant, frames: dict[str, int]) -> None:
    if found.kind == "renamed":
        assert {"info", "sampled", "all"} <= frames.keys(), frames
    if found.kind in ("text", "empty"):
        assert not frames, frames


def peak_memory() -> int:
    """In bytes. What getrusage says begins with the memory of the process that started this one."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) << 10


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
