"""Doses, recovery budgets, methods and the tables of arms a second time, from metrics.csv, accuracy.csv and tests.csv alone.

For `test_recomputation`. Nothing here imports `sparsecl`. What is compared is read over the replicates that ran all of it, and
every method's own score over the same domains: those that a later stage can make forget.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd
from recomputation import rows
from recomputation_printed import (
    ByReplicate,
    Number,
    Numbers,
    Row,
    arm_label,
    contrast_label,
    difference_cell,
    difference_cells,
    differences,
    halves,
    leading,
    mean_cell,
    mean_sd,
    number_cell,
    p_cell,
    paired,
    sd_cell,
    summary,
)
from recomputation_statistics import Values

SHOWN = ("own", "final", "forgetting")
TREATMENT, REFERENCE = "S1-2of4", "D1"
USUAL = {REFERENCE, TREATMENT, "S1-unstructured"}  # of the usual dose and budget
DOSES = {"D1": "0", "S1-6of8": "25", "S1-2of4": "50", "S1-unstructured-d0.75": "25", "S1-unstructured": "50"}  # per cent of zeros
BUDGETS = {"0": ("D0", "S0-2of4"), "0.5": ("D1-b0.5", "S1-2of4-b0.5"), "1": ("D1", "S1-2of4"), "2": ("D1-b2", "S1-2of4-b2")}
LABELS = {
    "full": "full fine-tuning", "lora": "LoRA", "replay": "replay", "ewc": "EWC",
    "single": "each domain alone", "joint": "all domains mixed",
}  # fmt: skip
REFERENCES = ("single", "joint")

Samples = dict[tuple[str, str], ByReplicate]  # (metric, arm) -> replicate -> value


# Doses and budgets


def together(values: Values, arms: Iterable[str]) -> Samples:
    """The arms that were run, over the replicates that ran all of them; nothing where only usual ones were."""
    found: Samples = {}
    for metric in SHOWN:
        ran = {arm: values[arm, metric, "all"] for arm in arms if (arm, metric, "all") in values}
        seeds = set.intersection(*map(set, ran.values())) if ran else set()
        found |= {(metric, arm): {seed: of[seed] for seed in of if seed in seeds} for arm, of in ran.items()}
    return found if {arm for _, arm in found} - USUAL else {}


def doses_and_budgets(values: Values, keys: Iterable[str]) -> Numbers:
    keys, found = list(keys), {}
    for prefix in ("doses", "budgets"):
        named = sorted({tuple(key.split("/")[1:3]) for key in keys if key.startswith(f"{prefix}/")})
        samples = together(values, {who for who, _ in named if not halves(who)[1]})
        for who, metric in named:
            ours, theirs = (samples.get((metric, arm), {}) for arm in halves(who))
            both = paired(f"{prefix}/{who}/{metric}", ours, theirs, "points")
            found |= both if halves(who)[1] else summary(f"{prefix}/{who}/{metric}", ours.values(), "points")
    return found


def doses_table(values: Values) -> list[Row]:
    doses, found = together(values, DOSES), []
    for arm, zeros in DOSES.items():
        if ("own", arm) in doses:
            found.append(dose_row(rf"{zeros}\,\%", arm, REFERENCE, doses))
    budgets = together(values, [arm for pair in BUDGETS.values() for arm in pair])
    for budget, (dense, sparse) in BUDGETS.items():
        found += [dose_row(budget, arm, dense, budgets) for arm in (dense, sparse) if ("own", arm) in budgets]
    return found


def dose_row(name: str, arm: str, reference: str, samples: Samples) -> Row:
    cells = [mean_sd(samples[metric, arm].values(), "points") for metric in SHOWN]
    apart = [difference_cell(differences(samples[m, arm], samples[m, reference]), "points") for m in ("forgetting", "final")]
    count = number_cell(len(samples["own", arm]), "count")
    return [
        name,
        arm_label("-".join(arm.split("-")[:2]) if arm[0] == "S" else arm[:2]),
        count,
        *cells,
        *(apart if arm != reference else ["", ""]),
    ]


# Arms of the main protocol


def arms_table(values: Values, tests: Mapping[tuple[str, str], Mapping], lines: Iterable[tuple[str, str, str]]) -> list[Row]:
    """Two rows for every arm with the contrast beside it: means and differences, then spreads and intervals."""
    found: list[Row] = []
    for arm, treatment, reference in (line for line in lines if (line[0], "own", "all") in values):
        samples = [list(values[arm, metric, "all"].values()) for metric in SHOWN]
        upper: Row = [arm_label(arm), number_cell(len(samples[0]), "count"), *(mean_cell(sample, "points") for sample in samples)]
        lower: Row = ["", "", *(sd_cell(sample, "points") for sample in samples)]
        for metric in ("forgetting", "final"):
            if not treatment:
                upper, lower = [*upper, "", ""], [*lower, "", ""]
                continue
            apart = differences(values[treatment, metric, "all"], values[reference, metric, "all"])
            estimate, ends = difference_cells(apart, "points")
            upper += [estimate, p_cell(holm_of(tests, f"{treatment} - {reference}", metric))]
            lower += [ends, ""]
        found += [upper, lower]
    return found


def holm_of(tests: Mapping[tuple[str, str], Mapping], contrast: str, metric: str) -> float:
    statements = tests.get((contrast, metric), {})
    return statements[statement]["p_corrected"] if (statement := leading(statements)) else math.nan


def controls_table(values: Values, tests: Mapping) -> list[Row]:
    controls = ("D1", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "Dg-2of4", "D0", "Sf-2of4", "S1-2of4-random", "S0-2of4")
    return arms_table(values, tests, [(TREATMENT, "", ""), *((arm, TREATMENT, arm) for arm in controls)])


def stream_topologies_table(values: Values, tests: Mapping) -> list[Row]:
    arms = [f"S1-{name}" for name in ("unstructured", "4of8", "2of4", "block16", "block32", "block64")]
    return arms_table(values, tests, [(REFERENCE, "", ""), *((arm, arm, REFERENCE) for arm in arms)])


MEASURES = {
    "own": r"own $\bar R_{ii}$", "final": r"final $\bar R_{Ti}$", "forgetting": r"forgetting $F$", "bwt": "backward transfer",
    "retention": r"retention (\%)", "acc": "accuracy, all domains", "fwt": "forward transfer", "learning_speed": "learning speed",
    "general_retention": r"general retention (\%)", "general_loss_rise": "rise of general loss (nats)",
    "loss_forgetting": "loss forgetting (nats)", "loss_own": "own loss (nats)", "loss_final": "final loss (nats)",
}  # fmt: skip


def measures_table(values: Values, numbers: Numbers, labels: Iterable[str]) -> list[Row]:
    """Both arms of the main contrast and their difference; `numbers` are those of `recomputation_printed.measures`."""
    found: list[Row] = []
    for label in labels:
        metric, _, kind = label.partition("-")
        form = "nats" if MEASURES[metric].endswith("(nats)") else "points"
        samples = [values.get((arm, metric, kind or "all"), {}) for arm in (REFERENCE, TREATMENT)]
        if not all(samples):
            continue
        prefix = f"{label}/{TREATMENT}-minus-{REFERENCE}"
        p, g = (numbers.get(f"{prefix}/{name}", Number(math.nan, "nats")).value for name in ("p_holm", "g"))
        apart = difference_cells(differences(samples[1], samples[0]), form)
        name = MEASURES[metric] + (f", {kind}" if kind else "")
        found.append([name, *(mean_sd(sample.values(), form) for sample in samples), *apart, p_cell(p), number_cell(g, "nats")])
    return found


# Methods and references


def method_samples(values: Values, metrics: pd.DataFrame, accuracy: pd.DataFrame) -> dict[tuple[str, str, str], ByReplicate]:
    """(method, arm, metric) -> replicate -> value, over the replicates that ran every method with both arms."""
    stages = {row.stage: row.stage_domain for row in rows(accuracy[(accuracy["method"] == "full") & (accuracy["order"] == "main")])}
    forgettable = [stages[stage] for stage in sorted(stages) if stage > 0][:-1]
    cells: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    chosen = metrics[metrics["arm"].isin([REFERENCE, TREATMENT]) & (metrics["kind"] == "all") & (metrics["method"] != "full")]
    for row in rows(chosen[chosen["metric"].isin([*SHOWN, "acc"])]):
        alone = row.order.removeprefix("single-") if row.method == "single" else row.domain
        metric = "own" if row.method == "single" and row.metric == "acc" else row.metric
        of = cells.setdefault((row.method, row.arm, metric), {}).setdefault(row.seed, {})
        assert alone not in of, f"{row.method}, {row.arm}, {metric}, {alone} twice in replicate {row.seed}"
        of[alone] = row.value
    found: dict[tuple[str, str, str], ByReplicate] = {}
    for (method, arm, metric), seeds in cells.items():
        parts = forgettable if method == "single" or (method, metric) == ("joint", "final") else [""]
        complete = {seed: math.fsum(of[part] for part in parts) / len(parts) for seed, of in seeds.items() if set(parts) <= set(of)}
        found |= {(method, arm, metric): complete} if complete else {}
    if not found:
        return {}
    found |= {
        ("full", arm, m): values[arm, m, "all"] for arm in (REFERENCE, TREATMENT) for m in (*SHOWN, "acc") if (arm, m, "all") in values
    }
    seeds = set.intersection(*map(set, found.values()))
    return {key: {seed: value for seed, value in of.items() if seed in seeds} for key, of in found.items()}


def methods(samples: Mapping[tuple[str, str, str], ByReplicate], learning_rate: pd.DataFrame) -> Numbers:
    found: Numbers = {}
    for (method, arm, metric), ours in samples.items():
        found |= summary(f"methods/{method}/{arm}/{metric}", ours.values(), "points")
        found["methods/replicates"] = Number(len(ours), "count")
        if method != "full":
            found |= paired(f"methods/{method}-minus-full/{arm}/{metric}", ours, samples.get(("full", arm, metric), {}), "points")
        if arm == TREATMENT and (dense := samples.get((method, REFERENCE, metric))):
            found |= paired(f"methods/{method}/{TREATMENT}-minus-{REFERENCE}/{metric}", ours, dense, "points")
    for method, rate in chosen_rates(learning_rate).items():
        found |= {f"methods/{method}/learning_rate": Number(max(rate.values()), "rate")} if method not in REFERENCES else {}
    return found


def chosen_rates(learning_rate: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By method and arm."""
    found: dict[str, dict[str, float]] = {}
    for row in rows(learning_rate[learning_rate["chosen"] == "True"]):
        found.setdefault(row.method, {})[row.arm] = float(row.learning_rate)
    return found


def methods_table(samples: Mapping[tuple[str, str, str], ByReplicate]) -> list[Row]:
    found: list[Row] = []
    for method, label in LABELS.items():
        of = {arm: {metric: samples.get((method, arm, metric), {}) for metric in SHOWN} for arm in (REFERENCE, TREATMENT)}
        ran = [arm for arm, by_metric in of.items() if any(by_metric.values())]
        for place, arm in enumerate(ran):
            found.append(["" if place else label, arm_label(arm), *(mean_sd(of[arm][metric].values(), "points") for metric in SHOWN)])
        if len(ran) == 2:
            apart = [difference_cell(differences(of[TREATMENT][m], of[REFERENCE][m]), "points") for m in SHOWN]
            found.append(["", contrast_label(TREATMENT, REFERENCE), *apart])
    return found
