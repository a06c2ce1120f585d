r"""The LaTeX tables of controls, topologies, frontier, orders, methods and doses (paper, section Results).

Cells are percentage points, mean (standard deviation) over replicates or a paired difference with its 95 % t interval.
Each function returns None where the study did not run what the table compares.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.arms import parse_arm
from sparsecl.config import Study
from sparsecl.frontier import OUTCOMES
from sparsecl.latex_tables import bare_p, contrast_label, difference_cell, mean_cell, tabular
from sparsecl.methods import METHODS
from sparsecl.number_formats import count, interval, nats, p_value, points
from sparsecl.paper_arms import BUDGETS, DENSE_CONTROLS, DOSE_ARMS, REFERENCE, SPARSE_CONTROLS, TOPOLOGY_ARMS, TREATMENT
from sparsecl.paper_samples import Sample, contrast_test, stream_sample
from sparsecl.paper_values_methods import BUDGET_ARMS, METHOD_ARMS, dose_results, method_results
from sparsecl.paper_values_streams import (
    COMPONENTS,
    MAIN_CONTRAST,
    OrderResults,
    component_sd,
    frontier_results,
    order_results,
    squared_points,
)

SHOWN = ("own", "final", "forgetting")
COMPARED = ("forgetting", "final")


# Arms of the main protocol


def controls_table(main: pd.DataFrame, tests: pd.DataFrame) -> str | None:
    """Every control's scores, and S1 2:4 minus it, with Holm p where the difference was tested."""
    groups = [(arm, TREATMENT, arm) for arm in DENSE_CONTROLS], [(arm, TREATMENT, arm) for arm in SPARSE_CONTROLS]
    return _arms_table(main, tests, [(TREATMENT, None, None)], *groups, heading=f"{parse_arm(TREATMENT).label} $-$ arm")


def stream_topologies_table(main: pd.DataFrame, tests: pd.DataFrame) -> str | None:
    """Every topology's scores, and it minus D1."""
    rows = [(arm, arm, REFERENCE) for arm in TOPOLOGY_ARMS]
    return _arms_table(main, tests, [(REFERENCE, None, None)], rows, heading=f"arm $-$ {parse_arm(REFERENCE).label}")


def _arms_table(main: pd.DataFrame, tests: pd.DataFrame, *groups: list[tuple[str, str | None, str | None]], heading: str) -> str | None:
    """Two lines for each (arm, treatment, reference) whose arm was run; None where only the main pair was.

    The second line holds standard deviations and intervals, because all in one line is wider than the page.
    """
    samples = {metric: stream_sample(main, metric) for metric in SHOWN}
    ran = {arm for sample in samples.values() for arm in sample.wide}
    if not {row[0] for group in groups for row in group} & ran - {REFERENCE, TREATMENT}:
        return None
    blocks = [[line for row in group if row[0] in ran for line in _arm_lines(samples, tests, *row)] for group in groups]
    rows = [row for block in blocks if block for row in (*block, r"\midrule")][:-1]
    above = rf" & & \multicolumn{{3}}{{c}}{{mean (sd)}} & \multicolumn{{4}}{{c}}{{{heading}, 95\,\% interval}}"
    below = ["arm", "$n$", *SHOWN, *(cell for metric in COMPARED for cell in (metric, "$p$ (Holm)"))]
    return tabular("@{}lcccccccc@{}", f"{above} \\\\ \\cmidrule(lr){{3-5}}\\cmidrule(l){{6-9}}\n{' & '.join(below)} \\\\", rows)


def _arm_lines(
    samples: Mapping[str, Sample], tests: pd.DataFrame, arm: str, treatment: str | None, reference: str | None
) -> tuple[list[str | None], list[str | None]]:
    """Scores of one arm, and a difference it takes part in; empty cells where it is itself what the others are compared with."""
    summaries = [samples[metric].summary(arm) for metric in SHOWN]
    upper = [parse_arm(arm).label, count(summaries[0]["n"]), *(points(summary["mean"]) for summary in summaries)]
    lower: list[str | None] = ["", "", *(f"({sd})" if (sd := points(summary["sd"])) else "" for summary in summaries)]
    for metric in COMPARED:
        found = samples[metric].paired(treatment, reference) | contrast_test(tests, treatment, reference, metric) if treatment else None
        upper += ["", ""] if found is None else [points(found.get("estimate"), True), bare_p(found.get("p_holm"))]
        lower += ["", ""] if found is None else [interval(found.get("ci_low"), found.get("ci_high"), points, True) or "", ""]
    return upper, lower


# Doses and budgets


def doses_table(main: pd.DataFrame) -> str | None:
    """Shares of zeros beside D1, and recovery budgets of both lineages, each over the replicates that ran all of its arms."""
    doses, budgets = dose_results(main, DOSE_ARMS), dose_results(main, BUDGET_ARMS)
    shares = [_dose_row(_zeros(arm), arm, doses, (arm, REFERENCE)) for arm in DOSE_ARMS if doses and arm in doses["own"].wide]
    efforts = [
        _dose_row(f"{float(budget):g}", arm, budgets, (arm, dense))
        for budget, (dense, sparse) in BUDGETS.items()
        for arm in (dense, sparse)
        if budgets and arm in budgets["own"].wide
    ]
    headings = {"share of zeros": shares, "recovery, in units of the budget $B$": efforts}
    groups = [[rf"\multicolumn{{8}}{{@{{}}l}}{{\emph{{{name}}}}} \\", *rows, r"\midrule"] for name, rows in headings.items() if rows]
    below = ["", "arm", "$n$", *SHOWN, *(rf"$\Delta$ {metric}" for metric in COMPARED)]
    return tabular("@{}llcccccc@{}", below, [row for group in groups for row in group][:-1]) if groups else None


