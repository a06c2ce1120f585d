"""FLOPs and costs: against torch's own counter on real steps and conversions, actual masks, and counted textbook algorithms."""

import numpy as np
import pytest
import torch
from conftest import MAX_LENGTH
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from sparsecl import conversion, lineage, maskllm
from sparsecl.adapter_flops import lora_flops, masked_lora_flops
from sparsecl.arms import parse_arm
from sparsecl.base import Base
from sparsecl.block_pruning import block_saliency, refitted
from sparsecl.continual_methods.lora import add_adapters
from sparsecl.conversion import ConversionData, convert
from sparsecl.costs import conversion_costs, drawn_lengths, training_costs
from sparsecl.experiment import open_experiment
from sparsecl.flops import (
    CHOLESKY,
    INVERSE_BY_LU,
    INVERSE_FROM_CHOLESKY,
    Consumption,
    Products,
    attainable_weights,
    consumption_of,
    dense_steps_of_equal_flops,
    kept_weights,
    linear_weights,
    mask_learning_flops,
    refit_flops,
    regional_gradient_flops,
    saliency_flops,
    same,
    sparse_steps_of_equal_flops,
    sparsegpt_flops,
    training_flops,
)
from sparsecl.mask_selection import keep_blocks, select, tiles
from sparsecl.masks import Masks, prunable_weights
from sparsecl.method_settings import Lora
from sparsecl.modeling import build_model
from sparsecl.settings import MaskLearning, Model, Optimisation, Sparsify, WandaPlusPlus
from sparsecl.study_files import load_study
from sparsecl.tokenizer import Row
from sparsecl.topologies import Blocks, parse_topology
from sparsecl.training import TrainingLog, consumed, plan_batches, train
from sparsecl.wandaplusplus import optimise_region, regional_gradients

SHAPES = {
    "narrow": Model(family="qwen3", hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16, attention="eager"),
    "wide heads": Model(family="qwen3", hidden=48, ffn=80, layers=3, heads=4, kv_heads=2, head_dim=32, attention="eager"),
}
TINY, VOCABULARY = SHAPES["narrow"], 300
LENGTH, BATCH, STEPS = 12, 8, 3
STUDY = load_study("smoke").model_copy(update={"model": TINY})
LEARNING = MaskLearning(training=Optimisation(steps=STEPS, batch=BATCH, learning_rate=1e-3, prompt_weight=0.1))
TOPOLOGIES = ["2of4", "1of4", "3of4", "4of8", "block16", "unstructured"]

CPU_ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch counts its kernels on a GPU alone


def counting() -> FlopCounterMode:
    """Torch's counter, with its own formulas for attention applied to the CPU's fused kernel too."""

    def forward(query, key, value, *_, out_shape=None, **__):
        return sdpa_flop_count(query, key, value)

    def backward(gradient, query, key, value, *_, out_shape=None, **__):
        return sdpa_backward_flop_count(gradient, query, key, value)

    kernels = {CPU_ATTENTION: forward, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward}
    return FlopCounterMode(display=False, custom_mapping=kernels)


def counted(work) -> int:
    with counting() as counter:
        work()
    return counter.get_total_flops()


def made(shape: Model = TINY):
    torch.set_num_threads(1)
    return build_model(shape, VOCABULARY, MAX_LENGTH, seed=0, special_ids={})


def random_rows(lengths, seed: int = 0) -> list[Row]:
    generator = np.random.default_rng(seed)
    return [Row(generator.integers(0, VOCABULARY, length), int(generator.integers(1, length))) for length in lengths]


def rotary(shape: Model, *passes: int) -> int:
    """What the counter sees and the model does not count: angles are a product of frequencies and positions, once a pass."""
    return sum(shape.head_dim * width for width in passes)


def loss_of(model, rows, prompt_weight=0.1):
    from sparsecl.training import pad_rows, token_weights, weighted_loss

    ids, lengths, starts = pad_rows(rows)
    return weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], prompt_weight))


# A dense training step


