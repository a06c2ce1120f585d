"""Tests and verdicts a second time, from metrics.csv and accuracy.csv: formulas of the textbooks, scipy's distributions.

For `test_recomputation`. Nothing here imports `sparsecl`; the registration is the parsed YAML file. Rules are those of the
paper's section Registered analysis, t-tests and equivalence those of Student and Schuirmann, the analysis of variance that of
Greenhouse and Geisser.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from recomputation import Run, main_runs, rows, run_of, scores_by_run
from recomputation_streams import frontier_distances
from scipy import stats

# (run, metric, kind) -> replicate -> value over domains in the main order and stage length; a run is `arm` or `arm:method`
Values = dict[tuple[str, str, str], dict[str, float]]


def by_run(frame: pd.DataFrame) -> pd.DataFrame:
    """Every method's rows as if each method on an arm were an arm of its own, `D1:lora`, that is fine-tuned in full."""
    other = frame["method"] != "full"
    return frame.assign(arm=frame["arm"].where(~other, frame["arm"] + ":" + frame["method"]), method="full")


def values_of(metrics: pd.DataFrame) -> Values:
    """Values over domains of every arm and method in the main order."""
    over = by_run(metrics[(metrics["domain"] == "") & (metrics["order"] == "main")])
    listed = [(run_of(row), row) for row in rows(over)]
    main, found = main_runs([run for run, _ in listed]), {}
    for run, row in listed:
        if run in main:
            found.setdefault((run.arm, row.metric, row.kind), {})[run.seed] = row.value
    return found


@dataclass(frozen=True)
class Difference:
    """Paired differences of two arms; what cannot be computed is NaN."""

    n: int
    estimate: float
    sd: float
    low: float
    high: float
    p: float
    g: float
    narrow_low: float  # interval of 1 - 2 alpha
    narrow_high: float

    def p_at_most(self, bound: float) -> float:
        """One-sided p against a true difference of at most `bound`."""
        return float(stats.t.sf((self.estimate - bound) / self._error, self.n - 1)) if self.sd > 0 else math.nan

    def p_at_least(self, bound: float) -> float:
        return float(stats.t.cdf((self.estimate - bound) / self._error, self.n - 1)) if self.sd > 0 else math.nan

    def p_equivalence(self, margin: float) -> float:
        return max(self.p_at_most(-margin), self.p_at_least(margin)) if self.sd > 0 else math.nan

    @property
    def _error(self) -> float:
        return self.sd / math.sqrt(self.n)


def difference(values: Values, treatment: str, control: str, label: str, kind: str = "all", alpha: float = 0.05) -> Difference | None:
    """Treatment minus control over the replicates of both; None where one was not measured. `label` may carry a kind: own/fact."""
    metric, _, own_kind = label.partition("/")
    ours, theirs = (values.get((arm, metric, own_kind or kind), {}) for arm in (treatment, control))
    seeds = [seed for seed in ours if seed in theirs]
    if not ours or not theirs:
        return None
    x, y = ([arm[seed] for seed in seeds] for arm in (ours, theirs))
    differences, n = [a - b for a, b in zip(x, y, strict=True)], len(seeds)
    if not all(math.isfinite(value) for value in differences):
        return Difference(n, *[math.nan] * 8)
    estimate = math.fsum(differences) / n
    if max(differences) - min(differences) <= 1e-14 * max(map(abs, (*x, *y))):
        return Difference(n, estimate, 0.0, *[math.nan] * 6)
    sd = spread(differences)
    half, narrow = (stats.t.ppf(1 - tail, n - 1) * sd / math.sqrt(n) for tail in (alpha / 2, alpha))
    p = 2 * float(stats.t.sf(abs(estimate) * math.sqrt(n) / sd, n - 1))
    return Difference(n, estimate, sd, estimate - half, estimate + half, p, hedges(x, y), estimate - narrow, estimate + narrow)


