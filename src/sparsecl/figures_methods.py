"""Methods of continual fine-tuning on a dense and a sparse arm, between what can be learned and what can be kept (paper, section Methods).

Percent and percentage points; crosses are means with 95 % t intervals over the replicates in which both arms ran every method.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import Arm
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_style, over_domains, streamed_arms_in, styled
from sparsecl.figures_replicates import draw_cross, faint
from sparsecl.methods import JOINT, METHODS, REFERENCES, SINGLE
from sparsecl.protocol import ORDER, main_protocol

MEASURES = {"own": "own score (%)", "final": "final score (%)", "forgetting": "forgetting (points)"}
MARKERS = dict(zip((method for method in METHODS if method not in REFERENCES), "os^DvP*", strict=False))
LINES = {SINGLE: "--", JOINT: ":"}


@styled
def methods_plane(metrics: pd.DataFrame) -> Figure:
    """Final and forgetting against own, a mark a method and a colour an arm.

    Lines are references on the same domains: what each domain alone reaches (`single`), and what all domains mixed reach
    (`joint`). Raises NothingToDraw where no arm ran a second method.
    """
    values = _method_values(metrics)
    several = values.columns.to_frame(index=False).groupby("arm")["method"].nunique()
    several = list(several.index[several > 1]) if len(several) else []
    if not several:
        raise NothingToDraw("metrics: no arm ran a second method such as lora; add methods to the study's further streams")
    values = values.loc[:, values.columns.get_level_values("arm").isin(several)].dropna()
    arms = streamed_arms_in(pd.DataFrame({"arm": several}), "metrics")
    references = {name: _reference(metrics, name) for name in REFERENCES}
    figure, panels = plt.subplots(1, 2, figsize=(TEXT_WIDTH, 3.0))
    for axes, outcome in zip(panels, ("final", "forgetting"), strict=True):
        for arm in arms:
            _draw_arm(axes, values, arm, outcome)
            _draw_reference(axes.axvline, references[SINGLE], arm, LINES[SINGLE])
            if outcome == "final":
                _draw_reference(axes.axhline, references[JOINT], arm, LINES[JOINT])
        axes.set(xlabel=MEASURES["own"], ylabel=MEASURES[outcome])
    methods = [name for name in METHODS if name in values.columns.get_level_values("method")]
    figure.legend(handles=_handles(arms, methods, references), loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


def _method_values(metrics: pd.DataFrame) -> pd.DataFrame:
    """Measures over domains of the main order: a row a replicate, columns (metric, arm, method), in percent."""
    rows = metrics[(metrics["kind"] == "all") & over_domains(metrics) & metrics["metric"].isin(MEASURES)].dropna(subset=["value"])
    methods = [name for name in METHODS if name not in REFERENCES and (rows["method"] == name).any()]
    if not methods:
        raise NothingToDraw(f"metrics: no {tuple(MEASURES)} over domains of kind 'all'; run 05_stats after 03_continual")
    runs = pd.concat([main_protocol(rows, method=name) for name in methods])
    return 100 * runs.pivot(index="seed", columns=["metric", "arm", "method"], values="value").astype(float)


def _reference(metrics: pd.DataFrame, method: str) -> pd.Series:
    """Mean by arm of what a reference reaches on the domains that can be forgotten, in percent; over replicates that ran all of them."""
    main = metrics[(metrics["order"] == ORDER) & (metrics["metric"] == "own") & (metrics["kind"] == "all") & ~over_domains(metrics)]
    domains = set(main["domain"])
    rows = metrics[(metrics["method"] == method) & (metrics["kind"] == "all")]
    if method == SINGLE:  # one stream a domain, named in its order
        rows = rows[(rows["metric"] == "acc") & over_domains(rows)]
        rows = rows.assign(domain=rows["order"].str.removeprefix(f"{SINGLE}-"))
    else:
        rows = rows[rows["metric"] == "final"]
    rows = rows[rows["domain"].isin(domains)]
    reached = rows.pivot(index=["arm", "seed"], columns="domain", values="value").dropna()
    return 100 * reached.mean(axis=1).groupby("arm").mean()


def _draw_arm(axes: Axes, values: pd.DataFrame, arm: Arm, outcome: str) -> None:
    for method, marker in MARKERS.items():
        if ("own", arm.name, method) in values:
            own, reached = values["own", arm.name, method], values[outcome, arm.name, method]
            style = arm_style(arm) | {"marker": marker}
            axes.plot(own, reached, **faint(style))
            draw_cross(axes, own, reached, **style | {"markersize": 5.5})


def _draw_reference(line, reached: pd.Series, arm: Arm, dashes: str) -> None:
    if arm.name in reached:
        line(reached[arm.name], color=arm.colour, linestyle=dashes, linewidth=1, zorder=1)


def _handles(arms: Sequence[Arm], methods: Sequence[str], references: Mapping[str, pd.Series]) -> list[Line2D]:
    """Arms by colour, methods by mark, references by dashes."""
    colours = [Line2D([], [], color=arm.colour, linewidth=3, label=arm.label) for arm in arms]
    marks = [Line2D([], [], color="0.35", marker=MARKERS[name], linestyle="", label=METHODS[name].label) for name in methods]
    found = [name for name in REFERENCES if any(arm.name in references[name] for arm in arms)]
    return [*colours, *marks, *(Line2D([], [], color="0.35", linestyle=LINES[name], label=METHODS[name].label) for name in found)]
