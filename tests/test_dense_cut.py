"""Cutting a dense model: importances by brute force, planted dead units, and the shape and freshness of what comes out."""

import copy

import numpy as np
import pytest
import torch
from conftest import MAX_LENGTH

from sparsecl.dense_cut import Importance, check_cut, choose_units, cut_to_shape, keep_units, measure_importance
from sparsecl.matched_size import dense_parameters
from sparsecl.modeling import build_model, load_checkpoint, parameter_count, save_checkpoint
from sparsecl.scoring import score_rows
from sparsecl.settings import Model, Optimisation
from sparsecl.tokenizer import Row
from sparsecl.training import plan_batches, train

# Wide enough initial weights that logits differ by whole units and an equality to 1e-5 says something.
SHAPE = Model(family="qwen3", hidden=16, ffn=24, layers=2, heads=6, kv_heads=3, head_dim=8, initializer_range=0.3)
VOCABULARY = 320
IDS = torch.arange(3, 60).view(3, 19)
SMALLER = {"hidden": 12, "ffn": 16, "heads": 4, "kv_heads": 2}


def narrower(**sizes: int) -> Model:
    return SHAPE.model_copy(update=sizes)


@pytest.fixture
def base():
    torch.set_num_threads(1)
    model = build_model(SHAPE, VOCABULARY, MAX_LENGTH, seed=1, special_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # norms as training leaves them, not all ones
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.copy_(0.5 + torch.rand(parameter.shape, generator=generator))
    return model


@pytest.fixture
def calibration(rows) -> list[Row]:
    return rows[:8]


def logits(model) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def rms(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return values / np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6) * weight


def brute_force(model, rows) -> Importance:
    """The importances of a model without queries, whose heads therefore average the values of all tokens so far."""
    weights = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    size, group = SHAPE.head_dim, SHAPE.heads // SHAPE.kv_heads
    channels, neurons, groups = np.zeros((5, SHAPE.hidden)), np.zeros((2, SHAPE.ffn)), np.zeros((2, SHAPE.kv_heads))
    for row in rows:
        stream = weights["model.embed_tokens.weight"][row.ids]
        for layer in range(SHAPE.layers):
            of = {name.split(".")[-2]: w for name, w in weights.items() if name.startswith(f"model.layers.{layer}.")}
            normed = rms(stream, of["input_layernorm"])
            channels[2 * layer] += np.abs(normed).mean(0) ** 2
            values = normed @ of["v_proj"].T
            heads = np.zeros((len(stream), SHAPE.heads * size))
            for token in range(len(stream)):
                for head in range(SHAPE.heads):
                    own = slice(head // group * size, (head // group + 1) * size)
                    heads[token, head * size : (head + 1) * size] = values[: token + 1, own].mean(0)
            for place in range(SHAPE.kv_heads):
                norms = [np.sqrt((token[place * group * size : (place + 1) * group * size] ** 2).sum()) for token in heads]
                groups[layer, place] += np.mean(norms) ** 2
            stream = stream + heads @ of["o_proj"].T
            normed = rms(stream, of["post_attention_layernorm"])
            channels[2 * layer + 1] += np.abs(normed).mean(0) ** 2
            gate = normed @ of["gate_proj"].T
            active = gate / (1 + np.exp(-gate)) * (normed @ of["up_proj"].T)
            neurons[layer] += np.abs(active).mean(0) ** 2
            stream = stream + active @ of["down_proj"].T
        channels[4] += np.abs(rms(stream, weights["model.norm.weight"])).mean(0) ** 2
    return Importance(*(torch.from_numpy(values) for values in (np.sqrt(channels).sum(0), np.sqrt(neurons), np.sqrt(groups))))


def test_importances_are_those_of_brute_force(base, calibration):
    for layer in base.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    assert len({len(row.ids) for row in calibration}) > 1  # else a mean over all tokens would pass as well
    found, wanted = measure_importance(base, calibration), brute_force(base, calibration)
    for kind in ("channels", "neurons", "groups"):
        torch.testing.assert_close(getattr(found, kind), getattr(wanted, kind), rtol=1e-4, atol=1e-6)


def test_a_cut_to_the_same_shape_is_the_identity(base, calibration):
    cut = cut_to_shape(base, SHAPE, calibration)
    assert cut is not base and torch.equal(logits(cut), logits(base))


def kill_neurons(model, neurons: list[list[int]]) -> None:
    for layer, dead in zip(model.model.layers, neurons, strict=True):
        layer.mlp.gate_proj.weight.data[dead] = 0


def kill_groups(model, groups: list[int]) -> None:
    for layer, dead in zip(model.model.layers, groups, strict=True):
        layer.self_attn.v_proj.weight.data[dead * SHAPE.head_dim : (dead + 1) * SHAPE.head_dim] = 0


def kill_channels(model, dead: list[int]) -> None:
    model.model.embed_tokens.weight.data[:, dead] = 0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.data[dead] = 0
        layer.mlp.down_proj.weight.data[dead] = 0


def rescaled(model, kept: int):
    """`model` with the residual norms that n channels of which only `kept` are alive need to act like norms over `kept` channels."""
    share = kept / SHAPE.hidden
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        if name.endswith(("layernorm", "model.norm")):
            module.weight.data *= share**0.5
            module.variance_epsilon *= share
    return twin


def test_dead_neurons_are_removed_layer_by_layer_and_nothing_changes(base, calibration):
    dead = [[0, 3, 4, 9, 10, 17, 22, 23], [1, 2, 5, 6, 7, 8, 11, 12]]
    kill_neurons(base, dead)
    kept = choose_units(measure_importance(base, calibration), narrower(ffn=16))
    assert [sorted(set(range(24)) - set(layer.tolist())) for layer in kept.neurons] == dead
    torch.testing.assert_close(logits(cut_to_shape(base, narrower(ffn=16), calibration)), logits(base), rtol=0, atol=1e-5)


def test_dead_key_value_groups_are_removed_layer_by_layer_and_nothing_changes(base, calibration):
    kill_groups(base, [2, 0])
    narrow = narrower(heads=4, kv_heads=2)
    assert choose_units(measure_importance(base, calibration), narrow).groups.tolist() == [[0, 1], [1, 2]]
    torch.testing.assert_close(logits(cut_to_shape(base, narrow, calibration)), logits(base), rtol=0, atol=1e-5)


def test_dead_channels_are_removed_and_only_the_mean_of_the_norms_changes(base, calibration):
    dead = [2, 7, 8, 15]
    kill_channels(base, dead)
    narrow = narrower(hidden=12)
    assert choose_units(measure_importance(base, calibration), narrow).channels.tolist() == [i for i in range(16) if i not in dead]
    cut = logits(cut_to_shape(base, narrow, calibration))
    torch.testing.assert_close(cut, logits(rescaled(base, 12)), rtol=0, atol=1e-5)
    assert (cut - logits(base)).abs().max() > 0.1  # the recipe rescales nothing


def test_dead_units_of_all_kinds_go_together(base, calibration):
    kill_channels(base, [0, 1, 14, 15])
    kill_neurons(base, [list(range(8)), list(range(16, 24))])
    kill_groups(base, [1, 1])
    cut = cut_to_shape(base, narrower(**SMALLER), calibration)
    torch.testing.assert_close(logits(cut), logits(rescaled(base, 12)), rtol=0, atol=1e-5)


def test_living_units_are_missed(base, calibration):
    for sizes in ({"hidden": 12}, {"ffn": 16}, {"heads": 4, "kv_heads": 2}):
        assert (logits(cut_to_shape(base, narrower(**sizes), calibration)) - logits(base)).abs().max() > 0.1


def test_the_least_important_units_go_and_of_equal_ones_the_higher_index():
    importance = Importance(
        torch.tensor([1.0, 3.0, 2.0, 2.0]), torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]), torch.tensor([[5.0, 6.0]] * 2)
    )
    kept = choose_units(importance, narrower(hidden=2, ffn=2, kv_heads=1))
    assert kept.channels.tolist() == [1, 2] and kept.neurons.tolist() == [[0, 1], [1, 2]] and kept.groups.tolist() == [[1], [1]]


