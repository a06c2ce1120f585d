"""The figures of the paper, drawn from the tidy tables alone (paper, all figures).

One function per figure; each takes tables as pandas frames and returns a matplotlib Figure, so that a
notebook shows it and `save` writes it. Scores are drawn in percent, losses in nats per answer token.
Here are the courses of a stream; the other figures have modules of their own and are named here too.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from sparsecl.arms import Arm
from sparsecl.figure_style import (
    TEXT_WIDTH,
    TOGETHER,
    NothingToDraw,
    arm_groups,
    arm_handles,
    domain_order,
    figure_or_reason,
    intervals,
    line_style,
    main_rows,
    save,
    streamed_arms_in,
    styled,
)
from sparsecl.figures_checkpoints import conversion_and_recovery, layer_overlap
from sparsecl.figures_conversion import algorithm_comparison, density_scan, recovery_curves, topology_comparison
from sparsecl.figures_crossover import crossover
from sparsecl.figures_doses import dose_response
from sparsecl.figures_drift import drift_by_layer, drift_plane
from sparsecl.figures_frontier import learned_forgotten_frontier
from sparsecl.figures_gradients import gradient_overlap
from sparsecl.figures_hypotheses import controls, efficiency_plane, forgetting_by_topology
from sparsecl.figures_inference import inference_speed
from sparsecl.figures_learning_rate import learning_rate_methods, learning_rate_sweep
from sparsecl.figures_matrices import accuracy_matrices, draw_matrices, matrix_rows, stage_matrix
from sparsecl.figures_measures import forgetting_own_final
from sparsecl.figures_methods import methods_plane, plasticity_stability
from sparsecl.figures_orders import forgetting_by_order
from sparsecl.figures_overlap import overlap_by_fraction, overlap_heatmaps
from sparsecl.figures_retention import retention_by_domain
from sparsecl.figures_routing import expert_use, routing_divergence, routing_load
from sparsecl.figures_scale import scale_trend
from sparsecl.figures_selections import update_mask_overlap
from sparsecl.figures_sparsity import sparsity_and_probes
from sparsecl.items import GENERAL

__all__ = [
    "accuracy_matrices",
    "algorithm_comparison",
    "controls",
    "conversion_and_recovery",
    "crossover",
    "density_scan",
    "dose_response",
    "drift_by_layer",
    "drift_plane",
    "efficiency_plane",
    "figure_or_reason",
    "forgetting_by_order",
    "forgetting_by_topology",
    "forgetting_curves",
    "forgetting_own_final",
    "gradient_overlap",
    "inference_speed",
    "layer_overlap",
    "learned_forgotten_frontier",
    "learning_rate_methods",
    "learning_rate_sweep",
    "loss_forgetting",
    "methods_plane",
    "overlap_by_fraction",
    "overlap_heatmaps",
    "plasticity_stability",
    "recovery_curves",
    "retention_by_domain",
    "routing_divergence",
    "expert_use",
    "routing_load",
    "save",
    "scale_trend",
    "sparsity_and_probes",
    "topology_comparison",
    "update_mask_overlap",
]

MEAN = "mean of the domains"
COLUMNS = 6  # panels beside each other in a row of small ones


def _curve_points(curves: pd.DataFrame, accuracy: pd.DataFrame, value: str) -> pd.DataFrame:
    """Points (arm, seed, domain, stage, value) along the whole stream; `stage` counts stages, parts of them included.

    Stages and not optimizer steps, because arms of equal FLOPs take another number of steps to each.
    """
    curves, accuracy = main_rows(curves), main_rows(accuracy)
    before = accuracy[accuracy["stage"] == 0]
    # A point at step 0 of a later stage is the same model as the end of the stage before it.
    inside = curves[curves["step"] > 0]
    inside = inside.assign(stage=inside["stage"] - 1 + inside["step"] / inside["stage_steps"])
    points = pd.concat([before, inside])[["arm", "seed", "domain", "kind", "stage", value]]
    points = points[(points["kind"] == "all") & (points["domain"] != GENERAL)].dropna(subset=[value])
    if points.empty:
        raise NothingToDraw(f"curves: no {value!r} of kind 'all' in the main order with method full; rerun 03_continual")
    mean = points.groupby(["arm", "seed", "stage"], as_index=False)[value].mean().assign(domain=MEAN)
    return pd.concat([points, mean])


def _draw_curves(axes: Axes, points: pd.DataFrame, arms: Sequence[Arm], value: str, scale: float) -> None:
    """Means with their bands; many curves have their marks at the ends of stages only."""
    for arm in arms:
        band = intervals(points[points["arm"] == arm.name], "stage", value)
        style = line_style(arm) | {"markersize": 2.5}
        if len(arms) > 2:
            style |= {"markevery": np.flatnonzero(band["stage"] % 1 == 0).tolist(), "markersize": 3, "linewidth": 1}
        axes.plot(band["stage"], scale * band["mean"], **style)
        axes.fill_between(band["stage"], scale * band["low"], scale * band["high"], color=arm.colour, alpha=0.18, linewidth=0)


def _mark_stages(axes: Axes, domains: list[str], own: str | None) -> None:
    """Stage boundaries as thin lines; the panel's own stage is shaded."""
    for stage in range(len(domains) + 1):
        axes.axvline(stage, color="0.75", linewidth=0.6, zorder=0)
    if own in domains:
        axes.axvspan(domains.index(own), domains.index(own) + 1, color="#F0E442", alpha=0.25, linewidth=0, zorder=0)
    axes.set_xlim(0, len(domains))
    axes.set_xticks(range(len(domains)))  # the last would touch the next panel
    axes.grid(False, axis="x")


