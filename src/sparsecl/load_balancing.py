"""The load-balancing loss of a base with routed experts (paper, section Models).

Nothing else keeps a router from sending most tokens to a few experts, and an expert without tokens is never trained. It is part
of the pretraining of the base alone: recovery and every stage of a stream train without it, as transformers does by default.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@contextmanager
def load_balancing(model: nn.Module, coefficient: float | None) -> Iterator[Callable[[nn.Module], Float[Tensor, ""]] | None]:
    """Inside, the penalty for `training.train`: `coefficient` times the mean of `imbalance` over layers, of the last forward pass.

    None where `coefficient` is absent or 0. Padding (`pad_token_id` of the model's configuration) is not counted.
    """
    if not coefficient:
        yield None
        return
    kept: list[Bool[Tensor, " tokens"]] = [torch.empty(0, dtype=torch.bool)]
    layers: list[Float[Tensor, ""]] = []
    padding = model.config.pad_token_id

    def begin(_module: nn.Module, inputs: tuple) -> None:
        layers.clear()
        kept[0] = torch.ones_like(inputs[0], dtype=torch.bool).flatten() if padding is None else (inputs[0] != padding).flatten()

    def measure(_router: nn.Module, _inputs: tuple, output: tuple) -> None:
        logits, _weights, experts = output
        layers.append(imbalance(logits[kept[0]], experts[kept[0]]))

    handles = [model.get_input_embeddings().register_forward_pre_hook(begin)]
    handles += [router.register_forward_hook(measure) for router in routers(model)]
    try:
        yield lambda _model: coefficient * torch.stack(layers).mean()
    finally:
        for handle in handles:
            handle.remove()


def routers(model: nn.Module) -> list[nn.Module]:
    """The routers of a model of transformers, first layer first: each returns (logits, weights, experts) of its tokens.

    ValueError for a model without routed experts.
    """
    found = [module for module in model.modules() if type(module).__name__.endswith("TopKRouter")]
    if not found:
        raise ValueError(f"{type(model).__name__} has no module named *TopKRouter; only models with routed experts have a load")
    return found


def imbalance(logits: Float[Tensor, "tokens experts"], chosen: Int[Tensor, "tokens k"]) -> Float[Tensor, ""]:
    """E sum_i f_i P_i of one layer: f_i the share of assignments that expert i gets, P_i its mean probability.

    1 where both are uniform, E / k where the same k experts get everything (Fedus et al. 2022, equations 4 to 6, with the
    shares normalised over the k choices). transformers' own function adds the loads of all layers up before it multiplies,
    so that one layer's idle expert i can be made good by another's; here every layer is balanced by itself.
    """
    experts = logits.shape[-1]
    share = torch.bincount(chosen.flatten(), minlength=experts).to(logits.dtype) / chosen.numel()
    return experts * (share * logits.float().softmax(-1).mean(0)).sum()
