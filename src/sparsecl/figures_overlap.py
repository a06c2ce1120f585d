"""Overlap of the domains' most active neurons, as matrices and against the size of the sets (paper, part on implicit sparsity).

Drawn from overlap.csv. Every cell is normalised on its own, between its own null and its own ceiling, before replicates
are averaged.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, intervals, styled
from sparsecl.figures_matrices import FRAME, frame_cell, heat_map
from sparsecl.figures_probes import (
    LEVELS,
    PAIR,
    SELECTIONS,
    VALUE,
    domains_of,
    level_handles,
    normalised,
    rows_of_arm,
    rows_of_main_fraction,
    shown_layers,
    singles_style,
    without_label,
)

ALPHA = 0.05  # below the null of permuted labels: at most so probable, in every replicate
FEW_LAYERS = 4  # as many columns have room for slanted names of domains, and as many rows fit a page


@styled
def overlap_heatmaps(overlap: pd.DataFrame, arm: str | None = None, top_fraction: float | None = None) -> Figure:
    """Domain by domain, a column a layer and a row a selection: the normalised overlap in percent, mean over replicates.

    0 is chance and 100 what two halves of one domain share. Framed: below the null of permuted domain labels in every
    replicate. A dash stands where a domain's own halves do not agree. `arm` is D1 or else D0 where absent.
    """
    rows = rows_of_main_fraction(rows_of_arm(overlap, "overlap", arm), top_fraction)
    selections = _selections(rows)
    domains, layers = domains_of(rows), shown_layers(rows)
    slant = 35 if len(layers) <= FEW_LAYERS else 60
    height = len(selections) * (0.27 * (len(domains) - 1) + 0.1) + 1.55
    figure, grid = plt.subplots(
        len(selections), len(layers), figsize=(TEXT_WIDTH, height), sharex=True, sharey=True, squeeze=False, gridspec_kw={"hspace": 0.03}
    )
    for line, selection in zip(grid, selections, strict=True):
        for axes, layer in zip(line, layers, strict=True):
            mesh = _draw_pairs(axes, rows[(rows["selection"] == selection) & (rows["layer"] == layer)], domains, slant)
        line[0].set_ylabel(SELECTIONS[selection])
    for axes, layer in zip(grid[0], layers, strict=True):
        axes.set_title(f"layer {layer}")
    label = "overlap from chance (0) to the split halves of one domain (100)"
    figure.colorbar(mesh, ax=grid, orientation="horizontal", shrink=0.55, aspect=40, pad=0.02, label=label)
    figure.legend(handles=[Patch(label="below permuted domain labels in every replicate", **FRAME)], loc="outside upper center")
    return figure


def _selections(rows: pd.DataFrame) -> list[str]:
    return [name for name in SELECTIONS if (rows["selection"] == name).any()]


def _draw_pairs(axes: Axes, rows: pd.DataFrame, domains: list[str], slant: float) -> QuadMesh:
    """One lower triangle; the diagonal would be 100 by definition."""
    cells = rows.assign(normalised=100 * normalised(rows)).groupby(PAIR[::-1])
    means = cells["normalised"].mean().unstack()
    matrix = means.reindex(index=domains[1:], columns=domains[:-1])
    mesh = heat_map(axes, matrix, ".0f", slant=slant, vmin=0, vmax=100, cmap="Blues")
    for (later, earlier), worst in cells["p_label"].max().items():
        row, column = domains.index(later) - 1, domains.index(earlier)
        if np.isnan(means.loc[later, earlier]):
            axes.text(column + 0.5, row + 0.5, "–", ha="center", va="center", fontsize=8, color="0.4")
        if worst <= ALPHA:
            frame_cell(axes, row, column)
    return mesh


@styled
def overlap_by_fraction(overlap: pd.DataFrame, arm: str | None = None) -> Figure:
    """Overlap (IoU) against the share of neurons that counts as active, a column a selection and a row a layer.

    Pairs are faint, their mean stands with its t interval over replicates, between chance, permuted labels and split halves; the control on
    the same tokens stands, hollow, beside the selection it belongs to. Raises NothingToDraw for a single fraction.
    """
    rows = rows_of_arm(overlap, "overlap", arm)
    fractions = sorted(rows["top_fraction"].unique().tolist())
    if len(fractions) < 2:
        raise NothingToDraw(f"overlap: only the top fraction(s) {fractions}; name further ones in the study's probe and run 04_probe")
    selections = [name for name in _selections(rows) if "/" not in name]
    layers = shown_layers(rows, FEW_LAYERS)
    figure, grid = plt.subplots(
        len(layers), len(selections), figsize=(TEXT_WIDTH, 1.35 * len(layers) + 1.0), sharex=True, sharey=True, squeeze=False
    )
    for line, layer in zip(grid, layers, strict=True):
        for axes, selection in zip(line, selections, strict=True):
            here = rows[rows["layer"] == layer]
            _draw_fractions(axes, here[here["selection"] == selection])
            _draw_fractions(axes, here[here["selection"] == f"{selection}/same-tokens"], hollow=True)
        line[0].set_ylabel(f"layer {layer}: IoU")
    for axes, selection in zip(grid[0], selections, strict=True):
        axes.set_title(SELECTIONS[selection])
        axes.set(xscale="log", ylim=(0, 1), xlim=(fractions[0] / 1.4, fractions[-1] * 1.4))
        axes.set_xticks(fractions, [f"{100 * fraction:g}" for fraction in fractions], minor=False)
        axes.set_xticks([], minor=True)
    figure.supxlabel("neurons that count as active (%)", fontsize=9)
    figure.legend(handles=_fraction_handles(rows), loc="outside upper center", ncols=3)
    return figure


def _draw_fractions(axes: Axes, rows: pd.DataFrame, hollow: bool = False) -> None:
    if rows.empty:
        return
    of_replicates = rows.groupby(["top_fraction", "seed"], as_index=False)[["value", *LEVELS]].mean()
    band = intervals(of_replicates, "top_fraction", "value")
    bars = None if band["low"].isna().any() else [band["mean"] - band["low"], band["high"] - band["mean"]]
    style = VALUE | ({"markerfacecolor": "white", "linestyle": ":"} if hollow else {})
    axes.errorbar(band["top_fraction"], band["mean"], yerr=bars, capsize=2, zorder=4, **style)
    if hollow:
        return  # the control's own references would hide those of what it controls
    of_pairs = rows.groupby(["top_fraction", *PAIR], as_index=False)["value"].mean()
    axes.plot(of_pairs["top_fraction"] / 1.12, of_pairs["value"], **singles_style(VALUE))
    levels = of_replicates.groupby("top_fraction")[list(LEVELS)].mean()
    for column in LEVELS:
        axes.plot(levels.index, levels[column], linewidth=1, zorder=2, **without_label(LEVELS[column]))


def _fraction_handles(rows: pd.DataFrame) -> list[Line2D]:
    value = Line2D([], [], label="pairs of domains", **VALUE)
    control = Line2D([], [], label="pairs of domains, same tokens", **VALUE | {"markerfacecolor": "white", "linestyle": ":"})
    has_control = rows["selection"].str.endswith("/same-tokens").any()
    return [value, *([control] if has_control else []), *level_handles(rows)]
