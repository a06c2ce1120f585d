"""Everything that the paper prints of the parts `implicit` and `moe`, a second time from their tables alone.

For `test_paper_implicit`. Nothing here imports `sparsecl`. Probes and scale are in `recomputation_probes`, methods and costs in
`recomputation_runs`, drift and selected units in `recomputation_drift`, routing in `recomputation_routing`; here are
sizes and verdicts, and what of all this each part prints.
"""

from collections.abc import Mapping
from statistics import fmean

import pandas as pd
from recomputation import rows
from recomputation_design import deciding, power
from recomputation_drift import displacements, drift_numbers, drift_table, main_length, masks
from recomputation_printed import (
    Cell,
    Number,
    Numbers,
    Row,
    arm_label,
    difference_cell,
    differences,
    number_cell,
    p_cell,
    paired_differences,
    results,
)
from recomputation_probes import (
    by_replicate,
    gradients_table,
    mean_numbers,
    overlap_table,
    probes,
    scale,
)
from recomputation_routing import routing, routing_table
from recomputation_runs import LABELS, costs, equal_own_table, frontier_numbers, methods_table, rates, scores
from recomputation_scale import deciding as rungs
from recomputation_scale import is_scale, scale_letter, slopes
from recomputation_statistics import at_equal_own, difference, holm, single, values_of, verdicts
from scipy import stats

MEASURE_LABELS = {
    "forgetting": "forgetting", "final": "final",
    "normalised_overlap": "normalised overlap", "disattenuated_cosine": "disattenuated cosine",
}  # fmt: skip


def numbers(part: str, tables: Mapping[str, pd.DataFrame], registration: Mapping | None, settings: Mapping[str, float]) -> Numbers:
    """Numbers and texts by key; `settings` holds stage_steps and top_fraction of the study's file."""
    found = scores(part, tables["metrics"]) | rates(tables["learning_rate"]) | sizes(tables)
    found |= costs(part, tables, stages(tables["accuracy"]), int(settings["stage_steps"]))
    found |= drift_numbers(part, tables) | masks(part, tables["update_masks"])
    if part == "moe":
        return found | routing(tables["routing"])
    found |= frontier_numbers(part, tables["metrics"]) | probes(tables, settings["top_fraction"])
    found |= scale(tables, registration["hypotheses"]["H4"]) | verdict_numbers(tables, registration)
    return found | at_equal_own_numbers(tables["metrics"], registration) | protection(tables["stage_measures"])


def protection(measures: pd.DataFrame) -> Numbers:
    """Of orthogonal LoRA: share of the update inside the protected subspace and of the directions in it, over stages of the main length."""
    usual, found = main_length(measures), {}
    for arm in ("D1", "S1-2of4"):
        here = [row for row in rows(measures) if (row.arm, row.method, row.order) == (arm, "orthogonal-lora", "main")]
        here = [row for row in here if int(row.stage_steps) == usual[arm, "orthogonal-lora"]]
        for name in ("component", "share"):
            values = [(row.seed, float(row.value)) for row in here if row.measure == f"protected_{name}"]
            found |= mean_numbers(f"protection/{arm}/{name}", by_replicate(values), "points")
        largest = max(float(row.value) for row in here if row.measure == "protected_component")
        found[f"protection/{arm}/largest_component"] = Number(float(f"{largest:.1g}"), "rate")
    return found


def table(
    part: str, name: str, tables: Mapping[str, pd.DataFrame], registration: Mapping | None, settings: Mapping[str, float]
) -> list[Row]:
    """The cells of one table below its heading."""
    spent = costs(part, tables, stages(tables["accuracy"]), int(settings["stage_steps"]))
    return {
        "methods": lambda: methods_table(part, tables["metrics"], spent, displacements(tables["drift"])),
        "routing": lambda: routing_table(tables["routing"]),
        "overlap_layers": lambda: overlap_table(tables["overlap"], settings["top_fraction"]),
        "gradient_layers": lambda: gradients_table(tables["gradients"]),
        "scale": lambda: scale_table(tables, registration["hypotheses"]["H4"]),
        "equal_own": lambda: equal_own_table(part, tables["metrics"]),
        "drift": lambda: drift_table(part, tables),
        "verdicts": lambda: verdicts_table(tables, registration),
    }[name]()


