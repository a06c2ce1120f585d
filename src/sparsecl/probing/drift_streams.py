"""Representation drift along the finished streams of a replicate: the rows of drift.csv (notebook 04; paper, section Drift).

Every checkpoint is one pass over the same lines of general text; compared are the states of the same tokens, at most
`probe.drift.tokens` of them, so that memory and the comparison's cost do not grow with the text. Held are those of two models:
4 bytes x layers x tokens x width each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd
from torch import Tensor, nn
from tqdm import tqdm

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.domain_orders import MAIN, REPEAT
from sparsecl.experiment import Experiment, MissingInput
from sparsecl.lineage import ArmCheckpoint, load_arm
from sparsecl.methods import FULL, REFERENCES
from sparsecl.modeling import checkpoint_manifest, load_checkpoint
from sparsecl.probing.drift import MEASURES, drift_between, energy_of, key_subspaces_of, subspace_floor
from sparsecl.probing.hidden_states import HiddenStates, Positions, hidden_states, sampled_positions
from sparsecl.streams import Stream
from sparsecl.tables import COLUMNS

Stages = dict[int, Mapping[str, Tensor]]  # stage -> measure -> value per layer


@dataclass(frozen=True)
class _Reading:
    """What all checkpoints of a replicate share: the lines, and which of their tokens are compared."""

    experiment: Experiment
    lines: Sequence[Sequence[int]]
    positions: Positions
    excluded_tokens: Sequence[int]

    def states(self, model: nn.Module) -> list[HiddenStates]:
        batch_size = self.experiment.study.scoring_batch
        return hidden_states(model, self.lines, batch_size, excluded_tokens=self.excluded_tokens, positions=self.positions)

    def stage(self, start: ArmCheckpoint, stream: Stream, number: int) -> list[HiddenStates]:
        """States after a stage of a finished stream; MissingInput where its checkpoint is not there or is of another domain."""
        place = ("streams", stream.arm.name, stream.folder, f"stage-{number}")
        directory, domain = self.experiment.find(*place), stream.domains(self.experiment.study.continual)[number - 1]
        if directory is None or (found := checkpoint_manifest(directory)["domain"]) != domain:
            seen = "is not there" if directory is None else f"was trained on {found}, wanted {domain}"
            raise MissingInput(
                f"{self.experiment.write_path(*place)} {seen}: run notebook 03_continual with replicate = {self.experiment.replicate!r}, "
                f"or ./run_all.sh --study {self.experiment.study.name} --only 03_continual"
            )
        return self.states(load_checkpoint(directory, start.masks))


def drift_of_streams(experiment: Experiment, base: Base, streams: Sequence[Stream]) -> pd.DataFrame:
    """Rows of drift.csv, one per stream of the main order, stage from 1, layer from 0, and measure.

    `streams` may hold any streams of this replicate; references, other orders and arms of another width than the base's have no
    rows. `value` compares with the same arm before its streams, in the key subspaces of the base. `null` is the same measure
    between the ends of a stage of two runs of full fine-tuning that differ in the order of batches alone: of the arm's stream of
    order `repeat` and its main one, for every method at that stage length; absent elsewhere. `floor` is what two halves of the
    text before the stream give (`subspace_floor`). Raises MissingInput where an arm or a stage is not there.
    """
    reading = _reading(experiment, base)
    key = key_subspaces_of(reading.states(base.model), experiment.study.probe.drift.energy)
    main = [stream for stream in streams if stream.order == MAIN and stream.method not in REFERENCES]
    repeats = [stream for stream in streams if stream.order == REPEAT and stream.method == FULL]
    found: list[dict] = []
    for arm in dict.fromkeys(stream.arm for stream in main):
        theirs = ([stream for stream in chosen if stream.arm == arm] for chosen in (main, repeats))
        found += _rows_of_arm(reading, key, arm, *theirs)
    return pd.DataFrame(found, columns=list(COLUMNS["drift"]))


def _reading(experiment: Experiment, base: Base) -> _Reading:
    settings, excluded = experiment.study.probe.drift, base.tokenizer.all_special_ids
    rows = base.rows(experiment.suite.general[: settings.rows], experiment.study.tokenizer.max_length)
    lines = [row.ids.tolist() for row in rows]
    return _Reading(experiment, lines, sampled_positions(lines, settings.tokens, excluded, experiment.generator("drift-tokens")), excluded)


def _rows_of_arm(reading: _Reading, key: list[Tensor], arm: Arm, streams: Sequence[Stream], repeats: Sequence[Stream]) -> list[dict]:
    start = load_arm(reading.experiment, arm)
    before = reading.states(start.model)
    if before[0].states.shape[-1] != key[0].shape[0]:
        return []  # a narrower arm has no states in the base's key subspace
    floor = subspace_floor(before, key, reading.experiment.generator("drift-halves"))
    nulls = {repeat.stage_steps: _between_runs(reading, key, start, before, repeat) for repeat in repeats}
    rows = []
    for stream in tqdm(streams, desc=f"drift of {arm.name}", delay=3, leave=False):
        domains = stream.domains(reading.experiment.study.continual)
        values = {number: drift_between(before, reading.stage(start, stream, number), key) for number, _ in enumerate(domains, start=1)}
        rows += _rows_of_stream(reading, stream, domains, values, nulls.get(stream.stage_steps, {}), floor)
    return rows


def _between_runs(reading: _Reading, key: list[Tensor], start: ArmCheckpoint, before: Sequence[HiddenStates], repeat: Stream) -> Stages:
    """The measures between the ends of each stage of a run and of its repeat, relative to the states before both."""
    main, reference = replace(repeat, order=MAIN), energy_of(before, key)
    numbers = range(1, 1 + len(repeat.domains(reading.experiment.study.continual)))
    return {
        number: drift_between(reading.stage(start, main, number), reading.stage(start, repeat, number), key, reference)
        for number in tqdm(numbers, desc=f"drift between two runs of {start.arm.name}", delay=3, leave=False)
    }


def _rows_of_stream(
    reading: _Reading, stream: Stream, domains: Sequence[str], values: Stages, nulls: Stages, floor: Mapping[str, Tensor]
) -> list[dict]:
    keys = {"arm": stream.arm.name, "method": stream.method, "order": stream.order, "stage_steps": stream.stage_steps,
            "seed": reading.experiment.replicate}  # fmt: skip
    return [
        {
            **keys, "stage": number, "stage_domain": domain, "layer": layer, "measure": measure, "value": float(value),
            "null": _at(nulls.get(number, {}), measure, layer), "floor": _at(floor, measure, layer),
        }
        for number, domain in enumerate(domains, start=1)
        for measure in MEASURES
        for layer, value in enumerate(values[number][measure])
    ]  # fmt: skip


def _at(values: Mapping[str, Tensor], measure: str, layer: int) -> float:
    return float(values[measure][layer]) if measure in values else math.nan
