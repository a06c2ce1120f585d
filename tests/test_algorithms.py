"""Algorithms of conversion: closed forms, brute force and planted truths, then every algorithm on every topology."""

import copy
import gc
import math
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

from sparsecl import conversion
from sparsecl.arms import parse_arm
from sparsecl.block_pruning import BlockSparseGPTModifier, BlockWandaModifier, block_saliency, damped, refitted
from sparsecl.conversion import ConversionData, calibration_digest, convert
from sparsecl.mask_selection import keep_blocks, select, tiles
from sparsecl.maskllm import CandidateChoice, candidate_masks, learn_masks
from sparsecl.masks import Masks, TopologyViolation, apply_masks, prunable_weights
from sparsecl.modeling import build_model
from sparsecl.settings import MaskLearning, Model, Optimisation, Sparsify, WandaPlusPlus
from sparsecl.tokenizer import Row
from sparsecl.topologies import Blocks, NofM, TopologyMisfit, attained_density, parse_topology
from sparsecl.training import plan_batches, train
from sparsecl.wandaplusplus import WandaPlusPlusModifier, input_norms, optimise_region, regional_gradients, regional_score

CALIBRATION = 12  # rows
LEARNING = MaskLearning(training=Optimisation(steps=3, batch=8, learning_rate=1e-3))


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settings(**changes) -> Sparsify:
    few = WandaPlusPlus(rounds=2, samples=4, learning_rate=1e-4)
    return Sparsify(**{"algorithm": "sparsegpt", "calibration_rows": CALIBRATION, "wandaplusplus": few, "maskllm": LEARNING, **changes})


@pytest.fixture
def data(rows, tokenizer) -> Callable[[], ConversionData]:
    """Conversion data as a unit makes it anew: the plan of mask learning always starts at its generator's first draw."""

    def make(seed: int = 7) -> ConversionData:
        generator = np.random.default_rng(3)
        lengths = [len(row.ids) for row in rows]
        return ConversionData(
            rows[:CALIBRATION], tokenizer, rows, lambda steps, batch: plan_batches(lengths, steps, batch, generator), seed
        )

    return make


def linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data.copy_(weight)
    return layer


def pruned(modifier, weight: torch.Tensor, samples: list[torch.Tensor]) -> torch.Tensor:
    """What a modifier makes of one linear layer, fed through the hook that the pipeline would call."""
    layer = linear(weight)
    modifier._module_names[layer], modifier._module_sparsities[layer] = "layer", modifier.sparsity
    with torch.no_grad():
        for sample in samples:
            modifier.calibrate_module(layer, (sample,), None)
    modifier.compress_modules()
    return layer.weight.detach()


def modifier_of(name: str):
    return conversion._modifier(parse_arm(name), settings(), seed=0)


# SparseGPT


@pytest.mark.parametrize("topology", ["2of4", "1of4", "4of8", "block16"])
def test_sparsegpt_of_white_inputs_is_magnitude_pruning(topology):
    """With H proportional to the identity nothing can compensate: magnitude's mask, and the kept weights as they were."""
    weight = gaussian(32, 64)
    orthonormal = torch.linalg.qr(gaussian(64, 64, seed=1))[0]
    found = pruned(modifier_of(f"S0-{topology}-sparsegpt"), weight, [orthonormal[None]])
    score = weight.square() if topology == "block16" else weight.abs()
    kept = select(parse_topology(topology), score, 0.5)
    assert torch.equal(found != 0, kept)
    assert torch.allclose(found[kept], weight[kept], atol=1e-5)


def test_with_white_inputs_a_block_costs_its_squared_weights_and_nothing_moves():
    weight, blocks = gaussian(32, 48), Blocks(16)
    assert torch.allclose(block_saliency(weight, torch.eye(48), blocks), tiles(blocks, weight).square().sum((2, 3)), rtol=1e-5)
    kept = select(blocks, weight.square(), 0.5)
    assert torch.allclose(refitted(weight, kept, torch.eye(48), blocks), weight * kept)


