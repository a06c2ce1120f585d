"""A LoRA layer whose update stays inside a mask, in the forward pass and in the merge (paper, section Methods).

The adapted weight is ``W + M * (alpha / r * B A)``. PEFT's own layer computes ``B (A x)``, which no mask can reach, so
the adapted weight is made explicitly. A step then costs what a step of full fine-tuning does, and ``B A`` beside it.

A saved adapter holds A and B alone, as any of PEFT's: the mask is the arm's, not the adapter's. PEFT by itself would load it
as an unmasked adapter, which computes something else; `load_masked_adapter` puts the mask back.
"""

from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
from peft import LoraConfig, PeftModel
from peft.tuners.lora import Linear
from torch import Tensor, nn

from sparsecl.masks import Masks


class MaskedLoraLinear(Linear):
    """PEFT's LoRA on a linear layer with the update masked; `set_mask` comes before the first use.

    Merging and unmerging are PEFT's own: they read the update from `get_delta_weight`.
    """

    mask: Bool[Tensor, "outputs inputs"]

    def set_mask(self, mask: Bool[Tensor, "outputs inputs"]) -> None:
        """Keep the update zero where `mask` is False."""
        weight = self.get_base_layer().weight
        if mask.shape != weight.shape:
            raise ValueError(f"mask of shape {tuple(mask.shape)} for a weight of shape {tuple(weight.shape)}; take this weight's own mask")
        self.register_buffer("mask", mask.to(weight.device), persistent=False)

    def get_delta_weight(self, adapter: str) -> Float[Tensor, "outputs inputs"]:
        """The masked update ``M * (alpha / r * B A)``, differentiable in A and B."""
        return super().get_delta_weight(adapter) * self.mask

    def forward(self, x: Float[Tensor, "*batch inputs"], *args: Any, **kwargs: Any) -> Float[Tensor, "*batch outputs"]:
        """The layer with the adapted weight; where dropout is on, base layer plus update of the dropped-out inputs."""
        if self.disable_adapters or self.merged:
            return super().forward(x, *args, **kwargs)
        (adapter,) = self.active_adapters  # a stage has one
        base, dropout, update = self.get_base_layer(), self.lora_dropout[adapter], self.get_delta_weight(adapter)
        if self.training and not isinstance(dropout, nn.Identity):
            return base(x) + nn.functional.linear(dropout(x), update)
        return nn.functional.linear(x, base.weight + update, base.bias)


def masked_layers(config: LoraConfig) -> LoraConfig:
    """`config`, changed to make masked layers of linear ones; PEFT writes no such choice into a saved adapter's configuration."""
    config._register_custom_module({nn.Linear: MaskedLoraLinear})
    return config


def set_masks(model: nn.Module, masks: Masks) -> None:
    """Give every masked layer of `model` the mask of its weight; KeyError where there is none."""
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedLoraLinear):
            layer.set_mask(masks.weights[f"{name}.weight"])


def load_masked_adapter(model: nn.Module, directory: Path, masks: Masks) -> PeftModel:
    """Put the adapter saved in `directory` on `model`, in place, with its update inside `masks`: the outputs it was trained to.

    `model` holds the weights that the adapter was trained on, `masks` are those of its arm.
    """
    adapted = PeftModel.from_pretrained(model, directory, config=masked_layers(LoraConfig.from_pretrained(directory)))
    set_masks(adapted.get_base_model(), masks)
    return adapted
