"""The activation-overlap probe: sets, chance, planted truth, both nulls, the ceiling, and the hooks on a real architecture."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from sparsecl.probes import (
    OVERLAP_COLUMNS,
    ActivationProfile,
    activation_profile,
    chance_iou,
    feed_forward_activations,
    iou,
    normalised_overlap,
    overlap_table,
    selection_scores,
    top_count,
    top_neurons,
)

BOS = 1


def marked(neurons: int, *chosen: int) -> torch.Tensor:
    mask = torch.zeros(neurons, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def noise_profile(seed: int, documents: int = 24, neurons: int = 200, layers: int = 1) -> ActivationProfile:
    """Documents of one distribution in which no neuron differs from another."""
    generator = torch.Generator().manual_seed(seed)
    return ActivationProfile(
        torch.rand(layers, documents, neurons, generator=generator), torch.randint(3, 30, (documents,), generator=generator)
    )


def planted_profile(seed: int, chosen: range, documents: int = 24, neurons: int = 200) -> ActivationProfile:
    profile = noise_profile(seed, documents, neurons)
    profile.activation[:, :, list(chosen)] += 5.0
    return profile


def joined(*profiles: ActivationProfile) -> ActivationProfile:
    return ActivationProfile(torch.cat([p.activation for p in profiles], dim=1), torch.cat([p.tokens for p in profiles]))


def table_of(profiles: dict, general: ActivationProfile, seed: int = 0, top_fraction: float = 0.1, permutations: int = 99, **choices):
    return overlap_table(profiles, general, top_fraction, permutations, np.random.default_rng(seed), **choices)


# Sets


def test_iou_of_identical_disjoint_half_overlapping_and_empty_sets():
    a = marked(10, 0, 1, 2, 3)
    assert iou(a, a) == 1
    assert iou(a, marked(10, 4, 5, 6, 7)) == 0
    assert iou(a, marked(10, 2, 3, 4, 5)).item() == pytest.approx(1 / 3)
    assert iou(torch.stack([a, a]), torch.stack([a, ~a])).tolist() == [1, 0]
    assert iou(marked(4), marked(4)).isnan()


def test_top_neurons_are_those_of_a_stable_sort_and_ties_go_to_the_lowest_index():
    assert top_neurons(torch.tensor([1.0, 3, 3, 2, 3]), 2).tolist() == [False, True, True, False, False]
    assert top_neurons(torch.zeros(5), 3).tolist() == [True, True, True, False, False]
    assert top_neurons(torch.tensor([0.0, torch.inf, 1, -torch.inf, torch.inf]), 3).tolist() == [False, True, True, False, True]
    scores = torch.randint(0, 6, (300, 17), generator=torch.Generator().manual_seed(0)).double()  # many ties
    for k in (1, 5, 16):
        order = np.argsort(-scores.numpy(), axis=1, kind="stable")[:, :k]
        expected = np.zeros(scores.shape, dtype=bool)
        np.put_along_axis(expected, order, True, axis=1)
        assert np.array_equal(top_neurons(scores, k).numpy(), expected)


def test_nan_scores_are_refused():
    with pytest.raises(ValueError, match=r"1 of 3 neuron scores are NaN, wanted none; check the model"):
        top_neurons(torch.tensor([0.0, torch.nan, 1.0]), 1)


@pytest.mark.parametrize("top_fraction", [0.0, 1.0, -0.1, 0.001, 0.999, float("nan")])
def test_a_fraction_that_leaves_no_set_or_no_rest_is_refused(top_fraction):
    with pytest.raises(ValueError, match=rf"top_fraction {top_fraction} of 100 neurons .* 1 to 99; choose a fraction from 0.01 to 0.99"):
        top_count(100, top_fraction)


def test_top_count_is_the_nearest_whole_number():
    assert [top_count(256, fraction) for fraction in (0.1, 0.01, 0.5)] == [26, 3, 128]


def test_contrast_is_the_distance_from_general_text_in_its_standard_deviations():
    general = torch.tensor([[0.0, 1.0, 0.0], [4.0, 1.0, 0.0]])
    tokens = torch.tensor([3, 1])  # means 1, 1, 0; deviations sqrt(3), 0, 0
    scores = selection_scores("contrast", torch.tensor([4.0, 2.0, 0.0]), general, tokens)
    assert scores.tolist() == pytest.approx([3**0.5, float("inf"), 0.0])
    with pytest.raises(ValueError, match=r"selection 'loudest' is unknown; choose one of \('magnitude', 'contrast'\)"):
        selection_scores("loudest", scores, general, tokens)


# Chance


@pytest.mark.parametrize(("neurons", "k"), [(5, 1), (5, 2), (6, 3), (7, 5), (8, 7)])
def test_chance_is_the_mean_over_all_sets(neurons, k):
    first = marked(neurons, *range(k))
    overlaps = [iou(first, marked(neurons, *chosen)).item() for chosen in combinations(range(neurons), k)]
    assert chance_iou(neurons, k) == pytest.approx(np.mean(overlaps), abs=1e-12)


def test_chance_agrees_with_random_draws_and_with_the_approximation():
    scores = torch.rand(2, 20_000, 60, generator=torch.Generator().manual_seed(3))
    drawn = iou(*top_neurons(scores, 12))
    assert abs(drawn.mean() - chance_iou(60, 12)) < 4 * drawn.std() / len(drawn) ** 0.5
    assert chance_iou(10_000, 1_000) == pytest.approx(0.1 / 1.9, rel=1e-3)
    assert chance_iou(10_000, 100) == pytest.approx(0.01 / 1.99, rel=1e-2)


def test_normalised_overlap_and_its_absence():
    assert normalised_overlap(0.4, 0.1, 0.7) == pytest.approx(0.5)
    assert np.isnan(normalised_overlap(0.4, 0.1, 0.12))
    columns = pd.DataFrame({"value": [0.1, 0.7, 0.2], "null": [0.1, 0.1, 0.1], "ceiling": [0.7, 0.7, 0.05]})
    found = normalised_overlap(columns["value"], columns["null"], columns["ceiling"])
    np.testing.assert_allclose(found, [0, 1, np.nan])


# Planted truth


def test_planted_sets_are_found_exactly():
    """20 of 200 neurons: `far` shares none with `near`, `half` shares 10, and a domain's own set is stable."""
    profiles = {
        "near": planted_profile(0, range(0, 20)),
        "far": planted_profile(1, range(100, 120)),
        "half": planted_profile(2, range(10, 30)),
    }
    table = table_of(profiles, noise_profile(3))
    assert tuple(table.columns) == OVERLAP_COLUMNS
    assert len(table) == 3 * 2
    found = table.set_index(["selection", "domain_a", "domain_b"]).sort_index()
    for selection in ("magnitude", "contrast"):
        values = found.loc[selection, "value"]
        assert values["near", "far"] == 0
        assert values["near", "half"] == pytest.approx(1 / 3)
        assert values["far", "half"] == 0
        assert (found.loc[selection, "ceiling"] == 1).all()
    assert (table["p_label"] <= 0.03).all()  # a lopsided exchange of labels may leave the sets as they were
    assert np.allclose(table["null"], chance_iou(200, 20))


