r"""The paper's numbers about methods of fine-tuning on one arm (paper, sections on methods of the implicit and the MoE part).

A run is an arm and a method. Own, final, forgetting and retention, differences to full fine-tuning and to LoRA at equal steps and
at equal own score, and what a method costs. Keys begin with `methods/`, `frontier/` and `costs/`.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from sparsecl.comparisons import result_rows
from sparsecl.config import Study
from sparsecl.crossover import JOB
from sparsecl.domain_orders import MAIN as MAIN_ORDER
from sparsecl.frontier import OUTCOMES, FrontierComparison, compare_frontiers, frontier_points
from sparsecl.methods import FULL, RATE_OF
from sparsecl.number_formats import count, points, rate
from sparsecl.paper_arms import REFERENCE, TREATMENT
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, STATISTICS, Sample, contrast_name, difference, formatted, stream_sample
from sparsecl.paper_values_design import learning_rates_of
from sparsecl.protocol import of_runs

LORA = "lora"
MEASURES = ("own", "final", "forgetting", "retention", "general_retention")
MASKED = ("activation-mask", "activation-mask-random", "activation-mask-branch")  # they select units
METHODS_OF = {  # by part and arm; the first is what the others are compared with
    "implicit": {
        REFERENCE: (FULL, LORA, "replay", "osf", *MASKED, "orthogonal-lora", "o-lora"),
        TREATMENT: (FULL, LORA, "activation-mask", "activation-mask-branch", "orthogonal-lora", "o-lora"),
    },
    "moe": {REFERENCE: (FULL, LORA, "activation-mask", "activation-mask-random")},
}
AGAINST = (FULL, LORA)
SEVERAL_LENGTHS = ("implicit",)  # parts whose studies run stages of several lengths
COSTS = ("trainable", "milliseconds_per_step")


def run_name(arm: str, method: str) -> str:
    return arm if method == FULL else f"{arm}:{method}"


def compared_methods(part: str, arm: str) -> Iterator[tuple[str, str]]:
    """Every other method of a part beside full fine-tuning, then beside LoRA."""
    return ((method, other) for other in AGAINST for method in METHODS_OF[part][arm] if method not in (FULL, other))


def run_names(part: str) -> list[str]:
    """The registered keys of this module, without their part."""
    names: list[str] = []
    for arm, methods in METHODS_OF[part].items():
        pairs = [f"methods/{contrast_name(*pair)}/{arm}" for pair in compared_methods(part, arm)]
        pairs += [f"methods/{method}/{contrast_name(*both)}" for both in _arms_beside(part, arm) for method in methods]
        names += [f"methods/{method}/{arm}/{measure}/{s}" for method in methods for measure in MEASURES for s in STATISTICS]
        names += [f"{pair}/{measure}/{s}" for pair in pairs for measure in MEASURES for s in DIFFERENCE_STATISTICS]
        names += [f"costs/{method}/{arm}/{name}" for method in methods for name in COSTS]
    if part in SEVERAL_LENGTHS:
        fronts = [f"frontier/{contrast_name(*pair)}/{outcome}" for pair in compared_methods(part, REFERENCE) for outcome in OUTCOMES]
        names += ["frontier/replicates", *(f"{front}/{name}" for front in fronts for name in (*DIFFERENCE_STATISTICS, "absent"))]
    return [*names, *(f"methods/{method}/learning_rate" for method in METHODS_OF[part][REFERENCE] if method not in RATE_OF)]


def run_values(part: str, study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """All values of this module."""
    values = _cost_values(part, study, tables)
    if len(metrics := tables.get("metrics", pd.DataFrame())):
        values |= _score_values(part, run_samples(part, metrics, study.continual.stage_steps))
        values |= _frontier_values(part, metrics) if part in SEVERAL_LENGTHS else {}
    chosen = {method: learning_rates_of(tables.get("learning_rate"), study, method) for method in METHODS_OF[part][REFERENCE]}
    return values | {
        f"methods/{method}/learning_rate": rate(max(rates.values())) for method, rates in chosen.items() if rates and method not in RATE_OF
    }


def _arms_beside(part: str, arm: str) -> list[tuple[str, str]]:
    """A sparse arm beside the dense one under the same method."""
    return [(arm, REFERENCE)] if arm != REFERENCE else []


# Scores


def run_samples(part: str, metrics: pd.DataFrame, stage_steps: int) -> dict[str, Sample]:
    """Every measure by run (column) and replicate, in the main order and stage length."""
    runs = [run_name(arm, method) for arm, methods in METHODS_OF[part].items() for method in methods]
    rows = of_runs(metrics[metrics["metric"].isin(MEASURES)], runs, stage_steps)
    return {measure: stream_sample(rows, measure) for measure in MEASURES}


def _score_values(part: str, samples: Mapping[str, Sample]) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for measure, sample in samples.items():
        for arm, methods in METHODS_OF[part].items():
            for method in methods:
                values |= formatted(sample.summary(run_name(arm, method)), points, f"methods/{method}/{arm}/{measure}", signed=False)
                for both in _arms_beside(part, arm):
                    apart = sample.paired(*(run_name(each, method) for each in both))
                    values |= formatted(apart, points, f"methods/{method}/{contrast_name(*both)}/{measure}", signed=True)
            for pair in compared_methods(part, arm):
                apart = sample.paired(*(run_name(arm, method) for method in pair))
                values |= formatted(apart, points, f"methods/{contrast_name(*pair)}/{arm}/{measure}", signed=True)
    return values


# At equal own


def method_frontiers(part: str, metrics: pd.DataFrame) -> dict[tuple[str, str, str], FrontierComparison]:
    """By method, what it is compared with, and outcome: the vertical distance of their frontiers on the dense arm.

    Only methods that ran several stage lengths in the same replicates as the other.
    """
    at = frontier_points(metrics[metrics["arm"] == REFERENCE], methods=METHODS_OF[part][REFERENCE])
    seeds = {run: set(rows["seed"]) for run, rows in at.groupby("arm")}
    found = {}
    for method, other in compared_methods(part, REFERENCE):
        ours, theirs = run_name(REFERENCE, method), run_name(REFERENCE, other)
        if ours in seeds and seeds[ours] == seeds.get(theirs):
            found |= {(method, other, outcome): compare_frontiers(at, ours, theirs, outcome) for outcome in OUTCOMES}
    return found


def _frontier_values(part: str, metrics: pd.DataFrame) -> dict[str, str | None]:
    """ValueError where pairs ran several lengths in different numbers of replicates, of which the captions name one."""
    values: dict[str, str | None] = {}
    fronts = method_frontiers(part, metrics)
    replicates = {f"{method} and {other}": len(found.replicates) + len(found.absent) for (method, other, _), found in fronts.items()}
    if len(set(replicates.values())) > 1:
        raise ValueError(f"replicates with several stage lengths differ: {replicates}; run all methods of a frontier in the same ones")
    for (method, other, outcome), found in fronts.items():
        prefix = f"frontier/{contrast_name(method, other)}/{outcome}"
        values |= formatted(difference(found.replicates["difference"]), points, prefix, signed=True)
        values[f"{prefix}/absent"] = count(len(found.absent))
        values["frontier/replicates"] = count(replicates[f"{method} and {other}"])
    return values


# Costs


def run_costs(study: Study, tables: Mapping[str, pd.DataFrame], arm: str, method: str) -> dict[str, float | None]:
    """Trained numbers (mean) and seconds of an optimizer step (median: a busy machine only ever slows a run).

    Not the peak memory: a job runs many streams, and its process's peak is that of the largest (`benchmarks/method_memory.py`).
    """
    steps = study.continual.stage_steps * len(study.continual.orders[MAIN_ORDER])
    cost, timings = (_stream_rows(tables.get(name), arm, method) for name in ("cost", "timings"))
    found = {"trainable": float(cost["trainable"].astype(float).mean())} if len(cost) else {}
    if len(timings):
        found["seconds_per_step"] = timings["wall_s"].median() / steps
    return found


def _stream_rows(table: pd.DataFrame | None, arm: str, method: str) -> pd.DataFrame:
    if table is None or table.empty:
        return pd.DataFrame()
    return result_rows(table[(table["job"] == JOB) & (table["method"] == method) & (table["arm"] == arm)])


def cost_texts(found: Mapping[str, float | None]) -> dict[str, str | None]:
    """As printed: a step in milliseconds."""
    seconds = found.get("seconds_per_step")
    return {
        "trainable": count(found.get("trainable")),
        "milliseconds_per_step": None if seconds is None else count(1000 * seconds),
    }


def _cost_values(part: str, study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    return {
        f"costs/{method}/{arm}/{name}": text
        for arm, methods in METHODS_OF[part].items()
        for method in methods
        for name, text in cost_texts(run_costs(study, tables, arm, method)).items()
    }
