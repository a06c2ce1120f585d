"""Training: the loss by hand, the batches, resuming, determinism, bad losses, broken checkpoints."""

import copy

import numpy as np
import pytest
import torch

from sparsecl.mask_selection import select
from sparsecl.masks import Masks, as_matrix, prunable_weights
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.records import BrokenFile
from sparsecl.settings import Optimisation
from sparsecl.topologies import parse_topology
from sparsecl.training import learning_rate_at, pad_rows, plan_batches, token_weights, train, weighted_loss

SETTINGS = Optimisation(steps=12, batch=16, learning_rate=3e-3, prompt_weight=0.1, checkpoint_every=5)


def weights_of(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def plan_for(rows, steps=12, seed=3):
    return plan_batches([len(row.ids) for row in rows], steps, 16, np.random.default_rng(seed))


@pytest.mark.parametrize("prompt_weight", [0.0, 0.1, 1.0])
def test_loss_equals_the_weighted_mean_taken_row_by_row(model, rows, prompt_weight):
    batch = rows[:7]
    ids, lengths, starts = pad_rows(batch)
    loss = weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], prompt_weight))
    total = weight_sum = 0.0
    for row in batch:  # unpadded, one position after the other
        log_probabilities = model(torch.tensor(row.ids)[None]).logits[0].log_softmax(-1)
        for position in range(1, len(row.ids)):
            weight = 1.0 if position >= row.answer_start else prompt_weight
            total -= weight * log_probabilities[position - 1, row.ids[position]].item()
            weight_sum += weight
    assert loss.item() == pytest.approx(total / weight_sum, abs=1e-5)


def test_every_pass_visits_each_row_once_and_padding_stays_small():
    lengths = np.random.default_rng(0).integers(8, 40, 1024).tolist()
    plan = plan_batches(lengths, 64, 32, np.random.default_rng(1))
    for first in (0, 32):
        assert sorted(np.concatenate(plan[first : first + 32])) == list(range(1024))
    padded = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan)
    assert padded / sum(sum(lengths[i] for i in batch) for batch in plan) < 1.05


def test_batches_depend_on_the_generator_alone(rows):
    first, second, other = plan_for(rows), plan_for(rows), plan_for(rows, seed=4)
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))
    with pytest.raises(ValueError, match="10 rows cannot fill a batch of 16"):
        plan_batches([5] * 10, 1, 16, np.random.default_rng(0))


def test_learning_rate_rises_then_falls_to_nearly_zero():
    settings = Optimisation(steps=100, batch=1, learning_rate=1.0, warmup=0.1)
    rates = [learning_rate_at(step, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == 1.0 and rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.001


def test_the_same_training_twice_gives_the_same_bytes(model, rows):
    import copy

    other = copy.deepcopy(model)
    first, second = (train(m, rows, plan_for(rows), SETTINGS, description="test") for m in (model, other))
    assert torch.equal(weights_of(model), weights_of(other)) and first.losses == second.losses
    assert first.losses[-1] < first.losses[0]


def test_an_interrupted_training_resumes_to_the_same_bytes(model, rows, tmp_path):
    import copy

    interrupted, state = copy.deepcopy(model), tmp_path / "state.safetensors"

    def stop(step: int) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(interrupted, rows, plan_for(rows), SETTINGS, description="test", checkpoint=state, after_step=stop)
    resumed = copy.deepcopy(model)
    steps: list[int] = []
    log = train(resumed, rows, plan_for(rows), SETTINGS, description="test", checkpoint=state, after_step=steps.append)
    whole = train(model, rows, plan_for(rows), SETTINGS, description="test")
    assert steps == [6, 7, 8, 9, 10, 11, 12]  # the five steps before the checkpoint were not trained again
    assert torch.equal(weights_of(resumed), weights_of(model)) and log.tokens == whole.tokens


def test_a_truncated_training_state_is_dropped_and_the_training_starts_again(model, rows, tmp_path):
    state = tmp_path / "state.safetensors"
    state.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    steps: list[int] = []
    train(model, rows, plan_for(rows), SETTINGS, description="test", checkpoint=state, after_step=steps.append)
    assert steps[0] == 1


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_rate(model, rows):
    model.model.embed_tokens.weight.data[:] = float("nan")
    with pytest.raises(FloatingPointError, match=r"pretrain: loss is nan at step 1; lower learning_rate \(now 0.003\)"):
        train(model, rows, plan_for(rows), SETTINGS, description="pretrain")


def test_a_truncated_checkpoint_is_named_and_moved_aside(model, tmp_path):
    save_checkpoint(model, tmp_path / "D0", None, arm="D0", key="k")
    weights = tmp_path / "D0" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BrokenFile, match="model.safetensors is truncated or changed; it was moved to D0.broken"):
        load_checkpoint(tmp_path / "D0")
    assert not (tmp_path / "D0").exists() and (tmp_path / "D0.broken").is_dir()


def test_a_full_disk_leaves_the_old_checkpoint(model, tmp_path, monkeypatch):
    save_checkpoint(model, tmp_path / "D0", None, arm="D0", key="old")

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", no_space)
    with pytest.raises(BrokenFile, match="No space left on device.*free space and run the same command again"):
        save_checkpoint(model, tmp_path / "D0", None, arm="D0", key="new")
    assert load_checkpoint(tmp_path / "D0") is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["D0"]


def magnitude_masks(model) -> Masks:
    topology = parse_topology("2of4")
    weights = {
        name: select(topology, as_matrix(weight.detach().abs()), 0.5).view(weight.shape) for name, weight in prunable_weights(model).items()
    }
    return Masks("2of4", "magnitude", 0.5, "", weights)


def test_confined_updates_leave_weights_outside_the_mask_bit_identical(model, rows):
    """Arm Dg: dense weights, masked updates; weight decay alone would move what the gradient does not."""
    masks = magnitude_masks(model)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    settings = SETTINGS.model_copy(update={"weight_decay": 0.5})
    train(model, rows, plan_for(rows), settings, description="Dg", update_masks=masks)
    after = dict(model.named_parameters())
    for name, mask in masks.weights.items():
        assert torch.equal(after[name][~mask], before[name][~mask]) and (before[name][~mask] != 0).any()
        assert (after[name][mask] != before[name][mask]).float().mean() > 0.99
    assert all((after[name] != before[name]).any() for name in before if name not in masks.weights)


def test_a_penalty_is_part_of_the_gradient_but_not_of_the_logged_loss(model, rows):
    free = copy.deepcopy(model)
    anchor = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def pull(trained):
        return 1e3 * sum(((parameter - anchor[name]) ** 2).sum() for name, parameter in trained.named_parameters())

    plan = plan_for(rows)
    held = train(model, rows, plan, SETTINGS, description="held", penalty=pull)
    loose = train(free, rows, plan, SETTINGS, description="loose")
    start = torch.cat([tensor.flatten() for tensor in anchor.values()])
    assert (weights_of(model) - start).norm() < 0.5 * (weights_of(free) - start).norm()
    assert held.losses[0] == loose.losses[0]


def test_only_parameters_that_require_a_gradient_are_trained(model, rows):
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    train(model, rows, plan_for(rows), SETTINGS, description="norms")
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if "norm" in name}
