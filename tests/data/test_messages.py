"""A message in a string that lost its f prefix says {path} where it means the path."""

import ast
import re
from pathlib import Path

import pytest

import ringworld

PLACEHOLDER = r"\{[a-z_][\w.]*([\[(!:][^{}]*)?\}"
FILES = [path for part in ("data", "tokens") for path in sorted(Path(ringworld.__path__[0], part).glob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_message_has_a_placeholder_left(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    raised = [node for node in ast.walk(tree) if isinstance(node, ast.Raise) and node.exc]
    strings = [
        node.value
        for statement in raised
        for node in ast.walk(statement)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    assert [text for text in strings if re.search(PLACEHOLDER, text)] == []
