"""Training cost of an arm: tokens and floating-point operations from an analytic model (paper, Table of costs).

A multiply-add counts 2. A training step costs three matrix products per linear layer (forward, input
gradient, weight gradient); attention scores and the head are counted, normalisation is not.
`flops_sparse` is the theoretical cost in which masked weights cost nothing in any of the three.
"""

from collections.abc import Sequence
from math import comb

from torch import nn

from sparsecl.arms import Arm
from sparsecl.config import Study
from sparsecl.masks import Masks
from sparsecl.modeling import parameter_count
from sparsecl.records import peak_memory_bytes
from sparsecl.settings import Model
from sparsecl.topologies import parse_topology
from sparsecl.training import TrainingLog

PASSES = 3  # forward, input gradient, weight gradient


def linear_weights(model: Model) -> int:
    """Weights of the prunable linear layers."""
    return model.layers * sum(rows * columns for rows, columns in model.linear_shapes().values())


def training_flops(model: Model, vocabulary: int, tokens: int, mean_length: float, masks: Masks | None) -> tuple[int, int]:
    """Theoretical training FLOPs over `tokens` tokens: (all weights counted, masked weights free)."""
    attention = 2 * 2 * model.layers * model.heads * model.head_dim * mean_length / 2  # causal: half the scores
    fixed = 2 * vocabulary * model.hidden + attention
    dense = 2 * linear_weights(model)
    kept = 1.0 if masks is None else masks.density
    return round(PASSES * tokens * (dense + fixed)), round(PASSES * tokens * (dense * kept + fixed))


def training_costs(study: Study, model: nn.Module, masks: Masks | None, log: TrainingLog) -> dict:
    """What one training consumed: counted columns of the cost table and measured ones of the timings table."""
    dense, sparse = training_flops(study.model, study.tokenizer.vocabulary, log.tokens, log.tokens / log.rows, masks)
    masked = 0 if masks is None else masks.size - masks.kept
    return {
        "tokens": log.tokens,
        "flops_dense": dense,
        "flops_sparse": sparse,
        "trainable": parameter_count(model) - masked,
        "masked": masked,
        "wall_s": round(log.seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def conversion_costs(study: Study, arm: Arm, masks: Masks, lengths: Sequence[int], seconds: float) -> dict:
    """What one conversion consumed, in the columns of `training_costs`.

    `lengths` are the tokens of the calibration rows. llmcompressor's pipeline passes every token twice through a decoder
    layer, before and after pruning it; SparseGPT adds its Hessians, their inverses and the update; Wanda++ adds regional
    gradients and optimisation; MaskLLM starts from SparseGPT and adds its training. A forward pass is a third of a
    training step. Scores without data cost nothing worth counting.
    """
    tokens = sum(lengths)
    training, _ = training_flops(study.model, study.tokenizer.vocabulary, 1, tokens / len(lengths), None)
    forward, seen, flops, learned = training / PASSES, 0, 0.0, 0
    if arm.algorithm in ("wanda", "sparsegpt", "wanda++", "maskllm"):
        seen, flops = tokens, 2 * forward * tokens
    if arm.algorithm in ("sparsegpt", "maskllm"):
        flops += study.model.layers * sum(_sparsegpt_flops(*shape, tokens) for shape in study.model.linear_shapes().values())
    if arm.algorithm == "wanda++":
        settings = study.sparsify.wandaplusplus
        drawn = tokens * min(settings.samples, len(lengths)) / len(lengths)
        extra = tokens * (settings.alpha > 0), settings.rounds * drawn, settings.rounds * tokens
        seen, learned = seen + round(sum(extra)), linear_weights(study.model)
        flops += PASSES * forward * (extra[0] + extra[1]) + forward * (drawn * (settings.rounds > 0) + extra[2])
    if arm.algorithm == "maskllm":
        mask_training = study.sparsify.maskllm.training
        taught = round(mask_training.steps * mask_training.batch * tokens / len(lengths))  # rows are drawn as those of calibration
        structure = parse_topology(arm.topology)
        seen, flops = seen + taught, flops + training * taught
        learned = linear_weights(study.model) // structure.group * comb(structure.group, structure.kept)
    return {
        "tokens": seen,
        "flops_dense": round(flops),
        "flops_sparse": round(flops),
        "trainable": learned,
        "masked": masks.size - masks.kept,
        "wall_s": round(seconds, 3),
        "peak_memory_bytes": peak_memory_bytes(),
    }


def _sparsegpt_flops(outputs: int, inputs: int, tokens: int) -> float:
    """Hessian, two Cholesky factorisations with the inverse between them (5/3 n^3), and the column-wise update."""
    return 2 * tokens * inputs**2 + 5 / 3 * inputs**3 + outputs * inputs**2


COUNTED = ("tokens", "flops_dense", "flops_sparse", "trainable", "masked")
MEASURED = ("wall_s", "peak_memory_bytes")


def total_costs(parts: Sequence[dict]) -> dict:
    """Sum of several trainings of one model: tokens, FLOPs and seconds add up, sizes do not, memory peaks."""
    added = {name: sum(part[name] for part in parts) for name in ("tokens", "flops_dense", "flops_sparse", "wall_s")}
    return {**parts[-1], **added, "peak_memory_bytes": max(part["peak_memory_bytes"] for part in parts)}


def cost_tables(keys: dict, costs: dict, device: str, dtype: str) -> dict[str, list[dict]]:
    """One row for cost.csv (deterministic) and one for timings.csv (measured), under the same keys."""
    return {
        "cost": [{**keys, **{name: costs[name] for name in COUNTED}}],
        "timings": [{**keys, **{name: costs[name] for name in MEASURED}, "device": device, "dtype": dtype}],
    }
