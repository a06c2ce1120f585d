"""Verdicts on methods (H5A, H5B): runs by arm and method, planted better methods, and the trap of learning less."""

import itertools

import numpy as np
import pandas as pd
import pytest
from example_ladder import probes
from example_runs import BETTER, RUNS, STAGE_STEPS, metrics_of
from scipy import stats

from sparsecl import verdict
from sparsecl.equal_own import equal_own_contrasts
from sparsecl.frontier import compare_frontiers, frontier_points
from sparsecl.paper_values_scale import scale_names, scale_values
from sparsecl.paper_verdicts import verdict_names, verdict_values, verdicts_table
from sparsecl.planned_contrasts import hypothesis_contrasts
from sparsecl.preregistration import load_preregistration, planned_analysis
from sparsecl.protocol import of_runs, run_names, run_parts
from sparsecl.study_files import load_study

REGISTERED = load_preregistration("builtin-implicit")
H5A = REGISTERED.hypotheses["H5A"]
MASKS = REGISTERED.model_copy(update={"hypotheses": {"H5A": H5A}})


def verdict_of(metrics, registration=MASKS):
    return verdict.compute_verdicts(metrics, registration, stage_steps=STAGE_STEPS)["H5A"]


# Runs.


def test_a_run_is_an_arm_and_a_method():
    assert run_parts("D1") == ("D1", "full") and run_parts("S1-2of4:lora") == ("S1-2of4", "lora")
    frame = pd.DataFrame({"arm": ["D1", "D1", "S1-2of4"], "method": ["full", "lora", "osf"]})
    assert run_names(frame).tolist() == ["D1", "D1:lora", "S1-2of4:osf"]


def test_rows_of_runs_are_those_of_their_method_order_and_main_length():
    metrics = metrics_of()
    decoys = [metrics.assign(order="repeat", value=9.0), metrics[metrics["method"] == "full"].assign(method="ewc", value=9.0)]
    runs = of_runs(pd.concat([metrics, *decoys]), ["D1", "D1:lora", "D1:osf"], STAGE_STEPS)
    assert set(runs["arm"]) == {"D1", "D1:lora"} and set(runs["stage_steps"]) == {STAGE_STEPS}
    assert (runs["value"] < 2).all() and runs.groupby(["arm", "metric"])["seed"].nunique().eq(5).all()


def test_the_study_s_own_stage_length_tells_equally_frequent_ones_apart():
    metrics = metrics_of(frontier=5)
    with pytest.raises(ValueError, match="do not say which is the main one"):
        verdict.compute_verdicts(metrics, MASKS)
    forgetting = hypothesis_contrasts(metrics, MASKS, H5A, STAGE_STEPS)[0]
    at = metrics[(metrics["stage_steps"] == STAGE_STEPS) & (metrics["metric"] == "forgetting")].pivot(
        index="seed", columns="method", values="value"
    )
    assert forgetting.name == "D1:activation-mask - D1" and forgetting.n == 5
    assert forgetting.estimate == pytest.approx((at["activation-mask"] - at["full"]).mean())
    test = stats.ttest_rel(at["activation-mask"], at["full"])
    assert forgetting.p == pytest.approx(test.pvalue)


def test_frontiers_of_methods_stand_beside_those_of_arms():
    metrics = metrics_of(noise=0.0)
    assert set(frontier_points(metrics)["arm"]) == {"D1"}, "figures of the main protocol see full fine-tuning alone"
    points = frontier_points(metrics, methods=("full", "lora", "activation-mask"))
    assert set(points["arm"]) == set(RUNS) and set(points["seed"]) == {0, 1, 2, 3}
    assert compare_frontiers(points, "D1:lora", "D1").interval.mean == pytest.approx(0, abs=1e-12)
    assert compare_frontiers(points, "D1:activation-mask", "D1").interval.mean == pytest.approx(-BETTER)


# Verdicts.


def test_a_planted_better_method_is_a():
    result = verdict_of(metrics_of())
    assert result.letter == "A", result.sentence
    assert result.headline == "supported: activation mask forgets less, and in no comparison keeps less beyond the margin"
    assert "against full fine-tuning: forgetting" in result.sentence and "against LoRA: forgetting" in result.sentence
    assert "at equal own: forgetting -1" in result.sentence and not result.missing_controls


