"""Representation drift: closed forms, planted rotations, brute-force CKA, invariances, and streams of a real small model."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sparsecl.arms import parse_arm
from sparsecl.experiment import MissingInput
from sparsecl.lineage import ArmCheckpoint
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.probing import drift_streams
from sparsecl.probing.drift import (
    MEASURES,
    cka_distance,
    cka_distance_without_top,
    displacement,
    drift_between,
    energy_inside,
    key_subspaces,
    key_subspaces_of,
    scatter_of,
    second_of,
    subspace_floor,
    without,
)
from sparsecl.probing.drift_streams import drift_of_streams
from sparsecl.probing.hidden_moments import AFTER, BEFORE, HiddenMoments
from sparsecl.probing.hidden_states import HiddenStates, decoder_layers, hidden_states, sampled_positions
from sparsecl.streams import Stream
from sparsecl.tables import COLUMNS

WIDTH = 8


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(width, seed):
    return torch.linalg.qr(noise(width, width, seed=seed))[0]


def moments_of(before, after, parts=1):
    """Of one layer, in as many updates as `parts`."""
    moments = HiddenMoments(1, before.shape[1])
    for first, second in zip(before.chunk(parts), after.chunk(parts), strict=True):
        moments.update(first[None], second[None])
    return moments


def held(states, documents=None):
    """One layer's states as one batch, every token a document of its own."""
    return [HiddenStates(states[None].float(), torch.arange(len(states)) if documents is None else documents)]


def cka_of(before, after):
    return 1 - float(cka_distance(moments_of(before, after))[0])


def hsic_of_kernels(first, second):
    """HSIC_1 as Song et al. (2012), eq. 5, writes it: n x n kernels without their diagonals."""
    n = len(first)
    kernel, other = (states @ states.T for states in (first, second))
    kernel, other = kernel - torch.diag(kernel.diag()), other - torch.diag(other.diag())
    ones = torch.ones(n, dtype=torch.float64)
    middle = (ones @ kernel @ ones) * (ones @ other @ ones) / ((n - 1) * (n - 2))
    return float(((kernel @ other).trace() + middle - 2 / (n - 2) * (ones @ kernel @ other @ ones)) / (n * (n - 3)))


def biased_cka(before, after):
    """Kornblith et al. (2019), eq. 5, on centred states."""
    before, after = before - before.mean(0), after - after.mean(0)
    norms = [torch.linalg.matrix_norm(side.T @ side) for side in (before, after)]
    return float(torch.linalg.matrix_norm(after.T @ before) ** 2 / (norms[0] * norms[1]))


@pytest.mark.parametrize("sides", [(BEFORE, BEFORE), (BEFORE, AFTER), (AFTER, BEFORE), (AFTER, AFTER)])
def test_hsic_from_sums_over_tokens_equals_that_of_the_kernels(sides):
    states = (noise(30, WIDTH, seed=1) + 5, noise(30, WIDTH, seed=2) @ torch.diag(torch.arange(1.0, 9, dtype=torch.float64)) - 2)
    moments = moments_of(*states, parts=4)
    assert float(moments.hsic(*sides)[0]) == pytest.approx(hsic_of_kernels(states[sides[0]], states[sides[1]]), rel=1e-9)


def test_hsic_is_unbiased():
    """The mean over small samples is the population's ||cov||_F^2, here 2 directions of shared variance 1."""
    drawn = []
    for seed in range(600):
        shared = noise(8, 2, seed=seed)
        moments = moments_of(
            torch.cat([shared, noise(8, 4, seed=seed + 10_000)], 1), torch.cat([shared, noise(8, 4, seed=seed + 20_000)], 1)
        )
        drawn.append(float(moments.hsic(BEFORE, AFTER)[0]))
    assert np.mean(drawn) == pytest.approx(2, abs=4 * np.std(drawn) / math.sqrt(600))
    assert HiddenMoments(1, 2).tokens == 0
    with pytest.raises(ValueError, match="unbiased HSIC of 3 tokens"):
        moments_of(noise(3, 2), noise(3, 2)).hsic(BEFORE, AFTER)


