"""Statistics over replicates: summaries and paired contrasts (paper, section Replicates and statistics).

The unit of inference is the replicate, in which initialisation, data, batches and calibration all vary;
arms are paired within it. Intervals come from Student's t with n - 1 degrees of freedom and full
precision (pingouin rounds its intervals to two decimals); tests and effect sizes come from pingouin.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pingouin
from scipy.special import stdtr

from sparsecl.intervals import Interval, Values, t_interval
from sparsecl.metrics import RUN_KEYS

NO_VARIANCE = "no variance"
UNDEFINED = "undefined"
TOO_FEW = "fewer than 2 replicates"
_RUN = [key for key in RUN_KEYS if key not in ("base", "seed")]


@dataclass(frozen=True)
class Contrast:
    """Treatment minus control over paired replicates, in the metric's unit."""

    name: str
    metric: str
    estimate: float
    sd: float  # of the paired differences
    low: float
    high: float  # interval of 1 - alpha
    equivalence_low: float
    equivalence_high: float  # interval of 1 - 2 alpha: inside the margin exactly when TOST rejects
    p: float
    p_equivalence: float  # TOST against the margin; NaN without one
    effect: float  # Hedges' g_av: mean difference over the two arms' average SD, small-sample corrected (Lakens 2013)
    n: int
    p_corrected: float = math.nan  # Holm within the family
    flag: str = ""  # why the tests are NaN: NO_VARIANCE, UNDEFINED or TOO_FEW
    margin: float | None = None  # of the TOST

    def p_above(self, bound: float) -> float:
        """One-sided p against a true difference of at most `bound`, by the paired t-test; NaN without variance."""
        return self._lower_tail(bound - self.estimate)

    def p_below(self, bound: float) -> float:
        """One-sided p against a true difference of at least `bound`."""
        return self._lower_tail(self.estimate - bound)

    def _lower_tail(self, distance: float) -> float:
        return float(stdtr(self.n - 1, distance * math.sqrt(self.n) / self.sd)) if self.sd > 0 else math.nan


