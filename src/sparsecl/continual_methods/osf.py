"""OSF: the leading singular directions of every weight stay, the others train (paper, section Methods; Nayak et al. 2025).

``W = U_hi S_hi V_hi + U_lo S_lo V_lo``; the first part, a fraction of the rank, is frozen, U_lo, S_lo and V_lo train. Each
stage decomposes the weights it starts from, by PEFT's own layer, and merges at its end. The frozen fraction is the same at
every stage; the publication's grows with finished domains and differs between layers.

PEFT projects the gradients of U_lo and V_lo off U_hi and V_hi, not the step. AdamW divides a gradient element by element,
so that ``U_hi^T U_lo`` does not stay zero: on a small model ||U_hi^T U_lo|| / ||U_lo|| goes from 3e-7 to 0.015 in 20 steps
at learning rate 1e-3 and to 0.05 in 100, and a tenth of the update lies along V_hi, which is recorded as
`protected_component` (under plain gradient descent both stay at rounding; tested). The result is dense: a sparse arm is
refused. A step computes the base product and two factored ones in every layer (PEFT 0.21), which `sparsecl.flops` does not
count, so that its FLOPs are left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import OSFConfig
from peft.tuners.osf import OSFModel
from peft.tuners.osf.layer import OSFLayer
from torch import Tensor, nn

from sparsecl.continual_methods.lora import ADAPTER
from sparsecl.continual_methods.method import Method, Stage, StageContext, trainable_parameters
from sparsecl.continual_methods.protected_subspace import linear_layers, protected_component
from sparsecl.masks import Masks
from sparsecl.method_settings import Osf

NAME = "osf"


class OrthogonalSubspaceFineTuning(Method):
    """Training of the trailing singular directions; nothing but the merged model goes on to the next stage."""

    def __init__(self, settings: Osf) -> None:
        self._settings = settings

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        if masks is not None:
            raise ValueError(
                f"{NAME}: a sum of dense factors has no zeros, so that the topology {masks.topology} would be lost; use a dense arm"
            )
        rows = context.rows_of(context.domain)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(context.seed(f"osf-{context.domain}"))
            adapted = add_decompositions(model, self._settings)
            stage = Stage(rows, context.plan(rows, context.batch), None, trainable_parameters(model, None), flops_known=False)
            yield stage
        with torch.no_grad():
            layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, OSFLayer)}
            updates = {name: layer.get_delta_weight(ADAPTER) for name, layer in layers.items()}
            frozen = {name: frozen_inputs(layer) for name, layer in layers.items()}
        stage.measures = {"protected_component": protected_component(updates, frozen)}
        adapted.merge_and_unload(safe_merge=True)
        model.requires_grad_(True)


def add_decompositions(model: nn.Module, settings: Osf) -> OSFModel:
    """Decompose every prunable linear layer of `model`, in place, and freeze all else; the model computes what it did."""
    targets = [name.removesuffix(".weight") for name in linear_layers(model, NAME)]
    return OSFModel(model, OSFConfig(effective_rank=settings.frozen, target_modules=targets), ADAPTER)


def frozen_inputs(layer: OSFLayer) -> Tensor:
    """V_hi of the weight that the stage started from, transposed: orthonormal columns (inputs, frozen rank).

    Taken anew: PEFT keeps it only where the trailing directions do not determine it.
    """
    directions = torch.linalg.svd(layer.get_base_layer().weight, full_matrices=False)[2]
    return directions[: layer.effective_rank[ADAPTER]].T
