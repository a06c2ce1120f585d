"""Figures about single checkpoints: conversion and recovery, activation overlap.

Read by `sparsecl.figures`, which names all figures of the paper.
"""

import re
from collections.abc import Collection, Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import RUNG, Arm
from sparsecl.comparisons import result_rows
from sparsecl.figure_style import (
    CHECKPOINT_ARMS,
    TEXT_WIDTH,
    TOGETHER,
    NothingToDraw,
    arm_handles,
    arm_style,
    arms_in,
    draw_interval,
    intervals,
    streamed_arms_in,
    styled,
)
from sparsecl.figures_matrices import heat_map
from sparsecl.figures_probes import rows_of_main_fraction

RECOVERY = re.compile(r"recovery/nll/(\d+)")


def recovery_points(conversion: pd.DataFrame) -> pd.DataFrame:
    """Rows `recovery/nll/<step>` of the conversion table with their step as a column."""
    steps = conversion["metric"].str.extract(f"^{RECOVERY.pattern}$")[0]
    return conversion[steps.notna()].assign(step=steps.dropna().astype(int))


def _draw_checkpoints(axes: Axes, rows: pd.DataFrame, arms: list[Arm], scale: float) -> None:
    for position, arm in enumerate(arms):
        values = scale * rows.loc[rows["arm"] == arm.name, "value"]
        style = arm_style(arm) | {"markersize": 3, "alpha": 0.45, "linestyle": ""}
        axes.plot(np.full(len(values), position - 0.18), values, **style)
        draw_interval(axes, position + 0.06, values, arm)
    axes.set_xticks(range(len(arms)), [arm.label for arm in arms])
    axes.set_xlim(-0.6, len(arms) - 0.4)
    axes.grid(False, axis="x")


@styled
def conversion_and_recovery(conversion: pd.DataFrame, arms: Collection[str] = CHECKPOINT_ARMS) -> Figure:
    """Immediate loss and recovery on the general mixture: scores and losses of the checkpoints, loss during recovery.

    Points are replicates; bars and bands are 95 % t intervals over them. Only `arms` are drawn: the others are compared
    in `sparsecl.figures_conversion`.
    """
    conversion = result_rows(conversion[conversion["arm"].isin(arms)])
    measured = [name for name in ("score/general", "nll/general") if (conversion["metric"] == name).any()]
    points = recovery_points(conversion)
    if not measured:
        raise NothingToDraw("conversion: neither 'score/general' nor 'nll/general' is there; run 01_sparsify and 02_recover")
    panels = len(measured) + (not points.empty)
    figure, grid = plt.subplots(1, panels, figsize=(TEXT_WIDTH, 2.3), squeeze=False, layout="constrained")
    titles = {"score/general": ("general score (%)", 100), "nll/general": ("general loss (nats per token)", 1)}
    for axes, name in zip(grid[0], measured, strict=False):
        rows = conversion[conversion["metric"] == name]
        title, scale = titles[name]
        _draw_checkpoints(axes, rows, arms_in(rows, "conversion"), scale)
        axes.set_title(title)
    if not points.empty:
        axes, arms = grid[0][-1], arms_in(points, "conversion")
        for arm in arms:
            band = intervals(points[points["arm"] == arm.name], "step", "value")
            axes.plot(band["step"], band["mean"], **(arm_style(arm) | {"markersize": 3}))
            axes.fill_between(band["step"], band["low"], band["high"], color=arm.colour, alpha=0.18, linewidth=0)
        axes.set_title("loss during the extra steps")
        axes.set_xlabel("optimizer steps")
        axes.legend(handles=arm_handles(arms), loc="best")
    return figure


def _layer_number(layer: object) -> int:
    digits = re.findall(r"\d+", str(layer))
    return int(digits[0]) if digits else 0


def _draw_layer(axes: Axes, rows: pd.DataFrame, arms: list[Arm], pairs: list[tuple[str, str]]) -> None:
    """One layer: domain pairs downwards, overlap to the right; nulls and ceiling as ticks of the same row."""
    offsets = np.linspace(-0.26, 0.26, len(arms)) if len(arms) > 1 else np.zeros(1)
    for row, pair in enumerate(pairs):
        here = rows[(rows["domain_a"] == pair[0]) & (rows["domain_b"] == pair[1])]
        bars = here[["null", "null_label", "ceiling"]].mean()
        axes.plot([bars["null_label"], bars["ceiling"]], [row, row], color="0.87", linewidth=5, solid_capstyle="butt", zorder=1)
        for column, style in REFERENCES.items():
            axes.plot(bars[column], row, linestyle="", zorder=2, **style)
        for offset, arm in zip(offsets, arms, strict=True):
            values = here.loc[here["arm"] == arm.name, "value"]
            if len(values):
                axes.plot(values.mean(), row + offset, zorder=3, linestyle="", **arm_style(arm))
                axes.plot([values.min(), values.max()], [row + offset] * 2, color=arm.colour, linewidth=1, zorder=2)


