"""From scores to masks: keep the best weights of a layer under a topology, and check masks (paper, section Topologies)."""

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from sparsecl.topologies import Blocks, NofM, Topology, Unstructured, check_size

UNSTRUCTURED_SLACK = 0.01  # SparseGPT's threshold over many rows hits a layer's density only nearly


def select(topology: Topology, score: Float[Tensor, "outputs inputs"], density: float) -> Bool[Tensor, "outputs inputs"]:
    """Keep the weights of the highest score; of equal scores the lower index stays.

    Raises TopologyMisfit where the size does not divide and ValueError where a score is not finite.
    """
    check_size(topology, "the layer", *score.shape)
    if not torch.isfinite(score).all():
        raise ValueError(f"{int((~torch.isfinite(score)).sum())} scores are not finite; look at the weights and the calibration rows")
    if isinstance(topology, NofM):
        return _highest(score.reshape(-1, topology.group), topology.kept).view_as(score)
    if isinstance(topology, Blocks):
        return keep_blocks(topology, tiles(topology, score).sum((2, 3)), density)
    return _highest(score, topology.kept_of(score.shape[1], density))


def tiles(blocks: Blocks, values: Num[Tensor, "outputs inputs"] | Bool[Tensor, "outputs inputs"]) -> Tensor:
    """A layer as (block rows, blocks, size, size)."""
    rows, inputs = values.shape
    return values.reshape(rows // blocks.size, blocks.size, inputs // blocks.size, blocks.size).permute(0, 2, 1, 3)


def keep_blocks(blocks: Blocks, score: Float[Tensor, "block_rows blocks"], density: float) -> Bool[Tensor, "outputs inputs"]:
    """Keep whole blocks of the highest score, equally many in every block row."""
    kept = _highest(score, blocks.blocks_kept(score.shape[1] * blocks.size, density))
    return kept.repeat_interleave(blocks.size, 0).repeat_interleave(blocks.size, 1)


def violation(topology: Topology, mask: Bool[Tensor, "outputs inputs"], density: float) -> str | None:
    """What is wrong with a mask that claims a topology; None where nothing is."""
    check_size(topology, "the mask", *mask.shape)
    match topology:
        case NofM():
            counts, wanted, unit = mask.reshape(-1, topology.group).sum(1), topology.kept, f"weights of a group of {topology.group}"
        case Blocks():
            filled = tiles(topology, mask).sum((2, 3))
            if partial := int(((filled > 0) & (filled < topology.size**2)).sum()):
                return f"{partial} of {filled.numel()} blocks are kept in part"
            counts, wanted, unit = (
                (filled > 0).sum(1),
                topology.blocks_kept(mask.shape[1], density),
                f"of {filled.shape[1]} blocks of a row",
            )
        case Unstructured():
            kept, most = float(mask.float().mean()), density + UNSTRUCTURED_SLACK + 1 / mask.shape[1]
            if kept > most:
                return f"{kept:.3f} of the weights are kept, more than {density:g}"
            return None if kept else "no weight is kept"
    wrong = int((counts != wanted).sum())
    return f"{wrong} of {len(counts)} have not {wanted} kept {unit}" if wrong else None


def completed(topology: Topology, nonzero: Bool[Tensor, "outputs inputs"], density: float) -> Bool[Tensor, "outputs inputs"]:
    """The mask behind non-zero weights: a weight that is kept but happens to be zero belongs to it.

    Only fills up: where too many weights are non-zero the result keeps them, and `violation` finds it.
    """
    match topology:
        case NofM():
            filled = _highest(nonzero.reshape(-1, topology.group).float(), topology.kept).view_as(nonzero)
        case Blocks():
            partly = tiles(topology, nonzero).any(3).any(2)
            filled = keep_blocks(topology, partly.float(), density)
        case Unstructured():
            return nonzero
    return filled | nonzero


def _highest(scores: Float[Tensor, "rows entries"], count: int) -> Bool[Tensor, "rows entries"]:
    """True at the `count` highest entries of each row; equal ones go to the lower index, on every device."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order, True)
