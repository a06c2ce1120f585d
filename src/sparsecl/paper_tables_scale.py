r"""The LaTeX table of the trend over widths, from tests.csv alone (paper, section Scale)."""

import re
from collections.abc import Iterable

import pandas as pd

from sparsecl.figures_probes import MODULES
from sparsecl.latex_tables import bare_p, difference_cell, tabular
from sparsecl.number_formats import latex_text, nats, points, thousandths
from sparsecl.paper_samples import BESIDE, EQUIVALENCE
from sparsecl.paper_values_scale import QUANTITIES, RAW, RUNGS, SCALE, TRIVIAL
from sparsecl.scale_trend import SLOPE

LABELS = {
    "normalised_overlap": "normalised overlap of neurons", "disattenuated_cosine": "cosine of gradients over its ceiling",
    "absolute_cosine": r"$|$cosine$|$", "trivial_cosine": r"$1/\sqrt n$",
}  # fmt: skip


def scale_table(tests: pd.DataFrame | None) -> str | None:
    """Means on every width and the slope per doubling: what decides, parts of it, other selections, and the raw cosine."""
    if tests is None or tests.empty or not (tests["hypothesis"] == SCALE).any():
        return None
    deciding = [[LABELS[metric], *_means(tests, metric, points), *_slope(tests, SCALE, SLOPE, metric, points)] for metric in QUANTITIES]
    parts = [_part(row) for row in _rows(tests, SCALE + BESIDE, QUANTITIES) if row.contrast.startswith(f"{SLOPE}, ")]
    others = [_part(row) for row in tests[tests["hypothesis"] == f"{SCALE} selections"].itertuples()]
    cosines = [
        [LABELS[name], *_means(tests, name, thousandths), *_slope(tests, SCALE + BESIDE, SLOPE, f"log2_{name}", nats)]
        for name in (RAW, TRIVIAL)
    ]
    groups = [group for group in (deciding, parts, others, cosines) if group]
    rows = [row for group in groups for row in (*group, r"\addlinespace")][:-1]
    above = rf" & \multicolumn{{{len(RUNGS)}}}{{c}}{{mean at width}} & \multicolumn{{3}}{{c}}{{slope per doubling}}"
    below = ["", *RUNGS.values(), r"95\,\% interval", "$p$ (Holm)", "$p$ (TOST)"]
    last = len(RUNGS) + 1
    heading = f"{above} \\\\ \\cmidrule(lr){{2-{last}}}\\cmidrule(l){{{last + 1}-{last + 3}}}\n{' & '.join(below)} \\\\"
    return tabular("@{}l" + "c" * (len(RUNGS) + 3) + "@{}", heading, rows)


def _rows(tests: pd.DataFrame, hypothesis: str, metrics: Iterable[str]):
    return tests[(tests["hypothesis"] == hypothesis) & tests["metric"].isin(list(metrics))].itertuples()


def _means(tests: pd.DataFrame, metric: str, form) -> list[str | None]:
    found = {row.contrast: row.estimate for row in _rows(tests, SCALE + BESIDE, [metric])}
    return [form(found.get(arm)) for arm in RUNGS]


def _slope(tests: pd.DataFrame, hypothesis: str, contrast: str, metric: str, form) -> list[str | None]:
    """Slope with interval, its p and that of equivalence, which only the deciding ones have."""
    row = next(row for row in _rows(tests, hypothesis, [metric]) if row.contrast == contrast)
    equivalence = [found.p for found in _rows(tests, hypothesis + EQUIVALENCE, [metric]) if found.contrast == contrast]
    found = {"estimate": row.estimate, "ci_low": row.ci_low, "ci_high": row.ci_high}
    return [difference_cell(found, form), bare_p(row.p_corrected), bare_p(equivalence[0]) if equivalence else ""]


def _part(row) -> list[str | None]:
    """A slope of one layer, module or selection; its means have a figure."""
    metric, _, selection = row.metric.partition("/")
    where = row.contrast.removeprefix(f"{SLOPE}, ")
    name = _selection(selection) if selection else MODULES.get(where, where)
    quantity = "" if selection else {"normalised_overlap": "neurons, ", "disattenuated_cosine": "gradients, "}[metric]
    found = {"estimate": row.estimate, "ci_low": row.ci_low, "ci_high": row.ci_high}
    return [rf"\quad {quantity}{name}", *[""] * len(RUNGS), difference_cell(found, points), bare_p(row.p_corrected), ""]


def _selection(name: str) -> str:
    """`magnitude/same-tokens/0.05` in words."""
    selection, share = re.fullmatch(r"(.+)/([\d.]+)", name).groups()
    label = {"magnitude/same-tokens": "same tokens"}.get(selection, selection)
    return rf"neurons, {latex_text(label)}, {100 * float(share):g}\,\%"
