"""Planted truth through the verdict engine, its rules one by one, the table of tests, and the registration file."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparsecl import preregistration, verdict
from sparsecl.preregistration import exploratory_analysis, load_preregistration
from sparsecl.statistics import Contrast, paired_contrast, with_holm
from sparsecl.study_files import load_study

PILOT = load_preregistration("builtin").model_copy(update={"replicates": 5})  # as many as the contrasts made here
STRICT = ("Dnz-0.5", "Df-0.5")
CONTROLS = ("D1", *STRICT)
NOTHING = {"forgetting": 0.0, "final": 0.0}
SPARSE_BETTER = {"forgetting": -0.12, "final": 0.04}
DENSE_BETTER = {"forgetting": 0.12, "final": -0.08}


def planted_values(effects, n, draws, spread=0.04, seed=0):
    """Values by (arm, metric), draws x n: each control is the sparse arm minus its planted effect, sharing the replicate's base."""
    generator = np.random.default_rng(seed)
    values = {}
    for metric, level in (("forgetting", 0.5), ("final", 0.4)):
        base = generator.normal(level, 0.05, (draws, n))
        values["S1-2of4", metric] = base + generator.normal(0, spread, (draws, n))
        for control, effect in effects.items():
            values[control, metric] = base - effect[metric] + generator.normal(0, spread, (draws, n))
    return values


def closed_form(x, y, name, metric, margin=0.05):
    """Contrasts of many simulated studies at once, by the textbook's formulas (draws x n); `paired_contrast` is the product's way."""
    difference, n = x - y, x.shape[1]
    mean, sd = difference.mean(axis=1), difference.std(axis=1, ddof=1)
    error = sd / math.sqrt(n)
    p = 2 * stats.t.sf(np.abs(mean / error), n - 1)
    equivalence = np.maximum(stats.t.sf((mean + margin) / error, n - 1), stats.t.cdf((mean - margin) / error, n - 1))
    wide, narrow = stats.t.ppf(0.975, n - 1) * error, stats.t.ppf(0.95, n - 1) * error
    average = np.sqrt((x.var(axis=1, ddof=1) + y.var(axis=1, ddof=1)) / 2)
    effect = mean / average * (1 - 3 / (4 * 2 * n - 9))
    columns = (mean, sd, mean - wide, mean + wide, mean - narrow, mean + narrow, p, equivalence, effect)
    return [Contrast(name, metric, *map(float, row), n=n) for row in zip(*columns, strict=True)]


def simulate(effects, n=30, draws=200, **settings):
    """Share of the simulated studies by letter."""
    values = planted_values(effects, n, draws, **settings)
    by_contrast = [
        closed_form(values["S1-2of4", metric], values[control, metric], f"S1-2of4 - {control}", metric)
        for control in effects
        for metric in ("forgetting", "final")
    ]
    registration = PILOT.model_copy(update={"replicates": n})
    letters = pd.Series([verdict.decide(with_holm(list(study)), registration).letter for study in zip(*by_contrast, strict=True)])
    return letters.value_counts(normalize=True).reindex(["A", "B", "C", "undecided"], fill_value=0.0)


def test_closed_form_of_the_simulations_is_the_engine_s_contrast():
    values = planted_values({"D1": NOTHING}, n=6, draws=20)
    simulated = closed_form(values["S1-2of4", "final"], values["D1", "final"], "a", "final")
    for x, y, fast in zip(values["S1-2of4", "final"], values["D1", "final"], simulated, strict=True):
        slow = paired_contrast(pd.Series(x), pd.Series(y), "a", "final", margin=0.05)
        for field in ("estimate", "sd", "low", "high", "equivalence_low", "equivalence_high", "p", "p_equivalence", "effect", "n"):
            assert getattr(fast, field) == pytest.approx(getattr(slow, field), rel=1e-9), field


def test_planted_a_is_found():
    assert simulate(dict.fromkeys(CONTROLS, SPARSE_BETTER))["A"] >= 0.9


def test_planted_b_is_found_also_where_intervals_exclude_zero():
    assert simulate(dict.fromkeys(CONTROLS, NOTHING))["B"] >= 0.9
    small = {"forgetting": -0.02, "final": 0.01}
    assert simulate(dict.fromkeys(CONTROLS, small), n=60, spread=0.03)["B"] >= 0.9


