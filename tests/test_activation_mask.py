"""Fine-tuning of a domain's own units: the selection finds planted ones, nothing else moves, the branch is what it claims."""

import copy
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from peft import PeftModel
from test_algorithms import expert_model
from test_continual_methods import context, sparse, weights_of
from test_flops import LENGTH, SHAPES, VOCABULARY, counted, loss_of, made, random_rows, rotary
from torch import nn

from sparsecl.confined_flops import confined_flops
from sparsecl.continual_methods import method_of
from sparsecl.continual_methods.activation_mask import Choice
from sparsecl.continual_methods.activation_mask_branch import add_branch, branch_config, branches, places_of, put_places
from sparsecl.continual_methods.selection_history import SelectionHistory
from sparsecl.continual_methods.unit_selection import (
    drawn_units,
    most_used,
    path_masks,
    special_tokens,
    unit_count,
    unit_parameters,
    unit_use,
)
from sparsecl.flops import Products, consumption_of, linear_weights, training_flops
from sparsecl.masks import Masks, apply_masks, assert_masks, prunable_weights
from sparsecl.method_settings import ActivationMask, ActivationMaskBranch, MethodSettings
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.probing.top_sets import chance_iou
from sparsecl.records import BrokenFile
from sparsecl.settings import Optimisation
from sparsecl.training import pad_rows, train

SETTINGS = MethodSettings(
    activation_mask=ActivationMask(fraction=0.25, probe_rows=40), activation_mask_branch=ActivationMaskBranch(fraction=0.25, probe_rows=40)
)
MASK_METHODS = ["activation-mask", "activation-mask-random"]
METHODS = [*MASK_METHODS, "activation-mask-branch"]
KINDS = ["dense", "sparse", "experts", "sparse experts"]


