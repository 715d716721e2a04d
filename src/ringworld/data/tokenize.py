"""A job: pictures, films and raw documents to shards of tokenised ones.

A shard holds a fixed run of the input's documents and appears when it is whole, so a job that was stopped goes on at
its first missing shard. Files are read by several threads, each ahead of its turn by a few frames and no more, and the
frames of one document after the other go through the tokenizer in full batches.
"""

import hashlib
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ringworld.data.media import RawDocument, raw_documents
from ringworld.data.tokenized import (
    BAD,
    JOB,
    SHARD,
    TextSpan,
    TokenizedDocument,
    VisionSpan,
    shard_name,
    write_shard,
)
from ringworld.errors import UserError
from ringworld.files import write_atomically
from ringworld.tokens.codec import FrameTokenizer
from ringworld.tokens.images import Fit, is_picture, open_media, read_image
from ringworld.tokens.video import exact_fps, read_video, video_info

_AHEAD = 64  # frames of a document that are read before its turn comes

Frame = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Summary:
    """What a job did: documents in its shards, frames and codes in them, and what was left out and why."""

    documents: int
    frames: int
    bad: tuple[tuple[str, str], ...]  # (source, reason)


def tokenize(
    path: Path,
    tokenizer: FrameTokenizer,
    out: Path,
    *,
    fingerprint: str,
    fps: float | None = 1.0,
    fit: Fit = "crop",
    bad_share: float = 0.01,
    workers: int | None = None,
    progress: Callable[[int, int, int], None] = lambda done, of, frames: None,
) -> Summary:
    """Tokenises an input into shards in `out`, or goes on with the job that is there.

    Args:
        fingerprint: of the tokenizer; a job goes on with the same one only.
        fps: of films that do not say their own; None: all their frames.
        bad_share: documents that may be left out, since something in them cannot be read, before the job stops.
        workers: files read at a time; by default one more than there are cores.
        progress: told of documents done, of all, and of frames done, as often as they go on.

    Returns:
        What the shards hold. `bad.jsonl` lists what was left out.

    Raises:
        UserError: nothing to tokenise, an impossible rate or share, another job's folder, too much that is bad, or the
        disk is full.
    """
    if not 0 <= bad_share <= 1:
        raise UserError(f"bad_share must be 0 to 1, a share of the documents; got {bad_share}")
    if fps is not None:
        exact_fps(fps)
    documents = raw_documents(path, fps)
    total = len(documents)
    job = {
        "tokenizer": fingerprint,
        "fps": fps,
        "fit": fit,
        "documents": total,
        "input": hashlib.sha256(repr(documents).encode()).hexdigest(),
    }
    _open_job(out, job)
    bad: list[tuple[str, str]] = []
    frames = 0
    for first in range(0, total, SHARD):
        some = documents[first : first + SHARD]
        shard = out / shard_name(first // SHARD)
        report = shard.with_suffix(".json")
        if not (shard.exists() and report.exists()):
            made, wrong = _shard(
                some,
                tokenizer,
                fit,
                workers or (os.cpu_count() or 1) + 1,
                lambda done, new, first=first, before=frames: progress(first + done, total, before + new),
            )
            counted = sum(len(s.codes) for d in made for s in d.spans if isinstance(s, VisionSpan))
            with _writing(shard):
                write_shard(shard, made)
                write_atomically(report, json.dumps({"frames": counted, "bad": wrong}))
        known = json.loads(report.read_text(encoding="utf-8"))
        frames += known["frames"]
        bad += [(source, reason) for source, reason in known["bad"]]
        progress(min(first + SHARD, total), total, frames)
        if len(bad) > bad_share * total:
            shown = "; ".join(f"{source}: {reason}" for source, reason in bad[:3])
            raise UserError(
                f"{len(bad)} of {total} documents cannot be read ({shown}{'; ...' if len(bad) > 3 else ''}): "
                f"more than the {bad_share:.2%} allowed; mend them or allow a larger bad_share"
            )
    lines = (json.dumps({"source": source, "reason": reason}) + "\n" for source, reason in bad)
    with _writing(out / BAD):
        write_atomically(out / BAD, "".join(lines))
    return Summary(total - len(bad), frames, tuple(bad))


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Says in one sentence that the disk is full, or the like."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; the same job goes on from there once it can"
        ) from error


