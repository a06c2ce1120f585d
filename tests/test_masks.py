"""Masks: exact patterns by brute force, physical zeros through training, saving and loading, tampering noticed."""

import json
import weakref

import numpy as np
import pytest
import torch

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, compressor_structure, convert
from sparsecl.masks import (
    Masks,
    TopologyViolation,
    apply_masks,
    assert_masks,
    assert_pattern,
    load_masks,
    masks_of_zeros,
    prunable_weights,
    save_masks,
)
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.packed_masks import PackedMasks
from sparsecl.records import BrokenFile
from sparsecl.settings import Optimisation, Sparsify
from sparsecl.topologies import parse_topology
from sparsecl.training import plan_batches, train

ARM = parse_arm("S0-2of4")


def kept_per_group(weight: torch.Tensor, group: int) -> set[int]:
    """Non-zeros of every group, counted one by one."""
    return {sum(1 for value in row[start : start + group] if value != 0) for row in weight.tolist() for start in range(0, len(row), group)}


def by_sparsegpt(model, arm, rows, tokenizer):
    data = ConversionData(rows, tokenizer, (), lambda steps, batch: [], seed=0)
    return convert(model, arm, Sparsify(algorithm="sparsegpt", calibration_rows=len(rows)), data)


@pytest.fixture
def converted(model, rows, tokenizer):
    return model, by_sparsegpt(model, ARM, rows[:32], tokenizer)


def test_conversion_keeps_exactly_two_of_four_in_every_layer_and_spares_the_head(model, request):
    head = model.lm_head.weight.detach().clone()
    model, masks = request.getfixturevalue("converted")
    assert len(masks.weights) == 14  # seven linear layers in each of two decoder layers
    for name, weight in prunable_weights(model).items():
        assert kept_per_group(weight, 4) == {2}, name
    assert torch.equal(model.lm_head.weight, head) and (head[1:] != 0).all()  # row 0 is padding
    assert masks.density == 0.5


@pytest.mark.parametrize(
    ("topology", "structure"),
    [("1of4", "3:4"), ("2of4", "2:4"), ("6of8", "2:8"), ("4of8", "4:8"), ("unstructured", "0:0"), ("block16", "0:0")],
)
def test_n_of_m_counts_non_zeros_where_the_compressor_counts_zeros(topology, structure):
    assert compressor_structure(parse_topology(topology)) == structure


def test_one_of_four_really_keeps_one(model, rows, tokenizer):
    masks = by_sparsegpt(model, parse_arm("S0-1of4"), rows[:16], tokenizer)
    assert {count for weight in prunable_weights(model).values() for count in kept_per_group(weight, 4)} == {1}
    assert masks.density == 0.25


