"""The verdicts on a study's hypotheses and the rows of tests.csv, from its tables (paper, section Results).

The rules are in `paired_decision`, `topology_decision` and `scale_decision`, what they are applied to in `planned_contrasts`,
`equal_own`, `anova` and `scale_trend`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import pandas as pd

from sparsecl.anova import Effect, anova_effects, forgetting_curves
from sparsecl.bootstrap import bootstrap_forgetting
from sparsecl.decision import Verdict
from sparsecl.equal_own import AT_EQUAL_OWN, equal_own_contrasts
from sparsecl.hypotheses import Hypothesis, PairedHypothesis, ScaleHypothesis, TopologyHypothesis
from sparsecl.paired_decision import decide
from sparsecl.planned_contrasts import beside_contrasts, family_contrasts, hypothesis_contrasts
from sparsecl.preregistration import Preregistration
from sparsecl.protocol import of_runs
from sparsecl.scale_decision import decide_scale
from sparsecl.scale_trend import rung_contrasts, scale_beside, scale_contrasts, selection_slopes
from sparsecl.statistics import Contrast
from sparsecl.topology_decision import decide_topologies

TESTS_COLUMNS = ["hypothesis", "contrast", "metric", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect", "n", "status"]
CURVES = "forgetting_by_stage"  # the metric column of the ANOVA's rows


@dataclass(frozen=True)
class _Measured:
    """The tables of a study, and the analysis fixed for it."""

    metrics: pd.DataFrame
    registration: Preregistration
    accuracy: pd.DataFrame | None = None
    items: pd.DataFrame | None = None
    probes: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    stage_steps: int | None = None

    def deciding(self, hypothesis: Hypothesis) -> list[Contrast]:
        if isinstance(hypothesis, ScaleHypothesis):
            return scale_contrasts(self.probes, hypothesis, self.registration.alpha)
        return hypothesis_contrasts(self.metrics, self.registration, hypothesis, self.stage_steps)

    def at_equal_own(self, hypothesis: PairedHypothesis) -> dict[tuple[str, str], Contrast]:
        """By contrast and metric; empty where the hypothesis does not ask for it."""
        return {} if hypothesis.at_equal_own is None else equal_own_contrasts(self.metrics, self.registration, hypothesis)


def compute_verdicts(
    metrics: pd.DataFrame,
    registration: Preregistration,
    accuracy: pd.DataFrame | None = None,
    *,
    probes: Mapping[str, pd.DataFrame] | None = None,
    stage_steps: int | None = None,
) -> dict[str, Verdict]:
    """The verdict on every hypothesis, by its name; `metrics` is metrics.csv.

    `accuracy` is accuracy.csv (needed for topologies), `probes` holds overlap.csv and gradients.csv by name (needed for scale),
    `stage_steps` is the study's own stage length, which tables alone may not tell (`main_protocol`).
    """
    measured = _Measured(metrics, registration, accuracy, probes=probes or {}, stage_steps=stage_steps)
    return {name: _verdict(measured, hypothesis) for name, hypothesis in registration.hypotheses.items()}


def _verdict(measured: _Measured, hypothesis: Hypothesis) -> Verdict:
    registration, contrasts = measured.registration, measured.deciding(hypothesis)
    if isinstance(hypothesis, ScaleHypothesis):
        rungs = rung_contrasts(measured.probes, hypothesis, registration.alpha)
        return decide_scale(contrasts, hypothesis, rungs[hypothesis.gradient.metric, hypothesis.widest], registration.alpha)
    if isinstance(hypothesis, PairedHypothesis):
        equal_own = measured.at_equal_own(hypothesis).get((hypothesis.main.name, hypothesis.improved.metric))
        return decide(contrasts, hypothesis, registration.alpha, equal_own)
    effects = topology_effects(measured.accuracy, registration, hypothesis)
    return decide_topologies(effects, contrasts, hypothesis, registration.alpha)


def topology_effects(accuracy: pd.DataFrame | None, registration: Preregistration, hypothesis: TopologyHypothesis) -> tuple[Effect, ...]:
    """The ANOVA's effects on the forgetting curves of the registered topologies."""
    if accuracy is None:
        raise ValueError("a hypothesis about topologies needs the table accuracy, whose scores make the forgetting curves; pass it too")
    return anova_effects(forgetting_curves(accuracy, hypothesis.arms, registration.kind))