@pytest.mark.parametrize("prompt_weight", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_forward_and_backward_are_what_torch_counts(shape, attention, prompt_weight):
    model, rows = made(shape.model_copy(update={"attention": attention})), random_rows([LENGTH] * BATCH)
    consumption = consumption_of([(len(row.ids), row.answer_start) for row in rows], prompt_weight)
    expected, losses = training_flops(shape, VOCABULARY, consumption), []
    assert counted(lambda: losses.append(loss_of(model, rows, prompt_weight))) == expected.forward + rotary(shape, LENGTH)
    # The fused kernel forms the scores anew on the way back; that is no part of the model's cost.
    again = 2 * shape.layers * shape.heads * shape.head_dim * BATCH * LENGTH**2 if attention == "sdpa" else 0
    assert counted(losses[0].backward) == expected.backward + again


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_input_and_weight_gradients_are_told_apart(shape):
    """With frozen linear layers only their input gradients remain, those of the first layer too: its embedding trains."""
    model, rows = made(shape), random_rows([LENGTH] * BATCH)
    for weight in prunable_weights(model).values():
        weight.requires_grad_(False)
    consumption = consumption_of([(len(row.ids), row.answer_start) for row in rows], 0.1)
    expected = training_flops(shape, VOCABULARY, consumption)
    head = 2 * consumption.predicted * shape.hidden * VOCABULARY
    assert counted(loss_of(model, rows).backward) == expected.input_gradient + head
    assert expected.weight_gradient == head + 2 * linear_weights(shape) * consumption.tokens


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
def test_training_adapters_costs_what_torch_counts(shape, masked):
    """PEFT's layers on a dense arm, the adapted weight formed in every step on a sparse one; embedding and head are frozen."""
    model, rows, rank = made(shape), random_rows([LENGTH] * BATCH), 4
    masks = Masks("2of4", "random", 0.5, "", {name: torch.ones_like(w, dtype=torch.bool) for name, w in prunable_weights(model).items()})
    add_adapters(model, masks if masked else None, Lora(rank=rank))
    consumption = consumption_of([(len(row.ids), row.answer_start) for row in rows], 0.1)
    everything = linear_weights(shape)
    expected = (
        masked_lora_flops(shape, VOCABULARY, consumption, 1, rank, everything)
        if masked
        else lora_flops(shape, VOCABULARY, consumption, rank)
    )
    losses = []
    assert counted(lambda: losses.append(loss_of(model, rows))) == expected.forward + rotary(shape, LENGTH)
    assert counted(losses[0].backward) == expected.backward


def test_a_whole_training_costs_what_torch_counts_and_padding_is_the_only_difference():
    settings = Optimisation(steps=STEPS, batch=BATCH, learning_rate=1e-3)
    study = STUDY
    for lengths in ([LENGTH] * 32, list(range(4, 20)) * 2):
        model, rows = made(), random_rows(lengths)
        plan, logs = plan_batches(lengths, STEPS, BATCH, np.random.default_rng(0)), []
        seen = counted(lambda: logs.append(train(model, rows, plan, settings, description="test")))  # noqa: B023
        consumption = consumed(rows, plan, settings.prompt_weight)
        costs = training_costs(study, model, None, logs[0])
        assert logs[0].consumption == consumption
        assert costs["tokens"] == sum(len(rows[index].ids) for batch in plan for index in batch)
        widths = [max(len(rows[index].ids) for index in batch) for batch in plan]
        padded = Consumption(BATCH * sum(widths), BATCH * sum(width**2 for width in widths), consumption.predicted)
        assert padded.tokens == logs[0].padded
        assert seen == training_flops(TINY, VOCABULARY, padded).total + rotary(TINY, *widths)
        uniform = len(set(lengths)) == 1
        assert (seen == costs["flops_dense"] + rotary(TINY, *widths)) == uniform and costs["flops_sparse"] == costs["flops_dense"]


def test_a_narrower_model_is_counted_with_its_own_sizes():
    shape = SHAPES["wide heads"]
    consumption = Consumption(100, 1200, 40)
    costs = training_costs(STUDY, made(shape), None, TrainingLog([], 100, 100, 10, 0.0, consumption))
    assert costs["flops_dense"] == training_flops(shape, VOCABULARY, consumption).total


# Sparse counts


@pytest.fixture(scope="module")
def masks_of(tokenizer):
    """Real masks of a model, by topology and density."""
    no_data = ConversionData((), tokenizer, (), lambda steps, batch: (), 0)

    def make(name: str):
        return convert(made(), parse_arm(f"S0-{name}"), Sparsify(algorithm="magnitude", calibration_rows=1), no_data)

    return make


@pytest.mark.parametrize("name", [*TOPOLOGIES, "unstructured-d0.75", "block16-d0.75"])
def test_theoretical_counts_are_those_of_the_actual_masks(masks_of, name):
    masks = masks_of(name.replace("-", "-magnitude-") if "-" in name else f"{name}-magnitude")
    consumption, tokens = Consumption(10, 60, 4), 10
    flowing, arriving = (lambda size: torch.ones(tokens, size)), (lambda size: torch.ones(size, tokens))
    by_hand = Products(0, 0, 0)
    for mask in masks.weights.values():  # every multiplication by a kept weight contributes 1
        kept, (outputs, inputs) = mask.float(), mask.shape
        forward = (flowing(inputs) @ kept.T).sum()
        input_gradient = (flowing(outputs) @ kept).sum()
        weight_gradient = ((arriving(outputs) @ flowing(inputs)) * kept).sum()
        by_hand += Products(*(2 * int(count) for count in (forward, input_gradient, weight_gradient)))
    nothing = training_flops(TINY, VOCABULARY, consumption, same(0))
    assert training_flops(TINY, VOCABULARY, consumption, same(masks.kept)) == nothing + by_hand
    costs = training_costs(STUDY, made(), masks, TrainingLog([], tokens, tokens, 2, 0.0, consumption))
    assert costs["flops_sparse"] == (nothing + by_hand).total < costs["flops_dense"]
    assert costs["flops_dense"] - costs["flops_sparse"] == 3 * 2 * tokens * costs["masked"]


@pytest.mark.parametrize("name", [*TOPOLOGIES, "block16-d0.75"])
def test_kept_weights_are_known_without_masks(masks_of, name):
    arm = parse_arm(f"S0-{name}")
    masks = masks_of(name.replace("-", "-magnitude-") if "-" in name else f"{name}-magnitude")
    assert kept_weights(TINY, parse_topology(arm.topology), arm.density) == masks.kept


def test_a_transposed_block_mask_is_of_blocks_and_a_transposed_2of4_mask_is_not_2of4(masks_of):
    """Hence blocks save all three products and 2:4 the forward product alone."""
    blocks, everything = parse_topology("block16"), linear_weights(TINY)
    filled = [tiles(blocks, mask.T).sum((2, 3)) for mask in masks_of("block16-magnitude").weights.values()]
    assert all(((count == 0) | (count == 256)).all() for count in filled)
    assert attainable_weights(TINY, blocks, 0.5) == same(256 * int(sum((count == 256).sum() for count in filled)))
    masks = masks_of("2of4-magnitude")
    assert any((mask.T.reshape(-1, 4).sum(1) > 2).any() for mask in masks.weights.values())
    assert attainable_weights(TINY, parse_topology("2of4"), 0.5) == Products(masks.kept, everything, everything)


@pytest.mark.parametrize(
    ("name", "forward"), [("1of4", 0.5), ("2of8", 0.5), ("3of4", 1), ("3of8", 1), ("4of8", 1), ("6of8", 1), ("unstructured", 1)]
)
def test_other_structures_gain_only_where_they_fit_2of4(masks_of, name, forward):
    masks, everything = masks_of(f"{name}-magnitude"), linear_weights(TINY)
    fits = all((mask.reshape(-1, 4).sum(1) <= 2).all() for mask in masks.weights.values())
    assert fits == (forward < 1)
    assert attainable_weights(TINY, parse_topology(name), 0.5) == Products(int(forward * everything), everything, everything)


# Equal FLOPs


def costs_of(kept: int, consumption: Consumption) -> int:
    return training_flops(TINY, VOCABULARY, consumption, same(kept)).total


@pytest.mark.parametrize("steps", [1, 7, 100, 12345])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.8, 1.0])
def test_the_steps_found_are_those_of_the_nearest_cost(steps, share):
    kept, everything, consumption = round(share * linear_weights(TINY)), linear_weights(TINY), Consumption(200, 2600, 70)
    dense, sparse = costs_of(everything, consumption), costs_of(kept, consumption)
    found = dense_steps_of_equal_flops(TINY, VOCABULARY, steps, kept, consumption)
    assert found == min(range(1, steps + 2), key=lambda count: (abs(count * dense - steps * sparse), -count))
    back = sparse_steps_of_equal_flops(TINY, VOCABULARY, steps, kept, consumption)
    assert back == min(range(1, 6 * steps), key=lambda count: (abs(count * sparse - steps * dense), -count))
    assert found <= steps <= back and (share < 1.0 or found == steps == back)


