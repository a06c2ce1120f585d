"""Crossover by closed forms, censoring, and curves read at equal measured seconds."""

import math

import numpy as np
import pandas as pd
import pytest

from sparsecl.crossover import (
    at_equal_seconds,
    crossover_step,
    crossovers,
    mean_curves,
    paired_curves,
    seconds_per_step,
    summarise_crossovers,
)
from sparsecl.metrics import MissingMeasurement

DOMAINS = ("code", "math")
STAGE = 10
STEPS = np.arange(0.0, 21, 5)


def points_of(values):
    """A table as of `mean_curves` from {(arm, seed): scores at STEPS}."""
    rows = [(arm, seed, step, score) for (arm, seed), scores in values.items() for step, score in zip(STEPS, scores, strict=True)]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "score"])


def stream_tables(scores, seeds=(0,), arm="D1", stage_steps=STAGE, first_step=0):
    """curves and accuracy of one arm; `scores(domain, step, seed)` is the score after `step` steps of the stream."""
    keys = {"arm": arm, "method": "full", "order": "main", "stage_steps": stage_steps, "kind": "all"}
    curves, accuracy = [], []
    for seed in seeds:
        for stage in range(3):
            for domain in (*DOMAINS, "general"):
                at = {**keys, "seed": seed, "stage": stage, "stage_domain": DOMAINS[stage - 1] if stage else "", "domain": domain}
                accuracy.append({**at, "score": scores(domain, stage * stage_steps, seed)})
                for step in range(first_step, stage_steps + 1, 5) if stage else ():
                    curves.append({**at, "step": step, "score": scores(domain, (stage - 1) * stage_steps + step, seed)})
    return pd.DataFrame(curves), pd.DataFrame(accuracy)


def linear(domain, step, seed):
    return {"code": 0.1 + 0.01 * step, "math": 0.3 + 0.02 * step, "general": 9.0}[domain] + seed


def test_two_lines_cross_where_algebra_says():
    """0.2 + 0.03 s against 0.4 + 0.01 s: equal at s = 10; against 0.4 + 0.013 s: at 200 / 17."""
    assert crossover_step(STEPS, 0.2 + 0.03 * STEPS, 0.4 + 0.01 * STEPS) == pytest.approx(10)
    assert crossover_step(STEPS, 0.2 + 0.03 * STEPS, 0.4 + 0.013 * STEPS) == pytest.approx(200 / 17)


@pytest.mark.parametrize(
    ("difference", "wanted"),
    [
        ([0.1, 0.2, 0.1, 0.1, 0.1], 0),  # above from the start
        ([0.0, 0.2, 0.1, 0.1, 0.1], 0),
        ([-0.1, -0.2, -0.1, -0.1, -0.1], math.inf),  # never
        ([-0.1, 0.2, 0.3, 0.1, -0.1], math.inf),  # overtaken again by the end
        ([-0.1, 0.2, 0.3, 0.1, 0.0], math.inf),  # equal is not above
        ([0.1, -0.1, 0.3, -0.1, 0.3], 16.25),  # the last time counts
        ([0.1, 0.2, 0.0, 0.1, 0.1], 10),  # touching is not staying above
        ([-0.1, -0.1, -0.1, -0.1, 0.1], 17.5),
    ],
)
def test_crossover_is_the_last_time_from_which_it_stays_above(difference, wanted):
    control = np.array([0.5, 0.4, 0.6, 0.5, 0.3])
    assert crossover_step(STEPS, control + difference, control) == pytest.approx(wanted)


def test_mean_over_the_domains_along_the_stream():
    curves, accuracy = stream_tables(linear, seeds=(0, 1))
    points = mean_curves(curves, accuracy, ["D1"])
    assert points.columns.tolist() == ["arm", "seed", "step", "score"]
    for seed, rows in points.groupby("seed"):
        assert rows["step"].tolist() == [0, 5, 10, 15, 20]
        assert rows["score"].to_numpy() == pytest.approx(0.2 + 0.015 * STEPS + seed)


def test_step_0_comes_from_the_curve_and_else_from_stage_0():
    """A curve holds other items than stage 0 of the accuracy table; mixing them would plant a jump."""
    curves, accuracy = stream_tables(linear)
    shifted = accuracy.assign(score=accuracy["score"] + 0.5)
    start = lambda points: points.loc[points["step"] == 0, "score"].tolist()  # noqa: E731
    assert start(mean_curves(curves, shifted, ["D1"])) == pytest.approx([0.2])
    assert start(mean_curves(curves[(curves["step"] > 0) | (curves["stage"] != 1)], shifted, ["D1"])) == pytest.approx([0.7])


def test_rows_of_other_runs_are_not_read():
    curves, accuracy = stream_tables(linear, seeds=(0, 1))
    short = stream_tables(lambda *_: 7.0, stage_steps=5)
    foreign = [{"method": "lora"}, {"order": "williams-2"}, {"kind": "fact"}]
    mixed = [
        pd.concat([table, other, *(table.assign(score=8.0, **keys) for keys in foreign)])
        for table, other in zip((curves, accuracy), short, strict=True)
    ]
    pd.testing.assert_frame_equal(mean_curves(*mixed, ["D1"]), mean_curves(curves, accuracy, ["D1"]))


