"""The figures of the paper, drawn from the tidy tables alone (paper, all figures).

One function per figure; each takes tables as pandas frames and returns a matplotlib Figure, so that a
notebook shows it and `save` writes it. Scores are drawn in percent, losses in nats per answer token.
"""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.arms import Arm
from sparsecl.figure_style import (
    TEXT_WIDTH,
    NothingToDraw,
    arm_handles,
    arm_style,
    domain_order,
    draw_interval,
    figure_or_reason,
    intervals,
    main_rows,
    over_domains,
    save,
    streamed_arms_in,
    styled,
)
from sparsecl.figures_checkpoints import conversion_and_recovery, layer_overlap, learning_rate_sweep
from sparsecl.figures_conversion import algorithm_comparison, density_scan, recovery_curves, topology_comparison
from sparsecl.items import GENERAL

__all__ = [
    "accuracy_matrices",
    "algorithm_comparison",
    "conversion_and_recovery",
    "density_scan",
    "figure_or_reason",
    "forgetting_curves",
    "forgetting_own_final",
    "layer_overlap",
    "learning_rate_sweep",
    "loss_forgetting",
    "recovery_curves",
    "save",
    "topology_comparison",
]

MEAN = "mean of the domains"


def _curve_points(curves: pd.DataFrame, accuracy: pd.DataFrame, value: str) -> pd.DataFrame:
    """Points (arm, seed, domain, x, value) along the whole stream; x counts optimizer steps from the start."""
    curves, accuracy = main_rows(curves), main_rows(accuracy)
    before = accuracy[accuracy["stage"] == 0].assign(x=0)
    inside = curves.assign(x=(curves["stage"] - 1) * curves["stage_steps"] + curves["step"])
    # A point at step 0 of a later stage is the same model as the end of the stage before it.
    inside = inside[inside["step"] > 0]
    points = pd.concat([before, inside])[["arm", "seed", "domain", "kind", "x", value]]
    points = points[(points["kind"] == "all") & (points["domain"] != GENERAL)].dropna(subset=[value])
    if points.empty:
        raise NothingToDraw(f"curves: no {value!r} of kind 'all' in the main order with method full; rerun 03_continual")
    mean = points.groupby(["arm", "seed", "x"], as_index=False)[value].mean().assign(domain=MEAN)
    return pd.concat([points, mean])


def _draw_curves(axes: Axes, points: pd.DataFrame, arms: list[Arm], value: str, scale: float) -> None:
    for arm in arms:
        band = intervals(points[points["arm"] == arm.name], "x", value)
        style = arm_style(arm) | {"markersize": 2.5}
        axes.plot(band["x"], scale * band["mean"], **style)
        axes.fill_between(band["x"], scale * band["low"], scale * band["high"], color=arm.colour, alpha=0.18, linewidth=0)


def _mark_stages(axes: Axes, domains: list[str], stage_steps: int, own: str | None) -> None:
    """Stage boundaries as thin lines; the panel's own stage is shaded."""
    for stage in range(len(domains) + 1):
        axes.axvline(stage * stage_steps, color="0.75", linewidth=0.6, zorder=0)
    if own in domains:
        start = domains.index(own) * stage_steps
        axes.axvspan(start, start + stage_steps, color="#F0E442", alpha=0.25, linewidth=0, zorder=0)
    axes.set_xlim(0, len(domains) * stage_steps)
    axes.set_xticks([stage * stage_steps for stage in range(len(domains))])  # the last would touch the next panel
    axes.grid(False, axis="x")


@styled
def forgetting_curves(curves: pd.DataFrame, accuracy: pd.DataFrame) -> Figure:
    """Score on each domain along the whole stream, by arm, with 95 % t bands over replicates (percent)."""
    points = _curve_points(curves, accuracy, "score")
    arms, domains = streamed_arms_in(points, "curves"), domain_order(main_rows(accuracy))
    stage_steps = int(main_rows(curves)["stage_steps"].iloc[0])
    columns = 3
    rows = -(-(len(domains) + 1) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(TEXT_WIDTH, 1.75 * rows + 0.35), sharex=True, sharey=True, squeeze=False)
    panels = list(grid.flat)
    for axes, domain in zip(panels, [*domains, MEAN], strict=False):
        _draw_curves(axes, points[points["domain"] == domain], arms, "score", 100)
        _mark_stages(axes, domains, stage_steps, domain)
        axes.set_title(domain if domain == MEAN else f"{domain} (stage {domains.index(domain) + 1})")
        axes.set_ylim(-3, 103)
    for axes in panels[len(domains) + 1 :]:
        axes.set_visible(False)
    figure.supxlabel("optimizer steps since the start of the stream", fontsize=9)
    figure.supylabel("score (%)", fontsize=9)
    figure.legend(handles=arm_handles(arms), loc="outside upper center", ncols=len(arms))
    return figure


