"""The paths of a domain's units as a sparse side branch on frozen weights (paper, section Methods; second proposal, method A).

The adapted weight is ``W + D`` with D zero but on the selected paths. The layers are PEFT's Super-Tuning (arXiv 2607.09287),
which trains the entries of D at a list of places; in place of the largest weights the places are those of the paths. PEFT's
SHiRA takes a mask of one's own, but of exactly r (m + n) entries, which whole paths hardly ever make. PEFT has one size for
all layers: where a mask leaves unequally many weights alive on the paths, every layer takes as many as the poorest has, those
of the unit used least left out first. At the stage's end the branch is merged.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from jaxtyping import Bool, Int
from peft import SupertuningConfig
from peft.tuners.supertuning import SupertuningModel
from peft.tuners.supertuning.layer import SupertuningLayer
from torch import Tensor, nn

from sparsecl.continual_methods.activation_mask import ActivationMask, Choice
from sparsecl.continual_methods.lora import ADAPTER, merge_adapters, sparsities
from sparsecl.continual_methods.method import Stage, StageContext, trainable_parameters
from sparsecl.continual_methods.unit_selection import gradients_formed, has_experts, path_masks, unit_parameters
from sparsecl.masks import Masks

Places = Mapping[str, Int[Tensor, " entries"]]  # parameter name -> places in its flattened weight, ascending


class ActivationMaskBranch(ActivationMask):
    """The same selection as `activation-mask`; what is trained is a sparse update beside frozen weights."""

    name = "activation-mask-branch"

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        if has_experts(model):
            raise ValueError(f"{self.name}: {type(model).__name__} holds stacked experts, which have no sparse branch; use activation-mask")
        self._history.check(context)
        choice = self._choose(model, context)
        rows, places = context.rows_of(context.domain), places_of(model, choice, masks)
        formed, adapted = gradients_formed(model, places), add_branch(model, places)
        stage = Stage(
            rows,
            context.plan(rows, context.batch),
            masks=None,  # the branch is within the arm's masks
            trainable=trainable_parameters(model, None),
            weight_gradients=formed,
            probe=choice.probe,
            extra_seconds=choice.seconds,
            selections=self._history.compared(choice.selected),
        )
        yield stage
        merge_adapters(adapted, masks, f"merging the branch of {context.domain}")
        stage.measures = sparsities(model, stage.trainable)
        self._history.add(context.domain, choice.selected)


def places_of(model: nn.Module, choice: Choice, masks: Masks | None) -> Places:
    """The entries of the branch: as many in every layer, all on the paths of the selected units and alive under `masks`."""
    paths = path_masks(model, choice.selected, masks)
    count = min(int(path.sum()) for path in paths.values())
    return {
        name: _first_places(paths[name], dimension, use, count)
        for use, held in zip(choice.use, unit_parameters(model), strict=True)
        for name, dimension in held.items()
    }


def _first_places(path: Bool[Tensor, "outputs inputs"], dimension: int, use: Tensor, count: int) -> Int[Tensor, " entries"]:
    """The `count` marked places whose units are used most; within a unit the first."""
    places = path.flatten().nonzero()[:, 0]
    units = path.nonzero()[:, dimension]
    return places[use[units].argsort(descending=True, stable=True)[:count]].sort().values


def branch_config(model: nn.Module, places: Places) -> SupertuningConfig:
    """PEFT's settings of a branch with these places; ValueError unless there are equally many in weights of one size."""
    sizes = {(model.get_parameter(name).numel(), len(entries)) for name, entries in places.items()}
    if len(sizes) != 1 or min(sizes)[1] == 0:
        raise ValueError(
            f"activation-mask-branch: (weights, places) of the layers are {sorted(sizes)}, wanted one pair with at least one place; "
            "choose a larger fraction, or use activation-mask"
        )
    ((size, count),) = sizes
    sparsity = 1 - (count + 0.5) / size  # PEFT rounds the number of entries down
    return SupertuningConfig(sparsity=sparsity, target_modules=[name.removesuffix(".weight") for name in places])


def add_branch(model: nn.Module, places: Places) -> SupertuningModel:
    """Put a branch that is zero on the layers that `places` names, in place, and freeze all else."""
    adapted = SupertuningModel(model, branch_config(model, places), ADAPTER)
    put_places(model, places, ADAPTER)
    return adapted


def put_places(model: nn.Module, places: Places, adapter: str) -> None:
    """Move the entries of a new branch from the largest weights, where PEFT puts them, to `places`."""
    for name, layer in branches(model).items():
        layer.supertuning_indices[adapter] = places[f"{name}.weight"].to(layer.supertuning_indices[adapter])


def branches(model: nn.Module) -> dict[str, SupertuningLayer]:
    """The layers with a branch, by the name they have in the plain model."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, SupertuningLayer)}
    return {name.removeprefix("base_model.model."): layer for name, layer in found.items()}
