"""Dense-to-sparse conversion: every algorithm for every topology it is defined for (paper, section Conversion).

`magnitude` and `random` need no data. `wanda`, `sparsegpt` and `wanda++` run as modifiers in llmcompressor's sequential
pipeline, one decoder layer at a time. `maskllm` is a training job (`sparsecl.maskllm`). `given` reads a mask made elsewhere.
llmcompressor's ``N:M`` counts zeros, ours counts non-zeros; `compressor_structure` is the one place that translates.

Memory: a conversion works on the given weights themselves and holds, beside them, what one decoder layer needs (its weights
in float32, the statistics of its linear layers, the calibration rows' activations) and the masks. MaskLLM holds more
(`sparsecl.maskllm`). `benchmarks/conversion_memory.py` measures it.
"""

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
import torch.fx
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from sparsecl.arms import Arm
from sparsecl.mask_selection import select
from sparsecl.masks import (
    KEPT_DENSE,
    Masks,
    apply_masks,
    as_matrix,
    assert_masks,
    assert_pattern,
    check_model,
    masks_of_zeros,
    prunable_weights,
)
from sparsecl.packed_masks import PackedMasks
from sparsecl.records import sha256_of_json
from sparsecl.settings import Sparsify
from sparsecl.tokenizer import Row
from sparsecl.topologies import Blocks, NofM, Topology, parse_topology, zero_share

IGNORED = tuple(f"re:.*{name}.*" for name in KEPT_DENSE)  # a pattern, because the compressor's own name of the head ends in a dot


@dataclass(frozen=True)
class ConversionData:
    """What algorithms may look at: `rows` calibrate, `training` (rows in the order of `plan`) teaches MaskLLM."""

    rows: Sequence[Row]
    tokenizer: PreTrainedTokenizerFast
    training: Sequence[Row]
    plan: Callable[[int, int], Sequence[np.ndarray]]  # steps, batch -> row indices of each step
    seed: int


def compressor_structure(topology: Topology) -> str:
    """llmcompressor's mask structure of a topology: ``1of4`` (1 non-zero) is its ``3:4`` (3 zeros); unstructured is ``0:0``."""
    return f"{topology.group - topology.kept}:{topology.group}" if isinstance(topology, NofM) else "0:0"


def calibration_digest(rows: Sequence[Row]) -> str:
    return sha256_of_json([row.ids.tolist() for row in rows])


def convert(model: nn.Module, arm: Arm, settings: Sparsify, data: ConversionData) -> Masks:
    """Convert `model` in place to the topology of `arm` and return its masks.

    Raises TopologyMisfit before any work where a layer's size does not divide, and RuntimeError where a weight that must
    stay dense changed. An error on the way may leave the model half converted: load it again.
    """
    check_model(model, arm.topology)
    dense = _dense_digests(model)
    calibration = "" if arm.algorithm in ("magnitude", "random", "given") else calibration_digest(data.rows)
    if arm.algorithm == "given":
        masks = read_given_masks(settings.given_mask, model, arm)
    elif scores := SCORES.get(arm.algorithm):
        masks = _masks_of_scores(model, arm, scores(data.seed))
    elif arm.algorithm == "maskllm":
        masks = _learned_masks(model, arm, settings, data, calibration)
    else:
        _prune_in_pipeline(model, _modifier(arm, settings, data.seed), data)
        masks = masks_of_zeros(model, arm.topology, arm.algorithm, arm.density, calibration)
    assert_pattern(masks)
    apply_masks(model, masks)
    assert_masks(model, masks, f"after converting to {arm.name}")
    _assert_untouched(model, dense)
    return masks


def _magnitude(seed: int) -> Callable[[Tensor], Tensor]:
    return lambda weight: weight.detach().float().abs()


