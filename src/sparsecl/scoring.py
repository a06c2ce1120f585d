"""Scoring: right answers and answer loss of a list of rows (paper, section Measures).

An item is right when every answer token, EOS included, is the most likely one given the true tokens
before it; that equals exact match under greedy decoding at the cost of one forward pass. This batched
scorer serves the curves within a stage; `evaluation` lets lm-eval measure the same at a stage's end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from sparsecl.tokenizer import Row
from sparsecl.training import pad_rows, token_weights


@dataclass(frozen=True)
class ItemScores:
    """Scores in the order of the items."""

    correct: np.ndarray  # (items,) bool
    nll: np.ndarray  # (items,) nats per answer token, the mean over the item's answer tokens

    @property
    def score(self) -> float:
        return float(self.correct.mean())

    @property
    def loss(self) -> float:
        """Mean over items of nats per answer token."""
        return float(self.nll.mean())

    def __len__(self) -> int:
        return len(self.correct)


@torch.no_grad()
def score_rows(model: nn.Module, rows: Sequence[Row], batch: int) -> ItemScores:
    """Score rows in float32, sorted by length; the result does not depend on `batch` beyond rounding."""
    if not rows:
        raise ValueError("no rows to score; give at least one")
    was_training = model.training
    model.eval()
    order = np.argsort([len(row.ids) for row in rows], kind="stable")
    correct, nll = np.zeros(len(rows), bool), np.zeros(len(rows))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        correct[chosen], nll[chosen] = _score_batch(model, [rows[index] for index in chosen])
    model.train(was_training)
    return ItemScores(correct, nll)


def _score_batch(model: nn.Module, rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    ids, lengths, starts = pad_rows(rows)
    answer = token_weights(lengths, starts, ids.shape[1], 0.0) > 0
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
    logits = model.lm_head(hidden[answer]).float()
    targets = ids[:, 1:][answer]
    row_of = torch.nonzero(answer)[:, 0]
    count = torch.bincount(row_of, minlength=len(rows))
    losses = nn.functional.cross_entropy(logits, targets, reduction="none").double()
    total = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, row_of, losses)
    wrong = torch.bincount(row_of, weights=(logits.argmax(-1) != targets).double(), minlength=len(rows))
    return (wrong == 0).numpy(), (total / count).numpy()
