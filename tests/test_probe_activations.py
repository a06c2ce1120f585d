"""Activation profiles: the pass over lines, and every statistic against a computation by hand on a real architecture."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sparsecl.items import GENERAL
from sparsecl.probing.activations import activation_profile, common_token_weights, down_projections, strongest_last
from sparsecl.probing.overlap import OVERLAP_COLUMNS, SELECTIONS
from sparsecl.probing.passes import watching
from sparsecl.probing.probed_rows import overlap_of_arm
from sparsecl.probing.top_sets import top_neurons
from sparsecl.settings import Probe

BOS = 1


# A real architecture, magnitude


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    configuration = Qwen3Config(
        vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, attention_dropout=0.0, initializer_range=0.2,
    )  # fmt: skip
    return Qwen3ForCausalLM(configuration)


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = np.random.default_rng(0)
    return [[BOS, *generator.integers(2, 50, length).tolist()] for length in (1, 9, 4, 17, 2, 9)]


def by_hand(model: Qwen3ForCausalLM, row: list[int]) -> torch.Tensor:
    """Mean |act_fn(gate_proj(x)) * up_proj(x)| per layer, x the input of the feed-forward block, BOS left out."""
    inputs = []
    hooks = [layer.mlp.register_forward_pre_hook(lambda _module, received: inputs.append(received[0])) for layer in model.model.layers]
    with torch.no_grad():
        model(torch.tensor([row]))
        for hook in hooks:
            hook.remove()
        blocks = [layer.mlp for layer in model.model.layers]
        return torch.stack(
            [(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))[0, 1:].abs().mean(0) for mlp, x in zip(blocks, inputs, strict=True)]
        )


def test_profile_equals_the_feed_forward_computation_by_hand(model, rows):
    profile = activation_profile(model, rows, batch_size=3, excluded_tokens=[BOS])
    assert profile.magnitude.mean.shape == (3, len(rows), 48)
    assert profile.magnitude.weight.tolist() == [len(row) - 1 for row in rows]
    expected = torch.stack([by_hand(model, row) for row in rows], dim=1)
    torch.testing.assert_close(profile.magnitude.mean, expected, rtol=1e-4, atol=1e-6)


def test_batch_size_and_padding_do_not_change_the_profile(model, rows):
    alone = activation_profile(model, rows, batch_size=1, excluded_tokens=[BOS])
    for batch in (2, 4, 100):
        together = activation_profile(model, rows, batch_size=batch, excluded_tokens=[BOS])
        torch.testing.assert_close(together.magnitude.mean, alone.magnitude.mean, rtol=1e-4, atol=1e-6)
        assert torch.equal(together.magnitude.weight, alone.magnitude.weight)
        assert torch.equal(top_neurons(together.magnitude.mean, 5), top_neurons(alone.magnitude.mean, 5))


def test_excluded_tokens_are_seen_but_not_counted(model):
    with_bos = activation_profile(model, [[BOS, 7, 8, 9]], batch_size=1, excluded_tokens=[])
    without = activation_profile(model, [[BOS, 7, 8, 9]], batch_size=1, excluded_tokens=[BOS])
    never_there = activation_profile(model, [[7, 8, 9]], batch_size=1, excluded_tokens=[BOS])
    assert (with_bos.magnitude.weight.item(), without.magnitude.weight.item()) == (4, 3)
    assert not torch.allclose(with_bos.magnitude.mean, without.magnitude.mean)
    assert not torch.allclose(without.magnitude.mean[1:], never_there.magnitude.mean[1:], rtol=1e-3)  # attention still reads BOS


def test_model_is_left_as_it_was_also_after_an_error(model, rows):
    model.train()
    model.model.layers[0].eval()  # a mixed state, as with a frozen layer
    before = [module.training for module in model.modules()]
    try:
        assert not activation_profile(model, rows, batch_size=2, excluded_tokens=[BOS]).magnitude.mean.requires_grad
        with pytest.raises(IndexError):
            activation_profile(model, [[BOS, 10_000]], batch_size=1, excluded_tokens=[BOS])
        assert [module.training for module in model.modules()] == before
        with pytest.raises(RuntimeError, match="stop"), watching(down_projections(model), "input", lambda _layer, _activation: None):
            raise RuntimeError("stop")
        assert not any(module._forward_pre_hooks for module in model.modules())
    finally:
        model.eval()


def test_reading_the_activations_does_not_change_the_output(model, rows):
    ids = torch.tensor([rows[3]])
    with torch.no_grad():
        untouched, seen = model(ids).logits, []
        with watching(down_projections(model), "input", lambda layer, activation: seen.append((layer, *activation.shape))):
            assert torch.equal(model(ids).logits, untouched)
    assert seen == [(layer, 1, 18, 48) for layer in range(3)]


def test_rows_without_a_counted_token_and_empty_input_are_refused(model):
    with pytest.raises(ValueError, match=r"row 1 has 1 tokens and none that counts beside \[1\]; leave the row out"):
        activation_profile(model, [[BOS, 5], [BOS]], batch_size=2, excluded_tokens=[BOS])
    with pytest.raises(ValueError, match="row 0 has 0 tokens"):
        activation_profile(model, [[]], batch_size=2, excluded_tokens=[])
    with pytest.raises(ValueError, match="0 rows in batches of 2"):
        activation_profile(model, [], batch_size=2, excluded_tokens=[])


def test_a_model_without_dense_feed_forward_layers_is_refused(model):
    class Headless(torch.nn.Module):
        config = model.config

    with pytest.raises(ValueError, match=r"Headless has 0 modules named mlp.down_proj, wanted one in each of its 3 layers"):
        activation_profile(Headless(), [[BOS, 5]], batch_size=1, excluded_tokens=[BOS])


# The other statistics


def activations_by_hand(model: Qwen3ForCausalLM, row: list[int]) -> torch.Tensor:
    """|activation| of every layer at the counted tokens, (layers, tokens, neurons); BOS stands first alone."""
    seen = []
    with torch.no_grad(), watching(down_projections(model), "input", lambda _layer, states: seen.append(states[0, 1:].abs())):
        model(torch.tensor([row]))
    return torch.stack(seen)


def test_frequency_is_the_share_of_sampled_tokens_in_whose_top_k_a_neuron_is(model, rows):
    profile = activation_profile(model, rows, batch_size=4, excluded_tokens=[BOS], top_fractions=(0.1, 0.25, 0.02))
    assert set(profile.frequency) == {1, 5, 12}
    for document, row in enumerate(rows):
        activations = activations_by_hand(model, row)[:, document % 4 :: 4]  # one in four, from a start that moves on
        for k, frequency in profile.frequency.items():
            assert frequency.weight[document] == activations.shape[1]
            if activations.shape[1]:
                expected = top_neurons(activations, k).float().mean(dim=1)
                torch.testing.assert_close(frequency.mean[:, document], expected)
            else:
                assert frequency.mean[:, document].isnan().all()


def test_every_token_of_equal_lines_is_sampled_by_some_document(model):
    profile = activation_profile(model, [[BOS, 7, 8, 9, 5]] * 8, batch_size=3, excluded_tokens=[BOS], top_fractions=(0.1,))
    assert profile.frequency[5].weight.tolist() == [1] * 8
    mean = profile.frequency[5].mean.mean(dim=1)
    torch.testing.assert_close(mean, top_neurons(activations_by_hand(model, [BOS, 7, 8, 9, 5]), 5).float().mean(dim=1))


def test_strongest_last_holds_the_sets_of_a_sort():
    values = torch.rand(50, 40, generator=torch.Generator().manual_seed(0))
    ranked = values.argsort(dim=1, descending=True)
    for counts in ((12, 5, 1), (12, 5), (12,)):
        found = strongest_last(values, counts)
        for k in counts:
            assert torch.equal(found[:, -k:].sort(dim=1).values, ranked[:, :k].sort(dim=1).values)
    equal = strongest_last(torch.zeros(3, 40), (12, 5))
    assert all(len(set(row)) == 12 for row in equal.tolist())  # ties give sets all the same


def test_pooled_documents_count_by_their_tokens_and_bound_the_memory(model, rows):
    rows = rows + rows[::-1]
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0))
    choices = {"excluded_tokens": [BOS], "top_fractions": (0.1,), "token_weights": weights}
    alone = activation_profile(model, rows, batch_size=4, **choices)
    pooled = activation_profile(model, rows, batch_size=4, **choices, groups=5)
    for one, other in (
        (alone.magnitude, pooled.magnitude), (alone.frequency[5], pooled.frequency[5]), (alone.same_tokens, pooled.same_tokens),
    ):  # fmt: skip
        assert other.mean.shape == (3, 5, 48)
        for group in range(5):
            weight = one.weight[group::5]
            assert other.weight[group] == pytest.approx(weight.sum().item(), rel=1e-5)
            expected = (one.mean[:, group::5].nan_to_num() * weight[:, None]).sum(dim=1) / weight.sum()
            torch.testing.assert_close(other.mean[:, group], expected, rtol=1e-4, atol=1e-6)


def test_same_tokens_are_a_weighted_mean_and_unknown_tokens_weigh_nothing(model, rows):
    weights = torch.rand(40, generator=torch.Generator().manual_seed(1))  # ids 40 to 49 are unknown
    profile = activation_profile(model, rows, batch_size=3, excluded_tokens=[BOS], token_weights=weights)
    for document, row in enumerate(rows):
        weight = torch.tensor([weights[token].item() if token < 40 else 0.0 for token in row[1:]])
        assert profile.same_tokens.weight[document] == pytest.approx(weight.sum().item())
        if weight.sum():
            expected = (activations_by_hand(model, row) * weight[:, None]).sum(dim=1) / weight.sum()
            torch.testing.assert_close(profile.same_tokens.mean[:, document], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("groups", [0, -1])
def test_no_groups_are_refused(model, rows, groups):
    with pytest.raises(ValueError, match=f"pooled into {groups} groups; give at least 1"):
        activation_profile(model, rows, batch_size=3, excluded_tokens=[BOS], groups=groups)


# One distribution of words for all domains


def test_common_weights_by_hand():
    """Shares 1/2, 1/2, 0 and 1/4, 1/2, 1/4 of tokens 2, 3, 4: the smaller ones are 1/4, 1/2, 0, in all 3/4."""
    weights = common_token_weights({"a": [[BOS, 2], [3]], "b": [[2, 3, BOS], [3, 4]]}, [BOS])
    assert weights["a"].tolist() == pytest.approx([0, 0, 2 / 3, 4 / 3, 0])
    assert weights["b"].tolist() == pytest.approx([0, 0, 4 / 3, 4 / 3, 0])


def test_weighted_domains_have_the_same_words_and_their_own_size():
    generator = np.random.default_rng(0)
    rows = {name: [generator.binomial(30, share, 20).tolist() for _ in range(50)] for name, share in (("a", 0.3), ("b", 0.5), ("c", 0.4))}
    weights = common_token_weights(rows, [])
    found = []
    for domain, lines in rows.items():
        tokens = torch.tensor(lines).flatten()
        total = torch.zeros(31, dtype=torch.float64).index_add_(0, tokens, weights[domain][tokens].double())
        assert total.sum() == pytest.approx(len(tokens), rel=1e-5)
        found.append(total / total.sum())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(found[0], found[2], rtol=1e-5, atol=1e-8)


def test_domains_without_a_common_word_have_no_weight():
    weights = common_token_weights({"a": [[BOS, 2, 3]], "b": [[BOS, 4, 5]]}, [BOS])
    assert not any(weight.any() for weight in weights.values())


# An arm of a study


def test_an_arm_gets_a_row_for_each_selection_and_fraction_and_arms_share_their_draws(model):
    generator = np.random.default_rng(0)
    rows = {name: [[BOS, *generator.integers(2, 50, 12).tolist()] for _ in range(8)] for name in ("code", "law", GENERAL)}
    probe = Probe(top_fraction=0.1, top_fractions=(0.25,), selections=SELECTIONS, items=8, permutations=9)
    experiment = SimpleNamespace(
        study=SimpleNamespace(probe=probe, scoring_batch=4), replicate=2, generator=lambda stream: np.random.default_rng(len(stream))
    )
    base = SimpleNamespace(tokenizer=SimpleNamespace(all_special_ids=[BOS]))
    first, second = (
        overlap_of_arm(experiment, base, SimpleNamespace(model=model, arm=SimpleNamespace(name=name)), rows) for name in ("D0", "D1")
    )
    assert set(first.columns) == {*OVERLAP_COLUMNS, "arm", "seed"}
    assert len(first) == 3 * len(SELECTIONS) * 2  # layers, for one pair of domains
    assert first.notna().all(axis=None)
    assert (first["arm"] == "D0").all() and (first["seed"] == 2).all()
    pd.testing.assert_frame_equal(first.drop(columns="arm"), second.drop(columns="arm"))
