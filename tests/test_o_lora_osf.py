"""O-LoRA: the published penalty against brute force; OSF: identity, merge, and how far AdamW drifts from what PEFT projects."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from test_continual_methods import batch_of, context, sparse, weights_of
from test_orthogonal_lora import run_stage, train_stage

from sparsecl.continual_methods import method_of
from sparsecl.continual_methods.lora import ADAPTER
from sparsecl.continual_methods.o_lora import PenalisedLowRankAdaptation, adapter_penalty
from sparsecl.continual_methods.orthogonal_lora import adapter_layers
from sparsecl.continual_methods.osf import OrthogonalSubspaceFineTuning, frozen_inputs
from sparsecl.masks import assert_masks, prunable_weights
from sparsecl.method_settings import Lora, MethodSettings, OLora, Osf
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.records import BrokenFile
from sparsecl.settings import Optimisation
from sparsecl.training import train, weighted_loss

PENALISED = OLora(rank=4, alpha=8.0)


def settings() -> MethodSettings:
    return MethodSettings(o_lora=PENALISED, osf=Osf(frozen=0.5))


# --- O-LoRA ---------------------------------------------------------------------------------------------------------


def test_the_penalty_is_the_published_sum_and_moves_the_new_adapter_alone(model, rows):
    """By loops over rows and entries; the gradient of |A_old A_new^T| is A_old's rows, signed."""
    torch.manual_seed(0)
    with PenalisedLowRankAdaptation(PENALISED).stage(model, None, context(rows, 0)) as stage:
        assert stage.penalty is None
        layers = adapter_layers(model)
        earlier = {name: torch.randn(6, layer.in_features) for name, layer in layers.items()}
        for layer in layers.values():
            layer.lora_B[ADAPTER].weight.data.normal_()
        expected, norms = 0.0, 0.0
        for name, layer in layers.items():
            for new in layer.lora_A[ADAPTER].weight.detach():
                expected += sum(abs(float(old @ new)) for old in earlier[name])
            norms += float(layer.lora_A[ADAPTER].weight.detach().norm() + layer.lora_B[ADAPTER].weight.detach().norm())
        assert adapter_penalty(earlier, 0.5, 0.0)(model).item() == pytest.approx(0.5 * expected, rel=1e-5)
        assert adapter_penalty(earlier, 0.5, 0.1)(model).item() == pytest.approx(0.5 * expected + 0.1 * norms, rel=1e-5)
        assert adapter_penalty({}, 0.5, 0.1)(model).item() == pytest.approx(0.1 * norms, rel=1e-5)
        adapter_penalty(earlier, 0.5, 0.0)(model).backward()
        for name, layer in layers.items():
            a = layer.lora_A[ADAPTER].weight
            torch.testing.assert_close(a.grad, 0.5 * (a.detach() @ earlier[name].T).sign() @ earlier[name], rtol=1e-5, atol=1e-5)
            assert earlier[name].grad is None and not earlier[name].requires_grad
            assert layer.lora_B[ADAPTER].weight.grad is None
        assert all(parameter.grad is None for name, parameter in model.named_parameters() if "lora_A" not in name)


def test_the_norms_of_a_new_adapter_have_a_gradient_although_its_b_is_zero(model, rows):
    with PenalisedLowRankAdaptation(PENALISED).stage(model, None, context(rows, 0)):
        adapter_penalty({}, 0.5, 0.1)(model).backward()
        gradients = [parameter.grad for name, parameter in model.named_parameters() if "lora_" in name]
    assert len(gradients) == 28 and all(torch.isfinite(gradient).all() for gradient in gradients)


