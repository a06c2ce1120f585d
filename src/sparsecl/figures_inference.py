"""What sparse weights gain at inference: measured against theory, by topology and stack (H2; paper, section Efficiency)."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sparsecl.arms import Arm, topology_label
from sparsecl.comparisons import freedom
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_of, styled
from sparsecl.figures_replicates import draw_cross, faint

STACKS = ("csr", "bsr", "semi-structured")  # order of a topology's rows
THEORY = {"marker": "|", "color": "0.35", "markersize": 11, "markeredgewidth": 1.6, "linestyle": ""}
WITHOUT = "no kernel"


@styled
def inference_speed(inference: pd.DataFrame) -> Figure:
    """Seconds of a dense pass over those of the sparse stack, a row a topology and stack and a panel a load (and device).

    Marks are means over replicates with 95 % t intervals, ticks the gain in theory (masked weights free); left of the line at
    1 the sparse stack is slower. A stack without a kernel on the device says so. Raises NothingToDraw without rows.
    """
    if inference.empty:
        raise NothingToDraw("inference: no rows to draw; run 02_recover, which times the recovered sparse arms")
    rows = sorted({(row.arm, row.stack) for row in inference.itertuples()}, key=_place)
    devices, loads = sorted(set(inference["device"])), sorted({(row.rows, row.tokens) for row in inference.itertuples()})
    height = len(devices) * (0.19 * len(rows) + 0.35) + 0.75
    figure, grid = plt.subplots(len(devices), len(loads), figsize=(TEXT_WIDTH, height), sharex=True, sharey=True, squeeze=False)
    for panels, device in zip(grid, devices, strict=True):
        for axes, load in zip(panels, loads, strict=True):
            shown = (inference["device"] == device) & (inference["rows"] == load[0]) & (inference["tokens"] == load[1])
            _draw_load(axes, inference[shown], rows)
            axes.set_title(_title(load) + (f", {device}" if len(devices) > 1 else ""))
    grid[0, 0].set_yticks(range(len(rows)), [f"{topology_label(arm_of(name).topology)}, {stack}" for name, stack in rows])
    grid[0, 0].set_ylim(len(rows) - 0.4, -0.6)
    _ticks(grid[0, 0])
    figure.supxlabel("gain in speed (dense time / sparse time)" + (f" on {devices[0]}" if len(devices) == 1 else ""), fontsize=9)
    measured = Line2D([], [], marker="s", linestyle="", color="0.35", label="measured")
    figure.legend(handles=[measured, Line2D([], [], label="theoretical", **THEORY)], loc="outside upper center", ncols=2)
    return figure


def _place(row: tuple[str, str]) -> tuple:
    """From the freest topology to the coarsest, then by density and stack."""
    arm, stack = arm_of(row[0]), row[1]
    return freedom(arm.topology), -arm.density, arm.name, STACKS.index(stack) if stack in STACKS else len(STACKS), stack


def _title(load: tuple[int, int]) -> str:
    return "one token" if load == (1, 1) else f"{load[0]} rows of {load[1]} tokens"


def _draw_load(axes: Axes, found: pd.DataFrame, rows: Sequence[tuple[str, str]]) -> None:
    axes.axvline(1, color="0.4", linewidth=0.8, zorder=1)
    for place, (name, stack) in enumerate(rows):
        here = found[(found["arm"] == name) & (found["stack"] == stack)]
        if here.empty:
            continue
        axes.plot(here["gain_theoretical"].mean(), place, zorder=2, **THEORY)
        _draw_measured(axes, place, here["gain_measured"].dropna().astype(float), arm_of(name))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _draw_measured(axes: Axes, place: int, gains: pd.Series, arm: Arm) -> None:
    """The topology's colour; nothing was timed where there is no kernel."""
    if gains.empty:
        axes.annotate(WITHOUT, (1, place), xytext=(-4, 0), textcoords="offset points", ha="right", va="center", fontsize=8, color="0.35")
        return
    style = {"color": arm.colour, "marker": arm.marker}
    axes.plot(gains, np.full(len(gains), place - 0.2), **faint(style))
    draw_cross(axes, gains, [place + 0.08], **style)


def _ticks(axes: Axes) -> None:
    """A log axis, because twice as fast and half as fast are equally far from 1; plain numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
