"""Drift at equal learning: planted ratios are recovered from methods that learn less, and less learning alone is no effect."""

import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from sparsecl.drift_frontier import DIFFERENCE, RATIO, compare_drift, drift_differences, drift_points, over_layers
from sparsecl.metrics import MissingMeasurement

LENGTHS, STAGES, LAYERS = (25, 50, 100, 200), ("code", "math", "medical"), 2


def learned(steps, slowness):
    return 0.15 + 0.78 * (1 - np.exp(-np.asarray(steps) / (35 * slowness)))


def tables_of(methods, replicates=5, noise=0.0, bend=0.0, seed=0):
    """drift.csv and accuracy.csv; `methods` maps a name to (slowness, drift as a fraction of full's at equal own, per layer)."""
    generator, drift, accuracy = np.random.default_rng(seed), [], []
    for replicate in range(replicates):
        base = generator.normal(0, 0.01)
        for method, (slowness, fractions) in methods.items():
            for steps in LENGTHS:
                keys = {"arm": "D1", "method": method, "order": "main", "stage_steps": steps, "seed": replicate}
                for stage, domain in enumerate(STAGES, start=1):
                    own = learned(steps, slowness) + base + 0.01 * stage
                    at = {**keys, "stage": stage, "stage_domain": domain}
                    scores = {name: own + generator.normal(0, noise) if name == domain else 9.0 for name in (*STAGES, "general")}
                    accuracy += [{**at, "domain": name, "kind": kind, "score": value if kind == "all" else 7.0, "nll": 2 - value}
                                 for name, value in scores.items() for kind in ("all", "fact")]  # fmt: skip
                    for layer, fraction in enumerate(fractions):
                        level = math.exp(-3 + 2 * own + bend * own**3 + 0.5 * layer + 0.3 * stage + generator.normal(0, noise))
                        values = {"displacement": fraction * level, "cka_distance": 0.4 * own - 0.2 + 0.1 * fraction}
                        drift += [{**at, "layer": layer, "measure": name, "value": value, "null": np.nan, "floor": np.nan}
                                  for name, value in values.items()]  # fmt: skip
    return pd.DataFrame(drift), pd.DataFrame(accuracy)


def estimates(differences, measure):
    rows = compare_drift(differences)
    return rows[rows["measure"] == measure].set_index(["method", "layer"])


def test_a_planted_fraction_is_recovered_though_the_method_learns_less():
    methods = {"full": (1, (1, 1)), "lora": (2, (0.5, 0.8))}
    drift, accuracy = tables_of(methods)
    at_equal_steps = drift[(drift["measure"] == "displacement") & (drift["stage_steps"] == 50) & (drift["layer"] == 1)].groupby("method")[
        "value"
    ]
    assert at_equal_steps.mean()["lora"] / at_equal_steps.mean()["full"] < 0.6  # learning less makes 0.8 look better than it is
    differences = drift_differences(drift_points(drift, accuracy))
    found = estimates(differences, "displacement")
    assert np.exp(found["estimate"]).to_dict() == pytest.approx({("lora", 0): 0.5, ("lora", 1): 0.8})
    assert set(found["n"]) == {5} and set(found["absent"]) == {0} and set(found["scale"]) == {RATIO}
    # The distance of CKA by difference: 0.1 (fraction - 1).
    cka = estimates(differences, "cka_distance")
    assert cka["estimate"].to_dict() == pytest.approx({("lora", 0): -0.05, ("lora", 1): -0.02}) and set(cka["scale"]) == {DIFFERENCE}
    summary = over_layers(differences).set_index("measure")
    assert math.exp(summary.loc["displacement", "estimate"]) == pytest.approx(math.sqrt(0.5 * 0.8))
    assert summary.loc["cka_distance", "estimate"] == pytest.approx(-0.035)


def test_learning_less_alone_is_no_effect():
    """On one curve, bent and with noise, a slower method shows no ratio; at equal steps it would show a large one."""
    drift, accuracy = tables_of({"full": (1, (1, 1)), "o-lora": (1.7, (1, 1))}, replicates=200, noise=0.01, bend=0.7)
    equal = drift[(drift["measure"] == "displacement") & (drift["stage_steps"] == 50)].groupby("method")["value"].mean()
    assert equal["o-lora"] / equal["full"] < 0.75
    found = estimates(drift_differences(drift_points(drift, accuracy)), "displacement")
    assert np.exp(found["estimate"]).to_numpy() == pytest.approx(1, abs=0.03)


def test_intervals_cover_the_planted_ratio():
    covered = []
    for seed in range(60):
        drift, accuracy = tables_of({"full": (1, (1,)), "osf": (1.5, (0.6,))}, noise=0.01, seed=seed)
        row = estimates(drift_differences(drift_points(drift, accuracy)), "displacement").iloc[0]
        covered.append(row["low"] <= math.log(0.6) <= row["high"])
    assert 0.85 <= np.mean(covered) <= 1


