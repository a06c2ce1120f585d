r"""The paper's numbers about learning and orders: frontier, crossover, robustness (paper, sections Frontier, Crossover, Orders).

Each `..._results` reads one of them from the tables, in the tables' units, for the text and for the paper's LaTeX tables;
each `..._values` writes it by key. A study that did not run something has no values of it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from sparsecl.config import Study
from sparsecl.crossover import JOB, CrossoverSummary, at_equal_seconds, mean_curves, seconds_per_step, summarise_crossovers
from sparsecl.figure_style import over_domains
from sparsecl.frontier import OUTCOMES, FrontierComparison, compare_frontiers, frontier_points, own_reversals
from sparsecl.number_formats import count, nats, points
from sparsecl.orders import Agreement, arms_with_orders, order_cells, order_differences, topology_agreement, variance_components
from sparsecl.paper_arms import FRONTIER_CONTRASTS, ORDER_ARMS, REFERENCE, TREATMENT
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, Sample, contrast_name, difference, formatted
from sparsecl.protocol import METHOD

MAIN_CONTRAST = contrast_name(TREATMENT, REFERENCE)
FRONTIER_STATISTICS = ("absent", "range_low", "range_high", "equal_steps", "equal_steps_low", "equal_steps_high")
CROSSOVER = ("replicates", "censored", "from_start", "median", "ci_low", "ci_high", "on_mean_curve", "end")
COMPONENTS, COMPONENT_STATISTICS = ("order", "seed", "residual"), ("sd", "variance", "ci_low", "ci_high")
AGREEMENT = ("value", "null", "p", "same_direction")


def stream_names() -> list[str]:
    """The registered keys of this module, without their part."""
    return [*_frontier_names(), *_crossover_names(), *_order_names()]


def stream_values(study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """All values of this module; `tables` holds the metrics."""
    metrics, steps = tables["metrics"], study.continual.stage_steps
    return frontier_values(metrics, steps) | crossover_values(tables, steps) | order_values(metrics, steps)


def over_all(metrics: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """The rows of these metrics over domains and over both kinds: a small part of the table."""
    return metrics[metrics["metric"].isin(names) & (metrics["kind"] == "all") & over_domains(metrics)]


# Frontier


def _frontier_names() -> list[str]:
    fronts = [f"frontier/{contrast_name(*pair)}/{outcome}" for pair in FRONTIER_CONTRASTS for outcome in OUTCOMES]
    return [
        *(f"{front}/{name}" for front in fronts for name in (*DIFFERENCE_STATISTICS, *FRONTIER_STATISTICS)),
        *(f"frontier/reversals/{arm}" for arm in _frontier_arms()),
        "frontier/replicates",
    ]


def _frontier_arms() -> tuple[str, ...]:
    return tuple(dict.fromkeys(arm for pair in FRONTIER_CONTRASTS for arm in pair))


@dataclass(frozen=True)
class Front:
    """One comparison at equal learning, and the same replicates' difference at equal steps."""

    compared: FrontierComparison
    at_equal_steps: Mapping[str, float | None]

    @property
    def statistics(self) -> dict[str, float | None]:
        """Difference with its interval over the replicates whose own ranges meet, and the mean of these ranges."""
        replicates = self.compared.replicates
        ranges = {f"range_{end}": float(replicates[end].mean()) for end in ("low", "high")}
        return difference(replicates["difference"]) | {"n": len(replicates)} | ranges


def frontier_results(metrics: pd.DataFrame, stage_steps: int) -> tuple[pd.DataFrame, list[Front]]:
    """The points of every arm that ran several stage lengths, and every contrast of such arms."""
    runs = frontier_points(over_all(metrics, ("own", *OUTCOMES)))
    at = runs[runs["stage_steps"] == stage_steps]
    fronts = []
    for pair in (pair for pair in FRONTIER_CONTRASTS if set(pair) <= set(runs["arm"])):
        for outcome in OUTCOMES:
            equal_steps = Sample(at.pivot(index="seed", columns="arm", values=outcome)).paired(*pair)
            fronts.append(Front(compare_frontiers(runs, *pair, outcome), equal_steps))
    return runs, fronts


def frontier_values(metrics: pd.DataFrame, stage_steps: int) -> dict[str, str | None]:
    """Differences at equal learning; `n` replicates have a common range of own, `absent` ones have none."""
    runs, fronts = frontier_results(metrics, stage_steps)
    if not fronts:
        return {}
    reversals = own_reversals(runs)
    values = {f"frontier/reversals/{arm}": count(reversals.get(arm)) for arm in _frontier_arms()}
    for front in fronts:
        compared, found = front.compared, front.statistics
        prefix = f"frontier/{contrast_name(compared.treatment, compared.control)}/{compared.outcome}"
        values |= formatted({name: found[name] for name in DIFFERENCE_STATISTICS}, points, prefix, signed=True)
        values |= {f"{prefix}/{name}": points(found[name]) for name in ("range_low", "range_high")}
        values[f"{prefix}/absent"] = count(len(compared.absent))
        ends = {"": "estimate", "_low": "ci_low", "_high": "ci_high"}
        values |= {f"{prefix}/equal_steps{end}": points(front.at_equal_steps.get(name), True) for end, name in ends.items()}
    return values | {"frontier/replicates": count(runs["seed"].nunique())}


# Crossover


def _crossover_names() -> list[str]:
    prefix = f"crossover/{MAIN_CONTRAST}"
    equal_seconds = [f"{prefix}/equal_seconds/{name}" for name in ("seconds", *DIFFERENCE_STATISTICS)]
    return [*(f"{prefix}/{name}" for name in CROSSOVER), *equal_seconds]


