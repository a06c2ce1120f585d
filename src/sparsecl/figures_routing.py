"""Do domains use different experts? Routing of a mixture of experts by layer (paper, part on mixtures of experts).

Drawn from routing.csv: before fine-tuning (stage 0) and at the end of each method's stream. The shared expert serves every
token and so takes part in no divergence; its gate stands apart.
"""

from collections.abc import Sequence
from textwrap import fill

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, styled
from sparsecl.figures_matrices import heat_map
from sparsecl.figures_probes import (
    PAIR,
    SHADE,
    VALUE,
    domains_of,
    draw_by_layer,
    draw_levels,
    level_handles,
    mark_layers,
    rows_of_arm,
    shown_layers,
)
from sparsecl.items import GENERAL
from sparsecl.methods import METHODS
from sparsecl.model_settings import FULL_ATTENTION_EVERY

DIVERGENCES = {"jsd": "divergence", "jsd/same-tokens": "divergence,\nsame tokens"}
LOAD = "load/"  # before the number of an expert
LOADS = {
    "specialisation_max": "largest specialisation",
    "load_maxvio": "load violation on general text",
    "entropy": "entropy of routing",
    "shared_gate": "gate of the shared expert",
}
BEFORE = {"color": "#7F7F7F", "marker": "o", "markerfacecolor": "white"}
MARKS = "osD^vP"
NUMBERED = 16  # experts up to which cells hold their numbers


