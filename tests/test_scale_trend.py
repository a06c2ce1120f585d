"""The trend of implicit sparsity over a ladder of widths, and its verdict (H4): planted trends are found, trivial ones are not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from example_ladder import LABELS, LADDER, gradient_table, levels, overlap_table, probes, reliability
from scipy import stats

from sparsecl.hypotheses import ScaleHypothesis
from sparsecl.metrics import MissingMeasurement
from sparsecl.preregistration import load_preregistration
from sparsecl.probe_normalisation import disattenuated_cosine, normalised_overlap
from sparsecl.scale_decision import decide_scale
from sparsecl.scale_trend import (
    SLOPE,
    activation_cells,
    gradient_cells,
    rung_contrasts,
    rung_means,
    scale_beside,
    scale_contrasts,
    selection_slopes,
    slopes,
)
from sparsecl.statistics import contrast_with_zero, with_holm

H4 = load_preregistration("builtin-implicit").hypotheses["H4"]
DRAWS = 400


def simulation_bound(rate, draws=DRAWS):
    """The share that 99.9 % of simulations stay at or below when the true rate is `rate`."""
    return stats.binom.ppf(0.999, draws, rate) / draws


def decided(tables, hypothesis=H4):
    widest = rung_contrasts(tables, hypothesis)["disattenuated_cosine", hypothesis.widest]
    return decide_scale(scale_contrasts(tables, hypothesis), hypothesis, widest)


# From tables to slopes.


def test_slope_is_that_of_a_least_squares_line():
    means = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 4)), columns=list(LADDER))
    expected = [np.polyfit(np.log2(list(LADDER.values())), row, 1)[0] for row in means.to_numpy()]
    assert slopes(means, LADDER).to_numpy() == pytest.approx(expected)
    shuffled = means[["D0", "Dw-256", "Dw-32", "Dw-64"]]
    assert slopes(shuffled, LADDER).to_numpy() == pytest.approx(expected), "the order of the columns means nothing"


@pytest.mark.parametrize("slope", [-0.05, 0.0, 0.03])
def test_planted_slopes_are_recovered_whatever_chance_and_ceiling_do(slope):
    tables = probes(slope, -slope, noise=0.0)
    overlap, cosine = scale_contrasts(tables, H4)
    assert (overlap.metric, cosine.metric) == ("normalised_overlap", "disattenuated_cosine") and overlap.name == SLOPE
    assert overlap.estimate == pytest.approx(slope, abs=1e-12) and cosine.estimate == pytest.approx(-slope, abs=1e-12)


def test_every_cell_is_normalised_before_any_mean():
    """Two cells on different scales: the mean of their ratios is not the ratio of their means."""
    tables = probes(0.0, 0.0, noise=0.0)
    overlap = tables["overlap"]
    wide = overlap["layer"] == 1
    overlap.loc[wide, ["value", "null_label", "ceiling"]] = 0.3 * overlap.loc[wide, ["value", "null_label", "ceiling"]].to_numpy() + 0.2
    cells = activation_cells(overlap, H4.activation)
    by_hand = (
        ((overlap["value"] - overlap["null"]) / (overlap["ceiling"] - overlap["null"])).groupby([overlap["seed"], overlap["arm"]]).mean()
    )
    assert rung_means(cells, LADDER).loc[0, "D0"] == pytest.approx(by_hand[0, "D0"])


def test_a_cell_without_a_value_on_one_rung_leaves_the_others_too():
    tables = probes(0.0, 0.0, noise=0.0)
    overlap = tables["overlap"]
    gone = (overlap["arm"] == "Dw-32") & (overlap["layer"] == 1) & (overlap["seed"] == 2)
    assert gone.sum() == 6
    overlap.loc[gone, "ceiling"] = overlap.loc[gone, "null"] + 0.04  # below the smallest range
    means = rung_means(activation_cells(overlap, H4.activation), LADDER)
    assert means.loc[0].to_numpy() == pytest.approx(0.3) and np.ptp(means.loc[2]) == pytest.approx(0, abs=1e-12)
    assert means.loc[2, "D0"] != pytest.approx(0.3), "cells differ, so fewer of them have another mean, the same on every rung"
    assert slopes(means, LADDER).to_numpy() == pytest.approx(0, abs=1e-12)


def test_normalisation_has_no_value_where_a_domain_does_not_agree_with_itself():
    assert normalised_overlap(0.3, 0.1, 0.5) == pytest.approx(0.5) and np.isnan(normalised_overlap(0.3, 0.1, 0.14))
    assert disattenuated_cosine(0.2, 0.01, 0.4) == pytest.approx(0.5)
    assert np.isnan(disattenuated_cosine(0.2, 0.01, 0.09)) and np.isnan(disattenuated_cosine(0.2, 0.1, 0.4)), "4 nulls are too few"


def test_other_selections_fractions_measures_and_arms_stay_out():
    tables = probes(-0.05, -0.05)
    expected = [contrast.estimate for contrast in scale_contrasts(tables, H4)]
    decoys = [
        overlap_table(levels(0.2), selection="contrast"),
        overlap_table(levels(0.2), top_fraction=0.01),
        tables["overlap"][tables["overlap"]["arm"] == "D0"].assign(arm="D1", value=0.9),
    ]
    more = {
        "overlap": pd.concat([tables["overlap"], *decoys]),
        "gradients": pd.concat([tables["gradients"], gradient_table(levels(0.2)).assign(measure="subspace")]),
    }
    assert [contrast.estimate for contrast in scale_contrasts(more, H4)] == expected
    others = {contrast.metric: contrast for contrast in selection_slopes(more, H4)}
    assert set(others) == {"normalised_overlap/contrast/0.1", "normalised_overlap/magnitude/0.01"}
    assert all(contrast.estimate == pytest.approx(0.2, abs=0.02) and contrast.p_corrected >= contrast.p for contrast in others.values())


def test_what_stands_beside():
    found = {(contrast.name, contrast.metric): contrast for contrast in scale_beside(probes(-0.04, -0.02), H4)}
    assert len(found) == len(scale_beside(probes(-0.04, -0.02), H4)), "no statement twice"
    for part in ("layer 0", "layer 1"):
        assert found[f"{SLOPE}, {part}", "normalised_overlap"].estimate == pytest.approx(-0.04, abs=0.015)
    for part in ("layer 0", "layer 1", "attention", "ffn"):
        assert found[f"{SLOPE}, {part}", "disattenuated_cosine"].estimate == pytest.approx(-0.02, abs=0.015)
    assert found["D0", "normalised_overlap"].low < 0.3 < found["D0", "normalised_overlap"].high
    share = found["D0", "normalised_overlap/below_label_null"]
    assert share.estimate == 1 and np.isnan(share.p), "whether a share is 0 is no question"
    assert found["D0", "normalised_overlap/less_label_null"].estimate == pytest.approx(0.3 - LABELS, abs=0.02)
    assert found[SLOPE, "log2_trivial_cosine"].estimate == pytest.approx(-1), "1 / sqrt(n) halves as width doubles and n quadruples"
    assert np.isnan(found[SLOPE, "log2_trivial_cosine"].p) and found["D0", "trivial_cosine"].estimate == pytest.approx(1 / 256)


# The verdict.


@pytest.mark.parametrize(
    ("letter", "overlap_slope", "gradient_slope"),
    [
        ("A", -0.04, -0.04),
        ("B", 0.0, 0.0),
        ("B", -0.006, 0.004),  # surely not 0 for the one or the other, but surely within the margin
        ("C", 0.04, 0.04),
        ("C", 0.0, 0.04),
        ("undecided", -0.04, 0.0),  # one half of the hypothesis
        ("undecided", -0.04, 0.04),  # one falls, one rises
    ],
)
def test_planted_trends_have_their_letters(letter, overlap_slope, gradient_slope):
    result = decided(probes(overlap_slope, gradient_slope, noise=0.01))
    assert result.letter == letter, result.sentence
    assert result.planned_replicates is None, "no number of replicates would decide what is known"
    assert "normalised overlap per doubling of width" in result.sentence


def test_replicates_are_planned_where_noise_leaves_a_verdict_open():
    noisy = decided(probes(-0.04, -0.01, noise=0.05))
    assert noisy.letter == "undecided" and noisy.planned_replicates > H4.replicates
    assert noisy.sentence.startswith("undecided: the rule that was fixed gives no verdict (") and "excludes neither 0 nor" in noisy.sentence


def test_gradients_that_come_to_oppose_each_other_are_not_orthogonal():
    result = decided(probes(-0.1, -0.1, noise=0.01, level=0.05))
    assert result.letter == "undecided" and "gradients that oppose each other are not orthogonal" in result.sentence
    assert result.planned_replicates is None


def test_another_number_of_replicates_than_registered_decides_nothing():
    fewer = {name: table[table["seed"] != 3] for name, table in probes(-0.04, -0.04).items()}
    result = decided(fewer)
    assert result.letter == "undecided" and "normalised overlap has 4 replicates where exactly 5 were registered" in result.sentence
    assert result.planned_replicates is None
    lost = probes(-0.04, -0.04)
    lost["gradients"] = lost["gradients"].assign(ceiling=0.05)  # no gradient is measured anywhere
    result = decided(lost)
    assert result.letter == "undecided" and "disattenuated cosine has 0 replicates" in result.sentence


def test_a_rung_or_a_table_that_was_not_run_is_named_or_decides_nothing():
    without = {name: table[table["arm"] != "Dw-256"] for name, table in probes(-0.04, -0.04).items()}
    assert decided(without).letter == "undecided"
    with pytest.raises(MissingMeasurement, match="table gradients, which is absent"):
        scale_contrasts({"overlap": without["overlap"]}, H4)


def test_no_margin_no_verdict():
    free = {name: getattr(H4, name).model_copy(update={"margin": None}) for name in ("activation", "gradient")}
    result = decided(probes(-0.04, -0.04), H4.model_copy(update=free))
    assert result.letter == "none"


def test_a_ladder_names_its_widths():
    plan = H4.model_dump()
    for wrong in ({"Dw-32": 32, "Dw-64": 63, "D0": 128}, {"Dw-32": 32, "Dw-64": 64, "Dw-256": 256}, {"Dw-32": 32, "D0": 128}):
        with pytest.raises(ValueError, match="ladder: .* must hold D0 and arms such as Dw-64"):
            ScaleHypothesis.model_validate(plan | {"ladder": wrong})


# Rates and coverage, from means by replicate and rung as `rung_means` makes them.


def simulated(slope, spread, draws=DRAWS, seed=0):
    """Slope contrasts of both quantities in many studies; `spread` of a rung's mean between replicates."""
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        found = []
        for trend, planted in zip(H4.deciding, slope, strict=True):
            means = pd.DataFrame([levels(planted)] * 5) + generator.normal(0, spread, (5, 4))
            found.append(contrast_with_zero(slopes(means, LADDER).to_numpy(), SLOPE, trend.metric, trend.margin))
        yield with_holm(found)


