"""What recipes do with `--data`."""

from pathlib import Path

from ringworld.data.sources import JsonlConfig, SourceConfig, TextFolderConfig
from ringworld.errors import UserError


def texts(data: Path) -> SourceConfig:
    """A .jsonl of documents, or a folder of *.txt."""
    return JsonlConfig(str(data)) if data.suffix == ".jsonl" else TextFolderConfig(str(data))


def takes_no_data(name: str, data: Path | None) -> None:
    if data is not None:
        raise UserError(
            f"{name} has data of its own and does not take --data {data}: leave it out, or train `debug` or "
            "`text-32k` on yours"
        )
