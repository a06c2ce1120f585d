"""The activation overlap: sets, chance, planted truth, both nulls, the ceiling, and the control for the domains' words."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import Qwen3Config

from sparsecl.probe_normalisation import normalised_overlap
from sparsecl.probing.activations import ActivationProfile, GroupMeans, activation_profile, common_token_weights
from sparsecl.probing.overlap import OVERLAP_COLUMNS, SAME_TOKENS, SELECTIONS, Halves, contrast_scores, general_moments, overlap_table
from sparsecl.probing.top_sets import chance_iou, iou, nested_top_neurons, packed_sets, shared_count, top_count, top_neurons


def marked(neurons: int, *chosen: int) -> torch.Tensor:
    mask = torch.zeros(neurons, dtype=torch.bool)
    mask[list(chosen)] = True
    return mask


def profile_of(mean: torch.Tensor, weight: torch.Tensor) -> ActivationProfile:
    return ActivationProfile(GroupMeans(mean, weight))


def noise_profile(seed: int, documents: int = 24, neurons: int = 200, layers: int = 1) -> ActivationProfile:
    """Documents of one distribution in which no neuron differs from another."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.rand(layers, documents, neurons, generator=generator)
    return profile_of(mean, torch.randint(3, 30, (documents,), generator=generator).float())


def planted_profile(seed: int, chosen: range, documents: int = 24, neurons: int = 200) -> ActivationProfile:
    profile = noise_profile(seed, documents, neurons)
    profile.magnitude.mean[:, :, list(chosen)] += 5.0
    return profile


def joined(*profiles: ActivationProfile) -> ActivationProfile:
    means = [profile.magnitude for profile in profiles]
    return profile_of(torch.cat([one.mean for one in means], dim=1), torch.cat([one.weight for one in means]))


def table_of(profiles: dict, general: ActivationProfile, seed: int = 0, top_fraction: float = 0.1, permutations: int = 99, **choices):
    return overlap_table(profiles, general, (top_fraction,), permutations, np.random.default_rng(seed), **choices)


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
        assert np.array_equal(top_neurons(scores.half(), k).numpy(), expected)  # ranked in another way, as on a GPU
        assert np.array_equal(nested_top_neurons(scores, (5, 16, 1))[k].numpy(), expected)


def test_packed_sets_share_what_the_sets_share():
    a, b = torch.rand(2, 50, 37, generator=torch.Generator().manual_seed(0)) > 0.6
    assert shared_count(packed_sets(a), packed_sets(b)).tolist() == (a & b).sum(dim=-1).tolist()


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
    tokens = torch.tensor([3.0, 1.0])  # means 1, 1, 0; deviations sqrt(3), 0, 0
    scores = contrast_scores(torch.tensor([4.0, 2.0, 0.0]), general_moments(GroupMeans(general[None], tokens), 0))
    assert scores.tolist() == pytest.approx([3**0.5, float("inf"), 0.0])


# Chance


@pytest.mark.parametrize(("neurons", "k"), [(5, 1), (12, 1), (5, 2), (11, 2), (6, 3), (10, 3), (7, 5), (8, 7)])
def test_chance_is_the_mean_over_all_sets(neurons, k):
    first = marked(neurons, *range(k))
    overlaps = [iou(first, marked(neurons, *chosen)).item() for chosen in combinations(range(neurons), k)]
    assert chance_iou(neurons, k) == pytest.approx(np.mean(overlaps), abs=1e-12)


def test_chance_of_one_neuron_is_one_in_all():
    assert [chance_iou(neurons, 1) for neurons in (2, 64, 9728)] == pytest.approx([1 / 2, 1 / 64, 1 / 9728])


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
    first.magnitude.mean[1, :, :20] += 5
    second.magnitude.mean[1, :, 100:120] += 5
    for profile in (first, second):
        profile.magnitude.mean[2, :, :20] += 5
    table = table_of({"a": first, "b": second}, shared, selections=("magnitude",)).set_index("layer")
    assert table["value"][1] == 0 and table["ceiling"][1] == 1
    assert table["value"][2] == 1 and table["p_label"][2] == 1
    assert table["ceiling"][0] < 0.3


