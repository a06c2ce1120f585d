"""Experience replay from a small buffer of each finished domain (paper, section Methods; Rolnick et al. 2019).

Every batch has as many rows as under `full`; from the second stage on a fixed share of them comes from the
buffers. Buffers and draws are functions of the rows and the named random streams alone, so a resumed stream
needs no file.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from torch import nn

from sparsecl.continual_methods.method import Method, Stage, StageContext, trainable_parameters
from sparsecl.masks import Masks
from sparsecl.method_settings import Replay
from sparsecl.tokenizer import Row
from sparsecl.training import BUCKET_BATCHES, plan_batches


class ExperienceReplay(Method):
    """Full fine-tuning on batches that mix the stage's own rows with rows of finished domains."""

    def __init__(self, settings: Replay) -> None:
        self._settings = settings

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        rows, plan = mixed_rows(context, self._settings)
        yield Stage(rows, plan, masks, trainable_parameters(model, masks))


def replayed_rows(settings: Replay, batch: int) -> int:
    """Rows of a batch that come from the buffers; ValueError where the share makes no whole number of them."""
    rows = settings.share * batch
    if not np.isclose(rows, round(rows)) or not 0 < round(rows) < batch:
        raise ValueError(f"replay.share: {settings.share} of a batch of {batch} is {rows:g} rows; choose one that makes 1 to {batch - 1}")
    return round(rows)


def buffer_of(context: StageContext, domain: str, lines: int) -> list[Row]:
    """The kept rows of a finished domain: drawn once, the same in every later stage."""
    rows = context.rows_of(domain)
    if lines > len(rows):
        raise ValueError(f"replay.lines_per_domain: {lines} lines asked for, but {domain} has {len(rows)}; choose no more than that")
    chosen = context.generator(f"replay-buffer-{domain}").choice(len(rows), lines, replace=False)
    return [rows[index] for index in chosen]


def mixed_rows(context: StageContext, settings: Replay) -> tuple[list[Row], list[np.ndarray]]:
    """Rows of the stage followed by those of the buffers, and batches over both; the first stage has no buffer.

    Both parts go through whole shuffled passes, so every kept row is replayed equally often up to one pass.
    """
    own = list(context.rows_of(context.domain))
    if not context.earlier:
        return own, context.plan(own, context.batch)
    replayed = replayed_rows(settings, context.batch)
    kept = [row for domain in context.earlier for row in buffer_of(context, domain, settings.lines_per_domain)]
    lengths = [len(row.ids) for row in own + kept]
    generator = context.generator(f"replay-{context.domain}")
    second = [len(own) + indices for indices in plan_batches(lengths[len(own) :], context.steps, replayed, generator)]
    return own + kept, _joined(context.plan(own, context.batch - replayed), second, lengths)


def _joined(first: list[np.ndarray], second: list[np.ndarray], lengths: Sequence[int]) -> list[np.ndarray]:
    """Join the batches of two plans; within each bucket the n-th shortest of one meets the n-th shortest of the other.

    Batches of like length beside each other keep padding small.
    """
    joined: list[np.ndarray] = []
    for start in range(0, len(first), BUCKET_BATCHES):
        ones, others = (plan[start : start + BUCKET_BATCHES] for plan in (first, second))
        partner = dict(zip(_by_length(ones, lengths), _by_length(others, lengths), strict=True))
        joined.extend(np.concatenate([one, others[partner[place]]]) for place, one in enumerate(ones))
    return joined


def _by_length(batches: Sequence[np.ndarray], lengths: Sequence[int]) -> list[int]:
    """Places of the batches, the one with the shortest longest row first."""
    return sorted(range(len(batches)), key=lambda place: max(lengths[index] for index in batches[place]))