def test_the_saliency_of_a_block_is_the_least_squared_error_without_it():
    """Against constrained least squares, solved row by row: the block's inputs are gone, all others may adapt."""
    inputs = gaussian(50, 9, seed=1).double() @ gaussian(9, 9, seed=2).double()  # correlated
    weight = gaussian(6, 9).double()
    found = block_saliency(weight, inputs.T @ inputs, Blocks(3))
    for row in range(2):
        for block in range(3):
            remaining = [column for column in range(9) if column // 3 != block]
            error = 0.0
            for unit in range(3 * row, 3 * row + 3):
                target = (inputs @ weight[unit]).numpy()
                solution, *_ = np.linalg.lstsq(inputs[:, remaining].numpy(), target, rcond=None)
                error += float(((inputs[:, remaining].numpy() @ solution - target) ** 2).sum())
            assert float(found[row, block]) == pytest.approx(error, rel=1e-8)


def test_the_refitted_weights_are_the_least_squares_solution_of_every_row():
    inputs = gaussian(60, 9, seed=1).double() @ gaussian(9, 9, seed=2).double()
    weight, blocks = gaussian(6, 9).double(), Blocks(3)
    kept = select(blocks, block_saliency(weight, inputs.T @ inputs, blocks).repeat_interleave(3, 0).repeat_interleave(3, 1), 0.67)
    found = refitted(weight, kept, inputs.T @ inputs, blocks)
    for unit in range(6):
        columns = np.flatnonzero(kept[unit])
        solution, *_ = np.linalg.lstsq(inputs[:, columns].numpy(), (inputs @ weight[unit]).numpy(), rcond=None)
        assert found[unit, columns].numpy() == pytest.approx(solution, rel=1e-8)
    assert not found[~kept].any() and not torch.allclose(found[kept], weight[kept], atol=1e-2)  # the update is no small thing


def test_refitting_beats_the_compressors_columnwise_update_under_the_same_mask():
    """`preserve_sparsity_mask` is the nearest the compressor has; removed last blocks find no later column to absorb them."""
    inputs = gaussian(400, 64, seed=1) @ (torch.eye(64) + 0.3 * gaussian(64, 64, seed=2))
    weight, blocks = gaussian(32, 64), Blocks(16)
    hessian = damped(inputs.T @ inputs, 0.01)
    kept = keep_blocks(blocks, block_saliency(weight, hessian, blocks), 0.5)
    columnwise = column_by_column(weight, kept, hessian)
    errors = [float((inputs @ (weight - found).T).square().sum()) for found in (refitted(weight, kept, hessian, blocks), columnwise)]
    assert errors[0] < errors[1] < float((inputs @ (weight - weight * kept).T).square().sum())


def column_by_column(weight, kept, hessian):
    """SparseGPT's own update (Frantar and Alistarh 2023, algorithm 1) under a mask that is given."""
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    weight = weight.clone()
    for column in range(weight.shape[1]):
        error = weight[:, column] * ~kept[:, column] / inverse[column, column]
        weight[:, column:] -= error[:, None] * inverse[column, None, column:]
    return weight * kept


def test_damping_gives_a_dead_input_an_inverse_and_raises_the_diagonal_by_its_share():
    hessian = torch.diag(torch.tensor([0.0, 2.0, 3.0]))
    assert torch.allclose(damped(hessian.clone(), 0.01), torch.diag(torch.tensor([1.02, 2.02, 3.02])))


def test_a_block_that_others_can_replace_goes_first_whatever_its_weights():
    """The first and the last sixteen inputs are nearly the same: magnitude, and Wanda too, would remove the middle ones."""
    shared, own = gaussian(200, 16, seed=1), gaussian(200, 16, seed=2)
    inputs = torch.cat([shared, own, shared + 1e-3 * gaussian(200, 16, seed=3)], 1)
    weight = torch.cat([gaussian(16, 16, seed=4), 0.3 * gaussian(16, 16, seed=5), 3 * gaussian(16, 16, seed=6)], 1)
    found = pruned(modifier_of("S0-block16-sparsegpt-d0.7"), weight, [inputs[None]])
    assert not found[:, :16].any() and found[:, 16:].all()
    assert pruned(modifier_of("S0-block16-wanda-d0.7"), weight, [inputs[None]])[:, :16].all()
    lost = (inputs @ (found - weight).T).square().sum()
    assert lost < 0.01 * (inputs @ weight[:, :48].T).square().sum()


@pytest.mark.parametrize("topology", ["2of4", "4of8", "block16", "unstructured"])
def test_sparsegpt_reconstructs_every_layer_better_than_its_mask_alone(model, data, topology):
    dense, inputs = copy.deepcopy(model), {}
    handles = [
        module.register_forward_pre_hook(lambda module, arguments, name=name: inputs.setdefault(name, []).append(arguments[0][0]))
        for name, module in dense.named_modules()
        if name.startswith("model.layers.0.") and isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        for row in data().rows:
            dense(torch.from_numpy(row.ids)[None])
    masks = convert(model, parse_arm(f"S0-{topology}-sparsegpt"), settings(), data())
    assert len(handles) == 7  # all see the inputs that the compressor saw: nothing before the first layer is pruned
    shares = []
    for name, seen in inputs.items():
        before, after = (each.get_submodule(name).weight.detach() for each in (dense, model))
        flows = torch.cat(seen)
        alone = (flows @ (before - before * masks.weights[f"{name}.weight"]).T).square().sum()
        shares.append(float((flows @ (before - after).T).square().sum() / alone))
        assert shares[-1] < 0.98, name
    assert sum(shares) / len(shares) < 0.95


# Wanda and Wanda++


@pytest.mark.parametrize("topology", ["2of4", "1of4", "block16", "unstructured"])
def test_wanda_keeps_the_weights_of_the_largest_magnitude_times_input_norm(topology):
    weight, scale = gaussian(32, 64), torch.linspace(0.1, 3, 64)
    samples = [gaussian(1, length, 64, seed=length) * scale for length in (3, 20, 9)]
    found = pruned(modifier_of(f"S0-{topology}-wanda"), weight, samples)
    norms = [
        math.sqrt(sum(float(sample[0, token, unit]) ** 2 for sample in samples for token in range(sample.shape[1]))) for unit in range(64)
    ]
    score = torch.tensor([[abs(float(weight[i, j])) * norms[j] for j in range(64)] for i in range(32)])
    kept = select(parse_topology(topology), score, 0.5)
    assert torch.equal(found, weight * kept)
    assert not torch.equal(kept, select(parse_topology(topology), weight.abs(), 0.5))


def test_a_block_is_scored_by_the_sum_over_its_weights():
    weight, norm = gaussian(16, 32), torch.rand(32, generator=torch.Generator().manual_seed(1))
    sums = [sum(abs(float(weight[i, j])) * float(norm[j]) for i in range(16) for j in range(left, left + 16)) for left in (0, 16)]
    modifier = BlockWandaModifier(sparsity=0.5, topology="block16", density=0.5)
    found = pruned(modifier, weight, [torch.diag(norm)[None]])  # the norm of column j is norm[j]
    assert found[:, :16].any() == (sums[0] > sums[1]) and found[:, 16:].any() == (sums[1] > sums[0])


@pytest.mark.parametrize("arm", ["2of4", "1of4", "unstructured", "unstructured-d0.9", "block16"])
def test_wanda_plus_plus_without_gradient_and_rounds_is_wanda_bit_for_bit(model, data, arm):
    twin = copy.deepcopy(model)
    topology, *density = arm.split("-")
    wanda = convert(model, parse_arm("-".join(["S0", topology, "wanda", *density])), settings(), data())
    plain = settings(wandaplusplus=WandaPlusPlus(alpha=0, rounds=0))
    plus = convert(twin, parse_arm("-".join(["S0", topology, "wanda++", *density])), plain, data())
    assert all(torch.equal(plus.weights[name], mask) for name, mask in wanda.weights.items())
    assert all(torch.equal(found, expected) for found, expected in zip(twin.parameters(), model.parameters(), strict=True))


def test_the_regional_gradient_and_the_rounds_each_change_what_is_kept(model, data):
    """The equality above could fail: alpha and rounds do reach the pipeline."""
    masks = []
    for changes in ({"alpha": 0, "rounds": 0}, {"alpha": 100, "rounds": 0}, {"alpha": 100, "rounds": 2, "learning_rate": 1e-2}):
        converted = copy.deepcopy(model)
        masks.append(convert(converted, parse_arm("S0-2of4-wanda++"), settings(wandaplusplus=WandaPlusPlus(**changes)), data()))
    for first, second in ((0, 1), (1, 2)):
        assert any(not torch.equal(mask, masks[second].weights[name]) for name, mask in masks[first].weights.items())


def test_wanda_plus_plus_in_the_pipeline_prunes_by_the_gradients_and_norms_of_all_rows(model, data):
    """The first layer sees dense inputs: its masks follow from one backward pass a row through the dense model."""
    layer, calls = copy.deepcopy(model).model.layers[0], []
    handle = model.model.layers[0].register_forward_pre_hook(
        lambda _, positional, named: calls.append((positional, named)), with_kwargs=True
    )
    with torch.no_grad():
        for row in data().rows:
            model(torch.from_numpy(row.ids)[None], use_cache=False)  # a filled cache would lengthen every replay
    handle.remove()
    names = [name for name, module in layer.named_modules() if isinstance(module, nn.Linear)]
    squares, norms = {name: 0.0 for name in names}, {name: 0.0 for name in names}
    for name in names:
        add = lambda module, arguments, name=name: norms.update({name: norms[name] + arguments[0][0].detach().square().sum(0)})  # noqa: E731
        layer.get_submodule(name).register_forward_pre_hook(add)
    for positional, named in calls:
        layer.zero_grad()
        layer(*positional, **named).norm().backward()
        for name in names:
            squares[name] += layer.get_submodule(name).weight.grad ** 2
    alpha = 100.0
    found = convert(model, parse_arm("S0-2of4-wanda++"), settings(wandaplusplus=WandaPlusPlus(alpha=alpha, rounds=0)), data())
    for name in names:
        factor = alpha * (squares[name] / len(calls)).sqrt() + (norms[name] / len(calls)).sqrt()
        kept = select(NofM(2, 4), factor * layer.get_submodule(name).weight.detach().abs(), 0.5)
        same = kept == found.weights[f"model.layers.0.{name}.weight"]
        assert same.float().mean() > 0.998, name  # a near tie may fall either way


class Region(nn.Module):
    """A decoder layer in small: two linear maps, one of them seldom used, and a tuple as output."""

    def __init__(self, units: int = 8) -> None:
        super().__init__()
        self.first, self.second = linear(gaussian(units, units)), linear(gaussian(units, units, seed=1))
        self.idle = linear(gaussian(units, units, seed=2))

    def forward(self, hidden: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor]:
        return (scale * self.second(self.first(hidden)),)


def test_the_regional_gradient_is_the_root_mean_square_of_the_output_norms_gradient():
    """Y = s X A^T B^T has d||Y||/dB = s Y^T (X A^T) / ||Y|| and d||Y||/dA = s B^T Y^T X / ||Y||."""
    region = Region()
    calls = [((gaussian(1, length, 8, seed=length),), {"scale": scale}) for length, scale in ((3, 1.0), (5, 0.5), (9, 2.0))]
    found = regional_gradients(region, [region.first, region.second, region.idle], calls)
    squares = [torch.zeros(8, 8), torch.zeros(8, 8)]
    with torch.no_grad():
        for (hidden,), named in calls:
            inputs, middle = hidden[0], hidden[0] @ region.first.weight.T
            output = named["scale"] * middle @ region.second.weight.T
            squares[0] += (named["scale"] * region.second.weight.T @ output.T @ inputs / output.norm()) ** 2
            squares[1] += (named["scale"] * output.T @ middle / output.norm()) ** 2
    for gradient, square in zip(found, squares, strict=False):
        assert torch.allclose(gradient, (square / 3).sqrt(), rtol=1e-4, atol=1e-6)
    assert not found[2].any()  # what the region's output does not depend on


def test_the_regional_score_weighs_gradient_and_norm():
    weight, gradient = torch.tensor([[2.0, -3.0]]), torch.tensor([[0.5, 0.1]])
    score = regional_score(weight, gradient, torch.tensor([4.0, 5.0]), alpha=10.0)
    assert torch.allclose(score, torch.tensor([[(10 * 0.5 + 4) * 2, (10 * 0.1 + 5) * 3]]))


def test_fresh_input_norms_are_those_that_wandas_hook_accumulates():
    from llmcompressor.modifiers.pruning.wanda.wanda_sparsify import accumulate_row_scalars, make_empty_row_scalars

    region = Region()
    calls = [((gaussian(1, length, 8, seed=length),), {}) for length in (3, 5, 9)]
    found = input_norms(region, [region.first, region.second], calls)
    for layer, norm, flow in ((region.first, found[0], lambda hidden: hidden), (region.second, found[1], region.first)):
        scalars, samples = make_empty_row_scalars(layer), 0
        with torch.no_grad():
            for (hidden,), _ in calls:
                scalars, samples = accumulate_row_scalars(flow(hidden), layer, scalars, samples)
        assert torch.allclose(norm, scalars.sqrt(), rtol=1e-5)


def test_regional_optimisation_brings_a_pruned_region_nearer_to_the_dense_one():
    region = Region()
    calls = [((gaussian(1, 16, 8, seed=sample),), {}) for sample in range(8)]
    with torch.no_grad():
        targets = [region(*positional)[0] for positional, _ in calls]
        for layer in (region.first, region.second):
            layer.weight.mul_(select(NofM(2, 4), layer.weight.abs(), 0.5))

    def distance() -> float:
        with torch.no_grad():
            return sum(
                float((region(*positional)[0] - target).square().mean()) for (positional, _), target in zip(calls, targets, strict=True)
            )

    before, idle = distance(), region.idle.weight.detach().clone()
    for _ in range(3):
        optimise_region(region, [region.first, region.second], calls, targets, learning_rate=1e-2)
    assert distance() < 0.8 * before and torch.equal(region.idle.weight, idle)


# MaskLLM


def choice_of(prior: torch.Tensor, topology: str = "2of4", seed: int = 0, **changes) -> CandidateChoice:
    """Logits that are the prior's alone, unless changed: the noise is nothing beside it."""
    learning = LEARNING.model_copy(update={"prior_strength": 1e4, **changes})
    return CandidateChoice(prior, parse_topology(topology), learning, torch.Generator().manual_seed(seed))


def test_candidates_come_in_the_papers_order():
    found = ["".join(str(int(place)) for place in mask) for mask in candidate_masks(NofM(2, 4))]
    assert found == ["1100", "1010", "1001", "0110", "0101", "0011"]
    assert torch.equal(candidate_masks(NofM(1, 4)), torch.eye(4))


@pytest.mark.parametrize("topology", ["4of8", "6of8", "block16", "unstructured"])
def test_topologies_without_candidates_are_refused_before_any_work(model, data, topology):
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match=rf"maskllm has no candidates for {topology}; it is defined for \('1of4', '2of4', '3of4'\)"):
        convert(model, parse_arm(f"S0-{topology}-maskllm"), settings(), data())
    assert all(torch.equal(parameter, old) for parameter, old in zip(model.parameters(), before, strict=True))
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("topology", ["1of4", "2of4", "3of4"])
def test_without_noise_the_most_likely_candidate_is_the_prior(topology):
    prior = select(parse_topology(topology), gaussian(16, 32).abs(), 0.5)
    assert torch.equal(choice_of(prior, topology).mask(prior.shape), prior)


def test_the_prior_raises_a_candidate_by_its_overlap():
    """Equation 10 on the scale of the initial logits: strength times (overlap - 1) for 2:4."""
    choice = choice_of(torch.tensor([[True, False, True, False]]), prior_strength=3.0, initial_std=0.01)
    noise = 0.01 * torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(choice.logits - noise, 0.03 * torch.tensor([[0.0, 1.0, 0.0, 0.0, -1.0, 0.0]]), atol=1e-7)


def test_the_soft_mask_becomes_the_drawn_candidate_as_the_temperature_falls():
    prior = select(NofM(2, 4), gaussian(16, 32).abs(), 0.5)
    choice = choice_of(prior)
    choice.scale = 1e3  # the draw's noise is nothing beside the logits: the most likely candidate is the draw
    distances = []
    for temperature in (1e6, 2e5, 5e4, 1e2):
        choice.temperature = temperature
        distances.append(float((choice.soft_mask().detach().view_as(prior) - prior.float()).abs().max()))
    assert distances == sorted(distances, reverse=True) and distances[0] > 0.4 and distances[-1] < 1e-6


def test_every_soft_mask_keeps_as_much_as_a_candidate():
    choice = choice_of(select(NofM(2, 4), gaussian(16, 32).abs(), 0.5), prior_strength=3.0)
    choice.temperature = 4.0
    assert torch.allclose(choice.soft_mask().sum(1), torch.tensor(2.0))


def test_candidates_are_drawn_as_often_as_their_softmax_says():
    choice = choice_of(torch.ones(20_000, 4) > 0, topology="1of4", prior_strength=0.0, initial_std=1e-12)
    choice.logits.data[:] = torch.tensor([0.0, 0.5, 1.0, -1.0])
    choice.scale, choice.temperature = 1.5, 1e-3
    drawn = (choice.soft_mask() > 0.5).float().mean(0)
    wanted = torch.softmax(1.5 * torch.tensor([0.0, 0.5, 1.0, -1.0]), 0)
    assert torch.allclose(drawn, wanted, atol=4 * 0.5 / math.sqrt(20_000))  # four standard errors


class PlantedModel(nn.Module):
    """Sixteen tokens: bits 2 and 3 of four inputs are a token's class, bits 0 and 1 are noise; unit k detects class k.

    The weights of the noise are the larger ones, so magnitude and MaskLLM's regularisation both speak for them.
    """

    def __init__(self) -> None:
        super().__init__()
        bits = 1.0 - 2.0 * torch.tensor([[token >> 3 & 1, token >> 2 & 1, token >> 1 & 1, token & 1] for token in range(16)])
        self.table = nn.Embedding.from_pretrained(bits)  # frozen
        self.mixer = linear(torch.cat([1.1 * gaussian(4, 2).sign(), bits[:4, 2:]], 1))
        self.lm_head = linear(2.0 * nn.functional.one_hot(torch.arange(16) % 4, 4).float())

    def model(self, ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        return SimpleNamespace(last_hidden_state=self.mixer(self.table(ids)))


def planted_rows() -> list[Row]:
    """All tokens of a row are of one class; their noise is drawn anew at every place."""
    generator = np.random.default_rng(0)
    return [Row(4 * generator.integers(0, 4, 8) + index % 4, 1) for index in range(64)]


def learn_planted(model: nn.Module, prior: torch.Tensor, steps: int = 60, **changes) -> torch.Tensor:
    learning = MaskLearning(training=Optimisation(steps=steps, batch=16, learning_rate=0.02), **changes)
    plan = plan_batches([8] * 64, steps, 16, np.random.default_rng(0))
    return learn_masks(model, {"mixer.weight": prior}, NofM(2, 4), planted_rows(), plan, learning, seed=0)["mixer.weight"]


def test_mask_learning_finds_the_inputs_that_carry_the_signal():
    wrong = torch.tensor([[True, True, False, False]]).expand(4, 4).clone()
    assert torch.equal(learn_planted(PlantedModel(), wrong), ~wrong)
    assert (torch.tensor([1e-40]) * 1.0).item() > 0, "denormal numbers are flushed while masks are learned, and only then"


def test_a_strong_regularisation_keeps_the_large_weights_whatever_the_loss_says():
    model, signal = PlantedModel(), torch.tensor([[False, False, True, True]]).expand(4, 4).clone()
    model.mixer.weight.data[:, :2] *= 3
    assert torch.equal(learn_planted(model, signal, regularisation=100.0, prior_strength=0.0), ~signal)


def test_mask_learning_gives_weights_flags_and_names_back_as_they_were():
    model = PlantedModel()
    assert not model.table.weight.requires_grad  # a frozen weight stays frozen
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    original = model.mixer.weight
    learn_planted(model, torch.tensor([[True, True, False, False]]).expand(4, 4), steps=2)
    assert model.mixer.weight is original and type(model.mixer) is nn.Linear
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_interrupted_mask_learning_leaves_the_model_as_it_was():
    model = PlantedModel()
    model.table.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"loss is nan at step 1; lower maskllm.training.learning_rate \(now 0.02\)"):
        learn_planted(model, torch.tensor([[True, True, False, False]]).expand(4, 4))
    assert type(model.mixer) is nn.Linear and model.mixer.weight.requires_grad


def answer_loss(model: nn.Module, masks: Masks, rows: list[Row]) -> float:
    from sparsecl.scoring import score_rows

    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    return score_rows(masked, rows, 128).loss


def test_learned_masks_lower_the_loss_of_a_trained_model_below_their_prior(model, rows, data):
    plan = plan_batches([len(row.ids) for row in rows], 150, 16, np.random.default_rng(1))
    train(model, rows, plan, Optimisation(steps=150, batch=16, learning_rate=3e-3), description="base")
    learning = MaskLearning(training=Optimisation(steps=40, batch=16, learning_rate=5e-3, warmup=0.0))
    arm, changed = parse_arm("S0-2of4-maskllm"), settings(maskllm=learning)
    source = copy.deepcopy(model)
    conversion._prune_in_pipeline(source, modifier_of("S0-2of4-sparsegpt"), data())
    prior = conversion.masks_of_zeros(source, "2of4", "sparsegpt", 0.5, "")
    dense = copy.deepcopy(model)
    learned = convert(model, arm, changed, data())
    assert answer_loss(dense, learned, rows) < answer_loss(dense, prior, rows) - 0.02
    for name, weight in prunable_weights(model).items():  # masks are learned, weights are not
        assert torch.equal(weight, prunable_weights(dense)[name] * learned.weights[name])


# Every algorithm on every topology

PATTERNS = {
    "magnitude": ("1of4", "2of4", "3of4", "4of8", "6of8", "block16", "block16-d0.25", "unstructured", "unstructured-d0.9"),
    "random": ("1of4", "2of4", "4of8", "block16", "unstructured"),
    "wanda": ("1of4", "2of4", "4of8", "block16", "unstructured", "unstructured-d0.9"),
    "wanda++": ("1of4", "2of4", "4of8", "block16", "unstructured"),
    "sparsegpt": ("1of4", "2of4", "4of8", "block16", "block16-d0.25", "unstructured"),
    "maskllm": ("1of4", "2of4"),
}


def name_of(algorithm: str, pattern: str) -> str:
    topology, *density = pattern.split("-")
    return "-".join(["S0", topology, algorithm, *density])


@pytest.mark.parametrize(("algorithm", "pattern"), [(algorithm, pattern) for algorithm in PATTERNS for pattern in PATTERNS[algorithm]])
def test_every_conversion_has_its_pattern_is_repeatable_and_spares_the_rest(model, data, algorithm, pattern):
    arm, again, dense = parse_arm(name_of(algorithm, pattern)), copy.deepcopy(model), copy.deepcopy(model)
    masks = convert(model, arm, settings(), data())
    assert len(masks.weights) == 14 and (masks.topology, masks.algorithm) == (arm.topology, algorithm)
    assert masks.calibration == ("" if algorithm in ("magnitude", "random") else calibration_digest(data().rows))
    for name, weight in prunable_weights(model).items():
        assert_structure(weight.detach() != 0, pattern, name)
        assert torch.equal(weight != 0, masks.weights[name])  # random weights have no zeros of their own
        if algorithm != "sparsegpt" and algorithm != "wanda++":  # these two move the weights that stay
            assert torch.equal(weight, prunable_weights(dense)[name] * masks.weights[name])
    shapes = [mask.shape for mask in masks.weights.values()]
    attained = sum(rows * inputs * attained_density(parse_topology(arm.topology), inputs, arm.density) for rows, inputs in shapes)
    tolerance = 0.01 if (algorithm, pattern) == ("sparsegpt", "unstructured") else 1e-9  # SparseGPT's threshold spans a layer's rows
    assert masks.density == pytest.approx(attained / masks.size, abs=tolerance)
    for (name, parameter), before in zip(model.named_parameters(), dense.parameters(), strict=True):
        assert name in masks.weights or torch.equal(parameter, before), name
    repeated = convert(again, arm, settings(), data())
    assert all(torch.equal(repeated.weights[name], mask) for name, mask in masks.weights.items())
    assert all(torch.equal(first, second) for first, second in zip(model.parameters(), again.parameters(), strict=True))


def assert_structure(kept: torch.Tensor, pattern: str, name: str) -> None:
    """Count by hand, without the package's own reshaping."""
    topology = pattern.split("-")[0]
    if "of" in topology:
        count, group = (int(part) for part in topology.split("of"))
        assert all(sum(row[start : start + group]) == count for row in kept.tolist() for start in range(0, len(row), group)), name
    elif topology == "block16":
        for top in range(0, kept.shape[0], 16):
            sums = [int(kept[top : top + 16, left : left + 16].sum()) for left in range(0, kept.shape[1], 16)]
            wanted = max(round(len(sums) * (0.25 if pattern.endswith("0.25") else 0.5)), 1)
            assert sorted(sums) == [0] * (len(sums) - wanted) + [256] * wanted, name


def test_random_masks_differ_by_seed_and_between_layers(model, data):
    arm = parse_arm("S0-2of4-random")
    first, second = (convert(copy.deepcopy(model), arm, settings(), data(seed)) for seed in (1, 2))
    for name, mask in first.weights.items():
        agreement = float((mask == second.weights[name]).float().mean())
        assert 0.4 < agreement < 0.6, name  # chance is one half
    layers = [first.weights[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1)]
    assert 0.4 < float((layers[0] == layers[1]).float().mean()) < 0.6


def test_a_layer_that_does_not_divide_stops_before_any_work(model, data):
    with pytest.raises(TopologyMisfit, match="output rows divisible by 32, but model.layers.0.self_attn.k_proj.weight has 16"):
        convert(model, parse_arm("S0-block32-wanda"), settings(), data())


def test_a_modifier_that_touches_more_than_it_may_is_noticed(model, data, monkeypatch):
    monkeypatch.setattr(conversion, "IGNORED", ())
    with pytest.raises(RuntimeError, match="conversion changed model.embed_tokens.weight, which must stay dense"):  # the head is tied to it
        convert(model, parse_arm("S0-2of4-wanda"), settings(), data())


# The model that is converted


def expert_model(vocabulary: int) -> nn.Module:
    """A tiny Qwen3.5 with experts in a stack and norms that multiply by 1 + w, their w drawn as if trained."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = Qwen3_5MoeForCausalLM(
        Qwen3_5MoeTextConfig(
            vocab_size=vocabulary, hidden_size=32, num_hidden_layers=2, layer_types=["linear_attention", "full_attention"],
            num_attention_heads=2, num_key_value_heads=1, head_dim=16, linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=16, linear_value_head_dim=16, moe_intermediate_size=32, shared_expert_intermediate_size=32,
            num_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def anatomy(model: nn.Module) -> dict:
    """All of a model that is no weight's value: modules, what hangs on them, parameters, their storage, the configuration."""
    modules = {
        name: (module, type(module), module.forward.__func__, sorted(vars(module)), type(module._parameters), module.training)
        for name, module in model.named_modules()
    }
    hooks = {name: len(module._forward_hooks) + len(module._forward_pre_hooks) for name, module in model.named_modules()}
    parameters = {
        name: (parameter, type(parameter), parameter.data_ptr(), parameter.requires_grad, parameter.grad)
        for name, parameter in model.named_parameters()
    }
    with_identity = {name: (id(first), *rest) for name, (first, *rest) in (modules | parameters).items()}
    return with_identity | {"hooks": hooks, "configuration": copy.deepcopy(vars(model.config)), "keys": list(model.state_dict())}


@pytest.mark.parametrize("arm", ["2of4-wanda", "2of4-sparsegpt", "block16-sparsegpt", "2of4-wanda++", "2of4-maskllm"])
@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_a_converted_model_is_the_plain_model_it_was(model, data, rows, tokenizer, tmp_path, kind, arm):
    if kind == "experts":
        model = expert_model(len(tokenizer))
    model.get_parameter("model.layers.1.mlp." + ("experts.down_proj" if kind == "experts" else "down_proj.weight")).requires_grad_(False)
    model.eval()
    before, values = anatomy(model), {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    masks = convert(model, parse_arm(f"S0-{arm}"), settings(), data())
    assert anatomy(model) == before
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name]) == (name not in masks.weights), name
    model.requires_grad_(True)
    twin = copy.deepcopy(model)
    plan = plan_batches([len(row.ids) for row in rows], 2, 4, np.random.default_rng(0))
    train(twin, rows, plan, Optimisation(steps=2, batch=4, learning_rate=1e-2), description="twin", masks=masks)
    assert not any(torch.equal(weight, prunable_weights(model)[name]) for name, weight in prunable_weights(twin).items())
    twin.save_pretrained(tmp_path)
    assert not (tmp_path / "recipe.yaml").exists()  # the compressor's own way of saving writes one
    loaded = type(model).from_pretrained(tmp_path, dtype=torch.float32)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in twin.state_dict().items())


