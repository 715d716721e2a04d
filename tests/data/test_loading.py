import itertools
import json
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringworld.attention.layout import Layout, inverse, order
from ringworld.data.documents import ENDLESS, Document, Source, Span
from ringworld.data.loading import PackedLoader, local_rows, mix, place
from ringworld.data.packing import Batch, Policy
from ringworld.errors import UserError
from ringworld.mesh import MeshShape, build_mesh
from ringworld.tokens.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=1 << 20, bos=1, eos=2, pad=0)


class Numbered:
    """Document i holds `lengths[i % n]` tokens, the first of which tells i."""

    def __init__(self, size: int = ENDLESS, lengths: tuple[int, ...] = (3, 9, 1, 5), first: int = 100) -> None:
        self.size, self.lengths, self.first = size, lengths, first

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Document:
        ids = np.full(self.lengths[index % len(self.lengths)], 3, np.int32)
        ids[0] = self.first + index
        return Document((Span("text", ids, 1.0),))


def loader(source: Source | None = None, **changes: Any) -> PackedLoader:
    settings: dict[str, Any] = {"batch_size": 4, "sequence_length": 8, "vocabulary": VOCABULARY} | changes
    return PackedLoader(Numbered() if source is None else source, **settings)


def take(batches, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)


def test_row_r_reads_documents_r_and_every_bth_after() -> None:
    batches = take(loader(), 6)
    for row in range(4):
        tokens = np.concatenate([batch.tokens[row] for batch in batches])
        numbers = [token - 100 for token in tokens.tolist() if token >= 100]
        assert numbers == list(range(row, row + 4 * len(numbers), 4))


def test_splitting_loses_no_token_and_trains_each_once() -> None:
    batches = take(loader(batch_size=1), 40)
    tokens = np.concatenate([b.tokens[0] for b in batches])
    targets = np.concatenate([b.targets[0][b.weights[0] > 0] for b in batches])
    expected = [t for i in range(80) for t in [*Numbered()[i].tokens.tolist(), 2]]
    assert targets.tolist() == expected[: len(targets)]
    assert len(targets) > 200
    assert 0 not in tokens
    starts = [b.positions[0][0] for b in batches]
    assert set(starts) == {0}


def test_whole_documents_are_never_cut() -> None:
    for batch in take(loader(policy="whole", sequence_length=12), 8):
        for row in range(4):
            for segment in range(1, batch.segments[row].max() + 1):
                piece = batch.tokens[row][batch.segments[row] == segment]
                assert (piece[0], piece[-1]) == (1, 2)
        assert np.all((batch.segments == 0) == (batch.tokens == 0))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_document_longer_than_a_row_is_refused_with_its_length(prefetch: int) -> None:
    source = loader(policy="whole", sequence_length=10, prefetch=prefetch)
    with pytest.raises(UserError, match="document 1 has 11 tokens with bos and eos, but a row has 10"):
        next(source)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 12), st.sampled_from(["split", "whole"]), st.sampled_from([0, 2]), st.integers(11, 40))
def test_resume_is_uninterrupted_bit_for_bit(stop: int, policy: Policy, prefetch: int, length: int) -> None:
    def fresh() -> PackedLoader:
        sources = [Numbered(7), Numbered(5, (4, 2), first=1000)]
        return loader(mix(sources, [3.0, 1.0], seed=5), policy=policy, prefetch=prefetch, sequence_length=length)

    whole = take(fresh(), stop + 6)
    first = fresh()
    take(first, stop)
    state = json.loads(json.dumps(first.get_state()))
    second = fresh()
    take(second, 3)  # what was built ahead must not leak in
    second.set_state(state)
    assert second.get_state() == state
    assert_same(take(second, 6), whole[stop:])
    assert_same(take(first, 6), whole[stop:])


def test_a_document_waits_for_a_row_with_room_and_shorter_ones_fill_this_one() -> None:
    source = loader(
        Numbered(8, (4, 6, 2, 6, 2, 6, 4, 2)), batch_size=1, policy="whole", sequence_length=12, prefetch=0
    )  # each with its bos and eos: 6, 8, 4, 8, 4, 8, 6, 4 tokens
    rows = [list(dict.fromkeys(int(t) - 100 for t in batch.tokens[0] if t >= 100)) for batch in source]
    assert rows == [[0, 2], [1, 4], [3, 7], [5], [6]]