# Sizes


def stages(accuracy: pd.DataFrame) -> int:
    return max(map(int, accuracy["stage"]))


def sizes(tables: Mapping[str, pd.DataFrame]) -> Numbers:
    """What only a run knows: weights, tokens, time, machine."""
    cost, timings = results(tables["cost"]), results(tables["timings"])
    found: Numbers = {}
    for name, arm, column in (("parameters", "D1", "trainable"), ("masked", "S1-2of4", "masked")):
        values = list(cost.loc[cost["arm"] == arm, column])
        found |= {f"design/{name}": Number(max(values), "count")} if values else {}
    jobs = {"recovery": "02_recover", "calibration": "02_recover", "stream": "03_continual"}
    for name, job in jobs.items():
        method = "full" if name == "stream" else name
        spent = list(cost.loc[(cost["arm"] == "D1") & (cost["job"] == job) & (cost["method"] == method), "tokens"])
        found |= {f"design/{name}_tokens": Number(fmean(spent), "count")} if spent else {}
    found["design/minutes"] = Number(sum(float(row.wall_s) for row in rows(tables["timings"])) / 60, "tenths")
    found["design/device"] = ", ".join(sorted(set(timings["device"]))).replace("_", r"\_")
    return found


# Verdicts


def verdict_numbers(tables: Mapping[str, pd.DataFrame], registration: Mapping) -> Numbers:
    """Letters, and replicates to plan where a verdict is open."""
    letters = verdicts(tables["metrics"], tables["accuracy"], registration)
    found: Numbers = {}
    for name, hypothesis in registration["hypotheses"].items():
        letter = scale_letter(tables["overlap"], tables["gradients"], hypothesis) if is_scale(hypothesis) else letters[name]
        found[f"verdict/{name}/letter"] = letter
        if letter == "undecided" and (not is_scale(hypothesis) or for_noise(tables, hypothesis)):
            found[f"verdict/{name}/planned_replicates"] = Number(planned(tables, hypothesis), "count")
    return found


def for_noise(tables: Mapping[str, pd.DataFrame], hypothesis: Mapping) -> bool:
    """Whether as many replicates as registered leave a slope without a direction that is also not shown to be within the margin."""
    means = rungs(tables["overlap"], tables["gradients"], hypothesis)
    trends = [single(slopes(of, hypothesis["ladder"])) for of in means.values()]
    margins = [hypothesis[name]["margin"] for name in ("activation", "gradient")]
    known = []
    for trend, margin, corrected in zip(trends, margins, holm([trend.p for trend in trends]), strict=True):
        known.append(min(trend.p if trend.estimate < 0 else corrected, trend.p_equivalence(margin)) < 0.05)
    return {trend.n for trend in trends} == {hypothesis["replicates"]} and not all(known)


def planned(tables: Mapping[str, pd.DataFrame], hypothesis: Mapping) -> int:
    """Replicates with which a t-test has power 0.9 at each margin, spreads taken at their upper 80 % limit."""
    if is_scale(hypothesis):
        means = rungs(tables["overlap"], tables["gradients"], hypothesis)
        trends = [single(slopes(of, hypothesis["ladder"])) for of in means.values()]
        measured = list(zip(trends, (hypothesis[name]["margin"] for name in ("activation", "gradient")), strict=True))
    else:
        values = values_of(tables["metrics"])
        measured = [(difference(values, *pair, metric["metric"]), metric["margin"]) for pair, metric in deciding(hypothesis)]
    widest = max(found.sd * (((found.n - 1) / stats.chi2.ppf(0.2, found.n - 1)) ** 0.5) / margin for found, margin in measured)
    n = 2
    while power(n, 1 / widest) < 0.9:
        n += 1
    return n


def at_equal_own_numbers(metrics: pd.DataFrame, registration: Mapping) -> Numbers:
    """The main contrast of each hypothesis about methods along the frontiers."""
    found: Numbers = {}
    for name in ("H5A", "H5B"):
        main = next(c for c in registration["hypotheses"][name]["contrasts"] if c.get("role") == "main")
        for metric in ("forgetting", "final"):
            values = at_equal_own(metrics, main["treatment"], main["control"], metric)
            prefix = f"equal_own/{name}/{metric}"
            found |= paired_differences(prefix, values, "points") | {f"{prefix}/p": Number(single(values).p, "p_value")}
    return found


