"""Tiny random twins of the Qwen3.5 models: conversion, masked training, saving and loading, dense and with experts."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.mask_selection import violation
from sparsecl.maskllm import learn_masks
from sparsecl.masks import Masks, as_matrix, assert_masks, check_model, prunable_weights
from sparsecl.settings import MaskLearning, Optimisation, Sparsify, WandaPlusPlus
from sparsecl.tokenizer import Row
from sparsecl.topologies import TopologyMisfit, parse_topology
from sparsecl.training import plan_batches, train

SHAPE = {
    "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "max_position_embeddings": 64,
}  # fmt: skip
EXPERTS = 4
SETTINGS = Sparsify(algorithm="sparsegpt", calibration_rows=4, wandaplusplus=WandaPlusPlus(rounds=1, samples=2, learning_rate=1e-4))
STAY_DENSE = (
    "mlp.gate.weight",
    "shared_expert_gate",
    "in_proj_a",
    "in_proj_b",
    "lm_head",
    "embed_tokens",
    "conv1d",
    "norm",
    "A_log",
    "dt_bias",
)


def dense_twin(vocabulary: int) -> nn.Module:
    torch.manual_seed(0)
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(vocab_size=vocabulary, intermediate_size=96, **SHAPE))


def expert_twin(vocabulary: int, intermediate: int = 32) -> nn.Module:
    torch.manual_seed(0)
    experts = {
        "moe_intermediate_size": intermediate,
        "shared_expert_intermediate_size": 32,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
    }
    return Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(vocab_size=vocabulary, **experts, **SHAPE))


TWINS = {"dense": dense_twin, "experts": expert_twin}


def data_of(rows: list[Row], tokenizer) -> ConversionData:
    return ConversionData(rows, tokenizer, (), lambda steps, batch: [], 3)


def train_under(model: nn.Module, masks: Masks, rows: list[Row], steps: int = 3) -> None:
    settings = Optimisation(steps=steps, batch=4, learning_rate=1e-2, weight_decay=0.1)
    plan = plan_batches([len(row.ids) for row in rows], steps, 4, np.random.default_rng(0))
    train(model, rows, plan, settings, description="twin", masks=masks)


@pytest.mark.parametrize("kind", TWINS)
def test_a_twin_has_both_kinds_of_layers_and_its_prunable_weights_are_known(kind, tokenizer):
    model = TWINS[kind](len(tokenizer))
    assert set(model.config.layer_types) == {"linear_attention", "full_attention"}
    names = {name.split(".", 3)[3] for name in prunable_weights(model)}
    attention = {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    delta = {f"linear_attn.{part}.weight" for part in ("in_proj_qkv", "in_proj_z", "out_proj")}
    three = ("gate_proj", "up_proj", "down_proj")
    if kind == "dense":
        assert names == attention | delta | {f"mlp.{part}.weight" for part in three}
    else:
        shared = {f"mlp.shared_expert.{part}.weight" for part in three}
        assert names == attention | delta | shared | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
    rest = [name for name, _ in model.named_parameters() if name not in prunable_weights(model)]
    assert all(any(kept in name for kept in STAY_DENSE) for name in rest)


ARMS = (
    "2of4-magnitude", "block16-magnitude", "2of4-wanda", "block16-wanda", "unstructured-wanda",
    "2of4-sparsegpt", "block16-sparsegpt", "2of4-wanda++", "block16-wanda++",
)  # fmt: skip


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("kind", TWINS)
def test_a_converted_twin_keeps_its_zeros_through_training_saving_and_loading(kind, arm, rows, tokenizer, tmp_path):
    model = TWINS[kind](len(tokenizer))
    dense = copy.deepcopy(model)
    masks = convert(model, parse_arm(f"S0-{arm}"), SETTINGS, data_of(rows[:4], tokenizer))
    topology = parse_topology(masks.topology)
    assert masks.weights.keys() == prunable_weights(dense).keys()
    for name, weight in prunable_weights(model).items():
        for matrix in weight.detach().reshape(-1, *weight.shape[-2:]):  # every expert by itself
            assert violation(topology, matrix != 0, 0.5) is None, name
    for (name, parameter), before in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert name in masks.weights or torch.equal(parameter, before), name
    converted = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    train_under(model, masks, rows)  # asserts the masks at its end
    moved = [float((parameter != converted[name]).float().mean()) for name, parameter in prunable_weights(model).items()]
    assert all(0.2 < share <= 0.51 for share in moved)  # kept weights train, of unreached experts only decay moves them
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert_masks(loaded, masks, "after loading")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("arm", ["2of4-wanda", "2of4-sparsegpt", "block16-sparsegpt", "unstructured-sparsegpt", "2of4-wanda++"])
def test_experts_that_no_calibration_token_is_routed_to_are_pruned_not_erased(arm, rows, tokenizer):
    model = expert_twin(len(tokenizer))
    row = Row(rows[0].ids[:2], 1)
    reached: dict[str, set[int]] = {}
    for name, module in model.named_modules():
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_hook(
                lambda _, __, output, name=name: reached.setdefault(name, set()).update(output[2].flatten().tolist())
            )
    with torch.no_grad():
        model(torch.from_numpy(row.ids)[None])
    assert len(reached) == 4 and any(len(experts) < EXPERTS for experts in reached.values())
    model = expert_twin(len(tokenizer))
    masks = convert(model, parse_arm(f"S0-{arm}"), SETTINGS, data_of([row, row], tokenizer))
    for name, weight in prunable_weights(model).items():
        kept = (weight.detach() != 0).reshape(-1, *weight.shape[-2:]).float().mean((1, 2))
        assert ((kept > 0.4) & (kept < 0.52)).all(), name
    assert masks.density == pytest.approx(0.5, abs=0.02)


def test_masks_of_stacked_experts_are_learned_where_they_lie(rows, tokenizer):
    model = expert_twin(len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prior = convert(copy.deepcopy(model), parse_arm("S0-2of4-magnitude"), SETTINGS, data_of(rows[:4], tokenizer))
    learning = MaskLearning(training=Optimisation(steps=3, batch=4, learning_rate=1e-2))
    plan = plan_batches([len(row.ids) for row in rows], 3, 4, np.random.default_rng(0))
    learned = learn_masks(model, dict(prior.weights), parse_topology("2of4"), rows, plan, learning, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for name, mask in learned.items():
        assert mask.shape == prior.weights[name].shape and violation(parse_topology("2of4"), as_matrix(mask), 0.5) is None
        assert 0 < float((mask != prior.weights[name]).float().mean()) < 0.5  # still near the prior, and yet moved


def test_gate_and_up_of_an_expert_are_two_matrices_for_a_block(tokenizer):
    """48 rows of gate and up together divide by 16, but the 24 of each do not: refused before the compressor takes them apart."""
    model = expert_twin(len(tokenizer), intermediate=24)
    assert as_matrix(prunable_weights(model)["model.layers.0.mlp.experts.gate_up_proj"]).shape == (48 * EXPERTS, 64)
    with pytest.raises(TopologyMisfit, match=r"output rows divisible by 16, but model\.layers\.0\.mlp\.experts\.gate_up_proj has 24"):
        check_model(model, "block16")
    check_model(model, "4of8")
