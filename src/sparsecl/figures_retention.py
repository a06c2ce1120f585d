"""What is kept of every domain, facts and abilities apart, and of the general mixture (paper, section Retention).

Percent of the score right after a domain's own stage (for the general mixture: before the stream), 95 % t intervals.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparsecl.arms import Arm
from sparsecl.figure_style import (
    REFERENCE,
    TEXT_WIDTH,
    NothingToDraw,
    arm_handles,
    arm_of,
    arm_style,
    domain_order,
    main_rows,
    over_domains,
    styled,
)
from sparsecl.figures_replicates import draw_cross, faint
from sparsecl.items import GENERAL

KINDS = {"ability": "abilities", "fact": "facts"}
SHOWN = (REFERENCE, "S1-2of4", "Dnz-0.5", "Df-0.5")  # the sparse arm and the controls that decide H1
GENERAL_METRIC = "general_retention"
UNDEFINED = "undefined"  # nothing had been learned that could be kept


@styled
def retention_by_domain(metrics: pd.DataFrame, accuracy: pd.DataFrame, shown: Sequence[str] = SHOWN) -> Figure:
    """Retention of each domain that can be forgotten, a panel a kind, and of the general mixture, over the arms `shown` that ran.

    Domains stand in the order of the stream. An arm whose retention is undefined in a replicate (nothing had been learned)
    has no mark there, and a domain without any says so. Raises NothingToDraw where no retention by domain and kind was measured.
    """
    rows = _retention_rows(metrics, shown)
    arms = [arm_of(name) for name in shown if name in set(rows["arm"])]
    domains = [domain for domain in domain_order(main_rows(accuracy)) if domain in set(rows["domain"])]
    kinds = [kind for kind in KINDS if (rows["kind"] == kind).any()]
    general = rows[rows["domain"] == GENERAL]
    widths = [len(domains)] * len(kinds) + [1.3] * (not general.empty)
    figure, grid = plt.subplots(1, len(widths), figsize=(TEXT_WIDTH, 2.5), sharey=True, squeeze=False, width_ratios=widths)
    for axes, kind in zip(grid[0], kinds, strict=False):
        _draw_domains(axes, rows[rows["kind"] == kind], domains, arms)
        axes.set_title(KINDS[kind])
    if not general.empty:
        _draw_domains(grid[0, -1], general, [GENERAL], arms)
        grid[0, -1].set_title("mixture")
    grid[0, 0].set_ylabel("retention (%)")
    figure.legend(handles=arm_handles(arms, line=False), loc="outside upper center", ncols=len(arms))
    return figure


def _retention_rows(metrics: pd.DataFrame, shown: Sequence[str]) -> pd.DataFrame:
    """Retention in percent by arm, seed, domain and kind; the general mixture is a domain of kind `all`."""
    rows = main_rows(metrics[metrics["arm"].isin(shown)])
    if not rows.empty:
        of_domains = (rows["metric"] == "retention") & ~over_domains(rows) & rows["kind"].isin(KINDS)
        of_mixture = (rows["metric"] == GENERAL_METRIC) & (rows["kind"] == "all")
        if of_domains.any():
            rows = rows.assign(domain=rows["domain"].mask(of_mixture, GENERAL), value=100 * rows["value"])
            return rows[of_domains | of_mixture]
    raise NothingToDraw(f"metrics: no retention by domain and kind of {tuple(shown)} on the main protocol; run 05_stats after 03_continual")


def _draw_domains(axes: Axes, rows: pd.DataFrame, domains: Sequence[str], arms: Sequence[Arm]) -> None:
    """Domains to the right, arms side by side; a domain without any mark is undefined."""
    reach = 0.36 * (1 - 1 / len(arms))
    axes.axhline(100, color="0.4", linewidth=0.8, zorder=1)
    for place, domain in enumerate(domains):
        here = rows[rows["domain"] == domain]
        places = zip(place + np.linspace(-reach, reach, len(arms)), arms, strict=True)
        if not any([_draw_arm(axes, here[here["arm"] == arm.name], x, arm) for x, arm in places]):
            axes.annotate(UNDEFINED, (place, 0.03), xycoords=("data", "axes fraction"), ha="center", fontsize=8, color="0.35")
    axes.set_xticks(range(len(domains)), domains)
    axes.set_xlim(-0.55, len(domains) - 0.45)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")


def _draw_arm(axes: Axes, rows: pd.DataFrame, x: float, arm: Arm) -> bool:
    """Whether there is a mark: a value in every replicate or none, for a mean over some of them compares other replicates."""
    values = rows["value"]
    if values.empty or values.isna().any():
        return False
    axes.plot(np.full(len(values), x - 0.07), values, **faint(arm_style(arm)))
    draw_cross(axes, [x], values, **arm_style(arm))
    return True
