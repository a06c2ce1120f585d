"""LoRA on all prunable linear layers (paper, section Methods; Hu et al. 2022).

Every stage trains a new adapter on frozen weights and merges it at its end. On a sparse arm the update is masked in
the forward pass (`masked_lora`), so what is trained is what is merged; on a dense arm the layers are PEFT's own.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, LoraModel
from torch import nn

from sparsecl.continual_methods.masked_lora import MaskedLoraLinear
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
            adapted = add_adapters(model, masks, self._settings)
            trainable, rank = trainable_parameters(model, None), self._settings.rank
            stage = Stage(rows, context.plan(rows, context.batch), None, trainable, adapter_rank=rank)
            yield stage
        merge_adapters(adapted, masks, f"merging the adapters of {context.domain}")
        stage.sparsity = sparsities(model, stage.trainable)


def add_adapters(model: nn.Module, masks: Masks | None, settings: Lora) -> LoraModel:
    """Put a new adapter on every prunable linear layer of `model`, in place, and freeze all else.

    The initial update is zero (B = 0). ValueError where a model keeps experts in stacked parameters.
    """
    weights = prunable_weights(model)
    if stacked := [name for name, weight in weights.items() if weight.ndim != 2]:
        raise ValueError(f"lora: {stacked[0]} holds stacked experts, which have no masked adapter yet; use another method for this model")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[name.removesuffix(".weight") for name in weights],
    )
    if masks is not None:
        config._register_custom_module({nn.Linear: MaskedLoraLinear})
    adapted = LoraModel(model, config, ADAPTER)
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedLoraLinear):
            layer.set_mask(masks.weights[f"{name}.weight"])
    return adapted


def merge_adapters(adapted: LoraModel, masks: Masks | None, moment: str) -> None:
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
