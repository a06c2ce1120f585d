"""Where a sparse arm overtakes its dense partner, along training steps and along measured time (paper, section Crossover).

Read on the mean score over the fixed set of all domains of the stream, trained or not yet, so that a curve is the same
quantity from its first step to its last. The points come from curves.csv: a part of the test items, the same for all arms.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from sparsecl.items import GENERAL
from sparsecl.metrics import MissingMeasurement
from sparsecl.protocol import METHOD, ORDER, main_protocol

Curve = Float[np.ndarray, " points"]
JOB = "03_continual"


@dataclass(frozen=True)
class CrossoverSummary:
    """Crossovers over replicates in optimizer steps; infinity stands for censored: not above at the end of the stream."""

    replicates: int
    censored: int  # replicates without a crossover
    from_start: int  # replicates above from the first step on
    median: float  # infinite where at least half of the replicates are censored
    low: float  # distribution-free interval of the median; NaN below 6 replicates, where none reaches 95 %
    high: float
    on_mean_curve: float  # crossover of the curves averaged over replicates
    end: float  # last step observed


def mean_curves(
    curves: pd.DataFrame, accuracy: pd.DataFrame, arms: Sequence[str], kind: str = "all", stage_steps: int | None = None
) -> pd.DataFrame:
    """Mean score over all domains along the stream of `main_protocol` (given `stage_steps`): columns arm, seed, step, score.

    `step` counts optimizer steps from the start of the stream. Step 0 is the first stage's step 0, or where the curves
    lack it stage 0 of the accuracy table; step 0 of a later stage is the model that ended the stage before, and is left
    out. A point without one of the domains, and a replicate without step 0, raise MissingMeasurement.
    """
    tables = []
    for arm in arms:
        inside, before = (_main_rows(table, arm, kind, stage_steps) for table in (curves, accuracy))
        if inside.empty:
            raise MissingMeasurement(f"curves hold no rows of {arm}, method {METHOD}, order {ORDER}, kind {kind}; run 03_continual")
        inside = inside[(inside["step"] > 0) | (inside["stage"] == 1)]
        inside = inside.assign(step=(inside["stage"] - 1) * inside["stage_steps"] + inside["step"])
        started = set(inside.loc[inside["step"] == 0, "seed"])
        start = before[(before["stage"] == 0) & ~before["seed"].isin(started)].assign(step=0)
        tables.append(_mean_over_domains(pd.concat([start, inside])))
    return pd.concat(tables, ignore_index=True)


def _main_rows(table: pd.DataFrame, arm: str, kind: str, stage_steps: int | None) -> pd.DataFrame:
    return main_protocol(table[(table["arm"] == arm) & (table["kind"] == kind) & (table["domain"] != GENERAL)], stage_steps=stage_steps)


def _mean_over_domains(points: pd.DataFrame) -> pd.DataFrame:
    """`points` of one arm; the domains are those that its stages train."""
    domains = sorted(set(points.loc[points["stage"] > 0, "stage_domain"]))
    wide = points.pivot(index=["arm", "seed", "step"], columns="domain", values="score").reindex(columns=domains).astype(float)
    arm, seeds, steps = (sorted(set(wide.index.get_level_values(name))) for name in ("arm", "seed", "step"))
    gaps = wide.reindex(pd.MultiIndex.from_product([arm, seeds, sorted({0, *steps})])).isna().stack()
    gaps = [f"{domain} of {arm}, seed {seed}, step {step}" for arm, seed, step, domain in gaps.index[gaps]]
    if gaps:
        raise MissingMeasurement(f"the mean over the domains lacks {'; '.join(gaps[:5])} ({len(gaps)} scores); run 03_continual")
    return wide.mean(axis=1).rename("score").reset_index()


def crossover_step(steps: Curve, treatment: Curve, control: Curve) -> float:
    """The step after which the treatment stays above the control, linear between points, in the unit of `steps`.

    0 (the first step) where it is above from the start, infinity where it is not above at the last point.
    """
    difference = treatment - control
    if difference[-1] <= 0:
        return math.inf
    below = np.flatnonzero(difference <= 0)
    if len(below) == 0:
        return float(steps[0])
    last = below[-1]
    share = -difference[last] / (difference[last + 1] - difference[last])
    return float(steps[last] + share * (steps[last + 1] - steps[last]))


def paired_curves(points: pd.DataFrame, treatment: str, control: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both arms' curves (seeds down, steps across) from `mean_curves`; other seeds or steps raise ValueError."""
    tables = [points[points["arm"] == arm].pivot(index="seed", columns="step", values="score") for arm in (treatment, control)]
    for axis, name in enumerate(("seeds", "steps")):
        found = [list(table.axes[axis]) for table in tables]
        if found[0] != found[1] or not found[0]:
            raise ValueError(
                f"{treatment} has {name} {found[0]}, {control} {found[1]}: a crossover is read at equal steps of paired replicates; "
                "run both arms alike, or read them at equal seconds"
            )
    return tables[0], tables[1]