def test_always_on_neurons_fool_the_magnitude_but_not_the_contrast():
    """What is strong in every text, general text included, says nothing about a domain."""
    profiles = {"a": planted_profile(0, range(20, 40)), "b": planted_profile(1, range(100, 120))}
    general = noise_profile(2)
    for profile in (*profiles.values(), general):
        profile.magnitude.mean[:, :, :20] += 50
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
        sample.magnitude.mean.add_(torch.linspace(0, 2, 60))
        halves = slice(0, 16), slice(16, 32)
        a, b = (profile_of(sample.magnitude.mean[:, half], sample.magnitude.weight[half]) for half in halves)
        tables.append(table_of({"a": a, "b": b}, noise_profile(5, neurons=60), seed, permutations=39, splits=2))
    table = pd.concat(tables)
    for _, rows in table.groupby("selection"):
        assert (rows["p_label"] <= 0.05).mean() < 0.15  # 9 of 60 where 3 are expected
        assert 0.35 < rows["p_label"].mean() < 0.65
        difference = rows["value"] - rows["null_label"]
        assert abs(difference.mean()) < 4 * difference.std() / len(rows) ** 0.5
    assert (table["ceiling"] > table["null"] + 0.1).mean() > 0.9


def means_by_hand(domain: ActivationProfile, selection: str, k: int) -> torch.Tensor:
    means = {"frequency": domain.frequency[k], SAME_TOKENS: domain.same_tokens}.get(selection, domain.magnitude)
    return means.mean[0].double()


def iou_by_hand(first: torch.Tensor, second: torch.Tensor, k: int) -> float:
    """IoU of the `k` neurons with the highest scores, the first ones among equals."""
    a, b = ({*sorted(range(len(scores)), key=lambda neuron: (-scores[neuron], neuron))[:k]} for scores in (first, second))
    return len(a & b) / len(a | b)


def test_the_table_is_that_of_a_plain_loop_over_draws_splits_and_halves():
    """8 documents of one token and few levels of activation: halves of 4 have exact means, many of them equal."""
    generator = torch.Generator().manual_seed(0)

    def profile() -> ActivationProfile:
        levels = (GroupMeans(torch.randint(0, 4, (1, 8, 13), generator=generator).float(), torch.ones(8)) for _ in range(4))
        magnitude, few, many, same_tokens = levels
        magnitude.mean[:, :, 2] = 0.0
        return ActivationProfile(magnitude, {2: few, 5: many}, same_tokens)

    a, b, general = profile(), profile(), profile()
    table = overlap_table({"a": a, "b": b}, general, (2 / 13, 5 / 13), 6, np.random.default_rng(0), selections=SELECTIONS, splits=3)
    assert len(table) == len(SELECTIONS) * 2
    pair = (a.magnitude, b.magnitude)
    members = Halves(pair, 6, 3, np.random.default_rng(0)).weights(pair) > 0
    assert (members.sum(dim=(-2, -1)) == 16).all() and (members.sum(dim=-1) == 4).all()
    for row in table.itertuples():
        k = round(13 * row.top_fraction)
        documents = torch.cat([means_by_hand(domain, row.selection, k) for domain in (a, b)])
        halves = [[[documents[half].mean(dim=0) for half in split] for split in draw] for draw in members]
        if row.selection == "contrast":
            whole = general.magnitude.mean[0].double()
            centre = whole.mean(dim=0)
            deviation = ((whole - centre) ** 2).mean(dim=0).sqrt()
            halves = [[[((half - centre) / deviation).nan_to_num() for half in split] for split in draw] for draw in halves]
        across = [np.mean([iou_by_hand(s[i], s[j], k) for s in draw for i in (0, 1) for j in (2, 3)]) for draw in halves]
        within = [iou_by_hand(s[i], s[i + 1], k) for s in halves[0] for i in (0, 2)]
        p_label = (1 + sum(other <= across[0] + 1e-9 for other in across[1:])) / 7
        expected = (across[0], chance_iou(13, k), np.mean(across[1:]), p_label, np.mean(within))
        assert (row.value, row.null, row.null_label, row.p_label, row.ceiling) == pytest.approx(expected, abs=1e-12)


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
    a.magnitude.mean[:, :, :20] += 5
    b.magnitude.mean[:, :, :20] += 5
    b.magnitude.mean[:, :11, 20:40] += 4.0
    b.magnitude.weight[:] = 1
    b.magnitude.weight[11] = 10_000  # the one document without the second set outweighs the rest of its half
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
            r"profile of b is \(1, 3, 200\).*4 or more groups",
        ),
    ],
)
def test_profiles_that_cannot_be_compared_are_refused(profiles, general, message):
    with pytest.raises(ValueError, match=message):
        table_of(profiles, general)


