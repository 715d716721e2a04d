"""Results of evaluations on the disk, and what is said when they cannot be written or read."""

import json
from pathlib import Path
from typing import Any

from ringworld.errors import UserError
from ringworld.files import write_atomically


def write_result(path: Path, content: str | bytes) -> None:
    """`files.write_atomically` for results. Raises UserError when the disk is full, or the like."""
    try:
        write_atomically(path, content)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or give another folder") from error


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON a person can read, atomically."""
    write_result(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises UserError when the file is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the results in {path} ({error}): remove the file to begin anew") from error
