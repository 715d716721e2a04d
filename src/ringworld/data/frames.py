"""Frames to train a tokenizer on: what a recipe says about them, and their batches.

A source of frames is random access to pictures [H, W, 3] of one size, `source[i]` a function of i alone, as a source of
documents is; so a stream's whole state is the number of batches that were taken.
"""

import logging
import re
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from ringworld.data.corpora import HELDOUT_SHARE, held_out
from ringworld.data.documents import ENDLESS, RandomAccess
from ringworld.data.galleries import GALLERIES, gallery
from ringworld.data.media import media_files
from ringworld.errors import UserError
from ringworld.mesh import named_sharding
from ringworld.tokens.images import Fit, read_image
from ringworld.tokens.video import exact_fps, read_video, video_info
from ringworld.worlds.film import Scene
from ringworld.worlds.world import GRID, World
from ringworld.worlds.world import Part as WorldPart

Frame = UInt8[np.ndarray, "H W 3"]
FrameSource = RandomAccess[Frame]
Part = Literal["train", "heldout", "all"]
_KEPT_BYTES = 2**31  # of frames that were read and are kept in memory
_PART = {"train": "trained on", "heldout": "held out", "all": "used"}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShapesConfig:
    """Pictures of the shapes world, drawn as they are asked for: see `World`."""

    least: int = 0
    most: int = 3
    grid: int | None = GRID

    def build(self, frame_size: int, seed: int, part: Part = "train") -> "Shapes":
        return Shapes(_worlds(self, seed, part), frame_size)


@dataclass(frozen=True)
class Shapes:
    """Pictures of some worlds in turn, as frames."""

    worlds: tuple[World, ...]
    size: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Frame:
        return self.scene(index).frame(0, self.size)

    def scene(self, index: int) -> Scene:
        """What there is in the frame of a number."""
        number, world = divmod(index, len(self.worlds))
        return self.worlds[world].picture(number)


@dataclass(frozen=True)
class MomentsConfig:
    """Frames out of the shapes world's scenes: things that move, some of them partly hidden or half outside."""

    least: int = 1
    most: int = 3
    grid: int | None = GRID

    def build(self, frame_size: int, seed: int, part: Part = "train") -> "Moments":
        return Moments(_worlds(self, seed, part), frame_size)


@dataclass(frozen=True)
class Moments:
    """A frame of each scene of some worlds in turn, at a time drawn by its number."""

    worlds: tuple[World, ...]
    size: int

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Frame:
        number, world = divmod(index, len(self.worlds))
        scene = self.worlds[world].scene(number)
        return scene.frame(np.random.default_rng(index).uniform(0, scene.seconds), self.size)


def _worlds(config: "ShapesConfig | MomentsConfig", seed: int, part: Part) -> tuple[World, ...]:
    parts: tuple[WorldPart, ...] = ("train", "heldout") if part == "all" else (part,)
    return tuple(World(seed, one, config.least, config.most, config.grid) for one in parts)


@dataclass(frozen=True)
class MediaConfig:
    """Frames of pictures and films: those of a file, of a folder and all below it, of a .jsonl of raw documents, or of
    a gallery.

    About a fifth is held out: of pictures some, by their names, and of every film the end. What cannot be read is left
    out, with a word in the log, or ends in an error when it is more than `bad_share` of the files.

    Attributes:
        path: or, where there is no such path, the name of one of `data.galleries.GALLERIES`.
        fps: of a film, so many frames a second can be drawn.
        fit: "crop" or "pad", as in `tokens.images.read_image`.
        group: a regular expression; pictures in whose paths it finds the same text stay together when some are held
            out. By default a gallery has its own, and elsewhere every path is a group by itself.
    """

    path: str
    fps: float = 2.0
    fit: Fit = "crop"
    group: str | None = None
    bad_share: float = 0.01

    def build(self, frame_size: int, seed: int, part: Part = "train") -> FrameSource:
        return _Media(self, frame_size, part)


def _located(config: MediaConfig) -> tuple[Path, str]:
    """Where the files are, and the expression for their groups."""
    path, group = Path(config.path), ".*"
    if not path.exists():
        if config.path not in GALLERIES:
            raise UserError(
                f"there is no {path}: name a picture, a film, a .jsonl file, a folder with any of them in it, or one "
                f"of the galleries {', '.join(GALLERIES)}"
            )
        path, group = gallery(config.path), GALLERIES[config.path].group
    return path, group if config.group is None else config.group