def model_of(kind: str, model, tokenizer) -> tuple[nn.Module, Masks | None]:
    """The fixture's model or a mixture of experts, under 2-of-4 masks where `kind` says so."""
    model = expert_model(len(tokenizer)) if kind.endswith("experts") else model
    if not kind.startswith("sparse"):
        return model, None
    if kind == "sparse":
        return model, sparse(model)
    torch.manual_seed(3)
    kept = {}
    for name, weight in prunable_weights(model).items():
        places = torch.rand(*weight.shape[:-1], weight.shape[-1] // 4, 4).argsort(-1)
        kept[name] = (places < 2).reshape(weight.shape)
    masks = Masks("2of4", "random", 0.5, "", kept)
    apply_masks(model, masks)
    return model, masks


def run_stage(model, masks, method, stage_context, weight_decay: float = 0.1):
    """One stage as `continual` runs it; returns the stage."""
    optimisation = Optimisation(steps=stage_context.steps, batch=stage_context.batch, learning_rate=5e-3, weight_decay=weight_decay)
    with method.stage(model, masks, stage_context) as stage:
        train(model, stage.rows, stage.plan, optimisation, description="test", masks=stage.masks, penalty=stage.penalty,
              constrain=stage.constrain)  # fmt: skip
    return stage


def moved(before, after) -> dict[str, torch.Tensor]:
    """Parameter name -> where its bits differ."""
    bits = torch.int32
    others = dict(after.named_parameters())
    return {name: weight.detach().view(bits) != others[name].detach().view(bits) for name, weight in before.named_parameters()}


def selected_by(method, domain: str = "code") -> torch.Tensor:
    return method._history.of(domain)


# --- which units ----------------------------------------------------------------------------------------------------


def speechless(model) -> None:
    """No block adds to the residual stream, so that every feed-forward layer reads the token's own normed embedding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rsplit(".", 1)[-1] == "down_proj" or name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
                parameter.zero_()


def planted(model, units: dict[int, list[int]], strength: float = 5.0) -> None:
    """In every layer the listed units answer to their token: token -> units."""
    speechless(model)
    directions = nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=1)
    with torch.no_grad():
        for held in unit_parameters(model):
            for token, chosen in units.items():
                for name in list(held)[:2]:
                    if "experts" in name:
                        name = name.replace("experts.gate_up_proj", "gate.weight").replace("experts.down_proj", "gate.weight")
                    model.get_parameter(name)[chosen] = strength * directions[token]


@pytest.mark.parametrize("selection", ["magnitude", "frequency"])
def test_the_neurons_that_fire_on_a_domains_token_are_selected(model, selection):
    ours, theirs, bos = [3, 17, 40, 41], [0, 17, 50, 63], model.config.bos_token_id
    planted(model, {100: ours, 101: [0, 50, 63], bos: [5, 6, 7, 8]}, strength=5.0)
    with torch.no_grad():  # neuron 17 answers to both
        for layer in model.model.layers:
            embeddings = nn.functional.normalize(model.get_input_embeddings().weight, dim=1)
            for projection in (layer.mlp.gate_proj, layer.mlp.up_proj):
                projection.weight[17] = 5 * (embeddings[100] + embeddings[101])
    for token, expected in ((100, ours), (101, theirs)):
        use = unit_use(model, [[bos, token, token], [bos, token]], selection, 4 / 64)
        chosen = most_used(use, 4 / 64)
        assert [layer.nonzero().flatten().tolist() for layer in chosen] == [expected] * 2


@pytest.mark.parametrize("selection", ["magnitude", "frequency"])
def test_the_experts_that_a_domains_token_is_routed_to_are_selected(tokenizer, selection):
    model = expert_model(len(tokenizer))
    planted(model, {100: [1, 3], 101: [0, 2]})
    for token, expected in ((100, [1, 3]), (101, [0, 2])):
        use = unit_use(model, [[0, token, token], [token]], selection, 0.5)
        assert [layer.nonzero().flatten().tolist() for layer in most_used(use, 0.5)] == [expected] * 2
        if selection == "frequency":
            assert torch.equal(use.sum(1), torch.full((2,), 2.0, dtype=use.dtype))  # every token goes to two experts


def test_use_is_the_mean_over_counted_tokens_whatever_the_batch(model, rows):
    """Against a plain loop over rows with a hook of its own."""
    lines, special = [row.ids.tolist() for row in rows[:70]], special_tokens(model)
    assert special == {model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id}
    seen = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0][0].detach()))
    kept = []
    for line in lines:
        model.eval()(torch.tensor([line]))
        kept.append(seen.pop()[[token not in special for token in line]].abs())
    handle.remove()
    activations = torch.cat(kept)
    torch.testing.assert_close(unit_use(model, lines, "magnitude", 0.25)[1].float(), activations.mean(0), rtol=1e-4, atol=1e-7)
    strongest = torch.zeros_like(activations).scatter_(1, activations.topk(16).indices, 1.0)
    torch.testing.assert_close(unit_use(model, lines, "frequency", 0.25)[1].float(), strongest.mean(0), rtol=0, atol=2 / len(activations))


def test_a_neurons_path_is_two_rows_and_a_column_and_an_experts_its_two_slices(model, tokenizer):
    selected = torch.zeros(2, 64, dtype=bool)
    selected[0, 5] = selected[1, 9] = True
    paths = path_masks(model, selected, None)
    assert len(paths) == 6 and all(int(path.sum()) == 32 for path in paths.values())
    for layer, neuron in ((0, 5), (1, 9)):
        prefix = f"model.layers.{layer}.mlp."
        assert paths[prefix + "gate_proj.weight"][neuron].all() and paths[prefix + "up_proj.weight"][neuron].all()
        assert paths[prefix + "down_proj.weight"][:, neuron].all()
    masks = sparse(model)
    alive = path_masks(model, selected, masks)
    assert all(torch.equal(alive[name], paths[name] & masks.weights[name]) for name in paths)
    experts = expert_model(len(tokenizer))
    chosen = torch.tensor([[False, True, False, False], [False, False, True, True]])
    paths = path_masks(experts, chosen, None)
    assert len(paths) == 4
    for name, path in paths.items():
        whole, touched = path.all(dim=(1, 2)), path.any(dim=(1, 2))
        assert torch.equal(whole, chosen[int(name.split(".")[2])]) and torch.equal(touched, whole)


def test_random_units_are_as_many_evenly_drawn_and_repeatable(model):
    draws = [drawn_units(model, 0.25, np.random.default_rng(seed)) for seed in range(300)]
    assert all((draw.sum(1) == 16).all() for draw in draws)
    often = torch.stack(draws).double().mean(0)
    assert torch.equal(draws[0], drawn_units(model, 0.25, np.random.default_rng(0))) and not torch.equal(draws[0][0], draws[0][1])
    assert often.min() > 0.25 - 5 * (0.25 * 0.75 / 300) ** 0.5 and often.max() < 0.25 + 5 * (0.25 * 0.75 / 300) ** 0.5


def test_a_selection_or_a_model_that_cannot_be_used_is_refused(model):
    with pytest.raises(ValueError, match="selection 'contrast' is unknown; choose magnitude or frequency"):
        unit_use(model, [[10, 11]], "contrast", 0.25)
    with pytest.raises(ValueError, match="does not give a set of 1 to 63"):
        unit_use(model, [[10, 11]], "magnitude", 0.001)
    del model.model.layers[1].mlp.gate_proj
    with pytest.raises(ValueError, match=r"without \['model.layers.1.mlp.gate_proj.weight'\]; wanted gated layers or stacked experts"):
        unit_count(model)


# --- what moves -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MASK_METHODS)
def test_all_selected_weights_move_and_no_other_changes_a_bit_under_weight_decay(model, rows, tokenizer, name, kind):
    model, masks = model_of(kind, model, tokenizer)
    model.model.layers[0].input_layernorm.weight.requires_grad_(False)
    before, method = copy.deepcopy(model), method_of(name, SETTINGS)
    stage = run_stage(model, masks, method, context(rows, 0))
    expected = path_masks(before, selected_by(method), masks)
    for parameter, changed in moved(before, model).items():
        path = expected.get(parameter, torch.zeros_like(changed))
        assert not (changed & ~path).any(), parameter
        assert changed[path].float().mean() > (0.999 if parameter in expected else -1) or not path.any(), parameter
    assert stage.trainable == sum(int(path.sum()) for path in expected.values())
    share = 0.5 if kind.endswith("experts") else 1.0  # a token passes two of four experts
    assert stage.weight_gradients == share * sum(path.numel() for path in expected.values())
    assert_masks(model, masks, "after the stage")
    flags = {parameter: weight.requires_grad for parameter, weight in model.named_parameters()}
    assert flags.pop("model.layers.0.input_layernorm.weight") is False and all(flags.values())
    assert not any(weight._post_accumulate_grad_hooks for weight in model.parameters())


def test_without_constraint_weight_decay_would_move_the_rest(model, rows):
    """Why `constrain` exists: zero gradients alone do not hold a weight."""
    before, method = copy.deepcopy(model), method_of("activation-mask", SETTINGS)
    optimisation = Optimisation(steps=2, batch=8, learning_rate=5e-3, weight_decay=0.1)
    with method.stage(model, None, context(rows, 0, steps=2)) as stage:
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert trained == {name for held in unit_parameters(model) for name in held}
        train(model, stage.rows, stage.plan, optimisation, description="test")
    expected = path_masks(before, selected_by(method), None)
    assert all((moved(before, model)[name] & ~path).any() for name, path in expected.items())


def test_the_selected_weights_take_the_step_of_full_fine_tuning(model, rows):
    """One step from the same weights, without clipping, whose norm is over all that moves."""
    method, plain = method_of("activation-mask", SETTINGS), copy.deepcopy(model)
    optimisation = Optimisation(steps=1, batch=8, learning_rate=5e-3, clip=1e9)
    with method.stage(model, None, context(rows, 0, steps=1)) as stage:
        train(model, stage.rows, stage.plan, optimisation, description="test", constrain=stage.constrain)
    train(plain, stage.rows, stage.plan, optimisation, description="test")
    for name, path in path_masks(model, selected_by(method), None).items():
        torch.testing.assert_close(model.get_parameter(name)[path], plain.get_parameter(name)[path], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_mask_and_branch_select_alike_and_the_control_as_many(model, rows, tokenizer, kind):
    model, masks = model_of(kind, model, tokenizer)
    chosen, stages = {}, {}
    for name in METHODS:
        method = method_of(name, SETTINGS)
        stages[name] = run_stage(copy.deepcopy(model), masks, method, context(rows, 0))
        chosen[name] = selected_by(method)
    assert torch.equal(chosen["activation-mask"], chosen["activation-mask-branch"])
    assert not torch.equal(chosen["activation-mask"], chosen["activation-mask-random"])
    assert {int(count) for units in chosen.values() for count in units.sum(1)} == {16}
    read = context(rows, 0).generator("activation-mask-code").choice(130, 40, replace=False)
    assert stages["activation-mask"].probe == stages["activation-mask-branch"].probe
    assert stages["activation-mask"].probe.tokens == sum(len(rows[index].ids) for index in read)
    assert stages["activation-mask"].extra is None and stages["activation-mask-random"].probe is None
    if kind == "dense":
        assert {stage.trainable for stage in stages.values()} == {2 * 3 * 16 * 32}


def test_a_stage_of_a_method_leaves_the_batches_of_full_fine_tuning(model, rows):
    with method_of("full", SETTINGS).stage(model, None, context(rows, 1)) as stage:
        expected = stage.plan
    for name in METHODS:
        method = method_of(name, SETTINGS)
        method._history.add("code", torch.ones(2, 64, dtype=bool))
        with method.stage(copy.deepcopy(model), None, context(rows, 1)) as stage:
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(stage.plan, expected, strict=True))


# --- the branch -----------------------------------------------------------------------------------------------------


def some_places(model, masks: Masks | None) -> dict[str, torch.Tensor]:
    use = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)).double()
    return places_of(model, Choice(most_used(use, 0.25), use), masks)


def filled(model) -> None:
    torch.manual_seed(5)
    for layer in branches(model).values():
        (values,) = layer.supertuning_values.values()
        values.data = torch.randn(values.shape) * 0.1


@pytest.mark.parametrize("is_sparse", [False, True])
def test_places_are_on_the_alive_paths_equally_many_and_drop_the_unit_used_least(model, is_sparse):
    masks = sparse(model) if is_sparse else None
    use = torch.rand(2, 64, generator=torch.Generator().manual_seed(2)).double()
    selected = most_used(use, 0.25)
    paths, places = path_masks(model, selected, masks), some_places(model, masks)
    assert places.keys() == paths.keys()
    count = min(int(path.sum()) for path in paths.values())
    for layer, held in enumerate(unit_parameters(model)):
        order = use[layer].argsort(descending=True)[:16]
        for name, dimension in held.items():
            entries = torch.zeros(paths[name].numel(), dtype=bool)
            entries[places[name].long()] = True
            entries = entries.view(paths[name].shape)
            assert int(entries.sum()) == len(places[name]) == count and not (entries & ~paths[name]).any()
            full = [bool(torch.equal(entries.select(dimension, unit), paths[name].select(dimension, unit))) for unit in order]
            assert full == sorted(full, reverse=True)  # whole paths first, then at most one in part, then none
    assert is_sparse or count == 16 * 32


@pytest.mark.parametrize("is_sparse", [False, True])
def test_the_branch_is_zero_at_first_then_the_planted_update_and_merges_into_the_same_model(model, rows, is_sparse):
    masks = sparse(model) if is_sparse else None
    before, places, ids = copy.deepcopy(model), some_places(model, masks), pad_rows(rows[:16])[0]
    adapted = add_branch(model, places)
    assert {name for name, weight in model.named_parameters() if weight.requires_grad} == {
        f"{name.removesuffix('.weight')}.supertuning_values.stage" for name in places
    }
    torch.testing.assert_close(model.eval()(ids).logits, before.eval()(ids).logits, rtol=0, atol=0)
    filled(model)
    updates = {f"{name}.weight": layer.get_delta_weight("stage").detach() for name, layer in branches(model).items()}
    weights = {name: before.get_parameter(name).detach() + update for name, update in updates.items()}
    expected = torch.func.functional_call(before, weights, (ids,)).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-5)
    merged = adapted.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-5, atol=1e-5)
    for name, changed in moved(before, merged).items():
        allowed = torch.zeros(changed.numel(), dtype=bool)
        allowed[places[name].long() if name in places else []] = True
        assert torch.equal(changed.flatten(), allowed), name
    assert_masks(merged, masks, "after the merge")


def test_a_saved_branch_reloads_to_the_same_outputs(model, rows, tmp_path):
    masks = sparse(model)
    base, places, ids = copy.deepcopy(model), some_places(model, masks), pad_rows(rows[:16])[0]
    saved = PeftModel(model, branch_config(model, places))
    put_places(saved, places, "default")
    filled(saved)
    expected = saved.eval()(ids).logits
    assert not torch.allclose(expected, base(ids).logits, atol=1e-3)
    saved.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(base, tmp_path).eval()(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("is_sparse", [False, True])
def test_a_branch_stage_trains_every_place_and_leaves_plain_transformers(model, rows, tmp_path, is_sparse):
    masks = sparse(model) if is_sparse else None
    before, method = copy.deepcopy(model), method_of("activation-mask-branch", SETTINGS)
    attributes, classes = set(vars(model)), [type(layer) for layer in model.modules()]
    stage = run_stage(model, masks, method, context(rows, 0))
    paths = path_masks(model, selected_by(method), masks)
    for name, changed in moved(before, model).items():
        assert not (changed & ~paths.get(name, torch.zeros_like(changed))).any(), name
    changes = sum(int(changed.sum()) for changed in moved(before, model).values())
    assert 0.99 * stage.trainable <= changes <= stage.trainable <= sum(int(path.sum()) for path in paths.values())
    assert stage.weight_gradients == 6 * 32 * 64 and stage.masks is None and stage.constrain is None
    assert [type(layer) for layer in model.modules()] == classes and set(vars(model)) == attributes
    assert all(weight.requires_grad for weight in model.parameters()) and model.lm_head.weight is model.model.embed_tokens.weight
    save_checkpoint(model, tmp_path / "stage", masks, arm="D1", key="k")
    assert torch.equal(weights_of(load_checkpoint(tmp_path / "stage", masks)), weights_of(model))
    if is_sparse:
        assert stage.measures == {"merged": 0.5, "unmerged": pytest.approx(0.5 * masks.size / (masks.size + stage.trainable))}


def test_stacked_experts_have_no_branch(tokenizer, rows):
    with pytest.raises(ValueError, match="activation-mask-branch: Qwen3_5MoeForCausalLM holds stacked experts.*use activation-mask"):
        run_stage(expert_model(len(tokenizer)), None, method_of("activation-mask-branch", SETTINGS), context(rows, 0))


def test_paths_without_an_alive_weight_make_no_branch(model):
    masks = sparse(model)
    empty = Masks("2of4", "random", 0.5, "", {name: torch.zeros_like(mask) for name, mask in masks.weights.items()})
    with pytest.raises(ValueError, match="wanted one pair with at least one place; choose a larger fraction, or use activation-mask"):
        add_branch(model, some_places(model, empty))


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_and_the_probe_cost_what_torch_counts(shape, name):
    model, rows, everything = made(shape), random_rows([LENGTH] * 130), linear_weights(shape)
    consumption = consumption_of([(len(row.ids), row.answer_start) for row in rows[:8]], 0.1)
    stages, losses = [], []
    with ExitStack() as stack:
        method = method_of(name, SETTINGS)
        probing = counted(lambda: stages.append(stack.enter_context(method.stage(model, None, context(rows, 0)))))
        part = Products(everything, everything, stages[0].weight_gradients)
        forward = counted(lambda: losses.append(loss_of(model, rows[:8])))
        assert forward == confined_flops(shape, VOCABULARY, consumption, part).forward + rotary(shape, LENGTH)
        assert counted(losses[0].backward) == confined_flops(shape, VOCABULARY, consumption, part).backward
    if name == "activation-mask-random":
        assert probing == 0
    else:
        assert probing == training_flops(shape, VOCABULARY, stages[0].probe).forward + rotary(shape, LENGTH)


# --- selections of a stream -----------------------------------------------------------------------------------------


def units(*chosen: int) -> torch.Tensor:
    """The same planted units of 8 in two layers, the second shifted by one."""
    marked = torch.zeros(2, 8, dtype=bool)
    marked[0, list(chosen)] = True
    return torch.stack([marked[0], marked[0].roll(1)])


def test_overlap_and_collisions_of_planted_selections():
    history = SelectionHistory("activation-mask")
    assert history.compared(units(0, 1)) == []
    history.add("code", units(0, 1))
    history.add("math", units(2, 3))
    rows = history.compared(units(1, 2))
    null = chance_iou(8, 2)
    for layer in range(2):
        about = {"layer": layer, "null": null, "collisions": None}
        assert rows[3 * layer] == {**about, "earlier_domain": "code", "value": 1 / 3}
        assert rows[3 * layer + 1] == {**about, "earlier_domain": "math", "value": 1 / 3}
        assert rows[3 * layer + 2] == {"layer": layer, "earlier_domain": "", "value": None, "null": None, "collisions": 1.0}
    assert [row["value"] for row in history.compared(units(0, 1)) if row["earlier_domain"]] == [1.0, 0.0] * 2
    assert [row["collisions"] for row in history.compared(units(3, 4)) if not row["earlier_domain"]] == [0.5] * 2
    assert null == pytest.approx((12 / 28) * (1 / 3) + (1 / 28))  # two of eight: one shared in 12 of 28 draws, both in one


@pytest.mark.parametrize("name", METHODS)
def test_every_stage_after_the_first_is_compared_with_all_before_it(model, rows, name):
    method = method_of(name, SETTINGS)
    for number, earlier in enumerate(([], ["code"], ["code", "math"])):
        stage = run_stage(model, None, method, context(rows, number, steps=2))
        compared = [(row["layer"], row["earlier_domain"]) for row in stage.selections]
        assert compared == [(layer, domain) for layer in range(2) for domain in [*earlier, ""] if earlier]


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in METHODS for kind in KINDS if "experts" not in kind or "branch" not in name]
)
def test_a_stream_resumed_from_files_equals_one_that_was_not_interrupted(model, rows, tokenizer, tmp_path, name, kind):
    model, masks = model_of(kind, model, tokenizer)
    resumed, method, state = copy.deepcopy(model), method_of(name, SETTINGS), tmp_path / "state.safetensors"
    whole = [run_stage(model, masks, method, context(rows, number)) for number in range(3)]
    other = method_of(name, SETTINGS)
    for number in range(3):
        if number:
            other = method_of(name, SETTINGS)
            other.load_state(state)
            resumed = load_checkpoint(tmp_path / "stage", masks)
        torch.manual_seed(number)  # what torch's generator did before the stage must not matter
        stage = run_stage(resumed, masks, other, context(rows, number))
        assert stage.selections == whole[number].selections and stage.trainable == whole[number].trainable
        other.save_state(state)
        save_checkpoint(resumed, tmp_path / "stage", masks, arm="D1", key="k")
    assert torch.equal(weights_of(model), weights_of(resumed))


def test_a_state_of_another_moment_or_a_broken_one_is_refused(model, rows, tmp_path):
    method, state = method_of("activation-mask", SETTINGS), tmp_path / "state.safetensors"
    method.save_state(state)
    assert not state.exists()
    run_stage(model, None, method, context(rows, 0))
    method.save_state(state)
    late = method_of("activation-mask", SETTINGS)
    late.load_state(state)
    with pytest.raises(ValueError, match=r"activation-mask: stage legal follows \('code', 'math'\), but the state knows \('code',\); load"):
        run_stage(model, None, late, context(rows, 2))
    state.write_bytes(state.read_bytes()[:-10])
    for name in ("state", "absent"):
        with pytest.raises(BrokenFile, match=f"{name}.safetensors is no state of activation-mask"):
            late.load_state(tmp_path / f"{name}.safetensors")
