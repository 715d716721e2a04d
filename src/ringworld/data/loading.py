"""From sources to batches on a mesh: mixing, packing lanes, exact resume, placement.

LANES. Row r of every batch is fed by documents r, r + B, r + 2B, ... of the stream and packs them by itself. So a row
depends on nothing but its number: not on how many processes read the stream, nor on which of them reads it. The whole
state of a lane is the document it is at, how much of it has been used, and the documents that wait for a row with room
for them, which is what a checkpoint holds.

ROWS OF THEIR OWN. Where documents of several sources are not to share rows, a row has a lane for each of them, and
which one it goes on with in a batch depends on the numbers of row and batch alone.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Generic, Self

import jax
import numpy as np
from jax.sharding import Mesh

from ringworld.attention.layout import Layout, chunk_count, order
from ringworld.data.documents import ENDLESS, Item, RandomAccess, Source
from ringworld.data.packing import Batch, Framed, Normalization, Policy, Row, frame, pack_row
from ringworld.errors import UserError
from ringworld.mesh import named_sharding
from ringworld.tokens.vocabulary import Vocabulary

# Positions of a mix repeat their pattern of sources after this many. A prime, so that a lane, which takes every B-th
# position, meets every source in its share whatever B is.
_PERIOD = 1009
# A lane lets so many documents wait, and fills its row with shorter ones that come after them.
_WAITING = 16


class Mix(Generic[Item]):
    """An endless source that draws from several in fixed shares: what `mix` returns."""

    def __init__(
        self, sources: Sequence[RandomAccess[Item]], weights: Sequence[float], seed: int, shuffle: bool
    ) -> None:
        if len(sources) != len(weights) or not 1 <= len(sources) <= _PERIOD:
            raise ValueError(
                f"a mix takes 1 to {_PERIOD} sources and a weight for each, got {len(sources)} sources and "
                f"{len(weights)} weights"
            )
        if not all(0 < weight < float("inf") for weight in weights):
            raise UserError(f"the weights of a mix must be above 0, got {list(weights)}")
        empty = [index for index, source in enumerate(sources) if not len(source)]
        if empty:
            raise UserError(f"source {empty[0]} of the mix holds no document")
        self._sources = tuple(sources)
        self._seed = seed
        self._shuffle = shuffle
        self._counts = _shares(weights)
        self._pattern = _pattern(self._counts, seed)
        # Which of its source's documents a position of the pattern takes.
        self._rank = np.zeros(_PERIOD, np.int64)
        for index, count in enumerate(self._counts):
            self._rank[self._pattern == index] = np.arange(count)
        # Lanes move through a source nearly together, so a few orders of each are enough.
        self._order = lru_cache(maxsize=4 * len(sources))(self._permutation)

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, index: int) -> Item:
        period, position = divmod(index, _PERIOD)
        source = int(self._pattern[position])
        return self._item(source, period * int(self._counts[source]) + int(self._rank[position]))

    def _item(self, source: int, number: int) -> Item:
        """The source's item `number`, counted over all passes through it."""
        size = len(self._sources[source])
        epoch, index = divmod(number, size)
        if self._shuffle and size < ENDLESS:
            index = int(self._order(source, epoch)[index])
        return self._sources[source][index]

    def _permutation(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, source, epoch)).permutation(len(self._sources[source]))


def mix(sources: Sequence[RandomAccess[Item]], weights: Sequence[float], seed: int, shuffle: bool = True) -> Mix[Item]:
    """An endless source in which source k has the share weights[k] / sum(weights) of the items, to about 0.1%.

    Each pass through a source visits all its items once, in another order (or in the same, without `shuffle`).
    Raises UserError for an empty source or a weight that is not above 0.
    """
    return Mix(sources, weights, seed, shuffle)


def _pattern(counts: np.ndarray, seed: int) -> np.ndarray:
    """Which source has each of _PERIOD positions."""
    return np.random.default_rng((seed, len(counts))).permutation(np.repeat(np.arange(len(counts)), counts))


def _shares(weights: Sequence[float]) -> np.ndarray:
    """How many of _PERIOD positions each source has: at least one, and the largest remainders rounded up."""
    exact = np.array(weights, np.float64) / sum(weights) * _PERIOD
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    while counts.sum() != _PERIOD:
        step = 1 if counts.sum() < _PERIOD else -1
        counts[np.argmax(step * (exact - counts) - (counts + step < 1) * _PERIOD)] += step
    return counts


@dataclass
class _Lane:
    """A row of the batch: the document it is at, how many of its tokens are used, and the documents that wait."""

    index: int
    offset: int
    waiting: list[int]
    framed: dict[int, Framed] = field(default_factory=dict)  # of the documents above, those that were made already