def _matrix(accuracy: pd.DataFrame, arm: Arm, domains: list[str], value: str) -> pd.DataFrame:
    """R[t, i]: mean over replicates of `value` on domain i after stage t; rows t = 0..T, columns domains."""
    rows = accuracy[(accuracy["arm"] == arm.name) & (accuracy["kind"] == "all")]
    matrix = rows.pivot_table(index="stage", columns="domain", values=value, aggfunc="mean")
    return matrix.reindex(columns=domains)


def _cell_text(value: float, number: str) -> str:
    """A cell's number; absent is blank, and what rounds to nothing has no sign."""
    text = "" if np.isnan(value) else format(value, number)
    return text.lstrip("+-") if not text.strip("+-0.") else text.replace("-", "−")


def _heatmap(axes: Axes, matrix: pd.DataFrame, number: str, **named) -> None:
    texts = matrix.map(lambda value: _cell_text(value, number))
    sns.heatmap(matrix, ax=axes, annot=texts, fmt="", linewidths=0.8, linecolor="white", annot_kws={"size": 8}, cbar=False, **named)
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0)
    axes.set_xticklabels(axes.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")
    for stage in range(1, len(matrix)):
        axes.add_patch(plt.Rectangle((stage - 0.96, stage + 0.04), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=1.2))


def _stage_labels(domains: list[str]) -> list[str]:
    return ["before"] + [f"after {domain}" for domain in domains]


@styled
def accuracy_matrices(accuracy: pd.DataFrame) -> Figure:
    """R[t, i] per arm (percent, mean over replicates) and, for two arms, the sparse minus the dense one.

    Rows are stages, columns domains; framed cells are a domain's score right after its own stage.
    """
    accuracy = main_rows(accuracy)
    arms, domains = streamed_arms_in(accuracy, "accuracy"), domain_order(accuracy)
    matrices = [100 * _matrix(accuracy, arm, domains, "score") for arm in arms]
    panels = len(arms) + (len(arms) == 2)
    figure, grid = plt.subplots(1, panels, figsize=(TEXT_WIDTH, 2.5), sharey=True, squeeze=False)
    for axes, arm, matrix in zip(grid[0], arms, matrices, strict=False):
        _heatmap(axes, matrix, vmin=0, vmax=115, cmap="Blues" if arm.is_sparse else "Greys", number=".0f")
        axes.set_title(f"{arm.label}: score (%)")
    if len(arms) == 2:
        difference = matrices[1] - matrices[0]
        bound = max(1.0, float(np.nanmax(np.abs(difference.to_numpy()))))
        _heatmap(grid[0][-1], difference, vmin=-bound, vmax=bound, cmap="PuOr_r", number="+.0f")
        grid[0][-1].set_title(f"{arms[1].label} minus {arms[0].label} (points)")
    grid[0][0].set_yticklabels(_stage_labels(domains), rotation=0)
    return figure


def _replicate_values(metrics: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Metrics over domains, kind `all`: one row per arm and replicate, one column per metric (percent)."""
    rows = main_rows(metrics)
    rows = rows[(rows["kind"] == "all") & over_domains(rows) & rows["metric"].isin(names)]
    if rows.empty:
        raise NothingToDraw(f"metrics: no rows {names} over domains of kind 'all'; run 05_stats after 03_continual")
    return 100 * rows.pivot_table(index=["arm", "seed"], columns="metric", values="value")


def _draw_pairs(axes: Axes, values: pd.DataFrame, arms: list[Arm], names: tuple[str, ...]) -> None:
    """Replicates as points, joined where they are a pair, with mean and interval beside them."""
    spread = np.linspace(-0.17, 0.17, len(arms))
    for position, name in enumerate(names):
        wide = values[name].unstack("arm")[[arm.name for arm in arms]]
        for row in wide.to_numpy():
            axes.plot(position + spread, row, color="0.8", linewidth=0.7, zorder=1)
        for offset, arm in zip(spread, arms, strict=True):
            style = arm_style(arm) | {"markersize": 3, "alpha": 0.45, "linestyle": ""}
            axes.plot(np.full(len(wide), position + offset), wide[arm.name], zorder=2, **style)
            draw_interval(axes, position + offset * 1.75, wide[arm.name], arm)
    axes.set_xticks(range(len(names)), names)
    axes.grid(False, axis="x")


@styled
def forgetting_own_final(metrics: pd.DataFrame, margin: float | None = None) -> Figure:
    """Forgetting, own and final score per replicate with 95 % t intervals, and paired differences to the first dense arm.

    `margin` (a fraction, as in the tables) is drawn as the band of equivalence.
    """
    names = ("forgetting", "own", "final")
    values = _replicate_values(metrics, names)
    arms = streamed_arms_in(values.reset_index(), "metrics")
    figure, (left, right) = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 2.6), width_ratios=(1.25, 1))
    _draw_pairs(left, values, arms, names)
    left.set_ylabel("score (%) or points")
    left.set_title("replicates, mean and 95 % interval")
    left.legend(handles=arm_handles(arms, line=False), ncols=len(arms), loc="best")
    left.margins(y=0.16)
    reference, others = arms[0], arms[1:]
    if margin is not None:
        right.axhspan(-100 * margin, 100 * margin, color="0.93", zorder=0, linewidth=0)
    right.axhline(0, color="0.4", linewidth=0.8)
    for position, name in enumerate(names):
        wide = values[name].unstack("arm")
        for shift, arm in zip(np.linspace(-0.15, 0.15, len(others)) if len(others) > 1 else [0], others, strict=True):
            difference = wide[arm.name] - wide[reference.name]
            style = arm_style(arm) | {"markersize": 3, "alpha": 0.45, "linestyle": ""}
            right.plot(np.full(len(difference), position + shift - 0.14), difference, **style)
            draw_interval(right, position + shift, difference, arm)
    right.set_xticks(range(len(names)), names)
    right.set_xlim(-0.5, len(names) - 0.5)
    right.grid(False, axis="x")
    right.set_ylabel("points")
    right.set_title(f"paired difference to {reference.label}" + (" (grey: margin)" if margin is not None else ""))
    return figure


@styled
def loss_forgetting(accuracy: pd.DataFrame, curves: pd.DataFrame) -> Figure:
    """Answer-token loss: matrices nll[t, i] per arm, and its course along the stream by domain (nats per answer token)."""
    points = _curve_points(curves, accuracy, "nll")
    accuracy = main_rows(accuracy)
    arms, domains = streamed_arms_in(points, "curves"), domain_order(accuracy)
    stage_steps = int(main_rows(curves)["stage_steps"].iloc[0])
    matrices = [_matrix(accuracy, arm, domains, "nll") for arm in arms]
    top = max(float(np.nanmax(matrix.to_numpy())) for matrix in matrices)
    figure = plt.figure(figsize=(TEXT_WIDTH, 4.7))
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    grid = upper.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    for axes, arm, matrix in zip(grid, arms, matrices, strict=True):
        _heatmap(axes, matrix, vmin=0, vmax=1.3 * top, cmap="Blues" if arm.is_sparse else "Greys", number=".2f")
        axes.set_title(f"{arm.label}: nats per answer token")
    grid[0].set_yticklabels(_stage_labels(domains), rotation=0)
    panels = lower.subplots(1, len(domains), sharex=True, sharey=True, squeeze=False)[0]
    for axes, domain in zip(panels, domains, strict=True):
        _draw_curves(axes, points[points["domain"] == domain], arms, "nll", 1)
        _mark_stages(axes, domains, stage_steps, domain)
        axes.set_title(domain)
        axes.set_xticks([0, len(domains) // 2 * stage_steps, (len(domains) - 1) * stage_steps])
    panels[0].set_ylim(bottom=0)  # once all are drawn: it freezes the shared top
    panels[0].locator_params(axis="y", nbins=4, integer=True)  # narrow labels leave room for the axis' own
    panels[0].set_ylabel("nats per token")
    lower.supxlabel("optimizer steps since the start of the stream", fontsize=9)
    lower.legend(handles=arm_handles(arms), loc="outside upper center", ncols=len(arms))
    return figure


def stream_figure(tables: Mapping[str, pd.DataFrame], measure: str) -> Figure:
    """The course of a stream in what the study measures: right answers, or answer loss."""
    if measure == "score":
        return forgetting_curves(tables["curves"], tables["accuracy"])
    return loss_forgetting(tables["accuracy"], tables["curves"])
