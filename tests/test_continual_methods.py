"""Methods of continual fine-tuning: replay's share, EWC's Fisher and penalty, masked LoRA against PEFT's own, resuming."""

import copy

import numpy as np
import pytest
import torch
from peft import LoraConfig, LoraModel
from safetensors.torch import save_file
from torch import nn

from sparsecl.continual_methods import MAKERS, StageContext, method_of
from sparsecl.continual_methods.ewc import ElasticWeightConsolidation, diagonal_fisher, quadratic_penalty
from sparsecl.continual_methods.lora import ADAPTER, add_adapters, merge_adapters
from sparsecl.continual_methods.masked_lora import MaskedLoraLinear
from sparsecl.masks import Masks, TopologyViolation, apply_masks, assert_masks, prunable_weights
from sparsecl.method_settings import Ewc, Lora, MethodSettings, Replay
from sparsecl.methods import DENSE_ONLY, METHODS, REFERENCES
from sparsecl.modeling import build_model, load_checkpoint, save_checkpoint
from sparsecl.randomness import generator, stream_seed
from sparsecl.records import BrokenFile
from sparsecl.settings import Model, Optimisation
from sparsecl.training import pad_rows, plan_batches, token_weights, train

DOMAINS = ("code", "math", "legal")
STEPS, BATCH = 6, 8
SETTINGS = MethodSettings(
    lora=Lora(rank=4, alpha=8.0, dropout=0.1),
    replay=Replay(lines_per_domain=20, share=0.25),
    ewc=Ewc(strength=1.0, fisher_rows=24),
)


def context(rows, number: int, steps: int = STEPS, batch: int = BATCH) -> StageContext:
    """Stage `number` (from 0) of a stream over three domains of 130 rows each."""
    parts = {domain: rows[130 * index : 130 * (index + 1)] for index, domain in enumerate(DOMAINS)}
    return StageContext(
        domain=DOMAINS[number],
        earlier=DOMAINS[:number],
        is_last=number == len(DOMAINS) - 1,
        rows_of=parts.__getitem__,
        steps=steps,
        batch=batch,
        generator=lambda stream: generator(7, 0, stream),
        seed=lambda stream: stream_seed(7, 0, stream),
    )


def run_stage(model, masks, method, stage_context):
    """One stage as `continual` runs it; returns the stage."""
    optimisation = Optimisation(steps=stage_context.steps, batch=stage_context.batch, learning_rate=5e-3)
    with method.stage(model, masks, stage_context) as stage:
        about = {"masks": stage.masks, "penalty": stage.penalty, "constrain": stage.constrain}
        train(model, stage.rows, stage.plan, optimisation, description="test", **about)
    return stage