def spread(values: Sequence[float]) -> float:
    """Standard deviation with n - 1."""
    centre = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def hedges(x: Sequence[float], y: Sequence[float]) -> float:
    """Hedges' g_av: the mean difference over the root of the mean variance (Cumming 2012), corrected for 2 n - 2 degrees of freedom."""
    n, average = len(x), math.sqrt((spread(x) ** 2 + spread(y) ** 2) / 2)
    return (math.fsum(x) / n - math.fsum(y) / n) / average * (1 - 3 / (4 * 2 * n - 9))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p; one that is NaN stays so and does not count."""
    tested = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, largest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class Anova:
    """Effect of the topology, and its interaction with the stage."""

    n: int
    f: tuple[float, float]
    p: tuple[float, float]  # after Greenhouse and Geisser
    eta: tuple[float, float]  # generalised
    degrees: tuple[int, int]  # of the effects; those of their errors are n - 1 times as many
    epsilon: tuple[float, float]  # of Greenhouse and Geisser

    @property
    def corrected(self) -> list[float]:
        return holm(self.p)


def curves_of_forgetting(accuracy: pd.DataFrame, arms: Sequence[str], kind: str = "all") -> np.ndarray:
    """F_k, the forgetting had the stream ended with stage k = 2..T, by replicate, arm and k; replicates of every arm only."""
    scores = scores_by_run(accuracy[accuracy["arm"].isin(arms)], accuracy.head(0))
    main = {(run.arm, run.seed): scores[run] for run in main_runs(list(scores))}
    seeds = [seed for arm, seed in main if arm == arms[0] and all((other, seed) in main for other in arms)]
    cells = []
    for seed in seeds:
        for arm in arms:
            score, order = main[arm, seed].score[kind], main[arm, seed].order
            for k in range(2, len(order) + 1):
                falls = [max(score[d][stage] for stage in range(1, k)) - score[d][k] for d in order[: k - 1]]
                cells.append(sum(falls) / len(falls))
    return np.array(cells).reshape(len(seeds), len(arms), -1)


def anova(cells: np.ndarray) -> Anova:
    """Two-way repeated measures by sums of squares; replicates x topologies x stages."""
    n, a, b = cells.shape
    grand, of = cells.mean(), {axes: cells.mean(axis=axes) for axes in ((0,), (1,), (2,), (0, 1), (0, 2), (1, 2))}
    subject = a * b * ((of[1, 2] - grand) ** 2).sum()
    topology, stage = n * b * ((of[0, 2] - grand) ** 2).sum(), n * a * ((of[0, 1] - grand) ** 2).sum()
    both = n * ((of[0,] - grand) ** 2).sum() - topology - stage
    topology_error = b * ((of[2,] - grand) ** 2).sum() - subject - topology
    stage_error = a * ((of[1,] - grand) ** 2).sum() - subject - stage
    both_error = ((cells - grand) ** 2).sum() - subject - topology - stage - both - topology_error - stage_error
    errors = subject + topology_error + stage_error + both_error
    f, p, eta, sizes, corrections = [], [], [], [], []
    for effect, error, contrasts in (
        (topology, topology_error, np.kron(orthonormal(a), np.full((1, b), 1 / math.sqrt(b)))),
        (both, both_error, np.kron(orthonormal(a), orthonormal(b))),
    ):
        degrees = len(contrasts)
        f.append(float(effect / degrees / (error / (degrees * (n - 1)))))
        epsilon = greenhouse_geisser(cells.reshape(n, a * b) @ contrasts.T)
        p.append(float(stats.f.sf(f[-1], degrees * epsilon, degrees * (n - 1) * epsilon)))
        eta.append(float(effect / (effect + errors)))
        sizes.append(degrees)
        corrections.append(epsilon)
    return Anova(n, *map(tuple, (f, p, eta, sizes, corrections)))


def orthonormal(levels: int) -> np.ndarray:
    """Helmert's contrasts of a factor, rows of unit length that are orthogonal to each other and to the mean."""
    contrasts = np.array([[1.0] * row + [-row] + [0.0] * (levels - row - 1) for row in range(1, levels)])
    return contrasts / np.sqrt((contrasts**2).sum(axis=1, keepdims=True))


def greenhouse_geisser(contrasted: np.ndarray) -> float:
    """(sum of eigenvalues)^2 over (number x sum of their squares) of the contrasts' covariance."""
    centred = contrasted - contrasted.mean(axis=0)
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    return float(eigenvalues.sum() ** 2 / (contrasted.shape[1] * (eigenvalues**2).sum()))