class _Media:
    """The frames of media files, each read when it is first asked for, and kept as long as there is room."""

    def __init__(self, config: MediaConfig, size: int, part: Part) -> None:
        exact_fps(config.fps)
        self._config = config
        self._size = size
        self._items = [*self._pictures_and_films(part)]
        if not self._items:
            raise UserError(f"of the pictures and films in {config.path} none is left to be {_PART[part]}: give more")
        self._kept: dict[int, np.ndarray] = {}
        self._room = _KEPT_BYTES // (3 * size * size)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Frame:
        frame = self._kept.get(index)
        if frame is None:
            frame = self._read(*self._items[index])
            if len(self._kept) < self._room:
                self._kept[index] = frame
        return frame

    def _read(self, path: Path, number: int | None) -> Frame:
        size, config = (self._size, self._size), self._config
        if number is None:
            return read_image(path, size, fit=config.fit)
        with closing(read_video(path, config.fps, size, fit=config.fit, start=number / config.fps)) as frames:
            return next(frames)

    def _pictures_and_films(self, part: Part) -> Iterator[tuple[Path, int | None]]:
        """Every frame: its file and, in a film, its number at `fps`."""
        config = self._config
        place, group = _located(config)
        stills: list[Path] = []
        films: list[tuple[Path, int]] = []
        bad: list[str] = []
        files = media_files(place)
        for path in files:
            try:
                info = video_info(path)
                if info.frames == 1:
                    stills.append(path)
                else:
                    films.append((path, max(1, int((info.seconds or 0) * config.fps))))
            except UserError as error:
                bad.append(str(error))
        if len(bad) > config.bad_share * len(files):
            raise UserError(
                f"{len(bad)} of the {len(files)} pictures and films in {config.path} cannot be read ({bad[0]}): more "
                f"than the {config.bad_share:.2%} allowed; mend them or allow a larger bad_share"
            )
        for reason in bad:
            _log.warning("left out: %s", reason)
        for path, count in films:
            first = count - int(HELDOUT_SHARE * count)
            numbers = {"train": range(first), "heldout": range(first, count), "all": range(count)}[part]
            yield from ((path, number) for number in numbers)
        groups: dict[str, list[Path]] = {}
        for path in stills:
            found = re.search(group, path.as_posix())
            groups.setdefault(found[0] if found else path.as_posix(), []).append(path)
        out = held_out(list(groups), [len(paths) for paths in groups.values()])
        for paths, heldout in zip(groups.values(), out, strict=True):
            if part == "all" or heldout == (part == "heldout"):
                yield from ((path, None) for path in paths)


FrameSourceConfig = ShapesConfig | MomentsConfig | MediaConfig


def frames_of(data: str, fps: float) -> FrameSourceConfig:
    """What people name: "shapes", or what `MediaConfig.path` takes; `fps` of films."""
    return ShapesConfig(least=1) if data == "shapes" else MediaConfig(data, fps)


class FrameLoader(Iterator[UInt8[np.ndarray, "B H W 3"]]):
    """Batches of a source of frames: batch k holds items k B to (k + 1) B - 1, of which this process builds `rows`.

    The next `prefetch` batches are built in threads; `get_state` tells of what was handed out.
    """

    def __init__(
        self, source: FrameSource, *, batch_size: int, rows: range | None = None, prefetch: int = 2, workers: int = 1
    ) -> None:
        self._source = source
        self._batch_size = batch_size
        self._rows = range(batch_size) if rows is None else rows
        self._prefetch = prefetch
        self._next = 0  # batch to be handed out
        self._ahead: deque[Future[np.ndarray]] = deque()
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="frames")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> np.ndarray:
        while len(self._ahead) <= self._prefetch:
            self._ahead.append(self._threads.submit(self._build, self._next + len(self._ahead)))
        batch = self._ahead.popleft().result()
        self._next += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, as plain JSON values."""
        return {"batch_size": self._batch_size, "batch": self._next}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called. Raises ValueError for the state of another stream."""
        if state["batch_size"] != self._batch_size:
            raise ValueError(f"this state is of batches of {state['batch_size']} frames, not {self._batch_size}")
        self._drain()
        self._next = state["batch"]

    def close(self) -> None:
        """Ends the threads. Nothing can be read afterwards."""
        self._drain()
        self._threads.shutdown()

    def _drain(self) -> None:
        while self._ahead:
            future = self._ahead.pop()
            if not future.cancel():
                future.exception()

    def _build(self, batch: int) -> np.ndarray:
        first = batch * self._batch_size
        return np.stack([self._source[first + row] for row in self._rows])


def place_frames(frames: Sequence[Frame] | np.ndarray, mesh: Mesh) -> jax.Array:
    """A process's frames on the mesh: a jax array [B, H, W, 3] of uint8, sharded by frames."""
    frames = np.asarray(frames)
    return jax.make_array_from_process_local_data(named_sharding(mesh, ("batch", None, None, None)), frames)
