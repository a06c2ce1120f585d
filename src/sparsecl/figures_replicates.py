"""What figures of many arms share: metrics of the main protocol by replicate, and marks with intervals in both directions.

Arms of the main protocol run in every replicate, further ones in the first replicates only; the figures say which.
"""

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from sparsecl.arms import Arm
from sparsecl.figure_style import NothingToDraw, arm_style, main_rows, mean_interval, over_domains


def replicate_values(metrics: pd.DataFrame, names: Collection[str], kind: str = "all") -> pd.DataFrame:
    """Metrics over domains on the main protocol: a row for every replicate, columns (metric, arm), in percent.

    NaN where an arm did not run that replicate or the metric is undefined in it. Raises NothingToDraw where a metric has no row.
    """
    rows = main_rows(metrics)
    if not rows.empty:
        rows = rows[(rows["kind"] == kind) & over_domains(rows) & rows["metric"].isin(names)].dropna(subset=["value"])
    if absent := [name for name in names if rows.empty or not (rows["metric"] == name).any()]:
        raise NothingToDraw(f"metrics: no {absent} over domains of kind {kind!r} on the main protocol; run 05_stats after 03_continual")
    return 100 * rows.pivot(index="seed", columns=["metric", "arm"], values="value").astype(float)


def main_arms(values: pd.DataFrame) -> list[str]:
    """Of the arms (columns) those with as many replicates as the most: the arms of the main protocol."""
    counts = values.notna().sum()
    return list(counts.index[counts == counts.max()])


def labels_with_n(values: pd.DataFrame, arms: Sequence[Arm]) -> list[str]:
    """Labels of arms (columns of `values`); those with fewer replicates than the most say how many."""
    counts = values[[arm.name for arm in arms]].notna().sum()
    return [arm.label + (f" ($n={counts[arm.name]}$)" if counts[arm.name] < counts.max() else "") for arm in arms]


def faint(style: dict) -> dict:
    """The style of single replicates beside their mean."""
    return style | {"markersize": 2.5, "alpha": 0.35, "linestyle": ""}


def draw_rows(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm], labels: Sequence[str]) -> None:
    """Arms downwards: every replicate faint, and below it the mean with its 95 % t interval; `values` has a column an arm."""
    for row, arm in enumerate(arms):
        axes.plot(values[arm.name], np.full(len(values), row - 0.22), zorder=2, **faint(arm_style(arm)))
        draw_cross(axes, values[arm.name], [row + 0.12], **arm_style(arm))
    axes.set_yticks(range(len(arms)), labels)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def draw_cross(axes: Axes, x: Iterable[float], y: Iterable[float], **style) -> None:
    """The mean of both coordinates over replicates with its 95 % t interval in each direction; one value has no interval."""
    (x_mean, *x_bounds), (y_mean, *y_bounds) = mean_interval(x), mean_interval(y)
    errors = {"xerr": _lengths(x_mean, *x_bounds), "yerr": _lengths(y_mean, *y_bounds)}
    axes.errorbar(x_mean, y_mean, **errors, **{"capsize": 2, "linewidth": 1.2, "zorder": 4} | style)


def _lengths(mean: float, low: float, high: float) -> list[list[float]] | None:
    return None if np.isnan(low) else [[mean - low], [high - mean]]


def draw_band(axes: Axes, band: pd.DataFrame, x: str, colour: str, **line) -> None:
    """A mean curve with its interval: columns `x`, mean, low, high (`figure_style.intervals`)."""
    axes.plot(band[x], band["mean"], color=colour, **line)
    axes.fill_between(band[x], band["low"], band["high"], color=colour, alpha=0.15, linewidth=0)
