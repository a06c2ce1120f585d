"""Matrices as figures, with the number in every cell (paper, figures of the accuracy matrices and of the losses).

R[t, i] has a row for every stage and a column for every domain. Also what other modules draw as cells: `heat_map`.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure, SubFigure

from sparsecl.arms import Arm
from sparsecl.figure_style import TEXT_WIDTH, domain_order, main_rows, streamed_arms_in, styled

FRAME = {"fill": False, "edgecolor": "#D55E00", "linewidth": 1.2}
CHARACTER = 0.062  # inches: a digit at 8 points
LABELS = 0.95  # inches: names of the stages beside the left panels, and the paddings


def cell_text(value: float, number: str) -> str:
    """A cell's number; absent is blank, and what rounds to nothing has no sign."""
    text = "" if np.isnan(value) else format(value, number)
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def heat_map(
    axes: Axes, matrix: pd.DataFrame, number: str | None, coloured: pd.DataFrame | None = None, slant: float = 35, **colours
) -> QuadMesh:
    """Draw a frame as cells, first row on top, with its labels and, in the format `number` (None: without), its values.

    `coloured` (the values themselves where absent) gives the colours, by `colours`, which go to pcolormesh. Labels of columns
    are turned by `slant` degrees.
    """
    shades = (matrix if coloured is None else coloured).to_numpy(dtype=float)
    mesh = axes.pcolormesh(shades, edgecolors="white", linewidth=0.8, **colours)
    for (row, column), value in np.ndenumerate(matrix.to_numpy(dtype=float)) if number is not None else ():
        brightness = np.dot(mesh.to_rgba(shades[row, column])[:3], (0.2126, 0.7152, 0.0722))
        colour = "white" if brightness < 0.5 and not np.isnan(value) else "0.15"
        axes.text(column + 0.5, row + 0.5, cell_text(value, number), ha="center", va="center", fontsize=8, color=colour)
    turned = {"rotation": slant, "ha": "right", "rotation_mode": "anchor"} if slant else {}
    axes.set_xticks(np.arange(matrix.shape[1]) + 0.5, matrix.columns, **turned)
    axes.set_yticks(np.arange(matrix.shape[0]) + 0.5, matrix.index)
    axes.set_ylim(len(matrix), 0)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return mesh


def frame_cell(axes: Axes, row: int, column: int, rows: int = 1) -> None:
    """A frame around a cell, or around it and those below it."""
    axes.add_patch(plt.Rectangle((column + 0.04, row + 0.04), 0.92, rows - 0.08, **FRAME))


def stage_matrix(accuracy: pd.DataFrame, arm: Arm, domains: list[str], value: str) -> pd.DataFrame:
    """R[t, i]: mean over replicates of `value` on domain i after stage t; rows t = 0..T, columns domains."""
    rows = accuracy[(accuracy["arm"] == arm.name) & (accuracy["kind"] == "all")]
    matrix = rows.pivot_table(index="stage", columns="domain", values=value, aggfunc="mean")
    labels = ["before", *(f"after {domain}" for domain in domains)]
    return matrix.reindex(index=range(len(labels)), columns=domains).set_axis(labels)


def _draw_stages(axes: Axes, matrix: pd.DataFrame, title: str, number: str, **colours) -> QuadMesh:
    """One matrix R[t, i]; framed is each domain right after its own stage."""
    mesh = heat_map(axes, matrix, number, **colours)
    for domain in range(matrix.shape[1]):
        frame_cell(axes, domain + 1, domain)
    axes.set_title(title)
    return mesh


def _label_below(axes: Axes, matrix: pd.DataFrame) -> None:
    """Column labels of a panel that has an empty place below it; as tick labels they would push the next row down."""
    for column, label in enumerate(matrix.columns):
        axes.text(
            column + 0.5, len(matrix) + 0.25, label, fontsize=8, rotation=35, ha="right", va="top", rotation_mode="anchor", in_layout=False
        )


def matrix_rows(arms: int, domains: int, characters: int) -> int:
    """Rows of a grid with one matrix an arm, where the cells of a matrix must hold so many characters."""
    most = max(1, int((TEXT_WIDTH - LABELS) / (CHARACTER * (characters + 0.2) * domains)))  # beside each other
    return -(-arms // most)


def draw_matrices(
    figure: Figure | SubFigure, matrices: Sequence[tuple[Arm, pd.DataFrame]], label: str, number: str, limit: float, characters: int
) -> np.ndarray:
    """One panel an arm, wrapped to a grid with one colour bar from 0 to `limit`; returns the axes, row by row."""
    rows = matrix_rows(len(matrices), matrices[0][1].shape[1], characters)
    columns = -(-len(matrices) // rows)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (arm, matrix) in zip(grid.flat, matrices, strict=False):
        mesh = _draw_stages(axes, matrix, arm.label, number, vmin=0, vmax=limit, cmap="Blues")
    for axes in grid.flat[len(matrices) :]:
        axes.set_visible(False)
    for axes in grid.flat[len(matrices) - columns : -columns]:
        _label_below(axes, matrices[0][1])
    figure.colorbar(mesh, ax=grid, orientation="horizontal", shrink=0.4, aspect=35, pad=0.02, label=label)
    return grid


@styled
def accuracy_matrices(accuracy: pd.DataFrame) -> Figure:
    """R[t, i] per arm (percent, mean over replicates) and, for two arms, the sparse minus the dense one.

    Rows are stages, columns domains; framed cells are a domain's score right after its own stage.
    """
    accuracy = main_rows(accuracy)
    arms, domains = streamed_arms_in(accuracy, "accuracy"), domain_order(accuracy)
    matrices = [(arm, 100 * stage_matrix(accuracy, arm, domains, "score")) for arm in arms]
    if len(arms) == 2:
        return _two_and_their_difference(matrices)
    rows = matrix_rows(len(arms), len(domains), characters=3)
    figure = plt.figure(figsize=(TEXT_WIDTH, 1.25 * rows + 1.1))
    draw_matrices(figure, matrices, "score (%)", ".0f", limit=100, characters=3)
    return figure


def _two_and_their_difference(matrices: Sequence[tuple[Arm, pd.DataFrame]]) -> Figure:
    figure, panels = plt.subplots(1, 3, figsize=(TEXT_WIDTH, 2.5), sharey=True)
    for axes, (arm, matrix) in zip(panels, matrices, strict=False):
        _draw_stages(axes, matrix, f"{arm.label}: score (%)", ".0f", vmin=0, vmax=100, cmap="Blues")
    (first, before), (second, after) = matrices
    difference = after - before
    bound = max(1.0, float(np.nanmax(np.abs(difference.to_numpy()))))
    title = f"{second.label} minus {first.label} (points)"
    _draw_stages(panels[-1], difference, title, "+.0f", vmin=-bound, vmax=bound, cmap="PuOr_r")
    return figure