def live_bytes() -> int:
    """Bytes of all tensors that Python can reach, every storage once."""
    tensors = [value for value in gc.get_objects() if issubclass(type(value), torch.Tensor) and value.device.type == "cpu"]
    return sum({value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in tensors}.values())


@pytest.mark.parametrize(
    ("arm", "modifier", "step"),
    [
        ("S0-block16-sparsegpt", BlockSparseGPTModifier, "compress_modules"),
        ("S0-2of4-wanda++", WandaPlusPlusModifier, "_convert_region"),
    ],
)
def test_a_conversion_holds_as_much_beside_eight_layers_as_beside_two(tokenizer, data, monkeypatch, arm, modifier, step):
    """Counted whenever a layer is about to be converted; a copy of the weights would count four times as much."""
    held, compress = [], getattr(modifier, step)
    monkeypatch.setattr(modifier, step, lambda *given: (held.append(live_bytes()), compress(*given)))
    beside = []
    for layers in (2, 8):
        shape = Model(family="qwen3", hidden=64, ffn=128, layers=layers, heads=4, kv_heads=2, head_dim=16)
        built = build_model(shape, len(tokenizer), 32, 0, {"pad_token_id": 0})
        gc.collect()
        before = live_bytes()
        held.clear()
        convert(built, parse_arm(arm), settings(), data())
        assert len(held) >= layers
        beside.append(max(held) - before)
    layer = 4 * sum(parameter.numel() for parameter in built.model.layers[0].parameters())
    assert beside[1] - beside[0] < 0.1 * layer