def test_a_set_planted_in_one_layer_shows_in_that_layer_alone():
    shared, first, second = noise_profile(0, layers=3), noise_profile(1, layers=3), noise_profile(2, layers=3)
    first.activation[1, :, :20] += 5
    second.activation[1, :, 100:120] += 5
    for profile in (first, second):
        profile.activation[2, :, :20] += 5
    table = table_of({"a": first, "b": second}, shared, selections=("magnitude",)).set_index("layer")
    assert table["value"][1] == 0 and table["ceiling"][1] == 1
    assert table["value"][2] == 1 and table["p_label"][2] == 1
    assert table["ceiling"][0] < 0.3


def test_always_on_neurons_fool_the_magnitude_but_not_the_contrast():
    """What is strong in every text, general text included, says nothing about a domain."""
    profiles = {"a": planted_profile(0, range(20, 40)), "b": planted_profile(1, range(100, 120))}
    general = noise_profile(2)
    for profile in (*profiles.values(), general):
        profile.activation[:, :, :20] += 50
    values = table_of(profiles, general).set_index("selection")["value"]
    assert values["magnitude"] == 1
    assert values["contrast"] == 0


# Nulls


def test_unstructured_profiles_give_the_chance_overlap():
    values = [
        table_of(
            {"a": noise_profile(2 * seed), "b": noise_profile(2 * seed + 1)},
            noise_profile(99),
            seed,
            permutations=1,
            selections=("magnitude",),
        )
        for seed in range(40)
    ]
    table = pd.concat(values)
    for column in ("value", "ceiling"):
        assert abs(table[column].mean() - chance_iou(200, 20)) < 4 * table[column].std() / len(table) ** 0.5


