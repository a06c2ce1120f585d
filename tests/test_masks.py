"""Masks: exact patterns by brute force, physical zeros through training, saving and loading, tampering noticed."""

import json

import numpy as np
import pytest
import torch

from sparsecl.arms import parse_arm
from sparsecl.config import Optimisation, Sparsify
from sparsecl.conversion import compressor_structure, convert
from sparsecl.masks import (
    Masks,
    TopologyViolation,
    apply_masks,
    assert_masks,
    assert_pattern,
    load_masks,
    masks_of_zeros,
    prunable_layers,
    save_masks,
)
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.records import BrokenFile
from sparsecl.training import plan_batches, train

ARM = parse_arm("S0-2of4")


def kept_per_group(weight: torch.Tensor, group: int) -> set[int]:
    """Non-zeros of every group, counted one by one."""
    return {sum(1 for value in row[start : start + group] if value != 0) for row in weight.tolist() for start in range(0, len(row), group)}


@pytest.fixture
def converted(model, rows, tokenizer):
    masks = convert(model, ARM, Sparsify(algorithm="sparsegpt", calibration_rows=32), rows[:32], tokenizer)
    return model, masks


def test_conversion_keeps_exactly_two_of_four_in_every_layer_and_spares_the_head(model, request):
    head = model.lm_head.weight.detach().clone()
    model, masks = request.getfixturevalue("converted")
    assert len(masks.layers) == 14  # seven linear layers in each of two decoder layers
    for name, layer in prunable_layers(model).items():
        assert kept_per_group(layer.weight, 4) == {2}, name
    assert torch.equal(model.lm_head.weight, head) and (head[1:] != 0).all()  # row 0 is padding
    assert masks.density == 0.5


@pytest.mark.parametrize(("topology", "structure"), [("1of4", "3:4"), ("2of4", "2:4"), ("6of8", "2:8"), ("4of8", "4:8")])
def test_n_of_m_counts_non_zeros_where_the_compressor_counts_zeros(topology, structure):
    assert compressor_structure(topology) == structure


def test_one_of_four_really_keeps_one(model, rows, tokenizer):
    import sparsecl.arms

    arm = sparsecl.arms.Arm("S0-1of4", "S0", "1of4", "sparsegpt", 0.25)
    masks = convert(model, arm, Sparsify(algorithm="sparsegpt", calibration_rows=16), rows[:16], tokenizer)
    assert {count for layer in prunable_layers(model).values() for count in kept_per_group(layer.weight, 4)} == {1}
    assert masks.density == 0.25


@pytest.mark.parametrize("structure", ["4:4", "0of4", "block16", "2of"])
def test_topologies_without_a_structure_are_refused(structure):
    with pytest.raises(ValueError, match="keep at least 1|known here"):
        compressor_structure(structure.replace(":", "of"))


def test_a_kept_weight_that_is_zero_is_kept_not_masked(model):
    """Ties and dead weights: a group with too many zeros is filled up from the lowest index."""
    for layer in prunable_layers(model).values():
        pattern = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(layer.weight.shape[1] // 4)
        layer.weight.data = pattern.repeat(layer.weight.shape[0], 1)
    masks = masks_of_zeros(model, "2of4", "sparsegpt", "none")
    expected = torch.tensor([True, False, False, True])
    assert all((mask.view(-1, 4) == expected).all() for mask in masks.layers.values())


def test_a_group_with_too_many_weights_is_a_violation():
    layers = {"layer": torch.tensor([[True, True, True, False]])}
    with pytest.raises(TopologyViolation, match="1 of 1 groups have not 2 of 4"):
        assert_pattern(Masks("2of4", "sparsegpt", "none", layers))
    with pytest.raises(TopologyViolation, match="6 inputs do not divide into groups of 4"):
        assert_pattern(Masks("2of4", "sparsegpt", "none", {"layer": torch.ones(2, 6, dtype=torch.bool)}))


def test_zeros_survive_adamw_with_decay_and_clipping_saving_and_loading(converted, rows, tmp_path):
    model, masks = converted
    before = {name: layer.weight.detach().clone() for name, layer in prunable_layers(model).items()}
    settings = Optimisation(steps=20, batch=16, learning_rate=1e-2, weight_decay=0.1, clip=1.0)
    train(
        model,
        rows,
        plan_batches([len(row.ids) for row in rows], 20, 16, np.random.default_rng(1)),
        settings,
        description="test",
        masks=masks,
    )
    for name, layer in prunable_layers(model).items():
        mask = masks.layers[name]
        assert torch.equal(layer.weight[~mask], torch.zeros_like(layer.weight[~mask])), name
        assert (layer.weight[mask] != before[name][mask]).float().mean() > 0.9  # the kept ones do train
    save_checkpoint(model, tmp_path / "S1", masks, arm="S1-2of4", key="k")
    loaded = load_checkpoint(tmp_path / "S1", masks)
    for name, layer in prunable_layers(loaded).items():
        assert torch.equal(layer.weight, prunable_layers(model)[name].weight)


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
    assert loaded.layers.keys() == masks.layers.keys()
    assert all(torch.equal(loaded.layers[name], mask) for name, mask in masks.layers.items())
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
    layers = {name: torch.zeros_like(layer.weight, dtype=torch.bool) for name, layer in prunable_layers(model).items()}
    for layer in prunable_layers(model).values():
        layer.weight.data.fill_(-1.0)
    apply_masks(model, Masks("2of4", "sparsegpt", "none", layers))
    assert not any(torch.signbit(layer.weight).any() for layer in prunable_layers(model).values())


def test_saving_refuses_a_model_that_breaks_its_masks(converted, tmp_path):
    model, masks = converted
    name, layer = next(iter(prunable_layers(model).items()))
    layer.weight.data[~masks.layers[name]] = 1.0
    with pytest.raises(TopologyViolation, match="before saving S1"):
        save_checkpoint(model, tmp_path / "S1", masks, arm="S1-2of4")
    assert not (tmp_path / "S1").exists()