def test_nothing_keeps_a_converted_model_alive(tokenizer, data, model):
    convert(model, parse_arm("S0-2of4-sparsegpt"), settings(), data())
    trace = weakref.ref(converted := copy.deepcopy(model))
    convert(converted, parse_arm("S0-2of4-wanda"), settings(), data())
    del converted
    gc.collect()
    assert trace() is None


# Given masks


def given(model: nn.Module, topology: str = "2of4", density: float = 0.5) -> dict[str, torch.Tensor]:
    return {name: select(parse_topology(topology), gaussian(*weight.shape), density) for name, weight in prunable_weights(model).items()}


def convert_given(model: nn.Module, masks: dict[str, torch.Tensor], data, tmp_path, arm: str = "S0-2of4-given") -> Masks:
    save_file(masks, tmp_path / "mask.safetensors")
    return convert(model, parse_arm(arm), settings(given_mask=str(tmp_path / "mask.safetensors")), data())


@pytest.mark.parametrize("topology", ["2of4", "6of8", "block16", "unstructured"])
def test_a_mask_made_elsewhere_is_applied_as_it_is(model, data, tmp_path, topology):
    arm = parse_arm(f"S0-{topology}-given")
    before, masks = copy.deepcopy(model), given(model, topology, arm.density)
    found = convert_given(model, masks, data, tmp_path, arm.name)
    assert found.calibration == "" and found.algorithm == "given"
    for name, weight in prunable_weights(model).items():
        assert torch.equal(found.weights[name], masks[name])
        assert torch.equal(weight, prunable_weights(before)[name] * masks[name])


