"""Continual fine-tuning: an arm goes through the domains one by one (paper, section Stream).

Every arm of a replicate sees the same rows in the same order under the same optimisation. After each stage
all domains are scored and the masks asserted; every stage is a checkpoint, and since the optimizer starts anew
with each stage, a resumed stream ends in the same bytes. What is run is in `sparsecl.streams`.
"""

from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
from torch import nn

from sparsecl.base import Base
from sparsecl.code_digest import module_digest
from sparsecl.config import VALIDATION
from sparsecl.continual_methods import Method, Stage, StageContext, method_of
from sparsecl.costs import extra_costs, total_costs, training_costs
from sparsecl.examination import Examination
from sparsecl.experiment import Experiment
from sparsecl.lineage import ArmCheckpoint, load_arm
from sparsecl.methods import FULL, JOINT, REFERENCES
from sparsecl.modeling import checkpoint_is, checkpoint_manifest, load_checkpoint, save_checkpoint
from sparsecl.published_replicates import published_learning_rates
from sparsecl.records import read_record, sha256_of_json, write_record
from sparsecl.settings import Optimisation
from sparsecl.stream_tables import score_rows_of, stream_tables, sweep_rows
from sparsecl.streams import Stream, choose_learning_rates, planned_streams
from sparsecl.tokenizer import Row
from sparsecl.training import train


def run_stream(experiment: Experiment, base: Base, examination: Examination, stream: Stream) -> list[dict]:
    """Run one stream, loading the stages that are finished; return the reports of its stages.

    Stage 0 is before any training. A report holds `domain`, `scores`, `items`, `curve` and `costs`.
    """
    start = load_arm(experiment, stream.arm)
    method = method_of(FULL if stream.method in REFERENCES else stream.method, experiment.study.continual.method_settings)
    domains = stream.domains(experiment.study.continual)
    reports, key, previous = [_before_stream(experiment, examination, start)], _start_key(experiment, start, stream), None
    for number, domain in enumerate(domains, start=1):
        key = sha256_of_json({"upstream": key, "stage": number, "domain": domain})
        place = ("streams", stream.arm.name, stream.folder, f"stage-{number}")
        directory, state = experiment.find(*place), experiment.write_path(*place).with_suffix(".method.safetensors")
        if checkpoint_is(directory, key) and not experiment.recompute:
            method.load_state(directory.with_suffix(".method.safetensors"))
        else:
            model = start.model if previous is None else load_checkpoint(previous, start.masks)
            report = _run_stage(experiment, base, examination, stream, method, model, start, number)
            directory = experiment.write_path(*place)
            method.save_state(state)  # before the checkpoint, whose presence says that the stage is finished
            save_checkpoint(model, directory, start.masks, arm=stream.arm.name, key=key, **report)
        previous = directory
        reports.append(checkpoint_manifest(directory))
    return reports


def _start_key(experiment: Experiment, start: ArmCheckpoint, stream: Stream) -> str:
    settings = experiment.study.continual
    about = settings.model_dump(mode="json", include={"batch", "weight_decay", "warmup", "curve_points", "curve_items", "method_settings"})
    return sha256_of_json(
        {
            "upstream": start.key,
            "settings": [experiment.study.digest("seed", "data", "dtype", "scoring_batch"), about],
            "replicate": experiment.replicate,
            "stream": [stream.method, stream.domains(settings), stream.learning_rate, stream.stage_steps, stream.batches],
            "code": module_digest("sparsecl.continual"),
        }
    )


def _before_stream(experiment: Experiment, examination: Examination, start: ArmCheckpoint) -> dict:
    """The report of stage 0, scored once for all streams of an arm."""
    key = sha256_of_json({"upstream": start.key, "settings": experiment.study.digest("data", "scoring_batch"),
                          "code": module_digest("sparsecl.continual")})  # fmt: skip
    found = experiment.find("streams", start.arm.name, "start.json")
    if found is not None and (record := read_record(found))["key"] == key and not experiment.recompute:
        return record
    scores = examination.at_stage_end(start.model, "", is_last=False, is_main=True)
    record = {"key": key, "domain": "", "scores": score_rows_of(scores, examination.items), "items": [], "curve": [], "costs": None}
    write_record(experiment.write_path("streams", start.arm.name, "start.json"), record)
    return record


def _run_stage(
    experiment: Experiment,
    base: Base,
    examination: Examination,
    stream: Stream,
    method: Method,
    model: nn.Module,
    start: ArmCheckpoint,
    number: int,
) -> dict:
    """Train one stage in place and score it."""
    domains = stream.domains(experiment.study.continual)
    domain, is_last = domains[number - 1], number == len(domains)
    context = _context(experiment, base, stream, number)
    with method.stage(model, start.masks, context) as stage:
        curve, costs = _train_stage(experiment, examination, stream, model, start, stage, domain)
    if stage.extra is not None or stage.probe is not None:
        costs = total_costs([extra_costs(experiment.study, model, start.masks, stage.extra, stage.probe, stage.extra_seconds), costs])
    is_main = stream.is_main(experiment.study)
    scores = examination.at_stage_end(model, domain, is_last, is_main)
    kept = {group: score for group, score in scores.items() if is_main and (is_last or group[0] == domain)}
    return {
        "domain": domain,
        "scores": score_rows_of(scores, examination.items),
        "items": [
            {"domain": group[0], "kind": group[1], "correct": score.correct.tolist(), "nll": score.nll.tolist()}
            for group, score in kept.items()
        ],
        "curve": curve,
        "costs": costs,
        "selections": stage.selections,
        "measures": {name: value if isfinite(value) else None for name, value in stage.measures.items()},
    }


