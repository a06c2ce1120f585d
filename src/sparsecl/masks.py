"""Masks: the sparse topology as a first-class artefact and a physical constraint (paper, section Conversion).

A mask says for every weight of the pruned layers whether it may be non-zero. Masks are stored with one
bit a weight beside a manifest, and every step of the chain asserts that no masked weight is non-zero.
``N:M`` means N non-zeros among M consecutive inputs of a row.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from sparsecl.records import BrokenFile, read_record, sha256_of, write_atomically, write_record


class TopologyViolation(AssertionError):
    """A masked weight is non-zero, or a mask has not the pattern it claims."""


@dataclass(frozen=True)
class Masks:
    """The masks of one sparse arm: layer name -> True where a weight may live."""

    topology: str
    algorithm: str
    calibration: str  # sha256 of the calibration rows
    layers: Mapping[str, Bool[Tensor, "outputs inputs"]]

    @property
    def kept(self) -> int:
        """Weights that may be non-zero."""
        return sum(int(mask.sum()) for mask in self.layers.values())

    @property
    def size(self) -> int:
        """Weights of the masked layers."""
        return sum(mask.numel() for mask in self.layers.values())

    @property
    def density(self) -> float:
        """Attained fraction of kept weights."""
        return self.kept / self.size


def prunable_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers a conversion prunes: every linear layer but the head (embeddings and norms are none)."""
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and not name.endswith("lm_head")}


def masks_of_zeros(model: nn.Module, topology: str, algorithm: str, calibration: str) -> Masks:
    """Read the masks off a converted model and check that they have the pattern `topology` claims."""
    layers = {name: layer.weight.detach() != 0 for name, layer in prunable_layers(model).items()}
    masks = Masks(topology, algorithm, calibration, {name: _completed(mask, topology) for name, mask in layers.items()})
    assert_pattern(masks)
    return masks


def _completed(mask: Bool[Tensor, "outputs inputs"], topology: str) -> Bool[Tensor, "outputs inputs"]:
    """Fill groups whose kept weights happen to be zero (a dead weight is kept, not masked): lowest index first."""
    match = re.fullmatch(r"(\d+)of(\d+)", topology)
    if not match:
        return mask
    kept, group = int(match[1]), int(match[2])
    groups = mask.view(-1, group)
    order = torch.argsort(groups.to(torch.int8), dim=1, descending=True, stable=True)
    short = groups.sum(1) < kept
    filled = groups.clone()
    filled[short] = torch.zeros_like(groups[short]).scatter_(1, order[short, :kept], True)
    return filled.view_as(mask)


def assert_pattern(masks: Masks) -> None:
    """Raise TopologyViolation where a layer has not exactly N kept weights in each group of M."""
    match = re.fullmatch(r"(\d+)of(\d+)", masks.topology)
    if not match:
        raise ValueError(f"topology {masks.topology!r} cannot be checked; known here: NofM such as 2of4")
    kept, group = int(match[1]), int(match[2])
    for name, mask in masks.layers.items():
        if mask.shape[1] % group:
            raise TopologyViolation(f"{name}: {mask.shape[1]} inputs do not divide into groups of {group}; choose another topology")
        counts = mask.view(-1, group).sum(1)
        if wrong := int((counts != kept).sum()):
            raise TopologyViolation(f"{name}: {wrong} of {len(counts)} groups have not {kept} of {group} kept weights; convert again")


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every masked weight to exactly +0.0, in place."""
    layers = prunable_layers(model)
    with torch.no_grad():
        for name, mask in masks.layers.items():
            layers[name].weight.masked_fill_(~mask.to(layers[name].weight.device), 0.0)


def assert_masks(model: nn.Module, masks: Masks | None, moment: str) -> None:
    """Raise TopologyViolation naming layer, count and `moment` where a masked weight is non-zero; dense arms pass."""
    if masks is None:
        return
    layers = prunable_layers(model)
    if layers.keys() != masks.layers.keys():
        raise TopologyViolation(f"{moment}: model and masks name different layers, e.g. {sorted(layers.keys() ^ masks.layers.keys())[:3]}")
    for name, mask in masks.layers.items():
        violations = int((layers[name].weight.detach()[~mask.to(layers[name].weight.device)] != 0).sum())
        if violations:
            raise TopologyViolation(
                f"{moment}: {violations} masked weights of {name} are non-zero; the topology was broken, start again from S0"
            )


@contextmanager
def masked_gradients(model: nn.Module, masks: Masks | None) -> Iterator[None]:
    """Zero the gradients of masked weights as they are made; build the optimizer inside, after masking.

    With zero gradients AdamW's moments stay zero, and decoupled weight decay keeps a zero at zero.
    """
    handles = []
    if masks is not None:
        layers = prunable_layers(model)
        for name, mask in masks.layers.items():
            weight = layers[name].weight
            handles.append(weight.register_post_accumulate_grad_hook(_gradient_mask(mask.to(weight.device, weight.dtype))))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gradient_mask(kept: Tensor):
    def mask_gradient(parameter: nn.Parameter) -> None:  # the hook must return None
        parameter.grad.mul_(kept)

    return mask_gradient


def save_masks(masks: Masks, path: Path) -> None:
    """Write ``<path>.safetensors`` (one bit a weight) and then its manifest ``<path>.json``."""
    packed = {name: np.packbits(mask.cpu().numpy()) for name, mask in masks.layers.items()}
    bits = path.with_name(path.name + ".safetensors")
    write_atomically(bits, lambda temporary: save_file(packed, temporary))
    manifest = {
        "topology": masks.topology,
        "algorithm": masks.algorithm,
        "calibration_sha256": masks.calibration,
        "density": masks.density,
        "shapes": {name: list(mask.shape) for name, mask in masks.layers.items()},
        "bits_sha256": sha256_of(bits),
    }
    write_record(path.with_name(path.name + ".json"), manifest)


def load_masks(path: Path) -> Masks:
    """Read masks; raise BrokenFile where bits or manifest were changed, TopologyViolation where the pattern is wrong."""
    manifest = read_record(path.with_name(path.name + ".json"))
    bits = path.with_name(path.name + ".safetensors")
    if not bits.is_file() or sha256_of(bits) != manifest["bits_sha256"]:
        raise BrokenFile(f"{bits} is missing or not the file its manifest describes; delete both and convert again (notebook 01_sparsify)")
    packed = load_file(bits)
    layers = {}
    for name, (rows, columns) in manifest["shapes"].items():
        flat = np.unpackbits(packed[name], count=rows * columns).astype(bool)
        layers[name] = torch.from_numpy(flat.reshape(rows, columns))
    masks = Masks(manifest["topology"], manifest["algorithm"], manifest["calibration_sha256"], layers)
    assert_pattern(masks)
    return masks


def masks_digest(path: Path) -> str:
    return read_record(path.with_name(path.name + ".json"))["sha256"]