def test_diverged_activations_are_refused():
    broken = noise_profile(0)
    broken.magnitude.mean[0, 3, 4] = torch.nan
    with pytest.raises(ValueError, match="profile of a holds NaN or infinite activations"):
        table_of({"a": broken, "b": noise_profile(1)}, noise_profile(2))


# Several selections and fractions


def with_statistics(profile: ActivationProfile, seed: int) -> ActivationProfile:
    """The profile with a planted frequency at K = 4 and 20 and means over the same tokens, each its own noise."""
    shape = profile.magnitude.mean.shape
    generator = torch.Generator().manual_seed(seed)
    first, second, third = (GroupMeans(torch.rand(shape, generator=generator), torch.ones(shape[1])) for _ in range(3))
    return ActivationProfile(profile.magnitude, {4: first, 20: second}, third)


def test_a_row_does_not_depend_on_the_other_selections_and_fractions():
    profiles = {name: with_statistics(planted_profile(seed, range(20 * seed, 20 * seed + 30)), seed) for seed, name in enumerate("abc")}
    general = noise_profile(9)
    together = overlap_table(profiles, general, (0.1, 0.02), 19, np.random.default_rng(0), selections=SELECTIONS)
    assert len(together) == 3 * 4 * 2
    for selection in SELECTIONS:
        for fraction in (0.1, 0.02):
            alone = table_of(profiles, general, top_fraction=fraction, permutations=19, selections=(selection,))
            same = together[(together["selection"] == selection) & (together["top_fraction"] == fraction)]
            pd.testing.assert_frame_equal(same.reset_index(drop=True), alone)


def test_groups_without_a_token_are_left_out_and_change_nothing_else():
    a, b = (with_statistics(noise_profile(seed), seed) for seed in (0, 1))
    whole = table_of({"a": a, "b": b}, noise_profile(2), selections=("magnitude", SAME_TOKENS))
    a.same_tokens.mean[:, 3:7] = torch.nan
    a.same_tokens.weight[3:7] = 0
    some = table_of({"a": a, "b": b}, noise_profile(2), selections=("magnitude", SAME_TOKENS))
    pd.testing.assert_frame_equal(some[:1], whole[:1])
    assert some[["value", "null_label", "p_label", "ceiling"]].notna().all(axis=None)
    assert some["value"][1] != whole["value"][1]


def test_too_few_groups_with_a_common_word_leave_the_overlap_absent():
    a, b = (with_statistics(noise_profile(seed), seed) for seed in (0, 1))
    a.same_tokens.mean[:, 3:] = torch.nan
    a.same_tokens.weight[3:] = 0
    row = table_of({"a": a, "b": b}, noise_profile(2), selections=(SAME_TOKENS,)).iloc[0]
    assert row[["value", "null_label", "p_label", "ceiling"]].isna().all()
    assert row["null"] == pytest.approx(chance_iou(200, 20))


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ("loudest", r"selection 'loudest' is unknown; choose one of \('magnitude', 'frequency', 'contrast', 'magnitude/same-tokens'\)"),
        ("frequency", r"no frequency at K = \[20\]; give activation_profile the same top_fractions"),
        (SAME_TOKENS, "no means over the same tokens; give activation_profile the weights of common_token_weights"),
    ],
)
def test_selections_that_cannot_be_served_are_refused(selection, message):
    with pytest.raises(ValueError, match=message):
        table_of({"a": noise_profile(0), "b": noise_profile(1)}, noise_profile(2), selections=(selection,))