def test_only_the_proportions_of_the_consumption_count():
    kept = linear_weights(TINY) // 2
    found = [dense_steps_of_equal_flops(TINY, VOCABULARY, 1000, kept, Consumption(200 * n, 2600 * n, 70 * n)) for n in (1, 3, 1000)]
    assert len(set(found)) == 1
    with_head = dense_steps_of_equal_flops(TINY, VOCABULARY, 1000, kept, Consumption(200, 2600, 190))
    assert found[0] < with_head < 1000  # what no mask makes cheaper brings the two arms together


def test_a_density_is_not_a_number_of_kept_weights():
    for kept in (0, 0.5, linear_weights(TINY) + 1):
        with pytest.raises(ValueError, match="give the number of kept weights"):
            dense_steps_of_equal_flops(TINY, VOCABULARY, 10, kept, Consumption(200, 2600, 70))


# Conversions


def study_of(**changes):
    few = WandaPlusPlus(rounds=2, samples=3, learning_rate=1e-4)
    sparsify = Sparsify(**{"algorithm": "sparsegpt", "calibration_rows": 8, "wandaplusplus": few, "maskllm": LEARNING, **changes})
    return STUDY.model_copy(update={"sparsify": sparsify})


@pytest.fixture
def data(tokenizer, rows) -> ConversionData:
    """Calibration rows of several lengths; the rows that teach masks are of one length, so that nothing is padded."""
    short = [Row(row.ids % VOCABULARY, row.answer_start) for row in rows if len(row.ids) > LENGTH]
    equal = [Row(row.ids[:LENGTH], min(row.answer_start, LENGTH - 1)) for row in short]
    plan = lambda steps, batch: plan_batches([LENGTH] * len(equal), steps, batch, np.random.default_rng(4))  # noqa: E731
    return ConversionData(short[:8], tokenizer, equal, plan, seed=11)