def test_cka_does_not_see_rotation_scale_or_shift_but_a_general_linear_map():
    before, after = noise(50, WIDTH, seed=3), noise(50, WIDTH, seed=4) + noise(50, WIDTH, seed=3)
    value = cka_of(before, after)
    assert cka_of(before @ orthogonal(WIDTH, 5), after @ orthogonal(WIDTH, 6)) == pytest.approx(value, abs=1e-10)
    assert cka_of(3 * before, after / 7) == pytest.approx(value, abs=1e-10)
    assert cka_of(before + 4, after - noise(WIDTH, seed=7)) == pytest.approx(value, abs=1e-9)
    assert cka_of(after, before) == pytest.approx(value, abs=1e-10)
    stretched = before @ torch.diag(torch.tensor([20.0] + [1.0] * (WIDTH - 1), dtype=torch.float64))
    assert abs(cka_of(stretched, after) - value) > 0.1
    assert cka_of(before, before @ orthogonal(WIDTH, 8)) == pytest.approx(1, abs=1e-10)


def test_independent_states_are_unrelated_where_the_biased_estimate_is_not():
    drawn = [(noise(60, 40, seed=seed), noise(60, 40, seed=1000 + seed)) for seed in range(40)]
    debiased = [cka_of(*pair) for pair in drawn]
    assert abs(np.mean(debiased)) < 4 * np.std(debiased) / math.sqrt(40) < 0.02
    assert np.mean([biased_cka(*pair) for pair in drawn]) > 0.35


def test_a_running_sum_equals_that_of_all_tokens_at_once():
    before, after = noise(2, 40, WIDTH, seed=9), noise(2, 40, WIDTH, seed=10)
    whole, running = HiddenMoments(2, WIDTH), HiddenMoments(2, WIDTH)
    whole.update(before, after)
    for tokens in torch.arange(40).split([1, 7, 20, 12]):
        running.update(before[:, tokens], after[:, tokens])
    for i, j in ((BEFORE, BEFORE), (BEFORE, AFTER), (AFTER, BEFORE), (AFTER, AFTER)):
        direct = torch.einsum("ltv,ltw->lvw", (before, after)[i], (before, after)[j])
        for moments in (whole, running):
            assert moments.second(i, j) == pytest.approx(direct, abs=1e-10)
        assert running.hsic(i, j) == pytest.approx(whole.hsic(i, j))
    assert running.scatter(AFTER) == pytest.approx(scatter_of([HiddenStates(after, torch.arange(40))]), abs=1e-10)
    assert running.scatter(AFTER)[1] / 39 == pytest.approx(torch.cov(after[1].T), abs=1e-10)
    assert running.tokens == 40


def test_displacement_is_the_proposals_formula_and_blind_outside_the_key_subspace():
    before, basis = noise(50, WIDTH, seed=11), orthogonal(WIDTH, 12)
    key, outside = [basis[:, :3]], basis[:, 3:]
    after = before + 0.1 * noise(50, WIDTH, seed=13)
    projector = key[0] @ key[0].T
    wanted = torch.linalg.matrix_norm((after - before) @ projector) / torch.linalg.matrix_norm(before @ projector)
    assert float(displacement(moments_of(before, after, parts=3), key)[0]) == pytest.approx(float(wanted), rel=1e-12)
    sideways = before + noise(50, WIDTH - 3, seed=14) @ outside.T
    assert float(displacement(moments_of(before, sideways), key)[0]) == pytest.approx(0, abs=1e-7)
    assert float(displacement(moments_of(before, 1.5 * before), key)[0]) == pytest.approx(0.5, rel=1e-12)
    other = energy_inside(4 * moments_of(before, after).second(BEFORE, BEFORE), key)
    assert float(displacement(moments_of(before, after), key, other)[0]) == pytest.approx(float(wanted) / 2, rel=1e-12)


def test_a_tiny_displacement_keeps_its_digits():
    before, key = 1e3 + noise(50, WIDTH, seed=15), [torch.eye(WIDTH, dtype=torch.float64)]
    after = before + 1e-6 * noise(50, WIDTH, seed=16)
    wanted = torch.linalg.matrix_norm(after - before) / torch.linalg.matrix_norm(before)
    assert float(displacement(moments_of(before, after), key)[0]) == pytest.approx(float(wanted), rel=1e-9)