def test_a_method_that_only_learns_less_is_not_a():
    """It wins every contrast at equal steps: it forgets less, by far, and keeps no less. At equal own it wins nothing."""
    metrics = metrics_of({"D1": (1.0, 0.0), "D1:lora": (1.6, 0.0), "D1:activation-mask": (2.6, 0.0)})
    alone = MASKS.model_copy(update={"hypotheses": {"H5A": H5A.model_copy(update={"at_equal_own": None})}})
    assert verdict_of(metrics, alone).letter == "A", "the trap"
    result = verdict_of(metrics)
    assert result.letter == "undecided" and "not shown to be better where as much is learned" in result.sentence


def test_only_learning_less_is_called_a_at_most_at_the_nominal_rate():
    draws, called = 100, 0
    for seed in range(draws):
        metrics = metrics_of({"D1": (1.0, 0.0), "D1:activation-mask": (2.0, 0.0)}, noise=0.02, seed=seed)
        found = equal_own_contrasts(metrics, REGISTERED, H5A)["D1:activation-mask - D1", "forgetting"]
        called += found.n == 4 and found.high < 0
    assert called / draws <= stats.binom.ppf(0.999, draws, 0.025) / draws


def test_intervals_at_equal_own_cover_the_planted_shift():
    draws, covered = 100, 0
    for seed in range(draws):
        metrics = metrics_of({"D1": (1.0, 0.0), "D1:activation-mask": (1.3, 0.1)}, noise=0.01, seed=seed)
        found = equal_own_contrasts(metrics, REGISTERED, H5A)["D1:activation-mask - D1", "forgetting"]
        covered += found.low <= -0.1 <= found.high
    assert abs(covered / draws - 0.95) <= 3.5 * np.sqrt(0.95 * 0.05 / draws)


def test_without_a_common_range_in_every_replicate_there_is_no_a():
    metrics = metrics_of()
    apart = (metrics["method"] == "activation-mask") & (metrics["seed"] == 3) & (metrics["metric"] == "own")
    metrics.loc[apart, "value"] -= 0.9
    result = verdict_of(metrics)
    assert result.letter == "undecided" and "no comparison at equal own (no common range of own in 1 of 4 replicates)" in result.sentence


def test_without_several_stage_lengths_there_is_no_a():
    result = verdict_of(metrics_of(lengths=(STAGE_STEPS,)))
    assert result.letter == "undecided" and "D1:activation-mask and D1 did not both run several stage lengths" in result.sentence
    fewer = verdict_of(metrics_of(frontier=3))
    assert fewer.letter == "undecided" and "3 replicates where exactly 4 were registered" in fewer.sentence


def test_the_other_letters_of_a_method():
    worse = verdict_of(metrics_of({**RUNS, "D1:activation-mask": (1.0, -0.15)}))
    assert worse.letter == "C" and worse.sentence.startswith("refuted: a control does better")
    assert "a control better: full fine-tuning, LoRA" in worse.sentence
    shared = verdict_of(metrics_of({**RUNS, "D1:lora": (1.3, BETTER)}))
    assert shared.letter == "C" and "a control at or above activation mask under the strict control: LoRA" in shared.sentence
    alike = verdict_of(metrics_of({run: (1.0, 0.0) for run in RUNS}, noise=0.003))
    assert alike.letter == "B" and alike.headline == "equivalent: activation mask and full fine-tuning differ by less than the margin"
    alone = verdict_of(metrics_of({run: RUNS[run] for run in ("D1", "D1:activation-mask")}))
    assert alone.letter == "undecided" and alone.missing_controls == ("D1:lora",)


# The study's whole analysis.


@pytest.fixture(scope="module")
def study():
    """metrics.csv of every run that the registration names, items of two of them, and the probes."""
    contrasts = [c for name in ("H5A", "H5B") for c in REGISTERED.hypotheses[name].contrasts]
    contrasts += [c for family in REGISTERED.families.values() for c in family.contrasts]
    runs = {run: (1.2, 0.0) for contrast in contrasts for run in (contrast.treatment, contrast.control)}
    runs |= {"D1": (1.0, 0.0), "D1:activation-mask": (1.3, BETTER), "D1:orthogonal-lora": (1.6, 0.0)}
    metrics = metrics_of(runs)
    bwt = metrics[metrics["metric"] == "forgetting"].assign(metric="bwt", value=lambda rows: -rows["value"])
    return pd.concat([metrics, bwt]), item_rows(("D1", "D1:activation-mask")), probes(-0.04, 0.0, noise=0.01)


