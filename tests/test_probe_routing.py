"""The routing probe: planted experts, equal domains, a router of words alone, closed forms of load and specialisation, streaming."""

from math import log
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import MAX_LENGTH
from torch import nn

from sparsecl.arms import parse_arm
from sparsecl.experiment import MissingInput
from sparsecl.items import GENERAL
from sparsecl.modeling import build_model
from sparsecl.probing import probed_arms
from sparsecl.probing.activations import GroupMeans, common_token_weights
from sparsecl.probing.routing import RoutingProfile, routing_profile
from sparsecl.probing.routing_table import (
    ROUTING_COLUMNS,
    coactivation_similarity,
    entropy,
    jensen_shannon,
    normalised_divergence,
    routing_table,
    top_p_jaccard,
    top_p_set,
)
from sparsecl.settings import Model
from sparsecl.streams import Stream
from sparsecl.study_files import load_study

SHAPE = Model(
    family="qwen3_5_moe", hidden=32, ffn=16, layers=4, heads=2, kv_heads=1, head_dim=16, experts=6, experts_per_token=2, shared_ffn=16,
    delta_key_heads=1, delta_value_heads=1, delta_head_dim=8, router_aux_coefficient=0.0,
)  # fmt: skip
EXPERTS, VOCABULARY, TOP = 4, 40, 2


