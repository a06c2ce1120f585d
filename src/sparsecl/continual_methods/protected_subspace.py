"""The subspace of each layer's inputs that a finished domain needs (paper, section Methods; Saha et al. 2021, GPM).

A layer computes ``W x``. Of a domain it is known, as a second moment over the layer's input space (inputs x inputs),
either of two things:

``inputs``     C = sum over tokens of x x^T. Where an update dW has dW M = 0 for the leading directions M of C, the layer's
               outputs on the domain's inputs stay as they are, whatever the outputs are used for (GPM).
``gradients``  C = sum over batches of G_b^T G_b, with G_b = dL_b/dW = sum over tokens of delta x^T the gradient of the
               domain's answer loss. Where dW M = 0, <dW, G_b> = 0: the loss stays as it is, to first order alone. On a dense
               arm the rows of G_b are sums of inputs: less is protected, and more left for the next domain.

A basis M grows by the leading directions of what it does not hold yet, ``(I - M M^T) C (I - M M^T)``, until it holds the
share `energy` of the trace of C: ``||R M||_F^2 >= energy ||R||_F^2`` with ``C = R^T R`` (GPM, eq. 9).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparsecl.masks import Masks, prunable_weights
from sparsecl.tokenizer import Row
from sparsecl.training import pad_rows, token_weights, weighted_loss

ROWS_AT_ONCE = 64  # of a forward pass
ROWS_A_GRADIENT = 8  # rows behind one gradient: the fewer, the more directions a domain's gradients take


def grown_basis(
    basis: Float64[Tensor, "inputs k"], moment: Float64[Tensor, "inputs inputs"], energy: float
) -> Float64[Tensor, "inputs more"]:
    """`basis` with the fewest further directions that bring its share of the trace of `moment` to `energy`.

    `basis` is orthonormal, `moment` symmetric and positive semidefinite, `energy` below 1. What was protected stays so.
    """
    total = float(moment.trace())
    outside = moment - basis @ (basis.T @ moment)
    residual = outside - (outside @ basis) @ basis.T
    values, directions = torch.linalg.eigh((residual + residual.T) / 2)
    values, directions = values.flip(0).clamp(min=0), directions.flip(1)
    covered = total - float(values.sum()) + values.cumsum(0)  # by the basis and the first 1, 2, ... directions
    if total - float(values.sum()) >= energy * total:
        return basis
    count = int((covered < energy * total).sum()) + 1
    return orthonormal(torch.cat([basis, directions[:, :count]], 1))


def orthonormal(columns: Float64[Tensor, "inputs k"]) -> Float64[Tensor, "inputs k"]:
    """Orthonormal columns of the same span; columns are linearly independent and no more than `inputs`."""
    return torch.linalg.qr(columns)[0].contiguous()  # as a file gives it back: products depend on the layout, in the last bit


def project_away(rows: Float[Tensor, "rank inputs"], basis: Float[Tensor, "inputs k"]) -> Float[Tensor, "rank inputs"]:
    """``A (I - M M^T)``: the rows of A without their part in the span of the orthonormal M."""
    return rows - (rows @ basis) @ basis.T


def protected_component(updates: Mapping[str, Tensor], bases: Mapping[str, Tensor]) -> float:
    """``||dW M||_F / ||dW||_F`` over all layers together, a share in 0 to 1; NaN where nothing moved.

    `updates` (outputs, inputs) and orthonormal `bases` (inputs, k) have the same names.
    """
    inside = sum(float((update.double() @ bases[name].double()).square().sum()) for name, update in updates.items())
    whole = sum(float(update.double().square().sum()) for update in updates.values())
    return (inside / whole) ** 0.5 if whole else float("nan")


# Second moments of a domain


def linear_layers(model: nn.Module, method: str) -> dict[str, nn.Module]:
    """The prunable linear layers by the name of their weight; ValueError where a model keeps experts in stacked parameters."""
    weights = prunable_weights(model)
    if stacked := [name for name, weight in weights.items() if weight.ndim != 2]:
        raise ValueError(f"{method}: {stacked[0]} holds stacked experts, whose inputs differ by expert; use another method for this model")
    return {name: model.get_submodule(name.removesuffix(".weight")) for name in weights}


def input_moments(model: nn.Module, rows: Sequence[Row], method: str) -> dict[str, Float64[Tensor, "inputs inputs"]]:
    """Sum over the real tokens of `rows` of x x^T, x the input of each prunable linear layer, by the name of its weight."""
    layers, moments, device = linear_layers(model, method), {}, next(model.parameters()).device
    real = torch.empty(0)

    def receive(name: str, inputs: Float[Tensor, "rows tokens inputs"]) -> None:
        chosen = inputs[real].double()  # a moment's rounding is that of squares: in float32 it would hide small directions
        moments[name] = moments.get(name, 0) + chosen.T @ chosen

    handles = [layer.register_forward_pre_hook(_handing_over(receive, name)) for name, layer in layers.items()]
    try:
        with _evaluating(model), torch.no_grad():
            for batch in _batches(rows, ROWS_AT_ONCE, f"{method}: inputs"):
                ids, lengths, _ = pad_rows(batch)
                real = (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)
                model.model(ids.to(device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return moments


def gradient_moments(
    model: nn.Module, rows: Sequence[Row], masks: Masks | None, method: str
) -> dict[str, Float64[Tensor, "inputs inputs"]]:
    """Sum over batches of G^T G, G the gradient of the mean answer loss of `ROWS_A_GRADIENT` rows, by name of the weight.

    On a sparse arm G is masked. For an update ``K * (B A)`` under the mask K, ``<K * (B A), G> = <B A, K * G>``: with A
    outside the row space of K * G the loss stays as it is to first order although the masked update leaves that subspace.
    """
    linear_layers(model, method)
    weights, kept = prunable_weights(model), {} if masks is None else masks.weights
    moments = {name: weight.new_zeros(weight.shape[1], weight.shape[1], dtype=torch.float64) for name, weight in weights.items()}
    device = next(model.parameters()).device
    with _evaluating(model):
        for batch in _batches(rows, ROWS_A_GRADIENT, f"{method}: gradients"):
            ids, lengths, starts = pad_rows(batch)
            answers = token_weights(lengths, starts, ids.shape[1], 0.0)
            loss = weighted_loss(model, ids.to(device), answers.to(device))
            for name, gradient in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                gradient = (gradient * kept[name].to(gradient.device) if name in kept else gradient).double()
                moments[name] += gradient.T @ gradient
    return moments


def _handing_over(receive: Callable[[str, Tensor], None], name: str):
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:  # a pre-hook that returned something would replace the input
        receive(name, inputs[0])

    return hook


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _batches(rows: Sequence[Row], size: int, description: str) -> Iterator[Sequence[Row]]:
    ordered = sorted(rows, key=lambda row: len(row.ids))  # like lengths beside each other: little padding
    for start in tqdm(range(0, len(ordered), size), desc=description, delay=3):
        yield ordered[start : start + size]
