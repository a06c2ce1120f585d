"""The sweep of learning rates on the validation replicate, by arm and by method (paper, section Learning rates)."""

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import Arm
from sparsecl.figure_style import TEXT_WIDTH, TOGETHER, NothingToDraw, arm_handles, line_style, over_domains, streamed_arms_in, styled
from sparsecl.figures_matrices import frame_cell, heat_map
from sparsecl.methods import FULL, METHODS

COLUMNS = {"score": {"own": "own", "final": "final"}, "nll": {"own": "nll_own", "final": "nll_final"}}
UNITS = {"score": "score (%)", "nll": "loss (nats)"}
SCALES = {"score": 100, "nll": 1}
RING = {"marker": "o", "linestyle": "", "markersize": 10, "markerfacecolor": "none"}
DASHES = {"own": "-", "final": "--"}


@styled
def learning_rate_sweep(learning_rate: pd.DataFrame, measure: str = "score", method: str = FULL) -> Figure:
    """Own and final score (or loss, where `measure` is "nll") of the arms over the grid of learning rates, under one method.

    Rings (with many arms, which are rows of a table of numbers, frames) mark the choice.
    """
    rows = _rows(learning_rate)
    rows = rows[rows["method"] == method] if len(rows) else rows
    arms = streamed_arms_in(rows, "learning_rate")
    values = {f"{name} {UNITS[measure]}": _rate_grid(rows, arms, column, SCALES[measure]) for name, column in COLUMNS[measure].items()}
    chosen = _chosen(rows)
    return _rate_curves(values, arms, chosen) if len(arms) <= TOGETHER else _rate_numbers(values, arms, chosen, measure)


@styled
def learning_rate_methods(learning_rate: pd.DataFrame, measure: str = "score") -> Figure:
    """Own (solid) and final (dashed) over the grid of learning rates, a panel a method, for the arms that swept all methods.

    Rings mark the choice. Raises NothingToDraw where fewer than two methods were swept.
    """
    rows = _rows(learning_rate)
    methods = [method for method in METHODS if (rows["method"] == method).any()]
    if len(methods) < 2:
        raise NothingToDraw(f"learning_rate: only {methods} were swept; add methods to the study's further streams and run 03_continual")
    swept = rows.groupby("arm")["method"].nunique()
    arms = streamed_arms_in(rows[rows["arm"].isin(swept.index[swept == len(methods)])], "learning_rate")
    figure, panels = plt.subplots(1, len(methods), figsize=(TEXT_WIDTH, 2.4), sharex=True, sharey=True)
    for axes, method in zip(panels, methods, strict=True):
        here = rows[rows["method"] == method]
        for name, column in COLUMNS[measure].items():
            _draw_rates(axes, _rate_grid(here, arms, column, SCALES[measure]), arms, _chosen(here), DASHES[name])
        axes.set_title(METHODS[method].label)
    panels[0].set_ylabel(UNITS[measure])
    figure.supxlabel("peak learning rate of a stage", fontsize=9)
    lines = [Line2D([], [], color="0.35", linestyle=dashes, label=name) for name, dashes in DASHES.items()]
    handles = [*arm_handles(arms, line=False), *lines, _ring_handle()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), columnspacing=1.4)
    return figure


def _rows(learning_rate: pd.DataFrame) -> pd.DataFrame:
    """Rows of kind `all`, over domains where the table has such rows."""
    rows = learning_rate[learning_rate["kind"] == "all"]
    return rows[over_domains(rows)] if over_domains(rows).any() else rows


def _chosen(rows: pd.DataFrame) -> set[float]:
    return set(rows.loc[rows["chosen"].astype(bool), "learning_rate"])


def _rate_grid(rows: pd.DataFrame, arms: Sequence[Arm], column: str, scale: float) -> pd.DataFrame:
    """Means over domains: a row an arm, a column a learning rate."""
    grid = scale * rows.pivot_table(index="arm", columns="learning_rate", values=column, dropna=False)
    if not grid.notna().any(axis=None):
        raise NothingToDraw(f"learning_rate: no value of {column!r}; draw the other measure (score or nll), or run 03_continual")
    return grid.reindex([arm.name for arm in arms])


def _draw_rates(axes: Axes, grid: pd.DataFrame, arms: Sequence[Arm], chosen: Collection[float], dashes: str | None = None) -> None:
    """A line an arm on a logarithmic axis; `dashes` in place of the arm's own."""
    for arm in arms:
        line = grid.loc[arm.name]
        axes.plot(line.index, line, **line_style(arm) | ({"linestyle": dashes} if dashes else {}))
        ringed = line[line.index.isin(chosen)]
        axes.plot(ringed.index, ringed, color=arm.colour, **RING)
    axes.set_xscale("log")
    axes.set_xticks(grid.columns, [f"{rate:g}" for rate in grid.columns])
    axes.minorticks_off()
    axes.margins(x=0.1, y=0.2)


def _ring_handle() -> Line2D:
    return Line2D([], [], color="0.3", label="chosen", **RING | {"markersize": 9})


def _rate_curves(values: Mapping[str, pd.DataFrame], arms: Sequence[Arm], chosen: Collection[float]) -> Figure:
    figure, panels = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.2), sharex=True)
    for axes, (title, grid) in zip(panels, values.items(), strict=True):
        _draw_rates(axes, grid, arms, chosen)
        axes.set_xlabel("peak learning rate of a stage")
        axes.set_title(title)
    panels[0].legend(handles=[*arm_handles(arms), _ring_handle()], loc="best")
    return figure


def _rate_numbers(values: Mapping[str, pd.DataFrame], arms: Sequence[Arm], chosen: Collection[float], measure: str) -> Figure:
    """Arms downwards, learning rates across; the colours of both panels are on one scale."""
    figure, panels = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 0.17 * len(arms) + 0.8), sharey=True)
    limit = 100 if measure == "score" else max(float(np.nanmax(grid.to_numpy())) for grid in values.values())
    for axes, (title, grid) in zip(panels, values.items(), strict=True):
        labelled = grid.set_axis([arm.label for arm in arms]).set_axis([f"{rate:g}" for rate in grid.columns], axis=1)
        heat_map(axes, labelled, ".1f" if measure == "score" else ".2f", slant=0, vmin=0, vmax=limit, cmap="Blues")
        for column in np.flatnonzero(grid.columns.isin(chosen)):
            frame_cell(axes, 0, column, rows=len(arms))
        axes.set_title(title)
        axes.set_xlabel("peak learning rate of a stage")
    return figure