def test_a_state_with_documents_that_wait_serves_more_than_once() -> None:
    def fresh() -> PackedLoader:
        return loader(Numbered(lengths=(6, 9, 9, 9, 1)), batch_size=1, policy="whole", sequence_length=12, prefetch=0)

    first, second, third = fresh(), fresh(), fresh()
    take(first, 3)
    state = first.get_state()
    assert state["lanes"]["0"][2], "no document waits: this test shows nothing"
    second.set_state(state)
    rest = take(second, 6)
    third.set_state(state)
    assert_same(take(third, 6), rest)


def test_no_document_waits_forever_or_comes_twice() -> None:
    lengths = (10, 1, 7, 3, 9, 2, 8, 5)
    source = loader(Numbered(100, lengths), batch_size=1, policy="whole", sequence_length=12, prefetch=0)
    rows = [list(dict.fromkeys(int(t) - 100 for t in batch.tokens[0] if t >= 100)) for batch in source]
    order = [number for row in rows for number in row]
    assert sorted(order) == list(range(100))
    assert max(abs(place - number) for place, number in enumerate(order)) < 64
    used = sum(lengths[number % len(lengths)] + 2 for number in order)
    assert used / (12 * len(rows)) > 0.85


LONG = (3, 50, 9, 1, 97, 5, 4)


@pytest.mark.parametrize("length", [6, 12, 40, 99])
def test_long_documents_are_cut_and_the_others_stay_whole(length: int) -> None:
    batches = list(loader(Numbered(21, LONG), policy="split long", sequence_length=length, batch_size=1, prefetch=0))
    targets = np.concatenate([b.targets[0][b.weights[0] > 0] for b in batches]).tolist()
    assert len(targets) == 3 * sum(size + 1 for size in LONG)  # each token but bos once, and each eos
    assert sorted(t for t in targets if t >= 100) == list(range(100, 121))
    for batch in batches:
        for segment in range(1, batch.segments[0].max() + 1):
            piece = batch.tokens[0][batch.segments[0] == segment]
            numbers = [int(t) - 100 for t in piece if t >= 100]
            if numbers and LONG[numbers[0] % 7] + 2 <= length:
                assert piece.tolist() == [1, *Numbered(21, LONG)[numbers[0]].tokens.tolist(), 2]


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 12), st.integers(6, 40))
def test_long_documents_go_on_bit_for_bit(stop: int, length: int) -> None:
    def fresh() -> PackedLoader:
        return loader(Numbered(lengths=LONG), policy="split long", sequence_length=length)

    whole, first, second = take(fresh(), stop + 6), fresh(), fresh()
    take(first, stop)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert_same(take(second, 6), whole[stop:])


def kinds(batches: list[Batch]) -> np.ndarray:
    """Of each row, the sources of its documents: hundreds of their first tokens."""
    found = []
    for batch in batches:
        for row in batch.tokens:
            (kind,) = {int(token) // 1_000_000 for token in row.tolist() if token >= 100}
            found.append(kind)
    return np.array(found).reshape(len(batches), -1)


def apart(shares: tuple[float, ...] = (0.7, 0.2, 0.1), *, longest: int = 40, **changes: Any) -> PackedLoader:
    sources = [
        mix([Numbered(size, lengths, first=k * 1_000_000 + 100)], [1.0], seed=k)
        for k, (size, lengths) in enumerate([(50, (3, 9, 1)), (7, (longest,)), (30, (2, 2))][: len(shares)])
    ]
    settings: dict[str, Any] = {"batch_size": 4, "sequence_length": 12, "vocabulary": VOCABULARY, "seed": 3} | changes
    return PackedLoader(*sources, shares=shares, **settings)


def test_documents_of_different_sources_can_have_rows_of_their_own() -> None:
    rows = kinds(take(apart(longest=7, batch_size=1), 1009))
    assert np.bincount(rows.ravel()).tolist() == [706, 202, 101]
    columns = kinds(take(apart(longest=7), 80)).T
    assert all(len(set(column.tolist())) == 3 for column in columns)


def test_rows_of_their_own_visit_every_document_once_a_pass() -> None:
    batches = take(apart((0.5, 0.5), batch_size=1), 400)
    numbers = [int(t) for b in batches for t in b.tokens[0].tolist() if 100 <= t < 1_000_000]
    passes = [sorted(numbers[i : i + 50]) for i in range(0, len(numbers) - 50, 50)]
    assert passes
    assert all(one == list(range(100, 150)) for one in passes)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 12), st.sampled_from(["split", "split long"]), st.sampled_from([0, 2]))