def verdicts(metrics: pd.DataFrame, accuracy: pd.DataFrame, registration: Mapping) -> dict[str, str]:
    """The letter of every hypothesis about streams of a registration (the parsed YAML file); scale is in `recomputation_scale`."""
    values, found = values_of(metrics), {}
    for name, hypothesis in registration["hypotheses"].items():
        if hypothesis["test"] == "topology_by_stage":
            found[name] = topology_letter(values, accuracy, hypothesis, registration)
        elif hypothesis["test"] == "paired":
            letter = paired_letter(values, hypothesis, registration)
            stays = letter != "A" or better_at_equal_own(metrics, hypothesis, registration)
            found[name] = letter if stays else "undecided"
    return found


def better_at_equal_own(metrics: pd.DataFrame, hypothesis: Mapping, registration: Mapping) -> bool:
    """Whether the main contrast improves at equal own in as many replicates as registered; true where that is not asked for."""
    if not hypothesis.get("at_equal_own"):
        return True
    main = next(contrast for contrast in hypothesis["contrasts"] if contrast.get("role") == "main")
    found = single(
        at_equal_own(metrics, main["treatment"], main["control"], hypothesis["improved"]["metric"]), registration.get("alpha", 0.05)
    )
    enough = found.n == hypothesis["at_equal_own"]["replicates"]
    return enough and (found.low > 0 if hypothesis["improved"]["better"] == "higher" else found.high < 0)


def at_equal_own(metrics: pd.DataFrame, treatment: str, control: str, outcome: str) -> list[float]:
    """Mean vertical differences of two runs' frontiers, one a replicate with a common range."""
    return list(frontier_distances(by_run(metrics), treatment, control, outcome).values())


def single(values: Sequence[float], alpha: float = 0.05) -> Difference:
    """The mean of one value a replicate, held against 0."""
    n = len(values)
    if n < 2:
        return Difference(n, *[math.nan] * 8)
    estimate, sd = math.fsum(values) / n, spread(values)
    if sd <= 1e-14 * max(map(abs, values)):
        return Difference(n, estimate, 0.0, *[math.nan] * 6)
    wide, narrow = (stats.ttest_1samp(values, 0.0).confidence_interval(level) for level in (1 - alpha, 1 - 2 * alpha))
    return Difference(n, estimate, sd, *wide, float(stats.ttest_1samp(values, 0.0).pvalue), math.nan, *narrow)


def paired_letter(values: Values, hypothesis: Mapping, registration: Mapping) -> str:
    """A, B, C or undecided for H1 and H2; `none` without margins."""
    alpha, kind = registration.get("alpha", 0.05), registration.get("kind", "all")
    metrics = [hypothesis["improved"], hypothesis["not_worse"]]
    if any(metric.get("margin") is None for metric in metrics):
        return "none"
    deciding, missing = [], False
    for role in ("main", "strict"):
        for contrast in (contrast for contrast in hypothesis["contrasts"] if contrast.get("role") == role):
            pair = (contrast["treatment"], contrast["control"])
            measured = [difference(values, *pair, metric["metric"], kind, alpha) for metric in metrics]
            if None in measured:
                missing = True
                continue
            if any(found.n != (contrast.get("replicates") or hypothesis["replicates"]) for found in measured):
                return "undecided"
            deciding.append(measured)

    def within(found: Difference, metric: Mapping) -> bool:
        return found.p_equivalence(metric["margin"]) < alpha

    def p_better(found: Difference, metric: Mapping, dense: bool) -> float:
        """Two-sided p where the difference favours the arm and is not merely within the margin, else 1."""
        upwards = (metric["better"] == "higher") != dense
        favours = found.estimate > 0 if upwards else found.estimate < 0
        return found.p if favours and not math.isnan(found.p) and not within(found, metric) else 1.0

    def p_not_worse(found: Difference, metric: Mapping, dense: bool) -> float:
        upwards = (metric["better"] == "higher") != dense
        p = found.p_at_most(-metric["margin"]) if upwards else found.p_at_least(metric["margin"])
        return 1.0 if math.isnan(p) else p

    def wins(measured: Sequence[Difference]) -> bool:
        return p_better(measured[0], metrics[0], False) < alpha and p_not_worse(measured[1], metrics[1], False) < alpha

    dense_better = []
    for measured in deciding:
        for one, other in ((0, 1), (1, 0)):
            dense_better.append(max(p_better(measured[one], metrics[one], True), p_not_worse(measured[other], metrics[other], True)))
    dense_level = [max(p_not_worse(found, metric, True) for found, metric in zip(m, metrics, strict=True)) for m in deciding[1:]]
    if any(p < alpha for p in holm(dense_better)) or (wins(deciding[0]) and any(p < alpha for p in holm(dense_level))):
        return "C"
    if all(within(found, metric) for found, metric in zip(deciding[0], metrics, strict=True)):
        return "B"
    return "A" if all(wins(measured) for measured in deciding) and not missing else "undecided"