def unseen(arm, tokens: int) -> int:
    """FLOPs of factorisations, which the counter does not see."""
    total, topology = 0, parse_topology(arm.topology)
    for outputs, inputs in TINY.linear_shapes().values():
        if isinstance(topology, Blocks):
            size, kept = topology.size, topology.kept_of(inputs, arm.density)
            groups = inputs // size * INVERSE_BY_LU * size**3
            solves = 2 * outputs * kept**2
            total += round((CHOLESKY + INVERSE_FROM_CHOLESKY) * inputs**3 + groups)
            total += round(outputs // size * CHOLESKY * kept**3) + solves
        else:
            total += round((2 * CHOLESKY + INVERSE_FROM_CHOLESKY) * inputs**3)
    return TINY.layers * total


def traced(data: ConversionData) -> int:
    """Angles: twice for every row, and once more for the longest, which comes first: on it the compressor traces the model."""
    lengths = [len(row.ids) for row in data.rows]
    return rotary(TINY, *lengths, *lengths, max(lengths))


@pytest.mark.parametrize(
    "name",
    ["2of4-wanda", "block16-wanda", "2of4-sparsegpt", "4of8-sparsegpt", "unstructured-sparsegpt", "block16-sparsegpt",
     "2of4-wanda++", "block16-wanda++"],
)  # fmt: skip
def test_a_conversion_costs_what_torch_counts(data, name):
    assert len({len(row.ids) for row in data.rows}) > 2  # else a mean length would do
    arm, study, model, made_masks = parse_arm(f"S0-{name}"), study_of(), made(), []
    seen = counted(lambda: made_masks.append(convert(model, arm, study.sparsify, data)))
    costs = conversion_costs(study, arm, model, made_masks[0], data, 1.0)
    factorisations = unseen(arm, costs["tokens"]) if "sparsegpt" in name else 0
    assert costs["flops_dense"] == costs["flops_sparse"] == seen - traced(data) + factorisations


@pytest.mark.parametrize("changes", [{"alpha": 0}, {"rounds": 0}, {"alpha": 0, "rounds": 0}, {"samples": 100, "rounds": 1}])
def test_every_part_of_wanda_plus_plus_is_counted(data, changes):
    arm, model, made_masks = parse_arm("S0-2of4-wanda++"), made(), []
    study = study_of(wandaplusplus=WandaPlusPlus(**{"rounds": 2, "samples": 3, "learning_rate": 1e-4, **changes}))
    seen = counted(lambda: made_masks.append(convert(model, arm, study.sparsify, data)))
    assert conversion_costs(study, arm, model, made_masks[0], data, 1.0)["flops_dense"] == seen - traced(data)


def test_the_rows_counted_are_those_that_wanda_plus_plus_draws():
    lengths = [14, 20, 11, 3, 17, 9, 30]
    for seed in (0, 5, 2**31 + 5, 2**40 + 1):
        modifier = conversion._modifier(parse_arm("S0-2of4-wanda++"), study_of().sparsify, seed)
        calls = [((length,), {}) for length in sorted(lengths, reverse=True)]
        assert [length for (length,), _ in modifier._sample(calls)] == drawn_lengths(lengths, 3, seed)
    assert sorted(drawn_lengths(lengths, 100, 0)) == sorted(lengths)


def test_mask_learning_costs_what_torch_counts(data):
    """Beside the steps, the counter sees each layer's first draw (on registration) and the overlaps with the prior."""
    model, topology = made(), parse_topology("2of4")
    prior = {name: select(topology, weight.detach().abs(), 0.5) for name, weight in prunable_weights(model).items()}
    plan = data.plan(STEPS, BATCH)
    seen = counted(lambda: maskllm.learn_masks(model, prior, topology, data.training, plan, LEARNING, seed=0))
    taught = consumed(data.training, plan, LEARNING.training.prompt_weight)
    once = 2 * linear_weights(TINY) * 6
    expected = mask_learning_flops(TINY, VOCABULARY, taught, STEPS, 6)
    assert seen == expected.total + rotary(TINY, *[LENGTH] * STEPS) + 2 * once


def test_maskllm_is_sparsegpt_and_its_training_on_exactly_the_rows_of_its_plan(data, monkeypatch):
    taught, pad_rows = [], maskllm.pad_rows
    monkeypatch.setattr(maskllm, "pad_rows", lambda rows: taught.extend(rows) or pad_rows(rows))
    uneven = [Row(row.ids[: 4 + index % 9], 1) for index, row in enumerate(data.training)]
    plan = lambda steps, batch: plan_batches([len(row.ids) for row in uneven], steps, batch, np.random.default_rng(4))  # noqa: E731
    data = ConversionData(data.rows, data.tokenizer, uneven, plan, data.seed)
    arm, like, study, model = parse_arm("S0-2of4-maskllm"), parse_arm("S0-2of4-sparsegpt"), study_of(), made()
    masks = convert(model, arm, study.sparsify, data)
    costs, prior = (conversion_costs(study, each, model, masks, data, 1.0) for each in (arm, like))
    assert len(taught) == STEPS * BATCH and len({len(row.ids) for row in taught}) > 2
    assert costs["tokens"] - prior["tokens"] == sum(len(row.ids) for row in taught)
    learning = mask_learning_flops(TINY, VOCABULARY, consumption_of([(len(row.ids), 1) for row in taught], 0.1), STEPS, 6)
    assert costs["flops_dense"] - prior["flops_dense"] == learning.total
    assert costs["trainable"] == linear_weights(TINY) // 4 * 6


def test_scores_without_data_cost_nothing(data):
    masks = convert(made(), parse_arm("S0-2of4-random"), study_of().sparsify, data)
    costs = conversion_costs(study_of(), parse_arm("S0-2of4-random"), made(), masks, data, 1.0)
    assert costs["tokens"] == costs["flops_dense"] == costs["flops_sparse"] == 0 and costs["masked"] == masks.size - masks.kept


def test_the_plan_of_mask_learning_can_be_asked_for_twice(model, tokenizer, tmp_path):
    """Costs count the plan that the conversion has followed: that of the replicate's stream, whoever asks."""
    experiment, base = open_experiment("smoke", 0, output=tmp_path), Base(model, tokenizer, "key", {})
    data = lineage._conversion_data(experiment, base, base.rows(experiment.suite.pretraining[:4], MAX_LENGTH))
    lengths = [len(row.ids) for row in data.training]
    expected = plan_batches(lengths, 5, 8, experiment.generator("mask-learning"))
    for plan in (data.plan(5, 8), data.plan(5, 8)):
        assert all((one == other).all() for one, other in zip(plan, expected, strict=True))


def test_regional_gradients_need_none_of_the_regions_inputs_and_regional_steps_do_for_their_norms():
    shape = SHAPES["wide heads"]
    model, rows = made(shape), random_rows([LENGTH] * BATCH)
    ids, calls = torch.tensor(np.stack([row.ids for row in rows])), []
    handle = model.model.layers[1].register_forward_pre_hook(lambda _, *call: calls.append(call), with_kwargs=True)
    with torch.no_grad():
        model.model(ids, use_cache=False)
    handle.remove()
    layer = model.model.layers[1]
    linears = [module for module in layer.modules() if isinstance(module, torch.nn.Linear)]
    one_layer = shape.model_copy(update={"layers": 1})
    consumption, targets = Consumption(BATCH * LENGTH, BATCH * LENGTH**2, 0), [torch.zeros(BATCH, LENGTH, shape.hidden)]
    assert counted(lambda: regional_gradients(layer, linears, calls)) == regional_gradient_flops(one_layer, consumption).total
    assert counted(lambda: optimise_region(layer, linears, calls, targets, 1e-4)) == training_flops(one_layer, 0, consumption).total


# The solver of blocks


@pytest.mark.parametrize("density", [0.5, 0.7])
def test_saliency_and_refit_of_blocks_cost_what_torch_counts(density):
    blocks, outputs, inputs = Blocks(16), 48, 80
    generator = torch.Generator().manual_seed(0)
    weight, flows = (torch.randn(rows, inputs, generator=generator) for rows in (outputs, 200))
    hessian, found = flows.T @ flows, []
    seen = counted(lambda: found.append(block_saliency(weight, hessian, blocks)))
    inverses = round((CHOLESKY + INVERSE_FROM_CHOLESKY) * inputs**3 + 5 * INVERSE_BY_LU * 16**3)
    assert saliency_flops(outputs, inputs, blocks) == seen + inverses
    mask = keep_blocks(blocks, found[0], density)
    kept = int(mask[0].sum())
    seen = counted(lambda: refitted(weight, mask, hessian, blocks))
    assert refit_flops(outputs, inputs, blocks, density) == seen + round(3 * CHOLESKY * kept**3) + 2 * outputs * kept**2


def counted_cholesky(matrix: np.ndarray) -> tuple[np.ndarray, int]:
    """The textbook's factor L and the multiplications and additions it took."""
    factor, count = np.zeros_like(matrix), 0
    for j in range(len(matrix)):
        column = matrix[j:, j] - factor[j:, :j] @ factor[j, :j]
        factor[j:, j] = column / np.sqrt(column[0])
        count += 2 * j * len(column)
    return factor, count


def counted_lower_solve(factor: np.ndarray, right: np.ndarray, sparse: bool) -> tuple[np.ndarray, int]:
    """Forward substitution; where the right side is the identity, `sparse` skips what is known to be zero."""
    found, count = np.zeros_like(right), 0
    for i in range(len(factor)):
        found[i] = (right[i] - factor[i, :i] @ found[:i]) / factor[i, i]
        count += 2 * sum(range(i)) if sparse else 2 * i * right.shape[1]
    return found, count


def test_the_constants_of_the_factorisations_are_those_of_textbook_algorithms():
    size = 120
    flows = np.random.default_rng(0).normal(size=(300, size))
    matrix = flows.T @ flows
    factor, cholesky = counted_cholesky(matrix)
    assert np.allclose(factor, np.linalg.cholesky(matrix))
    inverse, substitution = counted_lower_solve(factor, np.eye(size), sparse=True)
    assert np.allclose(inverse.T @ inverse, np.linalg.inv(matrix))
    # Entry (i, j >= i) of the product of the triangular inverse with its transpose takes a sum from j on.
    product = sum(2 * (size - j) for i in range(size) for j in range(i, size))
    upper = factor.T
    solved = (
        counted_lower_solve(factor, np.eye(size), sparse=False)[1] + counted_lower_solve(upper[::-1, ::-1], np.eye(size), sparse=False)[1]
    )
    elimination = sum(2 * (size - 1 - k) ** 2 for k in range(size))  # each pivot updates the remaining square
    for count, constant in ((cholesky, CHOLESKY), (substitution + product, INVERSE_FROM_CHOLESKY), (elimination + solved, INVERSE_BY_LU)):
        assert count / size**3 == pytest.approx(constant, rel=0.03)


# A model with routed experts

MIXTURE = Model(
    family="qwen3_5_moe", hidden=32, ffn=24, layers=4, heads=2, kv_heads=1, head_dim=16, attention="eager",
    experts=6, experts_per_token=2, shared_ffn=40, delta_key_heads=2, delta_value_heads=4, delta_head_dim=8, router_aux_coefficient=0.0,
)  # fmt: skip


def of_kernels(model, rows: int, length: int) -> tuple[int, int]:
    """What the counter sees of one DeltaNet layer's chunked kernel and convolution, (forward, backward), by running them alone."""
    from transformers.models.qwen3_5_moe import modeling_qwen3_5_moe as source

    layer = model.model.layers[0].linear_attn
    heads = (rows, length, layer.num_v_heads)
    query, key, value = (torch.randn(*heads, size, requires_grad=True) for size in (layer.head_k_dim, layer.head_k_dim, layer.head_v_dim))
    decay, beta = -torch.rand(heads), torch.rand(heads)
    decay.requires_grad_(), beta.requires_grad_()
    mixed, ends = torch.randn(rows, layer.conv_dim, length, requires_grad=True), []

    def forward():
        ends.append(source.torch_chunk_gated_delta_rule(query, key, value, g=decay, beta=beta, use_qk_l2norm_in_kernel=True)[0])
        ends.append(source.causal_conv1d_fn(mixed, layer.conv1d.weight.squeeze(1), activation="silu"))

    return counted(forward), counted(lambda: sum(end.sum() for end in ends).backward())


@pytest.mark.parametrize("prompt_weight", [0.0, 0.1])
def test_a_step_with_experts_costs_what_torch_counts_but_for_the_kernels_of_deltanet(prompt_weight):
    """Exact: the kernels' products are exchanged, the rotary angles (a quarter of a head, three grids, every row) added."""
    model, rows = made(MIXTURE), random_rows([LENGTH] * BATCH)
    model.set_experts_implementation("eager")  # the counter does not see grouped products
    consumption = consumption_of([(len(row.ids), row.answer_start) for row in rows], prompt_weight)
    expected, losses = training_flops(MIXTURE, VOCABULARY, consumption), []
    delta_layers = MIXTURE.layers - MIXTURE.full_attention_layers()
    recurrence = 2 * 3 * delta_layers * MIXTURE.delta_value_heads * MIXTURE.delta_head_dim**2 * consumption.tokens
    forward, backward = (delta_layers * part for part in of_kernels(model, BATCH, LENGTH))
    angles = 3 * 2 * (MIXTURE.head_dim // 4 // 2) * BATCH * LENGTH
    assert counted(lambda: losses.append(loss_of(model, rows, prompt_weight))) == expected.forward - recurrence + forward + angles
    assert counted(losses[0].backward) == expected.backward - 2 * recurrence + backward
    assert recurrence < 0.05 * expected.forward


def test_only_the_active_experts_are_counted():
    every_expert = MIXTURE.model_copy(update={"experts_per_token": MIXTURE.experts})
    one = MIXTURE.layers * 3 * MIXTURE.hidden * MIXTURE.ffn
    assert linear_weights(every_expert) - linear_weights(MIXTURE) == (MIXTURE.experts - MIXTURE.experts_per_token) * one
    model = made(MIXTURE)
    total = sum(weight.numel() for weight in prunable_weights(model).values())
    assert linear_weights(every_expert) == total
    log = TrainingLog([], 100, 100, 10, 0.0, Consumption(100, 1200, 40))
    costs = training_costs(STUDY.model_copy(update={"model": MIXTURE}), model, None, log)
    assert costs["flops_dense"] == costs["flops_sparse"] == training_flops(MIXTURE, VOCABULARY, log.consumption).total
    assert costs["trainable"] == sum(parameter.numel() for parameter in model.parameters()) > linear_weights(MIXTURE)


def test_what_is_not_counted_for_experts_is_refused():
    for work in (lambda: lora_flops(MIXTURE, VOCABULARY, Consumption(1, 1, 1), 4), lambda: sparsegpt_flops(MIXTURE, 10)):
        with pytest.raises(ValueError, match="not counted for a model with 6 experts; leave the count absent"):
            work()