@styled
def routing_divergence(routing: pd.DataFrame, arm: str | None = None) -> Figure:
    """Entropy-normalised Jensen-Shannon divergence of the domains' expert use by layer, a row for the control on the same tokens.

    Columns are before fine-tuning and after each method's stream. Pairs are faint, their mean stands with its t interval over
    replicates. Layers of full attention are shaded. Raises NothingToDraw where no divergence was measured.
    """
    rows = rows_of_arm(routing, "routing", arm)
    rows = rows[rows["measure"].isin(DIVERGENCES)]
    states, measures = _states(rows), [name for name in DIVERGENCES if (rows["measure"] == name).any()]
    if not measures:
        raise NothingToDraw("routing: no 'jsd' of pairs of domains; run 04_probe on a study whose model has experts")
    figure, grid = plt.subplots(
        len(measures), len(states), figsize=(TEXT_WIDTH, 1.55 * len(measures) + 0.95), sharex=True, sharey=True, squeeze=False
    )
    for line, measure in zip(grid, measures, strict=True):
        for axes, state in zip(line, states, strict=True):
            here = state_rows(rows[rows["measure"] == measure], state)
            draw_levels(axes, here, ("null_label", "ceiling"))
            draw_by_layer(axes, here, PAIR, **VALUE)
            mark_layers(axes, sorted(rows["layer"].unique()), full_attention_layers(rows))
        line[0].set_ylabel(DIVERGENCES[measure])
    for axes, state in zip(grid[0], states, strict=True):
        axes.set_title(fill(_state_label(state), 100 // len(states), break_on_hyphens=False))
    grid[0, 0].set_ylim(bottom=0)
    figure.supxlabel("layer", fontsize=9)
    pairs = Line2D([], [], linestyle="", label="pairs of domains", **VALUE)
    handles = [pairs, *level_handles(rows, ("null_label", "ceiling")), *shade_handles(rows)]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


@styled
def expert_use(routing: pd.DataFrame, arm: str | None = None) -> Figure:
    """Share of each domain's tokens that every expert gets, by layer, before fine-tuning, in one replicate.

    Experts of two replicates have nothing in common but their number, so there is no mean over them: shown is the first.
    """
    before = state_rows(rows_of_arm(routing, "routing", arm), "")
    rows = before[before["measure"].str.startswith(LOAD)]
    if rows.empty:
        raise NothingToDraw(f"routing: no '{LOAD}0' before fine-tuning; run 04_probe on a study whose model has experts")
    rows = rows[rows["seed"] == rows["seed"].min()]
    rows = rows.assign(expert=rows["measure"].str.removeprefix(LOAD).astype(int), share=100 * rows["value"])
    layers, measured = shown_layers(rows), set(rows["domain_a"])
    domains = [name for name in (*domains_of(before[before["domain_b"] != ""]), GENERAL) if name in measured]
    lines, numbered = -(-len(layers) // 2), rows["expert"].nunique() <= NUMBERED
    figure, grid = plt.subplots(
        lines, 2, figsize=(TEXT_WIDTH, lines * (0.19 * len(domains) + 0.55) + 0.7), sharex=True, sharey=True, squeeze=False
    )
    for axes, layer in zip(grid.flat, layers, strict=False):
        matrix = rows[rows["layer"] == layer].pivot(index="domain_a", columns="expert", values="share").loc[domains]
        shown = heat_map(axes, matrix, ".0f" if numbered else None, slant=0, vmin=0, vmax=rows["share"].max(), cmap="Blues")
        axes.set_title(f"layer {layer}" + (", full attention" if layer in full_attention_layers(rows) else ""))
    for axes in grid.flat[len(layers) :]:
        axes.set_visible(False)
    figure.supxlabel("expert", fontsize=9)
    figure.colorbar(shown, ax=grid, shrink=0.7, pad=0.02, label="share of the tokens (%)")
    return figure


@styled
def routing_load(routing: pd.DataFrame, arm: str | None = None) -> Figure:
    """Specialisation, load and the shared expert's gate by layer, before fine-tuning and after each method's stream.

    Domains are faint, their mean stands with its t interval over replicates; the specialisation has a null of permuted labels, and
    the load violation is that of general text. Raises NothingToDraw where none was measured.
    """
    rows = rows_of_arm(routing, "routing", arm)
    measures = [name for name in LOADS if (rows["measure"] == name).any()]
    if not measures:
        raise NothingToDraw(f"routing: none of {tuple(LOADS)}; run 04_probe on a study whose model has experts")
    rows = rows[rows["measure"].isin(measures)]
    states = _states(rows)
    lines = -(-len(measures) // 2)
    figure, grid = plt.subplots(lines, min(2, len(measures)), figsize=(TEXT_WIDTH, 1.6 * lines + 0.95), sharex=True, squeeze=False)
    for axes, measure in zip(grid.flat, measures, strict=False):
        for shift, state in zip(_shifts(len(states)), states, strict=True):
            here = state_rows(rows[rows["measure"] == measure], state)
            draw_levels(axes, here, ("null_label",), shift, half=0.08)
            draw_by_layer(axes, here, "domain_a", shift, 0.05, **_state_style(state, states))
        mark_layers(axes, sorted(rows["layer"].unique()), full_attention_layers(rows))
        axes.set_title(LOADS[measure])
    for axes in grid.flat[len(measures) :]:
        axes.set_visible(False)
    figure.supxlabel("layer", fontsize=9)
    shown = [Line2D([], [], linestyle="", label=_state_label(state), **_state_style(state, states)) for state in states]
    handles = [*shown, *level_handles(rows, ("null_label",)), *shade_handles(rows)]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, columnspacing=1.2)
    return figure


def full_attention_layers(rows: pd.DataFrame) -> list[int]:
    """Layers with full attention, counted from 0; the others of a Qwen3.5, the one family that is probed for routing, have DeltaNet."""
    return [layer for layer in sorted(rows["layer"].unique()) if (layer + 1) % FULL_ATTENTION_EVERY == 0]


def shade_handles(rows: pd.DataFrame) -> list[Patch]:
    """The legend entry of the shade, where a layer has one."""
    return [Patch(label="full attention", **SHADE)] if full_attention_layers(rows) else []


def _states(rows: pd.DataFrame) -> list[str]:
    """An empty name for before fine-tuning, then the methods whose streams were read."""
    found = set(rows.loc[rows["stage"] > 0, "method"])
    before = [""] if (rows["stage"] == 0).any() else []
    return [*before, *(name for name in METHODS if name in found)]


def state_rows(rows: pd.DataFrame, state: str) -> pd.DataFrame:
    """Rows before fine-tuning, or at the end of the stream of a method."""
    if not state:
        return rows[rows["stage"] == 0]
    rows = rows[(rows["stage"] > 0) & (rows["method"] == state)]
    return rows[rows["stage"] == rows["stage"].max()]


def _state_label(state: str) -> str:
    return f"after {METHODS[state].label}" if state else "before fine-tuning"


def _state_style(state: str, states: Sequence[str]) -> dict:
    return {"color": METHODS[state].colour, "marker": MARKS[states.index(state) % len(MARKS)]} if state else BEFORE


def _shifts(count: int) -> np.ndarray:
    """How far marks of one layer stand apart, in layers."""
    return (np.arange(count) - (count - 1) / 2) * min(0.18, 0.7 / count)