def crossovers(points: pd.DataFrame, treatment: str, control: str) -> pd.DataFrame:
    """One row per replicate: columns seed, step (NaN where censored), censored. `points` as of `mean_curves`."""
    ours, theirs = paired_curves(points, treatment, control)
    steps = ours.columns.to_numpy(dtype=float)
    found = [crossover_step(steps, ours.loc[seed].to_numpy(), theirs.loc[seed].to_numpy()) for seed in ours.index]
    censored = np.isinf(found)
    return pd.DataFrame({"seed": ours.index, "step": np.where(censored, np.nan, found), "censored": censored})


def summarise_crossovers(points: pd.DataFrame, treatment: str, control: str) -> CrossoverSummary:
    """Median over replicates with censored ones counted as infinitely late, and its order-statistic interval (95 %).

    A mean over the replicates that cross would be early by construction: those that never do would be left out. Noise
    makes each replicate's crossover late, because one dip near the end counts; the mean curve's, which is steadier, stands
    beside the median.
    """
    ours, theirs = paired_curves(points, treatment, control)
    steps, table = ours.columns.to_numpy(dtype=float), crossovers(points, treatment, control)
    late = table["step"].fillna(math.inf).to_numpy()
    interval = stats.quantile_test(late, q=0, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
    return CrossoverSummary(
        replicates=len(table),
        censored=int(table["censored"].sum()),
        from_start=int((late == steps[0]).sum()),
        median=float(np.median(late)),
        low=float(interval.low),
        high=float(interval.high),
        on_mean_curve=crossover_step(steps, ours.mean().to_numpy(), theirs.mean().to_numpy()),
        end=float(steps[-1]),
    )


def seconds_per_step(timings: pd.DataFrame, points: pd.DataFrame, job: str = JOB) -> dict[str, float]:
    """Measured seconds of one optimizer step per arm of `points` (`mean_curves`): wall time of the stream over its steps.

    The median over replicates, because a busy machine only ever slows a run. What `wall_s` holds besides steps (the
    scoring of the curve) is in it. Raises MissingMeasurement without a time, ValueError with several a replicate.
    """
    found = {}
    for arm, rows in points.groupby("arm"):
        measured = timings[(timings["arm"] == arm) & (timings["method"] == METHOD) & (timings["job"] == job)]
        # A table that also holds the validation replicate reads its seeds as text.
        measured = measured[measured["seed"].astype(str).isin(rows["seed"].astype(str))]
        if measured.empty:
            raise MissingMeasurement(f"timings hold no {job} of {arm}, method {METHOD}; run 03_continual on this machine")
        if measured["seed"].duplicated().any():
            raise ValueError(
                f"timings hold {len(measured)} rows of {job} of {arm} for seeds {sorted(set(measured['seed']))}; give one each"
            )
        found[arm] = float(measured["wall_s"].median() / rows["step"].max())
    return found


def at_equal_seconds(points: pd.DataFrame, seconds: Mapping[str, float], treatment: str, control: str) -> pd.DataFrame:
    """Both arms' curves read at the same measured time: columns seed, seconds, treatment, control, difference (scores).

    `points` as of `mean_curves`, `seconds` per step by arm. An analysis of what was run, not an arm: it ends where the
    faster arm has finished its stream. Linear between points, at the points of both curves.
    """
    if absent := {treatment, control} - set(seconds):
        raise MissingMeasurement(f"no seconds per step of {sorted(absent)}; seen {dict(seconds)}. Measure both arms on one machine")
    wide = {arm: points[points["arm"] == arm].pivot(index="seed", columns="step", values="score") for arm in (treatment, control)}
    if list(wide[treatment].index) != list(wide[control].index) or wide[treatment].empty:
        raise ValueError(f"seeds {list(wide[treatment].index)} of {treatment}, {list(wide[control].index)} of {control}: run both alike")
    times = {arm: table.columns.to_numpy(dtype=float) * seconds[arm] for arm, table in wide.items()}
    knots = np.unique(np.concatenate(list(times.values())))
    knots = knots[knots <= min(time[-1] for time in times.values())]
    parts = []
    for seed in wide[treatment].index:
        read = [np.interp(knots, times[arm], wide[arm].loc[seed].to_numpy()) for arm in (treatment, control)]
        row = {"seed": seed, "seconds": knots, "treatment": read[0], "control": read[1], "difference": read[0] - read[1]}
        parts.append(pd.DataFrame(row))
    return pd.concat(parts, ignore_index=True)
