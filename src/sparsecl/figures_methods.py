"""Methods of continual fine-tuning on a dense and a sparse arm, between what can be learned and what can be kept (paper, section Methods).

Percent and percentage points; crosses are means with 95 % t intervals, in `methods_plane` over the replicates in which both
arms ran every method. Other figures take from here which rows are a method's and how it looks.
"""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsecl.arms import Arm
from sparsecl.figure_style import TEXT_WIDTH, NothingToDraw, arm_of, arm_style, over_domains, streamed_arms_in, styled
from sparsecl.figures_replicates import draw_cross, faint
from sparsecl.methods import FULL, JOINT, METHODS, REFERENCES, SINGLE
from sparsecl.protocol import ORDER, main_protocol

MEASURES = {"own": "own score (%)", "final": "final score (%)", "forgetting": "forgetting (points)"}
STABILITY = {"retention": "retention (%)", "forgetting": "forgetting (points)", "final": "final score (%)"}
MARKERS = dict(zip((method for method in METHODS if method not in REFERENCES), "os^DvP*X<>phd", strict=False))
LINES = {SINGLE: "--", JOINT: ":"}


def streamed_methods(frame: pd.DataFrame) -> list[str]:
    """Methods of a table that go through the domains in the main order, in the registry's order."""
    found = set(frame.loc[frame["order"] == ORDER, "method"]) if len(frame) else set()
    return [name for name in METHODS if name in found and name not in REFERENCES]


def rows_of_method(frame: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows of one method in the main order at each arm's main stage length.

    Where every length ran in as many replicates, the main one is that of full fine-tuning, which runs in most.
    """
    full = frame[(frame["method"] == FULL) & (frame["order"] == ORDER)]
    runs = (full if len(full) else frame)[["arm", "seed", "stage_steps"]].drop_duplicates()
    return main_protocol(frame, method=method, stage_steps=int(runs["stage_steps"].mode().iloc[0]))


def method_style(method: str, hollow: bool = False) -> dict:
    """Colour and mark of a method; hollow on the sparse arm, where it stands beside the dense one."""
    colour = METHODS[method].colour
    fill = {"markerfacecolor": "white"} if hollow else {"markerfacecolor": colour, "markeredgecolor": "0.25", "markeredgewidth": 0.4}
    return {"color": colour, "marker": MARKERS[method]} | fill


@styled
def plasticity_stability(
    metrics: pd.DataFrame, arms: Sequence[str] = ("D1", "S1-2of4"), outcomes: Sequence[str] = ("retention", "forgetting")
) -> Figure:
    """Stability over plasticity: what is kept of the domains against the own score, a colour and mark a method.

    Crosses are means with t intervals over each method's own replicates, filled on the first of `arms` and hollow on the
    second. Lines join the stage lengths of full fine-tuning: what learning less keeps without any method. Raises
    NothingToDraw where the first arm ran no second method.
    """
    values = _over_domains(metrics, ("own", *outcomes))
    names = [name for name in METHODS if name in set(values.loc[values["arm"] == arms[0], "method"]) and name not in REFERENCES]
    if len(names) < 2:
        raise NothingToDraw(f"metrics: {arms[0]} ran only {names}; add methods to the study's further streams and run 03_continual")
    figure, panels = plt.subplots(1, len(outcomes), figsize=(TEXT_WIDTH, 4.0), sharex=True, squeeze=False)
    for axes, outcome in zip(panels[0], outcomes, strict=True):
        for hollow, arm in enumerate(arms):
            here = values[values["arm"] == arm]
            _draw_lengths(axes, here, outcome, arm)
            for name in streamed_methods(here):
                run = rows_of_method(here, name)
                style = method_style(name, bool(hollow)) | {"markersize": 5, "linewidth": 1, "capsize": 1.5}
                draw_cross(axes, run["own"], run[outcome], **style)
        axes.set(xlabel=MEASURES["own"], ylabel=STABILITY[outcome])
    figure.legend(handles=_plane_handles(values, arms, names), loc="outside upper center", ncols=4, columnspacing=1.2)
    return figure


def _over_domains(metrics: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """A row a run of the main order: its keys, and the metrics over domains of kind `all` as columns, in percent."""
    rows = metrics[(metrics["kind"] == "all") & over_domains(metrics) & metrics["metric"].isin(names) & (metrics["order"] == ORDER)]
    if absent := [name for name in names if not (rows["metric"] == name).any()]:
        raise NothingToDraw(f"metrics: no {absent} over domains of kind 'all'; run 05_stats after 03_continual")
    keys = ["arm", "method", "order", "stage_steps", "seed"]
    wide = rows.pivot(index=keys, columns="metric", values="value").astype(float).rename_axis(columns=None)
    return (100 * wide.dropna()).reset_index()


def _draw_lengths(axes: Axes, rows: pd.DataFrame, outcome: str, arm: str) -> None:
    """Full fine-tuning over its stage lengths: small marks, joined."""
    full = rows[rows["method"] == FULL].groupby("stage_steps")[["own", outcome]].mean()
    style = {"color": METHODS[FULL].colour, "linestyle": "--" if arm_of(arm).is_sparse else "-", "linewidth": 0.9, "zorder": 2}
    if len(full) > 1:
        axes.plot(full["own"], full[outcome], marker=".", markersize=4, **style)


def _plane_handles(values: pd.DataFrame, arms: Sequence[str], names: Sequence[str]) -> list[Line2D]:
    """Methods by colour and mark, arms by filling, stage lengths by line."""
    marks = []
    for hollow, arm in enumerate(arms):
        here = values[values["arm"] == arm]
        if here.empty:
            continue
        fill = {"color": "0.35", "marker": "o", "markerfacecolor": "white" if hollow else "0.35"}
        marks.append(Line2D([], [], linestyle="", label=f"on {arm_of(arm).label}", **fill))
        if here.loc[here["method"] == FULL, "stage_steps"].nunique() > 1:
            label = f"stage lengths, {arm_of(arm).label}"
            marks.append(Line2D([], [], color=METHODS[FULL].colour, linestyle="--" if hollow else "-", linewidth=0.9, label=label))
    return [*marks, *(Line2D([], [], linestyle="", label=METHODS[name].label, **method_style(name)) for name in names)]


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
