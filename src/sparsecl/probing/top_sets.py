"""Sets of the K strongest: choosing them, their intersection over union, and what two blind sets share (paper, section Probes).

Used for the neurons of a layer and for the entries of a gradient alike.
"""

from collections.abc import Collection

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64, UInt8
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
    """Mark the `k` highest scores, 1 <= k < neurons; among equal ones the lowest index wins. ValueError for NaN."""
    return nested_top_neurons(scores, [k])[k]


def nested_top_neurons(scores: Float[Tensor, "*samples neurons"], counts: Collection[int]) -> dict[int, Bool[Tensor, "*samples neurons"]]:
    """`top_neurons` for every k of `counts`, by k: a smaller set is looked for in the larger one."""
    marked, highest = {}, scores
    for k in sorted(counts, reverse=True):
        highest = _next_and_highest(highest, k)
        following, lowest = highest[..., :1], highest[..., 1:].amin(dim=-1, keepdim=True)
        if lowest.isnan().any():  # NaN counts as the highest number, so that it is among any k
            raise ValueError(
                f"{int(scores.isnan().sum())} of {scores.numel()} neuron scores are NaN, wanted none; check the model for diverged weights"
            )
        marked[k] = scores >= lowest
        if (crowded := (following == lowest)[..., 0]).any():  # rare
            marked[k][crowded] &= ~_surplus(scores[crowded], lowest[crowded], k)
    return marked


def _next_and_highest(scores: Float[Tensor, "*samples neurons"], k: int) -> Float[Tensor, "*samples {k+1}"]:
    """The next highest score, then the `k` highest in any order."""
    if scores.device.type != "cpu" or scores.element_size() < 4:
        return scores.topk(k + 1, dim=-1).values.flip(-1)
    # NumPy's partition is vectorised: five times as fast as topk of PyTorch on a CPU.
    return torch.from_numpy(np.partition(scores.detach().numpy(), -k - 1, axis=-1)[..., -k - 1 :])


def _surplus(scores: Float[Tensor, "samples neurons"], lowest: Float[Tensor, "samples 1"], k: int) -> Bool[Tensor, "samples neurons"]:
    """The last of the scores equal to the k-th highest: those beyond the `k`."""
    tied = scores == lowest
    beyond = (scores >= lowest).sum(dim=-1, keepdim=True) - k
    return tied & (tied.flip(-1).cumsum(dim=-1).flip(-1) <= beyond)


def packed_sets(marked: Bool[Tensor, "*samples neurons"]) -> UInt8[np.ndarray, "*samples bytes"]:
    """Sets of neurons as bits, an eighth of the memory, for `shared_count`."""
    return np.packbits(marked.cpu().numpy(), axis=-1)


def shared_count(a: UInt8[np.ndarray, "*samples bytes"], b: UInt8[np.ndarray, "*samples bytes"]) -> Int64[np.ndarray, "*samples"]:
    """How many neurons two packed sets share."""
    return np.bitwise_count(a & b).sum(axis=-1, dtype=np.int64)


def iou(a: Bool[Tensor, "*samples neurons"], b: Bool[Tensor, "*samples neurons"]) -> Float64[Tensor, "*samples"]:
    """Intersection over union of two sets of neurons, in [0, 1]; NaN where both are empty."""
    return (a & b).sum(dim=-1).double() / (a | b).sum(dim=-1)


def chance_iou(neurons: int, k: int) -> float:
    """Expected IoU of two independent random sets of `k` of `neurons`: E[h / (2k - h)], h hypergeometric.

    Exact; close to p / (2 - p) with p = k / neurons.
    """
    shared = np.arange(max(0, 2 * k - neurons), k + 1)
    return float(np.sum(hypergeom.pmf(shared, neurons, k, k) * shared / (2 * k - shared)))
