r"""Every number of the paper's text: the registered keys, and their values from the tables (paper, all sections).

A key is `<part>/<rest>`, e.g. `main/forgetting/S1-2of4-minus-D1/estimate`; the text writes `\val{key}`.
The keys are a product of registries, so that a study that measured less prints dashes in the same places.
"""

from collections.abc import Mapping

import pandas as pd

from sparsecl.config import Study
from sparsecl.figure_style import CHECKPOINT_ARMS, over_domains
from sparsecl.number_formats import count, nats, points
from sparsecl.paper_arms import ARMS, CONTRASTS, H1_CONTRASTS, MAIN_ARMS
from sparsecl.paper_parts import MAIN
from sparsecl.paper_samples import (
    STREAM_METRICS,
    checkpoint_sample,
    main_metrics,
    sample_values,
    statistic_names,
    stream_sample,
)
from sparsecl.paper_values_conversion import comparison_names, comparison_values
from sparsecl.paper_values_design import chosen_learning_rates, design_facts, design_names
from sparsecl.paper_values_efficiency import efficiency_names, efficiency_values
from sparsecl.paper_values_implicit import PARTS, implicit_names, implicit_values
from sparsecl.paper_values_methods import method_names, method_values
from sparsecl.paper_values_streams import stream_names, stream_values
from sparsecl.paper_verdicts import hypotheses_of, verdict_names, verdict_values

STREAM_ARMS = ("D1", "S1-2of4")
# Kinds of item by the suffix of their keys, with the arms and contrasts that are read by kind.
KINDS = {"all": ("", ARMS, CONTRASTS), "ability": ("-ability", MAIN_ARMS, H1_CONTRASTS), "fact": ("-fact", MAIN_ARMS, H1_CONTRASTS)}
CHECKPOINT_METRICS = {
    "general_score": ("score/general", points),
    "general_loss": ("nll/general", nats),
    "density": ("density/attained", points),
}
CHECKPOINT_CONTRASTS = (("S0-2of4", "D0"), ("S1-2of4", "D0"), ("D1", "D0"))
OVERLAP_ARMS = ("D0", "D1", "S1-2of4")
OVERLAP_COUNTS = ("cells", "above_chance", "below_label_null")


def registered_keys(part: str) -> list[str]:
    """Every key that the paper may use of one part; `05_stats` emits them all, measured or not."""
    return [f"{part}/{name}" for name in (implicit_names(part) if part in PARTS else _stream_part_names(part))]


def _stream_part_names(part: str) -> list[str]:
    """The keys of a part about arms in a stream, without the part."""
    return [
        *(name for suffix, arms, pairs in KINDS.values() for name in statistic_names([m + suffix for m in STREAM_METRICS], arms, pairs)),
        *statistic_names(CHECKPOINT_METRICS, CHECKPOINT_ARMS, CHECKPOINT_CONTRASTS),
        *comparison_names(),
        *stream_names(),
        *method_names(),
        *efficiency_names(),
        *(f"overlap/{arm}/{name}" for arm in OVERLAP_ARMS for name in OVERLAP_COUNTS),
        *design_names(STREAM_ARMS),
        *verdict_names(part),
    ]


def part_values(
    study: Study,
    tables: Mapping[str, pd.DataFrame],
    verdicts: Mapping | None = None,
    facts: Mapping[str, str] | None = None,
    statements: Mapping[str, str] | None = None,
    part: str = MAIN,
) -> dict[str, str | None]:
    """All values of one part by the rest of their key, formatted; None where the study did not measure it.

    `tables` maps table names to frames; `verdicts` maps hypotheses to `sparsecl.decision.Verdict`, `statements` to what was
    registered; `facts` adds design facts known elsewhere (margin, alpha), formatted. Which keys there are is up to the part.
    """
    values = implicit_values(part, study, tables) if part in PARTS else _stream_part_values(study, tables)
    values |= {f"design/{name}": value for name, value in (facts or {}).items()}
    decided = {name: verdict for name, verdict in (verdicts or {}).items() if part not in PARTS or name in hypotheses_of(part)}
    return values | verdict_values(decided, statements or {})


def _stream_part_values(study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """Values of a part about arms in a stream, without its verdicts."""
    values, main = {}, pd.DataFrame()
    if (metrics := tables.get("metrics")) is not None and len(metrics):
        main = main_metrics(metrics, study.continual.stage_steps)
        values |= measure_values(main, tables.get("tests", pd.DataFrame()))
        values |= stream_values(study, tables) | method_values(study, tables, main)
    values |= efficiency_values(study, tables, main)
    if (conversion := tables.get("conversion")) is not None and len(conversion):
        values |= checkpoint_values(conversion, tables.get("tests", pd.DataFrame()))
    if (overlap := tables.get("overlap")) is not None and len(overlap):
        for arm in OVERLAP_ARMS:
            values |= overlap_counts(overlap[overlap["top_fraction"] == study.probe.top_fraction], arm)
    values |= chosen_learning_rates(tables.get("learning_rate"), study, STREAM_ARMS)
    return values | {f"design/{name}": value for name, value in design_facts(study, tables).items()}


def measure_values(main: pd.DataFrame, tests: pd.DataFrame) -> dict[str, str | None]:
    """The stream's measures by arm and contrast, for both kinds of item together and apart."""
    values: dict[str, str | None] = {}
    main = main[over_domains(main)]
    for metric, form in STREAM_METRICS.items():
        for kind, (suffix, arms, contrasts) in KINDS.items():
            tested = metric if kind == "all" else f"{metric}/{kind}"
            values |= sample_values(metric + suffix, stream_sample(main, metric, kind), form, arms, contrasts, tests, tested)
    return values


def checkpoint_values(conversion: pd.DataFrame, tests: pd.DataFrame) -> dict[str, str | None]:
    """The checkpoints before the stream, and the comparisons of conversions."""
    values: dict[str, str | None] = {}
    for name, (metric, form) in CHECKPOINT_METRICS.items():
        sample = checkpoint_sample(conversion, metric)
        values |= sample_values(name, sample, form, CHECKPOINT_ARMS, CHECKPOINT_CONTRASTS, tests, metric)
    return values | comparison_values(conversion)


def overlap_counts(overlap: pd.DataFrame, arm: str) -> dict[str, str | None]:
    """In how many cells (layer x domain pair) every replicate's overlap lies above chance, or below the label null.

    Counting cells keeps layers and pairs apart; a mean over them would hide where domains differ. Neurons
    chosen by magnitude only: a score contrasted over domains has low overlap by construction.
    """
    rows = overlap[(overlap["arm"] == arm) & (overlap["selection"] == "magnitude")]
    if rows.empty:
        return {}
    sides = rows.assign(above=rows["value"] > rows["null"], below=rows["value"] < rows["null_label"])
    cells = sides.groupby(["layer", "domain_a", "domain_b"])[["above", "below"]].all()
    counts = zip(OVERLAP_COUNTS, (len(cells), cells["above"].sum(), cells["below"].sum()), strict=True)
    return {f"overlap/{arm}/{name}": count(value) for name, value in counts}
