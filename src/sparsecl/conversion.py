"""Dense-to-sparse conversion: every algorithm for every topology it is defined for (paper, section Conversion).

`magnitude` and `random` need no data. `wanda`, `sparsegpt` and `wanda++` run as modifiers in llmcompressor's sequential
pipeline, one decoder layer at a time. `maskllm` is a training job (`sparsecl.maskllm`). `given` reads a mask made elsewhere.
llmcompressor's ``N:M`` counts zeros, ours counts non-zeros; `compressor_structure` is the one place that translates.
"""

import copy
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import torch
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
    stay dense changed.
    """
    check_model(model, arm.topology)
    prunable = prunable_weights(model)
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters() if name not in prunable}
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
    weights = {
        name: select(topology, as_matrix(score(weight)), arm.density).view(weight.shape) for name, weight in prunable_weights(model).items()
    }
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
    """Run a modifier over `model`, in place. Rows calibrate one at a time: padding tokens would enter the statistics.

    The compressor wraps the modules of the model it works on and takes stacked experts apart, so it works on a
    copy; a save and a load put the experts together again.
    """
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation within the compressor
    from llmcompressor import oneshot

    working = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        working.config.save_pretrained(directory)
        working.config.name_or_path = directory
        oneshot(
            model=working,
            processor=data.tokenizer,
            dataset=_calibration_set(data.rows),
            recipe=recipe,
            num_calibration_samples=len(data.rows),
            max_seq_length=max(len(row.ids) for row in data.rows),
            batch_size=1,
            shuffle_calibration_samples=False,
        )
        if working.state_dict().keys() != model.state_dict().keys():
            working.save_pretrained(directory)
            working = type(model).from_pretrained(directory, dtype=model.dtype)
    model.load_state_dict(working.state_dict())


def _calibration_set(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids.tolist() for row in rows], "attention_mask": [np.ones(len(row.ids), int).tolist() for row in rows]}
    )


def _learned_masks(model: nn.Module, arm: Arm, settings: Sparsify, data: ConversionData, calibration: str) -> Masks:
    """MaskLLM from SparseGPT's mask; only the mask of the prior is used, its weight update is not."""
    from sparsecl.maskllm import candidate_masks, learn_masks

    topology = parse_topology(arm.topology)
    candidate_masks(topology)  # refuses a topology without candidates before any work
    prior = copy.deepcopy(model)
    like = Arm(arm.name, arm.lineage, arm.topology, "sparsegpt", arm.density)
    _prune_in_pipeline(prior, _modifier(like, settings, data.seed), data)
    start = masks_of_zeros(prior, arm.topology, "sparsegpt", arm.density, calibration)
    training = settings.maskllm.training
    plan = data.plan(training.steps, training.batch)
    learned = learn_masks(model, start.weights, topology, data.training, plan, settings.maskllm, data.seed)
    return Masks(arm.topology, arm.algorithm, arm.density, calibration, learned)


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
    return Masks(arm.topology, arm.algorithm, arm.density, "", given)


def _assert_untouched(model: nn.Module, dense: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, before in dense.items():
        if not torch.equal(parameters[name], before):
            raise RuntimeError(f"conversion changed {name}, which must stay dense; check the modifier's ignore list")
