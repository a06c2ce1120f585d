"""Steps of the arms that are matched in theoretical FLOPs: `Df` to sparse arms, `Sf` to D1 (paper, section Controls)."""

from collections.abc import Sequence

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.config import Study
from sparsecl.experiment import Experiment
from sparsecl.flops import Consumption, consumption_of, dense_steps_of_equal_flops, kept_weights, sparse_steps_of_equal_flops
from sparsecl.tokenizer import Row
from sparsecl.topologies import parse_topology


def stage_consumption(experiment: Experiment, base: Base) -> Consumption:
    """All stage rows of all domains, answers predicted: one stage length serves all stages, so their mean counts."""
    length = experiment.study.tokenizer.max_length
    rows = [row for domain in experiment.suite.domains for row in base.rows(experiment.suite.train[domain], length)]
    return _consumption(rows, prompt_weight=0.0)


def recovery_consumption(experiment: Experiment, base: Base) -> Consumption:
    """All recovery rows, as recovery weighs their tokens."""
    rows = base.rows(experiment.suite.pretraining, experiment.study.tokenizer.max_length)
    return _consumption(rows, experiment.study.recover.prompt_weight)


def _consumption(rows: Sequence[Row], prompt_weight: float) -> Consumption:
    return consumption_of([(len(row.ids), row.answer_start) for row in rows], prompt_weight)


def matched_steps(study: Study, arm: Arm, steps: int, consumption: Consumption) -> int:
    """Steps that `arm` runs where the others run `steps`.

    One Df serves all topologies of its density, so it counts the weights that an unstructured mask keeps.
    """
    vocabulary = study.tokenizer.vocabulary
    if arm.lineage == "Df":
        kept = kept_weights(study.model, parse_topology("unstructured"), arm.density)
        return dense_steps_of_equal_flops(study.model, vocabulary, steps, kept, consumption)
    if arm.lineage == "Sf":
        kept = kept_weights(study.model, parse_topology(arm.topology), arm.density)
        return sparse_steps_of_equal_flops(study.model, vocabulary, steps, kept, consumption)
    return steps