def test_a_known_rotation_of_a_known_plane():
    """States that vary in axes 0 and 1; axis 0 is turned by 0.3 towards axis 2, in which nothing varied."""
    angle, scales = 0.3, torch.tensor([3.0, 2.0] + [0.0] * (WIDTH - 2), dtype=torch.float64)
    before = noise(400, WIDTH, seed=17) * scales
    turn = torch.eye(WIDTH, dtype=torch.float64)
    turn[0, 0] = turn[2, 2] = math.cos(angle)
    turn[0, 2], turn[2, 0] = math.sin(angle), -math.sin(angle)
    key = key_subspaces(scatter_of(held(before)), 0.99)
    assert key[0].shape == (WIDTH, 2)
    found = {measure: float(value[0]) for measure, value in drift_between(held(before), held(before @ turn), key).items()}
    assert found["largest_angle"] == pytest.approx(angle, abs=1e-6)
    assert found["grassmann"] == pytest.approx(angle, abs=1e-6)
    energy = before.square().sum(0)
    moved = (1 - math.cos(angle)) * math.sqrt(energy[0] / (energy[0] + energy[1]))  # inside the plane axis 0 only shrinks
    assert found["displacement"] == pytest.approx(moved, rel=1e-5)
    assert found["cka_distance"] == pytest.approx(0, abs=1e-6)  # CKA does not see a rotation


def test_the_key_subspace_holds_the_share_of_the_variance_not_of_the_mean():
    states = noise(4000, WIDTH, seed=18) * torch.tensor([4.0, 2.0] + [0.01] * (WIDTH - 2), dtype=torch.float64) + 100
    scatter = scatter_of(held(states.double()))
    assert [key_subspaces(scatter, share)[0].shape[1] for share in (0.7, 0.9, 0.9999)] == [1, 2, 2]
    assert abs(float(key_subspaces(scatter, 0.7)[0][0, 0])) == pytest.approx(1, abs=1e-3)


def test_without_the_top_component_one_direction_no_longer_hides_the_drift():
    """One direction of large variance stays, all others are replaced: CKA sees next to nothing, the reduced one all of it."""
    top = 50 * noise(300, 1, seed=19)
    before, after = (torch.cat([top, noise(300, WIDTH - 1, seed=seed)], 1) for seed in (20, 21))
    key = key_subspaces(scatter_of(held(before)), 0.9)
    found = {measure: float(value[0]) for measure, value in drift_between(held(before), held(after), key).items()}
    assert found["cka_distance"] < 1e-3 and found["cka_distance_without_top"] == pytest.approx(1, abs=0.1)


def test_taking_out_the_top_component_equals_projecting_the_states():
    before, after = (noise(60, WIDTH, seed=seed) @ noise(WIDTH, WIDTH, seed=seed + 1) + 3 for seed in (25, 27))
    tops = [torch.linalg.eigh(torch.cov(side.T))[1][:, -1] for side in (before, after)]
    reduced = [side - torch.outer(side @ top, top) for side, top in zip((before, after), tops, strict=True)]
    hsic = [hsic_of_kernels(*pair) for pair in (reduced, reduced[:1] * 2, reduced[1:] * 2)]
    wanted = 1 - hsic[0] / math.sqrt(hsic[1] * hsic[2])
    pairs = [(first[None], second[None]) for first, second in zip(before.chunk(3), after.chunk(3), strict=True)]
    assert float(cka_distance_without_top(moments_of(before, after), pairs)[0]) == pytest.approx(wanted, abs=1e-9)
    assert without(before[None], tops[0][None])[0] == pytest.approx(reduced[0], abs=1e-12)


def test_no_drift_is_zero_in_every_measure():
    states = held(noise(60, WIDTH, seed=22))
    key = key_subspaces(scatter_of(states), 0.9)
    found = drift_between(states, states, key)
    assert list(found) == list(MEASURES)
    assert [float(value[0]) for value in found.values()] == pytest.approx([0] * 5, abs=1e-7)


