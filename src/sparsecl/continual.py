"""Continual fine-tuning: an arm goes through the domains one by one (paper, section Stream).

Every arm of a replicate sees the same rows in the same order under the same optimisation. After each
stage all domains are scored by lm-eval and the masks asserted; every stage is a checkpoint, and since
the optimizer starts anew with each stage, a resumed stream ends in the same bytes.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
from torch import nn

from sparsecl.base import Base
from sparsecl.code_digest import module_digest
from sparsecl.config import VALIDATION
from sparsecl.costs import training_costs
from sparsecl.evaluation import EvaluationTasks, answers_that_fit
from sparsecl.experiment import Experiment
from sparsecl.items import GENERAL, Item
from sparsecl.lineage import ArmCheckpoint, load_arm
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, load_checkpoint, save_checkpoint
from sparsecl.records import sha256_of_json
from sparsecl.scoring import ItemScores, score_rows
from sparsecl.settings import Optimisation
from sparsecl.stream_tables import Stream, choose_learning_rate, score_rows_of, stream_tables, sweep_rows
from sparsecl.tokenizer import Row
from sparsecl.training import plan_batches, train

Group = tuple[str, str]  # (domain, kind)


def planned_streams(experiment: Experiment, learning_rate: float | None) -> list[Stream]:
    """The runs of this replicate: on the validation replicate the whole grid, elsewhere the chosen rate."""
    settings = experiment.study.continual
    rates = settings.learning_rates if experiment.replicate == VALIDATION else (learning_rate,)
    orders = ("main",) if experiment.replicate == VALIDATION else tuple(settings.orders)
    return [
        Stream(arm, method, order, rate, settings.stage_steps)
        for arm in experiment.chosen(settings.arms)
        for method in settings.methods
        for order in orders
        for rate in rates
    ]


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

    def at_stage_end(self, model: nn.Module, domain: str, is_last: bool) -> dict[Group, ItemScores]:
        """Score everything by lm-eval.

        Where settings are chosen, score only what the choice reads: the stage's own domain, and all at the end. The batched
        scorer does that (equal by test).
        """
        study = self._experiment.study
        if self._experiment.replicate != VALIDATION:
            return self._tasks.evaluate(model, self._base.tokenizer, self.rows, study.tokenizer.max_length, study.scoring_batch)
        read = {group: rows for group, rows in self.rows.items() if is_last or group[0] == domain}
        return {group: score_rows(model, rows, study.scoring_batch) for group, rows in read.items()}

    def on_curve(self, model: nn.Module) -> dict[Group, ItemScores]:
        """Score the first `curve_items` of every group of the stream in one pass."""
        count = self._experiment.study.continual.curve_items
        chosen = {group: rows[:count] for group, rows in self.rows.items() if group[0] != GENERAL}
        scores = score_rows(model, [row for rows in chosen.values() for row in rows], self._experiment.study.scoring_batch)
        ends = np.cumsum([len(rows) for rows in chosen.values()])[:-1]
        pieces = zip(np.split(scores.correct, ends), np.split(scores.nll, ends), strict=True)
        return {group: ItemScores(*piece) for group, piece in zip(chosen, pieces, strict=True)}


def run_stream(experiment: Experiment, base: Base, examination: Examination, stream: Stream) -> list[dict]:
    """Run one stream, loading the stages that are finished; return the reports of its stages.

    Stage 0 is before any training. A report holds `domain`, `scores`, `items`, `curve` and `costs`.
    """
    start = load_arm(experiment, stream.arm)
    domains = experiment.study.continual.orders[stream.order]
    key = _start_key(experiment, start, stream)
    reports: list[dict] = []
    previous = None
    for number, domain in enumerate(("", *domains)):
        key = sha256_of_json({"upstream": key, "stage": number, "domain": domain})
        place = ("streams", stream.arm.name, stream.folder, f"stage-{number}")
        directory = experiment.find(*place)
        if not checkpoint_is(directory, key) or experiment.recompute:
            model = start.model if previous is None else load_checkpoint(previous, start.masks)
            report = _run_stage(experiment, base, examination, stream, model, start, domain)
            directory = experiment.write_path(*place)
            save_checkpoint(model, directory, start.masks, arm=stream.arm.name, key=key, **report)
        previous = directory
        reports.append(checkpoint_manifest(directory))
    return reports


def _start_key(experiment: Experiment, start: ArmCheckpoint, stream: Stream) -> str:
    return sha256_of_json(
        {
            "upstream": start.key,
            "settings": experiment.study.digest("seed", "data", "continual", "dtype", "scoring_batch"),
            "replicate": experiment.replicate,
            "stream": [stream.method, stream.order, stream.learning_rate, stream.stage_steps],
            "code": module_digest("sparsecl.continual"),
        }
    )


def _run_stage(
    experiment: Experiment, base: Base, examination: Examination, stream: Stream, model: nn.Module, start: ArmCheckpoint, domain: str
) -> dict:
    """Train one stage in place (nothing for stage 0) and score it."""
    curve, costs = [], None
    if domain:
        curve, costs = _train_stage(experiment, base, examination, stream, model, start, domain)
    last = experiment.study.continual.orders[stream.order][-1]
    scores = examination.at_stage_end(model, domain, domain == last)
    return {
        "domain": domain,
        "scores": score_rows_of(scores, examination.items),
        "items": [
            {"domain": group[0], "kind": group[1], "correct": score.correct.tolist(), "nll": score.nll.tolist()}
            for group, score in scores.items()
        ],
        "curve": curve,
        "costs": costs,
    }


def _train_stage(
    experiment: Experiment, base: Base, examination: Examination, stream: Stream, model: nn.Module, start: ArmCheckpoint, domain: str
) -> tuple[list[dict], dict]:
    study = experiment.study
    optimisation: Optimisation = study.continual.stage(stream.learning_rate)
    rows: Sequence[Row] = base.rows(experiment.suite.train[domain], study.tokenizer.max_length)
    plan = plan_batches([len(row.ids) for row in rows], optimisation.steps, optimisation.batch, experiment.generator(f"batches-{domain}"))
    tokens = np.cumsum([sum(len(rows[index].ids) for index in batch) for batch in plan])
    points = {round(optimisation.steps * point / study.continual.curve_points) for point in range(1, study.continual.curve_points + 1)}
    curve: list[dict] = []

    def measure(step: int) -> None:
        if step == 0 or step in points:
            seen = {"step": step, "tokens": int(tokens[step - 1]) if step else 0}
            curve.extend({**seen, **row} for row in score_rows_of(examination.on_curve(model), examination.items))

    if experiment.replicate != VALIDATION:
        measure(0)
    after_step = None if experiment.replicate == VALIDATION else measure
    description = f"{stream.arm.name}: {domain}"
    log = train(model, rows, plan, optimisation, description=description, masks=start.masks, dtype=study.dtype, after_step=after_step)
    return curve, training_costs(study, model, start.masks, log)


def chosen_learning_rate(experiment: Experiment) -> float | None:
    """The study's learning rate: the only one of the grid, or the one the validation replicate chose."""
    settings = experiment.study.continual
    if experiment.replicate == VALIDATION:
        return None
    if not experiment.study.needs_validation():
        return settings.learning_rates[0]
    return experiment.require("03_continual", VALIDATION)["learning_rate"]


def continual_tables(experiment: Experiment, base: Base) -> tuple[dict[str, list[dict]], float]:
    """Run all planned streams of this replicate; return the rows of all tables and the learning rate."""
    rate = chosen_learning_rate(experiment)
    examination = Examination(experiment, base)
    results = [(stream, run_stream(experiment, base, examination, stream)) for stream in planned_streams(experiment, rate)]
    if experiment.replicate == VALIDATION:
        rows = [row for stream, reports in results for row in sweep_rows(stream, reports)]
        best = choose_learning_rate(rows, experiment.study.measure)
        return {"learning_rate": [{**row, "chosen": row["learning_rate"] == best} for row in rows]}, best
    chance = [
        {"seed": experiment.replicate, "domain": domain, "kind": kind, "value": value}
        for (domain, kind), value in experiment.suite.chance.items()
    ]
    tables: dict[str, list[dict]] = {"chance": chance}
    for stream, reports in results:
        for name, rows in stream_tables(experiment, stream, reports).items():
            tables.setdefault(name, []).extend(rows)
    return tables, rate
