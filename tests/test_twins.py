"""Tiny random twins of the Qwen3.5 models, dense and with experts: every topology from conversion to reload, by every algorithm."""

import copy
from collections.abc import Iterator, Mapping
from itertools import product

import llmcompressor
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen3_5ForCausalLM, Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig, Qwen3_5TextConfig

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.mask_selection import violation
from sparsecl.maskllm import learn_masks
from sparsecl.masks import Masks, as_matrix, assert_masks, check_model, load_masks, prunable_weights, save_masks
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.settings import MaskLearning, Optimisation, Sparsify, WandaPlusPlus
from sparsecl.tokenizer import Row
from sparsecl.topologies import MASKLLM_TOPOLOGIES, TopologyMisfit, parse_topology
from sparsecl.training import TrainingLog, plan_batches, train

# A topology as arms name it, and the share of every matrix that it keeps in the twins.
TOPOLOGIES = {
    "1of4": 0.25, "2of4": 0.5, "3of4": 0.75, "2of8": 0.25, "4of8": 0.5, "6of8": 0.75,
    "block16": 0.5, "block16-d0.75": 0.75, "block32": 0.5, "block64": 0.5,
    "unstructured": 0.5, "unstructured-d0.75": 0.75,
}  # fmt: skip
EXPERTS, EXPERTS_PER_TOKEN = 5, 2
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
LEARNING = MaskLearning(training=Optimisation(steps=3, batch=4, learning_rate=1e-2))
SETTINGS = Sparsify(
    algorithm="sparsegpt",
    calibration_rows=2,
    wandaplusplus=WandaPlusPlus(rounds=1, samples=2, learning_rate=1e-4),
    maskllm=LEARNING,
)


def shape(unit: int) -> dict:
    """One layer of each kind; every prunable matrix divides into at least two blocks of `unit` in a row of blocks."""
    return {
        "hidden_size": 2 * unit, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": unit,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": unit, "linear_value_head_dim": unit,
        "max_position_embeddings": 64,
    }  # fmt: skip


def dense_twin(vocabulary: int, unit: int = 32) -> nn.Module:
    torch.manual_seed(0)
    return Qwen3_5ForCausalLM(Qwen3_5TextConfig(vocab_size=vocabulary, intermediate_size=4 * unit, **shape(unit)))


def expert_twin(vocabulary: int, unit: int = 32, intermediate: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    experts = {
        "moe_intermediate_size": intermediate or 2 * unit,
        "shared_expert_intermediate_size": 2 * unit,
        "num_experts": EXPERTS,
        "num_experts_per_tok": EXPERTS_PER_TOKEN,
    }
    return Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(vocab_size=vocabulary, **experts, **shape(unit)))


TWINS = {"dense": dense_twin, "experts": expert_twin}


def twin_for(kind: str, topology: str, tokenizer) -> nn.Module:
    return TWINS[kind](len(tokenizer), 64 if topology == "block64" else 32)


def data_of(calibration: list[Row], tokenizer, training: list[Row] = ()) -> ConversionData:
    lengths = [len(row.ids) for row in training]
    return ConversionData(
        calibration, tokenizer, training, lambda steps, batch: plan_batches(lengths, steps, batch, np.random.default_rng(0)), 3
    )


def train_under(model: nn.Module, masks: Masks, rows: list[Row], steps: int = 3) -> TrainingLog:
    settings = Optimisation(steps=steps, batch=4, learning_rate=1e-2, weight_decay=0.1)
    plan = plan_batches([len(row.ids) for row in rows], steps, 4, np.random.default_rng(0))
    return train(model, rows, plan, settings, description="twin", masks=masks)


def matrices(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Every matrix by itself: of stacked experts each one's gate, up and down."""
    for name, tensor in tensors.items():
        rows, inputs = tensor.shape[-2:]
        for matrix in tensor.detach().reshape(-1, rows // (2 if name.endswith("gate_up_proj") else 1), inputs):
            yield name, matrix


def assert_kept(model: nn.Module, topology: str) -> None:
    """Every matrix, of every expert, has the pattern and as many weights that are not zero as the topology keeps."""
    structure, share = parse_topology(topology.split("-")[0]), TOPOLOGIES[topology]
    slack = 0.01 if structure.name == "unstructured" else 0  # SparseGPT's threshold over a matrix hits the density nearly
    for name, matrix in matrices(prunable_weights(model)):
        assert torch.isfinite(matrix).all() and violation(structure, matrix != 0, share) is None, name
        assert float((matrix != 0).float().mean()) == pytest.approx(share, abs=slack), name


def assert_equal_weights(found: nn.Module, expected: nn.Module) -> None:
    assert type(found) is type(expected)
    tensors = expected.state_dict()
    assert found.state_dict().keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in found.state_dict().items())


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
        assert len(list(matrices(prunable_weights(model)))) == 4 + 3 + 2 * 3
    else:
        shared = {f"mlp.shared_expert.{part}.weight" for part in three}
        assert names == attention | delta | shared | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
        assert len(list(matrices(prunable_weights(model)))) == 4 + 3 + 2 * 3 * (1 + EXPERTS)
    rest = [name for name, _ in model.named_parameters() if name not in prunable_weights(model)]
    assert all(any(kept in name for kept in STAY_DENSE) for name in rest)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("kind", "algorithm"), [("dense", "sparsegpt"), ("experts", "wanda")])