REFERENCES = {
    "null": {"marker": "|", "color": "#D55E00", "markersize": 9, "markeredgewidth": 1.6, "label": "chance (permuted neurons)"},
    "null_label": {"marker": "|", "color": "#009E73", "markersize": 9, "markeredgewidth": 1.6, "label": "permuted domain labels"},
    "ceiling": {"marker": "|", "color": "0.45", "markersize": 9, "markeredgewidth": 1.6, "label": "split-half ceiling"},
}


@styled
def layer_overlap(overlap: pd.DataFrame, selection: str | None = None) -> Figure:
    """Top-K activation overlap (IoU) per layer and domain pair by arm, beside its two nulls and its ceiling.

    Markers are means over replicates and lines their range; many arms are columns of numbers (`_overlap_numbers`).
    `selection` names the score that chose the neurons ("magnitude" where absent, or the only one there is).
    """
    if overlap.empty:
        raise NothingToDraw("overlap: no rows to draw; run 04_probe")
    known = sorted(overlap["selection"].unique())
    selection = selection or ("magnitude" if "magnitude" in known else known[0])
    rows = overlap[overlap["selection"] == selection]
    if rows.empty:
        raise NothingToDraw(f"overlap: selection {selection!r} is not there, only {known}")
    rows = rows_of_main_fraction(rows[~rows["arm"].str.startswith(f"{RUNG}-")])  # the ladder has a figure of its own
    arms = streamed_arms_in(rows, "overlap")
    pairs = list(rows[["domain_a", "domain_b"]].drop_duplicates().itertuples(index=False, name=None))
    layers = {f"layer {_layer_number(layer)}": rows[rows["layer"] == layer] for layer in sorted(rows["layer"].unique(), key=_layer_number)}
    return _overlap_marks(layers, arms, pairs) if len(arms) <= TOGETHER else _overlap_numbers(layers, arms, pairs)


def _overlap_marks(layers: Mapping[str, pd.DataFrame], arms: list[Arm], pairs: list[tuple[str, str]]) -> Figure:
    height = 0.26 * len(pairs) + 1.0
    figure, grid = plt.subplots(1, len(layers), figsize=(TEXT_WIDTH, height), sharey=True, sharex=True, squeeze=False)
    for axes, (title, rows) in zip(grid[0], layers.items(), strict=True):
        _draw_layer(axes, rows, arms, pairs)
        axes.set_title(title)
        axes.grid(False, axis="y")
    grid[0][0].set_yticks(range(len(pairs)), [f"{a} – {b}" for a, b in pairs])
    grid[0][0].set_ylim(len(pairs) - 0.5, -0.5)
    figure.supxlabel("intersection over union of the top neurons", fontsize=9)
    references = [Line2D([], [], linestyle="", **style) for style in REFERENCES.values()]
    figure.legend(handles=[*arm_handles(arms, line=False), *references], loc="outside upper center", ncols=3)
    return figure


def _overlap_numbers(layers: Mapping[str, pd.DataFrame], arms: list[Arm], pairs: list[tuple[str, str]]) -> Figure:
    """Pairs downwards, arms across, in percent: numbers are overlaps, colours how far each lies above its own label null.

    Means over replicates. Chance and ceiling stand apart on the right, as means over the arms.
    """
    figure, grid = plt.subplots(
        len(layers), 2, figsize=(TEXT_WIDTH, len(layers) * (0.165 * len(pairs) + 0.3) + 1.3), sharex="col", sharey=True, squeeze=False,
        width_ratios=(len(arms), 2),
    )  # fmt: skip
    found = {title: _overlap_table(rows, arms, pairs) for title, rows in layers.items()}
    bound = max(float(np.nanmax(np.abs((table["value"] - table["null_label"]).to_numpy()))) for table in found.values())
    for (left, right), (title, table) in zip(grid, found.items(), strict=True):
        above = table["value"] - table["null_label"]
        shown = heat_map(left, table["value"], ".0f", above, slant=60, vmin=-bound, vmax=bound, cmap="PuOr_r")
        outside = pd.DataFrame({"chance": table["null"].mean(axis=1), "ceiling": table["ceiling"].mean(axis=1)})
        heat_map(right, outside, ".0f", 0 * outside, slant=60, vmin=-0.06, vmax=1, cmap="Greys")  # one pale grey
        left.set_title(title)
    figure.colorbar(
        shown, ax=grid, orientation="horizontal", shrink=0.5, aspect=35, pad=0.02, label="overlap minus its label null (points of IoU)"
    )
    return figure


def _overlap_table(rows: pd.DataFrame, arms: list[Arm], pairs: list[tuple[str, str]]) -> pd.DataFrame:
    """Means over replicates in percent: a row for every pair of domains, columns (what, arm)."""
    columns = [*REFERENCES, "value"]
    table = 100 * rows.pivot_table(index=["domain_a", "domain_b"], columns="arm", values=columns).reindex(pairs)
    table = table.reindex(columns=pd.MultiIndex.from_product([columns, [arm.name for arm in arms]]))
    return table.rename(columns={arm.name: arm.label for arm in arms}, level=1).set_axis([f"{a} – {b}" for a, b in pairs])