def test_the_cut_has_the_shape_of_a_model_built_narrow(base, calibration):
    narrow = narrower(**SMALLER)
    cut = cut_to_shape(base, narrow, calibration)
    built = build_model(narrow, VOCABULARY, MAX_LENGTH, seed=0, special_ids={"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})
    assert {n: p.shape for n, p in cut.named_parameters()} == {n: p.shape for n, p in built.named_parameters()}
    assert cut.config.to_dict() == built.config.to_dict() and cut.config._attn_implementation == built.config._attn_implementation
    assert cut.lm_head.weight is cut.model.embed_tokens.weight
    assert parameter_count(cut) == dense_parameters(narrow, VOCABULARY)


def test_an_untied_head_is_cut_with_the_channels(base, calibration):
    base.config.tie_word_embeddings = False
    base.lm_head.weight = torch.nn.Parameter(2 * base.model.embed_tokens.weight.detach())
    cut = cut_to_shape(base, narrower(hidden=12), calibration)
    assert cut.lm_head.weight is not cut.model.embed_tokens.weight
    assert torch.equal(cut.lm_head.weight, 2 * cut.model.embed_tokens.weight)


def test_cutting_leaves_base_generator_and_mode_alone_and_repeats_itself(base, calibration):
    before, state = copy.deepcopy(base.state_dict()), torch.random.get_rng_state()
    cuts = [cut_to_shape(base.train(), narrower(**SMALLER), calibration) for _ in range(2)]
    assert torch.equal(torch.random.get_rng_state(), state) and base.training
    assert not any(module._forward_hooks for module in base.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())
    assert all(torch.equal(one, two) for one, two in zip(cuts[0].parameters(), cuts[1].parameters(), strict=True))
    cuts[0].model.norm.weight.data.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())  # no memory is shared


def test_the_cut_trains_saves_and_loads(model, rows, tmp_path):
    narrow = Model(family="qwen3", hidden=24, ffn=48, layers=2, heads=2, kv_heads=1, head_dim=16)
    cut = cut_to_shape(model, narrow, rows[:8])
    before = score_rows(cut, rows, 64).loss
    settings = Optimisation(steps=20, batch=16, learning_rate=1e-2)
    train(cut, rows, plan_batches([len(row.ids) for row in rows], 20, 16, np.random.default_rng(0)), settings, description="recover")
    assert score_rows(cut, rows, 64).loss < before - 0.5
    save_checkpoint(cut, tmp_path / "Dcut", None, arm="Dcut-0.5", key="k")
    loaded = load_checkpoint(tmp_path / "Dcut")
    assert torch.equal(logits(loaded), logits(cut))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden": 20}, "hidden of the narrow shape is 20, but the base has only 16"),
        ({"ffn": 28}, "ffn of the narrow shape is 28, but the base has only 24"),
        ({"heads": 8, "kv_heads": 4}, "heads of the narrow shape is 8, but the base has only 6"),
        ({"layers": 1}, "layers of the narrow shape is 1, but a cut keeps the base's 2"),
        ({"head_dim": 4}, "head_dim of the narrow shape is 4, but a cut keeps the base's 8"),
        ({"heads": 3}, "3 heads on 3 kv_heads, but heads go as whole key-value groups, of 2 heads each"),
        ({"heads": 4, "kv_heads": 1}, "4 heads on 1 kv_heads, but heads go as whole key-value groups, of 2 heads each"),
    ],
)
def test_shapes_that_are_no_cut_are_refused_before_any_work(base, sizes, message):
    with pytest.raises(ValueError, match=message):
        cut_to_shape(base, narrower(**sizes), rows=[])


