"""Where the sparse arm overtakes the dense one, along steps and at equal measured time (paper, section Crossover).

Curves and crossover are those of `sparsecl.crossover`, in percent; bands are 95 % t intervals over replicates.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.arms import Arm
from sparsecl.crossover import JOB, at_equal_seconds, mean_curves, seconds_per_step, summarise_crossovers
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_handles, arm_of, domain_order, intervals, line_style, main_rows, styled
from sparsecl.figures_replicates import draw_band
from sparsecl.protocol import METHOD

MARK = "#D55E00"


@styled
def crossover(
    curves: pd.DataFrame,
    accuracy: pd.DataFrame,
    timings: pd.DataFrame,
    treatment: str = "S1-2of4",
    control: str = "D1",
    beside: Sequence[str] = ("Df-0.5",),
) -> Figure:
    """Left: the mean score over all domains along the optimizer steps, with the crossover of the mean curves where there is one.

    Right: the paired difference, treatment minus control, at equal measured seconds. Arms `beside` have a curve where they ran.
    Raises NothingToDraw where treatment or control have no scores inside the stages or no times.
    """
    drawn = _arms_with_curves(curves, (control, treatment, *beside))
    timed = set(timings.loc[(timings["job"] == JOB) & (timings["method"] == METHOD), "arm"])
    if absent := {treatment, control} - (set(drawn) & timed):
        raise NothingToDraw(f"curves and timings: {sorted(absent)} lack scores inside the stages, or times; run them in 03_continual")
    points = mean_curves(curves, accuracy, drawn)
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.7), width_ratios=(1.5, 1))
    arms = [arm_of(name) for name in drawn]
    _draw_curves(left, points, arms)
    _mark_stages(left, curves[curves["arm"] == control])
    _mark_crossover(left, summarise_crossovers(points, treatment, control).on_mean_curve, arm_of(treatment))
    _draw_difference(right, at_equal_seconds(points, seconds_per_step(timings, points), treatment, control), arm_of(treatment))
    right.set_ylabel(f"{arm_of(treatment).label} minus {arm_of(control).label} (points)")
    figure.legend(handles=arm_handles(arms), loc="outside upper center", ncols=len(arms))
    return figure


def _arms_with_curves(curves: pd.DataFrame, names: Sequence[str]) -> list[str]:
    measured = set(main_rows(curves.dropna(subset=["score"]))["arm"]) if len(curves) else set()
    return [name for name in names if name in measured]


def _draw_curves(axes: Axes, points: pd.DataFrame, arms: Sequence[Arm]) -> None:
    for arm in arms:
        band = intervals(points[points["arm"] == arm.name].assign(score=lambda rows: 100 * rows["score"]), "step", "score")
        style = line_style(arm)
        draw_band(axes, band, "step", style.pop("color"), **style | {"markersize": 2.5, "linewidth": 1.1})
    axes.set(xlabel="optimizer steps since the start of the stream", ylabel="mean score of all domains (%)")
    axes.margins(x=0.01)


def _mark_stages(axes: Axes, rows: pd.DataFrame) -> None:
    """Ends of the control's stages, and above each the domain that it trains."""
    rows = main_rows(rows)
    steps = int(rows["stage_steps"].iloc[0])
    for number, domain in enumerate(domain_order(rows)):
        axes.axvline((number + 1) * steps, color="0.75", linewidth=0.6, zorder=0)
        axes.annotate(domain, ((number + 0.5) * steps, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), textcoords="offset points",
                      ha="center", fontsize=8, color="0.35")  # fmt: skip
    axes.grid(False, axis="x")


def _mark_crossover(axes: Axes, step: float, treatment: Arm) -> None:
    """A line at the crossover; where there is none, a sentence."""
    text = {"fontsize": 8, "color": MARK, "textcoords": "offset points", "va": "bottom"}
    if step == 0 or not np.isfinite(step):
        sentence = "no crossover" if step else f"{treatment.label} above from the start"
        axes.annotate(sentence, (1, 0), xycoords="axes fraction", xytext=(-4, 4), ha="right", **text)
        return
    axes.axvline(step, color=MARK, linewidth=1, linestyle="--", zorder=1)
    is_late = step > np.mean(axes.get_xlim())
    place = {"xytext": (-4, 4), "ha": "right"} if is_late else {"xytext": (4, 4), "ha": "left"}
    axes.annotate(f"crossover at step {step:.0f}", (step, 0), xycoords=("data", "axes fraction"), **place, **text)


def _draw_difference(axes: Axes, read: pd.DataFrame, treatment: Arm) -> None:
    band = intervals(read.assign(points=100 * read["difference"]), "seconds", "points")
    draw_band(axes, band, "seconds", treatment.colour, linewidth=1.1)
    axes.axhline(0, color="0.4", linewidth=0.8, zorder=1)
    axes.set_xlabel("measured seconds of training")
    axes.set_title("at equal measured time")
    axes.margins(x=0.01)
