"""O-LoRA: a penalty that keeps a new adapter's input directions apart from earlier ones (paper, section Methods).

Wang et al. 2023, as published (cmnfriend/O-LoRA, src/uie_trainer_lora.py): with the A (rank x inputs, PEFT's `lora_A`) of
all finished domains stacked to A_old, frozen, the loss of a step gains

    l1 * sum over layers of sum |A_old A_new^T|  +  l2 * sum over the new A and B of ||.||_2

(the paper writes squared entries and the norm of the other factor; the code is followed). Inference there uses the sum
of all adapters, which is here the merged weight. The sum grows with layers, rank squared and finished domains and falls
with the square root of the width: at the published l1 it starts far above the answer loss, about 1 nat, and leads the first
steps. The penalty only discourages overlap; how much of the update still lies in the span of A_old is recorded as
`protected_component`, the measure that `orthogonal_lora` holds at zero. On a sparse arm the base is masked LoRA.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsecl.continual_methods.lora import ADAPTER, LowRankAdaptation
from sparsecl.continual_methods.method import Stage, StageContext
from sparsecl.continual_methods.orthogonal_lora import adapter_layers, beside, updates_of
from sparsecl.continual_methods.protected_subspace import linear_layers, protected_component
from sparsecl.continual_methods.stream_state import check_follows, load_tensors, save_tensors
from sparsecl.masks import Masks
from sparsecl.method_settings import OLora
from sparsecl.training import Penalty

NAME = "o-lora"


class PenalisedLowRankAdaptation(LowRankAdaptation):
    """LoRA with the penalty; the state is the A of every finished stage, stacked, and the domains behind them."""

    def __init__(self, settings: OLora) -> None:
        super().__init__(settings)
        self._settings: OLora = settings
        self._earlier: dict[str, Tensor] = {}
        self._domains: tuple[str, ...] = ()

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        check_follows(NAME, context, self._domains)
        linear_layers(model, NAME)  # refuses stacked experts
        with super().stage(model, masks, context) as stage:
            adapters = adapter_layers(model)
            self._earlier = beside(adapters, self._earlier)
            stage.penalty = adapter_penalty(self._earlier, self._settings.l1, self._settings.l2)
            yield stage
            new = {name: layer.lora_A[ADAPTER].weight.detach().clone() for name, layer in adapters.items()}
            component = protected_component(updates_of(adapters), _row_spaces(self._earlier)) if self._earlier else None
        if component is not None:
            stage.measures |= {"protected_component": component}
        self._earlier = {name: torch.cat([self._earlier[name], a]) if self._earlier else a for name, a in new.items()}
        self._domains = (*context.earlier, context.domain)

    def save_state(self, path: Path) -> None:
        save_tensors(path, self._earlier, self._domains)

    def load_state(self, path: Path) -> None:
        """Take up a saved state; BrokenFile where `path` is missing or not whole."""
        self._earlier, self._domains = load_tensors(path, NAME)


def adapter_penalty(earlier: Mapping[str, Tensor], l1: float, l2: float) -> Penalty | None:
    """The penalty above, a function of the model with its adapters, in the unit of the loss; None where it is always zero.

    `earlier` holds the stacked A_old (finished stages times rank, inputs) of every layer; empty in the first stage.
    """
    if not l2 and not (l1 and earlier):
        return None

    def penalty(model: nn.Module) -> Float[Tensor, ""]:
        terms = []
        for name, layer in adapter_layers(model).items():
            a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
            if l1 and earlier:
                terms.append(l1 * overlap(earlier[name], a))
            if l2:
                terms.append(l2 * (torch.linalg.vector_norm(a) + torch.linalg.vector_norm(b)))
        return torch.stack(terms).sum()

    return penalty


def overlap(earlier: Float[Tensor, "old inputs"], new: Float[Tensor, "rank inputs"]) -> Float[Tensor, ""]:
    """``sum |A_old A_new^T|``, zero where every row of the one is orthogonal to every row of the other."""
    return (earlier @ new.T).abs().sum()


def _row_spaces(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Orthonormal columns that span the rows of every matrix."""
    spaces = {}
    for name, values in rows.items():
        _, sizes, directions = torch.linalg.svd(values.double(), full_matrices=False)
        spaces[name] = directions[sizes > 1e-10 * sizes[0]].T  # dependent rows span less
    return spaces