@pytest.mark.parametrize("metric", ["forgetting", "final"])
def test_planted_c_is_found(metric):
    assert simulate(dict.fromkeys(CONTROLS, DENSE_BETTER))["C"] >= 0.9
    assert simulate({"D1": {**NOTHING, metric: DENSE_BETTER[metric] * 1.2}})["C"] >= 0.9, f"dense better on {metric} alone"


@pytest.mark.parametrize("strict", STRICT)
def test_an_advantage_that_a_strict_control_shares_is_c(strict):
    """The falsification rule: sparse beats the same shape, but not the same capacity (or compute)."""
    effects = {**dict.fromkeys(CONTROLS, SPARSE_BETTER), strict: NOTHING}
    shares = simulate(effects)
    assert shares["C"] >= 0.9 and shares["A"] <= 0.05


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("controls", [("D1",), CONTROLS])
def test_planted_nothing_is_called_a_or_c_at_most_at_the_nominal_rate(n, controls):
    """At this spread equivalence is rarely shown with 5 replicates and often with 30; wider spreads give fewer wrong calls."""
    draws = 250
    shares = simulate(dict.fromkeys(controls, NOTHING), n=n, draws=draws, spread=0.05, seed=n)
    assert shares["A"] + shares["C"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / draws), shares


def test_differences_at_the_margin_are_called_equivalent_at_most_at_the_nominal_rate():
    at_margin = {"forgetting": -0.05, "final": 0.0}
    assert simulate({"D1": at_margin}, n=20, draws=300, spread=0.03)["B"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


def test_forgetting_less_by_learning_less_is_not_a():
    """The trap: both forgetting and final are lower, so there was only less to lose."""
    shares = simulate(dict.fromkeys(CONTROLS, {"forgetting": -0.12, "final": -0.12}))
    assert shares["A"] == 0 and shares["undecided"] >= 0.9


def planned(metric, estimate, error, control="D1", n=5):
    """A contrast with a given estimate and standard error."""
    p = 2 * stats.t.sf(abs(estimate / error), n - 1)
    wide, narrow = stats.t.ppf([0.975, 0.95], n - 1) * error
    tost = max(stats.t.sf((estimate + 0.05) / error, n - 1), stats.t.cdf((estimate - 0.05) / error, n - 1))
    bounds = (estimate - wide, estimate + wide, estimate - narrow, estimate + narrow)
    return Contrast(f"S1-2of4 - {control}", metric, estimate, error * math.sqrt(n), *bounds, p, tost, 0.5, n)


def decided(*contrasts, registration=PILOT):
    return verdict.decide(with_holm(list(contrasts)), registration)


def pairs(forgetting, final, controls=CONTROLS, error=0.01):
    return [
        planned(metric, value, error, control) for control in controls for metric, value in (("forgetting", forgetting), ("final", final))
    ]


def test_a_needs_every_strict_control():
    assert decided(*pairs(-0.1, 0.02)).letter == "A"
    without = decided(*pairs(-0.1, 0.02, ("D1", "Dnz-0.5")))
    assert without.letter == "undecided"
    assert without.missing_controls == ("Df-0.5",)
    assert "A is impossible without the strict controls Df-0.5" in without.sentence
    alone = decided(*pairs(-0.1, 0.02, ("D1",)))
    assert alone.letter == "undecided" and alone.missing_controls == STRICT
    weak = [*pairs(-0.1, 0.02, ("D1", "Dnz-0.5")), *pairs(-0.1, 0.02, ("Df-0.5",), error=0.06)]
    assert decided(*weak).letter == "undecided", "all must hold"


def test_a_needs_what_is_retained_not_lower_beyond_the_margin():
    assert decided(*pairs(-0.1, -0.02)).letter == "A", "lower, but surely by less than the margin"
    unsure = decided(*pairs(-0.1, -0.045))
    assert unsure.letter == "undecided" and "D1: forgets less, and keeps less" in unsure.sentence
    assert "D1: forgets less, but may keep less" in decided(*pairs(-0.1, 0.0, error=0.03)).sentence


def test_an_interval_inside_the_margin_is_b_even_where_it_excludes_zero():
    result = decided(*pairs(-0.02, 0.0, error=0.005))
    assert result.contrasts[0].p < 0.05 and result.letter == "B"
    assert decided(*pairs(-0.02, 0.0, ("D1",), error=0.005)).letter == "B", "B is against the main control"


def test_c_under_one_strict_control_is_enough_and_is_corrected():
    mixed = [*pairs(-0.1, 0.02, ("D1", "Df-0.5")), *pairs(0.1, -0.02, ("Dnz-0.5",))]
    result = decided(*mixed)
    assert result.letter == "C" and "dense Dnz-0.5 better" in result.sentence
    borderline = [*pairs(0.0, 0.0, ("D1", "Df-0.5"), error=0.05), *pairs(0.0, 0.0, ("Dnz-0.5",), error=0.02)]
    borderline[4] = planned("forgetting", 0.065, 0.02, "Dnz-0.5")
    assert borderline[4].p < 0.05 and decided(*borderline).letter == "undecided", "one of six tests at p = 0.03 is expected by chance"


def test_undecided_plans_a_new_study_at_the_margin():
    result = decided(*pairs(-0.05, -0.01, error=0.03))
    assert result.letter == "undecided"
    spread = 0.03 * math.sqrt(5) * math.sqrt(4 / stats.chi2.ppf(0.2, 4))
    assert result.planned_replicates == pytest.approx((1.96 + 1.28) ** 2 * (spread / 0.05) ** 2, abs=3)
    stronger = decided(*pairs(-0.07, -0.01, error=0.03))
    assert stronger.planned_replicates == result.planned_replicates, "the observed effect does not enter"
    assert decided(*pairs(-0.1, 0.02)).planned_replicates is None


def test_another_number_of_replicates_than_registered_decides_nothing():
    contrasts = [planned(metric, -0.1, 0.001, control, n=4) for control in CONTROLS for metric in ("forgetting", "final")]
    result = decided(*contrasts)
    assert result.letter == "undecided" and "[4] replicates where exactly 5 were registered" in result.sentence


def test_no_margin_no_verdict():
    registration = exploratory_analysis("realtext", measure="loss")
    result = decided(planned("loss_forgetting", -0.4, 0.1), planned("loss_final", -0.1, 0.1), registration=registration)
    assert result.letter == "none" and result.sentence.startswith("no verdict")


def test_contrasts_without_variance_or_main_control():
    flat = [replace(c, p=math.nan, p_equivalence=math.nan, low=math.nan, high=math.nan, flag="no variance") for c in pairs(0.0, 0.0)]
    result = decided(*flat)
    assert result.letter == "undecided" and "D1: no test (no variance)" in result.sentence
    with pytest.raises(ValueError, match="S1-2of4 - D1 lacks"):
        decided(*pairs(0.0, 0.0, STRICT))


def metrics_frame(n=5, arms=("D1", "S1-2of4"), seed=0):
    generator = np.random.default_rng(seed)
    levels = {"forgetting": 0.5, "final": 0.4, "own": 0.8, "bwt": -0.5}
    rows = [
        {
            "arm": arm, "topology": "2of4" if arm == "S1-2of4" else "", "algorithm": "", "density": 1.0, "method": "full", "order": "main",
            "stage_steps": 100, "base": str(r), "seed": r, "domain": domain, "kind": kind, "metric": metric,
            "value": level + (0.03 if domain else 0.0) + generator.normal(0, 0.02),
        }
        for arm in arms for r in range(n) for metric, level in levels.items()
        for kind in ("ability", "fact", "all") for domain in ("", "math")
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_table_of_tests():
    metrics = metrics_frame()
    table = verdict.tests_table(metrics, PILOT)
    assert list(table) == verdict.TESTS_COLUMNS
    main = table[table["hypothesis"] == "H1"].set_index("metric")
    assert list(main.index) == ["forgetting", "final"] and set(main["contrast"]) == {"S1-2of4 - D1"} and set(main["status"]) == {"pilot"}
    values = metrics[(metrics["metric"] == "final") & (metrics["kind"] == "all") & (metrics["domain"] == "")].pivot(
        index="seed", columns="arm", values="value"
    )
    test = stats.ttest_rel(values["S1-2of4"], values["D1"])
    interval = test.confidence_interval()
    assert main.loc["final", ["estimate", "ci_low", "ci_high", "p"]].tolist() == pytest.approx(
        [(values["S1-2of4"] - values["D1"]).mean(), interval.low, interval.high, test.pvalue], rel=1e-9
    )
    assert main["p_corrected"].max() >= main["p"].max() and (main["p_corrected"] >= main["p"]).all()
    equivalence = table[table["hypothesis"] == "H1 equivalence"].set_index("metric")
    assert (equivalence["ci_low"] > main["ci_low"]).all() and equivalence["p"].notna().all() and equivalence["p_corrected"].isna().all()
    beside = table[~table["hypothesis"].str.startswith("H1")]
    assert set(beside["status"]) == {"exploratory"}
    assert {"own", "bwt", "forgetting/ability", "own/fact"} <= set(beside["metric"])
    assert "general_retention" not in set(table["metric"]), "what was not measured has no row"


def test_verdict_from_the_tables_names_the_controls_that_were_not_run():
    result = verdict.compute_verdict(metrics_frame(), PILOT)
    assert result.missing_controls == STRICT and {c.metric for c in result.contrasts} == {"forgetting", "final"}
    assert verdict.compute_verdict(metrics_frame(arms=("D1", "S1-2of4", *STRICT)), PILOT).missing_controls == ()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table[table["arm"] != "D1"], r"forgetting of \['D1'\] is not in the metrics"),
        (lambda table: table[table["metric"] != "final"], r"final of \['S1-2of4', 'D1'\]"),
        (lambda table: table[(table["arm"] != "D1") | (table["seed"] != 3)], r"seeds \[3\] are unpaired"),
        (lambda table: table[table["seed"] == 0], "1 replicate"),
        (lambda table: table.assign(order="reverse"), "order main"),
    ],
)
def test_what_the_analysis_lacks_is_named(damage, message):
    with pytest.raises(ValueError, match=message):
        verdict.tests_table(damage(metrics_frame()), PILOT)


