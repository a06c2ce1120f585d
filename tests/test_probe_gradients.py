"""The gradient probe: planted directions, supports and subspaces; nulls and ceilings; sketches; and real gradients of a real model."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsecl.arms import parse_arm
from sparsecl.base import Base
from sparsecl.config import Model
from sparsecl.experiment import Experiment
from sparsecl.lineage import ArmCheckpoint
from sparsecl.masks import Masks, apply_masks, prunable_weights
from sparsecl.modeling import build_model
from sparsecl.probe_normalisation import disattenuated_cosine
from sparsecl.probing.gradient_table import (
    COLUMNS,
    MEASURES,
    drawn_halves,
    effective_dimension,
    gradient_table,
    gradients_of_arm,
    mean_cosines,
    probed_batches,
    subspace_comparison,
)
from sparsecl.probing.gradients import GradientStatistics, GroupGradients, Sketch, gradient_statistics, weight_groups
from sparsecl.probing.subspaces import principal_angles, principal_subspace, subspace_overlap
from sparsecl.probing.top_sets import chance_iou
from sparsecl.tokenizer import Row
from sparsecl.training import pad_rows, token_weights, weighted_loss


def noise(seed: int, batches: int, parameters: int) -> torch.Tensor:
    return torch.randn(batches, parameters, generator=torch.Generator().manual_seed(seed))


def statistics_of(domains: dict[str, torch.Tensor]) -> GradientStatistics:
    """Gradients given outright, one group of weights, nothing sketched."""
    gradients = torch.cat(list(domains.values()))
    labels = tuple(name for name, rows in domains.items() for _ in rows)
    return GradientStatistics(labels, (GroupGradients(0, "ffn", gradients.shape[1], gradients, gradients),))


def table_of(domains: dict[str, torch.Tensor], seed: int = 0, rank: int = 2, permutations: int = 99, top_fraction: float = 0.1, **choices):
    return gradient_table(statistics_of(domains), top_fraction, rank, permutations, np.random.default_rng(seed), **choices)


def by_measure(table: pd.DataFrame) -> pd.DataFrame:
    """The one pair's rows."""
    assert table["measure"].tolist() == list(MEASURES)
    return table.set_index("measure")


# Planted truth


def test_domains_with_one_gradient_reach_their_ceiling_and_labels_do_not_matter():
    common = 3 * noise(0, 1, 500)
    found = by_measure(table_of({"a": common + noise(1, 16, 500), "b": common + noise(2, 16, 500)}))
    assert found["value"]["cosine"] == pytest.approx(found["ceiling"]["cosine"], abs=0.02) and found["value"]["cosine"] > 0.95
    assert found["value"]["top_support"] == pytest.approx(found["ceiling"]["top_support"], abs=0.1)
    assert found["value"]["subspace"] == pytest.approx(found["ceiling"]["subspace"], abs=0.1)
    assert (found["p_label"] > 0.05).all()


def test_orthogonal_gradients_with_disjoint_supports_and_subspaces_are_seen_as_such():
    a, b = torch.zeros(2, 1, 400)
    a[:, :40], b[:, 200:240] = 10, 10
    found = by_measure(table_of({"a": a + 0.1 * noise(1, 16, 400), "b": b + 0.1 * noise(2, 16, 400)}, rank=1))
    assert found["value"].to_dict() == pytest.approx({"cosine": 0, "top_support": 0, "subspace": 0, "largest_angle": np.pi / 2}, abs=0.01)
    assert found["ceiling"].to_dict() == pytest.approx({"cosine": 1, "top_support": 1, "subspace": 1, "largest_angle": 0}, abs=0.03)
    assert (found["p_label"] <= 0.03).all()  # a lopsided exchange of labels may leave the supports as they were


def test_opposed_gradients_have_a_negative_cosine_and_one_support():
    common = 5 * noise(0, 1, 300)
    found = by_measure(table_of({"a": common + 0.1 * noise(1, 8, 300), "b": -common + 0.1 * noise(2, 8, 300)}, rank=1))
    assert found["value"]["cosine"] == pytest.approx(-1, abs=0.01)
    assert found["value"]["top_support"] > 0.9 and found["value"]["subspace"] > 0.99


