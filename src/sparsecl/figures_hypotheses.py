"""One figure a hypothesis: the controls (H1), joint efficiency (H2), forgetting by topology (H3) (paper, section Results).

Percent and percentage points; marks are means over replicates with 95 % t intervals.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import Arm
from sparsecl.comparisons import COMPARISONS
from sparsecl.figure_style import (
    REFERENCE,
    TEXT_WIDTH,
    NothingToDraw,
    arm_handles,
    arm_of,
    arm_style,
    intervals,
    line_style,
    main_rows,
    streamed_arms_in,
    styled,
)
from sparsecl.figures_replicates import draw_band, draw_cross, draw_rows, faint, labels_with_n, main_arms, replicate_values
from sparsecl.metrics import forgetting_by_stage, score_matrix

MEASURES = {"forgetting": "forgetting (points)", "own": "own score (%)", "final": "final score (%)"}
WITH_MARGIN = ("forgetting", "final")  # own decides nothing
EFFICIENCY = {"joint_efficiency_executed": "white", "joint_efficiency_theoretical": None}  # colour inside the mark; None: the arm's
COUNTED, COUNTS = {"marker": "h", "color": "0.45", "markersize": 6}, {"executed FLOPs": "white", "theoretical FLOPs": "0.45"}


def controls_of(treatment: Arm) -> tuple[str, ...]:
    """Names of the controls of a sparse arm: D1, matched in parameters, in FLOPs, in updates; cut, random mask, D1's FLOPs."""
    share, topology = f"{treatment.density:g}", treatment.topology
    matched = (f"Dnz-{share}", f"Df-{share}", f"Dg-{topology}")
    return (REFERENCE, *matched, f"Dcut-{share}", f"{treatment.name}-random", f"Sf-{topology}")


@styled
def controls(metrics: pd.DataFrame, margin: float | None = None, treatment: str = "S1-2of4") -> Figure:
    """H1: forgetting, own and final of the sparse arm and of each control, and below the paired differences sparse minus control.

    `margin` (a fraction, as in the tables) is the grey band of forgetting and final. Differences are over the replicates that
    both arms ran; a label says n where an arm ran fewer than the others. Raises NothingToDraw without `treatment`, D1 and
    one more control.
    """
    values, known = replicate_values(metrics, MEASURES), controls_of(arm_of(treatment))
    ran = set.intersection(*(set(values[measure]) for measure in MEASURES))
    found = [name for name in known if name in ran]
    if treatment not in ran or REFERENCE not in found or len(found) < 2:
        raise NothingToDraw(
            f"metrics: {treatment} is compared with {REFERENCE} and at least one of {known[1:]}, but of all these only "
            f"{sorted(ran & {treatment, *known})} ran; add arms to the study and run 03_continual"
        )
    others = [arm_of(name) for name in found]
    arms = [arm_of(treatment), *others]
    heights = len(arms) + 0.4, len(others) + 0.4
    figure, grid = plt.subplots(2, 3, figsize=(TEXT_WIDTH, 0.2 * sum(heights) + 1.2), sharey="row", height_ratios=heights)
    for (upper, lower), (measure, label) in zip(grid.T, MEASURES.items(), strict=True):
        _draw_values(upper, values[measure], arms)
        upper.set_title(label)
        _draw_differences(lower, values[measure], arms[0], others, margin if measure in WITH_MARGIN else None)
    grid[1, 1].set_title(f"paired difference: {arms[0].label} minus the control" + ("" if margin is None else " (grey: margin)"))
    grid[1, 1].set_xlabel("points")
    return figure


def _draw_values(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm]) -> None:
    """The line is the mean of the first arm, the treatment."""
    draw_rows(axes, values, arms, labels_with_n(values, arms))
    axes.axvline(values[arms[0].name].mean(), color=arms[0].colour, linewidth=0.8, alpha=0.6, zorder=1)


def _draw_differences(axes: Axes, values: pd.DataFrame, treatment: Arm, others: Sequence[Arm], margin: float | None) -> None:
    differences = values[[arm.name for arm in others]].rsub(values[treatment.name], axis=0)
    if margin is not None:
        axes.axvspan(-100 * margin, 100 * margin, color="0.9", linewidth=0, zorder=0)
    axes.axvline(0, color="0.4", linewidth=0.8, zorder=1)
    draw_rows(axes, differences, others, labels_with_n(values, others))