def test_label_null_holds_its_level_where_the_domains_are_one():
    """Two samples of one distribution with stable sets: p is spread evenly and the value lies at the label null."""
    tables = []
    for seed in range(60):
        sample = noise_profile(1000 + seed, documents=32, neurons=60)
        sample.activation.add_(torch.linspace(0, 2, 60))
        a, b = (ActivationProfile(sample.activation[:, half], sample.tokens[half]) for half in (slice(0, 16), slice(16, 32)))
        tables.append(table_of({"a": a, "b": b}, noise_profile(5, neurons=60), seed, permutations=39, splits=2))
    table = pd.concat(tables)
    for _, rows in table.groupby("selection"):
        assert (rows["p_label"] <= 0.05).mean() < 0.15  # 9 of 60 where 3 are expected
        assert 0.35 < rows["p_label"].mean() < 0.65
        difference = rows["value"] - rows["null_label"]
        assert abs(difference.mean()) < 4 * difference.std() / len(rows) ** 0.5
    assert (table["ceiling"] > table["null"] + 0.1).mean() > 0.9


def test_contrast_over_the_compared_domains_is_unmasked_by_the_label_null():
    """The artefact: contrasted with their own mean, two equal domains look disjoint. Only the label null says why."""
    a, b = noise_profile(0, documents=40), noise_profile(1, documents=40)
    row = table_of({"a": a, "b": b}, joined(a, b), selections=("contrast",)).iloc[0]
    assert row["value"] < 0.6 * row["null"]  # far below chance, though nothing distinguishes a from b
    assert row["value"] == pytest.approx(row["null_label"], abs=0.02)
    assert row["p_label"] > 0.1


def test_same_generator_same_table_and_a_pair_in_both_directions_agrees():
    a, b, general = planted_profile(0, range(20)), planted_profile(1, range(5, 25)), noise_profile(2)
    pd.testing.assert_frame_equal(table_of({"a": a, "b": b}, general), table_of({"a": a, "b": b}, general))
    forward, backward = table_of({"a": a, "b": b}, general), table_of({"b": b, "a": a}, general)
    assert forward["value"].tolist() == pytest.approx(backward["value"].tolist(), abs=0.05)


def test_unequal_and_odd_numbers_of_documents_and_long_documents_count_by_tokens():
    a, b = noise_profile(0, documents=7), noise_profile(1, documents=12)
    a.activation[:, :, :20] += 5
    b.activation[:, :, :20] += 5
    b.activation[:, :11, 20:40] += 4.0
    b.tokens[:] = 1
    b.tokens[11] = 10_000  # the one document without the second set outweighs the rest of its half
    table = table_of({"a": a, "b": b}, noise_profile(2), selections=("magnitude",))
    assert table["value"].item() == 1


@pytest.mark.parametrize(
    ("profiles", "general", "message"),
    [
        ({"a": noise_profile(0)}, noise_profile(1), "profiles hold \\['a'\\]; give at least two domains"),
        ({"a": noise_profile(0), "general": noise_profile(1)}, noise_profile(1), "keep general text out of them"),
        ({"a": noise_profile(0), "b": noise_profile(1, neurons=100)}, noise_profile(2), r"profile of b is \(1, 24, 100\).*200 neurons"),
        (
            {"a": noise_profile(0), "b": noise_profile(1, documents=3)},
            noise_profile(2),
            r"profile of b is \(1, 3, 200\).*4 or more documents",
        ),
    ],
)
def test_profiles_that_cannot_be_compared_are_refused(profiles, general, message):
    with pytest.raises(ValueError, match=message):
        table_of(profiles, general)


