"""The rules of the verdicts one by one, the way from scores to verdicts, and the table of tests."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sparsecl import verdict
from sparsecl.anova import INTERACTION, TOPOLOGY, Effect
from sparsecl.metrics import metrics_table
from sparsecl.paired_decision import decide
from sparsecl.preregistration import exploratory_analysis, load_preregistration
from sparsecl.statistics import Contrast, with_holm
from sparsecl.topology_decision import decide_topologies


def at_five(registration):
    """The pilot's rules for contrasts of five replicates, as many as are made here."""
    hypothesis = registration.hypotheses["H1"]
    contrasts = tuple(contrast.model_copy(update={"replicates": None}) for contrast in hypothesis.contrasts)
    return registration.model_copy(update={"hypotheses": {"H1": hypothesis.model_copy(update={"replicates": 5, "contrasts": contrasts})}})


PILOT = at_five(load_preregistration("builtin"))
REGISTERED = load_preregistration("builtin-full")
H1, H2, H3 = PILOT.hypotheses["H1"], REGISTERED.hypotheses["H2"], REGISTERED.hypotheses["H3"]
STRICT = ("Dnz-0.5", "Df-0.5")
CONTROLS = ("D1", *STRICT)


def planned(metric, estimate, error, control="D1", n=5, treatment="S1-2of4", margin=0.05):
    """A contrast with a given estimate and standard error."""
    p = 2 * stats.t.sf(abs(estimate / error), n - 1)
    wide, narrow = stats.t.ppf([0.975, 0.95], n - 1) * error
    tost = max(stats.t.sf((estimate + margin) / error, n - 1), stats.t.cdf((estimate - margin) / error, n - 1))
    bounds = (estimate - wide, estimate + wide, estimate - narrow, estimate + narrow)
    return Contrast(f"{treatment} - {control}", metric, estimate, error * math.sqrt(n), *bounds, p, tost, 0.5, n)


def decided(*contrasts, hypothesis=H1):
    return decide(with_holm(list(contrasts)), hypothesis)


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
    assert "D1: forgets less, but perhaps keeps less" in decided(*pairs(-0.1, 0.0, error=0.03)).sentence


def test_an_interval_inside_the_margin_is_b_even_where_it_excludes_zero():
    result = decided(*pairs(-0.02, 0.0, error=0.005))
    assert result.contrasts[0].p < 0.05 and result.letter == "B"
    assert decided(*pairs(-0.02, 0.0, ("D1",), error=0.005)).letter == "B", "B is against the main control"


def test_c_under_one_strict_control_is_enough_and_is_corrected():
    mixed = [*pairs(-0.1, 0.02, ("D1", "Df-0.5")), *pairs(0.1, -0.02, ("Dnz-0.5",))]
    result = decided(*mixed)
    assert result.letter == "C" and "dense better: Dnz-0.5" in result.sentence
    borderline = [*pairs(0.0, 0.0, ("D1", "Df-0.5"), error=0.05), *pairs(0.0, 0.0, ("Dnz-0.5",), error=0.02)]
    borderline[4] = planned("forgetting", 0.065, 0.02, "Dnz-0.5")
    assert borderline[4].p < 0.05 and decided(*borderline).letter == "undecided", "one of six tests at p = 0.03 is expected by chance"


def test_what_keeps_a_control_from_a_and_from_c_is_said():
    """A control that forgets less and keeps less is not better; one that forgets alike and keeps less is not level."""
    trade = decided(*pairs(-0.1, 0.02, ("D1", "Dnz-0.5")), *pairs(0.2, 0.1, ("Df-0.5",)))
    assert trade.letter == "undecided" and "Df-0.5: forgets more, but keeps more" in trade.sentence
    alike = decided(*pairs(-0.1, 0.02, ("D1", "Df-0.5")), *pairs(-0.005, 0.1, ("Dnz-0.5",), error=0.01))
    assert alike.letter == "undecided" and "Dnz-0.5: forgetting lies within the margin, but keeps more" in alike.sentence


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
    assert result.letter == "undecided" and "S1-2of4 - D1 has 4 replicates where exactly 5 were registered" in result.sentence


def test_no_margin_no_verdict():
    hypothesis = exploratory_analysis("realtext", measure="loss").leading
    result = decided(planned("loss_forgetting", -0.4, 0.1), planned("loss_final", -0.1, 0.1), hypothesis=hypothesis)
    assert result.letter == "none" and result.sentence.startswith("no verdict")


def test_contrasts_without_variance_or_main_control():
    flat = [
        replace(c, sd=0.0, p=math.nan, p_equivalence=math.nan, low=math.nan, high=math.nan, flag="no variance") for c in pairs(0.0, 0.0)
    ]
    result = decided(*flat)
    assert result.letter == "undecided" and "D1: no test (no variance)" in result.sentence
    with pytest.raises(ValueError, match="S1-2of4 - D1 lacks"):
        decided(*pairs(0.0, 0.0, STRICT))