def test_missing_points_are_named():
    curves, accuracy = stream_tables(linear, seeds=(0, 1))
    gap = (curves["seed"] == 1) & (curves["stage"] == 2) & (curves["step"] == 5) & (curves["domain"] == "code")
    with pytest.raises(MissingMeasurement, match=r"lacks code of D1, seed 1, step 15 \(1 scores\)"):
        mean_curves(curves[~gap], accuracy, ["D1"])
    with pytest.raises(MissingMeasurement, match="math of D1, seed 1, step 15"):
        mean_curves(curves[~((curves["seed"] == 1) & (curves["stage"] == 2) & (curves["step"] == 5))], accuracy, ["D1"])
    with pytest.raises(MissingMeasurement, match="step 0"):
        mean_curves(curves[curves["step"] > 0], accuracy[accuracy["stage"] > 0], ["D1"])
    with pytest.raises(MissingMeasurement, match="no rows of S1-2of4"):
        mean_curves(curves, accuracy, ["D1", "S1-2of4"])


def test_replicates_with_and_without_a_crossover():
    """Crossing at 10 in two replicates, never in two, from the start in one: the median is 10, as if never were late."""
    flat = np.full(5, 0.4)
    treatment = {0: 0.3 + 0.01 * STEPS, 1: 0.3 + 0.01 * STEPS, 2: flat - 0.1, 3: flat - 0.1, 4: flat + 0.1}
    points = points_of({("D1", seed): flat for seed in treatment} | {("S1-2of4", seed): scores for seed, scores in treatment.items()})
    found = crossovers(points, "S1-2of4", "D1")
    assert found["censored"].tolist() == [False, False, True, True, False]
    assert found["step"].tolist() == pytest.approx([10, 10, math.nan, math.nan, 0], nan_ok=True)
    summary = summarise_crossovers(points, "S1-2of4", "D1")
    assert (summary.replicates, summary.censored, summary.from_start, summary.end) == (5, 2, 1, 20)
    assert summary.median == pytest.approx(10) and math.isnan(summary.low)
    # Averaged over replicates the difference is -0.06 + 0.004 s.
    assert summary.on_mean_curve == pytest.approx(15)
    without = points[points["seed"].isin([1, 2, 3])]
    assert summarise_crossovers(without, "S1-2of4", "D1").median == math.inf


def test_the_interval_of_the_median_is_that_of_order_statistics():
    """Of 10 replicates the second and the ninth bound the median with 97.9 %: 1 - 2 (1 + 10) / 2^10."""
    flat, values = np.full(5, 0.4), {}
    for seed, at in enumerate([2, 4, 6, 8, 10, 12, 14, 16, None, None]):
        values["D1", seed] = flat
        values["S1-2of4", seed] = flat - 0.1 if at is None else flat + 0.01 * (STEPS - at)
    summary = summarise_crossovers(points_of(values), "S1-2of4", "D1")
    assert (summary.low, summary.high) == (pytest.approx(4), math.inf) and summary.median == pytest.approx(11)


def test_arms_of_other_steps_or_seeds_are_refused():
    values = {("D1", 0): np.zeros(5), ("S1-2of4", 0): np.ones(5), ("D1", 1): np.zeros(5)}
    with pytest.raises(ValueError, match=r"S1-2of4 has seeds \[0\], D1 \[0, 1\]"):
        paired_curves(points_of(values), "S1-2of4", "D1")
    points = points_of({key: values[key] for key in list(values)[:2]})
    points.loc[points["arm"] == "D1", "step"] *= 2
    with pytest.raises(ValueError, match="equal steps of paired replicates"):
        crossovers(points, "S1-2of4", "D1")


def test_curves_at_equal_seconds():
    """D1 gains 0.02 a step and needs 1 s for it, S1 gains 0.03 and needs 2 s: behind by 0.005 a second, until D1 ends after 20 s."""
    points = points_of({(arm, seed): 0.1 * seed + rate * STEPS for arm, rate in (("D1", 0.02), ("S1-2of4", 0.03)) for seed in (0, 1)})
    found = at_equal_seconds(points, {"D1": 1.0, "S1-2of4": 2.0}, "S1-2of4", "D1")
    for seed, rows in found.groupby("seed"):
        assert rows["seconds"].tolist() == [0, 5, 10, 15, 20]
        assert rows["control"].to_numpy() == pytest.approx(0.1 * seed + 0.02 * rows["seconds"])
        assert rows["treatment"].to_numpy() == pytest.approx(0.1 * seed + 0.015 * rows["seconds"])
        assert rows["difference"].to_numpy() == pytest.approx(-0.005 * rows["seconds"])
    steps = crossovers(points, "S1-2of4", "D1")
    assert (steps["step"] == 0).all()  # at equal steps it is ahead
    with pytest.raises(MissingMeasurement, match=r"no seconds per step of \['S1-2of4'\]"):
        at_equal_seconds(points, {"D1": 1.0}, "S1-2of4", "D1")


def test_seconds_per_step_are_the_median_of_the_stream_over_its_steps():
    points = points_of({("D1", seed): STEPS for seed in range(3)})
    rows = [{"arm": "D1", "method": "full", "seed": seed, "job": "03_continual", "wall_s": wall} for seed, wall in enumerate((4, 40, 6))]
    timings = pd.DataFrame([*rows, {**rows[0], "job": "02_recover", "wall_s": 99}, {**rows[0], "method": "lora", "wall_s": 99}])
    assert seconds_per_step(timings, points) == {"D1": pytest.approx(6 / 20)}
    as_text = pd.concat([timings.astype({"seed": str}), timings.iloc[:1].assign(seed="validation", wall_s=1e6)])
    assert seconds_per_step(as_text, points) == {"D1": pytest.approx(6 / 20)}
    with pytest.raises(MissingMeasurement, match="no 03_continual of D1"):
        seconds_per_step(timings[timings["method"] == "lora"], points)
    with pytest.raises(ValueError, match="4 rows of 03_continual of D1"):
        seconds_per_step(pd.concat([timings, timings.iloc[:1]]), points)