@styled
def efficiency_plane(metrics: pd.DataFrame, beside: Sequence[str] = ("Sf-2of4",)) -> Figure:
    """H2: retention against learning speed, and joint efficiency (points gained in all domains per 10^12 training FLOPs).

    Drawn are the arms that ran in every replicate, and those `beside` them that a contrast of H2 needs (n in their labels).
    Efficiency stands twice: per executed FLOP (hollow) and per theoretical one (filled), in which masked weights are free.
    """
    values = replicate_values(metrics, ("retention", "learning_speed", *EFFICIENCY))
    complete = set.intersection(*(set(values[metric]) for metric in values.columns.get_level_values("metric")))
    names = [name for name in (*main_arms(values["retention"]), *beside) if name in complete]
    arms = streamed_arms_in(pd.DataFrame({"arm": list(dict.fromkeys(names))}), "metrics")
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, max(2.7, 0.27 * len(arms) + 0.9)), width_ratios=(1.15, 1))
    for arm in arms:
        speed, kept = values["learning_speed", arm.name], values["retention", arm.name]
        left.plot(speed, kept, **faint(arm_style(arm)))
        draw_cross(left, speed, kept, **arm_style(arm))
    left.set(xlabel="learning speed (points, mean gain during a stage)", ylabel="retention (%)")
    left.locator_params(integer=True)  # short labels, whose width does not change while the figure is laid out
    _draw_efficiency(right, values, arms)
    right.set_yticks(range(len(arms)), labels_with_n(values["retention"], arms))
    counts = [Line2D([], [], linestyle="", **COUNTED | {"markerfacecolor": fill, "label": label}) for label, fill in COUNTS.items()]
    handles = [*arm_handles(arms, line=False), *counts]
    figure.legend(handles=handles, loc="outside upper center", ncols=-(-len(handles) // 2), columnspacing=1.4, handletextpad=0.3)
    return figure


def _draw_efficiency(axes: Axes, values: pd.DataFrame, arms: Sequence[Arm]) -> None:
    for row, arm in enumerate(arms):
        for side, (metric, inside) in zip((-0.16, 0.16), EFFICIENCY.items(), strict=True):
            style = arm_style(arm) | ({} if inside is None else {"markerfacecolor": inside})
            draw_cross(axes, values[metric, arm.name], [row + side], **style)
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlabel("points gained per $10^{12}$ FLOPs")


@styled
def forgetting_by_topology(accuracy: pd.DataFrame) -> Figure:
    """H3: forgetting had the stream ended with stage k, by topology, and paired differences to the dense reference (points).

    Drawn are the recovered arms, one a topology, that ran in as many replicates as the most, over the replicates that all of
    them and D1 ran; bands are 95 % t intervals. Raises NothingToDraw without D1 or with fewer than two topologies.
    """
    rows = main_rows(accuracy)
    counts = rows.groupby("arm")["seed"].nunique() if len(rows) else pd.Series(dtype=int)
    sparse = counts[[_is_compared(arm_of(name)) for name in counts.index]]
    names = [REFERENCE, *sparse.index[sparse == sparse.max()]]
    if REFERENCE not in counts or len(names) < 3:
        raise NothingToDraw(
            f"accuracy: at least two topologies are compared with {REFERENCE}, but only {sorted(set(names) & set(counts.index))} ran "
            "in as many replicates; add arms such as S1-4of8 to the stream and run 03_continual"
        )
    curves = _stage_forgetting(rows[rows["arm"].isin(names)])
    arms = streamed_arms_in(pd.DataFrame({"arm": names}), "accuracy")
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.6), sharex=True)
    _draw_stages(left, curves, arms)
    paired = curves.sub(curves[REFERENCE], axis=0)
    _draw_stages(right, paired, [arm for arm in arms if arm.name != REFERENCE])
    right.axhline(0, color="0.4", linewidth=0.8, zorder=1)
    left.set(xlabel="stages finished, $k$", ylabel="forgetting $F_k$ (points)")
    right.set(xlabel="stages finished, $k$", ylabel=f"paired difference to {REFERENCE} (points)")
    figure.legend(handles=arm_handles(arms), loc="outside upper center", ncols=len(arms))
    return figure


def _is_compared(arm: Arm) -> bool:
    """Whether an arm is a recovered one of equal density, the study's own of its topology."""
    return arm.lineage == "S1" and COMPARISONS["topologies"].choice(arm) is not None


def _stage_forgetting(rows: pd.DataFrame) -> pd.DataFrame:
    """F_k in points: rows (seed, stage k = 2..T), a column an arm; the replicates that all arms ran."""
    rows = rows[rows["kind"].eq("all")]
    cells = {
        (arm, seed, stage): 100 * value
        for (arm, seed), run in rows.groupby(["arm", "seed"])
        for stage, value in enumerate(forgetting_by_stage(score_matrix(run, "all").to_numpy()), start=2)
    }
    curves = pd.Series(cells).rename_axis(["arm", "seed", "stage"]).unstack("arm").dropna()
    if curves.empty:
        raise NothingToDraw(f"accuracy: no replicate ran all of {list(curves)}; run 03_continual for the missing ones")
    return curves


def _draw_stages(axes: Axes, curves: pd.DataFrame, arms: Sequence[Arm]) -> None:
    for arm in arms:
        band = intervals(curves[arm.name].reset_index(), "stage", arm.name)
        draw_band(axes, band, "stage", **_curve_style(arm))
    axes.set_xticks(np.unique(curves.index.get_level_values("stage")))
    axes.grid(False, axis="x")


def _curve_style(arm: Arm) -> dict:
    style = line_style(arm)
    return {"colour": style.pop("color"), **style}