def run_label(run: str) -> str:
    arm, _, method = run.partition(":")
    return f"{arm_label(arm)} {LABELS[method]}" if method else arm_label(arm)


def verdicts_table(tables: Mapping[str, pd.DataFrame], registration: Mapping) -> list[Row]:
    """What decides: slopes of H4, contrasts of H5A and H5B; Holm within a hypothesis."""
    found: list[Row] = []
    values, written = values_of(tables["metrics"]), {(r.hypothesis, r.contrast, r.metric): r for r in rows(tables["tests"])}
    for name, hypothesis in registration["hypotheses"].items():
        if is_scale(hypothesis):
            means = rungs(tables["overlap"], tables["gradients"], hypothesis)
            lines = [("per doubling of width", metric, slopes(of, hypothesis["ladder"])) for metric, of in means.items()]
        else:
            lines = [
                (" - ".join(pair), metric["metric"], differences(*(values[run, metric["metric"], "all"] for run in pair)))
                for pair, metric in deciding(hypothesis)
            ]
        for contrast, metric, apart in lines:
            p, close = written[name, contrast, metric].p_corrected, written[f"{name} equivalence", contrast, metric].p
            label = " $-$ ".join(map(run_label, contrast.split(" - "))) if " - " in contrast else contrast
            found.append(
                [
                    label,
                    MEASURE_LABELS[metric],
                    number_cell(len(apart), "count"),
                    difference_cell(apart, "points"),
                    p_cell(p),
                    p_cell(close),
                ]
            )
    return found


def scale_table(tables: Mapping[str, pd.DataFrame], hypothesis: Mapping) -> list[Row]:
    """Estimates, intervals and TOST anew for what decides; of what stands beside, the rows of tests.csv."""
    keys, found = scale(tables, hypothesis), []
    labels = {
        "normalised_overlap": "normalised overlap of neurons", "disattenuated_cosine": "cosine of gradients over its ceiling",
        "absolute_cosine": r"$|$cosine$|$", "trivial_cosine": r"$1/\sqrt n$",
    }  # fmt: skip
    tests = {(row.hypothesis, row.contrast, row.metric): row for row in rows(tables["tests"])}
    for metric, label in labels.items():
        raw = metric.endswith("e_cosine") or metric.startswith("trivial")
        means = [keys[f"scale/{metric}/{width}/estimate"] for width in ("32", "64", "128", "256")]
        cells = [Cell("{}", (n,)) for n in means]
        ends = tuple(
            keys[f"scale/{metric}/slope/{name}"] for name in ("estimate", "ci_low", "ci_high") if f"scale/{metric}/slope/{name}" in keys
        )
        slope = Cell("{} [{}, {}]" if len(ends) == 3 else "{}", ends)
        row = tests["H4 beside" if raw else "H4", "per doubling of width", f"log2_{metric}" if raw else metric]
        close = "" if raw else p_cell(keys[f"scale/{metric}/slope/tost_p"].value)
        found.append([label, *cells, slope, p_cell(row.p_corrected), close])
    parts = [_part(row) for row in tests.values() if row.hypothesis == "H4 beside" and row.contrast.startswith("per doubling of width, ")]
    others = [_part(row) for row in tests.values() if row.hypothesis == "H4 selections"]
    return [*found[:2], *parts, *others, *found[2:]]


def _part(row) -> Row:
    where = row.contrast.removeprefix("per doubling of width, ")
    if row.hypothesis == "H4 selections":
        _, *selection, share = row.metric.split("/")
        name = "same tokens" if len(selection) > 1 else selection[0]
        label = rf"\quad neurons, {name}, {100 * float(share):g}\,\%"
    else:
        kind = "neurons" if row.metric == "normalised_overlap" else "gradients"
        label = rf"\quad {kind}, {where.replace('ffn', 'feed-forward')}"
    ends = tuple(Number(value, "points", True) for value in (row.estimate, row.ci_low, row.ci_high))
    return [label, "", "", "", "", Cell("{} [{}, {}]", ends), p_cell(row.p_corrected), ""]
