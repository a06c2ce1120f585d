"""The verdicts on a study's hypotheses and the rows of tests.csv, from its tables (paper, section Results).

The rules are in `paired_decision` and `topology_decision`, what they are applied to in `planned_contrasts` and `anova`.
"""

import math

import pandas as pd

from sparsecl.anova import Effect, anova_effects, forgetting_curves
from sparsecl.bootstrap import bootstrap_forgetting
from sparsecl.decision import Verdict
from sparsecl.paired_decision import decide
from sparsecl.planned_contrasts import beside_contrasts, family_contrasts, hypothesis_contrasts
from sparsecl.preregistration import PairedHypothesis, Preregistration, TopologyHypothesis
from sparsecl.protocol import main_protocol
from sparsecl.statistics import Contrast
from sparsecl.topology_decision import decide_topologies

TESTS_COLUMNS = ["hypothesis", "contrast", "metric", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect", "n", "status"]
CURVES = "forgetting_by_stage"  # the metric column of the ANOVA's rows


def compute_verdicts(metrics: pd.DataFrame, registration: Preregistration, accuracy: pd.DataFrame | None = None) -> dict[str, Verdict]:
    """The verdict on every hypothesis, by its name; `metrics` is metrics.csv, `accuracy` accuracy.csv (needed for topologies)."""
    return {name: _verdict(metrics, registration, hypothesis, accuracy) for name, hypothesis in registration.hypotheses.items()}


def _verdict(metrics: pd.DataFrame, registration: Preregistration, hypothesis, accuracy: pd.DataFrame | None) -> Verdict:
    contrasts = hypothesis_contrasts(metrics, registration, hypothesis)
    if isinstance(hypothesis, PairedHypothesis):
        return decide(contrasts, hypothesis, registration.alpha)
    return decide_topologies(topology_effects(accuracy, registration, hypothesis), contrasts, hypothesis, registration.alpha)


def topology_effects(accuracy: pd.DataFrame | None, registration: Preregistration, hypothesis: TopologyHypothesis) -> tuple[Effect, ...]:
    """The ANOVA's effects on the forgetting curves of the registered topologies."""
    if accuracy is None:
        raise ValueError("a hypothesis about topologies needs the table accuracy, whose scores make the forgetting curves; pass it too")
    return anova_effects(forgetting_curves(accuracy, hypothesis.arms, registration.kind))


def tests_table(
    metrics: pd.DataFrame, registration: Preregistration, items: pd.DataFrame | None = None, accuracy: pd.DataFrame | None = None
) -> pd.DataFrame:
    """The rows of tests.csv.

    Hypothesis `H1` holds its deciding t-tests, `H1 equivalence` their TOST with the interval of 1 - 2 alpha, `H1 bootstrap`
    the hierarchical bootstrap of forgetting (with `items`), `H1 beside` the contrasts that decide nothing; so for each
    hypothesis. `H3 anova` holds F in `estimate`, the Greenhouse-Geisser p, and generalised eta squared in `effect`.
    Families carry their own name and are exploratory. Effect is Hedges' g_av. A test that cannot be computed adds the
    reason to its status.
    """
    rows, bootstrap = [], []
    for name, hypothesis in registration.hypotheses.items():
        rows += _contrast_rows(name, hypothesis_contrasts(metrics, registration, hypothesis), registration.status)
        if isinstance(hypothesis, TopologyHypothesis):
            rows += [_effect_row(name, effect, registration.status) for effect in topology_effects(accuracy, registration, hypothesis)]
            continue
        rows += _contrast_rows(f"{name} beside", beside_contrasts(metrics, registration, hypothesis), registration.status)
        if items is not None and hypothesis.improved.metric == "forgetting":
            bootstrap += _bootstrap_rows(name, hypothesis, metrics, registration, items)
    for family in registration.families:
        rows += _contrast_rows(family, family_contrasts(metrics, registration, family), "exploratory")
    rows += bootstrap
    return pd.DataFrame(rows, columns=TESTS_COLUMNS)


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


def _bootstrap_rows(name: str, hypothesis: PairedHypothesis, metrics: pd.DataFrame, registration: Preregistration, items: pd.DataFrame):
    """The bootstrap of every contrast whose arms have items, over the replicates that both ran."""
    tables = {"items": main_protocol(items), "metrics": main_protocol(metrics)}
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
