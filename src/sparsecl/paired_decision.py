"""The rules of the verdict on a paired hypothesis, H1 and H2, H5A and H5B (paper, section Registered analysis).

Differences are treatment minus control. A hypothesis names a metric that the treatment improves, one on which it
is not worse, and for each which direction is better and a margin. The letters exclude each other:

* A, supported: in every deciding contrast, the first metric is better (two-sided p < alpha, and not merely
  within the margin) and the second is not worse beyond its margin. Where the registration says so (`at_equal_own`), the
  first metric is also better in the main contrast at equal own: the t-interval of the mean vertical difference of the
  frontiers lies on the better side of 0, over all registered replicates. All must hold, which needs no correction
  (intersection-union test, Berger 1982).
* B, equivalent: in the main contrast both differences lie inside their margins by TOST, also where an
  interval excludes 0.
* C, against: the control is better in some contrast (A with the roles exchanged, on either metric); or the
  treatment wins the main contrast, but in a strict one, with its capacity or compute, the control is at or above
  it: not worse beyond the margin on both metrics. Each of these needs two tests, so its p is the larger of theirs;
  one of them is enough, so Holm's correction runs over the contrasts and metrics in the first case, over the
  strict contrasts in the second.
* undecided otherwise, with a number of replicates for planning a new study only.
* none, where no margin was registered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from sparsecl.decision import Verdict, in_points, replicates_to_plan, wrong_replicates
from sparsecl.hypotheses import DecidingMetric, PairedHypothesis, PlannedContrast
from sparsecl.methods import METHODS
from sparsecl.protocol import METHOD, run_parts
from sparsecl.statistics import Contrast, holm

# What an arm does that has more of the metric's better direction, and what one does that has less.
_WORDS = {
    "forgetting": ("forgets less", "forgets more"),
    "final": ("keeps more", "keeps less"),
    "retention": ("retains more", "retains less"),
    "learning_speed": ("learns faster", "learns slower"),
}


@dataclass(frozen=True)
class _Measured:
    """One deciding metric of one comparison; p is 1 where a test cannot be computed."""

    metric: DecidingMetric
    contrast: Contrast

    @property
    def margin(self) -> float:
        return self.metric.margin or math.nan

    @cached_property
    def p_equivalent(self) -> float:
        return _or_one(self.contrast.p_equivalence)

    def p_better(self, sign: int, alpha: float) -> float:
        """p that the treatment (sign 1) or the control (-1) is better, and not merely within the margin."""
        favours = sign * self.metric.sign * self.contrast.estimate > 0
        return _or_one(self.contrast.p) if favours and not self.p_equivalent < alpha else 1.0

    def p_not_worse(self, sign: int) -> float:
        """One-sided p that the treatment (sign 1) or the control (-1) is not worse beyond the margin."""
        upwards = sign * self.metric.sign > 0
        return _or_one(self.contrast.p_above(-self.margin) if upwards else self.contrast.p_below(self.margin))

    @property
    def name(self) -> str:
        return self.metric.metric.replace("_", " ")

    def words(self, better: bool) -> str:
        return _WORDS.get(self.metric.metric, (f"is better in {self.metric.metric}", f"is worse in {self.metric.metric}"))[not better]


@dataclass(frozen=True)
class _Comparison:
    """One deciding contrast on both metrics."""

    planned: PlannedContrast
    improved: _Measured
    kept: _Measured
    alpha: float
    label: str  # the control (or its method) where the treatment is the main contrast's, else the whole contrast

    @property
    def both(self) -> tuple[_Measured, _Measured]:
        return self.improved, self.kept

    @property
    def improves(self) -> bool:
        return self.improved.p_better(1, self.alpha) < self.alpha

    @property
    def treatment_better(self) -> bool:
        return self.improves and self.kept.p_not_worse(1) < self.alpha

    @property
    def p_control_better(self) -> tuple[float, float]:
        """p of the two ways in which the control can be better, one for each metric."""
        first, second = self.both
        return tuple(max(a.p_better(-1, self.alpha), b.p_not_worse(-1)) for a, b in ((first, second), (second, first)))

    @property
    def p_control_level(self) -> float:
        return max(measured.p_not_worse(-1) for measured in self.both)

    @property
    def equivalent(self) -> bool:
        return max(measured.p_equivalent for measured in self.both) < self.alpha

    @property
    def open_question(self) -> str:
        """What keeps this comparison from A, in words; empty where the treatment is better."""
        flags = {measured.contrast.flag for measured in self.both} - {""}
        if flags:
            return f"no test ({', '.join(sorted(flags))})"
        if self.improves:
            link = "and" if self.kept.p_better(-1, self.alpha) < self.alpha else "but perhaps"
            return "" if self.treatment_better else f"{self.improved.words(True)}, {link} {self.kept.words(False)}"
        gains = f"but {self.kept.words(True)}" if self.kept.p_better(1, self.alpha) < self.alpha else ""
        if self.improved.p_better(-1, self.alpha) < self.alpha:
            return f"{self.improved.words(False)}, {gains or 'before correction for the number of contrasts'}"
        if self.improved.p_equivalent < self.alpha:
            return f"{self.improved.name} lies within the margin, {gains or f'{self.kept.name} is not shown to'}"
        return ", ".join(filter(None, (f"the interval of {self.improved.name} excludes neither 0 nor the margin", gains)))

    @property
    def numbers(self) -> str:
        name = self.label if self.label == self.planned.name else f"against {self.label}"
        return f"{name}: {', '.join(in_points(measured.contrast) for measured in self.both)}"


def decide(contrasts: Sequence[Contrast], hypothesis: PairedHypothesis, alpha: float = 0.05, equal_own: Contrast | None = None) -> Verdict:
    """The verdict from a hypothesis' contrasts (`hypothesis_contrasts`); raises ValueError where the main one is missing.

    `equal_own` is the main contrast at equal own in the metric that is to improve (`equal_own_contrasts`), None where it was not run.
    """
    comparisons = _comparisons(contrasts, hypothesis, alpha)
    measured = [measured for comparison in comparisons for measured in comparison.both]
    missing = _missing_arms(comparisons, hypothesis)
    letter, reasons = _letter(comparisons, hypothesis, missing, alpha)
    if hypothesis.at_equal_own is not None and letter in ("A", "undecided"):
        letter, reasons = _with_equal_own(letter, reasons, hypothesis, equal_own)
    return Verdict(
        letter,
        _headline(letter, comparisons[0]),
        tuple(reasons),
        tuple(m.contrast for m in measured),
        missing,
        replicates_to_plan([(m.contrast, m.margin) for m in measured], alpha) if letter == "undecided" else None,
    )


def _letter(
    comparisons: Sequence[_Comparison], hypothesis: PairedHypothesis, missing: tuple[str, ...], alpha: float
) -> tuple[str, list[str]]:
    """The letter and its reasons, by the rules at the top of this module."""
    main, strict, roles = comparisons[0], comparisons[1:], _roles(comparisons[0].planned)
    numbers = [comparison.numbers for comparison in comparisons]
    if not all(metric.margin for metric in hypothesis.deciding):
        return "none", [main.numbers, "no margin was registered"]
    if wrong := _wrong_replicates(comparisons, hypothesis):
        return "undecided", [main.numbers, wrong]
    if better := _rejected([(c.label, p) for c in comparisons for p in c.p_control_better], alpha):
        return "C", [*numbers, f"{roles.control} better: {better}"]
    if main.treatment_better and (level := _rejected([(c.label, c.p_control_level) for c in strict], alpha)):
        return "C", [*numbers, f"{roles.control} at or above {roles.treatment} under the strict control: {level}"]
    if main.equivalent:
        return "B", [main.numbers, _margins(hypothesis)]
    if all(comparison.treatment_better for comparison in comparisons) and not missing:
        return "A", numbers
    return "undecided", [*numbers, *_open_questions(comparisons, missing)]


def _with_equal_own(letter: str, reasons: Sequence[str], hypothesis: PairedHypothesis, equal_own: Contrast | None) -> tuple[str, list[str]]:
    """A stays only where the main contrast improves at equal own too; what is known of it joins the reasons."""
    if equal_own is None:
        known = f"{hypothesis.main.treatment} and {hypothesis.main.control} did not both run several stage lengths"
        return "undecided", [*reasons, f"A is impossible without the comparison at equal own: {known}"]
    registered = hypothesis.at_equal_own.replicates
    if equal_own.n != registered or math.isnan(equal_own.low):
        why = equal_own.flag or f"{equal_own.n} replicates where exactly {registered} were registered"
        return "undecided", [*reasons, f"no comparison at equal own ({why})"]
    better = equal_own.high < 0 if hypothesis.improved.sign < 0 else equal_own.low > 0
    numbers = f"at equal own: {in_points(equal_own)}"
    if better:
        return letter, [*reasons, numbers]
    return "undecided", [*reasons, f"{numbers}, not shown to be better where as much is learned"]


@dataclass(frozen=True)
class _Roles:
    """How the two sides of a hypothesis are called."""

    treatment: str
    both: str
    control: str  # any of them


def _roles(main: PlannedContrast) -> _Roles:
    """Sparse against dense; or methods by their labels, where the treatment is one."""
    methods = [run_parts(run)[1] for run in (main.treatment, main.control)]
    if methods[0] == METHOD:
        return _Roles("the sparse arm", "sparse and dense", "dense")
    first, second = (METHODS[method].label for method in methods)
    return _Roles(first, f"{first} and {second}", "a control")


def _wrong_replicates(comparisons: Sequence[_Comparison], hypothesis: PairedHypothesis) -> str:
    registered = {comparison.planned.name: hypothesis.registered_replicates(comparison.planned) for comparison in comparisons}
    return wrong_replicates([measured.contrast for comparison in comparisons for measured in comparison.both], registered)


def _comparisons(contrasts: Sequence[Contrast], hypothesis: PairedHypothesis, alpha: float) -> list[_Comparison]:
    """The main comparison and after it those strict ones that were run."""
    known = {(contrast.name, contrast.metric): contrast for contrast in contrasts}
    comparisons = []
    for planned in (hypothesis.main, *hypothesis.strict):
        found = [known.get((planned.name, metric.metric)) for metric in hypothesis.deciding]
        if all(found):
            measured = [_Measured(metric, contrast) for metric, contrast in zip(hypothesis.deciding, found, strict=True)]
            comparisons.append(_Comparison(planned, *measured, alpha, _label(planned, hypothesis)))
        elif planned.role == "main" or any(found):
            names = " or ".join(metric.metric for metric in hypothesis.deciding)
            raise ValueError(f"contrast {planned.name} lacks {names}; seen {sorted(known)}")
    return comparisons


def _label(planned: PlannedContrast, hypothesis: PairedHypothesis) -> str:
    """Methods on one arm go by their labels."""
    if planned.treatment != hypothesis.main.treatment:
        return planned.name
    (arm, method), (control, its_method) = run_parts(planned.treatment), run_parts(planned.control)
    return METHODS[its_method].label if arm == control and method != METHOD else planned.control


def _missing_arms(comparisons: Sequence[_Comparison], hypothesis: PairedHypothesis) -> tuple[str, ...]:
    """For each strict contrast that was not run, the arm that only it needs."""
    run = {comparison.planned for comparison in comparisons}
    same = hypothesis.main.treatment
    return tuple(planned.control if planned.treatment == same else planned.treatment for planned in hypothesis.strict if planned not in run)


def _rejected(tests: Sequence[tuple[str, float]], alpha: float) -> str:
    """The labels whose p Holm's correction over all of them leaves below alpha, in one phrase."""
    if not any(p < alpha for _, p in tests):
        return ""
    corrected = holm([p for _, p in tests])
    return ", ".join(dict.fromkeys(label for (label, _), p in zip(tests, corrected, strict=True) if p < alpha))


def _headline(letter: str, main: _Comparison) -> str:
    improves, keeps, roles = main.improved.words(True), main.kept.words(False), _roles(main.planned)
    return {
        "A": f"supported: {roles.treatment} {improves}, and in no comparison {keeps} beyond the margin",
        "B": f"equivalent: {roles.both} differ by less than the margin",
        "C": f"refuted: {roles.control} does better, or as well under a strict control",
        "undecided": "undecided",
        "none": "no verdict",
    }[letter]


def _margins(hypothesis: PairedHypothesis) -> str:
    return "margins " + ", ".join(f"{100 * metric.margin:g} of {metric.metric}" for metric in hypothesis.deciding)


def _open_questions(comparisons: Sequence[_Comparison], missing: tuple[str, ...]) -> list[str]:
    """Why no letter holds, in words."""
    reasons = [f"{comparison.label}: {question}" for comparison in comparisons if (question := comparison.open_question)]
    return reasons + ([f"A is impossible without the strict controls {', '.join(missing)}, which were not run"] if missing else [])


def _or_one(p: float) -> float:
    return 1.0 if math.isnan(p) else p
