"""Orthogonal LoRA: the protected subspace against brute force, orthogonality of what AdamW applied, first-order protection."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_continual_methods import batch_of, context, sparse, weights_of

from sparsecl.continual_methods import method_of
from sparsecl.continual_methods.lora import ADAPTER
from sparsecl.continual_methods.orthogonal_lora import (
    OrthogonalLowRankAdaptation,
    adapter_layers,
    constraint,
    drawn_rows,
    leave_untrained,
    updates_of,
)
from sparsecl.continual_methods.protected_subspace import (
    gradient_moments,
    grown_basis,
    input_moments,
    project_away,
    protected_component,
)
from sparsecl.masks import assert_masks, prunable_weights
from sparsecl.method_settings import Lora, MethodSettings, OrthogonalLora
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.records import BrokenFile
from sparsecl.settings import Optimisation
from sparsecl.training import train, weighted_loss

BASES = ("gradients", "inputs")
ALMOST_ALL = 1 - 1e-12


def settings(basis: str = "gradients", **changes) -> OrthogonalLora:
    return OrthogonalLora(**{"rank": 4, "alpha": 8.0, "basis": basis, "energy": 0.9, "basis_rows": 48} | changes)


def train_stage(model, stage, steps: int, *, constrain=True):
    """AdamW with weight decay, at a rate at which the adapters move far."""
    optimisation = Optimisation(steps=steps, batch=8, learning_rate=1e-2, weight_decay=0.1)
    train(model, stage.rows, stage.plan, optimisation, description="test", masks=stage.masks, penalty=stage.penalty,
          constrain=stage.constrain if constrain else None)  # fmt: skip


def run_stage(model, masks, method, stage_context):
    with method.stage(model, masks, stage_context) as stage:
        train_stage(model, stage, stage_context.steps)
    return stage


def after_one_domain(model, rows, basis: str = "gradients", masks=None, **changes) -> OrthogonalLowRankAdaptation:
    method = OrthogonalLowRankAdaptation(settings(basis, **changes))
    run_stage(model, masks, method, context(rows, 0, steps=20))
    return method


# --- the subspace ---------------------------------------------------------------------------------------------------


def test_a_basis_grows_as_gpms_own_code_grows_it():
    """Against the published loop over singular values of R - M M^T R (sahagobinda/GPM), columns of R being inputs."""
    draws = np.random.default_rng(0)
    basis, ours = np.zeros((12, 0)), torch.zeros(12, 0, dtype=torch.float64)
    for energy, directions in ((0.8, 3), (0.9, 5), (0.5, 2), (0.97, 12), (0.97, 6)):
        inputs = draws.normal(size=(12, directions)) @ np.diag(draws.uniform(0.1, 3, directions)) @ draws.normal(size=(directions, 40))
        left, values, _ = np.linalg.svd(inputs - basis @ basis.T @ inputs)
        total, kept = (np.linalg.svd(inputs, compute_uv=False) ** 2).sum(), 0
        covered = (total - (values**2).sum()) / total
        while covered < energy:
            covered, kept = covered + values[kept] ** 2 / total, kept + 1
        basis = np.concatenate([basis, left[:, :kept]], axis=1)
        ours = grown_basis(ours, torch.from_numpy(inputs @ inputs.T), energy)
        assert ours.shape == basis.shape
        np.testing.assert_allclose(ours @ ours.T, basis @ basis.T, atol=1e-9)
    assert 5 < ours.shape[1] < 12


def test_a_grown_basis_holds_the_share_of_energy_with_no_direction_to_spare_and_keeps_what_it_held():
    torch.manual_seed(0)
    basis = torch.zeros(20, 0, dtype=torch.float64)
    for _ in range(6):
        rows = torch.randn(30, 6, dtype=torch.float64) @ torch.randn(6, 20, dtype=torch.float64)
        grown = grown_basis(basis, rows.T @ rows, 0.9)
        share = float((rows @ grown).square().sum() / rows.square().sum())
        assert share >= 0.9 - 1e-12
        if grown.shape[1] > basis.shape[1]:
            assert float((rows @ grown[:, :-1]).square().sum() / rows.square().sum()) < 0.9
        torch.testing.assert_close(grown.T @ grown, torch.eye(grown.shape[1], dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(grown @ (grown.T @ basis), basis, rtol=0, atol=1e-12)
        basis = grown
    assert 6 < basis.shape[1] <= 20


def test_a_domain_that_is_protected_already_adds_nothing_and_so_does_one_without_gradients():
    torch.manual_seed(0)
    rows = torch.randn(50, 3, dtype=torch.float64) @ torch.randn(3, 10, dtype=torch.float64)
    basis = grown_basis(torch.zeros(10, 0, dtype=torch.float64), rows.T @ rows, ALMOST_ALL)
    assert basis.shape == (10, 3)
    assert grown_basis(basis, 2 * rows.T @ rows, 0.99) is basis
    assert grown_basis(basis, torch.zeros(10, 10, dtype=torch.float64), 0.99) is basis


def test_the_second_moments_are_those_of_explicit_inputs_and_gradients(model, rows):
    """Every row alone, without padding; gradients by plain backward of batches of eight rows of one length."""
    some = [row for row in rows if len(row.ids) == len(rows[0].ids)][:16]
    mixed = rows[:70]
    inputs = {name: [] for name in prunable_weights(model)}
    handles = [
        model.get_submodule(name.removesuffix(".weight")).register_forward_hook(
            lambda module, given, result, name=name: inputs[name].append(given[0].detach()[0].double())
        )
        for name in inputs
    ]
    for row in mixed:
        model(torch.from_numpy(row.ids)[None])
    for handle in handles:
        handle.remove()
    moments = input_moments(model.train(), mixed, "test")
    assert model.training and moments.keys() == inputs.keys()
    for name, values in inputs.items():
        expected = torch.cat(values).T @ torch.cat(values)
        torch.testing.assert_close(moments[name], expected, rtol=1e-4, atol=1e-5 * float(expected.max()))
    masks = sparse(model)
    expected = {name: 0 for name in inputs}
    for start in (0, 8):
        model.zero_grad()
        weighted_loss(model, *batch_of(some[start : start + 8])).backward()
        for name, weight in prunable_weights(model).items():
            gradient = (weight.grad * masks.weights[name]).double()
            expected[name] = expected[name] + gradient.T @ gradient
    for name, moment in gradient_moments(model, some, masks, "test").items():
        torch.testing.assert_close(moment, expected[name], rtol=1e-4, atol=1e-6 * float(expected[name].max()), msg=name)


def test_the_protected_component_is_that_of_a_known_update():
    update = {"a": torch.tensor([[3.0, 4.0, 0.0]]), "b": torch.tensor([[0.0, 12.0]])}
    bases = {"a": torch.eye(3)[:, :1], "b": torch.zeros(2, 0)}
    assert protected_component(update, bases) == pytest.approx(3 / 13)
    assert np.isnan(protected_component({"a": torch.zeros(1, 3)}, bases))
    rows = torch.randn(4, 3)
    torch.testing.assert_close(project_away(rows, bases["a"]), rows * torch.tensor([0.0, 1.0, 1.0]))


# --- the stage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("basis", BASES)
def test_what_adamw_applied_lies_outside_the_protected_subspace(model, rows, basis):
    method = after_one_domain(model, rows, basis)
    start = {name: weight.detach().double() for name, weight in prunable_weights(copy.deepcopy(model)).items()}
    bases = dict(method._bases)
    assert all(0 < values.shape[1] < values.shape[0] for values in bases.values())
    with method.stage(model, None, context(rows, 1, steps=40)) as stage:
        for name, layer in adapter_layers(model).items():
            a = layer.lora_A[ADAPTER].weight.detach().double()
            assert float((a @ bases[name]).norm() / a.norm()) < 1e-6  # from the first step on
        train_stage(model, stage, 40)
    moved = {name: weight.detach().double() - start[name] for name, weight in prunable_weights(model).items()}
    for name, update in moved.items():
        assert update.norm() > 0.05 * start[name].norm()
        assert float((update @ bases[name]).norm() / update.norm()) <= 1e-5, name
    assert stage.measures["protected_component"] <= 1e-6  # without the rounding of the merged weights


def test_projecting_the_gradients_alone_would_not_do(model, rows):
    method = after_one_domain(model, rows)
    bases = dict(method._bases)
    with method.stage(model, None, context(rows, 1, steps=40)) as stage:
        for name, layer in adapter_layers(model).items():
            layer.lora_A[ADAPTER].weight.register_hook(partial(project_away, basis=bases[name].float()))
        train_stage(model, stage, 40, constrain=False)
        assert protected_component(updates_of(adapter_layers(model)), bases) > 0.01


def test_without_an_earlier_domain_it_is_lora(model, rows):
    other = copy.deepcopy(model)
    run_stage(model, None, OrthogonalLowRankAdaptation(settings(dropout=0.1)), context(rows, 0))
    run_stage(other, None, method_of("lora", MethodSettings(lora=Lora(rank=4, alpha=8.0, dropout=0.1))), context(rows, 0))
    assert torch.equal(weights_of(model), weights_of(other))


def update_after(model, rows, method, is_projected: bool) -> dict[str, torch.Tensor]:
    """The update of a second stage, trained on copies of model and method."""
    current = copy.deepcopy(model)
    with copy.deepcopy(method).stage(current, None, context(rows, 1, steps=10)) as stage:
        train_stage(current, stage, 10, constrain=is_projected)
        return updates_of(adapter_layers(current))


def test_gpms_inputs_keep_the_outputs_of_every_layer_on_the_rows_behind_the_basis(model, rows):
    method = after_one_domain(model, rows, "inputs", energy=ALMOST_ALL, basis_rows=2)
    moments = input_moments(model, drawn_rows(rows[:130], 2, context(rows, 0)), "test")

    def changed(updates):  # norm of the change of all outputs
        return sum(abs(float((update.double() @ moments[name] * update.double()).sum())) for name, update in updates.items()) ** 0.5

    free, held = (update_after(model, rows, method, is_projected) for is_projected in (False, True))
    assert changed(held) < 1e-4 * changed(free)


def test_gradients_keep_the_loss_on_the_rows_behind_the_basis_to_first_order(model, rows):
    method = after_one_domain(model, rows, "gradients", energy=ALMOST_ALL, basis_rows=8)
    weighted_loss(model, *batch_of(drawn_rows(rows[:130], 8, context(rows, 0)))).backward()
    gradients = {name: weight.grad.clone() for name, weight in prunable_weights(model).items()}

    def first_order(updates):
        return abs(sum(float((updates[name] * gradient).sum()) for name, gradient in gradients.items()))

    free, held = (update_after(model, rows, method, is_projected) for is_projected in (False, True))
    assert first_order(held) < 1e-3 * first_order(free)


def test_on_a_sparse_arm_masked_gradients_keep_the_loss_to_first_order_though_the_masked_update_leaves_the_subspace(model, rows):
    masks = sparse(model)
    method = after_one_domain(model, rows, masks=masks, energy=ALMOST_ALL, basis_rows=8)
    seen = drawn_rows(rows[:130], 8, context(rows, 0))
    weighted_loss(model, *batch_of(seen)).backward()
    gradients = {name: weight.grad.clone() for name, weight in prunable_weights(model).items()}
    with method.stage(model, masks, context(rows, 1, steps=10)) as stage:
        train_stage(model, stage, 10)
        updates = updates_of(adapter_layers(model))
    first_order = sum(float((updates[name] * values).sum()) for name, values in gradients.items())
    sizes = sum(float((updates[name] * values).abs().sum()) for name, values in gradients.items())
    assert abs(first_order) < 1e-4 * sizes
    assert 0.05 < stage.measures["protected_component"] < 1
    assert_masks(model, masks, "after the stage")


@pytest.mark.parametrize("basis", BASES)
def test_bases_grow_from_stage_to_stage_and_say_what_they_passed_through_the_model(model, rows, basis):
    method, before = OrthogonalLowRankAdaptation(settings(basis)), {}
    for number in range(3):
        stage = run_stage(model, None, method, context(rows, number))
        for name, values in method._bases.items():
            identity = torch.eye(values.shape[1], dtype=torch.float64)
            torch.testing.assert_close(values.T @ values, identity, rtol=0, atol=1e-10)
            earlier = before.get(name, values[:, :0])
            torch.testing.assert_close(values @ (values.T @ earlier), earlier, rtol=0, atol=1e-10)
        assert sum(values.shape[1] for values in method._bases.values()) > sum(values.shape[1] for values in before.values()) or number
        if number == 2:  # no stage follows the last
            assert stage.extra is None and stage.probe is None and method._bases == before
            continue
        drawn = drawn_rows(stage.rows, 48, context(rows, number))
        passed, other = (stage.probe, stage.extra) if basis == "inputs" else (stage.extra, stage.probe)
        assert other is None and passed.tokens == sum(len(row.ids) for row in drawn) and len(drawn) == 48
        assert passed.predicted == (0 if basis == "inputs" else sum(len(row.ids) - row.answer_start for row in drawn))
        before = dict(method._bases)


def test_a_layer_with_nothing_left_to_learn_in_stays_as_it_is(model, rows):
    method = after_one_domain(model, rows)
    names = list(method._bases)
    method._bases[names[0]] = torch.eye(len(method._bases[names[0]]), dtype=torch.float64)
    start = {name: weight.detach().clone() for name, weight in prunable_weights(model).items()}
    stage = run_stage(model, None, method, context(rows, 1))
    assert torch.equal(prunable_weights(model)[names[0]], start[names[0]])
    assert all(not torch.equal(prunable_weights(model)[name], start[name]) for name in names[1:])
    assert stage.measures["full_layers"] == 1
    assert stage.trainable == sum(4 * sum(start[name].shape) for name in names[1:])


def test_a_model_with_nothing_left_to_learn_in_is_refused(model, rows):
    method = after_one_domain(model, rows)
    method._bases = {name: torch.eye(len(values), dtype=torch.float64) for name, values in method._bases.items()}
    with (
        pytest.raises(ValueError, match="earlier domains protect the whole input space of all 14 layers; lower its energy"),
        method.stage(model, None, context(rows, 1)),
    ):
        pass


@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_stream_resumed_from_files_ends_in_the_same_weights(model, rows, tmp_path, basis, is_sparse):
    masks = sparse(model) if is_sparse else None
    resumed, method = copy.deepcopy(model), OrthogonalLowRankAdaptation(settings(basis))
    for number in range(3):
        run_stage(model, masks, method, context(rows, number))
        other = OrthogonalLowRankAdaptation(settings(basis))
        if number:
            other.load_state(tmp_path / "state.safetensors")
            resumed = load_checkpoint(tmp_path / "stage", masks)
        torch.manual_seed(number)
        run_stage(resumed, masks, other, context(rows, number))
        other.save_state(tmp_path / "state.safetensors")
        save_checkpoint(resumed, tmp_path / "stage", masks, arm="D1", key="k")
    assert torch.equal(weights_of(model), weights_of(resumed))


def test_a_state_of_another_moment_or_a_broken_one_is_refused(model, rows, tmp_path):
    state = tmp_path / "orthogonal.safetensors"
    after_one_domain(model, rows).save_state(state)
    late = OrthogonalLowRankAdaptation(settings())
    late.load_state(state)
    with (
        pytest.raises(ValueError, match=r"orthogonal-lora: stage legal follows \('code', 'math'\), but the state knows \('code',\)"),
        late.stage(model, None, context(rows, 2)),
    ):
        pass
    state.write_bytes(state.read_bytes()[:-10])
    with pytest.raises(BrokenFile, match="orthogonal.safetensors is no state of orthogonal-lora"):
        late.load_state(state)


def test_a_layer_whose_basis_is_empty_is_left_alone(model, rows):
    method = OrthogonalLowRankAdaptation(settings())
    with method.stage(model, None, context(rows, 0)):
        adapters = adapter_layers(model)
        empty = {name: torch.zeros(layer.in_features, 0, dtype=torch.float64) for name, layer in adapters.items()}
        before = {name: layer.lora_A[ADAPTER].weight.clone() for name, layer in adapters.items()}
        assert leave_untrained(adapters, empty) == []
        constraint(adapters, empty)()
        assert all(torch.equal(layer.lora_A[ADAPTER].weight, before[name]) for name, layer in adapters.items())
