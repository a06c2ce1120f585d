"""Methods of fine-tuning and what they cost as the paper prints them, a second time from the tables alone.

For `test_paper_implicit`. Nothing here imports `sparsecl`. A run is `D1` after full fine-tuning, `D1:lora` after LoRA.
"""

from collections.abc import Iterable, Mapping
from statistics import fmean, median

import pandas as pd
from recomputation import rows
from recomputation_printed import (
    DASH,
    Cell,
    Number,
    Numbers,
    Row,
    difference_cell,
    differences,
    mean_sd,
    paired,
    paired_differences,
    results,
    summary,
)
from recomputation_statistics import Values, by_run, values_of
from recomputation_streams import frontier_distances

LABELS = {
    "full": "full fine-tuning", "lora": "LoRA", "replay": "replay", "osf": "OSF", "activation-mask": "activation mask",
    "activation-mask-random": "random mask", "activation-mask-branch": "activation-mask branch", "orthogonal-lora": "orthogonal LoRA",
    "o-lora": "O-LoRA",
}  # fmt: skip
METHODS = {
    "implicit": {
        "D1": tuple(LABELS), "S1-2of4": ("full", "lora", "activation-mask", "activation-mask-branch", "orthogonal-lora", "o-lora"),
    },
    "moe": {"D1": ("full", "lora", "activation-mask", "activation-mask-random")},
}  # fmt: skip
MEASURES = ("own", "final", "forgetting", "retention", "general_retention")
OUTCOMES = ("forgetting", "final")


def run(arm: str, method: str) -> str:
    return arm if method == "full" else f"{arm}:{method}"


def scored(values: Values, arm: str, method: str, measure: str) -> dict[str, float]:
    """By replicate; general text has one kind, whatever it is called."""
    kinds = {kind: of for (name, metric, kind), of in values.items() if (name, metric) == (run(arm, method), measure)}
    return kinds.get("all") or (next(iter(kinds.values()), {}) if measure == "general_retention" else {})


def comparisons(methods: Iterable[str]) -> list[tuple[str, str]]:
    return [(method, other) for other in ("full", "lora") for method in methods if method not in ("full", other)]


def scores(part: str, metrics: pd.DataFrame) -> Numbers:
    values, found = values_of(metrics), {}
    for arm, methods in METHODS[part].items():
        for measure in MEASURES:
            of = {method: scored(values, arm, method, measure) for method in methods}
            for method in methods:
                found |= summary(f"methods/{method}/{arm}/{measure}", of[method].values(), "points")
                if arm != "D1":
                    dense = scored(values, "D1", method, measure)
                    found |= paired(f"methods/{method}/{arm}-minus-D1/{measure}", of[method], dense, "points")
            for method, other in comparisons(methods):
                found |= paired(f"methods/{method}-minus-{other}/{arm}/{measure}", of[method], of[other], "points")
    return found


def rates(learning_rate: pd.DataFrame) -> Numbers:
    chosen: dict[str, list[float]] = {}
    for row in rows(learning_rate):
        if row.chosen in ("True", True, 1, "1"):
            chosen.setdefault(row.method, []).append(float(row.learning_rate))
    return {f"methods/{method}/learning_rate": Number(max(values), "rate") for method, values in chosen.items()}


# At equal own


def lengths(metrics: pd.DataFrame) -> dict[str, dict[str, set[int]]]:
    """Stage lengths by run and replicate, in the main order."""
    found: dict[str, dict[str, set[int]]] = {}
    for row in rows(metrics[(metrics["order"] == "main") & (metrics["metric"] == "own")]):
        found.setdefault(run(row.arm, row.method), {}).setdefault(row.seed, set()).add(int(row.stage_steps))
    return found


def frontiers(part: str, metrics: pd.DataFrame) -> dict[tuple[str, str, str], tuple[dict[str, float], int]]:
    """By method, other method and outcome: differences by replicate, and in how many replicates both ran several lengths."""
    listed, flat, found = lengths(metrics), by_run(metrics), {}
    several = {name: {seed for seed, of in seeds.items() if len(of) > 1} for name, seeds in listed.items()}
    for method, other in comparisons(METHODS[part]["D1"]):
        pair = (run("D1", method), run("D1", other))
        if several.get(pair[0]) and several[pair[0]] == several.get(pair[1]):
            for outcome in OUTCOMES:
                distances = frontier_distances(flat[flat["arm"].isin(pair)], *pair, outcome)
                found[method, other, outcome] = (distances, len(several[pair[0]]))
    return found


