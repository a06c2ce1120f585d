"""The items that score a stream, tokenised once, at a stage's end and along its curve (paper, section Measures)."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np
from torch import nn

from sparsecl.base import Base
from sparsecl.config import VALIDATION
from sparsecl.evaluation import EvaluationTasks, answers_that_fit
from sparsecl.experiment import Experiment
from sparsecl.items import GENERAL, Item
from sparsecl.scoring import ItemScores, score_rows

Group = tuple[str, str]  # (domain, kind)


def grouped(items: Iterable[Item]) -> dict[Group, list[Item]]:
    """Items by (domain, kind), in their order."""
    groups: dict[Group, list[Item]] = {}
    for item in items:
        groups.setdefault((item.domain, item.kind), []).append(item)
    return groups


class Examination:
    """The scored items of a replicate, tokenised once: lm-eval's tasks and the smaller sets of the curves."""

    def __init__(self, experiment: Experiment, base: Base) -> None:
        self._experiment, self._base = experiment, base
        split = experiment.suite.validation if experiment.replicate == VALIDATION else experiment.suite.test
        self.items = grouped(item for domain in experiment.suite.domains for item in split[domain])
        if experiment.replicate != VALIDATION:
            self.items |= grouped(experiment.suite.general)
        length = experiment.study.tokenizer.max_length
        self.items = {group: answers_that_fit(base.tokenizer, items, length) for group, items in self.items.items()}
        self.rows = {group: base.rows(tuple(items), length) for group, items in self.items.items()}

    @cached_property
    def _tasks(self) -> EvaluationTasks:
        return EvaluationTasks(self.items, self._experiment.write_path("tasks"))

    def at_stage_end(self, model: nn.Module, domain: str, is_last: bool, is_main: bool) -> dict[Group, ItemScores]:
        """Score everything: the main protocol by lm-eval, the other streams by the batched scorer (equal by test).

        Where settings are chosen, score only what the choice reads: the stage's own domain, and all at the end.
        """
        study, read = self._experiment.study, self.rows
        if self._experiment.replicate == VALIDATION:
            read = {group: rows for group, rows in read.items() if is_last or group[0] == domain}
        elif is_main:
            return self._tasks.evaluate(model, self._base.tokenizer, read, study.tokenizer.max_length, study.scoring_batch)
        return {group: score_rows(model, rows, study.scoring_batch) for group, rows in read.items()}

    def on_curve(self, model: nn.Module) -> dict[Group, ItemScores]:
        """Score the first `curve_items` of every group of the stream in one pass."""
        count = self._experiment.study.continual.curve_items
        chosen = {group: rows[:count] for group, rows in self.rows.items() if group[0] != GENERAL}
        scores = score_rows(model, [row for rows in chosen.values() for row in rows], self._experiment.study.scoring_batch)
        ends = np.cumsum([len(rows) for rows in chosen.values()])[:-1]
        pieces = zip(np.split(scores.correct, ends), np.split(scores.nll, ends), strict=True)
        return {group: ItemScores(*piece) for group, piece in zip(chosen, pieces, strict=True)}
