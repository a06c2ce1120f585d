"""Wanda++: regional gradients and regional optimisation (Yang et al. 2025, arXiv:2503.04992; paper, section Conversion).

No official code exists. For each decoder layer ("region") f with dense weights: the regional gradient
G_ij = sqrt(mean over samples of (d ||f(X_n)||_2 / d W_ij)^2), the score S_ij = (alpha G_ij + ||X_j||_2) |W_ij|,
and K rounds of: prune by S with fresh ||X_j||, then one RMSprop step per sample on the mean squared error between
the dense and the pruned layer's outputs. A last pruning restores the pattern.

The two norms are not normalised alike, which matters once alpha > 0: ||X_j||^2 is the sum over the tokens of a
sample, averaged over samples (as in Wanda's code); G is per sample, with the loss summed over all tokens and units.
"""

from typing import Any

import torch
from compressed_tensors.utils import align_module_device, match_named_modules, update_offload_parameter
from jaxtyping import Float
from llmcompressor.core import Event, State
from llmcompressor.modifiers.pruning import WandaPruningModifier
from llmcompressor.modifiers.utils.hooks import HooksMixin
from pydantic import PrivateAttr
from torch import Tensor, nn

from sparsecl.mask_selection import select
from sparsecl.topologies import parse_topology

Call = tuple[tuple, dict[str, Any]]  # arguments and keyword arguments of one forward call of a decoder layer


class WandaPlusPlusModifier(WandaPruningModifier):
    """Wanda++ for any topology; with `alpha` 0 and no `rounds` it prunes exactly like Wanda."""

    topology: str
    density: float
    alpha: float = 100.0
    rounds: int = 5
    samples: int = 32
    learning_rate: float = 3e-7
    seed: int = 0

    _calls: dict[nn.Module, list[Call]] = PrivateAttr(default_factory=dict)

    def on_calibration_start(self, state: State, event: Event, **kwargs) -> None:
        super().on_calibration_start(state, event, **kwargs)
        for _, layer in match_named_modules(state.model, self._sequential_targets):
            self.register_hook(layer, self._remember, "forward_pre", with_kwargs=True)

    def _remember(self, layer: nn.Module, positional: tuple, named: dict) -> None:
        self._calls.setdefault(layer, []).append((positional, named))

    def on_sequential_epoch_end(self, state: State, event: Event, modules: list[nn.Module] | None = None, **kwargs) -> None:
        for layer in [layer for layer in self._calls if layer in set(modules or self._calls)]:
            with HooksMixin.disable_hooks(), align_module_device(layer):
                self._convert_region(layer, self._calls.pop(layer))
        self._row_scalars.clear()
        self._num_samples.clear()

    def _convert_region(self, layer: nn.Module, calls: list[Call]) -> None:
        linears = [module for module in layer.modules() if module in self._num_samples]
        gradients = regional_gradients(layer, linears, calls) if self.alpha else [torch.zeros_like(linear.weight) for linear in linears]
        chosen = self._sample(calls)
        with torch.no_grad():
            targets = [output_of(layer, call) for call in chosen] if self.rounds else []
        norms = [self._row_scalars[linear].sqrt() for linear in linears]
        for _ in range(self.rounds):
            self._prune(linears, gradients, norms)
            optimise_region(layer, linears, chosen, targets, self.learning_rate)
            norms = input_norms(layer, linears, calls)
        self._prune(linears, gradients, norms)

    def _sample(self, calls: list[Call]) -> list[Call]:
        order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(self.seed))
        return [calls[index] for index in order[: self.samples]]

    @torch.no_grad()
    def _prune(self, linears: list[nn.Module], gradients: list[Tensor], norms: list[Tensor]) -> None:
        topology = parse_topology(self.topology)
        for linear, gradient, norm in zip(linears, gradients, norms, strict=True):
            score = regional_score(linear.weight, gradient, norm, self.alpha)
            kept = select(topology, score, self.density)
            update_offload_parameter(linear, "weight", linear.weight.masked_fill(~kept, 0.0))


def regional_score(
    weight: Float[Tensor, "outputs inputs"], gradient: Float[Tensor, "outputs inputs"], norm: Float[Tensor, " inputs"], alpha: float
) -> Float[Tensor, "outputs inputs"]:
    """S_ij = (alpha G_ij + ||X_j||_2) |W_ij| (Wanda++, equation 4)."""
    return (alpha * gradient.float() + norm) * weight.abs().float()


def output_of(layer: nn.Module, call: Call) -> Tensor:
    """The hidden states a decoder layer returns."""
    positional, named = call
    output = layer(*positional, **named)
    return output[0] if isinstance(output, tuple) else output


def regional_gradients(layer: nn.Module, linears: list[nn.Module], calls: list[Call]) -> list[Tensor]:
    """G of every linear layer: root mean square over calls of the gradient of the region's output norm."""
    weights = [linear.weight.requires_grad_() for linear in linears]
    squares = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
    for call in calls:
        with torch.enable_grad():
            gradients = torch.autograd.grad(output_of(layer, call).float().norm(), weights, allow_unused=True)
        for square, gradient in zip(squares, gradients, strict=True):
            if gradient is not None:  # an expert that this sample does not reach
                square += gradient.float() ** 2
    return [(square / len(calls)).sqrt() for square in squares]


def optimise_region(layer: nn.Module, linears: list[nn.Module], calls: list[Call], targets: list[Tensor], learning_rate: float) -> None:
    """One RMSprop step per call on the mean squared error to the dense outputs; pruned weights may move meanwhile."""
    optimizer = torch.optim.RMSprop([linear.weight.requires_grad_() for linear in linears], lr=learning_rate)
    for call, target in zip(calls, targets, strict=True):
        optimizer.zero_grad()
        with torch.enable_grad():
            nn.functional.mse_loss(output_of(layer, call), target).backward()
        optimizer.step()
    layer.zero_grad()  # or every converted layer would go on holding gradients as large as its weights


@torch.no_grad()
def input_norms(layer: nn.Module, linears: list[nn.Module], calls: list[Call]) -> list[Tensor]:
    """Fresh ||X_j||_2 of every linear layer: squares summed over a sample's tokens, averaged over samples."""
    squares = {linear: torch.zeros(linear.weight.shape[1], device=linear.weight.device) for linear in linears}

    def accumulate(linear: nn.Module, inputs: tuple) -> None:
        squares[linear] += inputs[0].reshape(-1, inputs[0].shape[-1]).float().square().sum(0) / len(calls)

    handles = [linear.register_forward_pre_hook(accumulate) for linear in linears]
    try:
        for call in calls:
            output_of(layer, call)
    finally:
        for handle in handles:
            handle.remove()
    return [squares[linear].sqrt() for linear in linears]
