"""Wanda and SparseGPT for square blocks, inside llmcompressor's sequential pipeline (paper, section Conversion).

llmcompressor knows N:M and unstructured masks. These modifiers collect the same statistics by the same
hooks and differ only in what they keep, so they too convert layer by layer, whatever the model's size.
"""

import torch
from compressed_tensors.utils import align_module_device, update_offload_parameter
from jaxtyping import Bool, Float
from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
from torch import Tensor, nn

from sparsecl.mask_selection import keep_blocks, select, tiles
from sparsecl.topologies import Blocks, parse_topology


class _LayerByLayer:
    """What both modifiers share: replace the weight of every layer that has seen calibration rows by `converted`."""

    def compress_modules(self) -> None:
        for layer in list(self._num_samples):
            with torch.no_grad(), align_module_device(layer):
                update_offload_parameter(layer, "weight", self.converted(layer, parse_topology(self.topology)))
            del self._num_samples[layer]


class BlockWandaModifier(_LayerByLayer, WandaPruningModifier):
    """Wanda with blocks: the score of a block is the sum of |W_ij| ||X_j|| over its weights."""

    topology: str
    density: float

    def converted(self, layer: nn.Module, blocks: Blocks) -> Float[Tensor, "outputs inputs"]:
        score = layer.weight.abs().float() * self._row_scalars.pop(layer).sqrt()
        return layer.weight.masked_fill(~select(blocks, score, self.density), 0.0)


class BlockSparseGPTModifier(_LayerByLayer, SparseGPTModifier):
    """SparseGPT with blocks: the mask is chosen first, then all kept weights absorb what was removed.

    A balanced block row cannot be chosen from left to right as SparseGPT does within a group of M, so every
    block is judged by what removing it alone would cost (`block_saliency`). SparseGPT's column-wise update is a
    way around one inverse per row; here the rows of a block row share their mask, so the best weights are exact (`refitted`).
    """

    topology: str
    density: float

    def converted(self, layer: nn.Module, blocks: Blocks) -> Float[Tensor, "outputs inputs"]:
        hessian = damped(self._hessians.pop(layer), self.dampening_frac)
        weight = layer.weight.float()
        kept = keep_blocks(blocks, block_saliency(weight, hessian, blocks), self.density)
        return refitted(weight, kept, hessian, blocks).to(layer.weight.dtype)


def damped(hessian: Float[Tensor, "inputs inputs"], share: float) -> Float[Tensor, "inputs inputs"]:
    """H with `share` of its mean diagonal added; an input that is always zero gets 1, so that H has an inverse."""
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1.0
    diagonal += share * diagonal.mean()
    return hessian


def block_saliency(
    weight: Float[Tensor, "outputs inputs"], hessian: Float[Tensor, "inputs inputs"], blocks: Blocks
) -> Float[Tensor, "block_rows blocks"]:
    """Least increase of the layer's squared output error when one block is removed and all other weights adapt.

    For the inputs B of a block and its rows w: sum over rows of w_B^T ([H^-1]_BB)^-1 w_B, the optimal brain
    surgeon for groups (Hassibi and Stork 1993; Kurtic et al. 2022, equation 4).
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    pieces = tiles(blocks, weight)
    count = pieces.shape[1]
    places = inverse.reshape(count, blocks.size, count, blocks.size)
    groups = torch.stack([places[block, :, block, :] for block in range(count)])
    return torch.einsum("rbij,bjk,rbik->rb", pieces, torch.linalg.inv(groups), pieces)


def refitted(
    weight: Float[Tensor, "outputs inputs"],
    kept: Bool[Tensor, "outputs inputs"],
    hessian: Float[Tensor, "inputs inputs"],
    blocks: Blocks,
) -> Float[Tensor, "outputs inputs"]:
    """The kept weights of least squared output error: W'_K = (W H)_K (H_KK)^-1, one solution for each block row."""
    found = torch.zeros_like(weight)
    for start in range(0, weight.shape[0], blocks.size):
        rows, inputs = slice(start, start + blocks.size), kept[start]
        factor = torch.linalg.cholesky(hessian[inputs][:, inputs])
        found[rows, inputs] = torch.cholesky_solve((weight[rows] @ hessian[:, inputs]).T, factor).T
    return found
