"""What a method of continual fine-tuning decides about a stage (paper, section Methods).

A method hands a stage its rows, its batches, its penalty and its trainable parameters; `sparsecl.continual`
trains and scores. Before and after a stage the model is a plain transformers model whose masked weights are zero.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from sparsecl.flops import Consumption
from sparsecl.masks import Masks
from sparsecl.tokenizer import Row
from sparsecl.training import Penalty, plan_batches


@dataclass(frozen=True)
class StageContext:
    """The stage a method is asked for: its place in the stream, its data, its random streams."""

    domain: str
    earlier: tuple[str, ...]  # finished domains, first to last
    is_last: bool  # whether no stage follows, so that nothing need be prepared for one
    rows_of: Callable[[str], Sequence[Row]]  # training rows of a domain
    steps: int
    batch: int  # rows
    generator: Callable[[str], np.random.Generator]  # a fresh generator of a named stream
    seed: Callable[[str], int]  # the seed of a named stream, for generators that are not numpy's

    def plan(self, rows: Sequence[Row], batch: int) -> list[np.ndarray]:
        """Batches over `rows` of the stage's own domain, `batch` rows each: whole shuffled passes, the same for every arm."""
        return plan_batches([len(row.ids) for row in rows], self.steps, batch, self.generator(f"batches-{self.domain}"))


@dataclass
class Stage:
    """What to train on and how; `extra`, `probe`, their seconds, `measures` and `selections` are known when the stage has ended."""

    rows: Sequence[Row]
    plan: list[np.ndarray]  # indices into `rows`, one array a step
    masks: Masks | None  # for `train`; None where the arm is dense or the method itself keeps the masks
    trainable: int  # parameters that move
    penalty: Penalty | None = None  # nats, added to the loss of every step
    constrain: Callable[[], None] | None = None  # called after every optimizer step: undoes or projects what was applied
    adapter_rank: int | None = None  # of adapters that train in place of the weights
    weight_gradients: int | None = None  # linear weights whose gradient is formed; None: those of all that take part
    flops_known: bool = True  # whether the counts of `sparsecl.flops` describe what a step computes
    extra: Consumption | None = None  # what is passed forward and backward beyond the training itself
    probe: Consumption | None = None  # what is passed forward alone
    extra_seconds: float = 0.0  # what both took
    selections: list[dict] = field(default_factory=list)  # rows of update_masks.csv without the keys of the stream
    measures: dict[str, float] = field(default_factory=dict)  # what the method tells of its stage: shares of zeros, of a protected subspace


class Method(ABC):
    """A method of continual fine-tuning along one stream; it carries its state from stage to stage."""

    @abstractmethod
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> AbstractContextManager[Stage]:
        """Prepare `model` for a stage, in place; train inside the context.

        Leaving it makes the model plain again and prepares the next stage. After an exception inside, the model is
        not to be used.
        """

    def save_state(self, path: Path) -> None:
        """Write what the next stage needs beside the model to the safetensors file `path`; nothing where there is none."""
        return None

    def load_state(self, path: Path) -> None:
        """Take up the state that `save_state` wrote at `path`."""
        return None


def trainable_parameters(model: nn.Module, masks: Masks | None) -> int:
    """Parameters that training may move: those with requires_grad, tied ones once, without the masked weights."""
    moving = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return moving - (masks.size - masks.kept if masks is not None else 0)
