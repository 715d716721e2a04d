from dataclasses import replace
from pathlib import Path

import pytest

from evaluation.exhibits import write_shown
from generation.models import random_model, seeing_model
from ringworld.errors import UserError
from ringworld.evaluation.shown import SHOWN, About, Shown


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    shown = write_shown(tmp_path)
    assert Shown.read(tmp_path) == shown
    begun = replace(shown, described=(), long_film=None)
    begun.write(tmp_path)
    assert Shown.read(tmp_path) == begun


def test_what_has_lost_its_file_is_not_there(tmp_path: Path) -> None:
    shown = write_shown(tmp_path)
    assert shown.there(tmp_path) == shown
    for file in (shown.drawn[0].file, shown.described[0].file, "shown/long-film.png"):
        (tmp_path / file).unlink()
    assert shown.there(tmp_path) == replace(shown, drawn=shown.drawn[1:], described=(), long_film=None)


@pytest.mark.parametrize("content", ["{}", "[]", '{"settings": {}, "about": {"name": "nano"}}', "{"])
def test_damage_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SHOWN).write_text(content)
    with pytest.raises(UserError, match=r"shown\.json .*remove"):
        Shown.read(tmp_path)


def test_a_model_tells_of_itself() -> None:
    model = seeing_model()
    about = About.of(model, "tiny")
    assert about == About("tiny", None, model.config.parameters, 128, 8, 4, 64)
    with pytest.raises(UserError, match="reads and writes text alone"):
        About.of(random_model(), "blind")