def _context(experiment: Experiment, base: Base, stream: Stream, number: int) -> StageContext:
    """What a method may know of the stage: the same rows and random streams for every arm."""
    settings, length = experiment.study.continual, experiment.study.tokenizer.max_length
    domains = stream.domains(settings)

    def rows_of(domain: str) -> Sequence[Row]:
        wanted = settings.orders["main"] if domain == JOINT else (domain,)
        return [row for name in wanted for row in base.rows(experiment.suite.train[name], length)]

    return StageContext(
        domain=domains[number - 1], earlier=domains[: number - 1], is_last=number == len(domains), rows_of=rows_of,
        steps=stream.stage_steps, batch=settings.batch,
        generator=lambda name: experiment.generator(name + stream.batches), seed=lambda name: experiment.seed(name + stream.batches),
    )  # fmt: skip


def _train_stage(
    experiment: Experiment, examination: Examination, stream: Stream, model: nn.Module, start: ArmCheckpoint, stage: Stage, domain: str
) -> tuple[list[dict], dict]:
    study = experiment.study
    optimisation: Optimisation = study.continual.stage(stream.learning_rate, stream.stage_steps)
    tokens = np.cumsum([sum(len(stage.rows[index].ids) for index in batch) for batch in stage.plan])
    points = {round(optimisation.steps * point / study.continual.curve_points) for point in range(1, study.continual.curve_points + 1)}
    curve: list[dict] = []

    def measure(step: int) -> None:
        if step == 0 or step in points:
            seen = {"step": step, "tokens": int(tokens[step - 1]) if step else 0}
            curve.extend({**seen, **row} for row in score_rows_of(examination.on_curve(model), examination.items))

    has_curve = stream.has_curve and experiment.replicate != VALIDATION
    if has_curve:
        measure(0)
    log = train(
        model, stage.rows, stage.plan, optimisation, description=f"{stream.arm.name} {stream.method}: {domain}",
        masks=stage.masks, update_masks=start.update_masks, penalty=stage.penalty, constrain=stage.constrain,
        dtype=study.dtype, after_step=measure if has_curve else None,
    )  # fmt: skip
    costs = training_costs(study, model, start.masks, log, start.update_masks, stage.adapter_rank, stage.weight_gradients)
    if not stage.flops_known:
        costs |= {"flops_dense": None, "flops_sparse": None}
    return curve, costs | ({} if start.update_masks else {"trainable": stage.trainable})


def learning_rates(experiment: Experiment) -> Mapping[str, float] | None:
    """The learning rate of every method: fixed by the study, or what the validation replicate chose, here or as published."""
    study = experiment.study
    if experiment.replicate == VALIDATION:
        return None
    fixed = {method: study.continual.fixed_learning_rate(method) for method in study.streamed() if method not in study.swept()}
    return fixed | (_chosen_learning_rates(experiment) if study.needs_validation() else {})


def _chosen_learning_rates(experiment: Experiment) -> Mapping[str, float]:
    chosen_here = experiment.tree.find(experiment.tree.replicate(VALIDATION), "03_continual.json") is not None
    if not chosen_here and (rates := published_learning_rates(experiment.study)) is not None:
        return rates
    return experiment.require("03_continual", VALIDATION)["learning_rates"]


def continual_tables(experiment: Experiment, base: Base) -> tuple[dict[str, list[dict]], Mapping[str, float]]:
    """Run all planned streams of this replicate; return the rows of all tables and the learning rates by method."""
    rates = learning_rates(experiment)
    examination = Examination(experiment, base)
    results = [(stream, run_stream(experiment, base, examination, stream)) for stream in planned_streams(experiment, base, rates)]
    if experiment.replicate == VALIDATION:
        rows = [row for stream, reports in results for row in sweep_rows(stream, reports)]
        best = choose_learning_rates(rows, experiment.study.measure)
        return {"learning_rate": [{**row, "chosen": row["learning_rate"] == best[row["method"]]} for row in rows]}, best
    chance = [
        {"seed": experiment.replicate, "domain": domain, "kind": kind, "value": value}
        for (domain, kind), value in experiment.suite.chance.items()
    ]
    tables: dict[str, list[dict]] = {"chance": chance}
    for stream, reports in results:
        for name, rows in stream_tables(experiment, stream, reports).items():
            tables.setdefault(name, []).extend(rows)
    return tables, rates
