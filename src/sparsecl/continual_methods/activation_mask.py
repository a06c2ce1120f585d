"""Fine-tuning of a domain's own paths through the feed-forward layers (paper, section Methods; second proposal, method A).

Before a stage the model reads some rows of the new domain; the units it uses most (`unit_selection`) are selected, and only
the weights on their paths move: ``theta <- theta + M * step`` with M the mask of the paths. All else (attention, embedding,
norms, routers, head, the other units) keeps its bits. The control draws as many units at random.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from jaxtyping import Bool
from torch import Tensor, nn

from sparsecl.continual_methods.method import Method, Stage, StageContext
from sparsecl.continual_methods.selection_history import SelectionHistory
from sparsecl.continual_methods.unit_selection import drawn_units, gradients_formed, most_used, path_masks, unit_use
from sparsecl.flops import Consumption, consumption_of
from sparsecl.masks import ConfinedUpdates, Masks, assert_masks, masked_gradients
from sparsecl.method_settings import ActivationMask as ActivationMaskSettings
from sparsecl.records import Stopwatch


@dataclass(frozen=True)
class Choice:
    """The units of a stage, how they rank, and what it took to find them."""

    selected: Bool[Tensor, "layers units"]
    use: Tensor | None = None  # layers x units, what they were selected by; None where they were drawn
    probe: Consumption | None = None
    seconds: float = 0.0


class ActivationMask(Method):
    """Only the paths of the units that a domain uses most are trained, in the weights themselves."""

    name = "activation-mask"

    def __init__(self, settings: ActivationMaskSettings) -> None:
        self._settings = settings
        self._history = SelectionHistory(self.name)

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        self._history.check(context)
        choice = self._choose(model, context)
        rows, paths = context.rows_of(context.domain), path_masks(model, choice.selected, masks)
        moving = Masks("unstructured", self.name, self._settings.fraction, "", {name: path for name, path in paths.items() if path.any()})
        with only_these_move(model, moving) as confined:
            yield Stage(
                rows,
                context.plan(rows, context.batch),
                masks=None,  # the paths are within the arm's masks
                trainable=moving.kept,
                constrain=confined.restore,
                weight_gradients=gradients_formed(model, moving.weights),
                probe=choice.probe,
                extra_seconds=choice.seconds,
                selections=self._history.compared(choice.selected),
            )
        assert_masks(model, masks, f"after the stage {context.domain} of {self.name}")
        self._history.add(context.domain, choice.selected)

    def _choose(self, model: nn.Module, context: StageContext) -> Choice:
        """The units that the first look at the new domain finds in use."""
        watch, settings = Stopwatch(), self._settings
        rows = context.rows_of(context.domain)
        count = min(settings.probe_rows, len(rows))
        read = [rows[index] for index in context.generator(f"activation-mask-{context.domain}").choice(len(rows), count, replace=False)]
        use = unit_use(model, [row.ids.tolist() for row in read], settings.selection, settings.fraction)
        consumption = replace(consumption_of([(len(row.ids), 1) for row in read], 0.0), predicted=count)  # the head runs once a row
        return Choice(most_used(use, settings.fraction), use, consumption, watch.seconds())

    def save_state(self, path: Path) -> None:
        self._history.save(path)

    def load_state(self, path: Path) -> None:
        """Take up a saved state; BrokenFile where `path` is missing or not whole."""
        self._history.load(path)


class RandomMask(ActivationMask):
    """The control: as many units drawn at random; nothing is read for that."""

    name = "activation-mask-random"

    def _choose(self, model: nn.Module, context: StageContext) -> Choice:
        return Choice(drawn_units(model, self._settings.fraction, context.generator(f"{self.name}-{context.domain}")))


@contextmanager
def only_these_move(model: nn.Module, moving: Masks) -> Iterator[ConfinedUpdates]:
    """Inside, only the weights that `moving` marks are trained, if `restore` of what this yields is called after every step.

    Parameters it does not name need no gradient, so that none is formed; of the others the gradients outside are zeroed, and
    `restore` undoes AdamW's weight decay there bit by bit. Afterwards every parameter is as trainable as it was.
    """
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in moving.weights)
        with masked_gradients(model, moving):
            yield ConfinedUpdates(model, moving)
    finally:
        for parameter, trainable in flags:
            parameter.requires_grad_(trainable)