class PlantedTopKRouter(nn.Module):
    """Sends every token id to the experts that a table names."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.table, self.top_k, self.num_experts = table, table.shape[1], EXPERTS

    def forward(self, ids):
        chosen = self.table[ids.flatten()]
        return torch.zeros(len(chosen), EXPERTS), torch.full(chosen.shape, 1 / self.top_k), chosen


class PlantedModel(nn.Module):
    """One layer: a router of words, and a shared expert whose gate is 1/2 at even ids and nearly open at odd ones."""

    def __init__(self, table: torch.Tensor) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, 1)
        self.gate = PlantedTopKRouter(table)
        self.shared_expert_gate = nn.Identity()

    def forward(self, input_ids, **_):
        self.gate(input_ids)
        self.shared_expert_gate(100.0 * (input_ids % 2).flatten()[:, None].float())


def documents(words: np.ndarray, count: int = 24, length: int = 12, seed: int = 0) -> list[list[int]]:
    generator = np.random.default_rng(seed)
    return [generator.choice(words, length - index % 3).tolist() for index in range(count)]


def profiled(model: nn.Module, rows: dict, **changes) -> dict[str, RoutingProfile]:
    weights = common_token_weights(rows, [0])
    return {
        domain: routing_profile(model, lines, 5, excluded_tokens=[0], token_weights=weights[domain], **changes)
        for domain, lines in rows.items()
    }


def table_of(profiles, permutations: int = 99, seed: int = 0, top_p: float = 0.9):
    table = routing_table(profiles, next(iter(profiles.values())), top_p, permutations, np.random.default_rng(seed))
    assert list(table.columns) == list(ROUTING_COLUMNS)
    return table.set_index("measure")


LOW, HIGH = np.arange(1, 20), np.arange(20, 40)
DIVIDED = torch.tensor([[0, 1]] * 20 + [[2, 3]] * 20)  # low words to experts 0 and 1, high ones to 2 and 3


# Closed forms


def test_divergence_of_known_distributions():
    p, q = torch.tensor([0.5, 0.5, 0.0, 0.0]).double(), torch.tensor([0.0, 0.0, 0.5, 0.5]).double()
    assert float(entropy(p)) == pytest.approx(log(2))
    assert float(jensen_shannon(p, q)) == pytest.approx(log(2)) and float(jensen_shannon(p, p)) == 0
    assert float(normalised_divergence(p, q)) == pytest.approx(1) and float(normalised_divergence(p, p)) == 0
    one, other = torch.eye(4).double()[:2]
    assert float(normalised_divergence(one, other)) == pytest.approx(log(2) / log(4))  # two experts of four stay unused
    flat = torch.full((4,), 0.25).double()
    assert float(normalised_divergence(flat, flat)) == 0
    assert float(coactivation_similarity(p, q)) == pytest.approx(0) and float(coactivation_similarity(p, p)) == 1


def test_independent_almost_uniform_loads_have_half_the_divergence_that_is_allowed():
    """Hence a value is nothing without its null."""
    noise = torch.randn(2, 200, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    p, q = (1e-3 * noise).softmax(dim=-1)
    assert float(normalised_divergence(p, q).mean()) == pytest.approx(0.5, abs=0.02)


def test_top_p_takes_the_fewest_experts_that_hold_the_share():
    p = torch.tensor([0.1, 0.5, 0.3, 0.1]).double()
    assert top_p_set(p, 0.5).tolist() == [False, True, False, False]
    assert top_p_set(p, 0.6).tolist() == [False, True, True, False]
    assert top_p_set(p, 0.8).tolist() == [False, True, True, False]
    assert top_p_set(p, 0.81).tolist() == [True, True, True, False]
    assert float(top_p_jaccard(p, p.flip(0), 0.6)) == pytest.approx(1.0)
    assert float(top_p_jaccard(p, p.roll(2), 0.5)) == 0


def test_load_specialisation_entropy_and_gate_have_closed_forms():
    """Expert 0 gets every token, experts 1 to 3 a third each: 1 over 2/4 is the specialisation, and 1 less the violation."""
    words = np.arange(1, 4)
    rows = {"a": [[1, 2, 3]] * 8, "b": [[3, 1, 2]] * 8}
    model = PlantedModel(torch.tensor([[0, 1]] + [[0, 1], [0, 2], [0, 3]] + [[0, 1]] * 36))
    assert set(np.concatenate(rows["a"])) == set(words)
    table = table_of(profiled(model, rows))
    of_a = table[(table["domain_a"] == "a") & (table["domain_b"] == "")]["value"]
    load = np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert [of_a[f"load/{expert}"] for expert in range(4)] == pytest.approx(2 * load)  # shares of tokens, two experts each
    assert of_a["specialisation_max"] == pytest.approx(1 / (2 / 4))
    assert of_a["entropy"] == pytest.approx(-(load * np.log(load)).sum() / log(4))
    assert of_a["shared_gate"] == pytest.approx((1 + 0.5 + 1) / 3, abs=1e-6)
    assert table.loc["load_maxvio", "value"] == pytest.approx(1.0) and table.loc["load_maxvio", "domain_a"] == GENERAL
    assert table.loc["jsd", "value"] == pytest.approx(0, abs=1e-9) and table.loc["jsd", "p_label"] == 1


# Planted domains


def test_divided_experts_are_found():
    table = table_of(profiled(PlantedModel(DIVIDED), {"a": documents(LOW), "b": documents(HIGH, seed=1)}))
    assert table.loc["jsd", "value"] == pytest.approx(1) and table.loc["jsd", "ceiling"] == pytest.approx(0, abs=1e-9)
    assert table.loc["top_p_jaccard", "value"] == 0 and table.loc["top_p_jaccard", "ceiling"] == 1
    assert table.loc["coactivation", "value"] == pytest.approx(0) and table.loc["coactivation", "ceiling"] == pytest.approx(1)
    assert (table.loc[["jsd", "top_p_jaccard", "coactivation"], "p_label"] == 0.01).all()
    # Mixed, the domains' load is almost uniform: what little divergence is allowed is had by chance.
    assert table.loc["jsd", "null_label"] < 0.8 and table.loc["coactivation", "null_label"] > 0.8
    special = table.loc["specialisation_max"]
    assert np.allclose(special["value"], 2) and (special["p_label"] <= 0.02).all() and (special["null_label"] < 1.5).all()
    assert table.loc["jsd/same-tokens"].isna()[["value", "null_label", "p_label", "ceiling"]].all()  # no word in common


def test_equal_domains_lie_at_their_null_and_p_is_uniform():
    model = PlantedModel(
        torch.stack([torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(word))[:TOP] for word in range(VOCABULARY)])
    )
    found = []
    for seed in range(30):
        rows = {"a": documents(np.arange(1, 40), seed=2 * seed), "b": documents(np.arange(1, 40), seed=2 * seed + 1)}
        found.append(table_of(profiled(model, rows), permutations=39, seed=seed, top_p=0.5).loc[["jsd", "top_p_jaccard", "coactivation"]])
    for measure in ("jsd", "top_p_jaccard", "coactivation"):
        rows = [table.loc[measure] for table in found]
        p = np.array([row["p_label"] for row in rows])
        ties = 0.15 * (measure == "top_p_jaccard")  # equal overlaps count as no more different
        assert 0.35 < p.mean() < 0.65 + ties and (p <= 0.05).mean() <= 0.2
        assert np.mean([row["value"] - row["null_label"] for row in rows]) == pytest.approx(0, abs=0.06)
        assert np.mean([row["ceiling"] - row["null_label"] for row in rows]) == pytest.approx(0, abs=0.05)


def test_a_router_of_words_alone_differs_between_domains_only_by_their_words():
    """Domains that use the same words in other proportions diverge, and not where their words are made equal."""
    often, seldom = np.concatenate([np.repeat(LOW, 4), HIGH]), np.concatenate([LOW, np.repeat(HIGH, 4)])
    rows = {"a": documents(often, 60, 30), "b": documents(seldom, 60, 30, seed=1)}
    table = table_of(profiled(PlantedModel(DIVIDED), rows))
    assert table.loc["jsd", "value"] > 0.5 and table.loc["jsd", "p_label"] == 0.01
    same = table.loc["jsd/same-tokens"]
    assert same["value"] - same["null_label"] < 0.1 * (table.loc["jsd", "value"] - table.loc["jsd", "null_label"])
    assert same["p_label"] > 0.05


class PositionTopKRouter(PlantedTopKRouter):
    """Goes by the first word of a row, whatever the word it routes: context, not words."""

    def forward(self, ids):
        return super().forward(ids[:, :1].expand_as(ids))


def test_a_router_of_context_survives_the_control_for_words():
    model = PlantedModel(DIVIDED)
    model.gate = PositionTopKRouter(DIVIDED)
    shared = np.arange(10, 30)
    rows = {"a": [[1, *row] for row in documents(shared)], "b": [[39, *row] for row in documents(shared, seed=1)]}
    table = table_of(profiled(model, rows))
    assert table.loc["jsd/same-tokens", "value"] == pytest.approx(1) and table.loc["jsd/same-tokens", "p_label"] == 0.01


# Streaming


@pytest.fixture(scope="module")
def mixture():
    torch.set_num_threads(1)
    return build_model(SHAPE, 60, MAX_LENGTH, seed=0, special_ids={})


def test_counts_are_those_of_the_model_row_by_row(mixture):
    """Against transformers' own router logits, a row at a time: batches, padding, groups and excluded tokens change nothing."""
    rows = documents(np.arange(1, 60), count=7) + [[5, 0, 9]]
    profile = routing_profile(mixture, rows, 3, excluded_tokens=[0], groups=4)
    load, pairs = torch.zeros(4, 4, 6), torch.zeros(4, 4, 6, 6)
    tokens = torch.zeros(4)
    for index, row in enumerate(rows):
        counted = torch.tensor([token != 0 for token in row])
        tokens[index % 4] += counted.sum()
        with torch.no_grad():
            logits = mixture(torch.tensor([row]), output_router_logits=True).router_logits
        for layer, of_layer in enumerate(logits):
            chosen = nn.functional.one_hot(of_layer.topk(2).indices, 6).sum(1)[counted].float()
            load[layer, index % 4] += chosen.sum(0)
            pairs[layer, index % 4] += chosen.T @ chosen
    upper = torch.triu_indices(6, 6, offset=1)
    assert profile.experts_per_token == 2 and torch.equal(profile.load.weight, tokens)
    torch.testing.assert_close(profile.load.mean * tokens[:, None], load)
    torch.testing.assert_close(profile.pairs.mean * tokens[:, None], pairs[..., upper[0], upper[1]])
    torch.testing.assert_close(profile.load.mean.sum(-1), torch.full((4, 4), 2.0))
    assert profile.same_tokens is None and 0 < float(profile.shared_gate.mean.min()) < float(profile.shared_gate.mean.max()) < 1


