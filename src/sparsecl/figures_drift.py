"""How far fine-tuning moves the hidden states of general text, by layer and method (paper, part on implicit sparsity, drift).

Drawn from drift.csv and accuracy.csv. The null is the distance between the ends of two runs of full fine-tuning that
differ in the order of their batches alone.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsecl.drift_frontier import RATIO_MEASURES, drift_points
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, styled
from sparsecl.figures_methods import method_style, rows_of_method, streamed_methods
from sparsecl.figures_probes import mark_layers, rows_of_arm, shown_layers, singles_style
from sparsecl.figures_replicates import draw_cross
from sparsecl.methods import METHODS
from sparsecl.metrics import MissingMeasurement
from sparsecl.protocol import ORDER

MEASURES = {
    "displacement": "displacement",
    "cka_distance": "1 $-$ CKA",
    "cka_distance_without_top": "1 $-$ CKA, top\ncomponent removed",
    "largest_angle": "largest angle (radians)",
    "grassmann": "Grassmann distance",
}
NULL = {"color": "0.88", "linewidth": 0}
FLOOR = {"color": "0.35", "linestyle": ":", "linewidth": 1.2}
MOST_PANELS = 4


@styled
def drift_by_layer(drift: pd.DataFrame, measures: Sequence[str] = ("displacement", "cka_distance"), arm: str | None = None) -> Figure:
    """Drift at the end of the stream, a row a measure, layers along the axis and a mark a method, with t intervals.

    The grey reaches as high as two runs of full fine-tuning with other batches differ; the dotted line is the floor from
    split halves of the text. Raises NothingToDraw where none of `measures` is there.
    """
    rows = rows_of_arm(drift, "drift", arm)
    measures = [name for name in measures if (rows["measure"] == name).any()]
    rows = rows[rows["measure"].isin(measures)]
    methods = streamed_methods(rows)
    if not measures or not methods:
        raise NothingToDraw(f"drift: none of {tuple(MEASURES)} after a stream in order {ORDER}; give the study's probe a drift section")
    ends = pd.concat([at_the_end(rows_of_method(rows, name)) for name in methods])
    layers = sorted(ends["layer"].unique())
    figure, grid = plt.subplots(len(measures), 1, figsize=(TEXT_WIDTH, 1.75 * len(measures) + 1.1), sharex=True, squeeze=False)
    for axes, measure in zip(grid.flat, measures, strict=True):
        here = ends[ends["measure"] == measure]
        _draw_references(axes, here)
        for shift, method in zip(np.linspace(-0.36, 0.36, len(methods)) if len(methods) > 1 else [0], methods, strict=True):
            _draw_method(axes, here[here["method"] == method], method, shift)
        mark_layers(axes, layers)
        axes.set_ylabel(MEASURES[measure])
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    grid[-1, 0].set_xlabel("layer")
    figure.legend(handles=_handles(ends, methods), loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


@styled
def drift_plane(drift: pd.DataFrame, accuracy: pd.DataFrame, measure: str = "displacement", arm: str | None = None) -> Figure:
    """Drift over what was learned, a panel a layer: a mark a stage length, those of a method joined, to compare at equal learning.

    Both are means over the stages, of the measure (a geometric mean where it is positive) and of each domain's score right
    after its own; crosses are means with t intervals over replicates. The points are those of `sparsecl.drift_frontier`.
    Raises NothingToDraw where no method ran two stage lengths.
    """
    points = plane_points(rows_of_arm(drift, "drift", arm), accuracy, measure)
    methods = [name for name in METHODS if (points["method"] == name).any()]
    layers = shown_layers(points, MOST_PANELS)
    columns = len(layers) if len(layers) in (1, 3) else 2
    lines = -(-len(layers) // columns)
    figure, grid = plt.subplots(lines, columns, figsize=(TEXT_WIDTH, 2.7 * lines + 0.9), sharex=True, sharey=True, squeeze=False)
    for axes, layer in zip(grid.flat, layers, strict=False):
        here = points[points["layer"] == layer]
        for method in methods:
            _draw_path(axes, here[here["method"] == method], method)
        axes.set_title(f"layer {layer}")
    for axes in grid[:, 0]:
        axes.set_ylabel(f"{MEASURES[measure]}, mean over stages")
    for axes in grid[-1]:
        axes.set_xlabel("own score, mean over stages (%)")
    figure.legend(handles=_method_handles(methods, line=True), loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


def plane_points(drift: pd.DataFrame, accuracy: pd.DataFrame, measure: str) -> pd.DataFrame:
    """`drift_points` of one measure: own in percent, drift on the measure's own scale."""
    try:
        points = drift_points(drift[drift["measure"] == measure], accuracy).dropna(subset=["own", "drift"])
    except MissingMeasurement as reason:
        raise NothingToDraw(f"drift: {reason}") from None
    if points.empty:
        raise NothingToDraw(f"drift: no method has {measure!r} at two stage lengths; name stage_steps in the study's further streams")
    values = np.exp(points["drift"]) if measure in RATIO_MEASURES else points["drift"]
    return points.assign(own=100 * points["own"], drift=values)


def at_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the last stage."""
    return rows[rows["stage"] == rows["stage"].max()]


def _draw_references(axes: Axes, rows: pd.DataFrame) -> None:
    means = rows.groupby("layer")[["null", "floor"]].mean()
    null, floor = means["null"].dropna(), means["floor"].dropna()
    axes.bar(null.index, null, width=0.96, zorder=0.5, **NULL)
    axes.hlines(floor, floor.index - 0.48, floor.index + 0.48, zorder=1.5, **FLOOR)


def _draw_method(axes: Axes, rows: pd.DataFrame, method: str, shift: float) -> None:
    style = method_style(method)
    for layer, here in rows.dropna(subset=["value"]).groupby("layer"):
        axes.plot(np.full(len(here), layer + shift - 0.022), here["value"], **singles_style(style))
        draw_cross(axes, [layer + shift], here["value"], **style)


def _draw_path(axes: Axes, points: pd.DataFrame, method: str) -> None:
    centres = points.groupby("stage_steps")[["own", "drift"]].mean()
    axes.plot(centres["own"], centres["drift"], color=method_style(method)["color"], linewidth=0.9, zorder=2)
    for _, run in points.groupby("stage_steps"):
        # Many intervals meet here: thin ones leave the marks to be seen.
        draw_cross(axes, run["own"], run["drift"], **method_style(method) | {"markersize": 4.5, "linewidth": 0.5, "capsize": 0})


def _method_handles(methods: Sequence[str], line: bool = False) -> list[Line2D]:
    style = {"linewidth": 0.9} if line else {"linestyle": ""}
    return [Line2D([], [], label=METHODS[name].label, **method_style(name) | style) for name in methods]


def _handles(rows: pd.DataFrame, methods: Sequence[str]) -> list:
    null = [Patch(label="two runs, other batches", **NULL)] if rows["null"].notna().any() else []
    floor = [Line2D([], [], label="split halves of the text", **FLOOR)] if rows["floor"].notna().any() else []
    return [*_method_handles(methods), *null, *floor]
