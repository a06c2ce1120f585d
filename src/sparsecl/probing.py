"""The overlap probe on a replicate's arms: which lines are read, and one arm's table (notebook 04)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from sparsecl.base import Base
from sparsecl.experiment import Experiment
from sparsecl.items import GENERAL, Item
from sparsecl.lineage import ArmCheckpoint
from sparsecl.probes import activation_profile, overlap_table

Lines = list[list[int]]


def probe_rows(experiment: Experiment, base: Base) -> dict[str, Lines]:
    """Token ids of the probed lines per domain and for GENERAL; every arm reads the same."""
    generator = experiment.generator("probe-items")
    suite = experiment.suite
    return {domain: _chosen(experiment, base, items, generator) for domain, items in {**suite.test, GENERAL: suite.general}.items()}


def _chosen(experiment: Experiment, base: Base, items: Sequence[Item], generator: np.random.Generator) -> Lines:
    # Facts come in several phrasings; near copies would make the label null look surer than it is.
    items = [item for item in items if item.kind == "ability"] or list(items)
    indices = generator.choice(len(items), min(experiment.study.probe.items, len(items)), replace=False)
    return [row.ids.tolist() for row in base.rows(tuple(items[index] for index in indices), experiment.study.tokenizer.max_length)]


def overlap_of_arm(experiment: Experiment, base: Base, checkpoint: ArmCheckpoint, rows: Mapping[str, Lines]) -> pd.DataFrame:
    """Rows of overlap.csv of one arm. Arms share the stream `probe`, so their nulls are paired."""
    batch, special = experiment.study.scoring_batch, base.tokenizer.all_special_ids
    profiles = {name: activation_profile(checkpoint.model, lines, batch, excluded_tokens=special) for name, lines in rows.items()}
    general = profiles.pop(GENERAL)
    settings = experiment.study.probe
    table = overlap_table(profiles, general, settings.top_fraction, settings.permutations, experiment.generator("probe"))
    return table.assign(arm=checkpoint.arm.name, seed=experiment.replicate)
