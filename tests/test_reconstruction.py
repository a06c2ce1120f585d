"""Errors of converted layers, kept energy and input spread, by hand and by planted truth."""

import copy

import numpy as np
import pytest
import torch

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.masks import prunable_weights
from sparsecl.reconstruction import kept_energy, layer_inputs, prunable_linears
from sparsecl.settings import Sparsify


@pytest.fixture
def rows_of(rows):
    return rows[:6]


def converted(model, arm: str, rows, tokenizer):
    copied = copy.deepcopy(model)
    settings, data = Sparsify(algorithm="sparsegpt", calibration_rows=6), ConversionData(rows, tokenizer, (), lambda steps, batch: [], 0)
    masks = convert(copied, parse_arm(arm), settings, data)
    return copied, masks


def test_an_unchanged_model_has_no_error_and_a_halved_one_a_quarter(model, rows_of):
    halved = copy.deepcopy(model)
    for linear in prunable_linears(halved).values():
        linear.weight.data.mul_(0.5)
    errors, _ = layer_inputs(model, {"same": model, "halved": halved}, rows_of)
    assert errors["same"] == 0
    assert errors["halved"] == pytest.approx(0.25, rel=1e-5)


def test_error_and_spread_agree_with_every_layer_computed_by_hand(model, rows_of):
    changed = copy.deepcopy(model)
    for linear in prunable_linears(changed).values():
        linear.weight.data[:, 0] = 0
    inputs: dict[str, list] = {}
    for name, linear in prunable_linears(model).items():
        linear.register_forward_hook(lambda _, given, __, name=name: inputs.setdefault(name, []).append(given[0][0]))
    errors, spread = layer_inputs(model, {"changed": changed}, rows_of)
    by_hand, spreads = [], []
    for name, linear in prunable_linears(model).items():
        seen = torch.cat(inputs[name])
        removed = torch.outer(seen[:, 0], linear.weight[:, 0].detach())
        by_hand.append(float(removed.square().sum() / (seen @ linear.weight.detach().T).square().sum()))
        norms = seen.norm(dim=0)
        spreads.append(float(norms.std() / norms.mean()))
    assert errors["changed"] == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert spread == pytest.approx(np.mean(spreads), rel=1e-4)


def test_magnitude_keeps_the_most_squared_weight_and_errs_less_than_chance(model, rows_of, tokenizer):
    """The best two of every four squares are the most a 2:4 mask can keep."""
    found = {arm: converted(model, f"S0-2of4-{arm}", rows_of, tokenizer) for arm in ("magnitude", "random")}
    energy = {name: kept_energy(model, masks) for name, (_, masks) in found.items()}
    assert energy["magnitude"] > energy["random"]
    assert energy["random"] == pytest.approx(0.5, abs=0.05)
    best = [
        weight.detach().reshape(-1, 4).square().sort(1).values[:, 2:].sum() / weight.detach().square().sum()
        for weight in prunable_weights(model).values()
    ]
    assert energy["magnitude"] == pytest.approx(float(np.mean(best)), rel=1e-5)
    errors, _ = layer_inputs(model, {name: copied for name, (copied, _) in found.items()}, rows_of)
    assert errors["magnitude"] < errors["random"]