def test_equal_weights_give_the_load_and_the_size_does_not_grow_with_the_text(mixture):
    rows = documents(np.arange(1, 60), count=8)
    profile = routing_profile(mixture, rows, 4, excluded_tokens=[0], token_weights=torch.ones(60))
    torch.testing.assert_close(profile.same_tokens.mean, profile.load.mean)
    longer = routing_profile(mixture, [row * 2 for row in rows], 4, excluded_tokens=[0], token_weights=torch.ones(60))
    assert longer.load.mean.shape == profile.load.mean.shape == (4, 8, 6) and longer.pairs.mean.shape == (4, 8, 15)


def test_the_table_is_reproducible_and_names_every_layer(mixture):
    rows = {"a": documents(np.arange(1, 30)), "b": documents(np.arange(20, 60), seed=1), "c": documents(np.arange(1, 60), seed=2)}
    profiles = profiled(mixture, rows)
    first, second = (table_of(profiles, permutations=9) for _ in range(2))
    assert first.equals(second)
    counts = first.groupby(level=0).size()
    assert (counts[["jsd", "jsd/same-tokens", "top_p_jaccard", "coactivation"]] == 3 * 4).all()
    assert (counts[["specialisation_max", "entropy", "shared_gate"]] == 3 * 4).all() and counts["load_maxvio"] == 4
    loads = first[first.index.str.startswith("load/")]
    assert set(loads["domain_a"]) == {"a", "b", "c", GENERAL} and set(loads.index) == {f"load/{expert}" for expert in range(6)}
    assert np.allclose(loads.groupby(["domain_a", "layer"])["value"].sum(), 2)  # experts a token
    largest = loads[loads["domain_a"] != GENERAL].groupby(["domain_a", "layer"])["value"].max() / (2 / 6)
    assert np.allclose(largest, first.loc["specialisation_max"].set_index(["domain_a", "layer"])["value"].sort_index())
    assert sorted(first["layer"].unique()) == [0, 1, 2, 3]
    assert first.loc[["jsd", "top_p_jaccard"], ["value", "null_label", "p_label", "ceiling"]].notna().all(axis=None)


