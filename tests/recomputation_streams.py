"""Frontier, orders and crossover a second time, from the tables alone: dense numerical integration, loops over cells and points.

For `test_recomputation`. Nothing here imports `sparsecl`. Tables are those of `recomputation.read` or `recomputation.tidied`.
"""

import math

import numpy as np
import pandas as pd
from recomputation import Run, main_lengths, main_runs, rows, run_of
from scipy import stats

GRID = 20_001  # points of the numerical integration


def over_domains(metrics: pd.DataFrame, metric: str) -> dict[Run, float]:
    """One metric by run, kind `all`."""
    chosen = metrics[(metrics["domain"] == "") & (metrics["kind"] == "all") & (metrics["metric"] == metric)]
    return {run_of(row): row.value for row in rows(chosen)}


def frontier_distances(metrics: pd.DataFrame, treatment: str, control: str, outcome: str) -> dict[str, float]:
    """By replicate, the mean of treatment minus control over the range of own that both reach, each at several stage lengths."""
    own, other = over_domains(metrics, "own"), over_domains(metrics, outcome)
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for run in own:
        if (run.method, run.order) == ("full", "main") and run.arm in (treatment, control):
            points.setdefault((run.arm, run.seed), []).append((own[run], other[run]))
    found = {}
    for seed in {seed for _, seed in points}:
        lines = [sorted(points.get((arm, seed), [])) for arm in (treatment, control)]
        low, high = (max(line[0][0] for line in lines), min(line[-1][0] for line in lines)) if all(lines) else (0.0, 0.0)
        if min(map(len, lines)) > 1 and low < high:
            cells = low + (high - low) * (np.arange(GRID) + 0.5) / GRID  # the middle of each cell
            ours, theirs = (np.interp(cells, *zip(*line, strict=True)) for line in lines)
            found[seed] = float((ours - theirs).mean())
    return found


def order_cells(metrics: pd.DataFrame, arm: str, metric: str) -> np.ndarray:
    """Values of one arm by replicate and order, at its main stage length, of the replicates that ran further orders."""
    values = {run: value for run, value in over_domains(metrics, metric).items() if run.arm == arm and run.method == "full"}
    length = main_lengths(list(values)).get(arm)
    cells = {(run.order, run.seed): value for run, value in values.items() if length in (None, run.stage_steps)}
    orders = sorted({run.order for run in values})
    seeds = sorted({run.seed for run in values if run.order != "main"})
    return np.array([[cells[order, seed] for order in orders] for seed in seeds])


def variance_components(cells: np.ndarray, confidence: float = 0.95) -> dict[str, tuple[float, float, float]]:
    """Component of orders, seeds and residual with its interval (Tukey and Williams; chi square for the residual); seeds x orders."""
    seeds, orders = cells.shape
    grand = sum(map(sum, cells.tolist())) / cells.size
    of_seed = [sum(row) / orders for row in cells.tolist()]
    of_order = [sum(column) / seeds for column in cells.T.tolist()]
    rest = sum((cells[i, j] - of_seed[i] - of_order[j] + grand) ** 2 for i in range(seeds) for j in range(orders))
    spare = (seeds - 1) * (orders - 1)
    tails = (1 + confidence) / 2, (1 - confidence) / 2
    low, high = (rest / stats.chi2.ppf(tail, spare) for tail in tails)
    found = {"residual": (rest / spare, low, high)}
    for name, means, other in (("seed", of_seed, orders), ("order", of_order, seeds)):
        degrees = len(means) - 1
        between = other * sum((value - grand) ** 2 for value in means)  # sum of squares
        ratio = (between / degrees) / (rest / spare)
        bounds = [between * (1 - stats.f.ppf(tail, degrees, spare) / ratio) / (other * stats.chi2.ppf(tail, degrees)) for tail in tails]
        found[name] = ((between / degrees - rest / spare) / other, *bounds)
    return found


def agreement(metrics: pd.DataFrame, arms: list[str], control: str, metric: str) -> tuple[float, float]:
    """ICC(C,1) of the arms' differences to the control over cells, and the share of cells in which all have one sign."""
    reference = order_cells(metrics, control, metric)
    differences = np.array([(order_cells(metrics, arm, metric) - reference).ravel() for arm in arms]).T  # cells x arms
    count, raters = differences.shape
    of_cell, of_arm, grand = differences.mean(axis=1), differences.mean(axis=0), differences.mean()
    between = raters * sum((value - grand) ** 2 for value in of_cell) / (count - 1)
    rest = sum((differences[i, j] - of_cell[i] - of_arm[j] + grand) ** 2 for i in range(count) for j in range(raters))
    rest /= (count - 1) * (raters - 1)
    alike = [all(value > 0 for value in cell) or all(value < 0 for value in cell) for cell in differences]
    return (between - rest) / (between + (raters - 1) * rest), sum(alike) / count


def stream_curves(curves: pd.DataFrame, accuracy: pd.DataFrame, arm: str) -> dict[str, dict[int, float]]:
    """By replicate, the mean score over all domains along the steps of the whole stream of the main protocol, kind `all`."""
    points: dict[str, dict[int, list[float]]] = {}
    before: dict[str, list[float]] = {}
    inside = [
        (run_of(row), row) for row in rows(curves[(curves["arm"] == arm) & (curves["kind"] == "all") & (curves["domain"] != "general")])
    ]
    main = main_runs([run for run, _ in inside])
    for run, row in inside:
        if run in main and (row.step > 0 or row.stage == 1):
            step = (int(row.stage) - 1) * run.stage_steps + int(row.step)
            points.setdefault(run.seed, {}).setdefault(step, []).append(row.score)
    start = accuracy[(accuracy["arm"] == arm) & (accuracy["kind"] == "all") & (accuracy["stage"] == 0) & (accuracy["domain"] != "general")]
    for row in rows(start):
        if run_of(row) in main:
            before.setdefault(row.seed, []).append(row.score)
    return {
        seed: {step: sum(scores) / len(scores) for step, scores in sorted({0: before[seed], **found}.items())}
        for seed, found in points.items()
    }


def last_crossing(treatment: dict[int, float], control: dict[int, float]) -> float:
    """The step after which the treatment stays above, read backwards from the end; infinite where it does not end above."""
    steps = sorted(treatment)
    after, found = math.inf, math.inf
    for step in reversed(steps):
        ahead = treatment[step] - control[step]
        if ahead <= 0:
            if after == math.inf:
                return math.inf
            later = treatment[after] - control[after]
            return step + (after - step) * -ahead / (later - ahead)
        after = found = step
    return float(found)
