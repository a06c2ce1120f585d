"""Drift at equal learning: does a method move general representations less than full fine-tuning that has learned as much?

(Paper, section Representation drift.) Who learns less also drifts less, so methods run at several stage lengths and are compared,
within each replicate, by the vertical distance of their curves of drift over what was learned, over the range of learning
that both reach (`sparsecl.frontier`). Layers are compared one by one; `over_layers` averages the comparisons, never the drifts.
"""

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparsecl.frontier import frontier_curve, mean_vertical_difference
from sparsecl.intervals import t_interval
from sparsecl.metrics import MissingMeasurement
from sparsecl.protocol import METHOD, ORDER

# Positive by construction: compared as a ratio. The debiased CKA distances may fall below 0, and are compared as a difference.
RATIO_MEASURES = ("displacement", "largest_angle", "grassmann")
RATIO, DIFFERENCE = "log ratio", "difference"
_RUN = ["arm", "method", "stage_steps", "seed"]
_POINT_COLUMNS = [*_RUN, "layer", "measure", "own", "drift"]
_PAIR_COLUMNS = ["arm", "method", "layer", "measure", "scale", "seed", "own_low", "own_high", "difference"]


def drift_points(drift: pd.DataFrame, accuracy: pd.DataFrame, score: str = "score") -> pd.DataFrame:
    """One row per run, layer and measure: columns arm, method, stage_steps, seed, layer, measure, own, drift.

    `drift` and `accuracy` are drift.csv and accuracy.csv. `own` is the score (`score="nll"`: the loss, nats) of each stage's
    domain right after that stage, mean over the stages; `drift` is the measure's mean over the same stages, of its natural
    logarithm for RATIO_MEASURES (NaN where there was no drift at all, which has no ratio). Only runs of the main order are
    kept whose arm, method and replicate ran several stage lengths. MissingMeasurement where a stage's own score is absent.
    """
    drift = drift[drift["order"] == ORDER]
    ratio = drift["measure"].isin(RATIO_MEASURES)
    drift = drift.assign(drift=np.where(ratio, _logarithm(drift["value"].to_numpy(float)), drift["value"]))
    stages = drift.merge(_own(accuracy, score), on=[*_RUN, "stage"], how="left")
    if (absent := stages[stages["own"].isna()][[*_RUN, "stage"]].drop_duplicates()).size:
        names = "; ".join(
            f"{row.arm} {row.method}, {row.stage_steps} steps, seed {row.seed}, stage {row.stage}" for row in absent[:3].itertuples()
        )
        raise MissingMeasurement(
            f"accuracy.csv lacks {score} of the stage's own domain for {names} ({len(absent)} in all); run 03_continual"
        )
    grouped = stages.groupby([*_RUN, "layer", "measure"], sort=True)
    points = grouped.agg(own=("own", "mean"), drift=("drift", lambda values: values.mean(skipna=False))).reset_index()
    several = points.groupby(["arm", "method", "seed"])["stage_steps"].transform("nunique") > 1
    return points.loc[several, _POINT_COLUMNS].reset_index(drop=True)


def _logarithm(values: Float[np.ndarray, " values"]) -> Float[np.ndarray, " values"]:
    return np.log(np.where(values > 0, values, np.nan))


def _own(accuracy: pd.DataFrame, score: str) -> pd.DataFrame:
    """Score of each stage's domain right after it, per run of the main order."""
    own = accuracy[(accuracy["order"] == ORDER) & (accuracy["kind"] == "all") & (accuracy["domain"] == accuracy["stage_domain"])]
    return own[own["stage"] > 0].rename(columns={score: "own"})[[*_RUN, "stage", "own"]]


def drift_differences(points: pd.DataFrame, control: str = METHOD) -> pd.DataFrame:
    """Every other method minus `control` at equal own, per arm, layer, measure and replicate, mean over their common range of own.

    `points` as of `drift_points`. Columns arm, method, layer, measure, scale, seed, own_low, own_high, difference. The scale is
    RATIO (difference of logarithms; exp of it is the ratio of drifts) or DIFFERENCE. Replicates in which both ran several
    lengths have a row; where their ranges of own do not meet, or a logarithm is absent, its difference is NaN.
    """
    return pd.DataFrame(_pairs(points, control), columns=_PAIR_COLUMNS)


def _pairs(points: pd.DataFrame, control: str) -> Iterator[tuple]:
    curves = {
        key: frontier_curve(rows["own"].to_numpy(), rows["drift"].to_numpy())
        for key, rows in points.groupby(["arm", "method", "layer", "measure", "seed"], sort=True)
    }
    for (arm, method, layer, measure, seed), curve in curves.items():
        base = curves.get((arm, control, layer, measure, seed))
        if method != control and base is not None:
            low, high, difference = mean_vertical_difference(curve, base) or (math.nan,) * 3
            scale = RATIO if measure in RATIO_MEASURES else DIFFERENCE
            yield arm, method, layer, measure, scale, seed, low, high, difference


def compare_drift(differences: pd.DataFrame) -> pd.DataFrame:
    """Per arm, method, layer and measure: estimate with its 95 % t interval over replicates.

    `differences` as of `drift_differences`. Columns arm, method, layer, measure, scale, estimate, low, high, n (replicates),
    absent (replicates without a common range of own, which say nothing). NaN where there are too few.
    """
    return _summary(differences, ["arm", "method", "layer", "measure", "scale"])


def over_layers(differences: pd.DataFrame) -> pd.DataFrame:
    """`compare_drift` of the mean over layers of each replicate's differences: log ratios average to that of a geometric mean.

    A replicate that lacks a layer is absent: else its mean would be over other layers than the rest.
    """
    keys = ["arm", "method", "measure", "scale"]
    means = differences.groupby([*keys, "seed"])["difference"].agg(lambda layers: layers.mean(skipna=False)).reset_index()
    return _summary(means, keys)


def _summary(differences: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    rows = []
    for key, replicates in differences.groupby(keys, sort=True):
        values = replicates["difference"].dropna().to_numpy()
        interval = t_interval(values) if len(values) > 1 else None
        low, high = (interval.low, interval.high) if interval else (math.nan, math.nan)
        estimate = float(values.mean()) if len(values) else math.nan
        rows.append((*key, estimate, low, high, len(values), len(replicates) - len(values)))
    return pd.DataFrame(rows, columns=[*keys, "estimate", "low", "high", "n", "absent"])