def test_a_flag_stands_in_the_status():
    metrics = metrics_frame()
    flat = metrics.assign(value=metrics["value"].where(metrics["metric"] != "own", 0.8))
    table = verdict.tests_table(flat, PILOT).set_index("metric")
    assert (
        table.loc["own", "status"] == "exploratory, no variance" and math.isnan(table.loc["own", "p"]) and table.loc["own", "estimate"] == 0
    )


def test_the_built_in_registration_is_the_pilot():
    assert PILOT.status == "pilot" and PILOT.main.name == "S1-2of4 - D1"
    assert load_preregistration("builtin").replicates == load_study("builtin").replicates
    assert tuple(contrast.control for contrast in PILOT.strict) == STRICT
    assert PILOT.margin == 0.05 and "standard error" in PILOT.margin_reason
    assert load_preregistration("smoke") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("alpha: 0.05 -> alpha: 5", r"builtin\.yaml: alpha: .*less than 0.5"),
        ("margin: 0.05 -> ", "margin, margin_reason, replicates"),
        ("  H1: [forgetting, final] ->   H1: [forgetting]", "H1: must hold exactly metric and retained"),
        ("own: own -> own: acquired", "acquired is in none"),
        ("control: D1, role: main -> control: D1, role: strict", "exactly one needs the role main"),
        ("treatment: S1-2of4, control: D1 -> treatment: S1-4of8, control: D1", "not of the deciding topology 2of4"),
        ("control: Df-0.5 -> control: Dx", "arm 'Dx' is unknown"),
        ("study: builtin -> study: other", "study is 'other'"),
        ("status: pilot -> status: pilot\npeeked: true", "peeked: Extra inputs"),
        ("metric: forgetting -> metric: [", "not YAML"),
    ],
)
def test_a_registration_that_does_not_fit_names_its_key(tmp_path, change, message):
    old, new = change.split(" -> ")
    text = (preregistration.FOLDER / "builtin.yaml").read_text()
    assert text.count(old) >= 1
    (tmp_path / "builtin.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        load_preregistration("builtin", tmp_path)