def _zeros(arm: str) -> str:
    return rf"{100 * (1 - parse_arm(arm).density):.0f}\,\%"


def _dose_row(name: str, arm: str, samples: Mapping[str, Sample], pair: tuple[str, str]) -> list[str | None]:
    """One arm at the dose that the first cell names, and its difference to the second of the pair."""
    summaries = [samples[metric].summary(arm) for metric in SHOWN]
    cells = [mean_cell(summary, points) for summary in summaries]
    differences = [difference_cell(samples[metric].paired(*pair), points) if arm != pair[1] else "" for metric in COMPARED]
    made = parse_arm(arm)
    label = parse_arm("-".join(part for part in (made.lineage, made.topology) if part)).label
    return [name, label, count(summaries[0]["n"]), *cells, *differences]


# Frontier


def frontier_table(metrics: pd.DataFrame, stage_steps: int) -> str | None:
    """Differences at equal own score, beside those of the same replicates at equal steps."""
    runs, fronts = frontier_results(metrics, stage_steps)
    rows = []
    for front in fronts:
        found, compared = front.statistics, front.compared
        n, total = found["n"], found["n"] + len(compared.absent)
        cells = [compared.outcome, difference_cell(front.at_equal_steps, points), difference_cell(found, points)]
        reach = None if n == 0 else f"{points(found['range_low'])}--{points(found['range_high'])}"
        rows.append([contrast_label(compared.treatment, compared.control), *cells, reach, f"{n} of {total}"])
    heading = ["comparison", "measure", "at equal steps", "at equal own", "own compared", "replicates"]
    return tabular("@{}llcccc@{}", heading, rows) if rows else None


# Orders


def orders_table(metrics: pd.DataFrame, stage_steps: int) -> str | None:
    """Variance components over orders, seeds and the rest (squared points), and how far the topologies agree."""
    if (found := order_results(metrics, stage_steps)) is None:
        return None
    rows: list = []
    for metric in OUTCOMES:
        rows += [r"\midrule"] if rows else []
        rows += [rf"\multicolumn{{7}}{{@{{}}l}}{{\emph{{{metric}}}}} \\"]
        rows += [_component_row(name, table) for (name, of), table in found.components.items() if of == metric]
        rows += _agreement_row(found, metric)
    above = "".join(rf" & \multicolumn{{2}}{{c}}{{{name}}}" for name in ("over orders", "over seeds", "rest"))
    rules = "".join(rf"\cmidrule(lr){{{start}-{start + 1}}}" for start in (2, 4, 6))
    below = ["arm", *["sd", "variance"] * len(COMPONENTS)]
    return tabular("@{}l" + "rl" * len(COMPONENTS) + "@{}", f"{above} \\\\ {rules}\n{' & '.join(below)} \\\\", rows)


def _component_row(name: str, table: pd.DataFrame) -> list[str | None]:
    label = contrast_label(TREATMENT, REFERENCE) if name == MAIN_CONTRAST else parse_arm(name).label
    cells: list[str | None] = []
    for source in COMPONENTS:
        row = table.loc[source]
        bounds = interval(row["ci_low"], row["ci_high"], squared_points)
        cells += [component_sd(row["variance"]), f"{squared_points(row['variance'])} {bounds}"]
    return [label, *cells]


def _agreement_row(found: OrderResults, metric: str) -> list[str]:
    if (agreement := found.agreements.get(metric)) is None:
        return []
    text = (
        rf"agreement of {len(agreement.arms)} topologies: {nats(agreement.value)} ({nats(agreement.null)} by chance, "
        rf"$p$ {p_value(agreement.p)}), same direction in {points(agreement.same_direction)}\,\% of cells"
    )
    return [rf"\multicolumn{{7}}{{@{{}}l}}{{{text}}} \\"]


# Methods


def methods_table(study: Study, metrics: pd.DataFrame) -> str | None:
    """Every method and reference on both arms, and their difference, over the replicates that ran them all."""
    samples = method_results(study, metrics)
    if not samples:
        return None
    shown = [metric for metric in SHOWN if metric in samples]
    rows: list = []
    for method in METHODS:
        found = [arm for arm in METHOD_ARMS if any(f"{method}/{arm}" in samples[metric].wide for metric in shown)]
        rows += [r"\addlinespace"] if rows and found else []
        rows += [_method_row(method, arm, index, samples, shown) for index, arm in enumerate(found)]
        if len(found) == len(METHOD_ARMS):
            pair = [f"{method}/{arm}" for arm in (TREATMENT, REFERENCE)]
            rows.append(["", contrast_label(TREATMENT, REFERENCE), *(difference_cell(samples[m].paired(*pair), points) for m in shown)])
    return tabular("@{}ll" + "c" * len(shown) + "@{}", ["method", "arm", *shown], rows)


def _method_row(method: str, arm: str, index: int, samples: Mapping[str, Sample], shown: Iterable[str]) -> list[str | None]:
    cells = [mean_cell(samples[metric].summary(f"{method}/{arm}"), points) for metric in shown]
    return ["" if index else METHODS[method].label, parse_arm(arm).label, *cells]
