"""The learned-forgotten frontier: planted frontiers are told apart from planted differences in learning."""

import numpy as np
import pandas as pd
import pytest

from sparsecl.figure_style import NothingToDraw
from sparsecl.figures_frontier import learned_forgotten_frontier
from sparsecl.frontier import (
    compare_frontiers,
    frontier_curve,
    frontier_points,
    mean_frontier,
    mean_vertical_difference,
    own_reversals,
)
from sparsecl.metrics import MissingMeasurement

LENGTHS = (25, 50, 100, 200)
RUN = ("topology", "algorithm", "density", "base")


def learned(steps, slowness):
    """Own score after stages of a length; a slower arm needs more steps for the same."""
    return 0.15 + 0.78 * (1 - np.exp(-np.asarray(steps) / (35 * slowness)))


def metric_rows(arm, seed, steps, values, **other):
    keys = {**dict.fromkeys(RUN, ""), "method": "full", "order": "main", "domain": "", "kind": "all"} | other
    return [{**keys, "arm": arm, "seed": seed, "stage_steps": steps, "metric": name, "value": value} for name, value in values.items()]


def metrics_of(arms, replicates=5, noise=0.0, lengths=LENGTHS, seed=0):
    """`arms` maps a name to (slowness, final score as a function of own). Forgetting is own - final; bases differ by replicate."""
    generator, rows = np.random.default_rng(seed), []
    for replicate in range(replicates):
        base = generator.normal(0, 0.01)
        for arm, (slowness, kept) in arms.items():
            for steps, own in zip(lengths, learned(lengths, slowness) + base, strict=True):
                measured, final = own + generator.normal(0, noise), kept(own) + generator.normal(0, noise)
                rows += metric_rows(arm, replicate, steps, {"own": measured, "final": final, "forgetting": measured - final})
    return pd.DataFrame(rows)


def line(shift=0.0):
    return lambda own: 0.25 - 0.1 * own + shift


def bent(own):
    return 0.1 + 0.3 * own**3


def equal_steps(metrics, metric="forgetting", steps=100):
    rows = metrics[(metrics["metric"] == metric) & (metrics["stage_steps"] == steps)].groupby("arm")["value"].mean()
    return rows["S1-2of4"] - rows["D1"]


@pytest.mark.parametrize("outcome", ["forgetting", "final"])
def test_arms_at_different_points_of_one_frontier_do_not_differ(outcome):
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (2, line())})
    found = compare_frontiers(frontier_points(metrics), "S1-2of4", "D1", outcome)
    assert equal_steps(metrics) < -0.1  # who learns more slowly forgets less at equal steps
    assert found.replicates["difference"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert found.interval.n == 5 and not found.absent and not found.reason


@pytest.mark.parametrize(("outcome", "sign"), [("forgetting", -1), ("final", 1)])
def test_a_planted_vertical_shift_is_recovered(outcome, sign):
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (1.7, line(0.04))})
    found = compare_frontiers(frontier_points(metrics), "S1-2of4", "D1", outcome)
    assert found.interval.mean == pytest.approx(sign * 0.04, abs=1e-12)
    assert found.replicates["low"].to_numpy() == pytest.approx(found.replicates["seed"].map(lambda s: _own(metrics, "D1", s).min()))
    assert found.replicates["high"].to_numpy() == pytest.approx(found.replicates["seed"].map(lambda s: _own(metrics, "S1-2of4", s).max()))


def _own(metrics, arm, seed):
    return metrics[(metrics["metric"] == "own") & (metrics["arm"] == arm) & (metrics["seed"] == seed)]["value"]


def test_noise_and_a_bent_frontier_bias_little():
    """2 points of noise in every value: over many replicates regression to the mean stays far below the trap at equal steps."""
    metrics = metrics_of({"D1": (1, bent), "S1-2of4": (1.5, bent)}, noise=0.02, replicates=400)
    assert equal_steps(metrics, "final") < -0.04
    found = compare_frontiers(frontier_points(metrics), "S1-2of4", "D1", "final")
    assert not found.absent and abs(found.interval.mean) < 0.004
    assert found.interval.high - found.interval.low < 0.005


def test_arms_that_never_learn_equally_much_are_not_compared():
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (40, line(0.1))})
    found = compare_frontiers(frontier_points(metrics), "S1-2of4", "D1")
    assert found.interval is None and found.replicates.empty
    assert found.absent == (0, 1, 2, 3, 4)
    assert "common range of own in 0 of 5 replicates" in found.reason


def test_replicates_without_a_common_range_are_counted_and_left_out():
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line(0.04))})
    apart = (metrics["arm"] == "S1-2of4") & (metrics["seed"] == 3) & (metrics["metric"] == "own")
    metrics.loc[apart, "value"] -= 0.9
    found = compare_frontiers(frontier_points(metrics), "S1-2of4", "D1", "final")
    assert found.absent == (3,) and found.interval.n == 4
    assert found.interval.mean == pytest.approx(0.04)