class PackedLoader(Iterator[Batch]):
    """Packs sources into batches of `batch_size` rows of `sequence_length`, of which this process builds only `rows`.

    Documents of several sources do not share rows: source k has the share shares[k] / sum(shares) of the rows, to about
    0.1%, in an order that `seed` decides. (Documents of a `mix` lie side by side.)

    policy: "split" cuts a document at the row's end and goes on with it in the lane's next row, as a segment of its
    own; "whole" lets it wait for a row that has room for all of it, and fills this one with what comes after it;
    "split long" cuts those that are longer than a row and keeps the others whole.
    normalization: as in `pack_row`. The next `prefetch` batches are built in a thread; `get_state` tells of what was
    handed out, so what was built ahead is neither lost nor repeated.

    A source that is not endless ends the iteration when every lane has run out; a lane that runs out sooner gives
    padding.

    Raises:
        UserError: a batch without rows, or rows without targets; and from `next`, with the policy "whole", a document
            longer than a row.
        ValueError: `rows` is not within the batch, or is a part of it while the source is finite: then processes would
            stop at different times. Several sources of which one is finite, or not a share for each.
    """

    def __init__(
        self,
        *datasets: Source,
        shares: Sequence[float] = (1.0,),
        seed: int = 0,
        batch_size: int,
        sequence_length: int,
        vocabulary: Vocabulary,
        policy: Policy = "split",
        normalization: Normalization = "token",
        rows: range | None = None,
        prefetch: int = 2,
    ) -> None:
        if batch_size < 1 or sequence_length < 2:
            raise UserError(f"a batch needs rows of at least 2 tokens, got {batch_size} rows of {sequence_length}")
        rows = range(batch_size) if rows is None else rows
        if not rows or rows.step != 1 or rows.start < 0 or rows.stop > batch_size:
            raise ValueError(f"rows must be a range within 0 to {batch_size - 1}, got {rows}")
        finite = any(len(dataset) < ENDLESS for dataset in datasets)
        if finite and len(rows) < batch_size:
            raise ValueError("a finite source cannot be read by several processes; make it endless with mix")
        if len(datasets) != len(shares) or (finite and len(datasets) > 1):
            raise ValueError(
                f"rows of their own take endless sources (mix) and a share for each, got {len(datasets)} sources and "
                f"{len(shares)} shares"
            )
        self._datasets = datasets
        self._pattern = _pattern(_shares(shares), seed)
        self._batches = 0
        self._batch_size = batch_size
        self._length = sequence_length
        self._vocabulary = vocabulary
        self._policy: Policy = policy
        self._normalization: Normalization = normalization
        self._rows = rows
        self._prefetch = prefetch
        self._lanes = [[_Lane(row, 0, []) for _ in datasets] for row in rows]  # of each row: one for each source
        self._state = self._snapshot()
        self._ahead: deque[Future[tuple[Batch | None, dict[str, Any]]]] = deque()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="packing") if prefetch else None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            batch, self._state = self._build()
        else:
            while len(self._ahead) <= self._prefetch:
                self._ahead.append(self._thread.submit(self._build))
            batch, state = self._ahead.popleft().result()
            self._state = state
        if batch is None:
            raise StopIteration
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the next batch begins, as plain JSON values. Several processes' states join by their "lanes"."""
        return {**self._state, "lanes": dict(self._state["lanes"])}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called, by this or another process.

        Raises ValueError for the state of another stream, or one that lacks a lane of this process.
        """
        for name in ("batch_size", "sequence_length"):
            if state[name] != self._state[name]:
                raise ValueError(f"this state is of a stream with {name} {state[name]}, not {self._state[name]}")
        missing = [row for row in self._rows if str(row) not in state["lanes"]]
        if missing:
            raise ValueError(f"this state lacks the lanes {missing}; join the states of all processes")
        self._drain()
        rows = [state["lanes"][str(row)] for row in self._rows]
        if len(self._datasets) == 1:
            rows = [[lane] for lane in rows]
        self._lanes = [[_Lane(index, offset, list(waiting)) for index, offset, waiting in lanes] for lanes in rows]
        self._batches = state.get("batches", 0)  # states of earlier versions do not say it, and are of one source
        self._state = self._snapshot()

    def close(self) -> None:
        """Ends the thread. Nothing can be read afterwards."""
        self._drain()
        if self._thread is not None:
            self._thread.shutdown()

    def _drain(self) -> None:
        while self._ahead:
            future = self._ahead.pop()
            if not future.cancel():
                future.exception()

    def _snapshot(self) -> dict[str, Any]:
        lanes: dict[str, Any] = {}
        for row, of_sources in zip(self._rows, self._lanes, strict=True):
            saved = [[lane.index, lane.offset, list(lane.waiting)] for lane in of_sources]
            lanes[str(row)] = saved if len(saved) > 1 else saved[0]
        sizes = {"batch_size": self._batch_size, "sequence_length": self._length}
        return {**sizes, "batches": self._batches, "lanes": lanes}

    def _build(self) -> tuple[Batch | None, dict[str, Any]]:
        rows = [self._row(row, lanes) for row, lanes in zip(self._rows, self._lanes, strict=True)]
        self._batches += 1
        if not any(segments.any() for _, _, segments, _, _ in rows):
            return None, self._snapshot()
        return Batch(*(np.stack(arrays) for arrays in zip(*rows, strict=True))), self._snapshot()

    def _row(self, row: int, lanes: list[_Lane]) -> Row:
        source = self._pattern[(self._batches * self._batch_size + row) % _PERIOD]
        pack = self._split if self._policy == "split" else self._whole
        pieces = pack(lanes[source], self._datasets[source])
        return pack_row(pieces, self._length, self._vocabulary, self._normalization)

    def _split(self, lane: _Lane, dataset: Source) -> list[tuple[Framed, int]]:
        """The lane's next documents, the last one cut at the row's end."""
        pieces: list[tuple[Framed, int]] = []
        room = self._length
        while room and lane.index < len(dataset):
            room -= self._cut(lane, dataset, room, pieces)
        return pieces

    def _cut(self, lane: _Lane, dataset: Source, room: int, pieces: list[tuple[Framed, int]]) -> int:
        """Takes as much of the document that the lane is at as there is room for; returns how much that was."""
        document = self._document(lane, dataset, lane.index)
        pieces.append((document, lane.offset))
        used = min(len(document) - lane.offset, room)
        lane.offset += used
        # The last token alone would be a piece without a target.
        if lane.offset >= len(document) - 1:
            del lane.framed[lane.index]
            lane.index, lane.offset = lane.index + self._batch_size, 0
        return used

    def _whole(self, lane: _Lane, dataset: Source) -> list[tuple[Framed, int]]:
        """Documents that fit: first of those that wait, the oldest before all others, then of those that come. Before
        them all, what is left of one that is longer than a row."""
        pieces: list[tuple[Framed, int]] = []
        room = self._length
        if lane.offset:
            room -= self._cut(lane, dataset, room, pieces)
        waiting, lane.waiting = lane.waiting, []
        while room and (waiting or (lane.index < len(dataset) and len(lane.waiting) < _WAITING)):
            index = waiting.pop(0) if waiting else lane.index
            document = self._document(lane, dataset, index)
            if len(document) > self._length:
                if self._policy == "whole":
                    raise UserError(
                        f"document {index} has {len(document)} tokens with bos and eos, but a row has {self._length}; "
                        'take longer rows, shorter documents or the packing "split long"'
                    )
                room -= self._cut(lane, dataset, room, pieces)
                continue
            if index == lane.index:
                lane.index += self._batch_size
            if len(document) > room:
                lane.waiting.append(index)
                continue
            pieces.append((lane.framed.pop(index), 0))
            room -= len(document)
        lane.waiting += waiting
        return pieces

    def _document(self, lane: _Lane, dataset: Source, index: int) -> Framed:
        if index not in lane.framed:
            lane.framed[index] = frame(dataset[index], self._vocabulary)
        return lane.framed[index]


def local_rows(mesh: Mesh, batch_size: int) -> range:
    """The rows of a batch that this process's devices hold.

    Raises UserError when the rows cannot be shared out evenly over the mesh's data and fsdp axes.
    """
    parts, cells = _cells(mesh)
    if batch_size % parts:
        raise UserError(
            f"a batch of {batch_size} rows cannot be shared out over {parts} devices (data {mesh.shape['data']} x fsdp "
            f"{mesh.shape['fsdp']}); take a batch size divisible by {parts}"
        )
    each = batch_size // parts
    return range(cells.start * each, cells.stop * each)


def place(batch: Batch, mesh: Mesh, layout: Layout) -> Batch:
    """Puts a process's rows on the mesh: jax arrays [B, S] sharded by (batch, sequence), in the layout's order.

    Row position i then holds sequence index order(S, ring, layout)[i] of every array.
    Raises UserError when the rows or the length cannot be shared out evenly over the mesh.
    """
    ring = mesh.shape["sequence"]
    local, length = batch.tokens.shape
    parts, cells = _cells(mesh)
    if local % len(cells):
        raise UserError(
            f"{local} rows cannot be shared out over {len(cells)} devices (data x fsdp); take a batch size divisible "
            f"by {parts}"
        )
    chunks = chunk_count(ring, layout)
    if length % chunks:
        raise UserError(
            f"a sequence of {length} tokens cannot be shared out over a ring of {ring} in {layout} order; take a "
            f"length divisible by {chunks}"
        )
    each = local // len(cells)
    first = cells.start * each
    sharding = named_sharding(mesh, ("batch", "sequence"))
    permutation = order(length, ring, layout)

    def put(array: np.ndarray) -> jax.Array:
        array = array[:, permutation]

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None
            rows, columns = index
            start, stop, _ = rows.indices(each * parts)
            return array[start - first : stop - first, columns]

        return jax.make_array_from_callback((each * parts, length), sharding, part)

    return jax.tree.map(put, batch)


def _cells(mesh: Mesh) -> tuple[int, range]:
    """How many parts the rows are cut into, and which of them this process holds."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    devices = mesh.devices.reshape(parts, -1)
    own = [index for index in range(parts) if any(d.process_index == jax.process_index() for d in devices[index])]
    if not own or own != list(range(own[0], own[-1] + 1)):
        raise ValueError(f"a process must hold neighbouring parts of the batch, this one holds {own} of {parts}")
    return parts, range(own[0], own[-1] + 1)
