"""What an arm costs: tokens and FLOPs of every training and conversion (paper, Table of costs).

The FLOPs are those of `sparsecl.flops`: `flops_dense` counts all weights, which is what is executed here; `flops_sparse` is the
theoretical cost in which masked weights cost nothing in any of the three products. Both count real tokens, so that arms which
saw the same rows agree; what padding adds is executed and not counted (`TrainingLog.padded` counts it).
"""

from collections.abc import Callable, Sequence
from math import comb
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sparsecl.adapter_flops import lora_flops, masked_lora_flops
from sparsecl.arms import Arm
from sparsecl.config import Study
from sparsecl.confined_flops import confined_flops
from sparsecl.flops import (
    Consumption,
    Products,
    block_sparsegpt_flops,
    linear_weights,
    mask_learning_flops,
    regional_gradient_flops,
    require_dense,
    same,
    sparsegpt_flops,
    training_flops,
)
from sparsecl.masks import Masks
from sparsecl.modeling import parameter_count
from sparsecl.records import peak_memory_bytes
from sparsecl.settings import Model, WandaPlusPlus
from sparsecl.tokenizer import Row
from sparsecl.topologies import Blocks, parse_topology
from sparsecl.training import TrainingLog, consumed

# Fields of `Model` and what transformers calls them.
COMMON_SIZES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
EXPERT_SIZES = {
    "ffn": "moe_intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "shared_ffn": "shared_expert_intermediate_size",
    "delta_key_heads": "linear_num_key_heads",
    "delta_value_heads": "linear_num_value_heads",
    "delta_head_dim": "linear_key_head_dim",
}
PASSES_OF_PIPELINE = 2  # llmcompressor passes every token through a decoder layer before and after pruning it


class Seen(Protocol):
    """What is counted of `conversion.ConversionData`; importing that would make every base depend on the code of conversions."""

    rows: Sequence[Row]
    training: Sequence[Row]
    plan: Callable[[int, int], Sequence[np.ndarray]]
    seed: int


def shape_of(model: nn.Module, settings: Model) -> Model:
    """`settings` with the sizes that `model` really has: a control may be narrower than the base of its study."""
    config, own = model.config, EXPERT_SIZES if settings.experts else {"ffn": "intermediate_size"}
    return settings.model_copy(update={field: getattr(config, name) for field, name in (COMMON_SIZES | own).items()})


