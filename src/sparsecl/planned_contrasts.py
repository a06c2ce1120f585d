"""From metrics.csv to the contrasts that a registration names (paper, section Registered analysis).

A contrast pairs two arms by replicate on the main protocol. Main comparisons must be there, else
ValueError names what to run; others whose arms were not run, and metrics that were not measured, have no contrast.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.preregistration import PairedHypothesis, PlannedContrast, Preregistration, TopologyHypothesis
from sparsecl.protocol import METHOD, ORDER, main_protocol
from sparsecl.statistics import Contrast, common_replicates, metric_by_seed, paired_contrast, with_holm

Margins = Mapping[str, float | None]  # by metric


def hypothesis_contrasts(
    metrics: pd.DataFrame, registration: Preregistration, hypothesis: PairedHypothesis | TopologyHypothesis
) -> list[Contrast]:
    """The deciding contrasts of one hypothesis, Holm-corrected together; `metrics` is metrics.csv."""
    margins = {metric.metric: metric.margin for metric in hypothesis.deciding}
    if isinstance(hypothesis, TopologyHypothesis):
        return with_holm(_contrasts(metrics, registration, hypothesis.pairs, margins, needed=set(hypothesis.pairs)))
    planned = (hypothesis.main, *hypothesis.strict)
    return with_holm(_contrasts(metrics, registration, planned, margins, needed={hypothesis.main}))


def beside_contrasts(metrics: pd.DataFrame, registration: Preregistration, hypothesis: PairedHypothesis) -> list[Contrast]:
    """The contrasts reported beside a hypothesis, a family of their own."""
    margins = {metric.metric: metric.margin for metric in hypothesis.deciding}
    return with_holm(_contrasts(metrics, registration, hypothesis.beside, margins))


def family_contrasts(metrics: pd.DataFrame, registration: Preregistration, family: str) -> list[Contrast]:
    """The contrasts of one exploratory family, without what a hypothesis tests already; no margin, so no equivalence test."""
    planned = registration.families[family].contrasts or registration.leading.contrasts
    margins = dict.fromkeys(registration.families[family].metrics)
    registered = _registered(registration)
    contrasts = _contrasts(metrics, registration, planned, margins)
    return with_holm([contrast for contrast in contrasts if (contrast.name, contrast.metric) not in registered])


def _registered(registration: Preregistration) -> set[tuple[str, str]]:
    """Contrast and metric of everything that a hypothesis tests."""
    pairs = set()
    for hypothesis in registration.hypotheses.values():
        planned = hypothesis.pairs if isinstance(hypothesis, TopologyHypothesis) else hypothesis.contrasts
        pairs |= {(contrast.name, metric.metric) for contrast in planned for metric in hypothesis.deciding}
    return pairs


def _contrasts(
    metrics: pd.DataFrame, registration: Preregistration, planned: Iterable[PlannedContrast], margins: Margins, needed: set = frozenset()
) -> list[Contrast]:
    """One contrast a comparison and metric, where both arms were measured; missing ones of `needed` raise ValueError."""
    runs = main_protocol(metrics)
    runs = runs[runs["domain"].isna() | (runs["domain"] == "")]  # values over domains, a small part of the table
    streamed = set(runs["arm"])
    contrasts = []
    for contrast in planned:
        for label, margin in margins.items():
            metric, _, kind = label.partition("/")
            pair = [metric_by_seed(runs, arm, metric, kind or registration.kind) for arm in (contrast.treatment, contrast.control)]
            absent = [arm for arm, values in zip((contrast.treatment, contrast.control), pair, strict=True) if values.empty]
            if not absent:
                common = common_replicates(*pair, f"{contrast.name}, {label}")
                contrasts.append(paired_contrast(*common, contrast.name, label, margin, registration.alpha))
            elif contrast in needed or (margin is not None and set(absent) <= streamed):
                raise ValueError(
                    f"{label} of {absent} is not in the metrics (method {METHOD}, order {ORDER}); run it, or leave it out of the plan"
                )
    return contrasts
