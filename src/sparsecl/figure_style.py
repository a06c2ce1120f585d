"""The look of every figure, and how a figure becomes a file (paper, all figures).

Figures are drawn at the paper's text width, so that a point in a figure is a point on the page.
Colours, labels and markers of arms come from `sparsecl.arms`; nothing here knows a study.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import DENSE_LINEAGES, MASKED_UPDATES, SPARSE_LINEAGES, Arm, parse_arm
from sparsecl.comparisons import freedom
from sparsecl.intervals import t_interval
from sparsecl.protocol import main_protocol
from sparsecl.records import write_atomically
from sparsecl.topologies import Blocks, parse_topology

TEXT_WIDTH = 6.3  # inches, the paper's line width
CHECKPOINT_ARMS = ("D0", "S0-2of4", "S1-2of4", "D1")  # the checkpoints behind the stream's main contrast
REFERENCE = "D1"  # the arm to which all others are compared
TOGETHER = 4  # as many arms share a panel and stay apart; more are drawn in groups, or one below the other
LINE_STYLES = {"D0": "--", "S0": "--", "Sf": "-.", "Dg": ":"}  # arms that differ in training only may share a colour

STYLE = {
    "font.family": "STIXGeneral",  # ships with matplotlib: the same glyphs on every machine
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "figure.constrained_layout.use": True,
    "figure.dpi": 130,
    "pdf.fonttype": 42,
    "svg.hashsalt": "sparsecl",
}


class NothingToDraw(ValueError):
    """A table has no row for a figure; the message names what was looked for."""


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run a drawing function in the paper's style and return its figure, closed for pyplot.

    Closing keeps notebooks from showing it twice. Laying out once inside the style fixes fonts and
    positions, so that the file and what the notebook shows are the same picture.
    """

    @functools.wraps(draw)
    def wrapper(*positional, **named) -> Figure:
        with mpl.rc_context(STYLE):
            figure = draw(*positional, **named)
            figure.draw_without_rendering()
            figure.set_layout_engine("none")
            plt.close(figure)
            return figure

    return wrapper


def figure_or_reason(draw: Callable[..., Figure], *inputs) -> Figure | str:
    """The figure that `draw` makes of its inputs, or the sentence that says why there is none (a replicate may lack its arms)."""
    try:
        return draw(*inputs)
    except NothingToDraw as reason:
        return str(reason)


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as vector PDF; equal figures give equal bytes. Returns the path."""
    path = Path(path)
    if path.suffix != ".pdf":
        raise ValueError(f"figure {path}: figures are saved as .pdf, not {path.suffix or 'without suffix'}; change the name")
    metadata = {"Creator": "sparsecl", "Producer": None, "CreationDate": None, "ModDate": None}
    with mpl.rc_context(STYLE):
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="pdf", metadata=metadata))
    return path


def mean_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and two-sided t interval (df = n - 1) over replicates; the bounds are NaN for one value, all are for none."""
    values = np.asarray([value for value in values if np.isfinite(value)], dtype=float)
    if len(values) < 2:
        return (float(values[0]) if len(values) else np.nan), np.nan, np.nan
    found = t_interval(values, confidence)
    return found.mean, found.low, found.high


def intervals(frame: pd.DataFrame, by: str | list[str], value: str) -> pd.DataFrame:
    """`mean`, `low`, `high` of `value` per group of `by` (t interval over the rows of a group)."""
    rows = frame.groupby(by, sort=True)[value].agg(lambda column: mean_interval(column))
    return pd.DataFrame(rows.tolist(), index=rows.index, columns=["mean", "low", "high"]).reset_index()


def arm_of(name: str) -> Arm:
    return parse_arm(name)


def arms_in(frame: pd.DataFrame, table: str) -> list[Arm]:
    """Arms of a table in their fixed order: the base, its conversion, recovery, then dense partners."""
    if frame.empty:
        raise NothingToDraw(f"{table}: no rows to draw; run the notebooks that measure them, or check the study's tables")
    order = ["D0", "S0", "S1", "D1"]
    arms = [arm_of(name) for name in frame["arm"].unique()]
    return sorted(arms, key=lambda arm: (order.index(arm.lineage) if arm.lineage in order else len(order), arm.name))