def crossover_results(tables: Mapping[str, pd.DataFrame], stage_steps: int) -> tuple[CrossoverSummary, pd.DataFrame] | None:
    """The crossover in steps, and both curves at equal seconds (empty without timings); None where there are no such curves."""
    curves, accuracy, timings = (tables.get(name) for name in ("curves", "accuracy", "timings"))
    pair = (TREATMENT, REFERENCE)
    if curves is None or accuracy is None or not _ran(curves[curves["score"].notna()], pair):
        return None
    scores, equal = mean_curves(curves, accuracy, pair, stage_steps=stage_steps), pd.DataFrame()
    if timings is not None and _ran(timings[timings["job"] == JOB], pair):
        equal = at_equal_seconds(scores, seconds_per_step(timings, scores), *pair)
    return summarise_crossovers(scores, *pair), equal


def _ran(rows: pd.DataFrame, arms: tuple[str, ...]) -> bool:
    return set(arms) <= set(rows.loc[rows["method"] == METHOD, "arm"])


def crossover_values(tables: Mapping[str, pd.DataFrame], stage_steps: int) -> dict[str, str | None]:
    """Steps are absent where they are infinite: the median where at least half of the replicates do not cross."""
    if (found := crossover_results(tables, stage_steps)) is None:
        return {}
    summary, equal = found
    prefix = f"crossover/{MAIN_CONTRAST}"
    fields = {"ci_low": "low", "ci_high": "high"}
    steps = {name: getattr(summary, fields.get(name, name)) for name in CROSSOVER}
    values = {f"{prefix}/{name}": count(value) if math.isfinite(value) else None for name, value in steps.items()}
    if len(equal):
        last = equal[equal["seconds"] == equal["seconds"].max()]
        values |= formatted(difference(last["difference"]), points, f"{prefix}/equal_seconds", signed=True)
        values[f"{prefix}/equal_seconds/seconds"] = f"{last['seconds'].iloc[0]:.1f}"
    return values


# Orders


def _order_names() -> list[str]:
    components = [f"orders/{row}/{metric}/{c}" for row in (*ORDER_ARMS, MAIN_CONTRAST) for metric in OUTCOMES for c in COMPONENTS]
    return [
        *(f"{component}/{name}" for component in components for name in COMPONENT_STATISTICS),
        *(f"orders/agreement/{metric}/{name}" for metric in OUTCOMES for name in AGREEMENT),
        "orders/orders",
        "orders/seeds",
    ]


@dataclass(frozen=True)
class OrderResults:
    """Variance components by (arm or contrast, metric), each indexed by its source, and agreements by metric."""

    components: Mapping[tuple[str, str], pd.DataFrame]
    agreements: Mapping[str, Agreement]
    seeds: int
    orders: int


def order_results(metrics: pd.DataFrame, stage_steps: int) -> OrderResults | None:
    """Robustness to orders and seeds, in squared score units; None where the reference ran fewer than 2 orders or seeds."""
    rows = over_all(metrics, OUTCOMES)
    ran = [arm for arm in ORDER_ARMS if arm in arms_with_orders(rows)]
    cells = {(arm, metric): order_cells(rows, arm, metric, stage_steps=stage_steps) for metric in OUTCOMES for arm in ran}
    cells = {key: frame for key, frame in cells.items() if min(frame.shape) > 1}
    arms = [arm for arm, metric in cells if metric == OUTCOMES[0]]
    if REFERENCE not in arms:
        return None
    agreements, topologies = {}, [arm for arm in arms if arm != REFERENCE]
    for metric in OUTCOMES:
        if TREATMENT in arms:
            cells[MAIN_CONTRAST, metric] = order_differences(rows, TREATMENT, REFERENCE, metric, stage_steps=stage_steps)
        if len(topologies) > 1:
            agreements[metric] = topology_agreement(rows, topologies, REFERENCE, metric)
    components = {key: variance_components(frame).set_index("source") for key, frame in cells.items()}
    return OrderResults(components, agreements, *cells[REFERENCE, OUTCOMES[0]].shape)


def order_values(metrics: pd.DataFrame, stage_steps: int) -> dict[str, str | None]:
    """Variance components in squared points, with a standard deviation in points where a component is positive."""
    if (found := order_results(metrics, stage_steps)) is None:
        return {}
    values = {"orders/orders": count(found.orders), "orders/seeds": count(found.seeds)}
    for (name, metric), table in found.components.items():
        for source, row in table.iterrows():
            prefix = f"orders/{name}/{metric}/{source}"
            values[f"{prefix}/sd"] = component_sd(row["variance"])
            values |= {f"{prefix}/{statistic}": squared_points(row[statistic]) for statistic in ("variance", "ci_low", "ci_high")}
    for metric, agreement in found.agreements.items():
        values |= formatted({"value": agreement.value, "null": agreement.null, "p": agreement.p}, nats, f"orders/agreement/{metric}", False)
        values[f"orders/agreement/{metric}/same_direction"] = points(agreement.same_direction)
    return values


def squared_points(variance: float, sign: bool = False) -> str | None:
    """A variance of fractions in squared percentage points."""
    return points(100 * variance, sign)


def component_sd(variance: float) -> str | None:
    """Standard deviation of a variance component in points; absent where its unbiased estimate is not positive, never 0."""
    return points(math.sqrt(variance)) if variance > 0 else None
