"""What sparsity does to the probes: the sparse arm against the dense one of the same tokens (paper, part on implicit sparsity).

Drawn from overlap.csv and gradients.csv. Pairs of replicates and of domains: both arms probe the same text.
"""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_handles, arm_of, arm_style, styled
from sparsecl.figures_probes import (
    MODULES,
    PAIR,
    SELECTIONS,
    disattenuated,
    draw_by_layer,
    mark_layers,
    normalised,
    require_rows,
    rows_of_main_fraction,
)

CELL = ["quantity", "layer", "seed", *PAIR]


@styled
def sparsity_and_probes(overlap: pd.DataFrame, gradients: pd.DataFrame, treatment: str = "S1-2of4", control: str = "D1") -> Figure:
    """A column a quantity: by layer, its value in both arms, and below it treatment minus control, paired by replicate and domains.

    Overlaps stand between chance (0) and split halves (1), cosines relative to split halves. Pairs of domains are faint, their
    mean stands with its t interval over replicates. Raises NothingToDraw where an arm was not probed.
    """
    require_rows("overlap", overlap)
    require_rows("gradients", gradients)
    rows = pd.concat([_overlaps(overlap), _cosines(gradients)])
    rows = rows[rows["arm"].isin([treatment, control])]
    quantities = list(rows["quantity"].unique())
    if rows["arm"].nunique() < 2:
        raise NothingToDraw(
            f"overlap, gradients: {treatment} and {control} were not both probed; add the arms to the study and run 04_probe"
        )
    paired = _differences(rows, treatment, control)
    figure, grid = plt.subplots(2, len(quantities), figsize=(TEXT_WIDTH, 3.6), sharex=True, sharey="row", squeeze=False)
    for (upper, lower), quantity in zip(grid.T, quantities, strict=True):
        for shift, name in zip((-0.13, 0.13), (control, treatment), strict=True):
            draw_by_layer(upper, rows[(rows["quantity"] == quantity) & (rows["arm"] == name)], PAIR, shift, **arm_style(arm_of(name)))
        draw_by_layer(lower, paired[paired["quantity"] == quantity], PAIR, **arm_style(arm_of(treatment)))
        _finish(upper, lower, sorted(rows["layer"].unique()), quantity)
    grid[0, 0].set_ylabel("relative to\nsplit halves")
    grid[1, 0].set_ylabel(f"{arm_of(treatment).label} minus {arm_of(control).label}")
    figure.supxlabel("layer", fontsize=9)
    figure.legend(handles=arm_handles([arm_of(control), arm_of(treatment)], line=False), loc="outside upper center", ncols=2)
    return figure


def _overlaps(overlap: pd.DataFrame) -> pd.DataFrame:
    rows = rows_of_main_fraction(overlap)
    found = [rows[rows["selection"] == name].assign(quantity=f"neurons:\n{label}") for name, label in SELECTIONS.items()]
    found = pd.concat(found)
    return found.assign(value=normalised(found))[["arm", "value", *CELL]]


def _cosines(gradients: pd.DataFrame) -> pd.DataFrame:
    rows = gradients[gradients["measure"] == "cosine"]
    found = pd.concat([rows[rows["module"] == name].assign(quantity=f"gradients:\n{label}") for name, label in MODULES.items()])
    return found.assign(value=disattenuated(found))[["arm", "value", *CELL]]


def _differences(rows: pd.DataFrame, treatment: str, control: str) -> pd.DataFrame:
    wide = rows.pivot(index=CELL, columns="arm", values="value")
    return (wide[treatment] - wide[control]).dropna().rename("value").reset_index()


def _finish(upper: Axes, lower: Axes, layers: list[int], quantity: str) -> None:
    upper.set_title(quantity)
    lower.axhline(0, color="0.6", linewidth=0.8, zorder=1)
    for axes in (upper, lower):
        mark_layers(axes, layers)
