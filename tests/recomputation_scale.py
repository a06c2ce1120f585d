"""The trend over widths and its verdict a second time, from overlap.csv and gradients.csv: loops over cells and a library's regression.

For `test_recomputation`. Nothing here imports `sparsecl`; rules are those of the registration of H4.
"""

import math
from collections.abc import Mapping
from statistics import fmean, linear_regression

import pandas as pd
from recomputation import rows
from recomputation_statistics import holm, single

Cells = dict[tuple[str, str], dict[tuple, float]]  # (replicate, arm) -> cell -> quantity; a cell without one is not there


def overlaps(table: pd.DataFrame, plan: Mapping, selection: str | None = None, top_fraction: float | None = None) -> Cells:
    """Normalised overlaps of one selection of neurons."""
    found: Cells = {}
    for row in rows(table):
        chosen = row.selection == (selection or plan["selection"]) and math.isclose(
            float(row.top_fraction), top_fraction or plan["top_fraction"]
        )
        if chosen and float(row.ceiling) - float(row.null) >= plan.get("smallest_range", 0.05):
            share = (float(row.value) - float(row.null)) / (float(row.ceiling) - float(row.null))
            found.setdefault((row.seed, row.arm), {})[row.layer, row.domain_a, row.domain_b] = share
    return found


def cosines(table: pd.DataFrame, plan: Mapping) -> Cells:
    """Cosines over their ceilings."""
    found: Cells = {}
    for row in rows(table):
        least = max(plan.get("smallest_ceiling", 0.1), plan.get("nulls_below_ceiling", 5.0) * float(row.null or "nan"))
        if row.measure == "cosine" and float(row.ceiling or "nan") >= least:
            cell = (row.layer, row.module, row.domain_a, row.domain_b)
            found.setdefault((row.seed, row.arm), {})[cell] = float(row.value) / float(row.ceiling)
    return found


def means_by_rung(cells: Cells, ladder: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Replicate -> arm -> mean over the cells that the replicate has on every rung."""
    found = {}
    for seed in sorted({seed for seed, _ in cells}):
        rungs = {arm: cells.get((seed, arm), {}) for arm in ladder}
        common = set.intersection(*map(set, rungs.values()))
        if common:
            found[seed] = {arm: fmean(rung[cell] for cell in common) for arm, rung in rungs.items()}
    return found


def slopes(means: Mapping[str, Mapping[str, float]], ladder: Mapping[str, int]) -> list[float]:
    """Change per doubling of the width, one a replicate."""
    doublings = [math.log2(width) for width in ladder.values()]
    return [linear_regression(doublings, [rung[arm] for arm in ladder]).slope for rung in means.values()]


def deciding(overlap: pd.DataFrame, gradients: pd.DataFrame, hypothesis: Mapping) -> dict[str, dict[str, dict[str, float]]]:
    """Means by rung of both quantities."""
    ladder = hypothesis["ladder"]
    return {
        "normalised_overlap": means_by_rung(overlaps(overlap, hypothesis["activation"]), ladder),
        "disattenuated_cosine": means_by_rung(cosines(gradients, hypothesis["gradient"]), ladder),
    }


def scale_letter(overlap: pd.DataFrame, gradients: pd.DataFrame, hypothesis: Mapping, alpha: float = 0.05) -> str:
    """A, B, C or undecided for H4; `none` without margins."""
    ladder, means = hypothesis["ladder"], deciding(overlap, gradients, hypothesis)
    found = [single(slopes(rungs, ladder), alpha) for rungs in means.values()]
    margins = [hypothesis[name].get("margin") for name in ("activation", "gradient")]
    if None in margins:
        return "none"
    if {slope.n for slope in found} != {hypothesis["replicates"]}:
        return "undecided"
    inside = [slope.p_equivalence(margin) < alpha for slope, margin in zip(found, margins, strict=True)]
    falls = [s.estimate < 0 and s.p < alpha and not within for s, within in zip(found, inside, strict=True)]
    corrected = holm([slope.p for slope in found])
    rises = [s.estimate > 0 and p < alpha and not within for s, p, within in zip(found, corrected, inside, strict=True)]
    if all(falls):
        widest = max(ladder, key=ladder.get)
        return "undecided" if single([rung[widest] for rung in means["disattenuated_cosine"].values()], alpha).high < 0 else "A"
    if any(rises) and not any(falls):
        return "C"
    return "B" if all(inside) else "undecided"


def is_scale(hypothesis: Mapping) -> bool:
    return hypothesis["test"] == "scale_trend"