def test_the_floor_is_the_angle_of_two_samples_and_shrinks_with_them():
    scales = torch.tensor([5.0, 4.0, 3.0] + [1.0] * (WIDTH - 3), dtype=torch.float64)
    floors = []
    for tokens in (100, 1600):
        states = held(noise(tokens, WIDTH, seed=23) * scales)
        key = key_subspaces(scatter_of(states), 0.8)
        floor = subspace_floor(states, key, np.random.default_rng(0))
        again = subspace_floor(states, key, np.random.default_rng(0))
        assert set(floor) == {"largest_angle", "grassmann"} and all(torch.equal(floor[name], again[name]) for name in floor)
        floors.append(float(floor["largest_angle"][0]))
    assert 0 < floors[1] < floors[0] / 2
    same = held(torch.cat([states[0].states[0]] * 2), torch.arange(1600).repeat(2))  # copies of a document stay in one half
    assert float(subspace_floor(same, key, np.random.default_rng(0))["largest_angle"][0]) == pytest.approx(floors[1], rel=1e-3)
    with pytest.raises(ValueError, match="3 documents give no halves"):
        subspace_floor(held(noise(3, WIDTH)), key, np.random.default_rng(0))


def test_other_tokens_are_refused():
    states = noise(20, WIDTH, seed=24)
    key = key_subspaces(scatter_of(held(states)), 0.9)
    with pytest.raises(ValueError, match=r"\(1, 20, 8\).*\(1, 19, 8\).* not of the same tokens"):
        drift_between(held(states), held(states[:19]), key)
    with pytest.raises(ValueError, match="not of the same tokens"):
        drift_between(held(states), held(states, torch.arange(20).flip(0)), key)


# A real small model and its streams


def lines_of(rows):
    return [row.ids.tolist() for row in rows]


def test_hidden_states_are_those_of_the_model(model, rows, tokenizer):
    lines = lines_of(rows[:10])
    found = hidden_states(model, lines, 4, excluded_tokens=tokenizer.all_special_ids)
    assert [batch.states.shape[0] for batch in found] == [2, 2, 2] and model.training
    for document, line in enumerate(lines):
        with torch.no_grad():
            ours = torch.cat([batch.of([document]).states for batch in found], 1)
            kept = [place for place, token in enumerate(line) if token not in tokenizer.all_special_ids]
            first = model.model(torch.tensor([line]), output_hidden_states=True).hidden_states[1][0, kept]
            last = model.model.norm(ours[1])
            assert ours[0] == pytest.approx(first, abs=1e-5)
            assert last == pytest.approx(model.model(torch.tensor([line])).last_hidden_state[0, kept], abs=1e-4)
    with pytest.raises(ValueError, match="0 lists of 2 modules named layers"):
        model.model.layers = model.model.layers[:1]
        decoder_layers(model)


def test_a_sample_of_tokens_is_of_the_counted_ones_and_bounds_what_is_held(model, rows, tokenizer):
    lines, special = lines_of(rows[:30]), tokenizer.all_special_ids
    every = sampled_positions(lines, 10**6, special, np.random.default_rng(0))
    assert every == [[place for place, token in enumerate(line) if token not in special] for line in lines]
    whole, same = (hidden_states(model, lines, 8, excluded_tokens=special, positions=positions) for positions in (None, every))
    assert all(torch.equal(a.states, b.states) and torch.equal(a.documents, b.documents) for a, b in zip(whole, same, strict=True))

    few = sampled_positions(lines, 40, special, np.random.default_rng(0))
    assert sum(map(len, few)) == 40 and all(set(some) <= set(all_) for some, all_ in zip(few, every, strict=True))
    assert few == sampled_positions(lines, 40, special, np.random.default_rng(0))
    assert few != sampled_positions(lines, 40, special, np.random.default_rng(1))
    sample = torch.cat([batch.states for batch in hidden_states(model, lines, 8, excluded_tokens=special, positions=few)], 1)
    assert sample.shape[1] == 40
    of_document = [torch.cat([batch.of([document]).states for batch in whole], 1) for document in range(30)]
    kept = [of_document[document][:, every[document].index(place)] for document in range(30) for place in few[document]]
    wanted = {tuple(token.flatten().tolist()) for token in kept}
    assert {tuple(token.flatten().tolist()) for token in sample.unbind(1)} == wanted


