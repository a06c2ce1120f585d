"""LoRA on all prunable linear layers (paper, section Methods; Hu et al. 2022).

Every stage trains a new adapter on frozen weights and merges it at its end. On a sparse arm the update is masked in
the forward pass (`masked_lora`), so what is trained is what is merged; on a dense arm the layers are PEFT's own. Experts that
transformers keeps stacked in one parameter get an adapter each, of the same rank: PEFT forms W + B A for all of them in every step.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, LoraModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from sparsecl.continual_methods.masked_lora import masked_layers, set_masks
from sparsecl.continual_methods.method import Method, Stage, StageContext, trainable_parameters
from sparsecl.masks import Masks, assert_masks, prunable_weights
from sparsecl.method_settings import Lora

ADAPTER = "stage"


class LowRankAdaptation(Method):
    """A low-rank update per stage; nothing but the merged model goes on to the next."""

    def __init__(self, settings: Lora) -> None:
        self._settings = settings

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        rows = context.rows_of(context.domain)
        # Inside the stage torch's generator is the stage's own (initial A, dropout); outside it is left as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed(f"lora-{context.domain}"))
            known = not stacked_experts(model)
            adapted = add_adapters(model, masks, self._settings)
            trainable, rank = trainable_parameters(model, None), self._settings.rank
            plan = context.plan(rows, context.batch)
            # What PEFT computes for stacked experts is no matter of the tokens alone, so it is not counted.
            stage = Stage(rows, plan, None, trainable, adapter_rank=rank if known else None, flops_known=known)
            yield stage
        merge_adapters(adapted, masks, f"merging the adapters of {context.domain}")
        stage.measures = sparsities(model, stage.trainable)


def add_adapters(model: nn.Module, masks: Masks | None, settings: Lora) -> LoraModel:
    """Put a new adapter on every prunable linear layer of `model` and on each of its experts, in place, and freeze all else.

    The initial update is zero (B = 0). ValueError where a model keeps experts in stacked parameters and is sparse, or the
    adapters have dropout: PEFT adapts the weights of such experts, not their inputs.
    """
    weights = prunable_weights(model)
    stacked = stacked_experts(model)
    if stacked and masks is not None:
        raise ValueError(f"lora: {stacked[0]} holds stacked experts, which have no masked adapter yet; use another method for this model")
    if stacked and settings.dropout:
        raise ValueError(f"lora: {stacked[0]} holds stacked experts, whose adapters have no dropout; set lora.dropout to 0")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name.removesuffix(".weight") for name in weights if name not in stacked],
        target_parameters=stacked or None,
    )
    if masks is not None:
        config = masked_layers(config)
    adapted = LoraModel(model, config, ADAPTER)
    if masks is not None:
        set_masks(model, masks)
    return adapted


def stacked_experts(model: nn.Module) -> list[str]:
    """Names of the prunable parameters that hold the matrices of several experts."""
    return [name for name, weight in prunable_weights(model).items() if weight.ndim != 2]


def merge_adapters(adapted: BaseTuner, masks: Masks | None, moment: str) -> None:
    """Add the update to the weights, take the adapters off, thaw the model, and assert the masks.

    ValueError where an adapter is not finite, TopologyViolation where a masked weight is not zero.
    """
    model = adapted.merge_and_unload(safe_merge=True)
    model.requires_grad_(True)
    assert_masks(model, masks, moment)


def sparsities(model: nn.Module, adapter_parameters: int) -> dict[str, float]:
    """Share of zeros among the prunable weights: merged, and unmerged, where the adapter's parameters count as weights too."""
    weights = prunable_weights(model).values()
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    size = sum(weight.numel() for weight in weights)
    return {"merged": zeros / size, "unmerged": zeros / (size + adapter_parameters)}