def test_without_weights_of_the_penalty_it_is_lora_bit_for_bit(model, rows):
    other, same = copy.deepcopy(model), {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    ours = PenalisedLowRankAdaptation(OLora(**same, l1=0.0, l2=0.0))
    theirs = method_of("lora", MethodSettings(lora=Lora(**same)))
    for number in range(2):
        run_stage(model, None, ours, context(rows, number))
        run_stage(other, None, theirs, context(rows, number))
    assert torch.equal(weights_of(model), weights_of(other))


def test_every_finished_stage_adds_its_own_a_to_the_stack_and_leaves_those_before_as_they_were(model, rows):
    method, before = PenalisedLowRankAdaptation(PENALISED), {}
    for number in range(3):
        with method.stage(model, None, context(rows, number)) as stage:
            train_stage(model, stage, 6)
            new = {name: layer.lora_A[ADAPTER].weight.detach().clone() for name, layer in adapter_layers(model).items()}
        for name, stack in method._earlier.items():
            assert stack.shape[0] == 4 * (number + 1)
            assert torch.equal(stack[-4:], new[name]) and torch.equal(stack[:-4], before.get(name, stack[:0]))
        before = dict(method._earlier)


def test_the_penalty_drives_the_new_input_directions_apart_from_the_old_ones(model, rows):
    cosines = {}
    for l1 in (1e-6, 0.5):
        current, method = copy.deepcopy(model), PenalisedLowRankAdaptation(OLora(rank=4, alpha=8.0, l1=l1))
        run_stage(current, None, method, context(rows, 0))
        earlier = dict(method._earlier)
        with method.stage(current, None, context(rows, 1, steps=40)) as stage:
            train_stage(current, stage, 40)
            normed = torch.nn.functional.normalize
            cosines[l1] = sum(
                float((normed(earlier[name]) @ normed(layer.lora_A[ADAPTER].weight.detach()).T).abs().mean())
                for name, layer in adapter_layers(current).items()
            )
        assert 0 < stage.measures["protected_component"] < 1
    assert cosines[0.5] < 0.6 * cosines[1e-6]


def test_on_a_sparse_arm_the_topology_is_kept(model, rows):
    masks, method = sparse(model), PenalisedLowRankAdaptation(PENALISED)
    for number in range(2):
        stage = run_stage(model, masks, method, context(rows, number))
        assert_masks(model, masks, "after the stage")
    assert stage.measures["merged"] == 0.5 and stage.adapter_rank == 4


def test_a_broken_state_and_one_of_another_moment_are_refused(model, rows, tmp_path):
    state, late = tmp_path / "stack.safetensors", PenalisedLowRankAdaptation(PENALISED)
    method = PenalisedLowRankAdaptation(PENALISED)
    run_stage(model, None, method, context(rows, 0))
    method.save_state(state)
    late.load_state(state)
    with pytest.raises(ValueError, match="o-lora: stage legal follows"), late.stage(model, None, context(rows, 2)):
        pass
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(BrokenFile, match="foreign.safetensors is no state of o-lora"):
        late.load_state(tmp_path / "foreign.safetensors")


# --- OSF ------------------------------------------------------------------------------------------------------------


def test_osf_starts_as_the_model_it_was_given_trains_the_trailing_half_and_merges_what_it_trained(model, rows):
    """Tolerance: float32 rounding of W x + B (A x), and of the merged weights."""
    ids, start, names = batch_of(rows[:16])[0], copy.deepcopy(model), list(dict(model.named_parameters()))
    attributes, classes = set(vars(model)), [type(layer) for layer in model.modules()]
    before = model.eval()(ids).logits.detach()
    with OrthogonalSubspaceFineTuning(Osf(frozen=0.5)).stage(model, None, context(rows, 0)) as stage:
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)
        train_stage(model, stage, 6)
        trained = model.eval()(ids).logits.detach()
    torch.testing.assert_close(model(ids).logits, trained, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(trained, before, atol=1e-2)
    weights = prunable_weights(model)
    trailing = {name: min(weight.shape) - min(weight.shape) // 2 for name, weight in weights.items()}
    assert stage.trainable == sum(trailing[name] * (sum(weight.shape) + 1) for name, weight in weights.items())
    assert not stage.flops_known and stage.masks is None
    moved = {name for name, weight in start.named_parameters() if not torch.equal(weight, model.get_parameter(name))}
    assert moved == set(weights)
    assert set(vars(model)) == attributes and [type(layer) for layer in model.modules()] == classes
    assert list(dict(model.named_parameters())) == names and all(parameter.requires_grad for parameter in model.parameters())


def test_adamw_leaves_the_subspace_off_which_peft_projects_the_gradients_alone(model, rows):
    """||U_hi^T U_lo|| relative to ||U_lo||: rounding under plain gradient descent, a hundredth and more under AdamW."""
    drift = {}
    for optimiser in ("sgd", "adamw"):
        current = copy.deepcopy(model)
        with OrthogonalSubspaceFineTuning(Osf(frozen=0.5)).stage(current, None, context(rows, 0, steps=20)) as stage:
            layers = [layer for layer in current.modules() if hasattr(layer, "osf_svd_params")]
            leading = [torch.linalg.svd(layer.base_layer.weight, full_matrices=False)[0] for layer in layers]
            if optimiser == "adamw":
                train(current, stage.rows, stage.plan, Optimisation(steps=20, batch=8, learning_rate=1e-3), description="test")
            else:
                descend(current, stage)
            shares = []
            for layer, left in zip(layers, leading, strict=True):
                trailing = layer.osf_svd_params[ADAPTER]["U_low"].detach()
                shares.append(float((left[:, : layer.effective_rank[ADAPTER]].T @ trailing).norm() / trailing.norm()))
            drift[optimiser] = max(shares)
        assert (stage.measures["protected_component"] > 1e-2) == (optimiser == "adamw")
    assert drift["sgd"] < 1e-5 and 1e-3 < drift["adamw"] < 0.2


def descend(model, stage) -> None:
    """Plain gradient descent on the stage's batches."""
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.1)
    for batch in stage.plan:
        optimizer.zero_grad()
        weighted_loss(model, *batch_of([stage.rows[index] for index in batch])).backward()
        optimizer.step()


def test_the_frozen_input_directions_are_the_leading_ones(model, rows):
    with OrthogonalSubspaceFineTuning(Osf(frozen=0.25)).stage(model, None, context(rows, 0)):
        layer = next(layer for layer in model.modules() if hasattr(layer, "osf_svd_params"))
        frozen, weight = frozen_inputs(layer), layer.base_layer.weight.detach()
    assert frozen.shape == (32, 8)
    leading = torch.linalg.eigh(weight.T @ weight)[1][:, -8:]
    torch.testing.assert_close(frozen @ frozen.T, leading @ leading.T, rtol=0, atol=1e-4)


def test_osf_refuses_a_sparse_arm_before_it_touches_the_model(model, rows):
    masks = sparse(model)
    names = list(dict(model.named_parameters()))
    with (
        pytest.raises(
            ValueError, match="osf: a sum of dense factors has no zeros, so that the topology 2of4 would be lost; use a dense arm"
        ),
        OrthogonalSubspaceFineTuning(Osf()).stage(model, masks, context(rows, 0)),
    ):
        pass
    assert list(dict(model.named_parameters())) == names


# --- both -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "is_sparse"), [("o-lora", False), ("o-lora", True), ("osf", False)])
def test_a_stream_resumed_from_files_ends_in_the_same_weights(model, rows, tmp_path, name, is_sparse):
    masks = sparse(model) if is_sparse else None
    resumed, method = copy.deepcopy(model), method_of(name, settings())
    ids = batch_of(rows[:16])[0]
    for number in range(3):
        run_stage(model, masks, method, context(rows, number))
        other = method_of(name, settings())
        if number:
            other.load_state(tmp_path / "state.safetensors")
            resumed = load_checkpoint(tmp_path / "stage", masks)
        torch.manual_seed(number)
        run_stage(resumed, masks, other, context(rows, number))
        other.save_state(tmp_path / "state.safetensors")
        save_checkpoint(resumed, tmp_path / "stage", masks, arm="D1", key="k")
    assert torch.equal(weights_of(model), weights_of(resumed))
    assert torch.equal(load_checkpoint(tmp_path / "stage", masks).eval()(ids).logits, model.eval()(ids).logits)
    assert (tmp_path / "state.safetensors").exists() == (name == "o-lora")


@pytest.mark.parametrize("name", ["orthogonal-lora", "o-lora", "osf"])
def test_stacked_experts_are_refused_by_name(name, rows):
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = torch.nn.Parameter(torch.zeros(4, 8, 8))

    experts = torch.nn.ModuleDict({"experts": Experts()})
    with (
        pytest.raises(ValueError, match="experts.down_proj holds stacked experts"),
        method_of(name, MethodSettings()).stage(experts, None, context(rows, 0)),
    ):
        pass
