"""Whatever is in a file, the readers give frames or one sentence, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokens.mutants import MUTATIONS, write_originals

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")


def fuzz(folder: Path, seed: int, count: int) -> None:
    (folder / "originals").mkdir()
    write_originals(folder / "originals")
    reports: dict[str, dict] = {}
    while len(reports) < count:
        command = [sys.executable, "-m", "tokens.fuzzed", str(folder), str(seed), str(len(reports)), str(count)]
        environment = os.environ | {"PYTHONPATH": "tests"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        name = None
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                assert name
                reports[name] = json.loads(line)
            else:
                name = line
        if name is None or name in reports:
            assert (done.returncode, done.stderr) == (0, "")
        else:  # the process ended while it read this one, which is left in the folder
            reports[name] = {"failure": f"exit status {done.returncode}\n{done.stderr}"}
    failures = [f"{folder / name}: {found['failure']}" for name, found in reports.items() if found["failure"]]
    assert not failures, f"{len(failures)} of {count} files failed:\n" + "\n".join(failures)
    print(summary(reports))
    assert {name.split(".")[1] for name in reports} >= MUTATIONS.keys()
    for reading in ("picture", "info", "sampled", "all", "late"):
        for outcome in ("frames", "errors"):
            assert sum(reading in found[outcome] for found in reports.values()) > count / 10, (reading, outcome)


def summary(reports: dict[str, dict]) -> str:
    """The figures of a fuzz, which `pytest -rP` shows."""
    framed = sum(bool(found["frames"]) for found in reports.values())
    seconds, peak = ({name: found[key] for name, found in reports.items()} for key in ("seconds", "peak"))
    slowest, largest = max(seconds, key=seconds.__getitem__), max(peak, key=peak.__getitem__)
    return (
        f"{len(reports)} files: {framed} gave frames, {len(reports) - framed} a UserError whatever was asked for\n"
        f"{sum(seconds.values()):.0f} s, at most {seconds[slowest]:.1f} s for one ({slowest})\n"
        f"{peak[largest] / 1e6:.0f} MB of memory at most ({largest})"
    )


def test_damaged_files_give_frames_or_one_sentence(tmp_path: Path) -> None:
    # A seed without the largest pictures, which take seconds each.
    fuzz(tmp_path, 10, 300)


@pytest.mark.slow
def test_ten_thousand_damaged_files_give_frames_or_one_sentence(tmp_path: Path) -> None:
    fuzz(tmp_path, 1, 10_000)
