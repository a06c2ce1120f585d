"""Does overlap shrink as models grow? The probes along a ladder of widths trained alike (paper, part on implicit sparsity, H4).

Drawn from overlap.csv and gradients.csv. |cosine| shrinks with the number of parameters for no other reason than that
there are more of them; beside it stands the cosine relative to what two halves of one domain reach, for which that is removed.
"""

import re
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, mean_interval, styled
from sparsecl.figures_probes import (
    MODULES,
    PAIR,
    SELECTIONS,
    disattenuated,
    normalised,
    require_rows,
    rows_of_main_fraction,
    shown_layers,
)

DIMENSIONS = {
    "parameters": ("--", r"$1/\sqrt{n}$, $n$ parameters"),
    "effective_dimension": (":", r"$1/\sqrt{d}$, $d$ effective"),
}
RUNG = re.compile(r"Dw-(\d+)")
MOST_LAYERS = 4
FEWEST_WIDTHS = 3
# Colour-blind safe (Okabe and Ito; Tol): neurons are cool, gradients warm.
SELECTION_STYLES = {
    "magnitude": {"color": "#0072B2", "marker": "o"},
    "frequency": {"color": "#56B4E9", "marker": "s"},
    "contrast": {"color": "#332288", "marker": "^"},
    "magnitude/same-tokens": {"color": "#888888", "marker": "D"},
}
MODULE_STYLES = {"attention": {"color": "#882255", "marker": "v"}, "ffn": {"color": "#E69F00", "marker": "P"}}
TITLES = ("overlap of neurons\n(chance 0, halves 1)", "cosine of gradients\nover that of halves", "|cosine|\nof gradients")


@styled
def scale_trend(overlap: pd.DataFrame, gradients: pd.DataFrame, widths: Mapping[str, int] | None = None) -> Figure:
    """A row a layer, over the width: normalised overlap of neurons, cosine of gradients over its ceiling, and raw |cosine|.

    Replicates that have every width are faint lines, their mean stands with its t interval; dashes are 1/sqrt(parameters),
    dots 1/sqrt(effective dimension).
    `Dw-<hidden>` names a width; `widths` names those of other arms (the study's own D0). Raises NothingToDraw below 3 widths.
    """
    overlap, gradients = (ladder_rows(table, name, widths) for table, name in ((overlap, "overlap"), (gradients, "gradients")))
    overlap = rows_of_main_fraction(overlap)
    overlap, cosine = overlap.assign(value=normalised(overlap)), gradients[gradients["measure"] == "cosine"]
    layers = shown_layers(overlap, MOST_LAYERS)
    figure, grid = plt.subplots(len(layers), 3, figsize=(TEXT_WIDTH, 1.55 * len(layers) + 1.05), sharex=True, sharey="col", squeeze=False)
    for (first, second, third), layer in zip(grid, layers, strict=True):
        _draw_series(first, overlap[overlap["layer"] == layer], "selection", SELECTION_STYLES)
        here = cosine[cosine["layer"] == layer]
        _draw_series(second, here.assign(value=disattenuated(here)), "module", MODULE_STYLES)
        _draw_raw(third, here)
        first.set_ylabel(f"layer {layer}")
    _label(grid, sorted(overlap["width"].unique()))
    figure.legend(handles=_handles(overlap, cosine), loc="outside upper center", ncols=4, columnspacing=1.2)
    figure.supxlabel("width of the residual stream (units)", fontsize=9)
    return figure


def ladder_rows(frame: pd.DataFrame, table: str, widths: Mapping[str, int] | None = None) -> pd.DataFrame:
    """Rows of the arms whose width is known, with it as a column `width`, of the replicates that have every width."""
    require_rows(table, frame)
    names = {name: int(found[1]) for name in frame["arm"].unique() if (found := RUNG.fullmatch(name))}
    rows = frame.assign(width=frame["arm"].map({**names, **(widths or {})})).dropna(subset=["width"])
    if len(names) + 1 < FEWEST_WIDTHS or rows["width"].nunique() < FEWEST_WIDTHS:
        raise NothingToDraw(f"{table}: {sorted(rows['arm'].unique())} are no ladder; a trend needs {FEWEST_WIDTHS} widths such as Dw-64")
    seen = rows.groupby("seed")["width"].nunique()
    rows = rows[rows["seed"].isin(seen.index[seen == seen.max()])]
    return rows.assign(width=rows["width"].astype(int))


def _draw_series(axes: Axes, rows: pd.DataFrame, key: str, styles: Mapping[str, dict]) -> None:
    """A line a replicate and their mean, over the pairs of domains that have a value at every width."""
    for name, style in styles.items():
        wide = rows[rows[key] == name].pivot(index=["seed", *PAIR], columns="width", values="value").dropna()
        found = wide.groupby("seed").mean().T
        if not found.empty:
            axes.plot(found.index, found, color=style["color"], linewidth=0.7, alpha=0.45, zorder=2)
            _draw_means(axes, found, style)


def _draw_means(axes: Axes, found: pd.DataFrame, style: dict) -> None:
    """`found` has a row a width and a column a replicate."""
    means, lows, highs = np.array([mean_interval(values) for values in found.to_numpy()]).T
    bars = None if np.isnan(lows).all() else [means - lows, highs - means]
    axes.errorbar(found.index, means, yerr=bars, capsize=2, linewidth=1.2, markersize=4, zorder=4, **style)


def _draw_raw(axes: Axes, rows: pd.DataFrame) -> None:
    """|cosine|, and the standard deviation of the cosine of random directions: in all dimensions dashed, in the effective ones dotted."""
    _draw_series(axes, rows.assign(value=rows["value"].abs()), "module", MODULE_STYLES)
    for module, style in MODULE_STYLES.items():
        sizes = rows[rows["module"] == module].groupby("width")[list(DIMENSIONS)].mean()
        for name, (dashes, _) in DIMENSIONS.items():
            axes.plot(sizes.index, 1 / np.sqrt(sizes[name]), color=style["color"], linestyle=dashes, linewidth=1, zorder=3)


def _label(grid: np.ndarray, widths: Sequence[int]) -> None:
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title)
    grid[0, 0].set(xscale="log", xlim=(widths[0] / 1.2, widths[-1] * 1.2))
    grid[0, 0].set_xticks(widths, [f"{width}" for width in widths])
    grid[0, 0].set_xticks([], minor=True)
    grid[0, 2].set_yscale("log")


def _handles(overlap: pd.DataFrame, cosine: pd.DataFrame) -> list[Line2D]:
    shown = [
        Line2D([], [], label=label, **SELECTION_STYLES[name]) for name, label in SELECTIONS.items() if (overlap["selection"] == name).any()
    ]
    shown += [Line2D([], [], label=label, **MODULE_STYLES[name]) for name, label in MODULES.items() if (cosine["module"] == name).any()]
    return [*shown, *(Line2D([], [], color="0.35", linestyle=dashes, linewidth=1, label=label) for dashes, label in DIMENSIONS.values())]