def training_costs(
    study: Study,
    model: nn.Module,
    masks: Masks | None,
    log: TrainingLog,
    update_masks: Masks | None = None,
    adapter_rank: int | None = None,
    weight_gradients: int | None = None,
) -> dict:
    """What one training consumed: counted columns of the cost table and measured ones of the timings table.

    Where only updates are masked, all weights take part in the forward pass and in the input gradient. With `adapter_rank`
    adapters of that rank train in place of the weights. `weight_gradients` is the number of linear weights whose gradient is
    formed, where that is not all of them.
    """
    shape, masked = shape_of(model, study.model), 0 if masks is None else masks.size - masks.kept
    weights, held = linear_weights(shape), masked if update_masks is None else update_masks.size - update_masks.kept
    formed = weights if weight_gradients is None else weight_gradients
    taking_part = Products(weights, weights, formed), Products(weights - masked, weights - masked, min(weights - held, formed))
    vocabulary, steps = model.config.vocab_size, len(log.losses)

    def flops(part: Products) -> int:
        if weight_gradients is not None and adapter_rank is None:
            return confined_flops(shape, vocabulary, log.consumption, part).total
        if adapter_rank is None:
            return training_flops(shape, vocabulary, log.consumption, part).total
        if masks is None:
            return lora_flops(shape, vocabulary, log.consumption, adapter_rank).total
        return masked_lora_flops(shape, vocabulary, log.consumption, steps, adapter_rank, part.forward).total

    dense, sparse = map(flops, taking_part)
    return {
        "tokens": log.tokens,
        "flops_dense": dense,
        "flops_sparse": sparse,
        "trainable": parameter_count(model) - held,
        "masked": masked,
        "wall_s": round(log.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def extra_costs(
    study: Study, model: nn.Module, masks: Masks | None, extra: Consumption | None, probe: Consumption | None, seconds: float
) -> dict:
    """What a method passed through the whole model beside a training, in the columns that add up: `extra` forward and backward,
    `probe` forward alone."""
    shape, masked = shape_of(model, study.model), 0 if masks is None else masks.size - masks.kept
    weights, vocabulary = linear_weights(shape), model.config.vocab_size

    def flops(part: int) -> int:
        both = 0 if extra is None else training_flops(shape, vocabulary, extra, same(part)).total
        return both + (0 if probe is None else training_flops(shape, vocabulary, probe, same(part)).forward)

    tokens = sum(part.tokens for part in (extra, probe) if part is not None)
    measured = {"wall_s": round(seconds, 3), "peak_memory_bytes": peak_memory_bytes()}
    return {"tokens": tokens, "flops_dense": flops(weights), "flops_sparse": flops(weights - masked), **measured}


def conversion_costs(study: Study, arm: Arm, model: nn.Module, masks: Masks, data: Seen, seconds: float) -> dict:
    """What one conversion of `model` consumed, in the columns of `training_costs`; no weight is masked yet, so both FLOPs agree.

    Every algorithm with data passes its calibration rows through the pipeline, the head included; SparseGPT adds its solver,
    Wanda++ its regions; MaskLLM starts from SparseGPT and adds its training. Scores without data cost nothing worth counting.
    """
    shape, vocabulary = shape_of(model, study.model), model.config.vocab_size
    require_dense(shape, "a conversion")
    tokens = flops = learned = 0
    if arm.algorithm in ("wanda", "sparsegpt", "wanda++", "maskllm"):
        calibration = passed([len(row.ids) for row in data.rows])
        tokens, flops = calibration.tokens, PASSES_OF_PIPELINE * training_flops(shape, vocabulary, calibration).forward
    if arm.algorithm in ("sparsegpt", "maskllm"):
        flops += _solver_flops(shape, arm, tokens)
    if arm.algorithm == "wanda++":
        more_tokens, more_flops = regional_effort(shape, study.sparsify.wandaplusplus, data)
        tokens, flops, learned = tokens + more_tokens, flops + more_flops, linear_weights(shape)
    if arm.algorithm == "maskllm":
        training, structure = study.sparsify.maskllm.training, parse_topology(arm.topology)
        taught = consumed(data.training, data.plan(training.steps, training.batch), training.prompt_weight)
        candidates = comb(structure.group, structure.kept)
        flops += mask_learning_flops(shape, vocabulary, taught, training.steps, candidates).total
        tokens, learned = tokens + taught.tokens, linear_weights(shape) // structure.group * candidates
    return {
        "tokens": tokens,
        "flops_dense": flops,
        "flops_sparse": flops,
        "trainable": learned,
        "masked": masks.size - masks.kept,
        "wall_s": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def passed(lengths: Sequence[int]) -> Consumption:
    """Rows of these lengths passed once through a whole model one by one, as the pipeline does: the head runs at every token."""
    return Consumption(sum(lengths), sum(length**2 for length in lengths), sum(lengths))


def _solver_flops(model: Model, arm: Arm, tokens: int) -> int:
    topology = parse_topology(arm.topology)
    if isinstance(topology, Blocks):
        return block_sparsegpt_flops(model, tokens, topology, arm.density)
    return sparsegpt_flops(model, tokens)


def regional_effort(model: Model, settings: WandaPlusPlus, data: Seen) -> tuple[int, int]:
    """(tokens, FLOPs) of Wanda++ beside the pipeline: regional gradients of all rows, dense outputs of the drawn ones, and in
    every round a step on each of these (of the whole layer, norms included) and fresh input norms of all rows."""
    lengths = [len(row.ids) for row in data.rows]
    everything = passed(lengths).without_head()
    drawn = passed(drawn_lengths(lengths, settings.samples, data.seed)).without_head()
    steps = training_flops(model, 0, drawn)
    tokens = settings.rounds * (drawn.tokens + everything.tokens)
    flops = settings.rounds * (steps.total + training_flops(model, 0, everything).forward) + bool(settings.rounds) * steps.forward
    if settings.alpha:
        tokens, flops = tokens + everything.tokens, flops + regional_gradient_flops(model, everything).total
    return tokens, flops


def drawn_lengths(lengths: Sequence[int], samples: int, seed: int) -> list[int]:
    """Lengths of the calibration rows that Wanda++ draws for its regional optimisation (`WandaPlusPlusModifier`; equal by test).

    The compressor hands out rows the longest first, and the modifier draws among them in this order.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed % 2**31))
    return [sorted(lengths, reverse=True)[index] for index in order[:samples]]


COUNTED = ("tokens", "flops_dense", "flops_sparse", "trainable", "masked")
MEASURED = ("wall_s", "peak_memory_bytes")


def total_costs(parts: Sequence[dict]) -> dict:
    """Sum of several trainings of one model: tokens, FLOPs and seconds add up, sizes do not, memory peaks.

    A sum with a part that nobody counted is absent.
    """
    names = ("tokens", "flops_dense", "flops_sparse", "wall_s")
    added = {name: None if any(part[name] is None for part in parts) else sum(part[name] for part in parts) for name in names}
    return {**parts[-1], **added, "peak_memory_bytes": max(part["peak_memory_bytes"] for part in parts)}


def cost_tables(keys: dict, costs: dict, device: str, dtype: str) -> dict[str, list[dict]]:
    """One row for cost.csv (deterministic) and one for timings.csv (measured), under the same keys."""
    return {
        "cost": [{**keys, **{name: costs[name] for name in COUNTED}}],
        "timings": [{**keys, **{name: costs[name] for name in MEASURED}, "device": device, "dtype": dtype}],
    }