def item_rows(runs):
    generator, rows = np.random.default_rng(4), []
    for run, seed, domain, item in itertools.product(runs, range(5), ("code", "math"), range(40)):
        arm, method = run_parts(run)
        keys = {"arm": arm, "method": method, "order": "main", "stage_steps": STAGE_STEPS, "seed": seed}
        own, last = (1, 4) if domain == "code" else (2, 4)
        for stage, share in ((own, 0.8), (last, 0.5 if run == "D1" else 0.7)):
            cell = {"stage": stage, "domain": domain, "kind": "ability", "item": str(item), "correct": generator.random() < share}
            rows.append({**keys, **cell, "nll": 1.0})
    return pd.DataFrame(rows)


def test_verdicts_on_all_hypotheses(study):
    metrics, _, tables = study
    found = verdict.compute_verdicts(metrics, REGISTERED, probes=tables, stage_steps=STAGE_STEPS)
    assert {name: result.letter for name, result in found.items()} == {"H4": "undecided", "H5A": "A", "H5B": "undecided"}, found


def test_table_of_tests(study):
    metrics, items, tables = study
    table = verdict.tests_table(metrics, REGISTERED, items, probes=tables, stage_steps=STAGE_STEPS)
    assert not table.duplicated(["hypothesis", "contrast", "metric"]).any()
    by = table.groupby("hypothesis")
    assert {"H4", "H4 equivalence", "H4 beside", "H5A", "H5A equivalence", "H5A beside", "H5A at equal own", "H5A bootstrap"} <= set(
        by.groups
    )
    assert set(by.get_group("H4")["metric"]) == {"normalised_overlap", "disattenuated_cosine"} and set(by.get_group("H4")["n"]) == {5}
    assert set(by.get_group("H5A")["contrast"]) == {"D1:activation-mask - D1", "D1:activation-mask - D1:lora"}
    equal = by.get_group("H5A at equal own").set_index(["contrast", "metric"])["status"]
    assert equal["D1:activation-mask - D1", "forgetting"] == "registered" and (equal == "registered").sum() == 1
    assert "D1:activation-mask - D1:activation-mask-random" in equal.index.get_level_values("contrast")
    boot = by.get_group("H5A bootstrap").iloc[0]
    assert boot["contrast"] == "D1:activation-mask - D1" and boot["ci_low"] < boot["estimate"] < boot["ci_high"]
    pairs = set(zip(table["contrast"], table["metric"], strict=True))
    assert {("S1-2of4:activation-mask - S1-2of4", "forgetting"), ("D1:osf - D1", "own")} <= pairs


def test_what_the_paper_prints(study):
    metrics, items, tables = study
    verdicts = verdict.compute_verdicts(metrics, REGISTERED, probes=tables, stage_steps=STAGE_STEPS)
    statements = {name: hypothesis.statement for name, hypothesis in REGISTERED.hypotheses.items()}
    values = verdict_values(verdicts, statements)
    assert set(verdict_names("implicit")) <= set(values) and values["verdict/H5A/letter"] == "A"
    text = verdicts_table(verdicts, statements)
    assert r"\textbf{H5A, outcome A.}" in text and "D1 activation mask $-$ D1 LoRA & forgetting & 5" in text
    assert "per doubling of width & normalised overlap & 5" in text
    tests = verdict.tests_table(metrics, REGISTERED, items, probes=tables, stage_steps=STAGE_STEPS)
    main = {name: REGISTERED.hypotheses[name].main.name for name in ("H5A", "H5B")}
    printed = scale_values(tests, main)
    absent = [key for key in scale_names() if printed.get(key) is None]
    assert not absent and set(printed) <= set(scale_names()), (absent, set(printed) - set(scale_names()))
    assert printed["scale/trivial_cosine/slope/estimate"] == "$-$1.00" and printed["equal_own/H5A/forgetting/n"] == "4"
    assert scale_values(pd.DataFrame(), main) == {}, "what was not tested has no value"


def test_a_study_without_sparse_arms_and_registration_holds_methods_against_full_fine_tuning():
    analysis = planned_analysis(load_study("builtin-moe"))
    assert analysis.status == "exploratory" and analysis.leading.main.control == "D1"
    assert {contrast.treatment for contrast in analysis.leading.contrasts} >= {"D1:lora", "D1:activation-mask"}
    assert planned_analysis(load_study("realtext")).leading.main.name == "S1-2of4 - D1"