def shares(slope, spread=0.02, widest=0.1, **options):
    rung = replace(contrast_with_zero(np.array([0.9, 1.1]), "Dw-256", "disattenuated_cosine"), high=widest)
    letters = [decide_scale(found, H4, rung).letter for found in simulated(slope, spread, **options)]
    return pd.Series(letters).value_counts(normalize=True).reindex(["A", "B", "C", "undecided"], fill_value=0.0)


def test_planted_letters_are_found_at_the_spread_of_the_full_study():
    """0.02, the standard deviation of D0's normalised overlap between replicates."""
    assert shares((-0.03, -0.03))["A"] >= 0.9
    assert shares((0.0, 0.0))["B"] >= 0.9
    assert shares((0.03, 0.0))["C"] >= 0.9


@pytest.mark.parametrize("spread", [0.02, 0.1, 0.3])
def test_noise_is_called_a_or_c_at_most_at_the_nominal_rate(spread):
    found = shares((0.0, 0.0), spread)
    assert found["A"] + found["C"] <= simulation_bound(0.05), found


@pytest.mark.parametrize(("letter", "slope"), [("A", (-0.06, 0.0)), ("B", (0.0, -0.02)), ("B", (0.02, 0.0)), ("C", (0.0, -0.06))])
def test_where_a_letter_just_fails_to_be_true_it_is_called_at_most_at_the_nominal_rate(letter, slope):
    assert shares(slope, spread=0.05)[letter] <= simulation_bound(0.05)


