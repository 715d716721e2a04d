"""ring == blockwise == reference, in values and gradients, on every shape of mesh."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ringworld.attention import attention, blockwise
from ringworld.attention.blockwise import MASKED, Blocks, Positions, forward, merge
from ringworld.attention.exponential import polynomial_exp2
from ringworld.attention.layout import inverse, order
from ringworld.attention.reference import reference_attention
from ringworld.mesh import MeshShape, build_mesh


class Case(NamedTuple):
    query: jax.Array
    key: jax.Array
    value: jax.Array
    segments: jax.Array
    positions: jax.Array
    cotangent: jax.Array


def make(rows: int, length: int, heads: int, kv_heads: int, packed: bool, width: int = 16, seed: int = 0) -> Case:
    """Random heads; packed rows hold four documents and padding, cut at random places."""
    rng = np.random.default_rng(seed)
    arrays = [rng.normal(size=(rows, length, n, width)).astype(np.float32) for n in (heads, kv_heads, kv_heads, heads)]
    segments = np.ones((rows, length), np.int32)
    positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
    for row in range(rows if packed else 0):
        cuts = np.sort(rng.choice(np.arange(1, length), 4, replace=False))
        for index, piece in enumerate(np.split(np.arange(length), cuts)):
            segments[row, piece] = (index + 1) % 5
            positions[row, piece] = np.arange(len(piece))
    return Case(*(jnp.asarray(x) for x in (*arrays[:3], segments, positions, arrays[3])))


def values_and_gradients(function, case: Case):
    def loss(query, key, value):
        output = function(query, key, value, case.segments, case.positions)
        return jnp.sum(output * case.cotangent), output

    (_, output), gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*case[:3])
    return [np.asarray(x) for x in (output, *gradients)]


def on_mesh(shape: MeshShape, length: int, layout="zigzag", blocks=None):
    """Attention of a sequence given in its own order, computed in the layout's."""
    mesh = build_mesh(shape, jax.devices()[: int(np.prod(shape.sizes))])
    there, back = order(length, shape.sequence, layout), inverse(length, shape.sequence, layout)

    def function(*arrays):
        return attention(*(x[:, there] for x in arrays), mesh=mesh, blocks=blocks)[:, back]

    return function


def check(case: Case, function, tolerance: float = 1e-5) -> None:
    expected = values_and_gradients(reference_attention, case)
    for name, ours, theirs in zip(
        ["output", "query", "key", "value"], values_and_gradients(function, case), expected, strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance, err_msg=name)
        assert np.all(ours[np.asarray(case.segments) == 0] == 0), f"{name} of padding"


@pytest.mark.parametrize("group", [1, 3, 8])
@pytest.mark.parametrize("ring", [1, 2, 4, 8])
def test_ring_equals_reference(ring, group):
    case = make(2, 96, group, 1, packed=True)
    check(case, on_mesh(MeshShape(sequence=ring), 96, blocks=Blocks(8, 16, 1)))


@pytest.mark.parametrize("ring", [1, 8])
def test_one_document_fills_the_row(ring):
    case = make(2, 96, 2, 1, packed=False)
    check(case, on_mesh(MeshShape(sequence=ring), 96, blocks=Blocks(8, 16, 1)))


@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(data=2, sequence=4),
        MeshShape(fsdp=2, tensor=2, sequence=2),
        MeshShape(data=2, fsdp=2, tensor=2),
        MeshShape(tensor=2, sequence=4),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["zigzag", "contiguous"])
def test_meshes_that_use_other_axes_too(shape, layout):
    check(make(4, 64, 6, 2, packed=True), on_mesh(shape, 64, layout, Blocks(8, 8, None)))


@pytest.mark.parametrize("length", [1, 7, 33, 100])
@pytest.mark.parametrize(
    "blocks",
    [Blocks(16, 8, 1), Blocks(8, 32, None), Blocks(512, 512, 2), None],
    ids=["16x8", "8x32", "larger", "chosen"],
)
def test_blocks_that_leave_a_remainder(length, blocks):
    check(make(2, length, 4, 2, packed=length > 4), on_mesh(MeshShape(), length, blocks=blocks))


def test_the_polynomial_exponential_changes_nothing():
    check(make(2, 64, 4, 2, packed=True), on_mesh(MeshShape(sequence=2), 64, blocks=Blocks(16, 16, 1, polynomial_exp2)))