def _random(seed: int) -> Callable[[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda weight: torch.rand(weight.shape, generator=generator).to(weight.device)


SCORES = {"magnitude": _magnitude, "random": _random}


def _masks_of_scores(model: nn.Module, arm: Arm, score: Callable[[Tensor], Tensor]) -> Masks:
    topology = parse_topology(arm.topology)
    weights = PackedMasks(
        (name, select(topology, as_matrix(score(weight)), arm.density).view(weight.shape))
        for name, weight in prunable_weights(model).items()
    )
    return Masks(arm.topology, arm.algorithm, arm.density, "", weights)


def _modifier(arm: Arm, settings: Sparsify, seed: int):
    """llmcompressor's own modifier, or ours where it has none."""
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when the package is imported
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier

    from sparsecl.block_pruning import BlockSparseGPTModifier, BlockWandaModifier
    from sparsecl.wandaplusplus import WandaPlusPlusModifier

    topology = parse_topology(arm.topology)
    common = {
        "sparsity": zero_share(arm.density), "mask_structure": compressor_structure(topology),
        "targets": ["Linear"], "ignore": list(IGNORED),
    }  # fmt: skip
    ours = {"topology": arm.topology, "density": arm.density}
    match arm.algorithm, isinstance(topology, Blocks):
        case "sparsegpt", False:
            return SparseGPTModifier(**common, dampening_frac=settings.dampening)
        case "sparsegpt", True:
            return BlockSparseGPTModifier(**common, **ours, dampening_frac=settings.dampening)
        case "wanda", False:
            return WandaPruningModifier(**common)
        case "wanda", True:
            return BlockWandaModifier(**common, **ours)
        case "wanda++", _:
            return WandaPlusPlusModifier(**common, **ours, **settings.wandaplusplus.model_dump(), seed=seed % 2**31)
    raise ValueError(f"arm {arm.name}: algorithm {arm.algorithm!r} is unknown; see sparsecl.arms.ALGORITHMS")


def _prune_in_pipeline(model: nn.Module, recipe, data: ConversionData) -> None:
    """Run a modifier over `model`, in place. Rows calibrate one at a time: padding tokens would enter the statistics."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation within the compressor
    from llmcompressor import oneshot
    from llmcompressor.core import create_session

    # A session of its own, because the compressor's global one would keep the model alive after the conversion.
    with create_session(), _left_as_found(model), _experts_as_linears(model), tempfile.TemporaryDirectory() as directory:
        model.config.save_pretrained(directory)  # the compressor reads a configuration from a path, not from the model
        model.config.name_or_path = directory
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            oneshot(
                model=model,
                processor=data.tokenizer,
                dataset=_calibration_set(data.rows),
                recipe=recipe,
                num_calibration_samples=len(data.rows),
                max_seq_length=max(len(row.ids) for row in data.rows),
                batch_size=1,
                shuffle_calibration_samples=False,
                moe_calibrate_all_experts=True,  # an expert without a token would be erased, or masked by ties
            )
    _assert_none_erased(model)


def _assert_none_erased(model: nn.Module) -> None:
    """Raise RuntimeError naming a matrix that lost all its weights, which the masks would hide: they fill their pattern up."""
    for name, weight in prunable_weights(model).items():
        alive = (weight.detach() != 0).reshape(-1, *weight.shape[-2:]).flatten(1).any(1)
        if not alive.all():
            erased = f"{int((~alive).sum())} of {len(alive)} matrices have no weight left"
            raise RuntimeError(f"{name}: {erased}; every expert needs calibration tokens (moe_calibrate_all_experts)")


@contextmanager
def _left_as_found(model: nn.Module) -> Iterator[None]:
    """Take from `model` what the compressor leaves on it: afterwards it is the plain transformers model it was, with other weights.

    That is: parameters in offload caches, wrapped forwards, its own `save_pretrained`, a flag on every module, the path in the
    configuration, gradients; and norms that multiply by 1 + w, which it rewrites as 1 + w and back, rounded.
    """
    from compressed_tensors.offload.dispatch import remove_dispatch

    path, flags = model.config.name_or_path, [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    vectors = [(parameter, parameter.data) for parameter in model.parameters() if parameter.ndim == 1]
    try:
        yield
    finally:
        remove_dispatch(model)
        for module in model.modules():
            for name in ("forward", "save_pretrained", "quantization_enabled"):
                vars(module).pop(name, None)
        model.config.name_or_path = path
        for parameter, values in vectors:
            parameter.data = values
        for parameter, trained in flags:
            parameter.requires_grad_(trained).grad = None
        _forget_traced_models()


def _forget_traced_models() -> None:
    """torch.fx keeps the namespace of every function wrapped for tracing; the compressor puts the model into it as `self`."""
    traced = torch.fx._symbolic_trace._wrapped_fns_to_patch
    for key in [key for key, namespace in traced.items() if isinstance(namespace.get("self"), nn.Module)]:
        del traced[key]


@contextmanager
def _experts_as_linears(model: nn.Module) -> Iterator[None]:
    """Show stacked experts as the linear layers that modifiers know, as views: what is written there lands in the stack."""
    from llmcompressor.modeling.moe.linear_experts import LinearExperts2D
    from llmcompressor.modeling.moe.linearize import get_non_linearized_moes

    stacked = get_non_linearized_moes(model)
    for name, experts in stacked:
        with torch.device("meta"):
            linears = LinearExperts2D.get_linear_experts_cls(type(experts))(getattr(experts, "config", model.config))
        for index in range(linears.num_experts):
            gate, up = experts.gate_up_proj.detach()[index].chunk(2)
            linears[index].gate_proj.weight, linears[index].up_proj.weight = nn.Parameter(gate), nn.Parameter(up)
            linears[index].down_proj.weight = nn.Parameter(experts.down_proj.detach()[index])
        model.set_submodule(name, linears)
    try:
        yield
    finally:
        for name, experts in stacked:
            model.set_submodule(name, experts)


def _calibration_set(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids.tolist() for row in rows], "attention_mask": [np.ones(len(row.ids), int).tolist() for row in rows]}
    )


def _learned_masks(model: nn.Module, arm: Arm, settings: Sparsify, data: ConversionData, calibration: str) -> Masks:
    """MaskLLM from SparseGPT's mask; only the mask of the prior is used, its weight update is not.

    The dense weights wait on the CPU meanwhile and are back before mask learning begins, which needs six times as much.
    """
    from sparsecl.maskllm import candidate_masks, learn_masks

    topology = parse_topology(arm.topology)
    candidate_masks(topology)  # refuses a topology without candidates before any work
    weights = prunable_weights(model)
    dense = {name: weight.detach().to("cpu", copy=True) for name, weight in weights.items()}
    like = Arm(arm.name, arm.lineage, arm.topology, "sparsegpt", arm.density)
    _prune_in_pipeline(model, _modifier(like, settings, data.seed), data)
    start = masks_of_zeros(model, arm.topology, "sparsegpt", arm.density, calibration)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(dense.pop(name))
    training = settings.maskllm.training
    plan = data.plan(training.steps, training.batch)
    learned = learn_masks(model, start.weights, topology, data.training, plan, settings.maskllm, data.seed)
    return Masks(arm.topology, arm.algorithm, arm.density, calibration, PackedMasks(learned.items()))


def read_given_masks(path: str | None, model: nn.Module, arm: Arm) -> Masks:
    """A mask made elsewhere: safetensors with one boolean tensor for each prunable parameter, True where a weight is kept.

    Raises ValueError naming the parameter whose mask is missing, unknown, or of another shape or type.
    """
    from safetensors.torch import load_file

    if path is None or not Path(path).is_file():
        raise ValueError(f"arm {arm.name}: sparsify.given_mask is {path!r}, which is no file; name the safetensors file of the mask")
    weights, given = prunable_weights(model), load_file(path)
    if differing := sorted(weights.keys() ^ given.keys()):
        raise ValueError(f"{path}: masks and prunable parameters differ in {len(differing)} names, e.g. {differing[:3]}")
    for name, mask in given.items():
        if mask.dtype != torch.bool or mask.shape != weights[name].shape:
            raise ValueError(
                f"{path}: {name} is {mask.dtype} {tuple(mask.shape)}; a boolean tensor of shape {tuple(weights[name].shape)} is needed"
            )
    return Masks(arm.topology, arm.algorithm, arm.density, "", PackedMasks(given.items()))


def _dense_digests(model: nn.Module) -> dict[str, str]:
    """sha256 over the bytes of every parameter that must stay dense."""
    prunable = prunable_weights(model)
    return {name: _digest(parameter) for name, parameter in model.named_parameters() if name not in prunable}


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()


def _assert_untouched(model: nn.Module, dense: dict[str, str]) -> None:
    for name, digest in _dense_digests(model).items():
        if digest != dense[name]:
            raise RuntimeError(f"conversion changed {name}, which must stay dense; check the modifier's ignore list")
