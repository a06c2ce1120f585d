"""Which units masked fine-tuning selected: overlap of the domains' selections, and collisions along the stream (paper, H5A).

Drawn from update_masks.csv. Selections that overlap no more than chance are what such a method hopes for; a unit that an
earlier domain selected and a later one selects again is where it can forget. What sets of that size collide by chance is
what the control shows, whose sets are drawn independently: in expectation 1 - (1 - f)^s for the share f after s earlier stages.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, styled
from sparsecl.figures_methods import method_style, rows_of_method
from sparsecl.figures_probes import draw_by_layer, draw_levels, level_handles, mark_layers, rows_of_arm, shown_layers
from sparsecl.figures_replicates import draw_cross
from sparsecl.methods import METHODS

PAIRS = ["earlier_domain", "stage_domain"]
MOST_LINES = 4  # layers whose collisions can be told apart
CONTROL = "activation-mask-random"
CHANCE = {"color": "0.6", "linewidth": 2.4, "zorder": 1, "solid_capstyle": "butt"}


@styled
def update_mask_overlap(update_masks: pd.DataFrame, arm: str | None = None) -> Figure:
    """A row a method: IoU of the domains' selected units by layer, against chance, and the share selected before, by stage.

    Pairs of an earlier and a later domain are faint, their mean stands with its t interval over replicates; collisions are
    means with t intervals, a line a layer, over those of the random control (mean over layers and replicates) where it ran.
    Raises NothingToDraw where no method selected units.
    """
    rows = rows_of_arm(update_masks, "update_masks", arm)
    methods = [name for name in METHODS if (rows["method"] == name).any()]
    if not methods:
        raise NothingToDraw("update_masks: no method that selects units, such as activation-mask; add it to the study's streams")
    layers = sorted(rows["layer"].unique())
    figure, grid = plt.subplots(len(methods), 2, figsize=(TEXT_WIDTH, 1.55 * len(methods) + 1.0), sharex="col", sharey="col", squeeze=False)
    for (left, right), method in zip(grid, methods, strict=True):
        here = rows_of_method(rows, method)
        pairs = here[here["earlier_domain"].fillna("") != ""]
        draw_levels(left, pairs, ("null",))
        draw_by_layer(left, pairs, PAIRS, **method_style(method))
        _draw_collisions(right, here[here["collisions"].notna()], shown_layers(rows, MOST_LINES), METHODS[method].colour)
        _draw_chance(right, rows)
        left.set_title(METHODS[method].label)
    _label(grid, layers)
    figure.legend(handles=_handles(rows, shown_layers(rows, MOST_LINES)), loc="outside upper center", ncols=5, columnspacing=1.2)
    return figure


def _draw_collisions(axes: Axes, rows: pd.DataFrame, layers: list[int], colour: str) -> None:
    for layer, here in rows[rows["layer"].isin(layers)].groupby("layer"):
        style = _layer_style(layers.index(layer), colour)
        means = 100 * here.groupby("stage")["collisions"].mean()
        shift = 0.05 * (layers.index(layer) - (len(layers) - 1) / 2)
        axes.plot(means.index + shift, means, **style | {"marker": ""}, linewidth=1)
        for stage, values in here.groupby("stage")["collisions"]:
            draw_cross(axes, [stage + shift], 100 * values, **style)


def _draw_chance(axes: Axes, rows: pd.DataFrame) -> None:
    """Collisions of the random control, in percent; nothing where it did not run."""
    means = 100 * rows_of_control(rows).groupby("stage")["collisions"].mean()
    if len(means):
        axes.plot(means.index, means, **CHANCE)


def rows_of_control(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the random control that hold collisions; none where it did not run."""
    return rows_of_method(rows, CONTROL).dropna(subset=["collisions"]) if (rows["method"] == CONTROL).any() else rows.iloc[:0]


def _layer_style(place: int, colour: str) -> dict:
    """Layers by line and mark: the colour is the method's."""
    style = {"color": colour, "marker": "osD^v"[place % 5], "linestyle": ("-", "--", ":", "-.")[place % 4], "markersize": 4}
    return style | ({"markerfacecolor": "white"} if place % 2 else {})


def _label(grid: np.ndarray, layers: list[int]) -> None:
    mark_layers(grid[0, 0], layers)
    for left, right in grid:
        left.grid(False, axis="x")
        left.set_ylabel("IoU")
        right.set_ylabel("selected before (%)")
    grid[0, 0].set_ylim(bottom=0)
    grid[0, 1].set_ylim(-3, 103)
    grid[0, 1].xaxis.get_major_locator().set_params(integer=True)
    grid[-1, 0].set_xlabel("layer")
    grid[-1, 1].set_xlabel("stage")


def _handles(rows: pd.DataFrame, layers: list[int]) -> list[Line2D]:
    pairs = Line2D([], [], color="0.35", marker="o", linestyle="", label="pairs of domains (left)")
    lines = [Line2D([], [], label=f"layer {layer} (right)", **_layer_style(place, "0.35")) for place, layer in enumerate(layers)]
    control = [Line2D([], [], label="random mask (right)", **CHANCE)] if len(rows_of_control(rows)) else []
    return [pairs, *level_handles(rows, ("null",)), *lines, *control]
