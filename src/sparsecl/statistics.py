"""Statistics over replicates: summaries, paired contrasts, bootstrap, ANOVA, planning (paper, section Statistics).

The unit of inference is the replicate, in which initialisation, data, batches and calibration all vary;
arms are paired within it. Intervals come from Student's t with n - 1 degrees of freedom and full
precision (pingouin rounds its intervals to two decimals); tests and effect sizes come from pingouin.
"""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pingouin
from jaxtyping import Float
from scipy import stats

from sparsecl.intervals import Interval, Values, t_interval
from sparsecl.metrics import RUN_KEYS

Draws = Float[np.ndarray, "draws replicates"]
NO_VARIANCE = "no variance"
UNDEFINED = "undefined"
LARGEST_PLAN = 100_000  # replicates
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
    flag: str = ""  # why the tests are NaN: NO_VARIANCE or UNDEFINED


def summary_table(metrics: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean, sd, ci_low, ci_high, n over replicates per arm, method, order, stage length, domain, kind and metric.

    NaN (an undefined ratio) in any replicate leaves all but n empty: a mean over the rest compares different replicates.
    """
    keys = [*_RUN, "domain", "kind", "metric"]
    rows, metrics = [], metrics.assign(domain=metrics["domain"].astype(object).fillna(""))  # empty and absent are one in a CSV file
    for key, group in metrics.groupby(keys, dropna=False, sort=True):
        values = group["value"].to_numpy(dtype=float)
        if group["seed"].duplicated().any():
            raise ValueError(f"seeds {group['seed'].tolist()} repeat in {dict(zip(keys, key, strict=True))}; give every replicate once")
        interval = t_interval(values, confidence) if np.isfinite(values).all() else Interval(*[math.nan] * 4, n=len(values))
        rows.append((*key, interval.mean, interval.sd, interval.low, interval.high, interval.n))
    return pd.DataFrame(rows, columns=[*keys, "mean", "sd", "ci_low", "ci_high", "n"])


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
        return Contrast(name, metric, *[math.nan] * 9, n=len(x), flag=UNDEFINED)
    wide, narrow = t_interval(x - y, 1 - alpha), t_interval(x - y, 1 - 2 * alpha)
    if _constant(x, y):
        return Contrast(name, metric, wide.mean, 0.0, *[math.nan] * 7, n=len(x), flag=NO_VARIANCE)
    p_equivalence = math.nan if margin is None else float(pingouin.tost(x, y, bound=margin, paired=True)["pval"].iloc[0])
    return Contrast(
        name, metric, wide.mean, wide.sd, wide.low, wide.high, narrow.low, narrow.high,
        p=float(pingouin.ttest(x, y, paired=True)["p_val"].iloc[0]),
        p_equivalence=p_equivalence, effect=_hedges(x, y), n=len(x),
    )  # fmt: skip


def with_holm(contrasts: list[Contrast]) -> list[Contrast]:
    """The contrasts of one family with Holm's (1979) corrected p; NaN stays NaN and does not count."""
    if not contrasts:
        return []
    corrected = pingouin.multicomp([contrast.p for contrast in contrasts], method="holm")[1]
    return [replace(contrast, p_corrected=float(p)) for contrast, p in zip(contrasts, corrected, strict=True)]


def _constant(x: Values, y: Values) -> bool:
    """Whether the differences vary by no more than the rounding of their terms."""
    return float(np.ptp(x - y)) <= 8 * np.finfo(float).eps * max(np.abs(x).max(), np.abs(y).max())


def _hedges(x: Values, y: Values) -> float:
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")
        effect = float(pingouin.compute_effsize(x, y, paired=True, eftype="hedges"))
    return effect if math.isfinite(effect) else math.nan


def bootstrap_forgetting(
    items: pd.DataFrame, metrics: pd.DataFrame, treatment: str, control: str, kind: str = "all", draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Hierarchical bootstrap of the difference in forgetting: (estimate, low, high), percentile interval of 95 %.

    Draws replicates, then items within each domain and kind of each drawn replicate, the same items for
    both arms (Davison and Hinkley 1997, section 3.8). Items are known at stages i and T, so the fall from
    R[i, i] is resampled; what an earlier or later peak adds (forgetting + BWT, from `metrics`) is kept as
    measured in the replicate. `items` and `metrics` hold one method, order and stage length per arm. With
    few replicates a percentile interval is too narrow: it stands beside the t-interval, not in its place.
    """
    falls = _item_differences(items, treatment, control, kind)
    peaks = _peak_gain(metrics, treatment, kind) - _peak_gain(metrics, control, kind)
    if len(falls) < 2 or set(falls.index) != set(peaks.index) or falls.isna().any(axis=None):
        raise ValueError(
            f"{treatment} - {control}: items hold seeds {list(falls.index)}, metrics {list(peaks.index)}; both need the same seeds, "
            "at least 2, each with the same domains and kinds. Compile the tables again"
        )
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(falls), size=(draws, len(falls)))
    estimates, resampled = peaks.loc[falls.index].to_numpy(), peaks.loc[falls.index].to_numpy()[chosen]
    kinds = falls.columns.get_level_values("domain").value_counts()
    for domain, item_kind in falls.columns:
        weight, cell = 1 / (len(kinds) * kinds[domain]), falls[domain, item_kind].tolist()
        estimates = estimates + weight * np.array([np.mean(values) for values in cell])
        resampled = resampled + weight * _resampled_means(cell, chosen, generator)
    low, high = np.quantile(resampled.mean(axis=1), [0.025, 0.975])
    return float(estimates.mean()), float(low), float(high)


def _item_differences(items: pd.DataFrame, treatment: str, control: str, kind: str) -> pd.DataFrame:
    """Each item's fall from its own to the last stage, treatment minus control: arrays of -2..2 per seed (rows), domain and kind."""
    items = items[items["arm"].isin([treatment, control])]
    items = items if kind == "all" else items[items["kind"] == kind]
    keys = ["seed", "domain", "kind", "item"]
    ends = items.groupby(["arm", *keys])["stage"].agg(["min", "max"])
    first_and_last = items.merge(ends.reset_index(), on=["arm", *keys])
    first_and_last = first_and_last[first_and_last["min"] < first_and_last["max"]]  # the last domain cannot be forgotten
    sign = np.where(first_and_last["stage"] == first_and_last["min"], 1, -1) * np.where(first_and_last["arm"] == treatment, 1, -1)
    fall = first_and_last.assign(fall=sign * first_and_last["correct"].astype(int)).groupby(keys)["fall"].agg(["sum", "size"])
    if fall.empty or (fall["size"] != 4).any():
        bad = "all" if fall.empty else fall.index[fall["size"] != 4][0]
        raise ValueError(
            f"items of {treatment} and {control}: {bad} is not there at own and last stage in both arms; score both arms on the same items"
        )
    cells = {key: values.to_numpy() for key, values in fall["sum"].groupby(["seed", "domain", "kind"])}
    return pd.Series(cells, dtype=object).rename_axis(["seed", "domain", "kind"]).unstack(["domain", "kind"])


def _resampled_means(parts: list[np.ndarray], chosen: np.ndarray, generator: np.random.Generator) -> Draws:
    """Means of items redrawn within each chosen replicate; multinomial counts of the five values a difference can take."""
    support = np.arange(-2, 3)
    shares = np.array([[np.mean(part == value) for value in support] for part in parts])
    sizes = np.array([len(part) for part in parts])
    return generator.multinomial(sizes[chosen], shares[chosen]) @ support / sizes[chosen]


def _peak_gain(metrics: pd.DataFrame, arm: str, kind: str) -> pd.Series:
    """Forgetting + BWT by seed: how far the highest earlier score stands above the own score."""
    return metric_by_seed(metrics, arm, "forgetting", kind) + metric_by_seed(metrics, arm, "bwt", kind)


def metric_by_seed(metrics: pd.DataFrame, arm: str, metric: str, kind: str = "all") -> pd.Series:
    """One arm's values over domains, indexed by seed; empty where there are none. Several runs a seed raise."""
    over_domains = metrics["domain"].isna() | (metrics["domain"] == "")
    rows = metrics[over_domains & (metrics["arm"] == arm) & (metrics["metric"] == metric) & (metrics["kind"] == kind)]
    if rows["seed"].duplicated().any():
        several = {key: sorted(set(rows[key]), key=str) for key in ("method", "order", "stage_steps", "base") if rows[key].nunique() > 1}
        raise ValueError(f"{metric} of {arm} has several values a seed ({several}); select one method, order and stage length")
    return rows.set_index("seed")["value"].astype(float)


def topology_by_stage_anova(curves: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Repeated-measures ANOVA of topology x stage over replicates (H3); columns seed, topology, stage and `value`.

    Greenhouse-Geisser corrected p in `p_GG_corr`, generalised eta squared in `ng2`. Missing or repeated
    cells raise ValueError: pingouin would drop the whole replicate without a word.
    """
    cells = curves.dropna(subset=[value]).groupby(["seed", "topology", "stage"]).size()
    levels = [sorted(set(curves[key]), key=str) for key in ("seed", "topology", "stage")]
    cells = cells.reindex(pd.MultiIndex.from_product(levels), fill_value=0)
    if (cells != 1).any():
        wrong = [f"seed {s}, {t}, stage {k}: {count}" for (s, t, k), count in cells[cells != 1].items()]
        raise ValueError(
            f"every replicate needs one value a topology and stage; not so in {wrong[:5]} ({len(wrong)} cells). Run what is missing"
        )
    if any(len(level) < 2 for level in levels):
        raise ValueError(f"{[len(level) for level in levels]} seeds, topologies, stages: an ANOVA needs at least 2 of each")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pingouin.rm_anova(curves, dv=value, within=["topology", "stage"], subject="seed", detailed=True)


def upper_sd(sd: float, n: int, confidence: float = 0.8) -> float:
    """Upper confidence limit of a standard deviation; a pilot's own sd plans too small a study half the time (Browne 1995)."""
    return sd * math.sqrt((n - 1) / stats.chi2.ppf(1 - confidence, n - 1))


def planned_replicates(sd: float, margin: float, alpha: float = 0.05, power: float = 0.9) -> int:
    """Replicates with which a paired t-test finds a true difference of exactly the margin.

    Power is taken at the margin, never at an observed effect (Hoenig and Heisey 2001). `sd` is that of the paired differences.
    """
    if not (sd > 0 and margin > 0):
        raise ValueError(f"sd {sd} and margin {margin} must both be above 0 to plan a study")
    # The z-test needs fewer than the t-test, so the search starts just below its answer.
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    n = max(2, math.floor((z * sd / margin) ** 2))
    if n > LARGEST_PLAN:
        raise ValueError(f"more than {LARGEST_PLAN} replicates for sd {sd} at margin {margin}; choose a wider margin or a quieter measure")
    while _power(n, margin / sd, alpha) < power:
        n += 1
    return n


def _power(n: int, effect: float, alpha: float) -> float:
    """Power of the two-sided paired t-test at a standardised difference (pingouin solves for n to NaN where the difference is tiny)."""
    return float(pingouin.power_ttest(d=effect, n=n, alpha=alpha, contrast="paired"))