def tests_table(
    metrics: pd.DataFrame,
    registration: Preregistration,
    items: pd.DataFrame | None = None,
    accuracy: pd.DataFrame | None = None,
    *,
    probes: Mapping[str, pd.DataFrame] | None = None,
    stage_steps: int | None = None,
) -> pd.DataFrame:
    """The rows of tests.csv; tables as for `compute_verdicts`, with items.parquet for the bootstrap.

    Hypothesis `H1` holds its deciding t-tests, `H1 equivalence` their TOST with the interval of 1 - 2 alpha, `H1 bootstrap`
    the hierarchical bootstrap of forgetting (with `items`), `H1 beside` the contrasts that decide nothing; so for each
    hypothesis. `H3 anova` holds F in `estimate`, the Greenhouse-Geisser p, and generalised eta squared in `effect`. `H4` holds
    slopes per doubling of the width, `H4 selections` those of other selections of neurons; `H5A at equal own` the vertical
    differences of frontiers, of which only the main contrast's in the improved metric is registered.
    Families carry their own name and are exploratory. Effect is Hedges' g_av, absent where there are no two runs. A test that
    cannot be computed adds the reason to its status.
    """
    measured = _Measured(metrics, registration, accuracy, items, probes or {}, stage_steps)
    rows = [row for name, hypothesis in registration.hypotheses.items() for row in _hypothesis_rows(measured, name, hypothesis)]
    for family in registration.families:
        rows += _contrast_rows(family, family_contrasts(metrics, registration, family, stage_steps), "exploratory")
    for name, hypothesis in registration.hypotheses.items():
        if items is not None and isinstance(hypothesis, PairedHypothesis) and hypothesis.improved.metric == "forgetting":
            rows += _bootstrap_rows(measured, name, hypothesis)
    return pd.DataFrame(rows, columns=TESTS_COLUMNS)


def _hypothesis_rows(measured: _Measured, name: str, hypothesis: Hypothesis) -> list[tuple]:
    """What the registration says about one hypothesis, in the order of its form."""
    registration = measured.registration
    rows = _contrast_rows(name, measured.deciding(hypothesis), registration.status)
    if isinstance(hypothesis, TopologyHypothesis):
        effects = topology_effects(measured.accuracy, registration, hypothesis)
        return rows + [_effect_row(name, effect, registration.status) for effect in effects]
    if isinstance(hypothesis, ScaleHypothesis):
        rows += _contrast_rows(f"{name} beside", scale_beside(measured.probes, hypothesis, registration.alpha), registration.status)
        return rows + _contrast_rows(f"{name} selections", selection_slopes(measured.probes, hypothesis, registration.alpha), "exploratory")
    beside = beside_contrasts(measured.metrics, registration, hypothesis, measured.stage_steps)
    rows += _contrast_rows(f"{name} beside", beside, registration.status)
    for (contrast, metric), found in measured.at_equal_own(hypothesis).items():
        is_registered = contrast == hypothesis.main.name and metric == hypothesis.improved.metric
        rows += _contrast_rows(name + AT_EQUAL_OWN, [found], registration.status if is_registered else "exploratory")
    return rows


def _contrast_rows(name: str, contrasts: list[Contrast], status: str) -> list[tuple]:
    """The t-tests, and after them the TOST of those that have a margin."""
    rows = [_row(name, c, status, c.low, c.high, c.p, c.p_corrected, c.effect) for c in contrasts]
    tested = [c for c in contrasts if c.margin is not None]
    return rows + [_row(f"{name} equivalence", c, status, c.equivalence_low, c.equivalence_high, c.p_equivalence) for c in tested]


def _row(hypothesis: str, contrast: Contrast, status: str, low: float, high: float, p: float, corrected=math.nan, effect=math.nan) -> tuple:
    status = f"{status}, {contrast.flag}" if contrast.flag else status
    return hypothesis, contrast.name, contrast.metric, contrast.estimate, low, high, p, corrected, effect, contrast.n, status


def _effect_row(name: str, effect: Effect, status: str) -> tuple:
    """F has no interval."""
    head = (f"{name} anova", effect.source, CURVES, effect.f)
    return *head, math.nan, math.nan, effect.p, effect.p_corrected, effect.eta_squared, effect.n, status


def _bootstrap_rows(measured: _Measured, name: str, hypothesis: PairedHypothesis) -> list[tuple]:
    """The bootstrap of every contrast whose runs have items, over the replicates that both ran."""
    registration, runs = measured.registration, [run for planned in hypothesis.contrasts for run in (planned.treatment, planned.control)]
    of_study = {"items": measured.items, "metrics": measured.metrics}
    tables = {table: of_runs(frame, runs, measured.stage_steps) for table, frame in of_study.items()}
    seeds = tables["items"].groupby("arm")["seed"].unique()
    rows = []
    for planned in hypothesis.contrasts:
        if {planned.treatment, planned.control} <= set(seeds.index):
            common = set(seeds[planned.treatment]) & set(seeds[planned.control])
            selected = [_of_seeds(table, common) for table in tables.values()]
            estimate, low, high = bootstrap_forgetting(*selected, planned.treatment, planned.control, registration.kind)
            head = (f"{name} bootstrap", planned.name, hypothesis.improved.metric)
            rows.append((*head, estimate, low, high, math.nan, math.nan, math.nan, len(common), registration.status))
    return rows


def _of_seeds(table: pd.DataFrame, seeds: set) -> pd.DataFrame:
    return table[table["seed"].isin(seeds)]
