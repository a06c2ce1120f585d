"""Frontier, crossover, orders and verdicts as the paper prints them, a second time from the tables alone.

For `test_recomputation`. Nothing here imports `sparsecl`. The distances, components and agreements are those of
`recomputation_streams`; p of the agreement and its value by chance are drawn anew, so that they agree as far as two draws do.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import median

import numpy as np
import pandas as pd
from recomputation import Run, main_runs, rows
from recomputation_printed import (
    BETWEEN,
    DASH,
    Cell,
    Number,
    Numbers,
    Row,
    arm_label,
    contrast_label,
    difference_cell,
    differences,
    paired,
    paired_differences,
)
from recomputation_streams import (
    agreement,
    frontier_distances,
    last_crossing,
    order_cells,
    over_domains,
    stream_curves,
    variance_components,
)

OUTCOMES = ("forgetting", "final")
PAIR = ("S1-2of4", "D1")
MAIN = BETWEEN.join(PAIR)
ORDER_ARMS = ("D1", "S1-2of4", "S1-4of8", "S1-block32")
FRONTS = (PAIR, ("S1-2of4", "Dnz-0.5"))
DRAWS = 1000

# Frontier


class Lengths:
    """Runs of full fine-tuning in the main order by arm that ran several stage lengths, and replicate."""

    def __init__(self, metrics: pd.DataFrame):
        self.values = {name: over_domains(metrics, name) for name in ("own", *OUTCOMES)}
        self.runs: dict[str, dict[str, list[Run]]] = {}
        for run in sorted((run for run in self.values["own"] if run[1:3] == ("full", "main")), key=lambda run: run.stage_steps):
            self.runs.setdefault(run.arm, {}).setdefault(run.seed, []).append(run)
        self.main = main_runs(list(self.values["own"]))
        several = {arm: {seed: of for seed, of in seeds.items() if len(of) > 1} for arm, seeds in self.runs.items()}
        self.runs = {arm: seeds for arm, seeds in several.items() if seeds}

    def at_equal_steps(self, arm: str, outcome: str) -> dict[str, float]:
        """By replicate, at the study's own stage length."""
        return {seed: self.values[outcome][run] for seed, of in self.runs[arm].items() for run in of if run in self.main}

    def common_ranges(self, pair: tuple[str, str]) -> dict[str, tuple[float, float]]:
        """By replicate, the range of own that both arms reach; it may be empty."""
        owns = [{seed: [self.values["own"][run] for run in of] for seed, of in self.runs[arm].items()} for arm in pair]
        return {seed: (max(min(own[seed]) for own in owns), min(max(own[seed]) for own in owns)) for seed in owns[0]}

    def reversals(self, arm: str) -> int:
        """Replicates in which own falls somewhere as stages get longer."""
        owns = [[self.values["own"][run] for run in of] for of in self.runs[arm].values()]
        return sum(any(later < earlier for earlier, later in zip(own, own[1:], strict=False)) for own in owns)


def frontiers(metrics: pd.DataFrame) -> Numbers:
    lengths, found = Lengths(metrics), {}
    for pair in FRONTS:
        if not set(pair) <= set(lengths.runs):
            continue
        ranges = lengths.common_ranges(pair)
        reached = [ends for ends in ranges.values() if ends[0] < ends[1]]
        for outcome in OUTCOMES:
            prefix = f"frontier/{BETWEEN.join(pair)}/{outcome}"
            found |= paired_differences(prefix, list(frontier_distances(metrics, *pair, outcome).values()), "points")
            found[f"{prefix}/absent"] = Number(len(ranges) - len(reached), "count")
            found |= {
                f"{prefix}/range_{end}": Number(float(np.mean([r[i] for r in reached])), "points") for i, end in enumerate(("low", "high"))
            }
            at = paired("", *(lengths.at_equal_steps(arm, outcome) for arm in pair), "points")
            for name, key in {"estimate": "equal_steps", "ci_low": "equal_steps_low", "ci_high": "equal_steps_high"}.items():
                found |= {f"{prefix}/{key}": at[f"/{name}"]} if f"/{name}" in at else {}
    if found:
        found |= {f"frontier/reversals/{arm}": Number(lengths.reversals(arm), "count") for arm in lengths.runs}
        found["frontier/replicates"] = Number(len({seed for of in lengths.runs.values() for seed in of}), "count")
    return found