def test_points_are_means_over_the_same_stages():
    drift, accuracy = tables_of({"full": (1, (1, 1))}, replicates=1)
    points = drift_points(drift, accuracy)
    row = points[(points["stage_steps"] == 50) & (points["layer"] == 1) & (points["measure"] == "displacement")].iloc[0]
    chosen = drift[(drift["stage_steps"] == 50) & (drift["layer"] == 1) & (drift["measure"] == "displacement")]
    own = accuracy[(accuracy["stage_steps"] == 50) & (accuracy["domain"] == accuracy["stage_domain"]) & (accuracy["kind"] == "all")]
    assert row["own"] == pytest.approx(own["score"].mean()) and row["drift"] == pytest.approx(np.log(chosen["value"]).mean())
    losses = drift_points(drift, accuracy, score="nll")
    assert losses["own"].to_numpy() == pytest.approx(2 - points["own"].to_numpy())


def test_a_ratio_does_not_depend_on_the_axis_of_learning():
    """Losses fall where scores rise; the comparison at equal own is the same."""
    drift, accuracy = tables_of({"full": (1, (1, 1)), "lora": (2, (0.5, 0.8))})
    by_score, by_loss = (compare_drift(drift_differences(drift_points(drift, accuracy, score))) for score in ("score", "nll"))
    assert by_loss["estimate"].to_numpy() == pytest.approx(by_score["estimate"].to_numpy())


def test_replicates_without_a_common_range_are_counted():
    drift, accuracy = tables_of({"full": (1, (1, 1)), "lora": (1.5, (0.5, 0.5))})
    accuracy.loc[(accuracy["method"] == "lora") & (accuracy["seed"] == 3), "score"] -= 2
    differences = drift_differences(drift_points(drift, accuracy))
    assert differences.loc[differences["seed"] == 3, ["own_low", "own_high", "difference"]].isna().all().all()
    found = pd.concat([compare_drift(differences), over_layers(differences)])
    assert set(found["n"]) == {4} and set(found["absent"]) == {1} and found["low"].notna().all()
    accuracy.loc[accuracy["method"] == "lora", "score"] -= 2
    found = compare_drift(drift_differences(drift_points(drift, accuracy)))
    assert set(found["n"]) == {0} and set(found["absent"]) == {5} and found[["estimate", "low", "high"]].isna().all().all()


def test_no_drift_has_no_ratio():
    drift, accuracy = tables_of({"full": (1, (1, 1)), "lora": (1.5, (0.5, 0.0))})
    differences = drift_differences(drift_points(drift, accuracy))
    found = estimates(differences, "displacement")
    assert found["n"].to_dict() == {("lora", 0): 5, ("lora", 1): 0}
    assert over_layers(differences).set_index("measure")["n"].to_dict() == {"displacement": 0, "cka_distance": 5}


def test_one_replicate_has_an_estimate_and_no_interval():
    differences = drift_differences(drift_points(*tables_of({"full": (1, (1, 1)), "lora": (1.5, (0.5, 0.5))}, replicates=1)))
    found = compare_drift(differences)
    assert found["estimate"].notna().all() and set(found["n"]) == {1} and found[["low", "high"]].isna().all().all()


def test_only_runs_of_several_lengths_in_the_main_order_are_compared():
    drift, accuracy = tables_of({"full": (1, (1, 1)), "lora": (1.5, (0.5, 0.5)), "ewc": (1.2, (0.7, 0.7))})
    foreign = drift.assign(order="williams-2", value=9.0)
    single = (drift["method"] != "ewc") | (drift["stage_steps"] == 100)
    points = drift_points(pd.concat([drift[single], foreign]), accuracy)
    pd.testing.assert_frame_equal(points, drift_points(drift[drift["method"] != "ewc"], accuracy))
    assert set(drift_differences(points)["method"]) == {"lora"}
    alone = drift_points(drift[drift["method"] == "lora"], accuracy)
    assert drift_differences(alone).empty and compare_drift(drift_differences(alone)).empty and over_layers(drift_differences(alone)).empty


def test_a_missing_own_score_is_named():
    drift, accuracy = tables_of({"full": (1, (1, 1)), "lora": (1.5, (0.5, 0.5))})
    gone = (accuracy["method"] == "lora") & (accuracy["seed"] == 2) & (accuracy["stage_steps"] == 50) & (accuracy["stage"] == 3)
    with pytest.raises(MissingMeasurement, match=r"score of the stage's own domain for D1 lora, 50 steps, seed 2, stage 3 \(1 in all\)"):
        drift_points(drift, accuracy[~gone])


def test_reading_tables_needs_no_torch():
    code = "import sys, sparsecl.drift_frontier; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
