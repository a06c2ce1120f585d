"""What figures of the probes share: normalised quantities, marks along the layers, nulls and ceilings (paper, part on implicit sparsity).

A probe's number says nothing alone. Every figure shows it between what it would be without the thing looked for (the
nulls) and what two halves of one domain reach (the ceiling). Layers are never averaged.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from sparsecl.figure_style import REFERENCE, NothingToDraw
from sparsecl.figures_replicates import draw_cross, faint
from sparsecl.probe_normalisation import disattenuated_cosine, normalised_overlap

PAIR = ["domain_a", "domain_b"]
TICK = 0.22  # inches: the number of a layer and the space beside it
MOST_LAYERS = 8  # panels beside each other that can still be read
SELECTIONS = {
    "magnitude": "magnitude",
    "frequency": "frequency",
    "contrast": "contrast",
    "magnitude/same-tokens": "same tokens",
}
MODULES = {"attention": "attention", "ffn": "feed-forward"}
VALUE = {"color": "#1B1B1B", "marker": "o"}  # where panels, and not colours, say what was measured
# A level is drawn as a short line across its layer: the colours are those of `figures_checkpoints.REFERENCES`.
LEVELS = {
    "null": {"color": "#D55E00", "linestyle": "-", "label": "chance"},
    "null_label": {"color": "#009E73", "linestyle": "-", "label": "permuted domain labels"},
    "ceiling": {"color": "0.45", "linestyle": "-", "label": "split halves of a domain"},
}
SHADE = {"color": "#DCE9F5", "linewidth": 0}  # layers of full attention


def normalised(overlap: pd.DataFrame) -> pd.Series:
    """`normalised_overlap` of every row: 0 is chance, 1 what a domain shares with itself; NaN where halves do not agree."""
    return pd.Series(normalised_overlap(overlap["value"], overlap["null"], overlap["ceiling"]), overlap.index)


def disattenuated(cosines: pd.DataFrame) -> pd.Series:
    """`disattenuated_cosine` of every row: without the noise of two finite samples; NaN where the gradient itself is not measured."""
    return pd.Series(disattenuated_cosine(cosines["value"], cosines["null"], cosines["ceiling"]), cosines.index)


def require_rows(table: str, frame: pd.DataFrame) -> None:
    """Raise NothingToDraw for a table without rows, which may then lack its columns too."""
    if frame.empty:
        raise NothingToDraw(f"{table}: no rows to draw; give the study's probe that section and run 04_probe")


def rows_of_arm(frame: pd.DataFrame, table: str, arm: str | None = None) -> pd.DataFrame:
    """Rows of one arm: the one asked for, or D1, or D0, or the first one there."""
    require_rows(table, frame)
    found = list(dict.fromkeys(frame["arm"]))
    chosen = arm or next((name for name in (REFERENCE, "D0", *found) if name in found), None)
    if chosen not in found:
        raise NothingToDraw(f"{table}: no rows of arm {chosen or 'D1'}, only of {found}; run 04_probe for it")
    return frame[frame["arm"] == chosen]


def rows_of_main_fraction(overlap: pd.DataFrame, top_fraction: float | None = None) -> pd.DataFrame:
    """Rows of one Top-K fraction: the one asked for, or the most frequent one, and of equally frequent ones the largest."""
    counts = overlap["top_fraction"].value_counts()
    if counts.empty or (top_fraction is not None and top_fraction not in counts):
        raise NothingToDraw(f"overlap: no rows of top fraction {top_fraction}, only of {sorted(counts.index)}; add it to the study's probe")
    return overlap[overlap["top_fraction"] == (top_fraction or max(counts.index[counts == counts.max()]))]


def domains_of(frame: pd.DataFrame) -> list[str]:
    """Domains of a table of pairs in the order of the stream, in which every pair names the earlier one first."""
    first = frame[PAIR].drop_duplicates()["domain_a"].value_counts()
    names = dict.fromkeys([*frame["domain_a"], *frame["domain_b"]])
    return sorted(names, key=lambda name: -first.get(name, 0))


def shown_layers(frame: pd.DataFrame, most: int = MOST_LAYERS) -> list[int]:
    """The layers, or as many evenly spaced ones, the first and the last among them, where they are too many for one figure."""
    layers = sorted(frame["layer"].unique())
    return [int(layers[place]) for place in np.unique(np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int))]


def draw_by_layer(axes: Axes, rows: pd.DataFrame, members: str | Sequence[str], shift: float = 0.0, aside: float = 0.09, **style) -> None:
    """Along the layers: every one of the `members` (pairs, domains) faint, their mean as a cross with its t interval over replicates.

    `rows` has a row for every layer, replicate and member. `shift` moves all marks, and `aside` the faint ones to the left, in layers.
    """
    for layer, here in rows.dropna(subset=["value"]).groupby("layer"):
        singles = here.groupby(list(members) if not isinstance(members, str) else members)["value"].mean()
        axes.plot(np.full(len(singles), layer + shift - aside), singles, **singles_style(style))
        draw_cross(axes, [layer + shift], here.groupby("seed")["value"].mean(), **{"markersize": 4.5} | style)


def singles_style(style: Mapping) -> dict:
    """The style of single points beside their mean: as `faint`, without the dark edge that some means have."""
    return faint({name: value for name, value in style.items() if name not in ("markeredgecolor", "markeredgewidth")})


def draw_levels(axes: Axes, rows: pd.DataFrame, columns: Iterable[str] = LEVELS, shift: float = 0.0, half: float = 0.4) -> None:
    """Nulls and ceiling of every layer, means over pairs and replicates, as lines across the layer, or to `half` a length beside it."""
    for column in columns:
        means = rows.groupby("layer")[column].mean().dropna()
        if means.empty:
            continue
        axes.hlines(
            means, means.index + shift - half, means.index + shift + half, zorder=1.5, linewidth=1.4, **without_label(LEVELS[column])
        )


def without_label(style: Mapping) -> dict:
    return {name: value for name, value in style.items() if name != "label"}


def level_handles(rows: pd.DataFrame, columns: Iterable[str] = LEVELS) -> list[Line2D]:
    """Legend entries of the levels that `rows` has."""
    return [Line2D([], [], linewidth=1.4, **LEVELS[column]) for column in columns if rows[column].notna().any()]


def mark_layers(axes: Axes, layers: Sequence[int], full_attention: Iterable[int] = ()) -> None:
    """Layers as ticks, as many as the panel has room for; those of full attention, among layers of linear attention, on a shade."""
    room = axes.get_position().width * axes.figure.get_figwidth() / TICK
    axes.set_xticks(list(layers)[:: -(-len(layers) // max(1, int(room)))])
    axes.set_xlim(min(layers) - 0.5, max(layers) + 0.5)
    axes.grid(False, axis="x")
    for layer in set(full_attention) & set(layers):
        axes.axvspan(layer - 0.5, layer + 0.5, zorder=0, **SHADE)
