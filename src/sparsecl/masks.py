"""Masks: the sparse topology as a first-class artefact and a physical constraint (paper, section Conversion).

A mask says for every prunable weight whether it may be non-zero. Masks are stored with one bit a weight
beside a manifest, under the names transformers gives the parameters, and every step of the chain asserts
that no masked weight is non-zero.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from sparsecl.mask_selection import completed, violation
from sparsecl.packed_masks import Mask, PackedMasks
from sparsecl.records import BrokenFile, read_record, sha256_of, write_atomically, write_record
from sparsecl.topologies import TopologyMisfit, check_size, parse_topology

# What no conversion touches: the head, the gate of a shared expert, and the DeltaNet projections with one row a head.
KEPT_DENSE = ("lm_head", "shared_expert_gate", "in_proj_a", "in_proj_b")
STACKED = ("gate_up_proj", "down_proj")  # parameters that hold the matrices of all experts, (experts, outputs, inputs)


class TopologyViolation(AssertionError):
    """A masked weight is non-zero, or a mask has not the pattern it claims."""


@dataclass(frozen=True)
class Masks:
    """The masks of one sparse arm: parameter name -> True where a weight may live."""

    topology: str
    algorithm: str
    nominal_density: float  # the kept share that was asked for; blocks attain the nearest possible one
    calibration: str  # sha256 of the calibration rows; empty where the algorithm needs none
    weights: Mapping[str, Mask]

    @property
    def kept(self) -> int:
        """Weights that may be non-zero."""
        return sum(int(mask.sum()) for mask in self.weights.values())

    @property
    def size(self) -> int:
        """Weights of the masked parameters."""
        return sum(mask.numel() for mask in self.weights.values())

    @property
    def density(self) -> float:
        """Attained fraction of kept weights."""
        return self.kept / self.size


def prunable_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights a conversion prunes, by parameter name: linear layers and stacked experts.

    Embeddings, norms, convolutions, routers and what `KEPT_DENSE` names stay dense.
    """
    chosen = {}
    for module_name, module in model.named_modules():
        if module_name.rsplit(".", 1)[-1] in KEPT_DENSE:
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if (isinstance(module, nn.Linear) and name == "weight") or (name in STACKED and parameter.ndim == 3):
                chosen[f"{module_name}.{name}"] = parameter
    return chosen


def as_matrix(values: Tensor) -> Tensor:
    """Stacked experts as one matrix: their output rows one below the other."""
    return values.reshape(-1, values.shape[-1])


def check_model(model: nn.Module, topology: str) -> None:
    """Raise TopologyMisfit naming the first weight whose size does not divide."""
    for name, weight in prunable_weights(model).items():
        rows, inputs = weight.shape[-2:]
        if name.endswith("gate_up_proj"):  # two matrices, one below the other: the compressor takes them apart
            rows //= 2
        check_size(parse_topology(topology), name, rows, inputs)


def masks_of_zeros(model: nn.Module, topology: str, algorithm: str, nominal_density: float, calibration: str) -> Masks:
    """Read the masks off a converted model and check that they have the pattern `topology` claims."""
    structure = parse_topology(topology)
    weights = PackedMasks(
        (name, completed(structure, as_matrix(weight.detach() != 0), nominal_density).view(weight.shape))
        for name, weight in prunable_weights(model).items()
    )
    masks = Masks(topology, algorithm, nominal_density, calibration, weights)
    assert_pattern(masks)
    return masks


def assert_pattern(masks: Masks) -> None:
    """Raise TopologyViolation where a weight's mask has not the pattern the topology claims."""
    structure = parse_topology(masks.topology)
    for name, mask in masks.weights.items():
        try:
            check_size(structure, name, *mask.shape[-2:])
        except TopologyMisfit as error:
            raise TopologyViolation(str(error)) from None
        if wrong := violation(structure, as_matrix(mask), masks.nominal_density):
            raise TopologyViolation(f"{name}: {wrong}; convert again")


def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set every masked weight to exactly +0.0, in place."""
    weights = prunable_weights(model)
    with torch.no_grad():
        for name, mask in masks.weights.items():
            weights[name].masked_fill_(~mask.to(weights[name].device), 0.0).add_(0.0)  # -0.0 + 0.0 is +0.0


def assert_masks(model: nn.Module, masks: Masks | None, moment: str) -> None:
    """Raise TopologyViolation naming weight, count and `moment` where a masked weight is non-zero; dense arms pass."""
    if masks is None:
        return
    weights = prunable_weights(model)
    if weights.keys() != masks.weights.keys():
        raise TopologyViolation(
            f"{moment}: model and masks name different weights, e.g. {sorted(weights.keys() ^ masks.weights.keys())[:3]}"
        )
    for name, mask in masks.weights.items():
        violations = int((weights[name].detach()[~mask.to(weights[name].device)] != 0).sum())
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
        weights = prunable_weights(model)
        for name, mask in masks.weights.items():
            kept = mask.to(weights[name].device, weights[name].dtype)
            handles.append(weights[name].register_post_accumulate_grad_hook(_gradient_mask(kept)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class ConfinedUpdates:
    """Holds a dense model's weights outside `masks` at the values they had when this was made (arm Dg).

    Zero gradients alone do not: AdamW's weight decay moves a weight that is not zero.
    """

    def __init__(self, model: nn.Module, masks: Masks) -> None:
        weights = prunable_weights(model)
        self._held = [
            (weights[name], mask.to(weights[name].device), weights[name].detach().clone()) for name, mask in masks.weights.items()
        ]  # fmt: skip

    @torch.no_grad()
    def restore(self) -> None:
        """Undo, in place and bit by bit, whatever a step did outside the masks."""
        for weight, mask, start in self._held:
            weight.copy_(torch.where(mask, weight, start))


def _gradient_mask(kept: Tensor):
    def mask_gradient(parameter: nn.Parameter) -> None:  # the hook must return None
        parameter.grad.mul_(kept)

    return mask_gradient


def save_masks(masks: Masks, path: Path) -> None:
    """Write ``<path>.safetensors`` (one bit a weight) and then its manifest ``<path>.json``."""
    packed = {name: np.packbits(mask.cpu().numpy()) for name, mask in masks.weights.items()}
    bits = path.with_name(path.name + ".safetensors")
    write_atomically(bits, lambda temporary: save_file(packed, temporary))
    manifest = {
        "topology": masks.topology,
        "algorithm": masks.algorithm,
        "calibration_sha256": masks.calibration,
        "nominal_density": masks.nominal_density,
        "density": masks.density,
        "shapes": {name: list(mask.shape) for name, mask in masks.weights.items()},
        "bits_sha256": sha256_of(bits),
    }
    write_record(path.with_name(path.name + ".json"), manifest)


def load_masks(path: Path) -> Masks:
    """Read masks; raise BrokenFile where bits or manifest were changed, TopologyViolation where the pattern is wrong."""
    manifest = read_record(path.with_name(path.name + ".json"))
    bits = path.with_name(path.name + ".safetensors")
    if not bits.is_file() or sha256_of(bits) != manifest["bits_sha256"]:
        raise BrokenFile(f"{bits} is missing or not the file its manifest describes; delete both and convert again (notebook 01_sparsify)")
    weights = PackedMasks.of_bits(load_file(bits), manifest["shapes"])
    masks = Masks(manifest["topology"], manifest["algorithm"], manifest["nominal_density"], manifest["calibration_sha256"], weights)
    assert_pattern(masks)
    return masks


def masks_digest(path: Path) -> str:
    return read_record(path.with_name(path.name + ".json"))["sha256"]