def sparse(model) -> Masks:
    """Random 2-of-4 masks, applied to the model."""
    torch.manual_seed(3)
    kept = {}
    for name, weight in prunable_weights(model).items():
        places = torch.rand(weight.shape[0], weight.shape[1] // 4, 4).argsort(-1)
        kept[name] = (places < 2).reshape(weight.shape)
    masks = Masks("2of4", "random", 0.5, "", kept)
    apply_masks(model, masks)
    return masks


def nothing_masked(model) -> Masks:
    return Masks("unstructured", "random", 1.0, "", {name: torch.ones_like(w, dtype=bool) for name, w in prunable_weights(model).items()})


def weights_of(model) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def batch_of(rows):
    ids, lengths, starts = pad_rows(rows)
    return ids, token_weights(lengths, starts, ids.shape[1], 0.0)


def answer_loss(model, rows) -> torch.Tensor:
    """Summed answer loss of the rows, by transformers' own logits."""
    ids, weights = batch_of(rows)
    losses = nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum()


# --- every method ---------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="method 'gem' is unknown; known: full, lora, replay, ewc"):
        method_of("gem", SETTINGS)


def test_every_method_that_a_study_may_name_has_a_maker():
    assert set(MAKERS) == set(METHODS) - set(REFERENCES)


@pytest.mark.parametrize("name", ["full", "lora", "ewc"])
def test_all_but_replay_train_on_the_batches_of_full_fine_tuning(model, rows, name):
    stage_context, method = context(rows, 0), method_of(name, SETTINGS)
    expected = plan_batches([len(row.ids) for row in rows[:130]], STEPS, BATCH, generator(7, 0, "batches-code"))
    with method.stage(model, None, stage_context) as stage:
        assert list(stage.rows) == list(rows[:130])
        assert all((ours == theirs).all() for ours, theirs in zip(stage.plan, expected, strict=True))


@pytest.mark.parametrize("name", ["replay", "ewc"])
def test_the_first_stage_of_replay_and_ewc_is_that_of_full_fine_tuning(model, rows, name):
    ours, theirs = copy.deepcopy(model), model
    run_stage(ours, None, method_of(name, SETTINGS), context(rows, 0))
    run_stage(theirs, None, method_of("full", SETTINGS), context(rows, 0))
    assert torch.equal(weights_of(ours), weights_of(theirs))


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_stream_resumed_from_files_ends_in_the_same_weights(model, rows, tmp_path, name, is_sparse):
    if is_sparse and name in DENSE_ONLY:
        with pytest.raises(ValueError, match=f"{name}: "):
            run_stage(model, sparse(model), method_of(name, SETTINGS), context(rows, 0))
        return
    masks = sparse(model) if is_sparse else None
    resumed, method, other = copy.deepcopy(model), method_of(name, SETTINGS), method_of(name, SETTINGS)
    before = weights_of(model)
    for number in range(3):
        run_stage(model, masks, method, context(rows, number))
        assert_masks(model, masks, "after the stage")
    for number in range(3):  # every stage in a process of its own: model, masks and state come from files
        if number:
            other = method_of(name, SETTINGS)
            other.load_state(tmp_path / "state.safetensors")
            resumed = load_checkpoint(tmp_path / "stage", masks)
        torch.manual_seed(number)  # what torch's generator did before the stage must not matter
        run_stage(resumed, masks, other, context(rows, number))
        other.save_state(tmp_path / "state.safetensors")
        save_checkpoint(resumed, tmp_path / "stage", masks, arm="D1", key="k")
    assert torch.equal(weights_of(model), weights_of(resumed)) and not torch.equal(weights_of(model), before)
    assert (tmp_path / "state.safetensors").exists() == (name not in ("full", "lora", "replay", "osf"))


# --- replay ---------------------------------------------------------------------------------------------------------


def replayed(rows, number: int, settings: Replay = SETTINGS.replay, steps: int = STEPS, batch: int = BATCH):
    stage_context = context(rows, number, steps, batch)
    with method_of("replay", MethodSettings(replay=settings)).stage(nn.Linear(1, 1), None, stage_context) as stage:
        return stage


@pytest.mark.parametrize(("share", "count"), [(0.25, 2), (0.5, 4), (0.875, 7)])
def test_replay_takes_exactly_its_share_of_every_batch_from_the_buffer(rows, share, count):
    stage = replayed(rows, 2, Replay(lines_per_domain=20, share=share), steps=40)
    assert len(stage.plan) == 40 and {len(batch) for batch in stage.plan} == {BATCH}
    assert {int((batch >= 130).sum()) for batch in stage.plan} == {count}  # the stage's own rows come first


def test_the_buffer_holds_distinct_rows_of_every_finished_domain_and_replays_them_equally_often(rows):
    stage = replayed(rows, 2, steps=40)
    ids = {id(row): number for number, row in enumerate(rows)}
    kept = [ids[id(row)] for row in stage.rows[130:]]
    assert len(set(kept)) == 40 and [sum(130 * n <= place < 130 * (n + 1) for place in kept) for n in range(3)] == [20, 20, 0]
    counts = np.bincount(np.concatenate(stage.plan), minlength=170)
    assert set(counts[130:]) == {2}  # 40 steps of 2 rows are two passes over the 40 kept rows
    assert set(counts[:130]) <= {1, 2}  # 40 steps of 6 rows are not quite two passes over the stage's own


def test_a_domain_keeps_its_buffer_in_every_later_stage(rows):
    second, third = replayed(rows, 1), replayed(rows, 2)
    assert second.rows[130:] == third.rows[130:150]


def test_replay_batches_stay_sorted_by_length(rows):
    stage = replayed(rows, 2, steps=32, batch=16, settings=Replay(lines_per_domain=64, share=0.25))
    lengths = [np.array([len(stage.rows[index].ids) for index in batch]) for batch in stage.plan]
    padded = sum(int(batch.max()) * len(batch) for batch in lengths)
    assert sum(int(batch.sum()) for batch in lengths) / padded > 0.95


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Replay(lines_per_domain=20, share=0.3), "replay.share: 0.3 of a batch of 8 is 2.4 rows; choose one that makes 1 to 7"),
        (Replay(lines_per_domain=20, share=0.01), "replay.share: 0.01 of a batch of 8 is 0.08 rows"),
        (Replay(lines_per_domain=131), "replay.lines_per_domain: 131 lines asked for, but code has 130; choose no more than that"),
    ],
)
def test_impossible_replay_is_refused_with_what_would_do(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        replayed(rows, 1, settings)


# --- ewc ------------------------------------------------------------------------------------------------------------


def test_fisher_equals_the_mean_squared_gradient_taken_row_by_row(model, rows):
    train(model, rows, plan_batches([len(row.ids) for row in rows], 20, 16, np.random.default_rng(0)),
          Optimisation(steps=20, batch=16, learning_rate=3e-3), description="test")  # fmt: skip
    masks, chosen = sparse(model), rows[:70]
    fisher = diagonal_fisher(model, chosen, masks)
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    for row in chosen:
        model.zero_grad()
        answer_loss(model, [row]).backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad**2
    tokens = sum(len(row.ids) - row.answer_start for row in chosen)
    assert fisher.keys() == total.keys()
    for name, values in total.items():
        expected = values / tokens * masks.weights.get(name, 1)
        torch.testing.assert_close(fisher[name], expected, rtol=1e-4, atol=1e-4 * float(expected.max()), msg=name)
        assert expected.max() > 0
    assert all((fisher[name][~mask] == 0).all() for name, mask in masks.weights.items())


def linear_gaussian(seed: int):
    """A domain whose Fisher is diagonal and known: y = theta x + noise of variance 1, inputs orthogonal."""
    torch.manual_seed(seed)
    inputs = torch.linalg.qr(torch.randn(50, 4, dtype=torch.float64))[0] * (torch.rand(4, dtype=torch.float64) * 9 + 1)
    targets = inputs @ torch.randn(4, dtype=torch.float64) + torch.randn(50, dtype=torch.float64)
    fisher = (inputs**2).mean(0)  # E[x_i^2] / 1, per row
    return inputs, targets, fisher, (inputs * targets[:, None]).mean(0) / fisher


def minimise(model, loss) -> torch.Tensor:
    """A minimum to rounding: the losses are quadratic."""
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
    return model.weight.detach()[0].clone()


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_the_penalty_leads_to_the_closed_form_minimum_of_a_linear_gaussian_model(strength):
    _, _, first, start = linear_gaussian(0)
    inputs, targets, second, goal = linear_gaussian(1)
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    model.weight.data[0] = start
    penalty = quadratic_penalty({"weight": first[None]}, model, strength)
    assert penalty(model).item() == 0.0
    found = minimise(model, lambda: ((targets - model(inputs)[:, 0]) ** 2).mean() / 2 + penalty(model))
    torch.testing.assert_close(found, (second * goal + strength * first * start) / (second + strength * first), rtol=1e-6, atol=1e-8)


def test_with_strength_one_summed_fishers_give_the_solution_of_all_domains_together():
    """Online EWC with decay 1 is exact where losses are quadratic and Fishers diagonal: the posterior mean."""
    domains = [linear_gaussian(seed) for seed in range(3)]
    model = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    seen = torch.zeros(1, 4, dtype=torch.float64)
    for inputs, targets, fisher, _ in domains:
        penalty = quadratic_penalty({"weight": seen}, model, 1.0)
        found = minimise(model, lambda x=inputs, y=targets, penalty=penalty: ((y - model(x)[:, 0]) ** 2).mean() / 2 + penalty(model))
        seen = seen + fisher
    together = sum(fisher * optimum for _, _, fisher, optimum in domains) / seen[0]
    torch.testing.assert_close(found, together, rtol=1e-6, atol=1e-8)


def test_ewc_sums_the_fishers_of_finished_domains_and_anchors_where_the_stage_starts(model, rows):
    method = ElasticWeightConsolidation(SETTINGS.ewc)
    expected = None
    for number in range(3):
        stage_context = context(rows, number)
        start = copy.deepcopy(model)
        with method.stage(model, None, stage_context) as stage:
            assert (stage.penalty is None) == (number == 0)
            for parameter in model.parameters():
                parameter.data += 0.01
            if stage.penalty is not None:
                assert stage.penalty(start).item() == 0.0
                by_hand = sum(float((values * 0.01**2).sum()) for values in expected.values()) / 2
                assert stage.penalty(model).item() == pytest.approx(by_hand, rel=1e-3)
        part = rows[130 * number : 130 * (number + 1)]
        chosen = [part[i] for i in generator(7, 0, f"fisher-{DOMAINS[number]}").choice(130, 24, replace=False)]
        fisher = diagonal_fisher(model, chosen, None)
        expected = fisher if expected is None else {name: values + fisher[name] for name, values in expected.items()}
        assert (stage.extra is None) == (number == 2)  # no stage follows the last
        if stage.extra is not None:
            assert stage.extra.tokens == sum(len(row.ids) for row in chosen)
            assert stage.extra.predicted == stage.extra.tokens - len(chosen)


def test_ewc_moves_important_weights_less(model, rows):
    moved = {}
    for strength in (1e-6, 1e3):
        current, method = copy.deepcopy(model), ElasticWeightConsolidation(Ewc(strength=strength, fisher_rows=64))
        run_stage(current, None, method, context(rows, 0, steps=20))
        with method.stage(current, None, context(rows, 1, steps=20)) as stage:
            train(current, stage.rows, stage.plan, Optimisation(steps=20, batch=BATCH, learning_rate=5e-3), description="t",
                  penalty=stage.penalty)  # fmt: skip
            moved[strength] = stage.penalty(current).item() / strength
    assert moved[1e3] < 0.5 * moved[1e-6]


def test_a_state_of_another_moment_or_a_broken_one_is_refused(model, rows, tmp_path):
    state = tmp_path / "ewc.safetensors"
    method = ElasticWeightConsolidation(SETTINGS.ewc)
    run_stage(model, None, method, context(rows, 0))
    method.save_state(state)
    late = ElasticWeightConsolidation(SETTINGS.ewc)
    late.load_state(state)
    with pytest.raises(ValueError, match=r"stage legal follows \('code', 'math'\), but the state knows \('code',\); load the state"):
        run_stage(model, None, late, context(rows, 2))
    truncated = state.read_bytes()[:-10]
    save_file({"weight": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    state.write_bytes(truncated)
    for name in ("ewc", "foreign", "absent"):
        with pytest.raises(BrokenFile, match=f"{name}.safetensors is no state of ewc"):
            late.load_state(tmp_path / f"{name}.safetensors")


# --- lora -----------------------------------------------------------------------------------------------------------


def randomised(adapted_model) -> None:
    """Give every adapter a B that is not zero, the same whatever the layers' class."""
    torch.manual_seed(5)
    for name, parameter in adapted_model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_with_nothing_masked_the_layer_is_pefts_own_in_forward_gradients_and_merge(model, rows, dropout):
    """Tolerance: float32 rounding of (W + B A) x against W x + B (A x)."""
    other, settings = copy.deepcopy(model), SETTINGS.lora.model_copy(update={"dropout": dropout})
    ours = add_adapters(model, nothing_masked(model), settings)
    targets = [name.removesuffix(".weight") for name in prunable_weights(copy.deepcopy(other))]
    theirs = LoraModel(other, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=targets), ADAPTER)
    assert sum(isinstance(layer, MaskedLoraLinear) for layer in model.modules()) == 14
    assert not any(isinstance(layer, MaskedLoraLinear) for layer in other.modules())
    logits, gradients, merged = [], [], []
    for adapted, which in ((ours, model), (theirs, other)):
        randomised(which)
        which.train()
        torch.manual_seed(9)  # both drop the same inputs
        answer_loss(which, rows[:16]).backward()
        gradients.append({name: parameter.grad for name, parameter in which.named_parameters() if parameter.grad is not None})
        logits.append(which.eval()(batch_of(rows[:16])[0]).logits.detach())
        merged.append(adapted.merge_and_unload(safe_merge=True).state_dict())
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    assert len(gradients[0]) == 28
    for mine, reference in (gradients, merged):
        assert mine.keys() == reference.keys()
        for name, values in reference.items():
            torch.testing.assert_close(mine[name], values, rtol=1e-4, atol=1e-5 * max(1.0, float(values.abs().max())), msg=name)


def test_the_update_is_masked_in_the_forward_pass_and_in_the_gradients(model, rows):
    """Against plain transformers on the explicit weights W + M * (alpha / r * B A), gradients by autograd."""
    masks = sparse(model)
    plain = copy.deepcopy(model)
    add_adapters(model, masks, SETTINGS.lora.model_copy(update={"dropout": 0.0}))
    randomised(model)
    adapters = {name: parameter.detach().clone().requires_grad_() for name, parameter in model.named_parameters() if "lora_" in name}
    weights = {}
    for name, weight in prunable_weights(plain).items():
        prefix = name.removesuffix(".weight")
        product = adapters[f"{prefix}.lora_B.{ADAPTER}.weight"] @ adapters[f"{prefix}.lora_A.{ADAPTER}.weight"]
        weights[name] = weight.detach() + masks.weights[name] * (8 / 4) * product
    ids = batch_of(rows[:16])[0]
    expected = torch.func.functional_call(plain, weights, (ids,)).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    (expected**2).mean().backward()
    (model(ids).logits ** 2).mean().backward()
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(parameter.grad, adapters[name].grad, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_lora_stage_trains_adapters_only_and_merges_what_it_trained(model, rows, is_sparse):
    masks = sparse(model) if is_sparse else None
    start = copy.deepcopy(model)
    ids = batch_of(rows[:16])[0]
    with method_of("lora", SETTINGS).stage(model, masks, context(rows, 0)) as stage:
        assert stage.masks is None and stage.penalty is None
        settings = Optimisation(steps=STEPS, batch=BATCH, learning_rate=2e-2)
        train(model, stage.rows, stage.plan, settings, description="test", masks=stage.masks)
        frozen = {name.replace(".base_layer", ""): parameter for name, parameter in model.named_parameters() if "lora_" not in name}
        assert all(torch.equal(parameter, frozen[name]) for name, parameter in start.named_parameters())
        layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
        effective = {f"{name}.weight": layer.base_layer.weight + layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
        before = model.eval()(ids).logits.detach()
    merged = prunable_weights(model)
    assert effective.keys() == merged.keys() and all(torch.equal(effective[name], merged[name]) for name in merged)
    assert all(not torch.equal(merged[name], weight) for name, weight in prunable_weights(start).items())
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)
    if is_sparse:
        assert all((merged[name][~mask] == 0).all() for name, mask in masks.weights.items())


def test_after_a_lora_stage_the_model_is_plain_transformers_again(model, rows, tmp_path):
    masks, names = sparse(model), list(dict(model.named_parameters()))
    attributes, classes = set(vars(model)), [type(layer) for layer in model.modules()]
    run_stage(model, masks, method_of("lora", SETTINGS), context(rows, 0))
    assert [type(layer) for layer in model.modules()] == classes and set(vars(model)) == attributes
    assert list(dict(model.named_parameters())) == names and all(parameter.requires_grad for parameter in model.parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_checkpoint(model, tmp_path / "stage", masks, arm="S1-2of4", key="k")
    assert torch.equal(weights_of(load_checkpoint(tmp_path / "stage", masks)), weights_of(model))


def test_sparsity_is_reported_merged_and_unmerged(model, rows):
    masks = sparse(model)
    stage = run_stage(model, masks, method_of("lora", SETTINGS), context(rows, 0))
    adapter = sum(4 * sum(weight.shape) for weight in masks.weights.values())  # A is 4 x inputs, B outputs x 4
    assert stage.trainable == adapter
    assert stage.measures == {"merged": 0.5, "unmerged": pytest.approx(0.5 * masks.size / (masks.size + adapter))}


def test_an_unmasked_adapter_would_break_the_topology(model):
    """Why the layer exists: PEFT's own merge fills the zeros, and the stage would notice."""
    masks = sparse(model)
    adapted = add_adapters(model, None, SETTINGS.lora)
    randomised(model)
    with pytest.raises(TopologyViolation, match="merging: .* masked weights of .* are non-zero"):
        merge_adapters(adapted, masks, "merging")


def test_adapters_differ_between_stages_and_leave_torchs_generator_alone(model, rows):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    adapters = []
    for number in range(2):
        with method_of("lora", SETTINGS).stage(model, None, context(rows, number)):
            adapters.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name]))
            torch.rand(5)  # dropout draws inside the stage
    assert torch.equal(torch.rand(3), expected) and not torch.equal(*adapters)


def test_stacked_experts_are_refused_by_name_under_masks_and_with_dropout():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down_proj = nn.Parameter(torch.zeros(4, 8, 8))

    model = nn.ModuleDict({"experts": Experts()})
    with pytest.raises(ValueError, match="lora: experts.down_proj holds stacked experts, which have no masked adapter"):
        add_adapters(model, nothing_masked(model), Lora(rank=4))
    with pytest.raises(ValueError, match="lora: experts.down_proj holds stacked experts, whose adapters have no dropout"):
        add_adapters(model, None, Lora(rank=4, dropout=0.1))


def test_a_lora_stage_on_stacked_experts_trains_an_adapter_of_each_and_leaves_a_plain_model(rows, tokenizer, tmp_path):
    """Adapters alone train; what is merged is what was trained; the model is saved, loaded and scored as before."""
    shape = Model(
        family="qwen3_5_moe", hidden=32, ffn=16, layers=4, heads=2, kv_heads=1, head_dim=16, experts=4, experts_per_token=2, shared_ffn=16,
        delta_key_heads=1, delta_value_heads=1, delta_head_dim=8, router_aux_coefficient=0.0,
    )  # fmt: skip
    model, rank = build_model(shape, len(tokenizer), 32, seed=0, special_ids={"pad_token_id": tokenizer.pad_token_id}), 2
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    prunable = prunable_weights(model)
    ids, _ = batch_of(rows[:4])
    method = method_of("lora", MethodSettings(lora=Lora(rank=rank, alpha=4.0)))
    with method.stage(model, None, context(rows, 0)) as stage:
        sizes = [(weight.shape[0] if weight.ndim == 3 else 1) * rank * sum(weight.shape[-2:]) for weight in prunable.values()]
        assert stage.trainable == sum(sizes) and not stage.flops_known
        assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)
        train(model, stage.rows, stage.plan, Optimisation(steps=STEPS, batch=BATCH, learning_rate=5e-3), description="test")
        with torch.no_grad():
            adapted = model.eval()(ids).logits
    assert model.state_dict().keys() == before.keys()
    torch.testing.assert_close(model.eval()(ids).logits, adapted, rtol=1e-3, atol=1e-3)
    for name, tensor in model.state_dict().items():
        moved = (tensor != before[name]).flatten(1).any(1) if name in prunable and tensor.ndim == 3 else (tensor != before[name]).any()
        assert bool(moved.all()) == (name in prunable), name  # every expert has moved, and nothing that has no adapter
    save_checkpoint(model, tmp_path / "stage-1", None)
    loaded = load_checkpoint(tmp_path / "stage-1")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    with method.stage(model, None, context(rows, 1)) as stage:  # the next stage starts from the plain model
        assert stage.trainable == sum(sizes)
