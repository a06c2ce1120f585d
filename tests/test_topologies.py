"""Topologies: the right weights are kept by brute force, defects are found, and what cannot be is refused."""

from itertools import combinations

import pytest
import torch

from sparsecl.mask_selection import completed, keep_blocks, select, tiles, violation
from sparsecl.masks import Masks, TopologyViolation, apply_masks, assert_pattern, check_model, load_masks, prunable_weights, save_masks
from sparsecl.topologies import Blocks, NofM, TopologyMisfit, Unstructured, attained_density, check_size, parse_topology

NAMES = ("1of4", "2of4", "3of4", "4of8", "6of8", "block16", "block32", "block64", "unstructured")


def random_scores(rows: int, inputs: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, inputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_names_are_read_and_written_alike(name):
    assert parse_topology(name).name == name


def test_a_name_says_non_zeros_of_a_group_and_size_of_a_block():
    assert parse_topology("1of4") == NofM(kept=1, group=4) and parse_topology("1of4").tile == (1, 4)
    assert parse_topology("block32") == Blocks(32) and parse_topology("block32").tile == (32, 32)
    assert parse_topology("unstructured") == Unstructured()


@pytest.mark.parametrize("name", ["", "2:4", "0of4", "4of4", "5of4", "2of", "of4", "block8", "block", "block16x", "2of4 ", "Unstructured"])
def test_other_names_are_refused_with_what_is_known(name):
    with pytest.raises(ValueError, match="is unknown; write NofM such as 2of4 or 6of8, block16, block32, block64, or unstructured"):
        parse_topology(name)


@pytest.mark.parametrize(("kept", "group"), [(1, 4), (2, 4), (3, 4), (4, 8), (6, 8)])
def test_of_every_group_the_best_weights_are_kept(kept, group):
    score = random_scores(6, 16)
    mask = select(NofM(kept, group), score, density=0.123)  # the pattern decides, not the density
    for values, chosen in zip(score.view(-1, group), mask.view(-1, group), strict=True):
        best = max(combinations(range(group), kept), key=lambda places, values=values: sum(float(values[place]) for place in places))
        assert tuple(torch.nonzero(chosen).flatten().tolist()) == best


@pytest.mark.parametrize("density", [0.25, 0.5, 0.75])
def test_of_every_block_row_the_blocks_of_the_highest_sum_are_kept(density):
    size, score = 4, random_scores(12, 16)
    mask = select(Blocks(size), score, density)
    count = round(density * 4)
    for row in range(0, 12, size):
        sums = [sum(float(score[i, j]) for i in range(row, row + size) for j in range(left, left + size)) for left in range(0, 16, size)]
        best = max(combinations(range(4), count), key=lambda blocks, sums=sums: sum(sums[block] for block in blocks))
        for i in range(row, row + size):
            assert [bool(kept) for kept in mask[i]] == [j // size in best for j in range(16)]


def test_the_sum_of_a_block_decides_not_its_best_weight():
    score = torch.cat([torch.eye(16) * 9.0, torch.full((16, 16), 1.0)], 1)  # sums 144 and 256
    assert select(Blocks(16), score, 0.5)[:, 16:].all()


@pytest.mark.parametrize("density", [0.1, 0.3, 0.5, 0.75, 0.9])
def test_unstructured_keeps_the_best_weights_of_every_output_row(density):
    score = random_scores(8, 40)
    mask = select(Unstructured(), score, density)
    for values, chosen in zip(score, mask, strict=True):
        assert int(chosen.sum()) == round(40 * density)  # 40 times each of these densities is whole
        assert values[chosen].min() > values[~chosen].max()


@pytest.mark.parametrize("density", [share / 20 for share in range(1, 20)])
def test_no_zero_of_a_row_is_lost_to_floating_point(density):
    assert 400 - Unstructured().kept_of(400, density) == 400 - round(400 * density)  # in floats 400 * (1 - 0.9) is below 40
    assert 30 - Unstructured().kept_of(30, density) == int(30 - round(30 * density, 6))  # what is no whole number is rounded down


@pytest.mark.parametrize("name", ["2of4", "4of8", "block16", "unstructured"])
def test_of_equal_scores_the_lower_index_stays(name):
    topology = parse_topology(name)
    mask = select(topology, torch.ones(16, 64), 0.5)
    period = {"2of4": 4, "4of8": 8}.get(name, 64)
    assert torch.equal(mask, (torch.arange(64) % period < period // 2).expand(16, 64))
    few = torch.randint(0, 3, (16, 64), generator=torch.Generator().manual_seed(1)).float()
    for values, chosen in zip(few.view(-1, period), select(topology, few, 0.5).view(-1, period), strict=True):
        if name != "block16":  # a block's ties are those of sums, above
            best = sorted(range(period), key=lambda place, values=values: (-float(values[place]), place))[: period // 2]
            assert sorted(best) == torch.nonzero(chosen).flatten().tolist()


@pytest.mark.parametrize(
    ("name", "rows", "inputs", "axis", "size"),
    [
        ("2of4", 6, 10, "inputs", 10),
        ("4of8", 6, 12, "inputs", 12),
        ("block16", 40, 32, "output rows", 40),
        ("block32", 32, 48, "inputs", 48),
    ],
)
def test_a_size_that_does_not_divide_is_named_with_its_layer(name, rows, inputs, axis, size):
    tile = parse_topology(name).tile[axis == "inputs"]
    with pytest.raises(TopologyMisfit, match=f"{name} needs {axis} divisible by {tile}, but mlp.up_proj has {size}"):
        check_size(parse_topology(name), "mlp.up_proj", rows, inputs)
    with pytest.raises(TopologyMisfit):
        select(parse_topology(name), torch.ones(rows, inputs), 0.5)


def test_sizes_that_divide_and_rows_of_any_number_pass():
    check_size(NofM(2, 4), "layer", 7, 8)
    check_size(Unstructured(), "layer", 7, 5)
    check_size(Blocks(16), "layer", 32, 48)


def test_a_model_is_refused_by_its_first_weight_that_does_not_divide(model):
    check_model(model, "block16")
    with pytest.raises(TopologyMisfit, match=r"output rows divisible by 32, but model\.layers\.0\.self_attn\.k_proj\.weight has 16"):
        check_model(model, "block32")


@pytest.mark.parametrize("blocks", range(1, 13))
def test_the_attained_density_of_blocks_is_the_nearest_possible_one(blocks):
    for density in [share / 100 for share in range(1, 100)]:
        attained = attained_density(Blocks(16), 16 * blocks, density)
        nearest = min(abs(kept / blocks - density) for kept in range(1, blocks + 1))
        assert abs(attained - density) == pytest.approx(nearest, abs=1e-12)
        mask = keep_blocks(Blocks(16), random_scores(2, blocks), density)
        assert float(mask.float().mean()) == pytest.approx(attained)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["2of4", "block16", "unstructured"])
def test_scores_that_are_not_finite_are_refused_with_their_number(name, value):
    score = random_scores(16, 32)
    score[3, 5] = score[7, 1] = value
    with pytest.raises(ValueError, match="2 scores are not finite; look at the weights and the calibration rows"):
        select(parse_topology(name), score, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_a_selected_mask_has_no_violation_and_needs_no_completion(name):
    topology = parse_topology(name)
    density = topology.kept / topology.group if isinstance(topology, NofM) else 0.5
    mask = select(topology, random_scores(128, 192), density)
    assert violation(topology, mask, density) is None
    assert torch.equal(completed(topology, mask, density), mask)


def test_one_weight_too_many_or_too_few_in_a_group_is_found():
    mask = select(NofM(2, 4), random_scores(16, 32), 0.5)
    place = torch.nonzero(~mask)[0]
    mask[tuple(place)] = True
    assert violation(NofM(2, 4), mask, 0.5) == "1 of 128 have not 2 kept weights of a group of 4"
    mask[5] = False
    assert violation(NofM(2, 4), mask, 0.5).startswith("9 of 128")


def test_a_block_kept_in_part_and_uneven_block_rows_are_found():
    mask = select(Blocks(16), random_scores(32, 64), 0.5)
    partial = mask.clone()
    partial[tuple(torch.nonzero(mask)[0])] = False
    assert violation(Blocks(16), partial, 0.5) == "1 of 8 blocks are kept in part"
    lone = mask.clone()
    lone[tuple(torch.nonzero(~mask)[0])] = True
    assert violation(Blocks(16), lone, 0.5) == "1 of 8 blocks are kept in part"
    row = tiles(Blocks(16), mask).sum((2, 3)) > 0
    uneven = row.clone()
    uneven[0], uneven[1] = torch.tensor([True, True, True, False]), torch.tensor([True, False, False, False])
    whole = uneven.repeat_interleave(16, 0).repeat_interleave(16, 1)
    assert whole.float().mean() == mask.float().mean()  # as dense as it should be, and yet wrong
    assert violation(Blocks(16), whole, 0.5) == "2 of 2 have not 2 kept of 4 blocks of a row"


def test_an_unstructured_mask_that_is_too_dense_is_found():
    mask = select(Unstructured(), random_scores(100, 400), 0.52)
    assert violation(Unstructured(), mask, 0.51) is None  # within the slack that SparseGPT's threshold needs
    assert violation(Unstructured(), mask, 0.5) == "0.520 of the weights are kept, more than 0.5"


def test_kept_weights_that_are_zero_are_filled_in_and_surplus_ones_stay():
    nonzero = torch.tensor([[False, False, True, False, True, True, True, False]])
    filled = completed(NofM(2, 4), nonzero, 0.5)
    assert filled.tolist() == [[True, False, True, False, True, True, True, False]]
    assert violation(NofM(2, 4), filled, 0.5) == "1 of 2 have not 2 kept weights of a group of 4"
    mask = select(Blocks(16), random_scores(32, 64), 0.5)
    holes = mask & (random_scores(32, 64, seed=2) > 0.2)
    assert torch.equal(completed(Blocks(16), holes, 0.5), mask)
    dead_block = mask.clone()
    dead_block[:16, int(torch.nonzero(mask[0])[0]) :][:, :16] = False
    assert violation(Blocks(16), completed(Blocks(16), dead_block, 0.5), 0.5) is None  # some block stands in for the dead one
    planted = mask.clone()
    planted[tuple(torch.nonzero(~mask)[0])] = True
    assert violation(Blocks(16), completed(Blocks(16), planted, 0.5), 0.5) is not None


@pytest.mark.parametrize("name", ["2of4", "block16", "unstructured"])
def test_applied_masks_leave_positive_zeros_and_the_kept_weights(model, name):
    weights = {key: -random_scores(*weight.shape) - 0.1 for key, weight in prunable_weights(model).items()}
    masks = Masks(name, "magnitude", 0.5, "", {key: select(parse_topology(name), -value, 0.5) for key, value in weights.items()})
    for key, weight in prunable_weights(model).items():
        weight.data.copy_(weights[key] * masks.weights[key])  # negative times False is -0.0
        assert torch.signbit(weight).all()
    apply_masks(model, masks)
    for key, weight in prunable_weights(model).items():
        assert torch.equal(torch.signbit(weight), masks.weights[key])
        assert torch.equal(weight[masks.weights[key]], weights[key][masks.weights[key]])


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_every_topology_round_trip_with_one_bit_a_weight(name, tmp_path):
    topology = parse_topology(name)
    density = topology.kept / topology.group if isinstance(topology, NofM) else 0.5
    stacked = torch.stack([select(topology, random_scores(64, 128, seed=expert), density) for expert in range(3)])
    weights = {"model.layers.0.mlp.experts.gate_up_proj": stacked, "model.layers.0.mlp.up_proj.weight": stacked[1]}
    masks = Masks(name, "wanda", density, "0f" * 32, weights)
    save_masks(masks, tmp_path / "arm")
    loaded = load_masks(tmp_path / "arm")
    assert (loaded.topology, loaded.algorithm, loaded.nominal_density, loaded.calibration) == (name, "wanda", density, "0f" * 32)
    assert loaded.weights.keys() == weights.keys()
    assert all(torch.equal(loaded.weights[key], mask) for key, mask in weights.items())
    assert loaded.density == masks.density == pytest.approx(density, abs=1e-3)
    assert masks.size / 8 < (tmp_path / "arm.safetensors").stat().st_size < masks.size / 8 + 500  # the rest is the header


def test_a_defect_of_one_expert_is_found_behind_its_parameter_name():
    stacked = torch.stack([select(Blocks(16), random_scores(32, 64, seed=expert), 0.5) for expert in range(3)])
    assert_pattern(Masks("block16", "wanda", 0.5, "", {"mlp.experts.down_proj": stacked}))
    stacked[2, 0, 0] ^= True
    with pytest.raises(TopologyViolation, match="mlp.experts.down_proj: 1 of 24 blocks are kept in part; convert again"):
        assert_pattern(Masks("block16", "wanda", 0.5, "", {"mlp.experts.down_proj": stacked}))


def test_experts_whose_block_rows_would_run_into_each_other_are_refused():
    """Two experts of 24 rows lie one below the other as 48 rows, which 16 divides; no expert's own rows do."""
    with pytest.raises(TopologyViolation, match="block16 needs output rows divisible by 16, but mlp.experts.down_proj has 24"):
        assert_pattern(Masks("block16", "wanda", 0.5, "", {"mlp.experts.down_proj": torch.ones(2, 24, 32, dtype=torch.bool)}))
