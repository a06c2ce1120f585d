"""The learned-forgotten frontier as a picture: what was forgotten and kept at equal learning (paper, section Frontier).

Drawn from metrics.csv; numbers come from `sparsecl.frontier`. Scores in percent.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from sparsecl.arms import Arm
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_handles, arm_style, mean_interval, streamed_arms_in, styled
from sparsecl.frontier import OUTCOMES, frontier_points, mean_frontier

LABELS = {"own": "own (%)", "forgetting": "forgetting (points)", "final": "final (%)"}
OVERLAP_COLOUR = "#F0E442"


def _error(interval: tuple[float, float, float]) -> list[list[float]] | None:
    mean, low, high = interval
    return None if pd.isna(low) else [[mean - low], [high - mean]]


def _draw_arm(axes: Axes, points: pd.DataFrame, band: pd.DataFrame, arm: Arm, outcome: str) -> None:
    """Replicates faint, a cross of two intervals at each stage length, the mean curve with its band."""
    style = arm_style(arm)
    axes.fill_between(band["own"], band["low"], band["high"], color=arm.colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(band["own"], band["mean"], color=arm.colour, linewidth=1.1, zorder=2)
    axes.plot(points["own"], points[outcome], **style | {"linestyle": "", "markersize": 2.5, "alpha": 0.3, "zorder": 2})
    centres = points.groupby("stage_steps")[["own", outcome]].mean()
    # The mean curve ends where a replicate's does; this line only says which crosses belong together.
    axes.plot(centres["own"], centres[outcome], color=arm.colour, linewidth=0.7, linestyle=":", zorder=2)
    for _, run in points.groupby("stage_steps"):
        own, value = mean_interval(run["own"]), mean_interval(run[outcome])
        bars = {"xerr": _error(own), "yerr": _error(value), "capsize": 1.5, "linewidth": 1, "markersize": 4}
        axes.errorbar(own[0], value[0], zorder=4, **bars, **style)


def _mark_overlap(axes: Axes, points: pd.DataFrame, treatment: str, control: str) -> bool:
    """Shade where both arms' mean own ranges meet; whether they do."""
    own = points.groupby(["arm", "stage_steps"])["own"].mean()
    low, high = max(own[treatment].min(), own[control].min()), min(own[treatment].max(), own[control].max())
    if low < high:
        axes.axvspan(low, high, color=OVERLAP_COLOUR, alpha=0.22, linewidth=0, zorder=0)
    return bool(low < high)


def _name_stage_lengths(axes: Axes, points: pd.DataFrame, arm: Arm, outcome: str) -> None:
    halo = [withStroke(linewidth=2, foreground="white")]
    for steps, run in points[points["arm"] == arm.name].groupby("stage_steps"):
        place = {"xy": (run["own"].mean(), run[outcome].mean()), "xytext": (4, -9), "textcoords": "offset points"}
        axes.annotate(f"{steps}", **place, fontsize=8, color=arm.colour, path_effects=halo, zorder=5)


@styled
def learned_forgotten_frontier(metrics: pd.DataFrame, treatment: str = "S1-2of4", control: str = "D1") -> Figure:
    """Forgetting and final against own, one curve per arm over its stage lengths, 95 % t intervals over replicates (percent).

    Numbers beside the marks of `control` are optimizer steps of a stage. Raises NothingToDraw where `treatment` or
    `control` did not run several stage lengths.
    """
    points = frontier_points(metrics)
    if absent := {treatment, control} - set(points["arm"]):
        raise NothingToDraw(
            f"metrics: {sorted(absent)} ran no second stage length in order main; add one to the study and run 03_continual"
        )
    arms = streamed_arms_in(points, "metrics")
    scaled = points.assign(**{name: 100 * points[name] for name in ("own", *OUTCOMES)})
    figure, panels = plt.subplots(1, len(OUTCOMES), figsize=(TEXT_WIDTH, 2.75), sharex=True)
    for axes, outcome in zip(panels, OUTCOMES, strict=True):
        bands = mean_frontier(scaled, outcome)
        for arm in arms:
            _draw_arm(axes, scaled[scaled["arm"] == arm.name], bands[bands["arm"] == arm.name], arm, outcome)
        meet = _mark_overlap(axes, scaled, treatment, control)
        _name_stage_lengths(axes, scaled, next(arm for arm in arms if arm.name == control), outcome)
        axes.set(xlabel=LABELS["own"], ylabel=LABELS[outcome])
    labels = {arm.name: arm.label for arm in arms}
    shade = [Patch(color=OVERLAP_COLOUR, alpha=0.4, label=f"own reached by {labels[treatment]} and {labels[control]}")] if meet else []
    figure.legend(handles=[*arm_handles(arms), *shade], loc="outside upper center", ncols=len(arms) + 1, columnspacing=1.2)
    return figure
