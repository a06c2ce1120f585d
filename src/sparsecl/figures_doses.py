"""Dose and response: more zeros, more recovery (paper, section Dose-response).

Percent and percentage points; marks are means with 95 % t intervals over the replicates that made every arm of a column.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import Arm, topology_label
from sparsecl.comparisons import COMPARISONS, family, freedom
from sparsecl.figure_style import REFERENCE, TEXT_WIDTH, NothingToDraw, arm_of, arm_style, line_style, styled
from sparsecl.figures_replicates import draw_cross, replicate_values
from sparsecl.topologies import Blocks, parse_topology

MEASURES = {"own": "own score (%)", "final": "final score (%)", "forgetting": "forgetting (points)"}
FEWEST = 3  # doses that make a response


@dataclass(frozen=True)
class Response:
    """One line of a column: arms by their dose, drawn like the arm `like`."""

    label: str
    like: Arm
    arms: Mapping[float, str]

    def has_response(self) -> bool:
        return len(self.arms) >= FEWEST


def zero_responses(names: Collection[str]) -> list[Response]:
    """Arms by their share of zeros (percent): unstructured, and N:M by M; all start at D1, which has none."""
    families: dict[str, dict[float, Arm]] = {}
    for arm in (arm_of(name) for name in names):
        if arm.lineage == "S1" and COMPARISONS["densities"].choice(arm) is not None:
            families.setdefault(family(arm), {})[round(100 * (1 - arm.density), 6)] = arm
    found = []
    for doses in families.values():
        densest = doses[min(doses)]
        structure = parse_topology(densest.topology)
        if len(doses) == 1 and isinstance(structure, Blocks):
            continue  # one density of blocks is a topology, not a dose
        several = len(doses) > 1 and family(densest).startswith("of")
        label = f"N:{structure.group}" if several else topology_label(densest.topology)
        found.append(Response(label, densest, {0.0: REFERENCE} | {dose: doses[dose].name for dose in sorted(doses)}))
    return sorted(found, key=lambda response: freedom(response.like.topology))


def budget_responses(names: Collection[str], treatment: str) -> list[Response]:
    """Arms by their recovery budget in units of the study's: the dense arm from D0 on, the sparse one from its S0 on."""
    sparse = arm_of(treatment)
    found = []
    for lineage, start, conversion in (("D1", "D0", ""), ("S1", f"S0-{sparse.conversion}", sparse.conversion)):
        arms = [arm_of(name) for name in names]
        doses = {arm.budget: arm.name for arm in arms if arm.lineage == lineage and arm.conversion == conversion}
        doses |= {0.0: start} if start in names else {}
        like = arm_of(REFERENCE) if lineage == "D1" else sparse
        found.append(Response(like.label, like, {dose: doses[dose] for dose in sorted(doses)}))
    return [response for response in found if response.arms]


@styled
def dose_response(metrics: pd.DataFrame, treatment: str = "S1-2of4") -> Figure:
    """Own, final and forgetting against the share of zeros (left) and against the recovery budget (right).

    A column is drawn where one of its lines has three doses. Raises NothingToDraw where neither has.
    """
    values = replicate_values(metrics, MEASURES)
    names = set.intersection(*(set(values[measure]) for measure in MEASURES))
    columns = {
        "zeros in the pruned layers (%)": zero_responses(names) if REFERENCE in names else [],
        "recovery budget (units of $B$)": budget_responses(names, treatment),
    }
    columns = {label: lines for label, lines in columns.items() if any(line.has_response() for line in lines)}
    if not columns:
        raise NothingToDraw(
            f"metrics: a response needs {FEWEST} doses, with D1 arms such as S1-6of8 and S1-4of8, or D0, D1 and D1-b2; "
            f"found {sorted(names)}. Add them to the study's further streams and run 03_continual"
        )
    figure, grid = plt.subplots(3, len(columns), figsize=(TEXT_WIDTH, 4.9), sharey="row", sharex="col", squeeze=False)
    for panels, (label, lines) in zip(grid.T, columns.items(), strict=True):
        _draw_column(panels, values, lines)
        panels[-1].set_xlabel(label)
    for axes, label in zip(grid[:, 0], MEASURES.values(), strict=True):
        axes.set_ylabel(label)
    return figure


def _draw_column(panels: Sequence[Axes], values: pd.DataFrame, lines: Sequence[Response]) -> None:
    arms = sorted({name for line in lines for name in line.arms.values()})
    doses = sorted({dose for line in lines for dose in line.arms})
    for axes, measure in zip(panels, MEASURES, strict=True):
        common = values[measure][arms].dropna()
        for place, line in enumerate(lines):
            # Side by side, because intervals of several lines at one dose would hide each other.
            shift = 0.014 * (doses[-1] - doses[0]) * (place - (len(lines) - 1) / 2)
            _draw_response(axes, common, line, 0 if line.like.name == REFERENCE else shift)
        axes.set_xticks(doses, [f"{dose:g}" for dose in doses])
        axes.margins(x=0.06)
    handles = [Line2D([], [], label=line.label, **line_style(line.like)) for line in lines]
    title = f"$n={len(common)}$"
    panels[0].legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(lines) + 1, title=title, columnspacing=1.2)


def _draw_response(axes: Axes, common: pd.DataFrame, line: Response, shift: float) -> None:
    """The line of an arm's own colour; the dense arm keeps its mark wherever it stands, and what had no recovery is hollow."""
    style = line_style(line.like)
    places = [dose if name == REFERENCE else dose + shift for dose, name in line.arms.items()]
    axes.plot(places, common[list(line.arms.values())].mean(), **style | {"marker": ""})
    for place, name in zip(places, line.arms.values(), strict=True):
        hollow = {"markerfacecolor": "white"} if arm_of(name).lineage in ("D0", "S0") else {}
        mark = arm_style(arm_of(REFERENCE)) if name == REFERENCE else arm_style(line.like) | hollow
        draw_cross(axes, [place], common[name], **mark)
