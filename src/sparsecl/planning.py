"""How many replicates a new study needs (paper, section Limitations: only where a verdict is undecided)."""

import math

import pingouin
from scipy import stats

LARGEST_PLAN = 100_000  # replicates


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
