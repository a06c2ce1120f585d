"""Full fine-tuning, the main protocol: no replay, no penalty, no freezing (paper, section Methods)."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from sparsecl.continual_methods.method import Method, Stage, StageContext, trainable_parameters
from sparsecl.masks import Masks


class Full(Method):
    """All weights that the mask keeps are trained on the stage's own rows."""

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        rows = context.rows_of(context.domain)
        yield Stage(rows, context.plan(rows, context.batch), masks, trainable_parameters(model, masks))