def test_independent_noise_lies_at_the_chance_nulls():
    tables = [table_of({"a": noise(2 * seed, 8, 200), "b": noise(2 * seed + 1, 8, 200)}, permutations=1) for seed in range(80)]
    for measure, rows in pd.concat(tables).groupby("measure"):
        spread = rows["value"].std() / len(rows) ** 0.5
        if measure == "cosine":  # each value averages four cosines of independent halves
            assert rows["null"].iloc[0] == 200**-0.5
            assert abs(rows["value"].mean()) < 4 * spread
            assert 0.3 < rows["value"].std() / 200**-0.5 < 0.7
        elif measure != "largest_angle":
            wanted = {"top_support": chance_iou(200, 20), "subspace": 2 / 200}[measure]
            assert rows["null"].tolist() == [pytest.approx(wanted)] * 80
            assert abs(rows["value"].mean() - wanted) < 4 * spread
        else:
            assert rows["null"].isna().all()


@pytest.mark.parametrize("angle", [0.0, 0.2, 1.0, np.pi / 2])
def test_subspaces_turned_by_a_known_angle_are_found_from_the_gram_matrix(angle):
    basis = torch.linalg.qr(noise(0, 50, 4).double()).Q.T
    turned = torch.stack([basis[0], np.cos(angle) * basis[1] + np.sin(angle) * basis[2]])
    a, b = noise(1, 12, 2).double() @ basis[:2], noise(2, 12, 2).double() @ turned
    pooled = torch.cat([a, b])
    overlap, largest = subspace_comparison(pooled @ pooled.T, drawn_halves(12, 1, 2, np.random.default_rng(0)), 2)
    torch.testing.assert_close(overlap[0, :, :4], torch.full((2, 4), (1 + np.cos(angle) ** 2) / 2, dtype=torch.float64))
    torch.testing.assert_close(largest[0, :, :4], torch.full((2, 4), float(angle), dtype=torch.float64), atol=1e-6, rtol=1e-6)
    assert (overlap[0, :, 4:] > 1 - 1e-9).all() and (largest[0, :, 4:] < 1e-6).all()


def test_the_kernel_trick_agrees_with_the_subspaces_of_the_gradients_themselves():
    pooled = noise(0, 24, 60).double()
    halves = drawn_halves(12, 2, 1, np.random.default_rng(3))
    overlap, largest = subspace_comparison(pooled @ pooled.T, halves, 3)
    for draw in range(3):
        spans = [principal_subspace(pooled[half].T @ pooled[half], 3) for half in halves[draw, 0]]
        pairs = [(spans[i], spans[j]) for i, j in ((0, 2), (0, 3), (1, 2), (1, 3), (0, 1), (2, 3))]
        assert overlap[draw, 0].tolist() == pytest.approx([subspace_overlap(*pair) for pair in pairs])
        assert largest[draw, 0].tolist() == pytest.approx([principal_angles(*pair)[-1].item() for pair in pairs])


def test_cosines_from_the_gram_matrix_are_those_of_the_mean_gradients():
    pooled = noise(0, 10, 30).double()
    halves = drawn_halves(5, 3, 2, np.random.default_rng(0))
    found = mean_cosines(pooled @ pooled.T, halves)
    means = pooled[halves].mean(dim=3)
    for pair, (first, second) in enumerate(((0, 2), (0, 3), (1, 2), (1, 3), (0, 1), (2, 3))):
        wanted = torch.nn.functional.cosine_similarity(means[:, :, first], means[:, :, second], dim=-1)
        torch.testing.assert_close(found[..., pair], wanted)


def test_a_direction_that_gradients_do_not_span_overlaps_with_nothing():
    a, b = noise(0, 8, 1) @ noise(1, 1, 40), noise(2, 8, 1) @ noise(1, 1, 40)
    found = by_measure(table_of({"a": a, "b": b}, rank=3, permutations=1))
    assert found["value"]["subspace"] == pytest.approx(1 / 3)
    assert found["value"]["largest_angle"] == pytest.approx(np.pi / 2)


# Nulls


