"""Figures that compare conversions: topologies, algorithms, densities, and their recovery (paper, section Results).

Drawn from `conversion.csv` alone, over the replicates that made all arms of a comparison (`sparsecl.comparisons`).
Marks of S0 are hollow, marks of S1 filled; the dense base and the dense arm with the same extra tokens are lines.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from sparsecl.arms import Arm, topology_label
from sparsecl.comparisons import COMPARISONS, DENSE, KEPT, LINEAGES, LOSS, SCORE, Compared, compare, family
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_of, arm_style, draw_interval, mean_interval, styled
from sparsecl.figures_checkpoints import recovery_points

MEASURES = {LOSS: ("general loss (nats per token)", 1), SCORE: ("general score (%)", 100)}
LEAST = 3  # replicates behind an interval: that of two reaches nine standard deviations to each side
WIDE_SPAN = 5  # a measure whose largest value is more than this many times its smallest is drawn on a log axis
MEANINGS = {"S0": "S0, no training after it", "S1": "S1, recovered", "D0": "D0, dense base", "D1": "D1, dense, same extra tokens"}
DASHES = ("-", (0, (6, 1.5)), "--", "-.", ":", (0, (1, 3)))


def _require(conversion: pd.DataFrame, name: str) -> Compared:
    """A comparison of at least two arms, or NothingToDraw naming what to run."""
    compared = compare(conversion, name)
    if len(compared.choices) < 2:
        raise NothingToDraw(
            f"conversion: comparing {name} needs two, found {compared.choices or 'none'}; list arms such as {compared.comparison.needed} "
            "in the study and run 01_sparsify and 02_recover"
        )
    if not compared.replicates:
        raise NothingToDraw(f"conversion: no replicate made all of {compared.choices}; run 01_sparsify and 02_recover for the missing ones")
    return compared


def _interval(values: pd.Series) -> tuple[float, float, float]:
    """Mean with its t interval, or the mean alone where replicates are few."""
    return mean_interval(values) if len(values) >= LEAST else (values.mean(), np.nan, np.nan)


def _scale(axes: Axes, values: np.ndarray, direction: str) -> None:
    """A log axis with plain numbers where a positive measure spans much."""
    if not len(values) or values.min() <= 0 or values.max() / values.min() <= WIDE_SPAN:
        return
    getattr(axes, f"set_{direction}scale")("log")
    axis = getattr(axes, f"{direction}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _draw_dense(axes: Axes, compared: Compared, metric: str, scale: float, direction: str) -> None:
    """The dense references as lines with their intervals as bands; `direction` is the axis of the measure."""
    line, span = (axes.axvline, axes.axvspan) if direction == "x" else (axes.axhline, axes.axhspan)
    for name in DENSE:
        mean, low, high = _interval(scale * compared.values(metric, name))
        if np.isnan(mean):
            continue
        colour = arm_of(name).colour
        if not np.isnan(low):
            span(low, high, color=colour, alpha=0.13, linewidth=0, zorder=0)
        line(mean, color=colour, linewidth=1.1, linestyle="--" if name == "D0" else "-", zorder=1)


def _draw_row(axes: Axes, row: int, arm: Arm, values: pd.Series) -> None:
    """One arm of a dot plot: mean and interval, every replicate faint beside it; S0 above its S1."""
    side = -1 if arm.lineage == "S0" else 1
    if len(values) > 1:
        faint = arm_style(arm) | {"markersize": 3, "alpha": 0.45, "linestyle": ""}
        axes.plot(values, np.full(len(values), row + 0.29 * side), **faint)
    shown = values if len(values) >= LEAST else [values.mean()]
    draw_interval(axes, row + 0.12 * side, shown, arm, horizontal=True)


def _handles(compared: Compared, metric: str) -> list[Line2D]:
    """What the marks mean; grey, because colours name topologies and algorithms."""
    marks = []
    for lineage in LINEAGES:
        if any(key[0] == lineage for key in compared.arms):
            style = arm_style(arm_of(f"{lineage}-2of4")) | {"color": "0.35"}
            style["markerfacecolor"] = "white" if lineage == "S0" else "0.35"
            marks.append(Line2D([], [], linestyle="", label=MEANINGS[lineage], **style))
    for name in DENSE:
        if len(compared.values(metric, name)):
            marks.append(Line2D([], [], color=arm_of(name).colour, linestyle="--" if name == "D0" else "-", label=MEANINGS[name]))
    return marks


def _dot_plot(compared: Compared) -> Figure:
    """Choices downwards, general loss (and score, where there are right answers) to the right."""
    measured = [metric for metric in MEASURES if compared.measures(metric)]
    rows = len(compared.choices)
    figure, grid = plt.subplots(1, len(measured), figsize=(TEXT_WIDTH, 0.36 * rows + 0.95), sharey=True, squeeze=False)
    for axes, metric in zip(grid[0], measured, strict=True):
        title, scale = MEASURES[metric]
        shown = [scale * compared.values(metric, name) for name in DENSE]
        _draw_dense(axes, compared, metric, scale, "x")
        for (lineage, choice), arm in compared.arms.items():
            values = scale * compared.values(metric, lineage, choice)
            _draw_row(axes, compared.choices.index(choice), arm, values)
            shown.append(values)
        if metric == LOSS:
            _scale(axes, np.concatenate(shown), "x")
        axes.set_xlabel(title)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    for edge in range(rows - 1):
        for axes in grid[0]:
            axes.axhline(edge + 0.5, color="0.9", linewidth=0.6, zorder=0)
    grid[0][0].set_yticks(range(rows), [compared.label(choice) for choice in compared.choices])
    grid[0][0].set_ylim(rows - 0.5, -0.5)
    figure.legend(handles=_handles(compared, measured[0]), loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.4)
    return figure


@styled
def topology_comparison(conversion: pd.DataFrame) -> Figure:
    """Immediate (S0) and recovered (S1) general loss and score by topology at 50 % zeros, with D0 and D1 as references.

    Means with 95 % t intervals over the replicates that made all topologies (from three on), every replicate faint beside.
    """
    return _dot_plot(_require(conversion, "topologies"))


@styled
def algorithm_comparison(conversion: pd.DataFrame) -> Figure:
    """The same by algorithm at 2:4, from the one that looks at nothing to the one that trains the mask."""
    return _dot_plot(_require(conversion, "algorithms"))


def _scan(compared: Compared, metric: str, lineage: str) -> pd.DataFrame:
    """Attained zeros (percent) and mean, low, high of a metric for every density of every family."""
    rows = []
    for choice in compared.choices:
        if (arm := compared.arms.get((lineage, choice))) is not None:
            zeros = 100 * (1 - compared.values(KEPT, lineage, choice).mean())
            values = compared.values(metric, lineage, choice)
            mean, low, high = _interval(values)
            rows.append({"arm": arm, "family": family(arm), "zeros": zeros, "values": values, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows, columns=["arm", "family", "zeros", "values", "mean", "low", "high"]).sort_values("zeros", kind="stable")


def _draw_scan(axes: Axes, line: pd.DataFrame, scale: float) -> None:
    arm = line["arm"].iloc[0]
    below, above = scale * (line["mean"] - line["low"]), scale * (line["high"] - line["mean"])
    error = None if below.isna().any() else [below, above]
    style = arm_style(arm) | {"linestyle": "--" if arm.lineage == "S0" else "-"}
    for row in line.itertuples():
        axes.plot(np.full(len(row.values), row.zeros), scale * row.values, **style | {"linestyle": "", "markersize": 2, "alpha": 0.4})
    _, _, bars = axes.errorbar(line["zeros"], scale * line["mean"], yerr=error, linewidth=1.2, elinewidth=2.2, **style)
    for bar in bars:  # pale, because those of several lines fall on each other
        bar.set_alpha(0.3)


def _family_label(arm: Arm) -> str:
    return topology_label(arm.topology) if not family(arm).startswith("of") else f"N:{family(arm).removeprefix('of')}"


@styled
def density_scan(conversion: pd.DataFrame) -> Figure:
    """General loss (and score) over the attained share of zeros: one line a family, S0 dashed, S1 solid; D0 and D1 as references."""
    compared = _require(conversion, "densities")
    measured = [metric for metric in MEASURES if compared.measures(metric)]
    figure, grid = plt.subplots(1, len(measured), figsize=(TEXT_WIDTH, 2.75), squeeze=False)
    families: dict[str, Arm] = {}
    for axes, metric in zip(grid[0], measured, strict=True):
        title, scale = MEASURES[metric]
        _draw_dense(axes, compared, metric, scale, "y")
        values = [scale * compared.values(metric, name) for name in DENSE]
        for lineage in LINEAGES:
            for name, line in _scan(compared, metric, lineage).groupby("family", sort=False):
                _draw_scan(axes, line, scale)
                families.setdefault(name, line["arm"].iloc[0])
                values.append(scale * line["mean"])
        if metric == LOSS:
            _scale(axes, np.concatenate(values), "y")
        axes.set_xlabel("zeros in the pruned layers (%)")
        axes.set_title(title)
    colours = [Line2D([], [], color=arm.colour, label=_family_label(arm), linewidth=2.5) for arm in families.values()]
    figure.legend(handles=colours, loc="outside lower center", ncols=len(colours), columnspacing=1.2)
    figure.legend(handles=_handles(compared, measured[0]), loc="outside upper center", ncols=4, columnspacing=1.2, handletextpad=0.4)
    return figure


def _recovery_style(arm: Arm, dashes: str | tuple) -> dict:
    return arm_style(arm) | {"markersize": 2.5, "linestyle": dashes, "linewidth": 1.1}


def _dashes(compared: Compared) -> dict[float, str | tuple]:
    """A dash for every kept share of a density scan; the arms of other comparisons have one share."""
    shares = sorted({arm.density for arm in compared.arms.values()}, reverse=True)
    return {share: DASHES[position % len(DASHES)] for position, share in enumerate(shares)}


def _draw_recovery(axes: Axes, points: pd.DataFrame, compared: Compared) -> list[Line2D]:
    """Mean curves of one comparison's S1 arms and of D1; returns what its legend says."""
    dashes, drawn = _dashes(compared), {}
    for choice in ["", *compared.choices]:
        arm = compared.arms.get(("S1", choice)) if choice else arm_of("D1")
        rows = points[points["arm"] == arm.name] if arm else points.iloc[:0]
        if len(rows):
            mean, style = rows.groupby("step")["value"].mean(), _recovery_style(arm, dashes.get(arm.density, "-"))
            axes.plot(mean.index, mean, **style)
            drawn[compared.label(choice) if choice else "D1"] = (arm, style)
    if len(dashes) == 1:
        return [Line2D([], [], label=label, **style) for label, (_, style) in drawn.items()]
    families = {_family_label(arm) if arm.is_sparse else label: style | {"linestyle": "-"} for label, (arm, style) in drawn.items()}
    shares = [Line2D([], [], color="0.35", linestyle=dash, label=f"{100 * share:g} % kept") for share, dash in dashes.items()]
    return [*(Line2D([], [], label=label, **style) for label, style in families.items()), *shares]


@styled
def recovery_curves(conversion: pd.DataFrame) -> Figure:
    """General loss during the recovery budget, one panel a comparison; means over the replicates that made all its arms."""
    found = {name: compare(conversion, name) for name in COMPARISONS}
    points = {name: recovery_points(compared.rows) for name, compared in found.items()}
    shown = [name for name in found if points[name].loc[points[name]["arm"] != "D1", "arm"].nunique() > 1]
    if not shown:
        raise NothingToDraw(
            "conversion: no two compared arms have 'recovery/nll/<step>'; list S1 arms such as S1-block16 and run 02_recover"
        )
    figure, grid = plt.subplots(1, len(shown), figsize=(TEXT_WIDTH, 3.3), sharey=True, squeeze=False)
    for axes, name in zip(grid[0], shown, strict=True):
        handles = _draw_recovery(axes, points[name], found[name])
        axes.set_title(name)
        axes.set_xlabel("optimizer steps")
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=2, columnspacing=0.8, handletextpad=0.4)
    _scale(grid[0][0], pd.concat(points.values())["value"].to_numpy(), "y")
    grid[0][0].set_ylabel("general loss (nats per token)")
    return figure
