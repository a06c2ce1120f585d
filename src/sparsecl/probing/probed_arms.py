"""Every probe on the arms of a replicate: what notebook 04 calls (paper, sections Implicit sparsity and Drift).

Models are loaded one after the other, so that memory holds one of them whatever their number. A probe that a study does
not ask for gives an empty table.
"""

from collections.abc import Iterator

import pandas as pd
from torch import nn

from sparsecl.arms import RUNG, Arm
from sparsecl.base import Base
from sparsecl.continual import learning_rates
from sparsecl.domain_orders import MAIN
from sparsecl.experiment import Experiment, MissingInput
from sparsecl.lineage import ArmCheckpoint, load_arm
from sparsecl.methods import REFERENCES
from sparsecl.modeling import load_checkpoint
from sparsecl.probing.drift_streams import drift_of_streams
from sparsecl.probing.gradient_table import gradients_of_arm
from sparsecl.probing.probed_rows import overlap_of_arm, probe_rows
from sparsecl.probing.routing_table import routing_of_model
from sparsecl.streams import Stream, planned_streams
from sparsecl.tables import COLUMNS


def probed_arms(experiment: Experiment) -> tuple[Arm, ...]:
    """The base, the arms of the main protocol, and the ladder of widths."""
    return (*experiment.chosen(("D0", *experiment.study.continual.arms)), *experiment.arms_made(RUNG))


def overlap_of_arms(experiment: Experiment, base: Base) -> pd.DataFrame:
    """Rows of overlap.csv: activation overlap of every probed arm, all on the same lines; empty where no selection is asked for."""
    if not experiment.study.probe.selections:
        return pd.DataFrame(columns=list(COLUMNS["overlap"]))
    rows = probe_rows(experiment, base)
    return pd.concat([overlap_of_arm(experiment, base, checkpoint, rows) for checkpoint in _loaded(experiment)], ignore_index=True)


def gradients_of_arms(experiment: Experiment, base: Base) -> pd.DataFrame:
    """Rows of gradients.csv: gradient overlap of every probed arm, all on the same batches; empty where not asked for."""
    if experiment.study.probe.gradients is None:
        return pd.DataFrame(columns=list(COLUMNS["gradients"]))
    return pd.concat([gradients_of_arm(experiment, base, checkpoint) for checkpoint in _loaded(experiment)], ignore_index=True)


def routing_of_streams(experiment: Experiment, base: Base) -> pd.DataFrame:
    """Rows of routing.csv: every probed arm before fine-tuning (stage 0), and at the end of its streams by method; or empty."""
    if experiment.study.probe.routing is None:
        return pd.DataFrame(columns=list(COLUMNS["routing"]))
    rows = probe_rows(experiment, base)
    tables = [routing_of_model(experiment, base, start.model, rows, start.arm, "", 0) for start in _loaded(experiment)]
    for stream, stage, model in _ends(experiment, base):
        tables.append(routing_of_model(experiment, base, model, rows, stream.arm, stream.method, stage))
    return pd.concat(tables, ignore_index=True)


def drift_of_arms(experiment: Experiment, base: Base) -> pd.DataFrame:
    """Rows of drift.csv: every stream of domains in the main order, against its arm before it; empty where not asked for."""
    if experiment.study.probe.drift is None:
        return pd.DataFrame(columns=list(COLUMNS["drift"]))
    return drift_of_streams(experiment, base, planned_streams(experiment, base, learning_rates(experiment)))


def _ends(experiment: Experiment, base: Base) -> Iterator[tuple[Stream, int, nn.Module]]:
    """The model at the end of every stream in the main order and of the study's own stage length, and the number of its stages.

    MissingInput where the last stage of one is not there.
    """
    for stream in planned_streams(experiment, base, learning_rates(experiment)):
        if stream.order == MAIN and stream.method not in REFERENCES and stream.has_main_length(experiment.study):
            last = len(stream.domains(experiment.study.continual))
            place = ("streams", stream.arm.name, stream.folder, f"stage-{last}")
            if (directory := experiment.find(*place)) is None:
                raise MissingInput(
                    f"{experiment.write_path(*place)} is not there: run notebook 03_continual with replicate = {experiment.replicate!r}, "
                    f"or ./run_all.sh --study {experiment.study.name} --only 03_continual"
                )
            yield stream, last, load_checkpoint(directory, load_arm(experiment, stream.arm).masks)


def _loaded(experiment: Experiment) -> Iterator[ArmCheckpoint]:
    return (load_arm(experiment, arm) for arm in probed_arms(experiment))
