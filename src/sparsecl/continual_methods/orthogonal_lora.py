"""LoRA whose update of a new domain lies outside what earlier domains need (paper, section Methods, arm B of H5).

Every prunable linear layer has an orthonormal basis M of its protected input directions (`protected_subspace`: the row
space of earlier domains' gradients, or, as in GPM, their inputs). An adapter's update is ``dW = alpha / r * B A`` and the
rows of A live in the input space, so that ``dW M = 0`` follows from ``A M = 0``. Projecting A's gradient would not do:
AdamW divides it element by element and carries momentum, and its step is not orthogonal where the gradient is. Hence what
was applied is projected, at the start and after every step: ``A <- A (I - M M^T)``.

The threshold has no cap. A layer whose basis fills its input space can learn nothing more and is left untrained
(`Stage.measures`: `full_layers`). On a sparse arm the update is ``K * (alpha / r * B A)`` with the layer's mask K
(`masked_lora`), and the topology has priority: dW M is then not zero. How much of the update lies in the protected
subspace is recorded as `protected_component`; with a basis of (masked) gradients earlier losses are kept to first order
even so, see `protected_subspace.gradient_moments`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from sparsecl.continual_methods.lora import ADAPTER, LowRankAdaptation
from sparsecl.continual_methods.method import Stage, StageContext, trainable_parameters
from sparsecl.continual_methods.protected_subspace import (
    gradient_moments,
    grown_basis,
    input_moments,
    linear_layers,
    project_away,
    protected_component,
)
from sparsecl.continual_methods.stream_state import check_follows, load_tensors, save_tensors
from sparsecl.flops import consumption_of
from sparsecl.masks import Masks
from sparsecl.method_settings import OrthogonalLora
from sparsecl.records import Stopwatch
from sparsecl.tokenizer import Row

NAME = "orthogonal-lora"


class OrthogonalLowRankAdaptation(LowRankAdaptation):
    """LoRA outside the protected subspace; the state is the basis of every layer and the domains behind them.

    Without a finished domain it is LoRA.
    """

    def __init__(self, settings: OrthogonalLora) -> None:
        super().__init__(settings)
        self._settings: OrthogonalLora = settings
        self._bases: dict[str, Tensor] = {}
        self._domains: tuple[str, ...] = ()

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        check_follows(NAME, context, self._domains)
        linear_layers(model, NAME)
        with super().stage(model, masks, context) as stage:
            adapters = adapter_layers(model)
            self._bases = beside(adapters, self._bases)
            if self._bases:
                full = leave_untrained(adapters, self._bases)
                stage.constrain, stage.trainable = constraint(adapters, self._bases), trainable_parameters(model, None)
                stage.constrain()
            yield stage
            component = protected_component(updates_of(adapters), self._bases) if self._bases else None
        if component is not None:
            stage.measures |= {"protected_component": component, "protected_share": _share(self._bases), "full_layers": len(full)}
        if not context.is_last:
            self._protect(model, stage, masks, context)

    def _protect(self, model: nn.Module, stage: Stage, masks: Masks | None, context: StageContext) -> None:
        """Grow the bases by the finished domain; say on the stage what that passed through the model."""
        watch, rows = Stopwatch(), drawn_rows(stage.rows, self._settings.basis_rows, context)
        if self._settings.basis == "inputs":
            moments = input_moments(model, rows, NAME)
            stage.probe = consumption_of([(len(row.ids), row.answer_start) for row in rows], prompt_weight=0.0).without_head()
        else:
            moments = gradient_moments(model, rows, masks, NAME)
            stage.extra = consumption_of([(len(row.ids), row.answer_start) for row in rows], prompt_weight=0.0)
        for name, moment in moments.items():
            basis = self._bases.get(name, moment.new_zeros(len(moment), 0))
            self._bases[name] = grown_basis(basis, moment, self._settings.energy)
        self._domains = (*context.earlier, context.domain)
        stage.extra_seconds = watch.seconds()

    def save_state(self, path: Path) -> None:
        save_tensors(path, self._bases, self._domains)

    def load_state(self, path: Path) -> None:
        """Take up a saved state; BrokenFile where `path` is missing or not whole."""
        self._bases, self._domains = load_tensors(path, NAME)


def drawn_rows(rows: Sequence[Row], count: int, context: StageContext) -> list[Row]:
    """At most `count` rows of the stage's domain, drawn without replacement, the same for every arm."""
    chosen = context.generator(f"basis-{context.domain}").choice(len(rows), min(count, len(rows)), replace=False)
    return [rows[index] for index in chosen]


def adapter_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers of `model` that hold a stage's adapter, by the name their weight has without it."""
    return {f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def beside(adapters: Mapping[str, LoraLayer], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A method's `state` with every layer's tensor on the device of its adapter; a state read from a file lies on the CPU."""
    return {name: values.to(adapters[name].lora_A[ADAPTER].weight.device) for name, values in state.items()}


@torch.no_grad()
def updates_of(adapters: Mapping[str, LoraLayer]) -> dict[str, Tensor]:
    """What a merge would add to each weight, (outputs, inputs)."""
    return {name: layer.get_delta_weight(ADAPTER) for name, layer in adapters.items()}


def leave_untrained(adapters: Mapping[str, LoraLayer], bases: Mapping[str, Tensor]) -> list[str]:
    """Freeze the adapters, whose update is still zero, of layers whose basis fills the input space; return their names.

    There A would be projected to rounding noise, which AdamW's division makes a step of ordinary length for B.
    ValueError where no layer could learn.
    """
    full = [name for name in adapters if bases[name].shape[0] == bases[name].shape[1]]
    if len(full) == len(adapters):
        raise ValueError(f"{NAME}: earlier domains protect the whole input space of all {len(full)} layers; lower its energy")
    for name in full:
        adapters[name].lora_A[ADAPTER].requires_grad_(False)
        adapters[name].lora_B[ADAPTER].requires_grad_(False)
    return full


def constraint(adapters: Mapping[str, LoraLayer], bases: Mapping[str, Tensor]) -> Callable[[], None]:
    """What is called after every step: ``A <- A (I - M M^T)`` in every layer that trains, in place."""
    rows = {name: layer.lora_A[ADAPTER].weight for name, layer in adapters.items()}
    pairs = [(a, bases[name].to(a)) for name, a in rows.items() if a.requires_grad and bases[name].shape[1]]

    @torch.no_grad()
    def constrain() -> None:
        for a, basis in pairs:
            a.copy_(project_away(a, basis))

    return constrain


def _share(bases: Mapping[str, Tensor]) -> float:
    """Protected share of the input directions, over all layers."""
    return sum(basis.shape[1] for basis in bases.values()) / sum(basis.shape[0] for basis in bases.values())