def test_mean_over_the_common_range_by_hand():
    """Over 0.4..0.8 the treatment is flat at 1, the control rises from 1 to 3 and back to 2: mean difference -(1 + 1.5) / 2."""
    treatment = frontier_curve(np.array([0.8, 0.2]), np.array([1.0, 1.0]))
    control = frontier_curve(np.array([0.4, 0.6, 1.0]), np.array([1.0, 3.0, 1.0]))
    assert mean_vertical_difference(treatment, control) == pytest.approx((0.4, 0.8, -1.25))
    assert mean_vertical_difference((np.array([0.0, 0.4]), np.zeros(2)), control) is None  # one common point is no range


def test_points_are_joined_in_the_order_of_own():
    knots, values = frontier_curve(np.array([0.5, 0.9, 0.7, 0.7]), np.array([1.0, 4.0, 2.0, 3.0]))
    assert knots.tolist() == [0.5, 0.7, 0.9] and values.tolist() == [1.0, 2.5, 4.0]
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line())})
    last = (metrics["arm"] == "D1") & (metrics["seed"] == 2) & (metrics["stage_steps"] == 200) & (metrics["metric"] == "own")
    metrics.loc[last, "value"] = 0.6
    assert own_reversals(frontier_points(metrics)) == {"D1": 1, "S1-2of4": 0}


def test_only_replicates_and_arms_with_several_lengths_enter():
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line())}, replicates=3)
    main_only = metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line()), "Df-0.5": (1, line())}, replicates=6, lengths=(100,))
    main_only = main_only[(main_only["seed"] > 2) | (main_only["arm"] == "Df-0.5")]
    foreign = [
        metrics.assign(method="lora"),
        metrics.assign(order="williams-2"),
        metrics.assign(kind="fact"),
        metrics.assign(domain="code"),
    ]
    every = pd.concat([metrics, main_only, *(table.assign(value=9.0) for table in foreign)])
    pd.testing.assert_frame_equal(frontier_points(every), frontier_points(metrics))
    assert set(frontier_points(every)["seed"]) == {0, 1, 2}
    assert frontier_points(main_only).empty


def test_what_is_missing_is_named():
    metrics = metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line())})
    cell = (metrics["arm"] == "D1") & (metrics["seed"] == 2) & (metrics["stage_steps"] == 50)
    with pytest.raises(MissingMeasurement, match="D1, seed 2: 50 steps"):
        frontier_points(metrics[~cell])
    with pytest.raises(MissingMeasurement, match="final of D1, seed 2, 50 steps"):
        frontier_points(metrics[~(cell & (metrics["metric"] == "final"))])
    with pytest.raises(ValueError, match=r"by S1-2of4 in seeds \[0, 1, 2, 3, 4\] and by D1 in seeds \[0, 1, 3, 4\]"):
        compare_frontiers(frontier_points(metrics[~((metrics["arm"] == "D1") & (metrics["seed"] == 2))]), "S1-2of4", "D1")


def test_mean_frontier_holds_all_replicates_everywhere():
    points = frontier_points(metrics_of({"D1": (1, line()), "S1-2of4": (1.5, line(0.04))}, noise=0.005))
    curve = mean_frontier(points, "final")
    assert set(curve["n"]) == {5} and (curve["low"] < curve["mean"]).all() and (curve["mean"] < curve["high"]).all()
    ends = points.groupby(["arm", "seed"])["own"].agg(["min", "max"]).groupby("arm").agg({"min": "max", "max": "min"})
    for arm, rows in curve.groupby("arm"):
        assert rows["own"].min() >= ends.loc[arm, "min"] and rows["own"].max() <= ends.loc[arm, "max"]
    both = curve.pivot(index="own", columns="arm", values="mean").dropna()
    assert len(both) > 10 and (both["S1-2of4"] - both["D1"]).mean() == pytest.approx(0.04, abs=0.01)
    single = mean_frontier(points[points["seed"] == 0], "final")
    assert set(single["n"]) == {1} and single["low"].isna().all()


def test_figure_shows_every_replicate_and_shades_the_common_range():
    arms = {"D1": (1, line()), "S1-2of4": (1.5, line(0.04)), "Dnz-0.5": (2, line())}
    metrics = metrics_of(arms, noise=0.01)
    figure = learned_forgotten_frontier(metrics)
    assert [axes.get_ylabel() for axes in figure.axes] == ["forgetting (points)", "final (%)"]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["D1", "Dnz 0.5", "S1 2:4", "own reached by S1 2:4 and D1"]
    points = frontier_points(metrics)
    for axes, outcome in zip(figure.axes, ("forgetting", "final"), strict=True):
        drawn = [drawn for drawn in axes.get_lines() if len(drawn.get_xdata()) == len(points) / 3 and drawn.get_linestyle() == "None"]
        assert np.sort(np.concatenate([dots.get_ydata() for dots in drawn])) == pytest.approx(np.sort(100 * points[outcome]))
        assert [text.get_text() for text in axes.texts] == ["25", "50", "100", "200"]
    apart = learned_forgotten_frontier(metrics_of({"D1": (1, line()), "S1-2of4": (40, line())}))
    assert [text.get_text() for text in apart.legends[0].get_texts()] == ["D1", "S1 2:4"]
    one = learned_forgotten_frontier(metrics_of(arms, replicates=1))
    assert len(one.axes) == 2
    with pytest.raises(NothingToDraw, match=r"\['S1-2of4'\] ran no second stage length"):
        learned_forgotten_frontier(metrics[metrics["arm"] != "S1-2of4"])
