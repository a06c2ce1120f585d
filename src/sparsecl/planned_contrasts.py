"""From metrics.csv to the contrasts that a registration names (paper, section Registered analysis).

A contrast pairs two runs by replicate, each an arm and a method (`protocol.run_parts`), in the main order and stage length. Main
comparisons must be there, else ValueError names what to run; others whose runs are not there, and metrics that were not
measured, have no contrast. `stage_steps` is the study's own stage length, for tables in which runs have several.
"""

from collections.abc import Collection, Mapping, Sequence

import pandas as pd

from sparsecl.hypotheses import PairedHypothesis, PlannedContrast, ScaleHypothesis, TopologyHypothesis
from sparsecl.preregistration import Preregistration
from sparsecl.protocol import ORDER, of_runs
from sparsecl.statistics import Contrast, common_replicates, metric_by_seed, paired_contrast, with_holm

Margins = Mapping[str, float | None]  # by metric


def hypothesis_contrasts(
    metrics: pd.DataFrame,
    registration: Preregistration,
    hypothesis: PairedHypothesis | TopologyHypothesis,
    stage_steps: int | None = None,
) -> list[Contrast]:
    """The deciding contrasts of one hypothesis, Holm-corrected together; `metrics` is metrics.csv."""
    margins = {metric.metric: metric.margin for metric in hypothesis.deciding}
    if isinstance(hypothesis, TopologyHypothesis):
        return with_holm(_contrasts(metrics, registration, hypothesis.pairs, margins, stage_steps, needed=set(hypothesis.pairs)))
    planned = (hypothesis.main, *hypothesis.strict)
    return with_holm(_contrasts(metrics, registration, planned, margins, stage_steps, needed={hypothesis.main}))


def beside_contrasts(
    metrics: pd.DataFrame, registration: Preregistration, hypothesis: PairedHypothesis, stage_steps: int | None = None
) -> list[Contrast]:
    """The contrasts reported beside a hypothesis, a family of their own."""
    margins = {metric.metric: metric.margin for metric in hypothesis.deciding}
    return with_holm(_contrasts(metrics, registration, hypothesis.beside, margins, stage_steps))


def family_contrasts(metrics: pd.DataFrame, registration: Preregistration, family: str, stage_steps: int | None = None) -> list[Contrast]:
    """The contrasts of one exploratory family, without what a hypothesis tests already; no margin, so no equivalence test."""
    planned = registration.families[family].contrasts or registration.leading.contrasts
    margins = dict.fromkeys(registration.families[family].metrics)
    registered = _registered(registration)
    contrasts = _contrasts(metrics, registration, planned, margins, stage_steps)
    return with_holm([contrast for contrast in contrasts if (contrast.name, contrast.metric) not in registered])


def _registered(registration: Preregistration) -> set[tuple[str, str]]:
    """Contrast and metric of everything that a hypothesis tests."""
    pairs = set()
    for hypothesis in registration.hypotheses.values():
        if isinstance(hypothesis, ScaleHypothesis):
            continue  # tests no contrast of runs
        planned = hypothesis.pairs if isinstance(hypothesis, TopologyHypothesis) else hypothesis.contrasts
        pairs |= {(contrast.name, metric.metric) for contrast in planned for metric in hypothesis.deciding}
    return pairs


def _contrasts(
    metrics: pd.DataFrame,
    registration: Preregistration,
    planned: Sequence[PlannedContrast],
    margins: Margins,
    stage_steps: int | None,
    needed: Collection[PlannedContrast] = (),
) -> list[Contrast]:
    """One contrast a comparison and metric, where both runs were measured; missing ones of `needed` raise ValueError."""
    over_domains = metrics[metrics["domain"].isna() | (metrics["domain"] == "")]  # a small part of the table
    runs = of_runs(over_domains, [run for contrast in planned for run in (contrast.treatment, contrast.control)], stage_steps)
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
                raise ValueError(f"{label} of {absent} is not in the metrics (order {ORDER}); run it, or leave it out of the plan")
    return contrasts