def streamed_arms_in(frame: pd.DataFrame, table: str) -> list[Arm]:
    """Arms of a stream's table: dense ones, recovered ones from the freest topology to the coarsest, then the controls of these."""
    kinds, lineages = ["dense", "patterns", "blocks", "controls"], [*DENSE_LINEAGES, *SPARSE_LINEAGES, *MASKED_UPDATES]

    def place(arm: Arm) -> tuple:
        within = freedom(arm.topology) if arm.name == f"S1-{arm.topology}" else (lineages.index(arm.lineage),)
        return kinds.index(_kind(arm)), within, arm.name

    return sorted(arms_in(frame, table), key=place)


def _kind(arm: Arm) -> str:
    if not arm.topology:
        return "dense"
    if arm.name != f"S1-{arm.topology}":
        return "controls"
    return "blocks" if isinstance(parse_topology(arm.topology), Blocks) else "patterns"


def reference_arm(arms: Sequence[Arm]) -> Arm:
    """The arm to which the others are compared: D1, or the first where it is not there."""
    return next((arm for arm in arms if arm.name == REFERENCE), arms[0])


def arm_groups(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Arms that share panels where all are too many for one: by kind, at most TOGETHER, each group led by the reference.

    Controls stand beside the recovered arm of their topology, which they differ from in one thing each.
    """
    reference, by_name = reference_arm(arms), {arm.name: arm for arm in arms}
    kinds: dict[str, list[Arm]] = {}
    for arm in arms:
        if arm != reference:
            kinds.setdefault(_kind(arm), []).append(arm)
    groups = []
    for kind, members in kinds.items():
        for chosen in np.array_split(np.array(members, dtype=object), -(-len(members) // TOGETHER)):
            twins = {f"S1-{arm.topology}": None for arm in chosen if kind == "controls"}
            groups.append([reference, *(by_name[name] for name in twins if name in by_name), *chosen])
    return groups


def arm_style(arm: Arm) -> dict:
    """Colour and marker of an arm; an arm without recovery is drawn hollow beside its recovered twin."""
    return {"color": arm.colour, "marker": arm.marker, "markerfacecolor": "white" if arm.lineage in ("D0", "S0") else arm.colour}


def line_style(arm: Arm) -> dict:
    """The style of an arm's curve: as `arm_style`, and dashed or dotted where its colour is that of another lineage."""
    return arm_style(arm) | {"linestyle": LINE_STYLES.get(arm.lineage, "-")}


def arm_handles(arms: Iterable[Arm], line: bool = True) -> list[Line2D]:
    return [Line2D([], [], label=arm.label, **(line_style(arm) if line else arm_style(arm) | {"linestyle": ""})) for arm in arms]


def main_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main protocol; within a single replicate, where lengths have equal counts, the first row is of the study's own."""
    return frame if frame.empty else main_protocol(frame, stage_steps=int(frame["stage_steps"].iloc[0]))


def over_domains(frame: pd.DataFrame) -> pd.Series:
    """Rows whose domain is empty, i.e. whose value is over domains (a CSV file cannot tell empty from absent)."""
    return frame["domain"].isna() | (frame["domain"] == "")


def domain_order(accuracy: pd.DataFrame) -> list[str]:
    """Domains in the order in which the stream visits them."""
    stages = accuracy[accuracy["stage"] > 0].drop_duplicates("stage").sort_values("stage")
    return list(stages["stage_domain"])


def draw_interval(axes: Axes, x: float, values: Iterable[float], arm: Arm, horizontal: bool = False) -> None:
    """Mean with its 95 % t interval as one marker with a bar."""
    mean, low, high = mean_interval(values)
    # A difference has no interval with one replicate; the mean alone is then drawn.
    error = None if np.isnan(low) else [[mean - low], [high - mean]]
    positions = {"x": mean, "y": x, "xerr": error} if horizontal else {"x": x, "y": mean, "yerr": error}
    axes.errorbar(**positions, capsize=2.5, linewidth=1.3, zorder=4, **arm_style(arm))