def test_diverged_activations_are_refused():
    broken = noise_profile(0)
    broken.activation[0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="profile of a holds NaN or infinite activations"):
        table_of({"a": broken, "b": noise_profile(1)}, noise_profile(2))


# A real architecture


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
    profile = activation_profile(model, rows, batch=3, excluded_tokens=[BOS])
    assert profile.activation.shape == (3, len(rows), 48)
    assert profile.tokens.tolist() == [len(row) - 1 for row in rows]
    expected = torch.stack([by_hand(model, row) for row in rows], dim=1)
    torch.testing.assert_close(profile.activation, expected, rtol=1e-4, atol=1e-6)


def test_batch_size_and_padding_do_not_change_the_profile(model, rows):
    alone = activation_profile(model, rows, batch=1, excluded_tokens=[BOS])
    for batch in (2, 4, 100):
        together = activation_profile(model, rows, batch=batch, excluded_tokens=[BOS])
        torch.testing.assert_close(together.activation, alone.activation, rtol=1e-4, atol=1e-6)
        assert torch.equal(together.tokens, alone.tokens)
        assert torch.equal(top_neurons(together.activation, 5), top_neurons(alone.activation, 5))


def test_excluded_tokens_are_seen_but_not_counted(model):
    with_bos = activation_profile(model, [[BOS, 7, 8, 9]], batch=1, excluded_tokens=[])
    without = activation_profile(model, [[BOS, 7, 8, 9]], batch=1, excluded_tokens=[BOS])
    never_there = activation_profile(model, [[7, 8, 9]], batch=1, excluded_tokens=[BOS])
    assert (with_bos.tokens.item(), without.tokens.item()) == (4, 3)
    assert not torch.allclose(with_bos.activation, without.activation)
    assert not torch.allclose(without.activation[1:], never_there.activation[1:], rtol=1e-3)  # attention still reads BOS


def test_model_is_left_as_it_was_also_after_an_error(model, rows):
    model.train()
    model.model.layers[0].eval()  # a mixed state, as with a frozen layer
    before = [module.training for module in model.modules()]
    try:
        assert not activation_profile(model, rows, batch=2, excluded_tokens=[BOS]).activation.requires_grad
        with pytest.raises(IndexError):
            activation_profile(model, [[BOS, 10_000]], batch=1, excluded_tokens=[BOS])
        assert [module.training for module in model.modules()] == before
        with pytest.raises(RuntimeError, match="stop"), feed_forward_activations(model, lambda _layer, _activation: None):
            raise RuntimeError("stop")
        assert not any(module._forward_pre_hooks for module in model.modules())
    finally:
        model.eval()


def test_reading_the_activations_does_not_change_the_output(model, rows):
    ids = torch.tensor([rows[3]])
    with torch.no_grad():
        untouched, seen = model(ids).logits, []
        with feed_forward_activations(model, lambda layer, activation: seen.append((layer, *activation.shape))):
            assert torch.equal(model(ids).logits, untouched)
    assert seen == [(layer, 1, 18, 48) for layer in range(3)]


def test_rows_without_a_counted_token_and_empty_input_are_refused(model):
    with pytest.raises(ValueError, match=r"row 1 has 1 tokens and none that counts beside \[1\]; leave the row out"):
        activation_profile(model, [[BOS, 5], [BOS]], batch=2, excluded_tokens=[BOS])
    with pytest.raises(ValueError, match="row 0 has 0 tokens"):
        activation_profile(model, [[]], batch=2, excluded_tokens=[])
    with pytest.raises(ValueError, match="0 rows in batches of 2"):
        activation_profile(model, [], batch=2, excluded_tokens=[])


def test_a_model_without_dense_feed_forward_layers_is_refused(model):
    class Headless(torch.nn.Module):
        config = model.config

    with pytest.raises(ValueError, match=r"Headless has 0 modules named mlp.down_proj, wanted one in each of its 3 layers"):
        activation_profile(Headless(), [[BOS, 5]], batch=1, excluded_tokens=[BOS])
