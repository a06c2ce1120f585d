"""Intervals, tests, corrections and plans against hand calculation, other formulas and known truth."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparsecl import anova, planning, statistics
from sparsecl.bootstrap import bootstrap_forgetting
from sparsecl.intervals import t_interval
from sparsecl.metrics import MissingMeasurement
from sparsecl.statistics import NO_VARIANCE, TOO_FEW, UNDEFINED, contrast_with_zero, paired_contrast, with_holm

TREATMENT = pd.Series([0.50, 0.42, 0.47, 0.44, 0.52], index=range(5))
CONTROL = pd.Series([0.55, 0.50, 0.48, 0.53, 0.59], index=range(5))  # differences -5, -8, -1, -9, -7 points


def contrast(treatment=TREATMENT, control=CONTROL, **settings):
    return paired_contrast(treatment, control, "S1-2of4 - D1", "forgetting", **settings)


def test_t_interval_by_hand_keeps_all_digits():
    interval = t_interval(np.array([1.0, 2.0, 4.0]))
    assert interval.mean == pytest.approx(7 / 3)
    assert interval.sd == pytest.approx(math.sqrt(7 / 3))
    half = 4.302652729749464 * math.sqrt(7 / 3) / math.sqrt(3)  # t(0.975, 2)
    assert (interval.low, interval.high) == pytest.approx((7 / 3 - half, 7 / 3 + half), rel=1e-12)


@pytest.mark.parametrize("values", [[], [0.4], [0.4, math.nan]])
def test_t_interval_needs_two_finite_values(values):
    with pytest.raises(ValueError, match="at least 2 finite values"):
        t_interval(np.array(values))


def test_paired_contrast_by_hand():
    result = contrast(margin=0.05)
    differences = np.array([-0.05, -0.08, -0.01, -0.09, -0.07])
    error = differences.std(ddof=1) / math.sqrt(5)
    assert result.estimate == pytest.approx(-0.06)
    assert result.n == 5 and result.flag == ""
    assert result.p == pytest.approx(2 * stats.t.sf(0.06 / error, 4), rel=1e-9)
    assert (result.low, result.high) == pytest.approx((-0.06 - 2.7764451051977987 * error, -0.06 + 2.7764451051977987 * error), rel=1e-12)
    assert (result.equivalence_low, result.equivalence_high) == pytest.approx((-0.06 - 2.131846786 * error, -0.06 + 2.131846786 * error))
    assert result.p_equivalence == pytest.approx(stats.t.cdf((0.06 - 0.05) / error, 4), rel=1e-9)  # the lower bound is the hard one
    average_sd = math.sqrt((TREATMENT.var() + CONTROL.var()) / 2)
    assert result.effect == pytest.approx(-0.06 / average_sd * (1 - 3 / (4 * 10 - 9)), rel=1e-9)


def test_intervals_are_not_rounded_to_two_decimals():
    result = contrast()
    for bound in (result.low, result.high, result.equivalence_low, result.equivalence_high):
        assert bound != round(bound, 4)


def test_pairs_are_matched_by_replicate_not_by_position():
    assert contrast(control=CONTROL.iloc[::-1]) == contrast()
    with pytest.raises(ValueError, match=r"seeds \[4\] are unpaired"):
        contrast(control=CONTROL.iloc[:4])


def test_tost_rejects_exactly_where_the_narrow_interval_lies_inside_the_margin():
    generator = np.random.default_rng(0)
    agreements = []
    for _ in range(60):
        x, y = (pd.Series(generator.normal(0, 0.03, 6)) for _ in range(2))
        result = contrast(x, y, margin=0.05)
        inside = max(-result.equivalence_low, result.equivalence_high) < 0.05
        assert (result.p_equivalence < 0.05) == inside
        agreements.append(inside)
    assert 5 < sum(agreements) < 55, "both outcomes must occur"


@pytest.mark.parametrize("shift", [0.0, 0.1])
def test_differences_without_variance_have_no_test(shift):
    """0.1 + x - x differs from 0.1 by rounding, which must not pass for a tiny variance."""
    result = contrast(TREATMENT + shift, TREATMENT, margin=0.05)
    assert result.flag == NO_VARIANCE
    assert result.estimate == pytest.approx(shift)
    assert all(map(math.isnan, (result.p, result.low, result.high, result.p_equivalence, result.effect)))


def test_one_sided_p_values_are_those_of_scipy_and_make_up_the_tost():
    result = contrast(margin=0.05)
    difference = TREATMENT - CONTROL
    for bound in (-0.05, 0.0, 0.02):
        assert result.p_above(bound) == pytest.approx(stats.ttest_1samp(difference, bound, alternative="greater").pvalue, rel=1e-9)
        assert result.p_below(bound) == pytest.approx(stats.ttest_1samp(difference, bound, alternative="less").pvalue, rel=1e-9)
    assert result.p_equivalence == pytest.approx(max(result.p_above(-0.05), result.p_below(0.05)), rel=1e-9)
    assert math.isnan(contrast(TREATMENT, TREATMENT).p_above(0.0))


def test_an_arm_with_fewer_replicates_is_paired_on_the_first_ones():
    fewer = TREATMENT.iloc[[2, 0, 1]]
    x, y = statistics.common_replicates(fewer, CONTROL, "a")
    assert list(x.index) == list(y.index) == [0, 1, 2] and x.equals(TREATMENT.iloc[:3]) and y.equals(CONTROL.iloc[:3])
    y, x = statistics.common_replicates(CONTROL, fewer, "a")
    assert x.equals(TREATMENT.iloc[:3])
    with pytest.raises(ValueError, match=r"a: seeds \[1\] are unpaired"):
        statistics.common_replicates(TREATMENT.drop(index=[1, 4]), CONTROL, "a")


def test_an_undefined_value_is_flagged_and_one_replicate_raises():
    result = contrast(TREATMENT.where(TREATMENT.index != 2))
    assert result.flag == UNDEFINED and math.isnan(result.estimate) and result.n == 5
    with pytest.raises(ValueError, match="1 replicate"):
        contrast(TREATMENT.iloc[:1], CONTROL.iloc[:1])


def test_holm_by_hand():
    """Sorted p 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, then never falling: 0.04, 0.06, 0.06, 0.06."""
    base = contrast()
    family = [replace(base, p=p) for p in (0.03, 0.01, math.nan, 0.04, 0.02)]
    corrected = [result.p_corrected for result in with_holm(family)]
    assert corrected == pytest.approx([0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True)
    assert with_holm([]) == []


def test_intervals_cover_at_their_level():
    draws, truth = 2000, -0.03
    differences = np.random.default_rng(1).normal(truth, 0.04, (draws, 5))
    for confidence in (0.95, 0.90):
        intervals = [t_interval(sample, confidence) for sample in differences]
        covered = np.mean([interval.low <= truth <= interval.high for interval in intervals])
        assert abs(covered - confidence) < 3.5 * math.sqrt(confidence * (1 - confidence) / draws)


def metrics_rows(values, metric="forgetting", **keys):
    rows = [
        {
            "arm": "D1", "topology": "", "algorithm": "", "density": 1.0, "method": "full", "order": "main", "stage_steps": 100,
            "base": str(seed), "seed": seed, "domain": "", "kind": "all", "metric": metric, "value": value, **keys,
        }
        for seed, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_summary_table():
    table = pd.concat([metrics_rows([0.1, 0.2, 0.3]), metrics_rows([0.5, math.nan], "retention"), metrics_rows([0.2, 0.4], arm="S1-2of4")])
    summary = statistics.summary_table(table).set_index(["arm", "metric"])
    row = summary.loc[("D1", "forgetting")]
    assert (row["mean"], row["sd"], row["n"]) == pytest.approx((0.2, 0.1, 3))
    assert row["ci_high"] - row["mean"] == pytest.approx(4.302652729749464 * 0.1 / math.sqrt(3))
    assert math.isnan(summary.loc[("D1", "retention"), "mean"]) and summary.loc[("D1", "retention"), "n"] == 2
    assert summary.loc[("S1-2of4", "forgetting"), "mean"] == pytest.approx(0.3)
    reread = statistics.summary_table(table.assign(domain=math.nan))
    assert (reread["domain"] == "").all() and reread["mean"].notna().any(), "an empty domain comes back from a CSV file as NaN"
    with pytest.raises(ValueError, match="repeat"):
        statistics.summary_table(pd.concat([table, table]))
    single = statistics.summary_table(metrics_rows([0.3])).iloc[0]
    assert single["mean"] == 0.3 and single["n"] == 1 and math.isnan(single["sd"]) and math.isnan(single["ci_low"])


def test_metric_by_seed_refuses_a_mixture_of_runs():
    table = pd.concat([metrics_rows([0.1, 0.2]), metrics_rows([0.3, 0.4], stage_steps=200)])
    with pytest.raises(ValueError, match=r"stage_steps.*100, 200"):
        statistics.metric_by_seed(table, "D1", "forgetting")
    assert statistics.metric_by_seed(table, "Dnz-0.5", "forgetting").empty


KEPT = {"D1": 0.5, "S1-2of4": 0.7}  # share of the items known after the own stage that is still known at the end


def planted_items(seeds=6, per_cell=60, domains=("code", "math", "legal"), seed=0):
    """Items of a stream in which an item known after its own stage is forgotten with a planted probability."""
    generator, rows = np.random.default_rng(seed), []
    for replicate in range(seeds):
        for stage, domain in enumerate(domains, start=1):
            for kind in ("ability", "fact"):
                for item in range(per_cell):
                    known, luck = generator.random() < 0.9, generator.random()
                    for arm, kept in KEPT.items():
                        head = {"arm": arm, "method": "full", "order": "main", "stage_steps": 100, "seed": replicate}
                        head |= {"domain": domain, "kind": kind, "item": item, "nll": 1.0}
                        rows.append({**head, "stage": stage, "correct": known})
                        if stage < len(domains):
                            rows.append({**head, "stage": len(domains), "correct": known and luck < kept})
    return pd.DataFrame(rows)


def metrics_of(items, gain=0.0):
    """BWT from the items and forgetting = gain - BWT, so that an earlier peak adds `gain`."""
    ends = items.sort_values("stage").groupby(["arm", "seed", "domain", "kind", "item"])["correct"].agg(["first", "last", "size"])
    ends = ends[ends["size"] == 2]
    fall = (
        (ends["first"].astype(float) - ends["last"].astype(float))
        .groupby(["arm", "seed", "domain", "kind"])
        .mean()
        .groupby(["arm", "seed"])
        .mean()
    )
    tables = []
    for arm, falls in fall.groupby("arm"):
        shift = gain if arm == "S1-2of4" else 0.0
        tables += [metrics_rows(falls + shift, arm=arm), metrics_rows(-falls, "bwt", arm=arm)]
    return pd.concat(tables)


def test_bootstrap_reproduces_the_estimate_and_finds_the_planted_difference():
    items = planted_items()
    metrics = metrics_of(items, gain=0.02)
    forgetting = [statistics.metric_by_seed(metrics, arm, "forgetting") for arm in ("S1-2of4", "D1")]
    estimate, low, high = bootstrap_forgetting(items, metrics, "S1-2of4", "D1", draws=500)
    assert estimate == pytest.approx((forgetting[0] - forgetting[1]).mean(), abs=1e-12)
    planted = 0.02 - 0.9 * 0.2  # items known after the own stage, times what is kept more
    assert low < planted < high < 0
    assert bootstrap_forgetting(items, metrics, "S1-2of4", "D1", draws=500) == (estimate, low, high)


def test_bootstrap_spread_holds_both_replicates_and_items():
    """Without spread between replicates and with one value an item, all that is left is 0; more items narrow it."""
    few, many = (planted_items(per_cell=count) for count in (15, 120))
    widths = []
    for items in (few, many):
        _, low, high = bootstrap_forgetting(items, metrics_of(items), "S1-2of4", "D1", draws=500)
        widths.append(high - low)
    assert widths[1] < 0.6 * widths[0]
    certain = few.assign(correct=True)
    assert bootstrap_forgetting(certain, metrics_of(certain), "S1-2of4", "D1", draws=100) == (0, 0, 0)


def test_bootstrap_names_items_that_one_arm_lacks():
    items = planted_items(seeds=2, per_cell=5)
    metrics = metrics_of(items)
    with pytest.raises(ValueError, match="not there at own and last stage in both arms"):
        bootstrap_forgetting(items.drop(index=items[items["arm"] == "D1"].index[0]), metrics, "S1-2of4", "D1")
    with pytest.raises(ValueError, match="same seeds"):
        bootstrap_forgetting(items, metrics[metrics["seed"] == 0], "S1-2of4", "D1")


def curve_cells(seeds=6, interaction=0.0, seed=2):
    generator = np.random.default_rng(seed)
    rows = [
        {"seed": s, "topology": t, "stage": k, "value": 0.1 * k + interaction * k * i + generator.normal(0, 0.01)}
        for s in range(seeds)
        for i, t in enumerate(("2of4", "4of8"))
        for k in (2, 3, 4, 5)
    ]
    return pd.DataFrame(rows)


def test_anova_finds_a_planted_interaction_and_nothing_at_its_level():
    planted = anova.topology_by_stage_anova(curve_cells(interaction=0.02)).set_index("Source")
    assert planted.loc["topology * stage", "p_GG_corr"] < 0.01
    assert planted.loc["topology * stage", ["ddof1", "ddof2"]].tolist() == [3, 15], "all 6 replicates are in"
    nothing = [anova.topology_by_stage_anova(curve_cells(seed=seed)).set_index("Source")["p_GG_corr"] for seed in range(25)]
    found = np.mean([p["topology * stage"] < 0.05 for p in nothing])
    assert found <= 0.05 + 3.5 * math.sqrt(0.05 * 0.95 / 25)
    assert all(p["stage"] < 1e-4 for p in nothing)


@pytest.mark.parametrize("damage", ["missing", "empty", "twice"])
def test_anova_refuses_incomplete_cells(damage):
    cells = curve_cells()
    wrong = {
        "missing": cells.drop(index=9),
        "empty": cells.assign(value=cells["value"].where(cells.index != 9)),
        "twice": pd.concat([cells, cells.loc[[9]]]),
    }
    with pytest.raises(ValueError, match="seed 1, 2of4, stage 3: [02]"):
        anova.topology_by_stage_anova(wrong[damage].reset_index(drop=True))


def scores(curves_by_arm, seeds):
    """accuracy.csv of streams over three domains in which the first falls by F_2 and both by F_3 on average."""
    rows = []
    for arm, topology, curve in curves_by_arm:
        for seed in seeds[arm]:
            f2, f3 = curve[0] + seed / 100, curve[1] + seed / 100
            matrix = [[0.1, 0.1, 0.1], [0.9, 0.1, 0.1], [0.9 - f2, 0.8, 0.1], [0.9 - f3, 0.8 - f3, 0.7]]
            for stage, row in enumerate(matrix):
                head = {"arm": arm, "topology": topology, "algorithm": "", "density": 0.5, "method": "full", "order": "main"}
                head |= {"stage_steps": 100, "base": "0", "seed": seed, "stage": stage, "stage_domain": ["", "a", "b", "c"][stage]}
                rows += [
                    {**head, "domain": d, "kind": "all", "score": value, "n": 9, "nll": 1.0} for d, value in zip("abc", row, strict=True)
                ]
    return pd.DataFrame(rows)


def test_forgetting_curves_from_scores():
    planted = [("S1-2of4", "2of4", (0.2, 0.4)), ("S1-4of8", "4of8", (0.1, 0.3)), ("D1", "", (0.5, 0.6))]
    table = scores(planted, {"S1-2of4": range(3), "S1-4of8": range(2), "D1": range(3)})
    decoys = table.assign(order="williams-2", score=0.5)
    curves = anova.forgetting_curves(pd.concat([table, decoys]).sample(frac=1, random_state=0), ["S1-2of4", "S1-4of8"])
    assert list(curves) == ["seed", "topology", "stage", "value"]
    assert sorted(set(curves["seed"])) == [0, 1], "replicates that every topology ran"
    values = curves.set_index(["topology", "seed", "stage"])["value"].to_dict()
    assert values[("2of4", 1, 2)] == pytest.approx(0.21) and values[("2of4", 1, 3)] == pytest.approx(0.41)
    assert values[("4of8", 0, 2)] == pytest.approx(0.1) and len(values) == 8
    with pytest.raises(MissingMeasurement, match=r"\['S1-block32'\] went through no stream"):
        anova.forgetting_curves(table, ["S1-2of4", "S1-block32"])


def test_anova_effects_are_holm_corrected_over_the_two():
    topology, interaction = anova.anova_effects(curve_cells(interaction=0.02))
    assert (topology.source, interaction.source) == ("topology", "topology * stage") and topology.n == 6
    small, large = sorted((topology, interaction), key=lambda effect: effect.p)
    assert small.p_corrected == pytest.approx(2 * small.p) and large.p_corrected >= large.p
    assert (interaction.df, interaction.df_error) == (3, 15) and 0 < interaction.eta_squared < 1


def test_planned_replicates_is_the_smallest_number_with_power_at_the_margin():
    def power(n, effect):
        critical = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(critical, n - 1, effect * math.sqrt(n)) + stats.nct.cdf(-critical, n - 1, effect * math.sqrt(n))

    for sd in (0.02, 0.05, 0.5):
        n = planning.planned_replicates(sd, margin=0.05)
        assert power(n, 0.05 / sd) >= 0.9 > power(n - 1, 0.05 / sd)
    assert planning.planned_replicates(0.05, 0.05) == 13  # G*Power: dz = 1, two-sided 0.05, power 0.9
    for sd, message in ((0.0, "above 0"), (100.0, "wider margin")):
        with pytest.raises(ValueError, match=message):
            planning.planned_replicates(sd, 0.05)


def test_upper_limit_of_a_spread_covers_at_its_level():
    samples = np.random.default_rng(3).normal(0, 0.04, (4000, 5)).std(axis=1, ddof=1)
    covered = np.mean([planning.upper_sd(sd, 5) >= 0.04 for sd in samples])
    assert abs(covered - 0.8) < 3.5 * math.sqrt(0.16 / 4000)


def test_one_sample_is_the_paired_contrast_of_the_same_differences():
    generator = np.random.default_rng(11)
    x, y = (pd.Series(generator.normal(0.5, 0.05, 7)) for _ in range(2))
    paired, single = (
        f(margin=0.05) for f in (lambda **k: paired_contrast(x, y, "a", "m", **k), lambda **k: contrast_with_zero(x - y, "a", "m", **k))
    )
    for field in ("estimate", "sd", "low", "high", "equivalence_low", "equivalence_high", "p", "p_equivalence", "n", "margin"):
        assert getattr(single, field) == pytest.approx(getattr(paired, field)), field
    assert math.isnan(single.effect), "one sample has no second spread"
    assert math.isnan(contrast_with_zero(x - y, "a", "m").p_equivalence)


@pytest.mark.parametrize(
    ("values", "flag", "n"), [([], TOO_FEW, 0), ([0.1], TOO_FEW, 1), ([0.1, math.nan], UNDEFINED, 2), ([-1.0, -1.0, -1.0], NO_VARIANCE, 3)]
)
def test_one_sample_without_a_test_says_why(values, flag, n):
    found = contrast_with_zero(np.array(values), "a", "m", margin=0.1)
    assert found.flag == flag and found.n == n and math.isnan(found.p) and math.isnan(found.low)
    assert found.estimate == -1 if flag == NO_VARIANCE else math.isnan(found.estimate)
