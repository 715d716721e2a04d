"""What a model that sees was let draw, describe and answer for people to look at (`showing`), and its `shown.json`."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from ringworld.errors import UserError
from ringworld.evaluation.files import read_json, write_json
from ringworld.evaluation.scores import Score
from ringworld.generation.model import Model

SHOWN = "shown.json"


@dataclass(frozen=True)
class About:
    """How large a model is, and what it knows.

    Attributes:
        name: what people call it.
        trained_on: in words that follow "trained on"; None: nobody knows.
        context_length: tokens of the longest rows that it was trained on.
        frame_size: pixels of a frame's side.
        codes_per_frame: tokens of a frame, without its terminator,
        codes: and how many different ones there are.
    """

    name: str
    trained_on: str | None
    parameters: int
    context_length: int
    frame_size: int
    codes_per_frame: int
    codes: int

    @classmethod
    def of(cls, model: Model, name: str, trained_on: str | None = None) -> Self:
        """Raises UserError when the model does not see."""
        size, vocabulary = model.eyes().config.frame_size, model.tokenizer.vocabulary
        return cls(
            name,
            trained_on,
            model.config.parameters,
            model.context_length,
            size,
            vocabulary.codes_per_frame,
            vocabulary.codes,
        )


@dataclass(frozen=True)
class Drawn:
    """A picture or film that was drawn.

    Attributes:
        file: beside `shown.json`, a .png or .mp4.
        frames: 1 is a picture.
        words: that it was asked for in.
        score: what of it is as it was asked for (see `drawn`); None: nobody can say.
    """

    file: str
    frames: int
    words: str
    score: Score | None


@dataclass(frozen=True)
class Described:
    """A picture or film that was shown (see `Drawn`), what it is, and what the model said that it is."""

    file: str
    frames: int
    caption: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Asked:
    """A question about the long film, its answers, and how long the model took for its own."""

    question: str
    expected: str
    answer: str
    right: bool
    seconds: float


@dataclass(frozen=True)
class LongFilm:
    """A long film and what was asked about it.

    Attributes:
        file: beside `shown.json`: a frame of each minute, side by side.
        times: of the minutes, by the film's clock.
        told: what happens in each, in words.
        frames: that were shown,
        tokens: that they came to, with the times between them,
        seconds: in which they were made, encoded and read.
    """

    file: str
    times: tuple[str, ...]
    told: tuple[str, ...]
    frames: int
    tokens: int
    seconds: float
    asked: tuple[Asked, ...]


@dataclass(frozen=True)
class Shown:
    """All of it, as far as it is there, and under which settings it was made. Files are those of the folder that
    `shown.json` lies in."""

    settings: Mapping[str, Any]
    about: About
    drawn: tuple[Drawn, ...] = ()
    described: tuple[Described, ...] = ()
    long_film: LongFilm | None = None

    def write(self, folder: Path) -> None:
        """To `shown.json`, atomically."""
        write_json(folder / SHOWN, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises UserError when `shown.json` is not there or damaged."""
        content = read_json(folder / SHOWN)
        try:
            film = content["long_film"]
            return cls(
                content["settings"],
                About(**content["about"]),
                tuple(Drawn(**record) for record in content["drawn"]),
                tuple(Described(**record) for record in content["described"]),
                None if film is None else _long_film(film),
            )
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{folder / SHOWN} does not hold what a model showed ({error!r}): remove it to begin anew"
            ) from error

    def there(self, folder: Path) -> Self:
        """Without those whose files are gone."""
        film = self.long_film
        return replace(
            self,
            drawn=tuple(one for one in self.drawn if (folder / one.file).is_file()),
            described=tuple(one for one in self.described if (folder / one.file).is_file()),
            long_film=film if film is not None and (folder / film.file).is_file() else None,
        )


def _long_film(record: dict[str, Any]) -> LongFilm:
    tuples = {name: tuple(record[name]) for name in ("times", "told")}
    asked = tuple(Asked(**one) for one in record["asked"])
    return LongFilm(**{**record, **tuples, "asked": asked})