def _open_job(out: Path, job: dict[str, Any]) -> None:
    """Begins a job in a folder, or goes on with the same one."""
    path = out / JOB
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in job if before.get(name) != job[name]]
        if differing:
            raise UserError(
                f"{out} holds another job's documents: its {differing[0]} was {before.get(differing[0])!r} and is "
                f"{job[differing[0]]!r} now; give another --out"
            )
        return
    try:
        write_atomically(path, json.dumps(job, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror}; give another --out") from error


def _shard(
    documents: Sequence[RawDocument],
    tokenizer: FrameTokenizer,
    fit: Fit,
    workers: int,
    progress: Callable[[int, int], None],
) -> tuple[list[TokenizedDocument], list[tuple[str, str]]]:
    """The tokenised documents, in their order, and (source, reason) of those that cannot be. `progress` is told of
    documents and frames done."""
    size = tokenizer.config.frame_size
    codes: list[list[list[np.ndarray]]] = [[[] for _ in document.spans] for document in documents]
    wrong: dict[int, str] = {i: document.wrong for i, document in enumerate(documents) if document.wrong}
    places: list[tuple[int, int]] = []  # of the frames on their way through the tokenizer: document and span

    def stream() -> Iterator[Frame]:
        with _Readers(documents, size, fit, workers) as readers:
            for index in range(len(documents)):
                for item in readers.frames(index):
                    if isinstance(item, UserError):
                        wrong[index] = str(item)
                        break
                    span, frame = item
                    places.append((index, span))
                    yield frame

    for number, grid in enumerate(tokenizer.encode_all(stream())):
        document, span = places[number]
        codes[document][span].append(grid)
        progress(document, number + 1)
    made = [
        TokenizedDocument(document.source, tuple(map(_tokenized, document.spans, codes[index])))
        for index, document in enumerate(documents)
        if index not in wrong
    ]
    return made, [(documents[index].source, wrong[index]) for index in sorted(wrong)]


def _tokenized(span: dict[str, Any], codes: list[np.ndarray]) -> TextSpan | VisionSpan:
    trained, role = span.get("trained"), span.get("role")
    if "text" in span:
        return TextSpan(span["text"], trained, role)
    film = len(codes) > 1 or not _is_still(span)
    return VisionSpan(np.stack(codes), span["fps"] if film else None, trained, role)


def _is_still(span: dict[str, Any]) -> bool:
    """Whether a span is a picture: it says so, or else its file does."""
    if "still" in span:
        return bool(span["still"])
    with open_media(Path(span["media"])) as file:
        return is_picture(file) and (video_info(span["media"]).frames or 1) == 1


def _read(span: dict[str, Any], size: int, fit: Fit) -> Iterator[Frame]:
    if _is_still(span):
        yield read_image(span["media"], (size, size), fit=fit)
    else:
        yield from read_video(span["media"], span["fps"], (size, size), fit=fit)


class _Readers:
    """Threads that read documents ahead, each into a queue of a few frames. A context manager."""

    def __init__(self, documents: Sequence[RawDocument], size: int, fit: Fit, workers: int) -> None:
        self._documents = documents
        self._size = size
        self._fit: Fit = fit
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="media")
        self._workers = workers
        self._queues: dict[int, queue.Queue[Any]] = {}
        self._begun = 0

    def __enter__(self) -> "_Readers":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._threads.shutdown(cancel_futures=True)

    def frames(self, index: int) -> Iterator[tuple[int, Frame] | UserError]:
        """(span, frame) of a document, in order; last the error where there is one. To be asked for in order."""
        while self._begun < min(len(self._documents), index + self._workers):
            self._queues[self._begun] = queue.Queue(_AHEAD)
            self._threads.submit(self._fill, self._begun, self._queues[self._begun])
            self._begun += 1
        items = self._queues.pop(index)
        while (item := items.get()) is not None:
            if isinstance(item, Exception) and not isinstance(item, UserError):
                raise item
            yield item

    def _fill(self, index: int, items: "queue.Queue[Any]") -> None:
        document = self._documents[index]
        try:
            for number, span in enumerate(() if document.wrong else document.spans):
                if "media" in span:
                    for frame in _read(span, self._size, self._fit):
                        if not self._put(items, (number, frame)):
                            return
        except Exception as error:
            self._put(items, error)
        self._put(items, None)

    def _put(self, items: "queue.Queue[Any]", item: object) -> bool:
        """Waits for room; gives up when nobody reads any more."""
        while not self._stop.is_set():
            try:
                items.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