def test_a_twin_keeps_its_zeros_through_conversion_recovery_saving_and_loading(kind, algorithm, topology, rows, tokenizer, tmp_path):
    """The way of an arm: S0 and its masks are saved and loaded, recovery starts from them, and transformers loads S1."""
    model = twin_for(kind, topology, tokenizer)
    dense = copy.deepcopy(model)
    masks = convert(model, parse_arm(f"S0-{topology}-{algorithm}"), SETTINGS, data_of(rows[:2], tokenizer))
    assert masks.weights.keys() == prunable_weights(dense).keys()
    assert_kept(model, topology)
    for (name, parameter), before in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert name in masks.weights or torch.equal(parameter, before), name

    save_masks(masks, tmp_path / "masks")
    save_checkpoint(model, tmp_path / "S0", masks)
    stored = load_masks(tmp_path / "masks")
    assert all(torch.equal(stored.weights[name], mask) for name, mask in masks.weights.items())
    recovered = load_checkpoint(tmp_path / "S0", stored)
    assert_equal_weights(recovered, model)

    log = train_under(recovered, stored, rows)  # asserts the masks at its end
    assert log.losses[-1] < log.losses[0]
    for name, parameter in prunable_weights(recovered).items():
        moved = parameter != prunable_weights(model)[name]
        assert float(moved[stored.weights[name]].float().mean()) > 0.9, name  # weights of unreached experts move by decay
    assert_kept(recovered, topology)

    recovered.save_pretrained(tmp_path / "S1")
    loaded = type(model).from_pretrained(tmp_path / "S1", dtype=torch.float32)
    assert_masks(loaded, stored, "after loading")
    assert_equal_weights(loaded, recovered)


STARVED = [
    *product(TOPOLOGIES, ("sparsegpt", "wanda++")),
    *product(MASKLLM_TOPOLOGIES, ("maskllm",)),
    ("2of4", "wanda"),
    ("unstructured", "wanda"),
]


@pytest.mark.parametrize(("topology", "algorithm"), STARVED)
def test_experts_that_no_calibration_token_is_routed_to_are_pruned_not_erased(topology, algorithm, rows, tokenizer):
    """Two tokens that choose two experts each cannot reach all five, in any layer.

    Unreached, SparseGPT would erase an expert, and Wanda's scores would all be zero: every row would keep the same inputs.
    """
    row = Row(rows[0].ids[:2], 1)
    assert len(row.ids) * EXPERTS_PER_TOKEN < EXPERTS
    model = twin_for("experts", topology, tokenizer)
    masks = convert(model, parse_arm(f"S0-{topology}-{algorithm}"), SETTINGS, data_of([row, row], tokenizer, rows))
    assert_kept(model, topology)
    assert masks.density == pytest.approx(TOPOLOGIES[topology], abs=0.01)
    if not topology.startswith("block"):
        assert all((mask != mask[0]).any() for _, mask in matrices(masks.weights))


def test_an_erased_expert_is_an_error(rows, tokenizer, monkeypatch):
    """What the compressor does where tokens go only to the experts that the router chooses."""
    whole = llmcompressor.oneshot
    monkeypatch.setattr(llmcompressor, "oneshot", lambda **named: whole(**named | {"moe_calibrate_all_experts": False}))
    row = Row(rows[0].ids[:2], 1)
    with pytest.raises(RuntimeError, match=r"experts\.\w+.*matrices have no weight left; every expert needs calibration tokens"):
        convert(expert_twin(len(tokenizer)), parse_arm("S0-2of4-sparsegpt"), SETTINGS, data_of([row, row], tokenizer, rows))


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", TWINS)
def test_scores_and_given_masks_need_no_data(kind, topology, tokenizer, tmp_path):
    """Magnitude and a random mask keep weights as they are, and a random mask given as a file is that mask."""
    dense, nothing = twin_for(kind, topology, tokenizer), data_of([], tokenizer)
    path = tmp_path / "mask.safetensors"
    given = SETTINGS.model_copy(update={"given_mask": str(path)})
    converted = {}
    for algorithm in ("magnitude", "random", "given"):
        model = copy.deepcopy(dense)
        masks = converted[algorithm] = convert(model, parse_arm(f"S0-{topology}-{algorithm}"), given, nothing)
        assert_kept(model, topology)
        for name, weight in prunable_weights(dense).items():
            assert torch.equal(prunable_weights(model)[name], weight * masks.weights[name]), name
        save_file(dict(masks.weights), path)
    magnitude, random, found = (converted[algorithm].weights for algorithm in ("magnitude", "random", "given"))
    assert all(torch.equal(found[name], mask) for name, mask in random.items())
    assert not all(torch.equal(magnitude[name], mask) for name, mask in random.items())


def test_masks_of_stacked_experts_are_learned_where_they_lie(rows, tokenizer):
    model = expert_twin(len(tokenizer))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prior = convert(copy.deepcopy(model), parse_arm("S0-2of4-magnitude"), SETTINGS, data_of([], tokenizer))
    plan = plan_batches([len(row.ids) for row in rows], 3, 4, np.random.default_rng(0))
    learned = learn_masks(model, dict(prior.weights), parse_topology("2of4"), rows, plan, LEARNING, seed=0)
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
