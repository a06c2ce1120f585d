"""Overlap of the gradients of domains by layer and module (paper, part on implicit sparsity).

Drawn from gradients.csv: cosine of the mean gradients, overlap of their largest entries, and overlap and angle of the
subspaces of their batches. A cosine near 0 is what chance gives in many dimensions, so its bands are drawn with it.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, styled
from sparsecl.figures_probes import MODULES, PAIR, VALUE, draw_by_layer, draw_levels, level_handles, mark_layers, rows_of_arm

MEASURES = {
    "cosine": "cosine",
    "top_support": "IoU of the\nlargest entries",
    "subspace": "overlap of\nthe subspaces",
    "largest_angle": "largest angle\n(radians)",
}
BANDS = {"effective_dimension": "#F6DCC8", "parameters": "#D55E00"}  # the wide band first


@styled
def gradient_overlap(gradients: pd.DataFrame, arm: str | None = None) -> Figure:
    """A row a measure, a column a module, layers along the axis: pairs faint, their mean with its t interval over replicates.

    Beside the cosine, bands of one standard deviation by chance: 1/sqrt(parameters), and 1/sqrt(effective dimension).
    """
    rows = rows_of_arm(gradients, "gradients", arm)
    measures = [name for name in MEASURES if (rows["measure"] == name).any()]
    modules = [name for name in MODULES if (rows["module"] == name).any()]
    if not measures or not modules:
        raise NothingToDraw(f"gradients: none of the measures {tuple(MEASURES)} in modules {tuple(MODULES)}; run 04_probe")
    figure, grid = plt.subplots(
        len(measures), len(modules), figsize=(TEXT_WIDTH, 1.3 * len(measures) + 0.9), sharex=True, sharey="row", squeeze=False
    )
    for line, measure in zip(grid, measures, strict=True):
        for axes, module in zip(line, modules, strict=True):
            here = rows[(rows["measure"] == measure) & (rows["module"] == module)]
            _draw_measure(axes, here, measure == "cosine")
            mark_layers(axes, sorted(rows["layer"].unique()))
        line[0].set_ylabel(MEASURES[measure])
    for axes, module in zip(grid[0], modules, strict=True):
        axes.set_title(MODULES[module])
    figure.supxlabel("layer", fontsize=9)
    figure.legend(handles=_handles(rows, "cosine" in measures), loc="outside upper center", ncols=3, columnspacing=1.4)
    return figure


def _draw_measure(axes: Axes, rows: pd.DataFrame, is_cosine: bool) -> None:
    if is_cosine:
        _draw_bands(axes, rows)
    draw_levels(axes, rows, ("null_label", "ceiling") if is_cosine else ("null", "null_label", "ceiling"))
    draw_by_layer(axes, rows, PAIR, **VALUE)


def _draw_bands(axes: Axes, rows: pd.DataFrame) -> None:
    """Around 0 in every layer, one standard deviation of the cosine of random directions to either side."""
    axes.axhline(0, color="0.75", linewidth=0.6, zorder=1)
    for column, colour in BANDS.items():
        spread = (1 / np.sqrt(rows.groupby("layer")[column].mean())).dropna()
        axes.bar(spread.index, 2 * spread, bottom=-spread, width=0.8, color=colour, linewidth=0, zorder=1.2)


def _handles(rows: pd.DataFrame, has_cosine: bool) -> list:
    pairs = Line2D([], [], linestyle="", label="pairs of domains", **VALUE)
    labels = {"parameters": r"$\pm 1/\sqrt{n}$, $n$ parameters", "effective_dimension": r"$\pm 1/\sqrt{d}$, $d$ effective dimensions"}
    bands = [Patch(color=BANDS[name], label=label) for name, label in labels.items()] if has_cosine else []
    return [pairs, *level_handles(rows[rows["measure"] != "cosine"], ("null",)), *level_handles(rows, ("null_label", "ceiling")), *bands]