def test_rows_of_their_own_go_on_bit_for_bit(stop: int, policy: Policy, prefetch: int) -> None:
    whole = take(apart(policy=policy, prefetch=prefetch), stop + 6)
    first, second = apart(policy=policy, prefetch=prefetch), apart(policy=policy, prefetch=prefetch)
    take(first, stop)
    take(second, 3)
    second.set_state(json.loads(json.dumps(first.get_state())))
    assert second.get_state() == first.get_state()
    assert_same(take(second, 6), whole[stop:])
    halves = [apart(policy=policy, rows=range(2)), apart(policy=policy, rows=range(2, 4))]
    for half in halves:
        half.set_state(first.get_state())
    parts = [take(half, 6) for half in halves]
    joined = [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in zip(*parts, strict=True)]
    assert_same(joined, whole[stop:])


def test_a_state_of_an_earlier_version_serves() -> None:
    source = loader()
    take(source, 3)
    state = source.get_state()
    assert state["batches"] == 3
    del state["batches"]
    resumed = loader()
    resumed.set_state(state)
    assert_same(take(resumed, 3), take(source, 3))


def test_what_cannot_have_rows_of_its_own() -> None:
    settings: dict[str, Any] = {"batch_size": 4, "sequence_length": 8, "vocabulary": VOCABULARY}
    with pytest.raises(ValueError, match="a share for each, got 2 sources and 1 shares"):
        PackedLoader(Numbered(), Numbered(), **settings)
    with pytest.raises(ValueError, match=r"take endless sources \(mix\)"):
        PackedLoader(Numbered(), Numbered(9), shares=(1.0, 1.0), **settings)


def test_a_state_in_the_middle_of_a_document() -> None:
    source = loader(Numbered(lengths=(50,)), batch_size=1)
    take(source, 2)
    assert source.get_state()["lanes"] == {"0": [0, 16, []]}
    resumed = loader(Numbered(lengths=(50,)), batch_size=1)
    resumed.set_state(source.get_state())
    assert_same(take(resumed, 8), take(source, 8))


def test_the_stream_does_not_depend_on_how_many_processes_read_it() -> None:
    whole = loader()
    halves = [loader(rows=range(2)), loader(rows=range(2, 4))]
    expected = take(whole, 5)
    parts = [take(half, 5) for half in halves]
    joined = [jax.tree.map(lambda a, b: np.concatenate([a, b]), *pair) for pair in zip(*parts, strict=True)]
    assert_same(joined, expected)
    # Four processes go on from the joined states of two.
    states = [half.get_state() for half in halves]
    state = states[0] | {"lanes": states[0]["lanes"] | states[1]["lanes"]}
    assert state == whole.get_state()
    quarters = [loader(rows=range(row, row + 1)) for row in range(4)]
    for quarter in quarters:
        quarter.set_state(state)
    parts = [take(quarter, 3) for quarter in quarters]
    joined = [jax.tree.map(lambda *arrays: np.concatenate(arrays), *quartet) for quartet in zip(*parts, strict=True)]
    assert_same(joined, take(whole, 3))


def test_the_state_of_another_stream_is_refused() -> None:
    state = loader().get_state()
    with pytest.raises(ValueError, match="of a stream with sequence_length 8, not 16"):
        loader(sequence_length=16).set_state(state)
    with pytest.raises(ValueError, match=r"lacks the lanes \[0, 1\]"):
        loader().set_state(loader(rows=range(2, 4)).get_state())


def test_rows_and_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"within 0 to 3, got range\(2, 5\)"):
        loader(rows=range(2, 5))
    with pytest.raises(ValueError, match="a finite source cannot be read by several processes"):
        loader(Numbered(9), rows=range(2))
    with pytest.raises(UserError, match="got 0 rows of 8"):
        loader(batch_size=0)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_finite_source_ends_when_all_lanes_have(prefetch: int) -> None:
    source = loader(Numbered(5, (3, 20, 3, 3, 3)), batch_size=2, prefetch=prefetch)
    batches = list(source)
    numbers = {int(t) - 100 for b in batches for t in b.tokens.ravel() if t >= 100}
    assert numbers == set(range(5))
    assert not batches[-1].segments[0].any()
    assert batches[-1].segments[1].any()
    with pytest.raises(StopIteration):
        next(source)
    source.close()


def numbers(source: Source, positions: range) -> list[int]:
    return [int(source[i].tokens[0]) for i in positions]


def test_a_mix_has_its_shares_and_visits_each_document_once_a_pass() -> None:
    source = mix([Numbered(10), Numbered(ENDLESS, first=1000), Numbered(3, first=100_000)], [0.5, 0.3, 0.2], seed=1)
    drawn = numbers(source, range(2018))
    kinds = [sum(n < 1000 for n in drawn), sum(1000 <= n < 100_000 for n in drawn), sum(n >= 100_000 for n in drawn)]
    assert kinds == [1008, 606, 404]
    first = [n for n in drawn if n < 1000]
    passes = [first[i : i + 10] for i in range(0, 1000, 10)]
    assert all(sorted(p) == list(range(100, 110)) for p in passes)
    assert len({tuple(p) for p in passes}) > 90
    assert [n for n in drawn if 1000 <= n < 100_000] == list(range(1000, 1606))