def frontier_table(metrics: pd.DataFrame) -> list[Row]:
    lengths, found = Lengths(metrics), []
    for pair in (pair for pair in FRONTS if set(pair) <= set(lengths.runs)):
        reached = [ends for ends in lengths.common_ranges(pair).values() if ends[0] < ends[1]]
        for outcome in OUTCOMES:
            steps = differences(*(lengths.at_equal_steps(arm, outcome) for arm in pair))
            own = list(frontier_distances(metrics, *pair, outcome).values())
            ends = tuple(Number(float(np.mean([r[i] for r in reached])), "points") for i in (0, 1))
            cells = [difference_cell(steps, "points"), difference_cell(own, "points"), Cell("{}--{}", ends) if reached else DASH]
            found.append([contrast_label(*pair), outcome, *cells, f"{len(reached)} of {len(lengths.common_ranges(pair))}"])
    return found


# Crossover


def crossovers(curves: pd.DataFrame, accuracy: pd.DataFrame, timings: pd.DataFrame) -> Numbers:
    """Along steps, and the difference at the second in which the faster arm has finished its stream."""
    arms = [stream_curves(curves, accuracy, arm) for arm in PAIR]
    seeds = sorted(set(arms[0]) & set(arms[1]))
    steps = sorted(arms[0][seeds[0]])
    late = sorted(last_crossing(arms[0][seed], arms[1][seed]) for seed in seeds)
    means = [{step: math.fsum(of[seed][step] for seed in seeds) / len(seeds) for step in steps} for of in arms]
    low, high = median_interval(late)
    found = {"replicates": len(seeds), "censored": sum(map(math.isinf, late)), "from_start": late.count(steps[0]), "end": steps[-1]}
    found |= {"median": middle(late), "ci_low": low, "ci_high": high, "on_mean_curve": last_crossing(*means)}
    numbers: Numbers = {f"crossover/{MAIN}/{name}": Number(value, "count") for name, value in found.items() if math.isfinite(value)}
    seconds = [seconds_of(timings, arm, seeds) / steps[-1] for arm in PAIR]
    end = min(seconds) * steps[-1]
    read = [
        [float(np.interp(end, np.array(steps) * pace, [of[seed][step] for step in steps])) for seed in seeds]
        for of, pace in zip(arms, seconds, strict=True)
    ]
    numbers |= paired_differences(f"crossover/{MAIN}/equal_seconds", [a - b for a, b in zip(*read, strict=True)], "points")
    return numbers | {f"crossover/{MAIN}/equal_seconds/seconds": Number(end, "tenths")}


def middle(values: Sequence[float]) -> float:
    """The median of sorted values, of which some may be infinite."""
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The narrowest pair of equally far order statistics that holds the median in at least 95 % of samples; NaN where none does."""
    n, tail, outside = len(values), 0.0, -1
    for place in range(n):
        tail += math.comb(n, place) / 2**n
        if tail > 0.025:
            break
        outside = place
    return (math.nan, math.nan) if outside < 0 else (values[outside], values[n - 1 - outside])


def seconds_of(timings: pd.DataFrame, arm: str, seeds: Iterable[str]) -> float:
    """The median over replicates of the main stream's measured time."""
    chosen = timings[(timings["arm"] == arm) & (timings["method"] == "full") & (timings["job"] == "03_continual")]
    return median(float(row.wall_s) for row in rows(chosen) if row.seed in set(seeds))


# Orders


