"""Sizes of a study and its verdicts as the paper prints them, a second time: from the tables and the parsed registration alone.

For `test_recomputation`. Nothing here imports `sparsecl`. Further streams are told by an arm, a method or an order that only they have.
"""

import math
from collections.abc import Mapping, Sequence

import pandas as pd
from recomputation import Run, main_runs, rows, run_of
from recomputation_conversions import algorithms
from recomputation_methods import MEASURES
from recomputation_printed import (
    DASH,
    Cell,
    Number,
    Numbers,
    Row,
    contrast_label,
    difference_cell,
    differences,
    mean_sd,
    number_cell,
    p_cell,
)
from recomputation_statistics import Values, anova, curves_of_forgetting, difference, verdicts
from scipy import stats

PAIR = ("D1", "S1-2of4")
# Runs by which the tables tell the sets of further streams: arms, and methods or orders.
FURTHER = {
    "controls": ({"D0", "S0-2of4"}, {"full"}), "topologies": ({"S1-block16", "S1-block64"}, {"full"}), "doses": ({"S1-6of8"}, {"full"}),
    "budgets": ({"D1-b2", "S1-2of4-b2"}, {"full"}), "frontier": ({*PAIR, "Dnz-0.5"}, {"full"}), "orders": ({*PAIR}, {"full"}),
    "methods": ({*PAIR}, {"lora", "replay", "ewc"}), "references": ({*PAIR}, {"single", "joint"}),
}  # fmt: skip


# Sizes


def sizes(tables: Mapping[str, pd.DataFrame]) -> Numbers:
    """How many replicates, bases, domains, items and steps."""
    accuracy = tables["accuracy"]
    columns = [*Run._fields, "base"]
    bases = {run_of(row): row.base for row in rows(tables["metrics"][columns].drop_duplicates())}
    main = {run for run in main_runs(list(bases)) if run.arm == "D1"}
    order = domains(accuracy)
    rates = sorted({float(rate) for rate in tables["learning_rate"]["learning_rate"]})
    counts = {"replicates": len(main), "bases": len({bases[run] for run in main}), "domains": len(order)}
    counts |= {"stage_steps": max(run.stage_steps for run in main), "comparison_replicates": len(algorithms(tables["conversion"]).seeds)}
    counts |= {"test_items": items(accuracy, "ability", order), "general_items": items(accuracy, "all", ["general"])}
    counts |= {"curve_items": items(tables["curves"], "ability", order)}
    found: Numbers = {f"design/{name}": Number(value, "count") for name, value in counts.items()}
    found["design/domain_list"] = r" $\rightarrow$ ".join(order)
    found["design/learning_rate_grid"] = Cell(", ".join(["{}"] * len(rates)), tuple(Number(rate, "rate") for rate in rates))
    found["design/top_fraction"] = Number(max(map(float, tables["overlap"]["top_fraction"])), "points")
    return found | further(list(bases))


def domains(accuracy: pd.DataFrame) -> list[str]:
    """In the order of the main stream."""
    stages = accuracy[(accuracy["method"] == "full") & (accuracy["order"] == "main") & (accuracy["stage"] > 0)]
    found = {row.stage: row.stage_domain for row in rows(stages[["stage", "stage_domain"]].drop_duplicates())}
    return [found[stage] for stage in sorted(found)]


def items(table: pd.DataFrame, kind: str, of: Sequence[str]) -> int:
    """How many items of a kind a domain has; the same number in all of them."""
    counts = set(table.loc[(table["kind"] == kind) & table["domain"].isin(of), "n"])
    assert len(counts) == 1, f"{of}, {kind}: {counts}"
    return int(counts.pop())


def further(runs: Sequence[Run]) -> Numbers:
    """Of every set of further streams the replicates, the stage lengths of the main order, and the orders."""
    found: Numbers = {}
    usual = max(run.stage_steps for run in main_runs(runs) if run.arm == "D1")
    for name, (arms, methods) in FURTHER.items():
        chosen = [run for run in runs if run.arm in arms and run.method in methods]
        if name == "frontier":
            chosen = [run for run in chosen if run.order == "main" and run.stage_steps != usual]
        if name == "orders":
            chosen = [run for run in chosen if run.order != "main"]
        if not chosen:
            continue
        lengths = sorted({usual, *(run.stage_steps for run in chosen if run.method != "joint")})
        orders = {"main", *(run.order for run in chosen if run.method == "full")}
        prefix = f"design/further/{name}"
        found[f"{prefix}/replicates"] = Number(len({run.seed for run in chosen}), "count")
        found[f"{prefix}/stage_steps"] = Cell(", ".join(["{}"] * len(lengths)), tuple(Number(steps, "count") for steps in lengths))
        found[f"{prefix}/orders"] = Number(len(orders), "count")
    return found


