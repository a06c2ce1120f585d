"""The paper's numbers and tables about controls, frontier, orders, methods, doses and efficiency, recomputed by other routes."""

import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from example_streams import example_streams
from example_tables import DOMAINS, example_tables
from scipy import stats
from test_publication import TEXT, keys_in

from sparsecl import paper_arms, paper_tables, paper_tables_streams, paper_verdicts, verdict
from sparsecl.anova import anova_effects, forgetting_curves
from sparsecl.arms import parse_arm
from sparsecl.decision import Verdict
from sparsecl.number_formats import count, nats, points
from sparsecl.paper_samples import contrast_test, main_metrics
from sparsecl.paper_values import part_values, registered_keys
from sparsecl.paper_values_design import learning_rates_of
from sparsecl.paper_values_efficiency import stream_effort
from sparsecl.paper_values_methods import method_values
from sparsecl.paper_values_streams import crossover_values, frontier_values, order_values
from sparsecl.planned_contrasts import hypothesis_contrasts
from sparsecl.preregistration import load_preregistration
from sparsecl.publication import PAPER, values_tex
from sparsecl.study_files import load_study

REPLICATES, FURTHER = 6, 3
REGISTRATION = load_preregistration("builtin-full")
STATEMENTS = {name: hypothesis.statement for name, hypothesis in REGISTRATION.hypotheses.items()}
STREAM_TABLES = {
    "controls", "stream_topologies", "doses", "frontier", "orders", "methods", "efficiency", "fractions", "kernels", "verdicts",
}  # fmt: skip


@pytest.fixture(scope="module")
def study():
    return load_study("builtin-full")


@pytest.fixture(scope="module")
def tables():
    made = example_streams(REPLICATES, FURTHER)
    tests = verdict.tests_table(made["metrics"], REGISTRATION, None, made["accuracy"])  # the bootstrap over items takes its time
    return {**made, "tests": tests}


@pytest.fixture(scope="module")
def verdicts(tables):
    return verdict.compute_verdicts(tables["metrics"], REGISTRATION, tables["accuracy"])


@pytest.fixture(scope="module")
def values(study, tables, verdicts):
    return part_values(study, tables, verdicts, {"margin": "5.0", "alpha": "0.05", "status": "registered"}, STATEMENTS)


@pytest.fixture(scope="module")
def made(study, tables, verdicts):
    return paper_tables.part_tables(study, tables, None, verdicts, STATEMENTS)


def run_of(tables, arm, metric, method="full", order="main", steps=100):
    """One run's values by replicate, read with plain comparisons."""
    keys = {"arm": arm, "metric": metric, "method": method, "order": order, "stage_steps": steps, "kind": "all", "domain": ""}
    rows = tables["metrics"]
    for name, value in keys.items():
        rows = rows[rows[name] == value]
    return rows.set_index("seed")["value"].sort_index()


def interval_of(values):
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - half, np.mean(values) + half


def assert_difference(values, prefix, differences):
    """Estimate, interval and n under a key, from the differences by replicate."""
    low, high = interval_of(differences)
    expected = (points(np.mean(differences), True), points(low, True), points(high, True), count(len(differences)))
    assert tuple(values[f"{prefix}/{name}"] for name in ("estimate", "ci_low", "ci_high", "n")) == expected


# The text


def test_all_values_that_the_text_needs_are_measured_by_a_full_study(values):
    needed = {key.removeprefix("main/") for key in keys_in(TEXT) if key.startswith("main/")}
    absent_values = {name for name in needed if values.get(name) is None}
    constant = {f"general_retention/S1-2of4-minus-D1/{end}" for end in ("ci_low", "ci_high")}  # does not vary in the example
    assert absent_values <= constant | {"verdict/missing_controls"}, "all controls were run"


def test_every_table_of_the_text_is_made(made):
    assert set(re.findall(r"\\papertable{main/(\w+)}", TEXT)) <= set(made)