def test_given_masks_that_do_not_fit_are_refused_by_the_parameters_name(model, data, tmp_path):
    name, masks = "model.layers.1.mlp.up_proj.weight", given(model)
    wrong = {
        r"differ in 1 names, e\.g\. \['model\.layers\.1\.mlp\.up_proj\.weight'\]": {
            key: mask for key, mask in masks.items() if key != name
        },
        r"differ in 1 names, e\.g\. \['lm_head\.weight'\]": {**masks, "lm_head.weight": masks[name].clone()},
        f"{name} is torch.float32 .* a boolean tensor of shape": {**masks, name: masks[name].float()},
        rf"{name} is torch.bool \(32, 64\); a boolean tensor of shape \(64, 32\)": {**masks, name: masks[name].T.contiguous()},
    }
    dense = [parameter.detach().clone() for parameter in model.parameters()]
    for message, changed in wrong.items():
        with pytest.raises(ValueError, match=message):
            convert_given(model, changed, data, tmp_path)
    planted = {**masks, name: masks[name].clone()}
    planted[name][0, :4] = True
    with pytest.raises(TopologyViolation, match=f"{name}: 1 of 512 have not 2 kept weights of a group of 4"):
        convert_given(model, planted, data, tmp_path)
    assert all(torch.equal(parameter, before) for parameter, before in zip(model.parameters(), dense, strict=True))


@pytest.mark.parametrize("path", [None, "nowhere/mask.safetensors"])
def test_a_given_mask_without_a_file_is_refused(model, data, path):
    with pytest.raises(ValueError, match="arm S0-2of4-given: sparsify.given_mask is .*, which is no file; name the safetensors file"):
        convert(model, parse_arm("S0-2of4-given"), settings(given_mask=path), data())