def efficiency(retention, speed, strict=None):
    """H2's contrasts: the main one with 20 replicates, the strict one with 5."""
    strict = (retention, speed) if strict is None else strict
    both = [("S1-2of4", "Df-0.5", 20, (retention, speed)), ("Sf-2of4", "D1", 5, strict)]
    return [
        planned(metric, value, error, control, n, treatment, margin)
        for treatment, control, n, values in both
        for metric, value, error, margin in zip(("retention", "learning_speed"), values, (0.01, 0.004), (0.05, 0.025), strict=True)
    ]


def test_h2_reads_higher_as_better_and_each_metric_by_its_own_margin():
    assert decided(*efficiency(0.1, 0.0), hypothesis=H2).letter == "A"
    assert decided(*efficiency(-0.1, 0.0), hypothesis=H2).letter == "C"
    slower = decided(*efficiency(0.1, -0.04), hypothesis=H2)
    assert slower.letter == "undecided" and "Df-0.5: retains more, and learns slower" in slower.sentence
    assert decided(*efficiency(0.01, 0.01), hypothesis=H2).letter == "B"
    assert decided(*efficiency(0.01, 0.02), hypothesis=H2).letter == "undecided", "0.02 is within the margin of retention, not of speed"


def test_h2_needs_the_reverse_contrast_which_has_replicates_of_its_own():
    shared = decided(*efficiency(0.1, 0.0, strict=(0.0, 0.0)), hypothesis=H2)
    assert shared.letter == "C" and "under the strict control: Sf-2of4 - D1" in shared.sentence
    alone = decided(*efficiency(0.1, 0.0)[:2], hypothesis=H2)
    assert alone.letter == "undecided" and alone.missing_controls == ("Sf-2of4",)
    everywhere = decided(*(replace(contrast, n=20) for contrast in efficiency(0.1, 0.0)), hypothesis=H2)
    assert everywhere.letter == "undecided" and "Sf-2of4 - D1 has 20 replicates where exactly 5 were registered" in everywhere.sentence


def effects(p_topology=0.001, p_interaction=0.5, n=20):
    sources = ((TOPOLOGY, p_topology), (INTERACTION, p_interaction))
    return [Effect(source, 9.0, 2, 38, 0.9, p, 0.1, n, p_corrected=p) for source, p in sources]


def topologies(*estimates, error=0.01, n=20, anova=None):
    pairs = zip(H3.pairs, estimates, strict=True)
    contrasts = [planned("forgetting", value, error, pair.control, n, pair.treatment) for pair, value in pairs]
    return decide_topologies(effects() if anova is None else anova, with_holm(contrasts), H3)


def test_h3_needs_both_the_anova_and_a_pair():
    found = topologies(0.0, -0.07, -0.07)
    assert found.letter == "A" and "S1-2of4 - S1-block32: forgetting -7.0" in found.sentence and "S1-4of8: forgetting" not in found.sentence
    assert topologies(0.0, 0.07, 0.07).letter == "A", "a difference in either direction supports H3"
    assert topologies(0.0, -0.07, -0.07, anova=effects(0.5, 0.001)).letter == "A", "the interaction is enough"
    curves = topologies(0.0, -0.07, -0.07, anova=effects(0.2, 0.5))
    assert curves.letter == "undecided" and "a pair differs, but the curves are not shown to" in curves.sentence
    assert curves.planned_replicates and curves.missing_controls == ()
    assert topologies(0.0, -0.05, -0.05, error=0.03).letter == "undecided"


def test_h3_pairs_within_the_margin_are_b_even_where_the_anova_and_a_pair_are_significant():
    found = topologies(0.0, -0.02, -0.02, error=0.005)
    assert min(contrast.p_corrected for contrast in found.contrasts) < 0.05 and found.letter == "B"


def test_h3_insists_on_every_pair_and_on_the_registered_replicates():
    assert "19 replicates where exactly 20" in topologies(0.0, -0.07, -0.07, n=19).sentence
    assert "the curves have 19 replicates" in topologies(0.0, -0.07, -0.07, anova=effects(n=19)).sentence
    with pytest.raises(ValueError, match="S1-4of8 - S1-block32"):
        decide_topologies(effects(), [planned("forgetting", 0.1, 0.01, pair.control, 20, pair.treatment) for pair in H3.pairs[:2]], H3)


def test_h3_where_nothing_varies():
    still = [replace(effect, f=math.nan, p=math.nan, p_corrected=math.nan) for effect in effects()]
    assert topologies(0.0, -0.07, -0.07, anova=still).letter == "undecided"


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
    result = verdict.compute_verdicts(metrics_frame(), PILOT)["H1"]
    assert result.missing_controls == STRICT and {c.metric for c in result.contrasts} == {"forgetting", "final"}
    assert verdict.compute_verdicts(metrics_frame(arms=("D1", "S1-2of4", *STRICT)), PILOT)["H1"].missing_controls == ()


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


DOMAINS = ("code", "math", "medical", "legal", "dialogue")
# Share of a score that each stage after a domain's own takes away, twice at most.
LOSSES = {"D1": 0.32, "Dnz-0.5": 0.32, "Df-0.5": 0.32, "S1-2of4": 0.25, "Sf-2of4": 0.25, "S1-4of8": 0.25, "S1-block32": 0.31}
STEPS = {"Df-0.5": 60, "Sf-2of4": 160}  # as many as cost equal FLOPs