def test_other_architectures_are_refused(base):
    base.config.model_type = "llama"
    with pytest.raises(ValueError, match="a model of type 'llama' cannot be cut, only qwen3"):
        check_cut(base, SHAPE)


def test_importance_needs_rows_and_finite_activations(base, calibration):
    with pytest.raises(ValueError, match="no rows to measure importance on"):
        measure_importance(base, [])
    base.model.layers[1].mlp.up_proj.weight.data[3] = float("nan")
    with pytest.raises(ValueError, match="is not finite; look at the weights"):
        measure_importance(base, calibration)


def test_weights_between_kept_units_are_taken_as_they_are(base, calibration):
    narrow = narrower(**SMALLER)
    kept = choose_units(measure_importance(base, calibration), narrow)
    cut = keep_units(base, narrow, kept)
    for layer in range(SHAPE.layers):
        old, new = base.model.layers[layer].self_attn, cut.model.layers[layer].self_attn
        queries = [head * 8 + i for group in kept.groups[layer].tolist() for head in (2 * group, 2 * group + 1) for i in range(8)]
        keys = [group * 8 + i for group in kept.groups[layer].tolist() for i in range(8)]
        assert torch.equal(new.q_proj.weight, old.q_proj.weight[queries][:, kept.channels])
        assert torch.equal(new.k_proj.weight, old.k_proj.weight[keys][:, kept.channels])
        assert torch.equal(new.o_proj.weight, old.o_proj.weight[kept.channels][:, queries])
        assert torch.equal(new.q_norm.weight, old.q_norm.weight) and torch.equal(new.k_norm.weight, old.k_norm.weight)