def topology_letter(values: Values, accuracy: pd.DataFrame, hypothesis: Mapping, registration: Mapping) -> str:
    """A, B or undecided for H3; a difference in either direction supports it."""
    alpha, kind, metric = registration.get("alpha", 0.05), registration.get("kind", "all"), hypothesis["forgetting"]
    pairs = [difference(values, *pair, metric["metric"], kind, alpha) for pair in combinations(hypothesis["arms"], 2)]
    effects = anova(curves_of_forgetting(accuracy, hypothesis["arms"], kind))
    if {effects.n, *(pair.n for pair in pairs)} != {hypothesis["replicates"]}:
        return "undecided"
    inside = [pair.p_equivalence(metric["margin"]) < alpha for pair in pairs]
    differ = [p < alpha and not close for p, close in zip(holm([pair.p for pair in pairs]), inside, strict=True)]
    if any(p < alpha for p in effects.corrected) and any(differ):
        return "A"
    return "B" if all(inside) else "undecided"


def bootstrapped_forgetting(
    items: pd.DataFrame, values: Values, treatment: str, control: str, draws: int, generator: np.random.Generator
) -> tuple[float, float, float]:
    """Difference in forgetting, kind `all`, and the percentile interval of a bootstrap over replicates and, within them, items.

    An item's fall from its own stage to the end is drawn for both arms together; what the highest earlier score stands above the
    own one is kept as it was measured.
    """
    chosen = items[items["arm"].isin([treatment, control]) & (items["method"] == "full") & (items["order"] == "main")]
    lengths = {
        run.arm: run.stage_steps for run in main_runs(list({run_of(row) for row in rows(chosen.drop_duplicates(list(Run._fields)))}))
    }
    chosen = chosen[chosen["stage_steps"] == chosen["arm"].map(lengths)]
    falls: dict[str, dict[str, list[np.ndarray]]] = {}
    for (seed, domain, _kind), cell in chosen.groupby(["seed", "domain", "kind"]):
        by_arm = []
        for arm in (treatment, control):
            stages = {
                stage: rows_of.set_index("item")["correct"].astype(float) for stage, rows_of in cell[cell["arm"] == arm].groupby("stage")
            }
            by_arm.append((stages[min(stages)] - stages[max(stages)]) if len(stages) == 2 else None)
        if by_arm[0] is not None and by_arm[1] is not None:  # the last domain has one stage, a replicate may have run one arm
            falls.setdefault(seed, {}).setdefault(domain, []).append((by_arm[0] - by_arm[1]).to_numpy())
    peaks = {seed: _peak(values, treatment, seed) - _peak(values, control, seed) for seed in falls}

    def one(seed: str, redraw: bool) -> float:
        kinds = [
            [cell[generator.integers(len(cell), size=len(cell))].mean() if redraw else cell.mean() for cell in cells]
            for cells in falls[seed].values()
        ]
        return peaks[seed] + float(np.mean([np.mean(cells) for cells in kinds]))

    seeds = sorted(falls)
    resampled = [np.mean([one(seeds[place], True) for place in generator.integers(len(seeds), size=len(seeds))]) for _ in range(draws)]
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(np.mean([one(seed, False) for seed in seeds])), float(low), float(high)


def _peak(values: Values, arm: str, seed: str) -> float:
    return values[arm, "forgetting", "all"][seed] + values[arm, "bwt", "all"][seed]