@pytest.mark.parametrize("seed", range(4))
def test_any_order_in_memory(seed):
    """The mask rule and the visits hold for a sequence that lies in no order at all."""
    case = make(2, 48, 2, 2, packed=True, seed=seed)
    shuffled = np.random.default_rng(seed).permutation(48)
    mesh = build_mesh(MeshShape(sequence=2), jax.devices()[:2])
    ours = attention(*(x[:, shuffled] for x in case[:5]), mesh=mesh, blocks=Blocks(8, 8, 1))
    theirs = np.asarray(reference_attention(*case[:5]))[:, shuffled]
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_documents_do_not_see_each_other():
    case = make(1, 64, 2, 2, packed=True)
    changed = case.value + (case.segments == 1)[..., None, None]
    function = on_mesh(MeshShape(sequence=4), 64)
    before, after = (function(case.query, case.key, v, case.segments, case.positions) for v in (case.value, changed))
    others = np.asarray(case.segments) != 1
    np.testing.assert_array_equal(np.asarray(before)[others], np.asarray(after)[others])


def test_a_row_of_padding_alone_gives_zero_and_no_nan():
    case = make(2, 32, 2, 2, packed=False)
    case = case._replace(segments=case.segments.at[0].set(0), positions=case.positions.at[0].set(0))
    check(case, on_mesh(MeshShape(sequence=2), 32, blocks=Blocks(8, 8, 1)))


def test_scores_beyond_the_range_of_exp():
    case = make(1, 64, 2, 1, packed=True)
    case = case._replace(query=case.query * 100)
    check(case, on_mesh(MeshShape(sequence=4), 64, blocks=Blocks(8, 8, 1)), tolerance=2e-2)


def test_merge_with_nothing_is_the_identity():
    case = make(1, 16, 2, 2, packed=False)
    where = Positions(case.segments, case.positions)
    some = forward(case.query, case.key, case.value, where, where, Blocks())
    none = (jnp.zeros_like(some[0]), jnp.full_like(some[1], MASKED))
    for ours, theirs in zip(merge(none, some), some, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_log_sum_is_in_base_e():
    case = make(1, 16, 2, 2, packed=False)
    where = Positions(case.segments, case.positions)
    _, log_sum = forward(case.query, case.key, case.value, where, where, Blocks(8, 8, 1, polynomial_exp2))
    scores = np.einsum("bqhk,bshk->bqhs", case.query, case.key) / 4.0
    visible = np.tril(np.ones((16, 16), bool))[None, :, None]
    expected = np.log(np.sum(np.where(visible, np.exp(scores), 0), -1, keepdims=True))
    np.testing.assert_allclose(log_sum, expected, atol=1e-5)


def test_bfloat16_gradients_do_not_get_worse_with_the_ring():
    """Accumulators are float32: against float32, the error of a ring of 8 is that of one device."""
    case = make(1, 128, 2, 2, packed=False)
    expected = values_and_gradients(reference_attention, case)

    def error(ring: int) -> float:
        function = on_mesh(MeshShape(sequence=ring), 128, blocks=Blocks(8, 8, 1))
        low = Case(*(x.astype(jnp.bfloat16) for x in case[:3]), *case[3:])
        ours = values_and_gradients(function, low)
        return max(float(np.abs(a.astype(np.float32) - b).max()) for a, b in zip(ours, expected, strict=True))

    assert error(8) < 1.5 * error(1)


def test_keys_travel_in_their_own_type():
    mesh = build_mesh(MeshShape(sequence=8))
    heads = jax.ShapeDtypeStruct((1, 128, 2, 16), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    program = str(jax.make_jaxpr(lambda *x: attention(*x, mesh=mesh))(heads, heads, heads, ids, ids))
    sent = [line for line in program.splitlines() if "ppermute" in line]
    assert sent
    assert not any("f32" in line for line in sent)


@pytest.mark.parametrize(
    ("rows", "length", "heads", "kv_heads", "message"),
    [
        (3, 32, 4, 2, "3 rows do not divide over the 2 devices"),
        (2, 31, 4, 2, "31 positions do not divide over the 2 devices"),
        (2, 32, 4, 1, "1 key heads do not divide over the 2 devices"),
        (2, 32, 3, 2, "3 query heads do not divide among 2 key heads"),
    ],
)
def test_what_does_not_fit_is_refused(rows, length, heads, kv_heads, message):
    case = make(rows, length, heads, kv_heads, packed=False)
    with pytest.raises(ValueError, match=message):
        attention(*case[:5], mesh=build_mesh(MeshShape(data=2, tensor=2, sequence=2)))


@pytest.mark.parametrize(("cores", "devices", "side"), [(1, 1, 256), (2, 1, 512), (2, 2, 256), (16, 2, 512)])
def test_blocks_are_larger_where_a_device_has_several_cores(monkeypatch, cores: int, devices: int, side: int):
    monkeypatch.setattr(blockwise, "usable_cores", lambda: cores)
    mesh = build_mesh(MeshShape(data=devices), jax.devices()[:devices])
    blocks = Blocks.choose(mesh, 4096)
    assert (blocks.query, blocks.key) == (side, side)
    assert Blocks.choose(mesh, 512).query == 128
