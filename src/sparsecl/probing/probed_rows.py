"""Which lines the probes read, and the overlap of one arm's neurons between domains (notebook 04; paper, section Probes)."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from torch import nn

from sparsecl.base import Base
from sparsecl.experiment import Experiment
from sparsecl.items import GENERAL, Item
from sparsecl.lineage import ArmCheckpoint
from sparsecl.probing.activations import ActivationProfile, activation_profile, common_token_weights
from sparsecl.probing.overlap import SAME_TOKENS, overlap_table

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
    """Rows of overlap.csv of one arm, for the study's selections and fractions.

    Arms share the stream `probe`, so their nulls are paired.
    """
    settings = experiment.study.probe
    profiles = arm_profiles(experiment, base, checkpoint.model, rows)
    general = profiles.pop(GENERAL)
    fractions = (settings.top_fraction, *settings.top_fractions)
    table = overlap_table(
        profiles, general, fractions, settings.permutations, experiment.generator("probe"), selections=settings.selections
    )
    return table.assign(arm=checkpoint.arm.name, seed=experiment.replicate)


def arm_profiles(experiment: Experiment, base: Base, model: nn.Module, rows: Mapping[str, Lines]) -> dict[str, ActivationProfile]:
    """Activation profile of each domain and of GENERAL, with the statistics that the study's selections need."""
    settings, special = experiment.study.probe, base.tokenizer.all_special_ids
    fractions = (settings.top_fraction, *settings.top_fractions) if "frequency" in settings.selections else ()
    domains = {domain: lines for domain, lines in rows.items() if domain != GENERAL}
    weights = common_token_weights(domains, special) if SAME_TOKENS in settings.selections else {}

    def profile(domain: str) -> ActivationProfile:
        own = {} if domain == GENERAL else {"top_fractions": fractions, "token_weights": weights.get(domain)}
        return activation_profile(model, rows[domain], experiment.study.scoring_batch, excluded_tokens=special, **own)

    return {domain: profile(domain) for domain in rows}
