"""Results of evaluations on the disk, and what is said when they cannot be written or read.

A result of many cases is one JSON file of settings, summary and cases, written anew as it grows. An evaluation that was
stopped goes on from it, as long as its settings are the same.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ringworld.errors import UserError
from ringworld.files import write_atomically

Case = TypeVar("Case")


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


def write_cases(
    path: Path, settings: Mapping[str, Any], summary: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    """A result as JSON, atomically: settings, summary, and every case in a line of its own, for `read_cases`."""
    lines = ",\n  ".join(json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
    head = json.dumps({"settings": settings, "summary": summary}, indent=1, ensure_ascii=False, allow_nan=False)
    write_result(path, f'{head[:-2]},\n "cases": [\n  {lines}\n ]\n}}\n')


def read_cases(
    path: Path, parse: Callable[[dict[str, Any]], Case], what: str
) -> tuple[dict[str, Any], tuple[Case, ...]]:
    """The settings of a result, and its cases.

    Args:
        parse: makes a case of a record, or raises KeyError or TypeError.
        what: the file should hold: "answers".

    Raises:
        UserError: the file is not there, or not one that `write_cases` wrote of such cases.
    """
    content = read_json(path)
    try:
        return dict(content["settings"]), tuple(parse(record) for record in content["cases"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold {what} ({error!r}): remove it to begin anew") from error


def earlier_cases(
    path: Path, settings: Mapping[str, Any], parse: Callable[[dict[str, Any]], Case], what: str
) -> tuple[Case, ...]:
    """The cases of a run before this one under the same settings (plain JSON values); none where there is no file.

    Raises UserError as `read_cases`, and when the settings differ.
    """
    if not path.exists():
        return ()
    earlier, cases = read_cases(path, parse, what)
    require_same_settings(path, earlier, settings)
    return cases


def require_same_settings(path: Path, earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises UserError when a result of an earlier run was made under other settings than these (plain JSON values)."""
    differing = [f"{key} {earlier.get(key)} there, {value} now" for key, value in settings.items()
                 if earlier.get(key) != value]  # fmt: skip
    if differing:
        raise UserError(
            f"{path} holds another evaluation ({'; '.join(differing)}): give another --out, or remove the file"
        )
