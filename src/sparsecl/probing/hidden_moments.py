"""Sums over tokens from which the drift of hidden states follows (paper, section Representation drift).

Two sides' states at the same tokens, before and after, are summed up batch by batch, so that memory does not grow with
their number: per layer a few matrices of width x width. All sums are in float64, on the device of the states.
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

BEFORE, AFTER = 0, 1  # the two sides
FEWEST_TOKENS = 4  # of HSIC_1, which divides by n - 3

Layers = Float64[Tensor, " layers"]
Scatter = Float64[Tensor, "layers width width"]
States = Float[Tensor, "layers tokens width"]


class TokenLengths:
    """Counts, sums and squared lengths of both sides' states h_0 and h_1: what HSIC_1 needs beside the second moments."""

    def __init__(self, layers: int, width: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(layers, *shape, dtype=torch.float64, device=device)

        self.tokens = 0
        self.sums = zeros(2, width)  # sum h_i
        self.squares = zeros(2)  # sum |h_i|^2
        self.products = zeros(2, 2)  # sum |h_i|^2 |h_j|^2
        self.weighted = zeros(2, 2, width)  # sum |h_i|^2 h_j

    def update(self, before: States, after: States) -> None:
        """Add tokens; both sides hold the same ones in the same order."""
        squares = torch.stack([side.square().sum(dim=2) for side in (before, after)], dim=1)
        self.tokens += before.shape[1]
        self.squares += squares.sum(dim=2)
        self.products += squares @ squares.mT
        for j, side in enumerate((before, after)):
            self.sums[:, j] += side.sum(dim=1)
            self.weighted[:, :, j] += squares @ side


class HiddenMoments:
    """Second moments of both sides, and their `TokenLengths`.

    The second moments are kept of `before` and of the change `after - before`: a small displacement taken from the moments of
    the two sides themselves would be a small difference of large numbers.
    """

    def __init__(self, layers: int, width: int, device: torch.device | str = "cpu") -> None:
        self.lengths = TokenLengths(layers, width, device)
        self._before, self._to_change, self.change = (
            torch.zeros(layers, width, width, dtype=torch.float64, device=device) for _ in range(3)
        )  # sum h_0 h_0^T, sum h_0 (h_1 - h_0)^T, sum (h_1 - h_0)(h_1 - h_0)^T

    @property
    def tokens(self) -> int:
        return self.lengths.tokens

    def update(self, before: States, after: States) -> None:
        """Add tokens; both sides hold the same ones in the same order."""
        before, after = (side.to(self.change.device, torch.float64) for side in (before, after))
        change = after - before
        self._before += before.mT @ before
        self._to_change += before.mT @ change
        self.change += change.mT @ change
        self.lengths.update(before, after)

    def second(self, i: int, j: int) -> Scatter:
        """sum h_i h_j^T over the tokens, not centred; i and j are BEFORE or AFTER."""
        if i == j:
            return self._before if i == BEFORE else self._before + self._to_change + self._to_change.mT + self.change
        return self._before + (self._to_change if i == BEFORE else self._to_change.mT)

    def scatter(self, side: int) -> Scatter:
        """sum (h - mean)(h - mean)^T of one side."""
        total = self.lengths.sums[:, side]
        return self.second(side, side) - total[:, :, None] * total[:, None, :] / self.tokens

    def hsic(self, i: int, j: int) -> Layers:
        """`unbiased_hsic` of the linear kernels of sides i and j."""
        return unbiased_hsic(self.second(i, j), self.lengths, i, j)


def unbiased_hsic(second: Scatter, lengths: TokenLengths, i: int, j: int) -> Layers:
    """HSIC_1 of the linear kernels K = h_i h_i^T and L = h_j h_j^T (Song et al. 2012, eq. 5), from sums over tokens.

    `second` is C = sum h_i h_j^T. With K~ and L~ the kernels without their diagonals, a and b these diagonals, s the sums of h:
    tr K~L~ = |C|^2 - a.b; 1'K~1 = |s_i|^2 - sum a; 1'K~L~1 = s_i'C s_j - (sum a h_j).s_j - (sum b h_i).s_i + a.b.
    Not changed by a shift of either side. ValueError below 4 tokens.
    """
    n = lengths.tokens
    if n < FEWEST_TOKENS:
        raise ValueError(f"the unbiased HSIC of {n} tokens is not defined; read at least {FEWEST_TOKENS}")
    first, other, product = lengths.sums[:, i], lengths.sums[:, j], lengths.products[:, i, j]
    trace = second.square().sum(dim=(1, 2)) - product
    totals = (first.square().sum(dim=1) - lengths.squares[:, i]) * (other.square().sum(dim=1) - lengths.squares[:, j])
    chain = torch.einsum("la,lab,lb->l", first, second, other) + product
    chain -= (lengths.weighted[:, i, j] * other).sum(dim=1) + (lengths.weighted[:, j, i] * first).sum(dim=1)
    return (trace + totals / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)) / (n * (n - 3))
