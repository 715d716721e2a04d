"""What recipes do with `--data`."""

from collections.abc import Sequence
from pathlib import Path

from ringworld.data.sources import JsonlConfig, SourceConfig, TextFolderConfig
from ringworld.errors import UserError


def texts(data: Path) -> SourceConfig:
    """A .jsonl of documents, or a folder of *.txt."""
    return JsonlConfig(str(data)) if data.suffix == ".jsonl" else TextFolderConfig(str(data))


def part(data: Path, name: str) -> Path:
    """A part of a folder of data that is texts: a .jsonl, or a folder."""
    lines = data / f"{name}.jsonl"
    return lines if lines.is_file() else data / name


def require_parts(recipe: str, parts: Sequence[Path]) -> None:
    """Raises UserError when some of the data that a recipe takes are not there."""
    if lacking := [path for path in parts if not path.exists()]:
        raise UserError(
            f"{recipe} trains on {', '.join(path.stem for path in parts)}, and there is no "
            f"{', '.join(map(str, lacking))}: docs/data.md says what each holds"
        )


def takes_no_data(name: str, data: Path | None) -> None:
    if data is not None:
        raise UserError(
            f"{name} has data of its own and does not take --data {data}: leave it out, or train `debug` or "
            "`text-32k` on yours"
        )