def test_a_mix_is_a_pure_function_of_the_index_and_the_seed() -> None:
    def build(seed: int, shuffle: bool = True):
        return mix([Numbered(10), Numbered(20, first=1000)], [1.0, 2.0], seed, shuffle)

    forward = numbers(build(1), range(300))
    shared = build(1)
    assert [int(shared[i].tokens[0]) for i in reversed(range(300))] == forward[::-1]
    assert numbers(build(2), range(300)) != forward
    plain = [n for n in numbers(build(1, shuffle=False), range(300)) if n < 1000]
    assert plain[:25] == [100 + i % 10 for i in range(25)]


def test_every_lane_meets_every_source() -> None:
    source = mix([Numbered(10), Numbered(10, first=1000)], [0.99, 0.01], seed=0)
    for lane in range(8):
        kinds = {n >= 1000 for n in numbers(source, range(lane, 8 * 1009, 8))}
        assert kinds == {True, False}


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_a_mix_of_any_weights_draws_from_all(weights: list[float]) -> None:
    source = mix([Numbered(3, (1,), first=100 * (k + 1)) for k in range(len(weights))], weights, seed=0)
    kinds = [n // 100 - 1 for n in numbers(source, range(1009))]
    shares = np.bincount(kinds, minlength=len(weights)) / 1009
    assert shares.min() > 0
    np.testing.assert_allclose(shares, np.array(weights) / sum(weights), atol=0.01)


def test_mistakes_in_a_mix() -> None:
    with pytest.raises(UserError, match=r"must be above 0, got \[1.0, 0.0\]"):
        mix([Numbered(), Numbered()], [1.0, 0.0], seed=0)
    with pytest.raises(UserError, match="source 1 of the mix holds no document"):
        mix([Numbered(), Numbered(0)], [1.0, 1.0], seed=0)
    with pytest.raises(ValueError, match="got 1 sources and 2 weights"):
        mix([Numbered()], [1.0, 1.0], seed=0)


@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
@pytest.mark.parametrize(
    "shape", ["data=2,fsdp=2,sequence=2", "data=1,sequence=8", "tensor=2,sequence=4", "data=4,fsdp=2"]
)
def test_place_permutes_and_shards_what_was_shifted_before(shape: str, layout: Layout) -> None:
    mesh = build_mesh(MeshShape.parse(shape))
    host = next(loader(batch_size=8, sequence_length=32))
    placed = place(host, mesh, layout)
    ring = mesh.shape["sequence"]
    permutation = order(32, ring, layout)
    for ours, theirs in zip(jax.tree.leaves(host), jax.tree.leaves(placed), strict=True):
        assert theirs.shape == (8, 32)
        assert theirs.dtype == ours.dtype
        assert theirs.addressable_shards[0].data.shape == (8 // (mesh.shape["data"] * mesh.shape["fsdp"]), 32 // ring)
        np.testing.assert_array_equal(np.asarray(theirs), ours[:, permutation])
        np.testing.assert_array_equal(np.asarray(theirs)[:, inverse(32, ring, layout)], ours)


def test_place_says_what_does_not_divide() -> None:
    mesh = build_mesh(MeshShape(data=2, sequence=4))
    batch = next(loader(batch_size=3, sequence_length=32))
    with pytest.raises(UserError, match=r"3 rows cannot be shared out over 2 devices .* divisible by 2"):
        place(batch, mesh, "zigzag")
    batch = next(loader(batch_size=4, sequence_length=28))
    with pytest.raises(
        UserError, match=r"28 tokens cannot be shared out over a ring of 4 in zigzag order.* divisible by 8"
    ):
        place(batch, mesh, "zigzag")
    place(batch, mesh, "contiguous")


def test_local_rows_of_the_only_process_are_all() -> None:
    mesh = build_mesh(MeshShape(data=2, fsdp=4))
    assert local_rows(mesh, 16) == range(16)
    with pytest.raises(UserError, match=r"12 rows cannot be shared out over 8 devices \(data 2 x fsdp 4\)"):
        local_rows(mesh, 12)


def test_a_process_that_holds_no_part_of_the_batch_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with pytest.raises(ValueError, match=r"must hold neighbouring parts of the batch, this one holds \[\] of 2"):
        local_rows(build_mesh(MeshShape(data=2, sequence=4)), 4)
