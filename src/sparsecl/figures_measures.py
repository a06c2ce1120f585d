"""Forgetting beside own and final score, and their differences to the dense reference (paper, figure of the measures)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.arms import Arm
from sparsecl.figure_style import (
    TEXT_WIDTH,
    TOGETHER,
    NothingToDraw,
    arm_handles,
    arm_style,
    draw_interval,
    main_rows,
    over_domains,
    reference_arm,
    streamed_arms_in,
    styled,
)

MEASURES = {"forgetting": "forgetting (points)", "own": "own score (%)", "final": "final score (%)"}


def _replicate_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """Measures over domains, kind `all`: a row for every replicate, columns (measure, arm), in percent."""
    rows = main_rows(metrics)
    rows = rows[(rows["kind"] == "all") & over_domains(rows) & rows["metric"].isin(MEASURES)].dropna(subset=["value"])
    if rows.empty:
        raise NothingToDraw(f"metrics: no rows {tuple(MEASURES)} over domains of kind 'all'; run 05_stats after 03_continual")
    return 100 * rows.pivot_table(index="seed", columns=["metric", "arm"], values="value", dropna=False)


@styled
def forgetting_own_final(metrics: pd.DataFrame, margin: float | None = None) -> Figure:
    """Forgetting, own and final score per replicate with 95 % t intervals, and paired differences to the dense reference.

    `margin` (a fraction, as in the tables) is drawn as the band of equivalence. Few arms stand side by side, with their
    pairs joined; more stand one below the other, values above and differences below.
    """
    values = _replicate_values(metrics)
    arms = streamed_arms_in(values.columns.to_frame(index=False), "metrics")
    draw = _side_by_side if len(arms) < TOGETHER else _below_each_other
    return draw(values, arms, None if margin is None else 100 * margin)


def _faint(arm: Arm) -> dict:
    """The style of single replicates beside their mean."""
    return arm_style(arm) | {"markersize": 3, "alpha": 0.45, "linestyle": ""}


def _difference_title(reference: Arm, margin: float | None) -> str:
    return f"paired difference to {reference.label}" + (" (grey: margin)" if margin is not None else "")


def _side_by_side(values: pd.DataFrame, arms: Sequence[Arm], margin: float | None) -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.6), width_ratios=(1.25, 1))
    _draw_pairs(left, values, arms)
    left.set_ylabel("score (%) or points")
    left.set_title("replicates, mean and 95 % interval")
    left.legend(handles=arm_handles(arms, line=False), ncols=len(arms), loc="best")
    left.margins(y=0.16)
    _draw_differences(right, values, arms, margin)
    right.set_ylabel("points")
    right.set_title(_difference_title(reference_arm(arms), margin))
    return figure


def _draw_pairs(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm]) -> None:
    """Replicates as points, joined where they are a pair, with mean and interval beside them."""
    spread = np.linspace(-0.17, 0.17, len(arms))
    for position, measure in enumerate(MEASURES):
        wide = values[measure][[arm.name for arm in arms]]
        for row in wide.to_numpy():
            axes.plot(position + spread, row, color="0.8", linewidth=0.7, zorder=1)
        for offset, arm in zip(spread, arms, strict=True):
            axes.plot(np.full(len(wide), position + offset), wide[arm.name], zorder=2, **_faint(arm))
            draw_interval(axes, position + offset * 1.75, wide[arm.name], arm)
    axes.set_xticks(range(len(MEASURES)), MEASURES)
    axes.grid(False, axis="x")


def _draw_differences(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm], margin: float | None) -> None:
    """Differences to the reference arm, replicate by replicate."""
    reference = reference_arm(arms)
    others = [arm for arm in arms if arm != reference]
    if margin is not None:
        axes.axhspan(-margin, margin, color="0.93", zorder=0, linewidth=0)
    axes.axhline(0, color="0.4", linewidth=0.8)
    shifts = np.linspace(-0.15, 0.15, len(others)) if len(others) > 1 else [0]
    for position, measure in enumerate(MEASURES):
        for shift, arm in zip(shifts, others, strict=False):
            difference = values[measure, arm.name] - values[measure, reference.name]
            axes.plot(np.full(len(difference), position + shift - 0.14), difference, **_faint(arm))
            draw_interval(axes, position + shift, difference, arm)
    axes.set_xticks(range(len(MEASURES)), MEASURES)
    axes.set_xlim(-0.5, len(MEASURES) - 0.5)
    axes.grid(False, axis="x")


def _below_each_other(values: pd.DataFrame, arms: Sequence[Arm], margin: float | None) -> Figure:
    """One row an arm and one column a measure; the line in the upper panels is the reference's mean."""
    reference = reference_arm(arms)
    others = [arm for arm in arms if arm != reference]
    height = 0.2 * (len(arms) + len(others)) + 1.3
    figure, grid = plt.subplots(2, 3, figsize=(TEXT_WIDTH, height), sharey="row", height_ratios=(len(arms), len(others)))
    for (upper, lower), (measure, label) in zip(grid.T, MEASURES.items(), strict=True):
        paired = values[measure].sub(values[measure, reference.name], axis=0)
        _draw_rows(upper, values[measure], arms)
        upper.axvline(values[measure, reference.name].mean(), color="0.4", linewidth=0.8, zorder=1)
        upper.set_title(label)
        if margin is not None:
            lower.axvspan(-margin, margin, color="0.9", zorder=0, linewidth=0)
        _draw_rows(lower, paired, others)
        lower.axvline(0, color="0.4", linewidth=0.8, zorder=1)
    grid[1, 1].set_title(_difference_title(reference, margin))
    grid[1, 1].set_xlabel("points")
    return figure


def _draw_rows(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm]) -> None:
    """Arms downwards, each with its replicates, mean and interval."""
    for row, arm in enumerate(arms):
        axes.plot(values[arm.name], np.full(len(values), row + 0.24), zorder=2, **_faint(arm) | {"markersize": 2})
        draw_interval(axes, row - 0.12, values[arm.name], arm, horizontal=True)
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