def test_one_expert_a_token_has_no_pairs():
    means = GroupMeans(torch.rand(1, 4, EXPERTS), torch.ones(4))
    profile = RoutingProfile(1, means, None, None, None)
    table = table_of({"a": profile, "b": profile}, permutations=9)
    loads = {f"load/{expert}" for expert in range(EXPERTS)}
    assert set(table.index) == {"jsd", "top_p_jaccard", "specialisation_max", "entropy", "load_maxvio"} | loads


def test_what_cannot_be_compared_is_refused(model, mixture):
    with pytest.raises(ValueError, match="only models with routed experts have a load"):
        routing_profile(model, [[1, 2]], 1, excluded_tokens=[0])
    few = profiled(mixture, {"a": documents(LOW, 3), "b": documents(LOW, 3)})
    with pytest.raises(ValueError, match="3 groups of documents; wanted 4, 6 and 4 or more"):
        table_of(few)
    enough = profiled(mixture, {"a": documents(LOW), "b": documents(LOW)})
    for top_p in (0.0, 1.0):
        with pytest.raises(ValueError, match=f"top_p {top_p}: wanted"):
            routing_table(enough, enough["a"], top_p, 9, np.random.default_rng(0))
    with pytest.raises(ValueError, match="general text apart"):
        routing_table({**enough, GENERAL: enough["a"]}, enough["a"], 0.5, 9, np.random.default_rng(0))


def test_a_stream_that_has_not_ended_is_named(monkeypatch):
    study = load_study("builtin-moe")
    experiment = SimpleNamespace(study=study, replicate=2, find=lambda *place: None, write_path=lambda *place: Path(*place))
    unfinished = Stream(parse_arm("D1"), "lora", "main", 1e-3, study.continual.stage_steps)
    monkeypatch.setattr(probed_arms, "planned_streams", lambda *about: [unfinished])
    monkeypatch.setattr(probed_arms, "learning_rates", lambda about: None)
    with pytest.raises(MissingInput, match="stage-4 is not there: run notebook 03_continual with replicate = 2, or .* --only 03_continual"):
        list(probed_arms._ends(experiment, None))


@pytest.mark.parametrize(("mean_entropy", "most"), [(log(8), 0.0), (log(4), log(2)), (0.0, log(2))])
def test_the_bound_of_the_divergence_is_attained_down_to_half_the_outcomes(mean_entropy, most):
    """Two loads on disjoint, equally many outcomes; where each is on one of eight, log 2 is less than the bound log 8."""
    size = round(np.exp(mean_entropy))
    p, q = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    p[:size], q[-size:] = 1 / size, 1 / size
    bound = log(8) - mean_entropy
    assert float(jensen_shannon(p, q)) == pytest.approx(most, abs=1e-12)
    assert float(normalised_divergence(p, q)) == pytest.approx(most / bound if bound > 1e-12 else 0.0)
