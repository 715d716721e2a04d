"""Frames of codes in the one id space, and back: how pictures and films stand in a sequence.

`<vision>` (one text id or several), then each frame's codes row by row with eof behind them, or eov behind the last
frame's, then `</vision>`. (LWM, arXiv 2402.08268, section 4.2.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Int32, Integer

from ringworld.tokens.vocabulary import Vocabulary

VISION_START, VISION_END = "<vision>", "</vision>"  # as text, which is one id or several


def frame_ids(
    codes: Integer[np.ndarray, "F h w"], vocabulary: Vocabulary, *, last: bool = True
) -> Int32[np.ndarray, "n"]:
    """The ids of frames, each with its terminator, without the delimiters around them.

    Args:
        last: the film ends with these frames. False: more will follow, so that the last one ends with eof too.

    Raises:
        ValueError: there is no frame, frames of another size than the vocabulary's, or codes that it does not have.
    """
    count, *size = codes.shape
    if not count or tuple(size) != (vocabulary.frame_height, vocabulary.frame_width):
        raise ValueError(
            f"frames must be one or more of {vocabulary.frame_height}x{vocabulary.frame_width} codes, got {codes.shape}"
        )
    if not 0 <= codes.min() <= codes.max() < vocabulary.codes:
        raise ValueError(f"codes must be 0 to {vocabulary.codes - 1}, got {codes.min()} to {codes.max()}")
    ids = np.full((count, vocabulary.codes_per_frame + 1), vocabulary.eof, np.int32)
    ids[:, :-1] = codes.reshape(count, -1) + vocabulary.text_size
    if last:
        ids[-1, -1] = vocabulary.eov
    return ids.ravel()


def vision_ids(codes: Integer[np.ndarray, "F h w"], vocabulary: Vocabulary) -> Int32[np.ndarray, "n"]:
    """A whole picture or film: its frames between `<vision>` and `</vision>`. Raises ValueError as `frame_ids`."""
    frames = frame_ids(codes, vocabulary)
    return np.concatenate([vocabulary.vision_start, frames, vocabulary.vision_end]).astype(np.int32)


def clock(seconds: float | int) -> str:
    """75 -> "1:15", minutes and whole seconds."""
    whole = int(seconds)
    return f"{whole // 60}:{whole % 60:02}"


MINUTE_MARKS = tuple(f" {clock(60 * minute)}" for minute in range(60))


def timed(count: int, fps: float | int, every: int, resolution: int = 1) -> Iterator[tuple[slice, str]]:
    """The parts of a film of `count` frames with the time in it: the frames of each `every` seconds, and the text
    behind them, which says when they began.

        <vision> frames before 15 s </vision> " 0:00" <vision> frames before 30 s </vision> " 0:15" ...

    The time stands under a part as a caption does under a picture: a model that reads from left to right has seen the
    frames where it comes to the time, and can keep there what it saw. There is no part without a frame.

    Args:
        resolution: seconds to which the time is told; with 60, in whole minutes.
    """
    # A frame at the very end of a part belongs to the next one, also where its time is rounded down.
    part = np.floor(np.arange(count) / fps / every + 1e-9).astype(np.int64)
    edges = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), count]
    for start, stop in pairwise(edges):
        yield slice(start, stop), f" {clock(int(part[start]) * every // resolution * resolution)}"


@dataclass(frozen=True)
class Vision:
    """Frames that stand in a sequence: their codes [F, h, w], and where: ids[start:stop], delimiters and all."""

    codes: Int32[np.ndarray, "F h w"]
    start: int
    stop: int


def visions(ids: Integer[np.ndarray, "n"], vocabulary: Vocabulary) -> Iterator[Vision]:
    """The pictures and films in a sequence, in order; of one that is cut off, the frames that are whole, if any."""
    opening, closing = (np.array(part, np.int32) for part in (vocabulary.vision_start, vocabulary.vision_end))
    is_vision = np.append((ids >= vocabulary.text_size) & (ids < vocabulary.size), False)
    edges = np.flatnonzero(np.diff(is_vision, prepend=False))
    length = vocabulary.codes_per_frame + 1
    for first, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        if not (whole := (end - first) // length):
            continue
        frames = ids[first : first + whole * length].reshape(whole, length)[:, :-1] - vocabulary.text_size
        codes = frames.reshape(whole, vocabulary.frame_height, vocabulary.frame_width).astype(np.int32)
        opened = np.array_equal(ids[max(0, first - len(opening)) : first], opening)
        closed = np.array_equal(ids[end : end + len(closing)], closing)
        yield Vision(codes, first - opened * len(opening), end + closed * len(closing))