def test_halves_are_disjoint_of_one_size_and_keep_the_true_labels_in_the_first_draw():
    for batches in (4, 5):
        halves = drawn_halves(batches, 20, 3, np.random.default_rng(0))
        assert halves.shape == (21, 3, 4, batches // 2)
        assert all(len(set(split.flatten().tolist())) == split.numel() for draw in halves for split in draw)
        assert (halves[0, :, :2] < batches).all() and (halves[0, :, 2:] >= batches).all()
        # Within a draw the splits cut the same two groups of batches.
        assert all(not set(draw[0, :2].flatten().tolist()) & set(draw[1, 2:].flatten().tolist()) for draw in halves)


def test_label_null_holds_its_level_where_the_domains_are_one():
    """Batches of one distribution, with a mean and a few strong directions: p is spread evenly."""
    scale = torch.logspace(0, -2, 80)
    tables = []
    for seed in range(80):
        pooled = scale * (noise(0, 1, 80) + noise(100 + seed, 16, 80))
        tables.append(table_of({"a": pooled[:8], "b": pooled[8:]}, seed, permutations=39, splits=1))
    for _, rows in pd.concat(tables).groupby("measure"):
        assert (rows["p_label"] <= 0.05).mean() < 0.15  # 12 of 80 where 4 are expected
        assert 0.38 < rows["p_label"].mean() < 0.64  # 0.51, 4 standard errors
        difference = rows["value"] - rows["null_label"]
        assert abs(difference.mean()) < 4 * difference.std() / len(rows) ** 0.5


# The trivial shrinkage, and the way around it


def planted_pair(seed: int, parameters: int, cosine: float, batches: int = 32) -> dict[str, torch.Tensor]:
    """Common part, domain part, and noise of unit variance an entry: the mean gradients have one length whatever the size."""
    common, first, second = torch.linalg.qr(noise(seed, parameters, 3)).Q.T
    signal = 8.0
    return {
        name: signal * (cosine**0.5 * common + (1 - cosine) ** 0.5 * own) + noise(seed + place, batches, parameters)
        for place, (name, own) in enumerate((("a", first), ("b", second)), start=1)
    }


def test_raw_cosine_shrinks_with_the_number_of_parameters_and_the_disattenuated_one_does_not():
    """At every size 0.6 is planted; noise grows with the size, the signal does not."""
    raw, recovered = [], []
    for parameters in (100, 400, 1600, 6400):
        found = pd.concat([table_of(planted_pair(100 * seed, parameters, 0.6), permutations=1, splits=5) for seed in range(8)])
        found = found[found["measure"] == "cosine"]
        raw.append(found["value"].mean())
        recovered.append(np.nanmean(disattenuated_cosine(found["value"], found["null"], found["ceiling"])))
    assert raw[0] > 0.5 and raw[-1] < 0.15 and raw == sorted(raw, reverse=True)
    assert recovered == pytest.approx([0.6] * 4, abs=0.06)


@pytest.mark.parametrize("directions", [5, 50, 500])
def test_effective_dimension_is_the_number_of_directions_that_noise_fills(directions):
    noises = [noise(seed, 64, directions) @ torch.eye(directions, 600) for seed in range(10)]
    found = [effective_dimension((rows + 100).double() @ (rows + 100).double().T) for rows in noises]  # a mean does not matter
    assert np.mean(found) == pytest.approx(directions, rel=0.1)


def test_effective_dimension_of_unequal_directions_is_their_participation_ratio():
    variances = 1.0 / torch.arange(1, 101)
    found = [effective_dimension((rows := noise(seed, 64, 100).double() * variances.sqrt()) @ rows.T) for seed in range(20)]
    assert np.mean(found) == pytest.approx((variances.sum() ** 2 / (variances**2).sum()).item(), rel=0.1)


# Absent numbers, refusals, determinism


def test_gradients_of_zero_have_no_numbers():
    table = table_of({"a": torch.zeros(4, 20), "b": noise(0, 4, 20)})
    assert table[["value", "null", "null_label", "p_label", "ceiling", "effective_dimension"]].isna().all(axis=None)
    assert (table["parameters"] == 20).all()


def test_a_ceiling_of_halves_that_disagree_is_absent():
    opposed = torch.cat([torch.eye(1, 10), -torch.eye(1, 10), torch.eye(1, 10), -torch.eye(1, 10)]) + 0.01 * noise(0, 4, 10)
    found = by_measure(table_of({"a": opposed, "b": opposed}, splits=20))
    assert np.isnan(found["ceiling"]["cosine"]) and np.isfinite(found["value"]["cosine"])


def test_same_generator_same_table_and_every_pair_and_group_has_its_rows():
    domains = {name: noise(seed, 6, 50) for seed, name in enumerate("abc")}
    group = statistics_of(domains).groups[0]
    statistics = GradientStatistics(
        statistics_of(domains).domains, (group, GroupGradients(1, "attention", 50, noise(9, 18, 50), noise(9, 18, 50)))
    )
    first, second = (gradient_table(statistics, 0.1, 2, 9, np.random.default_rng(1)) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert tuple(first.columns) == COLUMNS and len(first) == 3 * 2 * len(MEASURES)
    assert not first.duplicated(["layer", "module", "domain_a", "domain_b", "measure"]).any()


@pytest.mark.parametrize(
    ("domains", "choices", "message"),
    [
        ({"a": noise(0, 8, 20)}, {}, r"batches by domain are \{'a': 8\}; wanted equally many of two or more domains"),
        ({"a": noise(0, 8, 20), "b": noise(0, 6, 20)}, {}, "wanted equally many"),
        ({"a": noise(0, 3, 20), "b": noise(0, 3, 20)}, {}, "4 or more of each"),
        ({"a": noise(0, 8, 20), "b": noise(1, 8, 20)}, {"rank": 5}, "rank 5, .* no more than half of the 8 batches"),
        ({"a": noise(0, 8, 20) / 0, "b": noise(1, 8, 20)}, {}, "gradients of ffn in layer 0 are not finite"),
        ({"a": noise(0, 8, 20), "b": noise(1, 8, 20)}, {"top_fraction": 0.001}, "top_fraction 0.001 of 20"),
    ],
)
def test_statistics_that_cannot_be_compared_are_refused(domains, choices, message):
    with pytest.raises(ValueError, match=message):
        table_of(domains, **choices)


# Sketches


def sketched(vectors: torch.Tensor, sizes: dict[str, int], dimension: int, seed: int) -> torch.Tensor:
    sketch = Sketch(sizes, dimension, np.random.default_rng(seed))
    rows = []
    for vector in vectors:
        for name, part in zip(sizes, vector.split(list(sizes.values())), strict=True):
            sketch.add(name, part)
        rows.append(sketch.take())
    return torch.stack(rows)


def test_a_group_that_fits_is_kept_whole():
    vectors = noise(0, 3, 90)
    assert torch.equal(sketched(vectors, {"x": 50, "y": 40}, 90, 0), vectors)
    assert torch.equal(sketched(vectors, {"x": 50, "y": 40}, 1000, 0), vectors)


@pytest.mark.parametrize("kind", ["dense", "one column", "constant", "low rank", "one entry"])
def test_sketched_inner_products_are_unbiased_and_err_by_no_more_than_stated(kind):
    """Structured gradients too: sums of outer products, with loud columns, as those of linear layers are."""
    rows, columns, dimension = 60, 64, 128
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, rows, columns, generator=generator)
    if kind == "one column":
        x[:, :, 5] *= 100
    elif kind == "constant":
        x = torch.ones_like(x)
    elif kind == "low rank":
        x = torch.randn(2, rows, 2, generator=generator) @ (torch.randn(2, 2, columns, generator=generator) + 3)
    elif kind == "one entry":
        x[:, 3, 7] += 1e4
    x = torch.nn.functional.normalize(x.flatten(1), dim=1)
    sketches = [sketched(x, {"first": 2000, "second": x.shape[1] - 2000}, dimension, seed) for seed in range(300)]
    products = torch.stack([s @ s.T for s in sketches])
    errors = products - x @ x.T
    assert (errors.mean(dim=0).abs() < 4 * errors.std(dim=0) / 300**0.5 + 1e-6).all()
    assert (errors.square().mean(dim=0).sqrt() < 2 / dimension**0.5).all()
    if kind == "dense":
        assert errors[:, 0, 1].std() == pytest.approx(dimension**-0.5, rel=0.2)


def test_the_sketch_is_linear_and_begins_anew_after_each_batch():
    x, y = noise(0, 2, 300)
    one, other, both = sketched(torch.stack([x, y, x + y]), {"w": 300}, 64, 0)
    torch.testing.assert_close(one + other, both, atol=1e-4, rtol=1e-4)


def test_a_sketched_table_is_close_to_the_exact_one():
    domains = planted_pair(0, 5000, 0.6)
    gradients = torch.cat(list(domains.values()))
    small = sketched(gradients, {"w": 5000}, 2048, 0)
    group = GroupGradients(0, "ffn", 5000, small, gradients, sketched=True)
    exact = by_measure(table_of(domains))
    found = by_measure(gradient_table(GradientStatistics(statistics_of(domains).domains, (group,)), 0.1, 2, 99, np.random.default_rng(0)))
    assert found["value"]["cosine"] == pytest.approx(exact["value"]["cosine"], abs=3 / 2048**0.5)
    assert found["null"]["cosine"] == pytest.approx((1 / 5000 + 1 / 2048) ** 0.5)
    assert found["null"]["subspace"] == pytest.approx(2 * (1 / 5000 + 1 / 2048))
    assert found["value"]["top_support"] == exact["value"]["top_support"]


# A real model


@pytest.fixture
def batches(rows) -> dict[str, list[list[Row]]]:
    return {name: [list(rows[start + 4 * i : start + 4 * i + 4]) for i in range(4)] for name, start in (("one", 0), ("two", 100))}


def gradient_by_hand(model, rows: list[Row], name: str) -> torch.Tensor:
    model.eval()
    ids, lengths, starts = pad_rows(rows)
    loss = weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], 0.0))
    return torch.autograd.grad(loss, dict(model.named_parameters())[name])[0]


