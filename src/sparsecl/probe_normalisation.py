"""Overlaps and cosines of the probes between chance and ceiling (paper, section Probes; H4). No torch: tests and figures read tables.

A raw overlap or cosine changes with the number of neurons or parameters for trivial reasons; these two do not.
"""

import numpy as np
import pandas as pd

Numbers = float | np.ndarray | pd.Series


def normalised_overlap(value: Numbers, null: Numbers, ceiling: Numbers, smallest_range: float = 0.05) -> np.ndarray | np.float64:
    """(value - null) / (ceiling - null): 0 is chance, 1 is what a domain shares with itself.

    Takes numbers or columns. NaN where the ceiling is less than `smallest_range` above the null: such a
    domain's own set is not stable, and the ratio would be noise.
    """
    value, null, ceiling = (np.asarray(column, dtype=float) for column in (value, null, ceiling))
    usable = ceiling - null >= smallest_range
    return np.where(usable, (value - null) / np.where(usable, ceiling - null, 1.0), np.nan)[()]


def disattenuated_cosine(
    value: Numbers, null: Numbers, ceiling: Numbers, smallest_ceiling: float = 0.1, nulls_below_ceiling: float = 5.0
) -> np.ndarray | np.float64:
    """value / ceiling: the cosine of two domains' gradients without the noise of finite batches (Spearman 1904).

    Noise in the two gradients shrinks `value` and `ceiling`, the split-half cosine within a domain, by the same factor.
    `null` is 1 / sqrt(parameters), the standard deviation of a cosine of random directions. NaN where the ceiling is below
    `smallest_ceiling` or below `nulls_below_ceiling` times the null: the gradient itself is not measured there.
    """
    value, null, ceiling = (np.asarray(column, dtype=float) for column in (value, null, ceiling))
    usable = (ceiling >= smallest_ceiling) & (ceiling >= nulls_below_ceiling * null)
    return np.where(usable, value / np.where(usable, ceiling, 1.0), np.nan)[()]