def stream_rows(generator, arm, seed, loss, steps, order="main"):
    """Accuracy and curve rows of one stream that lifts every domain from 0.1 to 0.8."""
    topology = arm.split("-")[1] if arm.startswith("S") else ""
    head = {"arm": arm, "topology": topology, "algorithm": "", "density": 1.0, "method": "full", "order": order, "stage_steps": steps}
    head |= {"base": str(seed), "seed": seed, "kind": "all", "n": 192}
    accuracy, curves = [], []
    for stage in range(len(DOMAINS) + 1):
        for position, domain in enumerate(DOMAINS, start=1):
            score = 0.8 - loss * min(stage - position, 2) if stage >= position else 0.1
            cell = {**head, "stage": stage, "stage_domain": DOMAINS[stage - 1] if stage else "", "domain": domain}
            accuracy.append({**cell, "score": score + generator.normal(0, 0.02), "nll": 2 - score + generator.normal(0, 0.02)})
            if stage == position:
                points = ((round(steps * part), 0.1 + 0.7 * part + generator.normal(0, 0.01)) for part in (0.5, 1.0))
                curves += [{**cell, "step": step, "score": value, "nll": 2 - value} for step, value in points]
    return accuracy, curves


@pytest.fixture(scope="module")
def study():
    """Metrics and accuracy of 20 replicates (5 of Sf), with decoys of the opposite truth: a shorter stage and another order."""
    generator = np.random.default_rng(6)
    arms = [(arm, loss, STEPS.get(arm, 100), "main", 5 if arm == "Sf-2of4" else 20) for arm, loss in LOSSES.items()]
    arms += [(arm, 0.6 - LOSSES[arm], steps, order, 5) for arm in ("D1", "S1-2of4") for steps, order in ((50, "main"), (100, "williams-2"))]
    streams = [stream_rows(generator, arm, seed, loss, steps, order) for arm, loss, steps, order, count in arms for seed in range(count)]
    accuracy, curves = (pd.DataFrame([row for stream in streams for row in stream[i]]) for i in (0, 1))
    return metrics_table(accuracy, curves), accuracy


def test_from_scores_to_verdicts(study):
    verdicts = verdict.compute_verdicts(study[0], REGISTERED, study[1])
    assert {name: found.letter for name, found in verdicts.items()} == {"H1": "A", "H2": "A", "H3": "A"}, verdicts
    forgetting = verdicts["H1"].contrasts[0]
    planted = (0.25 - 0.32) * (2 + 2 + 2 + 1) / 4  # of the four domains that can be forgotten the last has seen one stage since
    assert forgetting.low < planted < forgetting.high and forgetting.n == 20
    assert [contrast.n for contrast in verdicts["H2"].contrasts] == [20, 20, 5, 5]
    assert [effect.n for effect in verdicts["H3"].effects] == [20, 20]


def test_the_order_of_the_rows_changes_no_verdict_and_a_lost_replicate_decides_nothing(study):
    shuffled = verdict.compute_verdicts(study[0].sample(frac=1, random_state=0), REGISTERED, study[1].sample(frac=1, random_state=0))
    assert [found.letter for found in shuffled.values()] == ["A", "A", "A"]
    fewer = verdict.compute_verdicts(study[0][study[0]["seed"] != 19], REGISTERED, study[1][study[1]["seed"] != 19])
    assert [found.letter for found in fewer.values()] == ["undecided"] * 3
    assert all("19 replicates where exactly 20 were registered" in found.sentence for found in fewer.values())


def test_table_of_tests_of_all_hypotheses(study):
    table = verdict.tests_table(study[0], REGISTERED, accuracy=study[1])
    assert list(table) == verdict.TESTS_COLUMNS and not table.duplicated(["hypothesis", "contrast", "metric"]).any()
    registered = table["hypothesis"].str.startswith("H")
    tested = ["H1", "H2", "H2 beside", "H3"]
    assert set(table.loc[registered, "hypothesis"]) == {*tested, *(f"{name} equivalence" for name in tested), "H3 anova"}
    assert set(table.loc[registered, "status"]) == {"registered"} and set(table.loc[~registered, "status"]) == {"exploratory"}
    anova = table[table["hypothesis"] == "H3 anova"].set_index("contrast")
    assert list(anova.index) == [TOPOLOGY, INTERACTION] and set(anova["metric"]) == {"forgetting_by_stage"}
    assert anova["ci_low"].isna().all() and (anova["p_corrected"] >= anova["p"]).all() and anova["effect"].between(0, 1).all()
    assert table.loc[table["hypothesis"] == "H3", "metric"].tolist() == ["forgetting"] * 3
    pairs = [set(zip(rows["contrast"], rows["metric"], strict=True)) for rows in (table[registered], table[~registered])]
    assert not pairs[0] & pairs[1], "families do not repeat what a hypothesis tests"
