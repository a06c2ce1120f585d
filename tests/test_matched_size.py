"""Matched non-zeros: counts against real models and masks, and the check and the search that rest on them."""

import subprocess
import sys

import pytest
from conftest import MAX_LENGTH

from sparsecl.mask_selection import select
from sparsecl.masks import Masks, apply_masks, prunable_weights
from sparsecl.matched_size import (
    MOST_DIFFERENCE,
    MULTIPLE,
    check_matched,
    dense_parameters,
    relative_difference,
    sparse_nonzeros,
    suggest_narrow,
)
from sparsecl.modeling import build_model, parameter_count
from sparsecl.settings import Model
from sparsecl.topologies import TopologyMisfit, parse_topology

VOCABULARY = 320
WIDE = Model(family="qwen3", hidden=64, ffn=128, layers=2, heads=4, kv_heads=2, head_dim=32)
SHAPES = [
    WIDE,
    WIDE.model_copy(update={"hidden": 36, "ffn": 52, "layers": 3}),
    WIDE.model_copy(update={"heads": 2, "kv_heads": 1, "head_dim": 16}),
    WIDE.model_copy(update={"heads": 6, "kv_heads": 6, "layers": 1}),
]


def built(shape: Model):
    return build_model(shape, VOCABULARY, MAX_LENGTH, seed=0, special_ids={"pad_token_id": 0})


def neighbours(model: Model) -> list[Model]:
    """All shapes that may be cut from a base, by brute force."""
    group = model.heads // model.kv_heads
    return [
        model.model_copy(update={"hidden": hidden, "ffn": neurons, "heads": groups * group, "kv_heads": groups})
        for hidden in range(MULTIPLE, model.hidden + 1, MULTIPLE)
        for neurons in range(MULTIPLE, model.ffn + 1, MULTIPLE)
        for groups in range(1, model.kv_heads + 1)
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_closed_form_counts_what_a_model_has(shape):
    assert dense_parameters(shape, VOCABULARY) == parameter_count(built(shape))


def test_the_published_size_of_qwen3_0_6b_is_met():
    qwen = Model(family="qwen3", hidden=1024, ffn=3072, layers=28, heads=16, kv_heads=8, head_dim=128)
    assert dense_parameters(qwen, 151_936) == 596_049_920


@pytest.mark.parametrize(
    ("topology", "density"),
    [("2of4", 0.5), ("1of4", 0.25), ("6of8", 0.75), ("block16", 0.5), ("block16", 0.6), ("block32", 0.75), ("unstructured", 0.8)],
)
def test_non_zeros_are_what_masks_leave(topology, density):
    model, structure = built(WIDE), parse_topology(topology)
    masks = Masks(
        topology, "magnitude", density, "", {n: select(structure, w.detach().abs(), density) for n, w in prunable_weights(model).items()}
    )
    before = {name: int((parameter != 0).sum()) for name, parameter in model.named_parameters()}
    apply_masks(model, masks)
    removed = sum(before[name] - int((parameter != 0).sum()) for name, parameter in model.named_parameters())
    assert sparse_nonzeros(WIDE, VOCABULARY, density, topology) == parameter_count(model) - removed


def test_at_half_density_one_count_serves_every_topology():
    names = ("unstructured", "2of4", "4of8", "block16", "block32")
    assert len({sparse_nonzeros(WIDE, VOCABULARY, 0.5, name) for name in names}) == 1


def test_a_topology_that_does_not_fit_is_refused():
    with pytest.raises(TopologyMisfit, match="block64 needs inputs divisible by 64"):
        sparse_nonzeros(WIDE.model_copy(update={"hidden": 96}), VOCABULARY, 0.5, "block64")


def test_a_matched_shape_passes_and_one_beyond_a_percent_is_refused_with_both_counts():
    wanted = sparse_nonzeros(WIDE, VOCABULARY, 0.5)
    by_distance = sorted(neighbours(WIDE), key=lambda shape: abs(dense_parameters(shape, VOCABULARY) - wanted))
    inside = [shape for shape in by_distance if abs(dense_parameters(shape, VOCABULARY) - wanted) <= 0.01 * wanted]
    check_matched(inside[-1], WIDE, VOCABULARY, 0.5)
    outside = by_distance[len(inside)]
    count = dense_parameters(outside, VOCABULARY)
    with pytest.raises(ValueError, match=rf"{count} parameters.*{wanted} non-zeros: [+-]1\.\d\d% apart"):
        check_matched(outside, WIDE, VOCABULARY, 0.5)


def test_the_check_uses_the_density_a_topology_attains():
    check_matched(WIDE, WIDE, VOCABULARY, 0.75, "block64")  # of one or two blocks in a row, three quarters are all
    with pytest.raises(ValueError, match="apart"):
        check_matched(WIDE, WIDE, VOCABULARY, 0.75)


def test_the_difference_is_signed_and_relative_to_the_non_zeros():
    difference = relative_difference(WIDE, WIDE, VOCABULARY, 0.5)
    assert difference == dense_parameters(WIDE, VOCABULARY) / sparse_nonzeros(WIDE, VOCABULARY, 0.5) - 1 > 0.3


@pytest.mark.parametrize("density", [0.5, 0.6, 0.75])
def test_suggestions_are_the_nearest_of_all_shapes_for_each_width_and_group(density):
    nearest: dict[tuple[int, int], float] = {}
    for shape in neighbours(WIDE):
        distance = abs(relative_difference(shape, WIDE, VOCABULARY, density))
        key = (shape.hidden, shape.kv_heads)
        nearest[key] = min(distance, nearest.get(key, distance))
    found = suggest_narrow(WIDE, VOCABULARY, density)
    assert {(shape.hidden, shape.kv_heads) for shape in found} == {key for key, distance in nearest.items() if distance <= MOST_DIFFERENCE}
    for shape in found:
        assert shape.hidden % MULTIPLE == shape.ffn % MULTIPLE == 0 and shape.heads == 2 * shape.kv_heads and shape.head_dim == 32
        assert abs(relative_difference(shape, WIDE, VOCABULARY, density)) == nearest[shape.hidden, shape.kv_heads]


def test_the_first_suggestion_keeps_the_proportions_of_the_base_best():
    def distortion(shape: Model) -> float:
        shares = (shape.hidden / WIDE.hidden, shape.ffn / WIDE.ffn, shape.heads / WIDE.heads)
        return max(shares) / min(shares)

    found = suggest_narrow(WIDE, VOCABULARY, 0.5)
    assert [distortion(shape) for shape in found] == sorted(distortion(shape) for shape in found)
    assert found == suggest_narrow(WIDE, VOCABULARY, 0.5)


def test_at_full_density_the_base_itself_comes_first():
    assert suggest_narrow(WIDE, VOCABULARY, 1.0)[0] == WIDE


def test_where_nothing_fits_the_search_says_so():
    tiny = Model(family="qwen3", hidden=4, ffn=4, layers=1, heads=1, kv_heads=1, head_dim=4)
    with pytest.raises(ValueError, match="no shape with sizes in multiples of 4 has within 1% of"):
        suggest_narrow(tiny, VOCABULARY, 0.5)


def test_planning_needs_no_torch():
    subprocess.run([sys.executable, "-c", "import sys, sparsecl.matched_size; assert 'torch' not in sys.modules"], check=True)
