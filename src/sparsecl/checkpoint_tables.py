"""What the checkpoints before the stream measure, as rows of the conversion table (paper, sections Conversion and Recovery)."""

from collections.abc import Sequence

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.experiment import Experiment
from sparsecl.items import has_answers
from sparsecl.lineage import ArmCheckpoint
from sparsecl.reconstruction import kept_energy, layer_inputs
from sparsecl.scoring import score_rows


def conversion_rows(experiment: Experiment, base: Base, checkpoint: ArmCheckpoint) -> list[dict]:
    """What the conversion table says of one checkpoint: attained density, and scores on the general mixture."""
    items = experiment.suite.general
    scores = score_rows(checkpoint.model, base.rows(items, experiment.study.tokenizer.max_length), experiment.study.scoring_batch)
    values = {"density/attained": 1.0 if checkpoint.masks is None else checkpoint.masks.density, "nll/general": scores.loss}
    if has_answers(items):
        values["score/general"] = scores.score
        for task in sorted({item.task for item in items}):
            chosen = [index for index, item in enumerate(items) if item.task == task]
            values[f"score/general/{task}"] = float(scores.correct[chosen].mean())
    return [_conversion_row(experiment, checkpoint.arm, metric, value) for metric, value in values.items()]


def reconstruction_rows(experiment: Experiment, base: Base, dense: ArmCheckpoint, converted: Sequence[ArmCheckpoint]) -> list[dict]:
    """What the conversions did to the layers, on the held-out general mixture, and how unequal the layers' inputs are."""
    rows = base.rows(experiment.suite.general, experiment.study.tokenizer.max_length)
    errors, spread = layer_inputs(dense.model, {checkpoint.arm.name: checkpoint.model for checkpoint in converted}, rows)
    found = [_conversion_row(experiment, dense.arm, "reconstruction/input_spread", spread)]
    for checkpoint in converted:
        found.append(_conversion_row(experiment, checkpoint.arm, "reconstruction/error", errors[checkpoint.arm.name]))
        found.append(_conversion_row(experiment, checkpoint.arm, "reconstruction/kept_energy", kept_energy(dense.model, checkpoint.masks)))
    return found


def recovery_rows(experiment: Experiment, arm: Arm, curve: Sequence[dict]) -> list[dict]:
    """The recovery curve as rows of the conversion table."""
    measured = [(point["step"], name, point[name]) for point in curve for name in ("nll", "score") if point[name] is not None]
    return [_conversion_row(experiment, arm, f"recovery/{name}/{step}", value) for step, name, value in measured]


def _conversion_row(experiment: Experiment, arm: Arm, metric: str, value: float) -> dict:
    return {**arm.columns, "base": str(experiment.base), "seed": experiment.replicate, "metric": metric, "value": value}