def component_rows(metrics: pd.DataFrame) -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """Variance components by arm or main contrast, and metric."""
    ran = {row.arm for row in rows(metrics[["arm", "order", "method"]].drop_duplicates()) if row.method == "full" and row.order != "main"}
    arms, found = [arm for arm in ORDER_ARMS if arm in ran], {}
    for metric in OUTCOMES:
        cells = {arm: order_cells(metrics, arm, metric) for arm in arms}
        cells |= {MAIN: cells[PAIR[0]] - cells[PAIR[1]]} if set(PAIR) <= set(arms) else {}
        found |= {(name, metric): variance_components(of) for name, of in cells.items()}
    return found


def agreements(metrics: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By metric: the agreement of the topologies, its mean where roles of arms are exchanged, p, and the share of equal signs."""
    found, sparse = {}, list(ORDER_ARMS[1:])
    for metric in OUTCOMES:
        value, same = agreement(metrics, sparse, "D1", metric)
        chance = exchanged(np.stack([order_cells(metrics, arm, metric) for arm in ORDER_ARMS]), np.random.default_rng(12))
        p = (1 + sum(drawn >= value for drawn in chance)) / (1 + len(chance))
        found[metric] = {"value": value, "null": float(np.mean(chance)), "p": p, "same_direction": same}
    return found


def exchanged(cells: np.ndarray, generator: np.random.Generator) -> list[float]:
    """Agreements of arms (arms x seeds x orders, the control first) that exchanged roles within each seed, their means taken out."""
    centred, found = cells - cells.mean(axis=(1, 2), keepdims=True), []
    for _ in range(DRAWS):
        drawn = np.stack([centred[generator.permutation(len(cells)), seed] for seed in range(cells.shape[1])], axis=1)
        found.append(consistency((drawn[1:] - drawn[0]).reshape(len(cells) - 1, -1)))
    return found


def consistency(raters: np.ndarray) -> float:
    """ICC(C,1) from the covariances of the raters: their mean off the diagonal over the mean variance."""
    covariance = np.cov(raters)
    k = len(covariance)
    return float((covariance.sum() - np.trace(covariance)) / (k - 1) / np.trace(covariance))


ABOUT = {"null": 0.03, "p": 0.06}  # of the printed number: two draws of DRAWS differ by as much


def orders(metrics: pd.DataFrame) -> Numbers:
    found: Numbers = {}
    for (name, metric), of in component_rows(metrics).items():
        for source, (variance, low, high) in of.items():
            prefix = f"orders/{name}/{metric}/{source}"
            found |= {f"{prefix}/sd": Number(math.sqrt(variance), "points")} if variance > 0 else {}
            found |= {
                f"{prefix}/{key}": Number(100 * v, "points") for key, v in (("variance", variance), ("ci_low", low), ("ci_high", high))
            }
    if not found:
        return {}
    for metric, of in agreements(metrics).items():
        found |= {f"orders/agreement/{metric}/{name}": Number(value, "nats", within=ABOUT.get(name, 0.0)) for name, value in of.items()}
        found[f"orders/agreement/{metric}/same_direction"] = Number(of["same_direction"], "points")
    cells = order_cells(metrics, "D1", "forgetting")
    return found | {"orders/seeds": Number(cells.shape[0], "count"), "orders/orders": Number(cells.shape[1], "count")}


def orders_table(metrics: pd.DataFrame) -> list[Row]:
    """Rows of arms; the agreements stand in rows of their own and have keys."""
    found: list[Row] = []
    for (name, _), of in component_rows(metrics).items():
        cells: Row = []
        for source in ("order", "seed", "residual"):
            variance, *ends = of[source]
            sd = Cell("{}", (Number(math.sqrt(variance), "points"),)) if variance > 0 else DASH
            cells += [sd, Cell("{} [{}, {}]", tuple(Number(100 * value, "points") for value in (variance, *ends)))]
        found.append([contrast_label(*PAIR) if name == MAIN else arm_label(name), *cells])
    return found