# Keys


def test_every_value_has_a_registered_key(values):
    assert len(registered_keys("main")) == len(set(registered_keys("main")))
    text = values_tex("main", values)  # refuses a key that is not registered
    assert text.count(r"\definevalue") == sum(value is not None for value in values.values())


@pytest.mark.parametrize(
    "name",
    [
        "joint_efficiency_executed/Dnz-0.5/mean", "own/S1-2of4-b0.5/sd", "forgetting/S1-2of4-minus-Dcut-0.5/p_holm",
        "retention/Sf-2of4-minus-D1/tost_p", "forgetting/S1-4of8-minus-S1-block32/p_holm", "own-fact/S1-2of4-minus-Dnz-0.5/estimate",
        "verdict/H3/anova/interaction/epsilon", "verdict/H2/statement", "frontier/S1-2of4-minus-Dnz-0.5/final/range_low",
        "frontier/reversals/D1", "crossover/S1-2of4-minus-D1/equal_seconds/estimate", "orders/S1-2of4-minus-D1/final/order/variance",
        "orders/agreement/forgetting/same_direction", "methods/lora-minus-full/S1-2of4/final/estimate", "methods/ewc/learning_rate",
        "methods/single/D1/own/mean", "methods/joint/S1-2of4/acc/mean", "doses/S1-6of8/own/mean",
        "budgets/S1-2of4-b2-minus-D1-b2/forgetting/estimate", "efficiency/Sf-2of4/flops_attainable",
        "efficiency/retention_per_flop_theoretical/S1-2of4-minus-Df-0.5/estimate", "attainable/block32/weight_gradient",
        "inference/S1-block32/bsr/throughput/measured", "design/further/frontier/stage_steps", "design/further/orders/orders",
    ],
)  # fmt: skip
def test_a_full_study_measures_what_the_paper_speaks_of(values, name):
    assert values[name]


def test_arms_of_the_paper_are_arms_of_the_full_study(study):
    made = {arm.name for arm in study.all_arms()}
    assert set(paper_arms.ARMS) <= made
    assert {arm for pair in paper_arms.CONTRASTS for arm in pair} <= made
    assert {arm for pair in paper_arms.BUDGETS.values() for arm in pair} <= set(paper_arms.ARMS)


# Which test a contrast shows