def summary_table(metrics: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean, sd, ci_low, ci_high, n over replicates per arm, method, order, stage length, domain, kind and metric.

    NaN (an undefined ratio) in any replicate leaves all but n empty: a mean over the rest compares different replicates.
    A single replicate has a mean and no spread.
    """
    keys = [*_RUN, "domain", "kind", "metric"]
    rows, metrics = [], metrics.assign(domain=metrics["domain"].astype(object).fillna(""))  # empty and absent are one in a CSV file
    for key, group in metrics.groupby(keys, dropna=False, sort=True):
        values = group["value"].to_numpy(dtype=float)
        if group["seed"].duplicated().any():
            raise ValueError(f"seeds {group['seed'].tolist()} repeat in {dict(zip(keys, key, strict=True))}; give every replicate once")
        interval = t_interval(values, confidence) if len(values) > 1 and np.isfinite(values).all() else _no_interval(values)
        rows.append((*key, interval.mean, interval.sd, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=[*keys, "mean", "sd", "ci_low", "ci_high", "n"])


def _no_interval(values: np.ndarray) -> Interval:
    return Interval(float(values.mean()), math.nan, math.nan, math.nan, n=len(values))


def paired_contrast(
    treatment: pd.Series, control: pd.Series, name: str, metric: str, margin: float | None = None, alpha: float = 0.05
) -> Contrast:
    """Compare two arms by replicate; both series are indexed by seed.

    Paired t-test, TOST against +-margin (Schuirmann 1987) and Hedges' g by pingouin. Differences without
    variance have no test: p is NaN and `flag` says so; a NaN value flags `undefined`. Unpaired seeds or n < 2 raise.
    """
    unpaired = sorted(set(treatment.index) ^ set(control.index), key=str)
    if unpaired or treatment.index.has_duplicates or control.index.has_duplicates:
        raise ValueError(
            f"{name}, {metric}: seeds {unpaired or list(treatment.index)} are unpaired or repeated; run both arms on every replicate"
        )
    if len(treatment) < 2:
        raise ValueError(f"{name}, {metric}: {len(treatment)} replicate; a paired test needs at least 2")
    x, y = treatment.to_numpy(dtype=float), control.reindex(treatment.index).to_numpy(dtype=float)
    if not np.isfinite(x - y).all():
        return Contrast(name, metric, *[math.nan] * 9, n=len(x), flag=UNDEFINED, margin=margin)
    wide, narrow = t_interval(x - y, 1 - alpha), t_interval(x - y, 1 - 2 * alpha)
    if _constant(x, y):
        return Contrast(name, metric, wide.mean, 0.0, *[math.nan] * 7, n=len(x), flag=NO_VARIANCE, margin=margin)
    p_equivalence = math.nan if margin is None else float(pingouin.tost(x, y, bound=margin, paired=True)["pval"].iloc[0])
    return Contrast(
        name, metric, wide.mean, wide.sd, wide.low, wide.high, narrow.low, narrow.high,
        p=float(pingouin.ttest(x, y, paired=True)["p_val"].iloc[0]),
        p_equivalence=p_equivalence, effect=_hedges(x, y), n=len(x), margin=margin,
    )  # fmt: skip


def contrast_with_zero(values: Values, name: str, metric: str, margin: float | None = None, alpha: float = 0.05) -> Contrast:
    """The mean over replicates of a value that is 0 where there is no effect: a slope, a difference taken before.

    t-test and TOST of one sample; without an effect size, since there is no second arm's spread. Fewer than two values are
    flagged `TOO_FEW`, others as in `paired_contrast`.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or not np.isfinite(x).all():
        return Contrast(name, metric, *[math.nan] * 9, n=len(x), flag=TOO_FEW if len(x) < 2 else UNDEFINED, margin=margin)
    wide, narrow = t_interval(x, 1 - alpha), t_interval(x, 1 - 2 * alpha)
    if _constant(x, np.zeros_like(x)):
        return Contrast(name, metric, wide.mean, 0.0, *[math.nan] * 7, n=len(x), flag=NO_VARIANCE, margin=margin)
    found = Contrast(
        name, metric, wide.mean, wide.sd, wide.low, wide.high, narrow.low, narrow.high,
        p=math.nan, p_equivalence=math.nan, effect=math.nan, n=len(x), margin=margin,
    )  # fmt: skip
    p_equivalence = math.nan if margin is None else max(found.p_above(-margin), found.p_below(margin))
    return replace(found, p=2 * min(found.p_above(0.0), found.p_below(0.0)), p_equivalence=p_equivalence)


def with_holm(contrasts: list[Contrast]) -> list[Contrast]:
    """The contrasts of one family with Holm's (1979) corrected p; NaN stays NaN and does not count."""
    if not contrasts:
        return []
    corrected = holm([contrast.p for contrast in contrasts])
    return [replace(contrast, p_corrected=p) for contrast, p in zip(contrasts, corrected, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) corrected p of one family, in the same order; NaN stays NaN and does not count."""
    return [float(p) for p in pingouin.multicomp(list(p_values), method="holm")[1]] if len(p_values) else []


def common_replicates(treatment: pd.Series, control: pd.Series, what: str) -> tuple[pd.Series, pd.Series]:
    """Both arms' values on the replicates that both ran, by seed.

    Arms may differ in how many replicates they run, but the one with fewer runs the first ones of the other:
    a replicate missing in between was lost, or left out by choice, and ValueError names it.
    """
    fewer, more = sorted((treatment, control), key=len)
    first = sorted(more.index)[: len(fewer)]
    if set(fewer.index) != set(first):
        unpaired = sorted(set(first) - set(fewer.index))
        raise ValueError(f"{what}: seeds {unpaired} are unpaired; run both arms on every replicate, or one of them on the first ones only")
    return treatment.loc[first], control.loc[first]


def _constant(x: Values, y: Values) -> bool:
    """Whether the differences vary by no more than the rounding of their terms."""
    return float(np.ptp(x - y)) <= 8 * np.finfo(float).eps * max(np.abs(x).max(), np.abs(y).max())


def _hedges(x: Values, y: Values) -> float:
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        effect = float(pingouin.compute_effsize(x, y, paired=True, eftype="hedges"))
    return effect if math.isfinite(effect) else math.nan


def metric_by_seed(metrics: pd.DataFrame, arm: str, metric: str, kind: str = "all") -> pd.Series:
    """One arm's values over domains, indexed by seed; empty where there are none. Several runs a seed raise."""
    over_domains = metrics["domain"].isna() | (metrics["domain"] == "")
    rows = metrics[over_domains & (metrics["arm"] == arm) & (metrics["metric"] == metric) & (metrics["kind"] == kind)]
    if rows["seed"].duplicated().any():
        several = {key: sorted(set(rows[key]), key=str) for key in ("method", "order", "stage_steps", "base") if rows[key].nunique() > 1}
        raise ValueError(f"{metric} of {arm} has several values a seed ({several}); select one method, order and stage length")
    return rows.set_index("seed")["value"].astype(float)