def test_a_sample_tells_the_drift_of_the_whole(model, rows, tokenizer):
    """Of two models over the same 400 of about 2,000 tokens every measure lies near that of all of them."""
    lines, special = lines_of(rows[:150]), tokenizer.all_special_ids
    positions = sampled_positions(lines, 400, special, np.random.default_rng(3))

    def drift(chosen):
        before, after = (hidden_states(of, lines, 32, excluded_tokens=special, positions=chosen) for of in (model, moved(model, 0.01, 1)))
        return drift_between(before, after, key_subspaces_of(before, 0.9))

    whole, sample = drift(None), drift(positions)
    for measure in ("displacement", "cka_distance"):
        assert sample[measure] == pytest.approx(whole[measure], rel=0.2), measure


def moved(model, scale, seed):
    """A copy whose weights are moved at random."""
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return other


@pytest.mark.parametrize("measure", MEASURES)
def test_drift_of_a_model_grows_with_how_far_its_weights_move(model, rows, tokenizer, measure):
    def states(of):
        return hidden_states(of, lines_of(rows[:60]), 16, excluded_tokens=tokenizer.all_special_ids)

    before = states(model)
    key = key_subspaces(scatter_of(before), 0.9)
    drifts = [drift_between(before, states(moved(model, scale, 1)), key)[measure] for scale in (0.0, 0.001, 0.004)]
    assert drifts[0] == pytest.approx(0, abs=1e-5)
    assert (drifts[1] > 10 * drifts[0].abs()).all() and (drifts[2] > 2 * drifts[1]).all()


class Folder:
    """As much of an experiment as the drift of streams reads; checkpoints lie under a temporary folder."""

    def __init__(self, path, items, drift):
        probe = SimpleNamespace(drift=SimpleNamespace(**drift))
        orders = {"main": ("code", "math"), "repeat": ("code", "math")}
        continual = SimpleNamespace(all_orders=lambda: orders, orders=orders)
        self.study = SimpleNamespace(
            name="toy", probe=probe, continual=continual, scoring_batch=16, tokenizer=SimpleNamespace(max_length=32)
        )
        self.path, self.replicate, self.suite = path, 3, SimpleNamespace(general=items)

    def write_path(self, *parts):
        return self.path.joinpath(*parts)

    def find(self, *parts):
        return self.write_path(*parts) if self.write_path(*parts).exists() else None

    def generator(self, name):
        return np.random.default_rng(len(name))


@pytest.fixture
def streams(tmp_path, model, items, rows, tokenizer, monkeypatch):
    """An arm D1 with finished streams: full at two lengths, lora at one, and the repeat of full at one."""
    experiment = Folder(tmp_path, items, {"rows": 50, "energy": 0.9, "tokens": 4096})
    start = moved(model, 0.001, 7)
    arm = parse_arm("D1")
    monkeypatch.setattr(drift_streams, "load_arm", lambda _experiment, arm: ArmCheckpoint(arm, start, None, "key"))
    runs = {}
    for seed, (method, order, steps, scale) in enumerate(
        [("full", "main", 100, 0.004), ("full", "main", 50, 0.002), ("lora", "main", 100, 0.001), ("full", "repeat", 100, 0.004)]
    ):
        runs[method, order, steps] = Stream(arm, method, order, 1e-3, steps)
        for number, domain in enumerate(("code", "math"), start=1):
            directory = tmp_path / "streams" / "D1" / runs[method, order, steps].folder / f"stage-{number}"
            save_checkpoint(moved(start, number * scale, seed), directory, None, arm="D1", key="key", domain=domain)
    base = SimpleNamespace(model=model, tokenizer=tokenizer, rows=lambda chosen, _length: list(rows[: len(chosen)]))
    return SimpleNamespace(experiment=experiment, base=base, runs=runs, start=start, reference=Stream(arm, "joint", "joint", 1e-3, 200))