def frontier_numbers(part: str, metrics: pd.DataFrame) -> Numbers:
    found: Numbers = {}
    for (method, other, outcome), (distances, replicates) in frontiers(part, metrics).items():
        prefix = f"frontier/{method}-minus-{other}/{outcome}"
        found |= paired_differences(prefix, list(distances.values()), "points")
        found |= {f"{prefix}/absent": Number(replicates - len(distances), "count"), "frontier/replicates": Number(replicates, "count")}
    assert len({replicates for _, replicates in frontiers(part, metrics).values()}) == 1, "the captions name one number"
    return found


def common_range(metrics: pd.DataFrame, pair: tuple[str, str]) -> tuple[float, float]:
    """Mean ends of the ranges of own that both runs reach, over the replicates that have one."""
    own: dict[tuple[str, str], list[float]] = {}
    chosen = (metrics["order"] == "main") & (metrics["metric"] == "own") & (metrics["domain"] == "") & (metrics["kind"] == "all")
    for row in rows(metrics[chosen]):
        own.setdefault((row.seed, run(row.arm, row.method)), []).append(row.value)
    ends = []
    for seed in {seed for seed, _ in own}:
        both = [own.get((seed, name), []) for name in pair]
        if min(map(len, both)) > 1 and (low := max(map(min, both))) < (high := min(map(max, both))):
            ends.append((low, high))
    return fmean(low for low, _ in ends), fmean(high for _, high in ends)


# Costs


def costs(part: str, tables: Mapping[str, pd.DataFrame], stages: int, stage_steps: int) -> Numbers:
    found: Numbers = {}
    for arm, methods in METHODS[part].items():
        for method in methods:
            chosen = [tables[name] for name in ("cost", "timings")]
            cost, timings = (
                results(table[(table["arm"] == arm) & (table["method"] == method) & (table["job"] == "03_continual")]) for table in chosen
            )
            prefix = f"costs/{method}/{arm}"
            if len(cost):
                found[f"{prefix}/trainable"] = Number(fmean(row.trainable for row in rows(cost)), "count")
            if len(timings):
                step = median(float(row.wall_s) for row in rows(timings)) / (stages * stage_steps)
                found[f"{prefix}/milliseconds_per_step"] = Number(1000 * step, "count")
    return found


# Tables


def methods_table(part: str, metrics: pd.DataFrame, spent: Numbers, displaced: Mapping[tuple[str, str], list[float]]) -> list[Row]:
    """`displaced` holds the mean displacement by replicate of every arm and method."""
    values, found = values_of(metrics), []
    for arm, methods in METHODS[part].items():
        for method in (method for method in methods if scored(values, arm, method, "own")):
            cells = [mean_sd(scored(values, arm, method, name).values(), "points") for name in MEASURES[:4]]
            moved = mean_sd(displaced.get((arm, method), []), "nats")
            names = ("trainable", "milliseconds_per_step")
            cost = [spent.get(f"costs/{method}/{arm}/{name}") for name in names]
            found.append([LABELS[method], *cells, moved, *(DASH if c is None else Cell("{}", (c,)) for c in cost)])
    return found


def equal_own_table(part: str, metrics: pd.DataFrame) -> list[Row]:
    values, found = values_of(metrics), []
    fronts = frontiers(part, metrics)
    for method, other in comparisons(METHODS[part]["D1"]):
        if (method, other, "forgetting") in fronts:
            steps = differences(*(scored(values, "D1", name, "forgetting") for name in (method, other)))
            at = [list(fronts[method, other, outcome][0].values()) for outcome in OUTCOMES]
            low, high = common_range(metrics, (run("D1", method), run("D1", other)))
            reach = Cell("{}--{}", (Number(low, "points"), Number(high, "points")))
            of = f"{len(at[0])} of {fronts[method, other, 'forgetting'][1]}"
            found.append([LABELS[method], *(difference_cell(cells, "points") for cells in (steps, *at)), reach, of])
    return found
