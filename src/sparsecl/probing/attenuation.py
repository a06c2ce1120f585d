"""What a cosine of two noisy gradients would be without the noise (paper, section Gradient overlap). Reads tables alone."""

import numpy as np
import pandas as pd

Numbers = float | np.ndarray | pd.Series

LEAST_SIGNAL = 5.0  # times what the noise of two halves adds to their cosine by chance


def disattenuated_cosine(value: Numbers, ceiling: Numbers, effective_dimension: Numbers) -> np.ndarray | np.float64:
    """value / ceiling, the cosine of two domains' expected gradients; absent (NaN) where the ceiling tells too little.

    Noise shrinks the cosine of two mean gradients by the root of the product of their reliabilities (Spearman 1904), and the
    ceiling, the geometric mean of the cosines of each domain's own halves, estimates just that root. Of a half with
    ceiling c the share 1 - c is noise, whose cosine with another half's noise has the standard deviation
    1 / sqrt(effective_dimension): wanted is c >= LEAST_SIGNAL (1 - c) / sqrt(effective_dimension). Takes numbers or columns.
    The ratio is not bounded by 1: it errs on both sides.
    """
    value, ceiling, dimension = (np.asarray(column, dtype=float) for column in (value, ceiling, effective_dimension))
    usable = (ceiling > 0) & (ceiling >= LEAST_SIGNAL * (1 - ceiling) / np.sqrt(dimension))
    return np.where(usable, value / np.where(usable, ceiling, 1.0), np.nan)[()]
