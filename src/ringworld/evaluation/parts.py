"""The two parts of the shapes world, what training shows and what is held out of it, side by side."""

from collections.abc import Mapping

from ringworld.worlds.world import Part

NAMES: dict[Part, str] = {"train": "seen", "heldout": "held out"}


def side_by_side(columns: Mapping[str, Mapping[str, float | int]]) -> str:
    """A table of columns by their headings, which may have several lines: shares (float) in %, counts (int) as they
    are, "-" where a column lacks a row.
    """
    rows = list(dict.fromkeys(row for column in columns.values() for row in column))
    heads = zip(*(heading.split("\n") for heading in columns), strict=True)
    lines = [("", *head) for head in heads]
    lines += [(row, *(_cell(column.get(row)) for column in columns.values())) for row in rows]
    width = 2 + max(len(cell) for line in lines for cell in line)
    return "\n".join(f"{row:{width}}" + "".join(f"{cell:>{width}}" for cell in cells) for row, *cells in lines)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else str(value)