def statements_of(*statements):
    rows = [(name, "S1-2of4 - D1", "forgetting", n / 100, n, n, n / 10, n / 5, n, 5, "") for n, name in enumerate(statements, start=1)]
    return pd.DataFrame(
        rows, columns=["hypothesis", "contrast", "metric", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect", "n", "status"]
    )


@pytest.mark.parametrize(
    ("statements", "estimate", "tost"),
    [
        (("H1 beside", "H1 beside equivalence", "H2", "H2 equivalence"), 0.03, 0.4),  # what decides, and its own equivalence
        (("controls", "H2 beside", "H2 equivalence"), 0.02, None),  # beside a hypothesis; the equivalence is of another statement
        (("H1", "H1 equivalence", "H2", "H2 equivalence"), 0.01, 0.2),  # the first of two that decide
        (("controls", "topologies"), 0.01, None),
        (("H1 bootstrap", "beside"), 0.02, None),
        (("H1 bootstrap",), None, None),
    ],
)
def test_one_statement_gives_all_numbers_of_a_contrast(statements, estimate, tost):
    found = contrast_test(statements_of(*statements), "S1-2of4", "D1", "forgetting")
    assert found.get("estimate") == estimate and found.get("tost_p") == tost
    assert "bootstrap_low" not in found


def test_the_bootstrap_is_that_of_the_statement():
    found = contrast_test(statements_of("H1", "beside", "H1 bootstrap"), "S1-2of4", "D1", "forgetting")
    assert found["bootstrap_low"] == 3 and found["p_holm"] == 0.2


def test_registered_contrasts_show_their_own_tests(values, tables):
    """S1 - D1 in retention stands beside H2, with H2's margin; S1 - Df in retention decides H2."""
    tests = tables["tests"].set_index(["hypothesis", "contrast", "metric"])
    for statement, pair, metric in (
        ("H2 beside", "S1-2of4 - D1", "retention"),
        ("H2", "S1-2of4 - Df-0.5", "retention"),
        ("H3", "S1-2of4 - S1-block32", "forgetting"),
        ("H1 beside", "Dg-2of4 - D1", "final"),
        ("controls", "S1-2of4 - Dcut-0.5", "own"),
    ):
        prefix, row = f"{metric}/{pair.replace(' - ', '-minus-')}", tests.loc[(statement, pair, metric)]
        assert values[f"{prefix}/estimate"] == points(row["estimate"], True)
        assert values[f"{prefix}/n"] == count(row["n"])
        tost = (f"{statement} equivalence", pair, metric)
        assert (values.get(f"{prefix}/tost_p") is not None) == (tost in tests.index)


# Controls


def test_arms_by_replicate(values, tables):
    own = run_of(tables, "Dnz-0.5", "own")
    assert len(own) == REPLICATES
    assert values["own/Dnz-0.5/mean"] == points(own.mean()) and values["own/Dnz-0.5/sd"] == points(own.std(ddof=1))
    speed = run_of(tables, "Df-0.5", "learning_speed", steps=60)  # its own stage length
    assert values["learning_speed/Df-0.5/mean"] == points(speed.mean())
    dcut = run_of(tables, "S1-2of4", "forgetting") - run_of(tables, "Dcut-0.5", "forgetting")
    assert_difference(values, "forgetting/S1-2of4-minus-Dcut-0.5", dcut.dropna())


def test_the_controls_table_says_what_the_values_say(made, values):
    lines = [[cell.strip() for cell in line.removesuffix(r"\\").split(" & ")] for line in made["controls"].splitlines()]
    at = next(number for number, line in enumerate(lines) if line[0] == parse_arm("Df-0.5").label)
    upper, lower = lines[at], lines[at + 1]
    prefix = "forgetting/S1-2of4-minus-Df-0.5"
    assert upper[2] == values["own/Df-0.5/mean"] and lower[2] == f"({values['own/Df-0.5/sd']})"
    assert upper[5] == values[f"{prefix}/estimate"] and lower[5] == f"[{values[f'{prefix}/ci_low']}, {values[f'{prefix}/ci_high']}]"
    assert upper[6] == values[f"{prefix}/p_holm"].replace("= ", "")
    untested = next(line for line in lines if line[0] == "D0")
    assert untested[6] == "--" and untested[5] != "--", "an interval without a test has no p"


# Frontier


def test_the_frontier_by_a_fine_grid(values, tables):
    """Piecewise linear curves of forgetting over own, read on a fine grid of the common range."""
    curves = {}
    for arm in ("D1", "S1-2of4"):
        lengths = [(run_of(tables, arm, "own", steps=n), run_of(tables, arm, "forgetting", steps=n)) for n in (25, 50, 100, 200)]
        for seed in range(FURTHER):
            curves[arm, seed] = np.array(sorted((own[seed], forgotten[seed]) for own, forgotten in lengths)).T
    differences, lows = [], []
    for seed in range(FURTHER):
        (x, y), (u, v) = curves["S1-2of4", seed], curves["D1", seed]
        grid = np.linspace(max(x[0], u[0]), min(x[-1], u[-1]), 20001)
        differences.append((np.interp(grid, x, y) - np.interp(grid, u, v)).mean())
        lows.append(grid[0])
    prefix = "frontier/S1-2of4-minus-D1/forgetting"
    assert float(values[f"{prefix}/estimate"].replace("$-$", "-")) == pytest.approx(100 * np.mean(differences), abs=0.06)
    assert values[f"{prefix}/range_low"] == points(np.mean(lows))
    assert (values[f"{prefix}/n"], values[f"{prefix}/absent"], values["frontier/replicates"]) == ("3", "0", "3")
    steps = run_of(tables, "S1-2of4", "forgetting") - run_of(tables, "D1", "forgetting")
    assert values[f"{prefix}/equal_steps"] == points(steps[:FURTHER].mean(), True), "of the same replicates"


def test_replicates_without_a_common_range_are_counted(tables):
    metrics = tables["metrics"].copy()
    own = (metrics["metric"] == "own") & (metrics["arm"] == "D1") & (metrics["seed"] < 2) & (metrics["domain"] == "")
    metrics.loc[own, "value"] += 10
    found = frontier_values(metrics, 100)
    prefix = "frontier/S1-2of4-minus-D1/final"
    assert (found[f"{prefix}/n"], found[f"{prefix}/absent"]) == ("1", "2")
    assert found[f"{prefix}/estimate"] and found[f"{prefix}/ci_low"] is None
    metrics.loc[own | ((metrics["metric"] == "own") & (metrics["arm"] == "D1") & (metrics["domain"] == "")), "value"] += 10
    none = frontier_values(metrics, 100)
    assert none[f"{prefix}/n"] == "0" and none[f"{prefix}/estimate"] is None and none[f"{prefix}/range_low"] is None
    row = next(line for line in paper_tables_streams.frontier_table(metrics, 100).splitlines() if "D1 & final" in line)
    assert row.endswith(r"-- & -- & 0 of 3 \\")


# Crossover


def test_a_crossover_that_most_replicates_lack_is_absent(tables):
    lower = tables["curves"].copy()
    lower.loc[lower["arm"] == "S1-2of4", "score"] -= 0.5
    found = crossover_values({**tables, "curves": lower}, 100)
    prefix = "crossover/S1-2of4-minus-D1"
    assert (found[f"{prefix}/replicates"], found[f"{prefix}/censored"], found[f"{prefix}/from_start"]) == ("6", "6", "0")
    assert found[f"{prefix}/median"] is None and found[f"{prefix}/on_mean_curve"] is None
    assert found[f"{prefix}/end"] == "500"


def test_the_difference_at_equal_seconds(values, tables):
    """The faster arm's whole stream, and the slower one's curve at that second, by hand."""

    def curve(arm, seed):
        rows = tables["curves"].query("arm == @arm and seed == @seed and kind == 'all' and method == 'full' and stage_steps == 100")
        rows = rows[(rows["step"] > 0) | (rows["stage"] == 1)]
        return rows.groupby((rows["stage"] - 1) * 100 + rows["step"])["score"].mean()

    timings = tables["timings"].query("job == '03_continual' and method == 'full'")
    total = {arm: timings.loc[timings["arm"] == arm, "wall_s"].median() for arm in ("D1", "S1-2of4")}
    assert total["S1-2of4"] > total["D1"]
    reached = 500 * total["D1"] / total["S1-2of4"]
    differences = []
    for seed in range(REPLICATES):
        sparse = curve("S1-2of4", seed)
        differences.append(np.interp(reached, sparse.index, sparse) - curve("D1", seed).iloc[-1])
    prefix = "crossover/S1-2of4-minus-D1/equal_seconds"
    assert_difference(values, prefix, np.array(differences))
    assert values[f"{prefix}/seconds"] == f"{total['D1']:.1f}"


# Orders


def test_variance_components_of_the_contrast(values, tables):
    orders = ["main", *(f"williams-{number}" for number in range(2, 11))]
    cells = np.array([(run_of(tables, "S1-2of4", "final", order=o) - run_of(tables, "D1", "final", order=o))[:FURTHER] for o in orders]).T
    seeds, count_of_orders = cells.shape
    assert (values["orders/seeds"], values["orders/orders"]) == (str(seeds), str(count_of_orders)) == ("3", "10")
    frame = pd.DataFrame(cells)
    residual = frame.sub(frame.mean(axis=1), axis=0).sub(frame.mean(axis=0), axis=1) + cells.mean()
    rest = (residual**2).to_numpy().sum() / ((seeds - 1) * (count_of_orders - 1))
    of_order = frame.mean(axis=0).var(ddof=1) - rest / seeds
    prefix = "orders/S1-2of4-minus-D1/final"
    assert values[f"{prefix}/residual/variance"] == points(100 * rest) and values[f"{prefix}/residual/sd"] == points(math.sqrt(rest))
    assert values[f"{prefix}/order/variance"] == points(100 * of_order)
    assert (values[f"{prefix}/order/sd"] is None) == (of_order <= 0)


def test_a_component_that_is_not_positive_has_no_standard_deviation(tables):
    """Seeds alternate along the orders, so that the orders' own means agree better than chance lets them."""
    metrics = tables["metrics"].copy()
    cells = (metrics["metric"] == "forgetting") & (metrics["arm"] == "D1") & (metrics["domain"] == "") & (metrics["kind"] == "all")
    number = metrics["order"].map({"main": 1, **{f"williams-{n}": n for n in range(2, 11)}})
    metrics.loc[cells, "value"] = 0.2 + 0.03 * np.cos(2 * np.pi * (metrics["seed"] + number) / 3)
    found = order_values(metrics, 100)
    assert found["orders/D1/forgetting/order/sd"] is None
    assert found["orders/D1/forgetting/order/variance"].startswith("$-$")
    row = next(line for line in paper_tables_streams.orders_table(metrics, 100).splitlines() if line.startswith("D1 &"))
    assert row.split(" & ")[1] == "--" and row.split(" & ")[2].startswith("$-$")


# Methods, references, doses


def test_methods_are_compared_over_the_same_replicates(values, tables):
    full, lora = (run_of(tables, "D1", "final", method=method) for method in ("full", "lora"))
    assert len(full) == REPLICATES and len(lora) == FURTHER
    assert values["methods/full/D1/final/mean"] == points(full[:FURTHER].mean()) and values["methods/replicates"] == "3"
    assert_difference(values, "methods/lora-minus-full/D1/final", lora - full[:FURTHER])
    sparse = run_of(tables, "S1-2of4", "own", method="replay") - run_of(tables, "D1", "own", method="replay")
    assert_difference(values, "methods/replay/S1-2of4-minus-D1/own", sparse)


def test_references_cover_the_domains_that_can_be_forgotten(values, tables):
    accuracy = tables["accuracy"].query("arm == 'D1' and kind == 'all' and stage == 1")
    accuracy = accuracy[accuracy["domain"].isin(DOMAINS[:-1])]
    alone = accuracy[(accuracy["method"] == "single") & (accuracy["stage_domain"] == accuracy["domain"])]
    assert values["methods/single/D1/own/mean"] == points(alone.groupby("seed")["score"].mean().mean())
    assert alone.groupby("seed").size().tolist() == [4] * FURTHER
    mixed = accuracy[accuracy["method"] == "joint"]
    assert values["methods/joint/D1/final/mean"] == points(mixed.groupby("seed")["score"].mean().mean())
    assert values["methods/joint/D1/acc/mean"] == points(run_of(tables, "D1", "acc", method="joint", order="joint", steps=500).mean())
    assert "methods/single/D1/final/mean" not in values


def test_a_reference_that_lacks_a_domain_is_absent(study, tables):
    metrics = tables["metrics"]
    gap = (metrics["order"] == "single-math") & (metrics["arm"] == "D1")
    found = method_values(study, {"metrics": metrics[~gap]}, main_metrics(metrics, 100))
    assert found.get("methods/single/D1/own/mean") is None and found.get("methods/lora/D1/own/mean") is None


def test_learning_rates_are_those_of_their_method(study, tables, values):
    rates = {"full": "0.002", "lora": "0.004", "ewc": "0.001"}
    for method, rate in rates.items():
        assert set(learning_rates_of(tables["learning_rate"], study, method).values()) == {float(rate)}
    assert values["learning_rate/D1"] == values["methods/full/learning_rate"] != values["methods/lora/learning_rate"]


def test_doses_are_compared_over_the_replicates_that_ran_them_all(values, tables):
    own = run_of(tables, "S1-2of4", "own")
    assert values["own/S1-2of4/n"] == "6" and values["doses/S1-2of4/own/n"] == "3"
    assert values["doses/S1-2of4/own/mean"] == points(own[:FURTHER].mean())
    twice = run_of(tables, "S1-2of4-b2", "forgetting") - run_of(tables, "D1-b2", "forgetting")
    assert_difference(values, "budgets/S1-2of4-b2-minus-D1-b2/forgetting", twice)


# Efficiency


def test_attainable_flops_by_hand(study, tables):
    """2:4 saves half of one product of three, blocks of 32 half of all three; other patterns and dense arms nothing."""
    cost, linear = tables["cost"].copy(), 2 * sum(rows * inputs for rows, inputs in study.model.linear_shapes().values())
    cost["flops_dense"] = 10**12
    effort = stream_effort(study, {"cost": cost}).groupby("arm")[["tokens", "flops_attainable"]].first()
    saved = (10**12 - effort["flops_attainable"]) / (2 * effort["tokens"] * linear)
    expected = {"S1-2of4": 0.5, "S1-block32": 1.5, "S1-4of8": 0, "S1-unstructured": 0, "D1": 0, "Dnz-0.5": 0, "Dg-2of4": 0}
    assert saved[list(expected)].to_dict() == pytest.approx(expected)


def test_theory_and_attainable_agree_with_the_counts_of_training(study):
    from sparsecl.flops import Consumption, attainable_weights, kept_weights, same, training_flops
    from sparsecl.topologies import parse_topology

    used, topology = Consumption(tokens=60000, pairs=9 * 10**5, predicted=20000), parse_topology("block32")
    kept, part = same(kept_weights(study.model, topology, 0.5)), attainable_weights(study.model, topology, 0.5)
    dense, theory, attained = (training_flops(study.model, 768, used, weights).total for weights in (None, kept, part))
    row = {
        "arm": "S1-block32",
        "method": "full",
        "seed": 0,
        "job": "03_continual",
        "tokens": 60000,
        "flops_dense": dense,
        "flops_sparse": theory,
    }
    assert stream_effort(study, {"cost": pd.DataFrame([row])})["flops_attainable"].tolist() == [attained]


def test_throughput_and_memory_are_medians_of_the_main_stream(values, tables):
    cost, timings = (tables[name].query("arm == 'D1' and method == 'full' and job == '03_continual'") for name in ("cost", "timings"))
    speed = cost.set_index("seed")["tokens"] / timings.set_index("seed")["wall_s"]
    assert values["efficiency/D1/tokens_per_second"] == count(speed.median())
    assert values["efficiency/D1/tokens_per_second_low"] == count(speed.min())
    assert values["efficiency/D1/peak_memory"] == count(timings["peak_memory_bytes"].median() / 1e6)


def test_retention_per_flop(values, tables):
    gained = run_of(tables, "S1-2of4", "retention") - run_of(tables, "Df-0.5", "retention", steps=60)
    spent = tables["cost"].query("arm == 'S1-2of4' and method == 'full' and job == '03_continual'").set_index("seed")["flops_sparse"]
    assert_difference(values, "efficiency/retention_per_flop_theoretical/S1-2of4-minus-Df-0.5", gained / spent * 1e12)


def test_attainable_shares(values):
    shares = [values[f"attainable/{name}/{product}"] for name in ("2of4", "block32", "4of8") for product in ("forward", "input_gradient")]
    assert shares == ["50.0", "0.0", "50.0", "50.0", "0.0", "0.0"]
    assert values["attainable/6of8/kept"] == "75.0"


def test_gains_at_inference(values, tables, made):
    rows = tables["inference"].query("arm == 'S1-block32' and stack == 'bsr' and rows == 8")["gain_measured"]
    prefix = "inference/S1-block32/bsr/throughput"
    found = [values[f"{prefix}/{name}"] for name in ("measured", "low", "high", "kernel", "n")]
    assert found == [nats(np.median(rows)), nats(rows.min()), nats(rows.max()), "yes", "6"]
    prefix = "inference/S1-2of4/semi-structured/latency"
    assert (values[f"{prefix}/kernel"], values[f"{prefix}/n"], values[f"{prefix}/measured"]) == ("no", "0", None)
    assert values[f"{prefix}/theoretical"], "a gain in theory needs no kernel"
    assert (values["inference/throughput/rows"], values["inference/throughput/tokens"]) == ("8", "32")
    row = next(line for line in made["kernels"].splitlines() if line.startswith("2:4 & 2:4 format"))
    assert row.count("no kernel") == 2


# Verdicts


def test_the_anova_of_h3(values, tables):
    effects = anova_effects(forgetting_curves(tables["accuracy"], ("S1-2of4", "S1-4of8", "S1-block32")))
    topology = effects[0]
    assert values["verdict/H3/anova/topology/f"] == nats(topology.f) and values["verdict/H3/anova/topology/df"] == "2"
    assert values["verdict/H3/anova/interaction/df_error"] == "30" and values["verdict/H3/anova/interaction/n"] == "6"
    assert values["verdict/H3/anova/topology/epsilon"] == nats(topology.epsilon)
    assert "verdict/H1/anova/topology/f" not in values
    assert values["verdict/H3/statement"] == STATEMENTS["H3"] and values["verdict/statement"] == STATEMENTS["H1"].strip()


def test_the_verdicts_table_holds_every_deciding_number(made, verdicts):
    lines = made["verdicts"].splitlines()
    for found_verdict in verdicts.values():
        for contrast in found_verdict.contrasts:
            treatment, reference = (parse_arm(name).label for name in contrast.name.split(" - "))
            found = [line for line in lines if line.startswith(f"{treatment} $-$ {reference} & {contrast.metric.split('_')[0]}")]
            assert any(f"& {points(contrast.estimate, True)} [{points(contrast.low, True)}, " in line for line in found)
    assert sum("(ANOVA)" in line for line in lines) == 2
    assert r"\textbf{H1, undecided.}" in made["verdicts"], "6 replicates are not the 20 that were registered"


def test_outcomes_have_their_words(tables):
    contrasts = tuple(hypothesis_contrasts(tables["metrics"], REGISTRATION, REGISTRATION.hypotheses["H1"]))
    decided = {"H1": Verdict("A", "supported", ("x -1.0",), contrasts), "H2": Verdict("none", "no verdict", (), contrasts[:1])}
    text = paper_verdicts.verdicts_table(decided, {"H1": "50% less_or so."})
    assert r"\textbf{H1, outcome A.} 50\% less\_or so." in text and r"\textbf{H2, no verdict.}" in text
    assert paper_verdicts.verdicts_table({}, {}) is None


# What was not measured


def absent(values, part="main"):
    return {key for key in registered_keys(part) if values.get(key.removeprefix(f"{part}/")) is None}


def test_a_smaller_study_leaves_dashes(values):
    study, tables = load_study("builtin"), example_tables(replicates=3)
    smaller = part_values(study, tables)
    for prefix in (
        "frontier",
        "orders",
        "methods/lora/D1",
        "methods/lora/S1-2of4",
        "doses",
        "budgets",
        "inference",
        "verdict",
        "own/Dnz-0.5",
    ):
        assert not [key for key, value in smaller.items() if key.startswith(prefix) and value is not None], prefix
    assert smaller["crossover/S1-2of4-minus-D1/replicates"] == "3" and smaller["own/D1/mean"]
    assert set(paper_tables.part_tables(study, tables)) & STREAM_TABLES == {"efficiency", "fractions"}
    assert len(absent(values)) < len(absent(smaller))


def test_further_streams_of_one_replicate_have_no_intervals(study):
    """As in the smoke study: a variance over one seed, an interval over one replicate, are absent."""
    tables = example_streams(2, 1)
    found = part_values(study, tables)
    assert found["frontier/S1-2of4-minus-D1/final/n"] == "1" and found["frontier/S1-2of4-minus-D1/final/ci_low"] is None
    assert found["own/Dcut-0.5/mean"] and found["own/Dcut-0.5/sd"] is None and found["methods/lora/D1/own/ci_low"] is None
    assert not [key for key in found if key.startswith("orders/")]
    made = paper_tables.part_tables(study, tables)
    assert "orders" not in made and {"controls", "methods", "frontier"} <= set(made)
    assert not re.search(r"\bnan\b|\binf\b|None", "".join(made.values()))


@pytest.mark.parametrize("missing", [("cost", "timings", "inference"), ("curves", "accuracy", "learning_rate", "tests", "conversion")])
def test_tables_may_be_missing(study, tables, values, missing):
    rest = {name: table for name, table in tables.items() if name not in missing}
    found = part_values(study, rest)
    assert found["own/D1/mean"] == values["own/D1/mean"]
    assert len(absent(values)) < len(absent(found))
    assert paper_tables.part_tables(study, rest)["controls"]


def test_a_topology_alone_is_no_dose(tables):
    main = main_metrics(tables["metrics"], 100)
    usual = main[main["arm"].isin(["D1", "S1-2of4", "S1-unstructured", "S1-4of8"])]
    assert paper_tables_streams.doses_table(usual) is None and paper_tables_streams.doses_table(main)
    assert paper_tables_streams.controls_table(usual, tables["tests"]) is None
    assert paper_tables_streams.stream_topologies_table(usual, tables["tests"])


def test_metrics_of_losses_alone_have_no_frontier(study, tables):
    losses = tables["metrics"][tables["metrics"]["metric"].str.startswith("loss_")]
    found = part_values(study, {"metrics": losses})
    assert found["loss_own/D1/mean"]
    assert not [key for key in found if key.startswith(("frontier", "orders", "methods/single"))]
    paper_tables.part_tables(study, {"metrics": losses})


# Tables


def test_all_tables_are_made_with_equally_many_cells_in_every_row(made):
    assert set(made) >= STREAM_TABLES
    for name in STREAM_TABLES:
        rows = [line for line in made[name].splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert len({row.count(" & ") for row in rows}) == 1, name
        assert not re.search(r"\bnan\b|\binf\b|None|(?<!\\)%", made[name]), name


@pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")
def test_every_table_fits_the_width_of_the_text(made, values, tmp_path):
    """At the size and spacing in which the paper sets tables; any that is too wide leaves an overfull box."""
    head = (PAPER / "main.tex").read_text().split(r"\input{build.tex}")[0]
    shutil.copy(PAPER / "preamble.tex", tmp_path)
    (tmp_path / "main" / "tables").mkdir(parents=True)
    for name, text in made.items():
        (tmp_path / "main" / "tables" / f"{name}.tex").write_text(text)
    body = "".join(rf"\begin{{table}}\centering\papertable{{main/{name}}}\end{{table}}\clearpage" for name in made)
    (tmp_path / "main.tex").write_text(rf"{head}\paperofrecordfalse\def\studyname{{x}}\begin{{document}}{body}\end{{document}}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert finished.returncode == 0, finished.stdout[-2000:]
    assert "Overfull" not in (tmp_path / "main.log").read_text(errors="replace")