def test_intervals_cover_the_planted_slope():
    draws = 2000
    studies = list(simulated((-0.03, 0.01), 0.05, draws, seed=2))
    for index, planted in enumerate((-0.03, 0.01)):
        covered = np.mean([study[index].low <= planted <= study[index].high for study in studies])
        assert abs(covered - 0.95) <= 3.5 * np.sqrt(0.95 * 0.05 / draws)


# The trap: |cosine| shrinks with the number of parameters alone.


def measured_cosines(parameters, shared, noise, generator):
    """Cosine of two domains' mean gradients and its ceiling, from halves of batches whose noise has one size a parameter."""
    common, own_a, own_b = generator.normal(size=(3, parameters)) / np.sqrt(parameters)
    domains = [np.sqrt(shared) * common + np.sqrt(1 - shared) * own for own in (own_a, own_b)]
    halves = [[domain + noise * generator.normal(size=parameters) for _ in range(2)] for domain in domains]

    def cosine(x, y):
        return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))

    across = np.mean([cosine(a, b) for a in halves[0] for b in halves[1]])
    return across, np.mean([cosine(*pair) for pair in halves])


def test_disattenuation_removes_what_finite_batches_take_from_a_cosine():
    generator, raw, relative = np.random.default_rng(0), [], []
    for width in (32, 64, 128, 256):
        parameters = 4 * width**2
        found = [measured_cosines(parameters, 0.5, 0.004, generator) for _ in range(8)]
        raw.append(np.mean([value for value, _ in found]))
        relative.append(np.mean([disattenuated_cosine(value, parameters**-0.5, ceiling) for value, ceiling in found]))
    assert raw[0] > 1.5 * raw[-1] and np.all(np.diff(raw) < 0), "the raw cosine seems to become orthogonal"
    assert relative == pytest.approx([0.5] * 4, abs=0.03)


def test_a_cosine_that_shrinks_by_its_noise_alone_is_not_called_a():
    constant = gradient_table(levels(0.0), noise=0.02)
    cells = constant.groupby("arm")["value"].mean()
    assert cells["Dw-256"] < 0.6 * cells["Dw-32"], "the raw cosine falls with the reliability"
    assert cells["Dw-32"] / reliability("Dw-32") == pytest.approx(cells["Dw-256"] / reliability("Dw-256"), abs=0.03)
    result = decided({"overlap": overlap_table(levels(-0.05)), "gradients": constant})
    assert result.letter == "undecided" and result.contrasts[1].p_equivalence < 0.05
    means = rung_means(gradient_cells(constant, H4.gradient), LADDER)
    assert abs(slopes(means, LADDER).mean()) < 0.02
    assert shares((-0.06, 0.0))["A"] <= simulation_bound(0.05), "that overlaps fall does not make gradients fall"
