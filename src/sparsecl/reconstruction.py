"""What a conversion does to the layers themselves, apart from the loss it causes (paper, section Results).

Two conversions can order one way by the error of the layers' outputs and the other way by the loss. Measured on
the inputs of the dense model: the relative error of a pruned layer's output, the share of squared weight that its
mask keeps, and how unequal the layer's input features are, which is what Wanda's score can use beyond the magnitude.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsecl.masks import Masks, prunable_weights
from sparsecl.tokenizer import Row


def prunable_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers behind the prunable weights; stacked experts are no linear layers and are left out."""
    modules = {name: model.get_submodule(name.rpartition(".")[0]) for name in prunable_weights(model)}
    return {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}


def kept_energy(dense: nn.Module, masks: Masks) -> float:
    """Share of the squared dense weights that the masks keep, mean over weights; a random mask keeps its density."""
    weights = prunable_weights(dense)
    shares = [
        float((weights[name].detach() ** 2)[mask].sum() / (weights[name].detach() ** 2).sum()) for name, mask in masks.weights.items()
    ]
    return float(np.mean(shares))


@torch.no_grad()
def layer_inputs(dense: nn.Module, converted: Mapping[str, nn.Module], rows: Sequence[Row]) -> tuple[dict[str, float], float]:
    """Errors of the converted layers by name, and the spread of the input features; one pass of `rows` through `dense`.

    Error: sum over tokens of ||(W' - W) x||^2 / ||W x||^2 with the dense model's inputs x, mean over the linear layers.
    Spread: standard deviation over mean of the input norms ||X_j||_2, mean over the layers.
    """
    linears = prunable_linears(dense)
    others = {key: prunable_linears(model) for key, model in converted.items()}
    changes = {name: {key: found[name].weight - linear.weight for key, found in others.items()} for name, linear in linears.items()}
    errors = {name: dict.fromkeys(converted, 0.0) for name in linears}
    outputs, squares = dict.fromkeys(linears, 0.0), dict.fromkeys(linears, 0.0)

    def observe(name: str, inputs: Float[Tensor, "*tokens inputs"], output: Float[Tensor, "*tokens outputs"]) -> None:
        squares[name] = squares[name] + inputs.flatten(0, -2).square().sum(0)  # a shared expert's tokens come in one row
        outputs[name] += float(output.square().sum())
        for key, change in changes[name].items():
            errors[name][key] += float((inputs @ change.T).square().sum())

    handles = [
        linear.register_forward_hook(lambda _, inputs, output, name=name: observe(name, inputs[0], output))
        for name, linear in linears.items()
    ]
    try:
        for row in rows:
            dense(torch.from_numpy(row.ids)[None])
    finally:
        for handle in handles:
            handle.remove()
    relative = {key: float(np.mean([errors[name][key] / outputs[name] for name in linears])) for key in converted}
    norms = [squares[name].sqrt() for name in linears]
    return relative, float(np.mean([float(norm.std() / norm.mean()) for norm in norms]))