def test_drift_of_streams_end_to_end(streams, rows, tokenizer):
    table = drift_of_streams(streams.experiment, streams.base, [*streams.runs.values(), streams.reference])
    assert tuple(table.columns) == COLUMNS["drift"]
    assert set(table["order"]) == {"main"} and set(table["seed"]) == {3} and set(table["layer"]) == {0, 1}
    assert len(table) == 3 * 2 * 2 * 5 and not table.duplicated(list(table.columns[:9])).any()
    assert dict(zip(table["stage"], table["stage_domain"], strict=True)) == {1: "code", 2: "math"}

    by_run = table.set_index(["method", "stage_steps", "stage", "layer", "measure"])["value"].unstack("measure")
    assert (by_run.loc[("full", 100)] > by_run.loc[("lora", 100)]).all().all()
    assert (by_run.xs(2, level="stage") > by_run.xs(1, level="stage")).all().all()

    # One value by hand: the formula over the held states, in the key subspace of the base.
    def states(of):
        return hidden_states(of, lines_of(rows[:50]), 16, excluded_tokens=tokenizer.all_special_ids)

    directory = streams.experiment.find("streams", "D1", streams.runs["lora", "main", 100].folder, "stage-2")
    before, after, base = (torch.cat([batch.states for batch in states(of)], 1).double()
                           for of in (streams.start, load_checkpoint(directory), streams.base.model))  # fmt: skip
    values, vectors = torch.linalg.eigh(torch.cov(base[1].T))
    k = int((values.flip(0).cumsum(0) < 0.9 * values.sum()).sum()) + 1
    projector = vectors[:, -k:] @ vectors[:, -k:].T
    wanted = torch.linalg.matrix_norm((after - before)[1] @ projector) / torch.linalg.matrix_norm(before[1] @ projector)
    assert by_run.loc[("lora", 100, 2, 1), "displacement"] == pytest.approx(float(wanted), rel=1e-6)


def test_the_null_is_the_distance_of_two_runs_and_belongs_to_one_stage_length(streams, rows, tokenizer):
    table = drift_of_streams(streams.experiment, streams.base, list(streams.runs.values()))
    assert table.loc[table["stage_steps"] == 50, "null"].isna().all() and table.loc[table["stage_steps"] == 100, "null"].notna().all()
    nulls = table[table["stage_steps"] == 100].pivot(index=["stage", "layer", "measure"], columns="method", values="null")
    pd.testing.assert_series_equal(nulls["full"], nulls["lora"], check_names=False)

    def states(name):
        directory = streams.experiment.find("streams", "D1", streams.runs[name].folder, "stage-1")
        return hidden_states(load_checkpoint(directory), lines_of(rows[:50]), 16, excluded_tokens=tokenizer.all_special_ids)

    excluded = tokenizer.all_special_ids
    start, base = (hidden_states(of, lines_of(rows[:50]), 16, excluded_tokens=excluded) for of in (streams.start, streams.base.model))
    key = key_subspaces(scatter_of(base), 0.9)
    ends = drift_between(states(("full", "main", 100)), states(("full", "repeat", 100)), key, energy_inside(second_of(start), key))
    for measure in MEASURES:
        assert nulls["full"].loc[1, :, measure].tolist() == pytest.approx(ends[measure].tolist())
    without_repeat = [stream for stream in streams.runs.values() if stream.order == "main"]
    assert drift_of_streams(streams.experiment, streams.base, without_repeat)["null"].isna().all()


def test_the_floor_is_there_for_subspaces_alone_and_runs_are_reproducible(streams):
    first, second = (drift_of_streams(streams.experiment, streams.base, list(streams.runs.values())) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    has_floor = first.groupby("measure")["floor"].agg(lambda floor: floor.notna().all())
    assert has_floor.to_dict() == {measure: measure in ("largest_angle", "grassmann") for measure in MEASURES}
    assert first.groupby(["measure", "layer"])["floor"].nunique().max() == 1  # it is of the text before the stream


def test_a_stage_that_is_not_there_or_of_another_domain_is_named(streams):
    run = streams.runs["lora", "main", 100]
    absent = Stream(run.arm, "lora", "main", 9.0, 100)
    with pytest.raises(MissingInput, match="lora-main-100steps-lr9/stage-1 is not there: run notebook 03_continual with replicate = 3"):
        drift_of_streams(streams.experiment, streams.base, [absent])
    streams.experiment.study.continual.all_orders = lambda: {"main": ("math", "code")}
    with pytest.raises(MissingInput, match="was trained on code, wanted math"):
        drift_of_streams(streams.experiment, streams.base, [run])