def test_a_kept_weight_that_is_zero_is_kept_not_masked(model):
    """Ties and dead weights: a group with too many zeros is filled up from the lowest index."""
    for weight in prunable_weights(model).values():
        weight.data = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(weight.shape[1] // 4).repeat(weight.shape[0], 1)
    masks = masks_of_zeros(model, "2of4", "sparsegpt", 0.5, "")
    expected = torch.tensor([True, False, False, True])
    assert all((mask.view(-1, 4) == expected).all() for mask in masks.weights.values())


def test_a_group_with_too_many_weights_is_a_violation():
    weights = {"layer.weight": torch.tensor([[True, True, True, False]])}
    with pytest.raises(TopologyViolation, match="layer.weight: 1 of 1 have not 2 kept weights of a group of 4; convert again"):
        assert_pattern(Masks("2of4", "sparsegpt", 0.5, "", weights))
    with pytest.raises(TopologyViolation, match="2of4 needs inputs divisible by 4, but layer.weight has 6"):
        assert_pattern(Masks("2of4", "sparsegpt", 0.5, "", {"layer.weight": torch.ones(2, 6, dtype=torch.bool)}))


def test_zeros_survive_adamw_with_decay_and_clipping_saving_and_loading(converted, rows, tmp_path):
    model, masks = converted
    before = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    settings = Optimisation(steps=20, batch=16, learning_rate=1e-2, weight_decay=0.1, clip=1.0)
    train(
        model,
        rows,
        plan_batches([len(row.ids) for row in rows], 20, 16, np.random.default_rng(1)),
        settings,
        description="test",
        masks=masks,
    )
    for name, weight in prunable_weights(model).items():
        mask = masks.weights[name]
        assert torch.equal(weight[~mask], torch.zeros_like(weight[~mask])), name
        assert (weight[mask] != before[name][mask]).float().mean() > 0.9  # the kept ones do train
    save_checkpoint(model, tmp_path / "S1", masks, arm="S1-2of4", key="k")
    loaded = load_checkpoint(tmp_path / "S1", masks)
    for name, weight in prunable_weights(loaded).items():
        assert torch.equal(weight, prunable_weights(model)[name])


def test_without_masks_the_same_training_fills_the_zeros(converted, rows):
    """The test above can fail: unmasked training breaks the topology."""
    model, masks = converted
    settings = Optimisation(steps=3, batch=16, learning_rate=1e-2)
    train(model, rows, plan_batches([len(row.ids) for row in rows], 3, 16, np.random.default_rng(1)), settings, description="test")
    with pytest.raises(TopologyViolation, match="masked weights of .* are non-zero"):
        assert_masks(model, masks, "after unmasked training")


def test_masks_round_trip_with_one_bit_a_weight(converted, tmp_path):
    _, masks = converted
    save_masks(masks, tmp_path / "2of4")
    loaded = load_masks(tmp_path / "2of4")
    assert loaded.weights.keys() == masks.weights.keys()
    assert all(torch.equal(loaded.weights[name], mask) for name, mask in masks.weights.items())
    assert (tmp_path / "2of4.safetensors").stat().st_size < masks.size / 8 + 3000  # the rest is the header


def test_a_hand_edited_mask_or_manifest_is_refused(converted, tmp_path):
    _, masks = converted
    save_masks(masks, tmp_path / "2of4")
    bits = tmp_path / "2of4.safetensors"
    content = bytearray(bits.read_bytes())
    content[-1] ^= 1
    bits.write_bytes(content)
    with pytest.raises(BrokenFile, match="not the file its manifest describes"):
        load_masks(tmp_path / "2of4")
    save_masks(masks, tmp_path / "2of4")
    manifest = json.loads((tmp_path / "2of4.json").read_text())
    (tmp_path / "2of4.json").write_text(json.dumps({**manifest, "topology": "4of8"}))
    with pytest.raises(BrokenFile, match="was changed after it was written"):
        load_masks(tmp_path / "2of4")


def test_applying_masks_gives_positive_zeros(model):
    weights = {name: torch.zeros_like(weight, dtype=torch.bool) for name, weight in prunable_weights(model).items()}
    for weight in prunable_weights(model).values():
        weight.data.fill_(-1.0)
    apply_masks(model, Masks("2of4", "sparsegpt", 0.5, "", weights))
    assert not any(torch.signbit(weight).any() for weight in prunable_weights(model).values())


def test_saving_refuses_a_model_that_breaks_its_masks(converted, tmp_path):
    model, masks = converted
    name, weight = next(iter(prunable_weights(model).items()))
    weight.data[~masks.weights[name]] = 1.0
    with pytest.raises(TopologyViolation, match="before saving S1"):
        save_checkpoint(model, tmp_path / "S1", masks, arm="S1-2of4")
    assert not (tmp_path / "S1").exists()


def test_packed_masks_are_the_masks_and_only_one_is_whole_at_a_time():
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.rand(shape, generator=generator) < 0.5 for name, shape in {"a": (3, 5), "b": (2, 4, 7)}.items()}
    alive = []

    def made():
        for name, mask in given.items():
            copy = mask.clone()
            alive.append(weakref.ref(copy))
            yield name, copy
            del copy
            assert alive[-1]() is None  # packed and let go before the next one is made

    packed = PackedMasks(made())
    assert list(packed) == list(given) and all(torch.equal(packed[name], mask) for name, mask in given.items())
    packed["a"].logical_not_()
    assert torch.equal(packed["a"], given["a"])  # what is looked up is a copy
    again = PackedMasks.of_bits({name: np.packbits(mask.numpy()) for name, mask in given.items()}, {"a": [3, 5], "b": [2, 4, 7]})
    assert all(torch.equal(again[name], mask) for name, mask in given.items())
