"""Contrasts at equal own: what a hypothesis about methods needs beyond equal steps (H5; paper, section Frontier).

Who learns less has less to lose. Runs at several stage lengths are compared where both have learned equally much (`frontier`).
"""

from dataclasses import replace

import pandas as pd

from sparsecl.frontier import compare_frontiers, frontier_points
from sparsecl.hypotheses import PairedHypothesis, PlannedContrast
from sparsecl.preregistration import Preregistration
from sparsecl.protocol import run_parts
from sparsecl.statistics import Contrast, contrast_with_zero

AT_EQUAL_OWN = " at equal own"  # what follows a hypothesis' name in tests.csv


def equal_own_contrasts(
    metrics: pd.DataFrame, registration: Preregistration, hypothesis: PairedHypothesis
) -> dict[tuple[str, str], Contrast]:
    """Mean vertical difference of the frontiers, by contrast and metric; `metrics` is metrics.csv.

    One for each of the hypothesis' contrasts whose runs both have several stage lengths, and each deciding metric; `n` counts the
    replicates with a common range of own, `flag` says where some have none. A p-value has no correction.
    """
    planned = hypothesis.contrasts
    methods = {run_parts(run)[1] for contrast in planned for run in (contrast.treatment, contrast.control)}
    outcomes = tuple(metric.metric for metric in hypothesis.deciding)
    points = frontier_points(metrics, registration.own, outcomes, registration.kind, tuple(sorted(methods)))
    seeds = {run: set(rows["seed"]) for run, rows in points.groupby("arm")}
    comparable = [c for c in planned if c.treatment in seeds and seeds[c.treatment] == seeds.get(c.control)]
    return {(c.name, outcome): _contrast(points, c, outcome, registration.alpha) for c in comparable for outcome in outcomes}


def _contrast(points: pd.DataFrame, planned: PlannedContrast, outcome: str, alpha: float) -> Contrast:
    found = compare_frontiers(points, planned.treatment, planned.control, outcome)
    contrast = contrast_with_zero(found.replicates["difference"].to_numpy(), planned.name, outcome, alpha=alpha)
    if not found.absent:
        return contrast
    total = len(found.replicates) + len(found.absent)
    return replace(contrast, flag=f"no common range of own in {len(found.absent)} of {total} replicates")
