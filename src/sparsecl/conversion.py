"""Dense-to-sparse conversion through llmcompressor (paper, section Conversion).

llmcompressor's ``N:M`` counts zeros, ours counts non-zeros; `compressor_structure` is the one place
that translates. The head is kept dense by a pattern, because its internal name ends in a dot.
"""

import copy
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerFast

from sparsecl.arms import Arm
from sparsecl.config import Sparsify
from sparsecl.masks import Masks, apply_masks, assert_masks, masks_of_zeros
from sparsecl.records import sha256_of_json
from sparsecl.tokenizer import Row

KEPT_DENSE = ("re:.*lm_head",)


def compressor_structure(topology: str) -> str:
    """llmcompressor's mask structure of a topology: ``1of4`` (1 non-zero) is its ``3:4`` (3 zeros)."""
    match = re.fullmatch(r"(\d+)of(\d+)", topology)
    if not match:
        raise ValueError(f"topology {topology!r} has no N:M structure; known here: NofM such as 2of4")
    kept, group = int(match[1]), int(match[2])
    if not 0 < kept < group:
        raise ValueError(f"topology {topology!r} keeps {kept} of {group}; keep at least 1 and fewer than {group}")
    return f"{group - kept}:{group}"


def calibration_digest(rows: Sequence[Row]) -> str:
    return sha256_of_json([row.ids.tolist() for row in rows])


def convert(model: nn.Module, arm: Arm, settings: Sparsify, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast) -> Masks:
    """Convert `model` in place to the topology of `arm` (SparseGPT, Frantar and Alistarh 2023) and return its masks.

    Rows calibrate one at a time: padding tokens would enter the Hessian.
    """
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when the package is imported
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)  # a deprecation within the compressor
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier

    if arm.algorithm != "sparsegpt":
        raise ValueError(f"arm {arm.name}: algorithm {arm.algorithm!r} is not available; use sparsegpt")
    recipe = SparseGPTModifier(
        sparsity=1 - arm.density,
        mask_structure=compressor_structure(arm.topology),
        dampening_frac=settings.dampening,
        targets=["Linear"],
        ignore=list(KEPT_DENSE),
    )
    longest = max(len(row.ids) for row in rows)
    # The compressor wraps the modules of the model it works on, so it works on a copy.
    working = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as directory, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        working.config.save_pretrained(directory)
        working.config.name_or_path = directory
        oneshot(
            model=working,
            processor=tokenizer,
            dataset=_calibration_set(rows),
            recipe=recipe,
            num_calibration_samples=len(rows),
            max_seq_length=longest,
            batch_size=1,
            shuffle_calibration_samples=False,
        )
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.load_state_dict(working.state_dict())
    return _checked(model, dense, arm, calibration_digest(rows))


def _calibration_set(rows: Sequence[Row]) -> Dataset:
    return Dataset.from_dict(
        {"input_ids": [row.ids.tolist() for row in rows], "attention_mask": [np.ones(len(row.ids), int).tolist() for row in rows]}
    )


def _checked(model: nn.Module, dense: dict, arm: Arm, calibration: str) -> Masks:
    masks = masks_of_zeros(model, arm.topology, arm.algorithm, calibration)
    apply_masks(model, masks)
    assert_masks(model, masks, f"after converting to {arm.name}")
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight") not in masks.layers and not (parameter == dense[name]).all():
            raise RuntimeError(f"conversion changed {name}, which must stay dense; check the modifier's ignore list")
    return masks
