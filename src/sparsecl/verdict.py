"""The computed verdict on H1 and the rows of tests.csv (paper, section Results).

Differences are treatment minus control, so a negative difference in forgetting and a positive one in
what is retained speak for the sparse arm. The letters exclude each other:

* A, supported: against every control, forgetting is lower (two-sided p < alpha, and not merely within
  the margin) and what is retained is not lower beyond the margin. All must hold, which needs no
  correction (intersection-union test, Berger 1982).
* B, equivalent: against the main control both differences lie inside the margin by TOST, also where
  an interval excludes 0.
* C, against: dense is better than sparse under some control (A with the roles exchanged on either metric,
  Holm-corrected because one is enough); or sparse beats the main control, but a strict control, with the
  sparse arm's capacity or compute, is at or above it: not worse beyond the margin on both metrics.
* undecided otherwise, with a number of replicates for planning a new study only.
* none, where no margin was registered.
"""

import math
from dataclasses import dataclass

import pandas as pd

from sparsecl.preregistration import HYPOTHESIS, PlannedContrast, Preregistration
from sparsecl.statistics import (
    Contrast,
    bootstrap_forgetting,
    metric_by_seed,
    paired_contrast,
    planned_replicates,
    upper_sd,
    with_holm,
)

TESTS_COLUMNS = ["hypothesis", "contrast", "metric", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect", "n", "status"]
HEADLINES = {
    "A": "supported: the sparse arm forgets less and keeps no less",
    "B": "equivalent: sparse and dense differ by less than the margin",
    "C": "refuted: dense does better, or as well under a strict control",
    "undecided": "undecided",
    "none": "no verdict",
}


@dataclass(frozen=True)
class Verdict:
    """What the registered analysis says about H1."""

    letter: str  # a key of HEADLINES
    reasons: tuple[str, ...]  # phrases, each with its numbers in percentage points
    contrasts: tuple[Contrast, ...]  # those it was computed from
    missing_controls: tuple[str, ...] = ()  # registered arms that were not run
    planned_replicates: int | None = None  # for a new study; only where undecided

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, without its final stop."""
        return f"{HEADLINES[self.letter]} ({'; '.join(self.reasons)})"


@dataclass(frozen=True)
class _Comparison:
    """Sparse against one control on the two deciding metrics."""

    control: PlannedContrast
    forgetting: Contrast
    retained: Contrast
    margin: float
    alpha: float

    def _significant(self, contrast: Contrast, p: float) -> bool:
        """p < alpha and not inside the margin; NaN is not significant."""
        return p < self.alpha and not contrast.p_equivalence < self.alpha

    @property
    def forgets_less(self) -> bool:
        return self.forgetting.estimate < 0 and self._significant(self.forgetting, self.forgetting.p)

    @property
    def keeps_no_less(self) -> bool:
        return self.retained.equivalence_low > -self.margin

    @property
    def sparse_better(self) -> bool:
        return self.forgets_less and self.keeps_no_less

    @property
    def dense_better(self) -> bool:
        forgets_more = self.forgetting.estimate > 0 and self._significant(self.forgetting, self.forgetting.p_corrected)
        keeps_less = self.retained.estimate < 0 and self._significant(self.retained, self.retained.p_corrected)
        return (forgets_more and self.retained.equivalence_high < self.margin) or (
            keeps_less and self.forgetting.equivalence_low > -self.margin
        )

    @property
    def dense_not_worse(self) -> bool:
        return self.forgetting.equivalence_low > -self.margin and self.retained.equivalence_high < self.margin

    @property
    def equivalent(self) -> bool:
        return max(self.forgetting.p_equivalence, self.retained.p_equivalence) < self.alpha

    @property
    def open_question(self) -> str:
        """What keeps this comparison from a letter, in words; empty where sparse is better."""
        flags = {contrast.flag for contrast in (self.forgetting, self.retained)} - {""}
        if flags:
            return f"no test ({', '.join(sorted(flags))})"
        if self.forgets_less:
            keeps_less = self.retained.estimate < 0 and self._significant(self.retained, self.retained.p)
            return "" if self.keeps_no_less else f"forgets less, {'and' if keeps_less else 'but may'} keep{'s' * keeps_less} less"
        if self.forgetting.p_equivalence < self.alpha:
            return "forgetting lies within the margin, what is retained is not shown to"
        return "the interval of forgetting excludes neither 0 nor the margin"

    @property
    def numbers(self) -> str:
        return f"against {self.control.control}: {_points(self.forgetting)}, {_points(self.retained)}"


def decide(contrasts: list[Contrast], registration: Preregistration) -> Verdict:
    """The verdict from the H1 family's contrasts (`family_contrasts`); raises ValueError where the main one is missing."""
    comparisons = _comparisons(contrasts, registration)
    main, strict = comparisons[0], comparisons[1:]
    used = tuple(contrast for comparison in comparisons for contrast in (comparison.forgetting, comparison.retained))
    run = {comparison.control.control for comparison in strict}
    missing = tuple(planned.control for planned in registration.strict if planned.control not in run)
    numbers = tuple(comparison.numbers for comparison in comparisons)
    if registration.margin is None:
        return Verdict("none", (main.numbers, "no margin was registered"), used, missing)
    replicates = {contrast.n for contrast in used}
    if replicates != {registration.replicates}:
        reason = f"{sorted(replicates)} replicates where exactly {registration.replicates} were registered"
        return Verdict("undecided", (main.numbers, reason), used, missing)
    better = [c.control.control for c in comparisons if c.dense_better]
    level = [c.control.control for c in strict if c.dense_not_worse]
    if better:
        return Verdict("C", (*numbers, f"dense {', '.join(better)} better"), used, missing)
    if main.sparse_better and level:
        return Verdict("C", (*numbers, f"strict control {', '.join(level)} at or above the sparse arm"), used, missing)
    if main.equivalent:
        return Verdict("B", (main.numbers, f"margin {100 * registration.margin:g}"), used, missing)
    if all(comparison.sparse_better for comparison in comparisons) and not missing:
        return Verdict("A", numbers, used)
    reasons = (*numbers, *_open_questions(comparisons, missing))
    return Verdict("undecided", reasons, used, missing, _plan(used, registration))


def _comparisons(contrasts: list[Contrast], registration: Preregistration) -> list[_Comparison]:
    """The main comparison and after it those strict ones that were run."""
    known = {(contrast.name, contrast.metric): contrast for contrast in contrasts}
    comparisons = []
    for planned in (registration.main, *registration.strict):
        pair = [known.get((planned.name, metric)) for metric in (registration.metric, registration.retained)]
        if all(pair):
            comparisons.append(_Comparison(planned, *pair, registration.margin or math.nan, registration.alpha))
        elif planned.role == "main" or any(pair):
            raise ValueError(f"contrast {planned.name} lacks {registration.metric} or {registration.retained}; seen {sorted(known)}")
    return comparisons


def _open_questions(comparisons: list[_Comparison], missing: tuple[str, ...]) -> tuple[str, ...]:
    """Why neither letter holds, in words."""
    reasons = []
    for comparison in comparisons:
        if question := comparison.open_question:
            reasons.append(f"{comparison.control.control}: {question}")
    if missing:
        reasons.append(f"A is impossible without the strict controls {', '.join(missing)}, which were not run")
    return tuple(reasons)


def _plan(used: tuple[Contrast, ...], registration: Preregistration) -> int | None:
    """Replicates for a new study: power 90 % at the margin, from the upper 80 % limit of the largest spread."""
    spreads = [upper_sd(contrast.sd, contrast.n) for contrast in used if contrast.sd > 0]
    return planned_replicates(max(spreads), registration.margin, registration.alpha) if spreads else None


def _points(contrast: Contrast) -> str:
    return f"{contrast.metric} {100 * contrast.estimate:+.1f} [{100 * contrast.low:+.1f}, {100 * contrast.high:+.1f}]"


def family_contrasts(metrics: pd.DataFrame, registration: Preregistration, family: str = HYPOTHESIS) -> list[Contrast]:
    """The contrasts of one family, Holm-corrected within it; `metrics` is metrics.csv.

    Strict controls that were not run have no contrast, nor have exploratory metrics that were not measured;
    the main contrast's arms and the H1 metrics must be there, else ValueError names what is missing.
    """
    runs = metrics[(metrics["method"] == registration.method) & (metrics["order"] == registration.order)]
    contrasts = []
    for planned in registration.contrasts:
        for label in registration.families[family]:
            metric, _, kind = label.partition("/")
            arms = {arm: metric_by_seed(runs, arm, metric, kind or registration.kind) for arm in (planned.treatment, planned.control)}
            absent = [arm for arm, values in arms.items() if values.empty]
            if not absent:
                margin = registration.margin if family == HYPOTHESIS else None
                pair = arms[planned.treatment], arms[planned.control]
                contrasts.append(paired_contrast(*pair, planned.name, label, margin, registration.alpha))
            elif family == HYPOTHESIS and (planned.role == "main" or planned.control in set(runs["arm"])):
                raise ValueError(
                    f"{label} of {absent} is not in the metrics (method {registration.method}, order {registration.order}); run it"
                )
    return with_holm(contrasts)


def compute_verdict(metrics: pd.DataFrame, registration: Preregistration) -> Verdict:
    """The verdict on H1 from metrics.csv."""
    return decide(family_contrasts(metrics, registration), registration)


def tests_table(metrics: pd.DataFrame, registration: Preregistration, items: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows of tests.csv.

    Hypothesis `H1` holds the deciding t-tests; `H1 equivalence` their TOST with the interval of 1 - 2 alpha;
    `H1 bootstrap` the hierarchical bootstrap of forgetting (with `items`); other families carry their own name
    and are exploratory. Effect is Hedges' g_av. A test that cannot be computed adds the reason to its status.
    """
    rows = []
    for family in registration.families:
        status = registration.status if family == HYPOTHESIS else "exploratory"
        contrasts = family_contrasts(metrics, registration, family)
        rows += [_row(family, c, status, c.low, c.high, c.p, c.p_corrected, c.effect) for c in contrasts]
        if family == HYPOTHESIS and registration.margin is not None:
            rows += [
                _row(f"{HYPOTHESIS} equivalence", c, status, c.equivalence_low, c.equivalence_high, c.p_equivalence)
                for c in contrasts
            ]  # fmt: skip
    if items is not None and registration.metric == "forgetting":
        rows += _bootstrap_rows(metrics, registration, items)
    return pd.DataFrame(rows, columns=TESTS_COLUMNS)


def _row(hypothesis: str, contrast: Contrast, status: str, low: float, high: float, p: float, corrected=math.nan, effect=math.nan) -> tuple:
    status = f"{status}, {contrast.flag}" if contrast.flag else status
    return hypothesis, contrast.name, contrast.metric, contrast.estimate, low, high, p, corrected, effect, contrast.n, status


def _bootstrap_rows(metrics: pd.DataFrame, registration: Preregistration, items: pd.DataFrame) -> list[tuple]:
    selected = [table[(table["method"] == registration.method) & (table["order"] == registration.order)] for table in (items, metrics)]
    rows = []
    for planned in registration.contrasts:
        if {planned.treatment, planned.control} <= set(selected[0]["arm"]):
            estimate, low, high = bootstrap_forgetting(*selected, planned.treatment, planned.control, registration.kind)
            n = selected[0].loc[selected[0]["arm"] == planned.treatment, "seed"].nunique()
            head = (f"{HYPOTHESIS} bootstrap", planned.name, registration.metric)
            rows.append((*head, estimate, low, high, math.nan, math.nan, math.nan, n, registration.status))
    return rows