def _stages_label(curves: pd.DataFrame) -> str:
    """The label of the axis; a stage's length in steps is part of it where all arms have the same."""
    lengths = main_rows(curves)["stage_steps"].unique()
    return "stages since the start of the stream" + (f" (of {lengths[0]} optimizer steps each)" if len(lengths) == 1 else "")


def _draw_panels(
    figure: Figure | SubFigure, points: pd.DataFrame, arms: Sequence[Arm], domains: list[str], value: str, columns: int
) -> np.ndarray:
    """One panel a domain, and one for their mean where it is among `points`; the legend above. Returns the axes, row by row."""
    shown = [domain for domain in [*domains, MEAN] if (points["domain"] == domain).any()]
    grid = figure.subplots(-(-len(shown) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for axes, domain in zip(grid.flat, shown, strict=False):
        _draw_curves(axes, points[points["domain"] == domain], arms, value, 100 if value == "score" else 1)
        _mark_stages(axes, domains, domain)
        axes.set_title("mean" if domain == MEAN and columns == COLUMNS else domain)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    figure.legend(handles=arm_handles(arms), loc="outside upper center", ncols=len(arms), columnspacing=1.4, borderaxespad=0.1)
    return grid


@styled
def forgetting_curves(curves: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Score on each domain along the whole stream, by arm, with 95 % t bands over replicates (percent).

    More arms than fit one panel are drawn in rows, each with the dense reference.
    """
    points = _curve_points(curves, accuracy, "score")
    arms, domains = streamed_arms_in(points, "curves"), domain_order(main_rows(accuracy))
    few = len(arms) <= TOGETHER
    groups, columns, height = ([arms], 3, 1.75) if few else (arm_groups(arms), COLUMNS, 1.25)
    rows = -(-(len(domains) + 1) // columns)
    figure = plt.figure(figsize=(TEXT_WIDTH, len(groups) * (height * rows + 0.25) + 0.2))
    for part, group in zip(figure.subfigures(len(groups), 1, squeeze=False).flat, groups, strict=True):
        grid = _draw_panels(part, points, group, domains, "score", columns)
        grid[0, 0].set(ylim=(-3, 103), yticks=range(0, 101, 20 if few else 50))
    figure.supxlabel(_stages_label(curves), fontsize=9)
    figure.supylabel("score (%)", fontsize=9)
    return figure


@styled
def loss_forgetting(accuracy: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Answer-token loss: matrices nll[t, i] per arm, and its course along the stream (nats per answer token).

    The course is drawn by domain where arms are few, and else for the mean over the domains, in one panel a group of arms.
    """
    points = _curve_points(curves, accuracy, "nll")
    accuracy = main_rows(accuracy)
    arms, domains = streamed_arms_in(points, "curves"), domain_order(accuracy)
    matrices = [(arm, stage_matrix(accuracy, arm, domains, "nll")) for arm in arms]
    rows = matrix_rows(len(arms), len(domains), characters=4)
    heights = 1.2 * rows + 1.1, 2.2 if len(arms) <= TOGETHER else 2.8
    figure = plt.figure(figsize=(TEXT_WIDTH, sum(heights)))
    upper, lower = figure.subfigures(2, 1, height_ratios=heights)
    top = max(float(np.nanmax(matrix.to_numpy())) for _, matrix in matrices)
    draw_matrices(upper, matrices, "nats per answer token", ".2f", limit=top, characters=4)
    panels = _loss_by_domain(lower, points, arms, domains) if len(arms) <= TOGETHER else _mean_loss(lower, points, arms, domains)
    panels[0].set_ylim(bottom=0)  # once all are drawn: it freezes the shared top
    panels[0].locator_params(axis="y", nbins=4, integer=True)  # narrow labels leave room for the axis' own
    panels[0].set_ylabel("nats per token")
    lower.supxlabel(_stages_label(curves), fontsize=9)
    return figure


def _loss_by_domain(figure: SubFigure, points: pd.DataFrame, arms: Sequence[Arm], domains: list[str]) -> np.ndarray:
    return _draw_panels(figure, points[points["domain"] != MEAN], arms, domains, "nll", len(domains))[0]


def _mean_loss(figure: SubFigure, points: pd.DataFrame, arms: Sequence[Arm], domains: list[str]) -> np.ndarray:
    groups = arm_groups(arms)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, group in zip(panels, groups, strict=True):
        _draw_curves(axes, points[points["domain"] == MEAN], group, "nll", 1)
        _mark_stages(axes, domains, None)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "borderaxespad": 2.2, "ncols": max(1, 4 // len(groups))}
        axes.legend(handles=arm_handles(group), **below)
    figure.suptitle(MEAN, fontsize=9)
    return panels


def stream_figure(tables: Mapping[str, pd.DataFrame], measure: str) -> Figure:
    """The course of a stream in what the study measures: right answers, or answer loss."""
    if measure == "score":
        return forgetting_curves(tables["curves"], tables["accuracy"])
    return loss_forgetting(tables["accuracy"], tables["curves"])
