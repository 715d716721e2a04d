"""The house keeps its promises: what README and the configuration name is there, and nothing knows one machine."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "docs", "runs", "benchmarks", ".ci")
TEXTS = [
    *(path for path in ROOT.glob("*") if path.suffix in {".md", ".toml", ".txt"} or path.name == "Makefile"),
    *(p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in {".py", ".md", ".sh", ".toml", ""}),
]
FILES = [path for path in TEXTS if path.is_file()]


def tree_entries(text: str) -> list[str]:
    """Paths in an annotated tree: four spaces a level, a name, two spaces and more, a remark."""
    stack: list[str] = []
    entries = []
    for line in text.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
        stack = [*stack[: len(indent) // 4], name.rstrip("/")]
        entries.append("/".join(stack))
    return entries


def readme_tree() -> str:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return next(block for block in re.findall(r"```text\n(.*?)```", readme, re.DOTALL) if block.startswith("src/"))


def test_the_tree_of_the_readme_is_the_tree_on_the_disk() -> None:
    entries = tree_entries(readme_tree())
    assert [entry for entry in entries if not (ROOT / entry).exists()] == []
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "src").rglob("*.py") if not path.name.startswith("__")}
    assert modules - set(entries) == set()


def test_links_between_documents_lead_somewhere() -> None:
    for document in [path for path in FILES if path.suffix == ".md"]:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            assert "://" in target or (document.parent / target).exists(), f"{document.name} links to {target}"


def test_nothing_knows_the_machine_it_was_written_on() -> None:
    machine = [str(place) for place in (ROOT, Path.home()) if len(place.parts) > 2]  # "/src" would be anyone's
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not any(place in text for place in machine), path


def test_only_the_command_line_reads_argv() -> None:
    readers = [
        (path.parent.name, path.name)
        for path in (ROOT / "src").rglob("*.py")
        if "argv" in path.read_text(encoding="utf-8")
    ]
    assert readers == [("cli", "__init__.py")]


@pytest.mark.parametrize("group", ["dependencies", "dev"])
def test_every_dependency_has_one_version(group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] if group == "dependencies" else project["optional-dependencies"]["dev"]
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in constraints.split())
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in constraints.split()}
    assert {re.split(r"[\[><=]", name)[0].lower() for name in wanted} - pinned == set()


def test_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"\.PHONY: (.*)", makefile)
    assert phony is not None
    assert set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) == set(phony[1].split())


def test_the_version_is_told_once() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] == version
