"""The learned-forgotten frontier: forgetting and final score as functions of what was learned (paper, section Frontier).

Who learns less has less to lose. So arms run at several stage lengths, and two arms are compared where they have learned
equally much: by the vertical distance of their curves of forgetting (or final) over own. Nothing is adjusted afterwards
by a covariate; a replicate in which the arms' own ranges do not meet says nothing and is counted.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparsecl.intervals import Interval, t_interval
from sparsecl.metrics import MissingMeasurement
from sparsecl.protocol import METHOD, ORDER, run_names

OUTCOMES = ("forgetting", "final")
Points = Float[np.ndarray, " lengths"]  # one value a stage length
Knots = Float[np.ndarray, " knots"]
OtherKnots = Float[np.ndarray, " other_knots"]  # a second curve has as many knots as it has


@dataclass(frozen=True)
class FrontierComparison:
    """Treatment minus control at equal own, averaged over the own range that both arms of a replicate reach."""

    treatment: str
    control: str
    outcome: str
    replicates: pd.DataFrame  # seed; low, high: the common range of own; difference: its mean over that range
    absent: tuple  # seeds without a common range
    interval: Interval | None  # over `replicates`; None below 2

    @property
    def reason(self) -> str:
        """Why there is no interval; empty where there is one."""
        if self.interval is not None:
            return ""
        total = len(self.replicates) + len(self.absent)
        return (
            f"{self.treatment} and {self.control} reach a common range of own in {len(self.replicates)} of {total} replicates; "
            "an interval needs 2. Run the slower arm longer or the faster one shorter"
        )


def frontier_points(
    metrics: pd.DataFrame,
    own: str = "own",
    outcomes: tuple[str, ...] = OUTCOMES,
    kind: str = "all",
    methods: tuple[str, ...] = (METHOD,),
) -> pd.DataFrame:
    """One row per run, seed and stage length: columns `own` and the outcomes, in the metrics' unit.

    `metrics` is metrics.csv; `own` names what was learned (`loss_own` where a study measures losses). The column `arm` names the
    run: `D1`, or `D1:lora` for other methods than the main protocol's among `methods`. Only runs and
    replicates that ran several stage lengths in the main order are kept, so the frame may be empty. A replicate that ran
    some of its run's lengths but not all, or lacks a metric, raises MissingMeasurement with the names.
    """
    names = [own, *outcomes]
    rows = metrics[metrics["method"].isin(methods) & (metrics["order"] == ORDER) & (metrics["kind"] == kind)]
    rows = rows[rows["metric"].isin(names) & (rows["domain"].isna() | (rows["domain"] == ""))]
    points = rows.assign(arm=run_names(rows)).pivot(index=["arm", "seed", "stage_steps"], columns="metric", values="value").astype(float)
    points = points.reindex(columns=names).rename(columns={own: "own"}).rename_axis(columns=None).reset_index()
    several = points.groupby(["arm", "seed"])["stage_steps"].transform("size") > 1
    points = points[several].reset_index(drop=True)
    _require_all_lengths(points)
    return points


def _require_all_lengths(points: pd.DataFrame) -> None:
    gaps = []
    for arm, rows in points.groupby("arm"):
        lengths = sorted(set(rows["stage_steps"]))
        for seed, run in rows.groupby("seed"):
            gaps += [f"{arm}, seed {seed}: {length} steps" for length in lengths if length not in set(run["stage_steps"])]
    measured = points.melt(["arm", "seed", "stage_steps"], var_name="metric")
    gaps += [
        f"{row.metric} of {row.arm}, seed {row.seed}, {row.stage_steps} steps" for row in measured[measured["value"].isna()].itertuples()
    ]
    if gaps:
        raise MissingMeasurement(f"the frontier lacks {'; '.join(gaps[:5])} ({len(gaps)} in all); run 03_continual for them")


def frontier_curve(own: Points, outcome: Points) -> tuple[Knots, Knots]:
    """Knots of the piecewise linear frontier of one arm and replicate, ascending in own; equal own is one knot, their mean.

    The points are joined in the order of own, not of stage length: where a longer stage has learned less (by noise, or
    because an early domain's own score fell), the curve stays a function of own. `own_reversals` counts these cases.
    """
    knots, at = np.unique(own, return_inverse=True)
    return knots, np.bincount(at, weights=outcome) / np.bincount(at)


def own_reversals(points: pd.DataFrame) -> dict[str, int]:
    """Per arm, in how many replicates own falls anywhere as the stages get longer; `points` as of `frontier_points`."""
    steps = points.sort_values("stage_steps").groupby(["arm", "seed"])["own"].agg(lambda own: bool((np.diff(own) < 0).any()))
    return {arm: int(count) for arm, count in steps.groupby("arm").sum().items()}


def mean_vertical_difference(treatment: tuple[Knots, Knots], control: tuple[OtherKnots, OtherKnots]) -> tuple[float, float, float] | None:
    """Common range of own (low, high) of two curves and the mean over it of treatment minus control; None without a range.

    Exact: the difference of piecewise linear curves is linear between the knots of both. A single common point is no range.
    """
    low, high = max(treatment[0][0], control[0][0]), min(treatment[0][-1], control[0][-1])
    if low >= high:
        return None
    knots = np.unique(np.concatenate([treatment[0], control[0], [low, high]]).clip(low, high))
    difference = np.interp(knots, *treatment) - np.interp(knots, *control)
    return float(low), float(high), float(np.trapezoid(difference, knots) / (high - low))


def _curves(points: pd.DataFrame, arm: str, outcome: str) -> dict:
    """Seed -> curve of one arm."""
    rows = points[points["arm"] == arm]
    return {seed: frontier_curve(run["own"].to_numpy(), run[outcome].to_numpy()) for seed, run in rows.groupby("seed")}


def compare_frontiers(points: pd.DataFrame, treatment: str, control: str, outcome: str = "forgetting") -> FrontierComparison:
    """Compare two runs at equal own within each replicate, then over replicates (t interval).

    `points` as of `frontier_points`. Runs that did not run several stage lengths in the same replicates raise ValueError.
    Noise in own biases such a comparison where the frontier bends, by regression to the mean; a test with planted noise
    holds that bias to a small part of what equal steps would show.
    """
    ours, theirs = _curves(points, treatment, outcome), _curves(points, control, outcome)
    if not ours or set(ours) != set(theirs):
        raise ValueError(
            f"several stage lengths were run by {treatment} in seeds {list(ours)} and by {control} in seeds {list(theirs)}; "
            "the frontier pairs replicates, so run both arms in the same ones"
        )
    found = {seed: mean_vertical_difference(ours[seed], theirs[seed]) for seed in ours}
    rows = [(seed, *result) for seed, result in found.items() if result is not None]
    replicates = pd.DataFrame(rows, columns=["seed", "low", "high", "difference"])
    absent = tuple(seed for seed, result in found.items() if result is None)
    interval = t_interval(replicates["difference"].to_numpy()) if len(rows) > 1 else None
    return FrontierComparison(treatment, control, outcome, replicates, absent, interval)


def mean_frontier(points: pd.DataFrame, outcome: str = "forgetting", size: int = 61) -> pd.DataFrame:
    """Mean curve per arm on a grid of own common to all arms: columns arm, own, mean, low, high (95 % t, pointwise), n.

    An arm has rows only where all its replicates have a curve: elsewhere the mean would change with who is in it.
    `low` and `high` are NaN for a single replicate.
    """
    rows = []
    for arm in sorted(set(points["arm"])):
        curves = list(_curves(points, arm, outcome).values())
        low, high = max(knots[0] for knots, _ in curves), min(knots[-1] for knots, _ in curves)
        grid = np.linspace(points["own"].min(), points["own"].max(), size)
        for own in grid[(grid >= low) & (grid <= high)]:
            values = np.array([np.interp(own, *curve) for curve in curves])
            interval = t_interval(values) if len(values) > 1 else Interval(float(values[0]), *[math.nan] * 3, n=1)
            rows.append((arm, own, interval.mean, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=["arm", "own", "mean", "low", "high", "n"])
