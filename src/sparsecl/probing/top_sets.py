"""Sets of the K strongest: choosing them, their intersection over union, and what two blind sets share (paper, section Probes).

Used for the neurons of a layer and for the entries of a gradient alike.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.stats import hypergeom
from torch import Tensor


def top_count(neurons: int, top_fraction: float) -> int:
    """K, the whole number of neurons nearest to `top_fraction` of a layer; ValueError unless 1 <= K < neurons."""
    count = round(neurons * top_fraction) if 0 < top_fraction < 1 else 0
    if not 1 <= count < neurons:
        raise ValueError(
            f"top_fraction {top_fraction} of {neurons} neurons does not give a set of 1 to {neurons - 1}; "
            f"choose a fraction from {1 / neurons:.3g} to {(neurons - 1) / neurons:.3g}"
        )
    return count


def top_neurons(scores: Float[Tensor, "*samples neurons"], k: int) -> Bool[Tensor, "*samples neurons"]:
    """Mark the `k` highest scores; among equal ones the lowest index wins. ValueError for NaN."""
    if scores.isnan().any():
        raise ValueError(
            f"{int(scores.isnan().sum())} of {scores.numel()} neuron scores are NaN, wanted none; check the model for diverged weights"
        )
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    chosen, tied = scores >= lowest, scores == lowest
    surplus = chosen.sum(dim=-1, keepdim=True) - k
    if surplus.any():  # rare: rank the ties from the end, the last ones go
        chosen &= ~(tied & (tied.flip(-1).cumsum(dim=-1).flip(-1) <= surplus))
    return chosen


def iou(a: Bool[Tensor, "*samples neurons"], b: Bool[Tensor, "*samples neurons"]) -> Float64[Tensor, "*samples"]:
    """Intersection over union of two sets of neurons, in [0, 1]; NaN where both are empty."""
    return (a & b).sum(dim=-1).double() / (a | b).sum(dim=-1)


def chance_iou(neurons: int, k: int) -> float:
    """Expected IoU of two independent random sets of `k` of `neurons`: E[h / (2k - h)], h hypergeometric.

    Exact; close to p / (2 - p) with p = k / neurons.
    """
    shared = np.arange(max(0, 2 * k - neurons), k + 1)
    return float(np.sum(hypergeom.pmf(shared, neurons, k, k) * shared / (2 * k - shared)))
