"""t intervals over replicates, for tables and figures (paper, section Replicates and statistics).

Apart from `statistics`, because figures need no more than this, and pingouin and scipy.stats take seconds to import.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import stdtrit

Values = Float[np.ndarray, "replicates"]


@dataclass(frozen=True)
class Interval:
    """A mean over replicates with its standard deviation and t-interval."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def t_interval(values: Values, confidence: float = 0.95) -> Interval:
    """Mean, standard deviation (n - 1) and t-interval; raises ValueError below 2 values or on NaN."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least 2 finite values, seen {values.tolist()}; run more replicates or find the absent one")
    mean, sd = float(values.mean()), float(values.std(ddof=1))
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * sd / math.sqrt(len(values))
    return Interval(mean, sd, mean - half, mean + half, len(values))
