"""Results by domain order: each arm under every order, and the paired difference of sparse and dense (paper, section Orders).

Drawn from metrics.csv; numbers come from `sparsecl.orders`. Percentage points.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_handles, arm_of, arm_style, draw_interval, streamed_arms_in, styled
from sparsecl.orders import arms_with_orders, order_cells, order_differences


def _draw_orders(axes: Axes, cells: Mapping[str, pd.DataFrame], places: Mapping[str, float]) -> None:
    """Orders downwards: per arm the mean with its interval over seeds, every seed faint behind it; `places` within a row."""
    for name, frame in cells.items():
        arm = arm_of(name)
        faint = arm_style(arm) | {"markersize": 2.5, "alpha": 0.3, "linestyle": ""}
        for row, order in enumerate(frame):
            axes.plot(100 * frame[order], np.full(len(frame), row + places[name]), **faint)
            draw_interval(axes, row + places[name], 100 * frame[order], arm, horizontal=True)
    for edge in range(frame.shape[1] - 1):
        axes.axhline(edge + 0.5, color="0.9", linewidth=0.6, zorder=0)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)


@styled
def forgetting_by_order(
    metrics: pd.DataFrame, control: str = "D1", metric: str = "forgetting", margin: float | None = None, stage_steps: int | None = None
) -> Figure:
    """A metric of every arm under every order, and the arms' paired difference to `control`; 95 % t intervals over seeds (points).

    `margin` (a fraction, as in the tables) is drawn as the band of equivalence; `stage_steps` as for `main_protocol`.
    Raises NothingToDraw where `control` and another arm did not run further orders.
    """
    names = arms_with_orders(metrics)
    if control not in names or len(names) < 2:
        raise NothingToDraw(f"metrics: only {names} ran further orders; run them for {control} and a sparse arm in 03_continual")
    arms = streamed_arms_in(pd.DataFrame({"arm": names}), "metrics")
    cells = {name: order_cells(metrics, name, metric, stage_steps=stage_steps) for name in names}
    others = [name for name in names if name != control]
    differences = {name: order_differences(metrics, name, control, metric, stage_steps=stage_steps) for name in others}
    orders, reach = list(cells[control]), 0.4 * (1 - 1 / len(arms))  # evenly within four fifths of a row
    places = dict(zip([arm.name for arm in arms], np.linspace(-reach, reach, len(arms)), strict=True))
    height = len(orders) * max(0.24, 0.09 * len(arms)) + 0.9
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, height), sharey=True, width_ratios=(1.25, 1))
    _draw_orders(left, cells, places)
    _draw_orders(right, differences, places)
    handles = arm_handles(arms, line=False)
    if margin is not None:
        right.axvspan(-100 * margin, 100 * margin, color="0.93", linewidth=0, zorder=0)
        handles.append(Patch(color="0.93", label="margin"))
    right.axvline(0, color="0.4", linewidth=0.8)
    left.set_yticks(range(len(orders)), orders)
    left.set_ylim(len(orders) - 0.5, -0.5)
    left.set_xlabel(f"{metric} (points)")
    right.set_xlabel(f"paired difference to {arm_of(control).label} (points)")
    figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6))
    return figure