def test_groups_are_the_layers_attention_and_feed_forward_weights(model):
    groups = weight_groups(model)
    assert list(groups) == [(0, "attention"), (0, "ffn"), (1, "attention"), (1, "ffn")]
    assert {name.rsplit(".", 2)[1] for name in groups[1, "attention"]} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert {name.rsplit(".", 2)[1] for name in groups[0, "ffn"]} == {"gate_proj", "up_proj", "down_proj"}


def test_statistics_hold_the_gradients_of_the_answer_loss(model, batches):
    statistics = gradient_statistics(model, batches, np.random.default_rng(0))
    assert statistics.domains == ("one",) * 4 + ("two",) * 4
    for group, weights in zip(statistics.groups, weight_groups(model).values(), strict=True):
        for index, rows in enumerate(batches["one"] + batches["two"]):
            whole = torch.cat([gradient_by_hand(model, rows, name).flatten() for name in weights])
            torch.testing.assert_close(group.sketches[index], whole)
        assert group.parameters == whole.numel()
        assert set(group.coordinates[-1].tolist()) <= set(group.sketches[-1].tolist())
        assert group.coordinates.shape[1] == min(4096, whole.numel())


def test_coordinates_are_the_same_entries_in_every_batch_and_inner_products_survive_the_sketch(model, batches):
    exact = gradient_statistics(model, batches, np.random.default_rng(0))
    small = gradient_statistics(model, batches, np.random.default_rng(1), dimension=1024, coordinates=300)
    for whole, group in zip(exact.groups, small.groups, strict=True):
        assert group.sketches.shape == (8, 1024) and group.coordinates.shape == (8, 300) and group.sketched and not whole.sketched
        columns = {tuple(column) for column in whole.sketches.T.tolist()}
        assert all(tuple(column) in columns for column in group.coordinates.T.tolist())
        unit = whole.sketches.norm(dim=1)
        errors = (group.sketches @ group.sketches.T - whole.sketches @ whole.sketches.T) / (unit[:, None] * unit)
        assert errors.abs().max() < 4 * 2 / 1024**0.5 and errors.square().mean().sqrt() < 2 / 1024**0.5