def domains_table(metrics: pd.DataFrame, accuracy: pd.DataFrame) -> list[Row]:
    """Own, final and forgetting of every domain by arm; the last domain has its score after the last stage only."""
    chosen = metrics[metrics["arm"].isin(PAIR) & (metrics["kind"] == "all") & (metrics["domain"] != "")]
    listed = [(run_of(row), row) for row in rows(chosen)]
    main = main_runs([run for run, _ in listed])
    order, found = domains(accuracy), []
    for domain in order:
        cells: Row = []
        for metric in ("own", "final", "forgetting"):
            for arm in PAIR:
                of = [row.value for run, row in listed if run in main and (run.arm, row.domain, row.metric) == (arm, domain, metric)]
                cells.append(mean_sd(of, "points"))
        found.append([domain, *cells])
    last = accuracy[(accuracy["stage"] == len(order)) & (accuracy["domain"] == order[-1]) & (accuracy["kind"] == "all")]
    scores = [(run_of(row), row.score) for row in rows(last)]
    found[-1][1:3] = [mean_sd([score for run, score in scores if run in main and run.arm == arm], "points") for arm in PAIR]
    return found


# Verdicts


def deciding(hypothesis: Mapping) -> list[tuple[tuple[str, str], dict]]:
    """Contrasts that decide a hypothesis, each with a metric."""
    if "arms" in hypothesis:
        arms = hypothesis["arms"]
        return [((a, b), hypothesis["forgetting"]) for place, a in enumerate(arms) for b in arms[place + 1 :]]
    pairs = [(c["treatment"], c["control"]) for role in ("main", "strict") for c in hypothesis["contrasts"] if c.get("role") == role]
    return [(pair, hypothesis[place]) for pair in pairs for place in ("improved", "not_worse")]


def verdict_numbers(values: Values, tables: Mapping[str, pd.DataFrame], registration: Mapping) -> Numbers:
    """Letters, replicates to plan where a verdict is open, and the effects of the analysis of variance."""
    found: Numbers = {}
    letters = verdicts(tables["metrics"], tables["accuracy"], registration)
    for name, hypothesis in registration["hypotheses"].items():
        numbers: Numbers = {"letter": letters[name]}
        if letters[name] == "undecided":
            numbers["planned_replicates"] = Number(planned(values, hypothesis), "count")
        if "arms" in hypothesis:
            numbers |= anova_numbers(tables["accuracy"], hypothesis["arms"])
        found |= {f"verdict/{name}/{key}": number for key, number in numbers.items()}
    first = next(iter(registration["hypotheses"]))
    return found | {f"verdict/{key.split('/')[-1]}": number for key, number in found.items() if key.count("/") == 2 and f"/{first}/" in key}


def anova_numbers(accuracy: pd.DataFrame, arms: Sequence[str]) -> Numbers:
    table, found = anova(curves_of_forgetting(accuracy, arms)), {}
    for place, effect in enumerate(("topology", "interaction")):
        degrees = table.degrees[place]
        numbers = {"f": Number(table.f[place], "nats"), "epsilon": Number(table.epsilon[place], "nats")}
        numbers |= {"ges": Number(table.eta[place], "nats"), "p": Number(table.p[place], "p_value"), "n": Number(table.n, "count")}
        numbers |= {"p_holm": Number(table.corrected[place], "p_value"), "df": Number(degrees, "count")}
        numbers["df_error"] = Number(degrees * (table.n - 1), "count")
        found |= {f"anova/{effect}/{key}": number for key, number in numbers.items()}
    return found


def planned(values: Values, hypothesis: Mapping) -> int:
    """Replicates with which a paired t-test has power 0.9 at each margin, spreads taken at their upper 80 % limit."""
    widest = 0.0
    for pair, metric in deciding(hypothesis):
        found = difference(values, *pair, metric["metric"])
        upper = found.sd * math.sqrt((found.n - 1) / stats.chi2.ppf(0.2, found.n - 1))
        widest = max(widest, upper / metric["margin"])
    n = 2
    while power(n, 1 / widest) < 0.9:
        n += 1
    return n


def power(n: int, effect: float, alpha: float = 0.05) -> float:
    """Of the two-sided paired t-test, from the non-central distribution."""
    critical, shift = stats.t.ppf(1 - alpha / 2, n - 1), effect * math.sqrt(n)
    return float(stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift))


def verdicts_table(values: Values, tests: pd.DataFrame, registration: Mapping) -> list[Row]:
    """The contrasts that decide; the analysis of variance stands in rows of its own, whose numbers have keys."""
    found: list[Row] = []
    written = {(row.hypothesis, row.contrast, row.metric): row for row in rows(tests)}
    for name, hypothesis in registration["hypotheses"].items():
        for pair, metric in deciding(hypothesis):
            key = (" - ".join(pair), metric["metric"])
            ours, theirs = (values[arm, metric["metric"], "all"] for arm in pair)
            p, close = written[name, *key].p_corrected, written.get((f"{name} equivalence", *key))
            apart = differences(ours, theirs)
            label = MEASURES[metric["metric"]].split(" $")[0]
            cells = [number_cell(len(apart), "count"), difference_cell(apart, "points"), p_cell(p), p_cell(close.p) if close else DASH]
            found.append([contrast_label(*pair), label, *cells])
    return found
