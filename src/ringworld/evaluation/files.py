"""Results on the disk: whole, or not there."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from ringworld.errors import UserError


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file under another name and renames it, so that a reader finds the old content or the new, never a part.

    Raises:
        UserError: the folder cannot be made, the disk is full, or the like. What was there before is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            # mkstemp makes files for their owner alone; results are for whoever may read the folder.
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; free some space or give another folder") from error


def write_json(path: Path, value: Any) -> None:
    """`value` as JSON a person can read, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Raises UserError when the file is not there or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the results in {path} ({error}): remove the file to begin anew") from error