def test_masked_weights_do_not_count(model, batches):
    pattern = torch.tensor([True, False, False, True])
    kept = {name: pattern.repeat(weight.numel() // 4).view_as(weight) for name, weight in prunable_weights(model).items()}
    masks = Masks("2of4", "given", 0.5, "", kept)
    apply_masks(model, masks)
    dense = gradient_statistics(model, batches, np.random.default_rng(0))
    masked = gradient_statistics(model, batches, np.random.default_rng(0), masks=masks, coordinates=10_000)
    for all_weights, group in zip(dense.groups, masked.groups, strict=True):
        whole = pattern.repeat(all_weights.parameters // 4)
        assert group.parameters == all_weights.parameters // 2
        torch.testing.assert_close(group.sketches, all_weights.sketches * whole)
        torch.testing.assert_close(group.coordinates, all_weights.sketches[:, whole])


def state_of(model):
    return (
        {name: (parameter.detach().clone(), parameter.requires_grad) for name, parameter in model.named_parameters()},
        [module.training for module in model.modules()],
    )


def test_model_is_left_as_it_was_also_after_an_error(model, batches):
    model.train()
    model.model.layers[0].eval()
    model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    parameters, modes = state_of(model)
    broken = {"one": batches["one"], "two": [[Row(np.array([1, 10_000, 3]), 1)]]}
    for read, error in ((batches, None), (broken, IndexError)):
        if error is None:
            gradient_statistics(model, read, np.random.default_rng(0))
        else:
            with pytest.raises(error):
                gradient_statistics(model, read, np.random.default_rng(0))
        found, found_modes = state_of(model)
        assert found_modes == modes
        for name, (values, flag) in parameters.items():
            assert torch.equal(found[name][0], values) and found[name][1] == flag, name
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_gradients_are_taken_where_the_caller_forbids_them_and_old_ones_are_not_added(model, batches):
    fresh = gradient_statistics(model, batches, np.random.default_rng(0))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.no_grad():
        again = gradient_statistics(model, batches, np.random.default_rng(0))
    for one, other in zip(fresh.groups, again.groups, strict=True):
        assert torch.equal(one.sketches, other.sketches) and torch.equal(one.coordinates, other.coordinates)


def test_diverged_models_empty_input_and_unknown_blocks_are_refused(model, batches):
    with pytest.raises(ValueError, match="0 batches, dimension 65536, coordinates 4096; all must be at least 1"):
        gradient_statistics(model, {"one": []}, np.random.default_rng(0))
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="loss is nan on a batch of 4 rows of one, wanted a finite one"):
        gradient_statistics(model, batches, np.random.default_rng(0))
    with pytest.raises(ValueError, match="Linear has no linear weights in modules named layers"):
        weight_groups(torch.nn.Linear(2, 2))
    model.model.layers[0].novel = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="layers.0.novel.weight lies in a block named novel"):
        weight_groups(model)


# An arm of a replicate


def experiment_of(items, train_lines: int = 200):
    probe = SimpleNamespace(top_fraction=0.1, permutations=9, gradients=SimpleNamespace(batches=4, rows=8, rank=2))
    experiment = Experiment(SimpleNamespace(seed=0, probe=probe, tokenizer=SimpleNamespace(max_length=32)), 3, None)
    suite = SimpleNamespace(train={"first": items[:train_lines], "second": items[200 : 200 + train_lines]})
    vars(experiment)["suite"] = suite  # where the cached property keeps it
    return experiment


def base_of(tokenizer):
    return Base(torch.nn.Identity(), tokenizer, "", {})


def test_batches_are_disjoint_lines_of_each_domain_and_the_same_at_every_call(items, tokenizer):
    experiment, base = experiment_of(items), base_of(tokenizer)
    first, second = (probed_batches(experiment, base) for _ in range(2))
    assert {domain: [len(batch) for batch in listed] for domain, listed in first.items()} == {"first": [8] * 4, "second": [8] * 4}
    assert all(
        np.array_equal(one.ids, other.ids) for domain in first for a, b in zip(first[domain], second[domain], strict=True)
        for one, other in zip(a, b, strict=True)
    )  # fmt: skip
    with pytest.raises(ValueError, match="first has 20 training lines, the gradient probe wants 4 batches of 8"):
        probed_batches(experiment_of(items, 20), base)


def test_the_rows_of_an_arm(items, tokenizer, model):
    arm = parse_arm("D0")
    table = gradients_of_arm(experiment_of(items), base_of(tokenizer), ArmCheckpoint(arm, model, None, ""))
    assert set(table.columns) == {"arm", "seed", *COLUMNS}
    assert len(table) == 4 * len(MEASURES)
    assert (table["arm"] == "D0").all() and (table["seed"] == 3).all()
    # Both domains are sums of the same kind, so their gradients point the same way.
    assert (table.loc[table["measure"] == "cosine", "value"] > 0.5).all()


def test_experts_belong_to_the_feed_forward_group():
    model = build_model(Model(family="qwen3", hidden=16, ffn=32, layers=1, heads=2, kv_heads=1, head_dim=8), 40, 16, 0, {"pad_token_id": 0})
    experts = torch.nn.Module()
    experts.gate_up_proj = torch.nn.Parameter(torch.zeros(2, 8, 16))
    model.model.layers[0].mlp.experts = experts
    assert "model.layers.0.mlp.experts.gate_up_proj" in weight_groups(model)[0, "ffn"]
    rows = [Row(np.array([1, 5, 6, 7]), 2)] * 2
    statistics = gradient_statistics(model, {"one": [rows], "two": [rows]}, np.random.default_rng(0))
    ffn = statistics.groups[1]
    assert ffn.parameters == 3 * 16 * 32 + 2 * 8 * 16 and ffn.sketches.shape[1] == ffn.parameters  # no gradient reached them: zeros