# Planted words and planted contexts


class LookUp(torch.nn.Module):
    """One layer of 60 neurons that fire by the current token, and, weighted by `context`, by the first token of the line."""

    def __init__(self, context: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.by_token = torch.nn.Parameter(torch.rand(40, 60, generator=generator) ** 4)
        self.by_first = torch.nn.Parameter(context * torch.rand(40, 60, generator=generator) ** 4)
        self.layer = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"down_proj": torch.nn.Linear(60, 1)})})
        self.config = Qwen3Config(num_hidden_layers=1)

    def forward(self, input_ids, **_ignored):
        return self.layer["mlp"]["down_proj"](self.by_token[input_ids] + self.by_first[input_ids[:, :1]])


FIRST = {"a": 38, "b": 39}  # the line's first token, which tells its domain


def lines(domain: str, share: float, seed: int, documents: int = 60) -> list[list[int]]:
    """Lines over tokens 0 to 30; `share` says which words the domain prefers."""
    generator = np.random.default_rng(seed)
    return [[FIRST[domain], *generator.binomial(30, share, generator.integers(40, 80)).tolist()] for _ in range(documents)]


def overlaps(model: LookUp, rows: dict[str, list[list[int]]]) -> pd.DataFrame:
    """Rows of the two domains by selection; the domains' first tokens are seen but not counted."""
    excluded = list(FIRST.values())
    weights = common_token_weights(rows, excluded)
    profiles = {
        name: activation_profile(model, chosen, 16, excluded_tokens=excluded, top_fractions=(0.2,), token_weights=weights[name])
        for name, chosen in rows.items()
    }
    general = activation_profile(model, rows["a"] + rows["b"], 16, excluded_tokens=excluded)
    return table_of(profiles, general, top_fraction=0.2, permutations=99, selections=("magnitude", "frequency", SAME_TOKENS)).set_index(
        "selection"
    )


def test_domains_that_differ_in_their_words_alone_reach_the_ceiling_over_the_same_tokens():
    table = overlaps(LookUp(context=0.0), {"a": lines("a", 0.4, 0), "b": lines("b", 0.6, 1)})
    for selection in ("magnitude", "frequency"):
        assert table["value"][selection] < table["ceiling"][selection] - 0.25
        assert table["p_label"][selection] == 0.01
    same = table.loc[SAME_TOKENS]
    assert same["value"] == pytest.approx(same["null_label"], abs=0.03)
    assert same["value"] > same["ceiling"] - 0.03
    assert same["ceiling"] > same["null"] + 0.5
    assert same["p_label"] > 0.05


def test_a_domain_told_by_an_earlier_token_stays_apart_over_the_same_tokens():
    table = overlaps(LookUp(context=1.0), {"a": lines("a", 0.5, 0), "b": lines("b", 0.5, 1)})
    assert (table["value"] < table["ceiling"] - 0.25).all()
    assert (table["p_label"] == 0.01).all()


def test_a_neuron_huge_at_few_tokens_is_found_by_magnitude_and_not_by_frequency():
    model = LookUp(context=0.0)
    with torch.no_grad():
        model.by_token.fill_(0.0)
        model.by_token[:, :12] = torch.linspace(1, 2, 12)
        model.by_token[0, 20] = 1e4
        model.by_token[0, :12] = 1e3
    profile = activation_profile(model, [[0, *range(1, 30)] for _ in range(8)], 4, excluded_tokens=[], top_fractions=(0.2,))
    assert profile.magnitude.mean[0, :, 20].min() > profile.magnitude.mean[0, :, :12].max()
    frequency = profile.frequency[12].mean[0]
    assert frequency[:, :12].min() > 0.8
    assert frequency[:, 20].max() < 0.2
