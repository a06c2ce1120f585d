r"""The LaTeX tables of the second question: probes by layer, scale, methods, drift, routing (paper, sections on implicit sparsity).

Each function returns None where the study did not measure what the table shows. Normalised quantities are in hundredths of
the distance from chance to the ceiling; scores are in percentage points.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.arms import parse_arm
from sparsecl.config import Study
from sparsecl.figures_probes import MODULES as MODULE_LABELS
from sparsecl.figures_probes import SELECTIONS as SELECTION_LABELS
from sparsecl.latex_tables import difference_cell, interval_cell, mean_cell, tabular
from sparsecl.methods import FULL, METHODS
from sparsecl.number_formats import interval, nats, points
from sparsecl.paper_arms import REFERENCE
from sparsecl.paper_samples import difference
from sparsecl.paper_tables_routing import routing_table
from sparsecl.paper_tables_scale import scale_table
from sparsecl.paper_values_drift import DRIFT_FORMS, drift_by_layer, ends_of, equal_own_drift
from sparsecl.paper_values_implicit import IMPLICIT
from sparsecl.paper_values_probes import (
    ANGLE,
    LEVELS,
    PROBED_ARMS,
    SELECTIONS,
    SHARED,
    gradient_cells,
    mean_levels,
    mean_share,
    overlap_cells,
)
from sparsecl.paper_values_runs import METHODS_OF, compared_methods, cost_texts, method_frontiers, run_costs, run_name, run_samples

Tables = Mapping[str, pd.DataFrame]
MEASURE_LABELS = {
    "cosine": "cosine of mean gradients", "top_support": "IoU of largest entries", "subspace": "overlap of subspaces",
    ANGLE: "largest angle (radians)",
}  # fmt: skip
DISPLACEMENT = "displacement"


def implicit_tables(part: str, study: Study, tables: Tables) -> dict[str, str | None]:
    """Every table of one of the two parts, by file name without suffix."""
    found = {"methods": methods_table(part, study, tables)}
    if part != IMPLICIT:
        return found | {"routing": routing_table(tables.get("routing"))}
    return found | {
        "overlap_layers": overlap_table(tables.get("overlap"), study.probe.top_fraction),
        "gradient_layers": gradients_table(tables.get("gradients")),
        "scale": scale_table(tables.get("tests")),
        "equal_own": equal_own_table(part, study, tables.get("metrics")),
        "drift": drift_table(part, study, tables),
    }


# Probes


def overlap_table(overlap: pd.DataFrame | None, top_fraction: float) -> str | None:
    """Every selection by layer on D0, the main one on the other probed arms."""
    if overlap is None or overlap.empty:
        return None
    blocks = []
    for arm in PROBED_ARMS:
        for name, selection in SELECTIONS.items():
            if arm == PROBED_ARMS[0] or name == "magnitude":
                cells = overlap_cells(overlap[overlap["arm"] == arm], selection, top_fraction)
                blocks.append([_level_row(arm, SELECTION_LABELS[selection], layer, rows, nats) for layer, rows in cells.groupby("layer")])
    heading = ["arm", "selection", "layer", "overlap", "chance", "labels", "halves", r"normalised, 95\,\% interval", r"$p\le.05$"]
    return tabular("@{}llccccccc@{}", heading, _blocks(blocks))


def gradients_table(gradients: pd.DataFrame | None) -> str | None:
    """Every measure by module and layer on D0, the cosine on the other probed arms."""
    if gradients is None or gradients.empty:
        return None
    blocks: list[list] = []
    for measure, label in MEASURE_LABELS.items():
        cells, form = gradient_cells(gradients, measure), SHARED.get(measure, nats)
        for arm in PROBED_ARMS if measure == "cosine" else PROBED_ARMS[:1]:
            parts = cells[cells["arm"] == arm].groupby(["module", "layer"])
            rows = [_level_row(arm, MODULE_LABELS[module], layer, here, form) for (module, layer), here in parts]
            heading = [rf"\multicolumn{{9}}{{@{{}}l}}{{\emph{{{label}}}}} \\"] if arm == PROBED_ARMS[0] else []
            blocks.append([*heading, *rows] if rows else [])
    heading = ["arm", "module", "layer", "value", "chance", "labels", "halves", r"normalised, 95\,\% interval", r"$p\le.05$"]
    return tabular("@{}llccccccc@{}", heading, _blocks(blocks))


def _level_row(arm: str, name: str, layer: int, rows: pd.DataFrame, form) -> list[str | None]:
    """One arm, selection or module, and layer: means over pairs and replicates, and how many tests differ from exchanged labels."""
    levels = [form(value) for value in (mean_levels(rows)[level] for level in LEVELS)]
    tested = rows["p_label"].dropna()
    differing = f"{int((tested <= 0.05).sum())} of {len(tested)}"
    return [parse_arm(arm).label, name, str(layer), *levels, interval_cell(mean_share(rows), points), differing]


def _blocks(blocks: Iterable[list]) -> list:
    """Rows of the blocks that have some, with space between them."""
    return [row for block in blocks if block for row in (*block, r"\addlinespace")][:-1]


# Methods


def methods_table(part: str, study: Study, tables: Tables) -> str | None:
    """Every method by arm: scores, drift, and what it costs."""
    if (metrics := tables.get("metrics")) is None or metrics.empty:
        return None
    samples = run_samples(part, metrics, study.continual.stage_steps)
    blocks = []
    for arm, methods in METHODS_OF[part].items():
        ran = [method for method in methods if run_name(arm, method) in samples["own"].wide]
        heading = [rf"\multicolumn{{8}}{{@{{}}l}}{{\emph{{on {parse_arm(arm).label}}}}} \\"]
        blocks.append(heading + [_method_row(study, tables, samples, arm, method) for method in ran] if ran else [])
    above = r" & \multicolumn{4}{c}{score, mean (sd)} & & trained & step"
    below = ["method", "own", "final", "forgetting", r"retention (\%)", "displacement", "numbers", "(ms)"]
    heading = f"{above} \\\\ \\cmidrule(lr){{2-5}}\n{' & '.join(below)} \\\\"
    return tabular("@{}lccccccc@{}", heading, _blocks(blocks)) if any(blocks) else None


def _method_row(study: Study, tables: Tables, samples: Mapping, arm: str, method: str) -> list[str | None]:
    scores = [mean_cell(samples[name].summary(run_name(arm, method)), points) for name in ("own", "final", "forgetting", "retention")]
    costs = cost_texts(run_costs(study, tables, arm, method))
    moved = None
    if len(drift := tables.get("drift", pd.DataFrame())):
        ends = ends_of(drift, arm, method, study.continual.stage_steps)
        moved = _mean_sd(ends[ends["measure"] == DISPLACEMENT], nats)
    return [METHODS[method].label, *scores, moved, costs["trainable"], costs["milliseconds_per_step"]]


def _mean_sd(rows: pd.DataFrame, form) -> str | None:
    """Mean over layers within a replicate, then over replicates with the standard deviation."""
    means = rows.groupby("seed")["value"].mean()
    return mean_cell({"mean": means.mean(), "sd": means.std(ddof=1)}, form) if len(means) else None


def equal_own_table(part: str, study: Study, metrics: pd.DataFrame | None) -> str | None:
    """Every method minus full fine-tuning, then minus LoRA: at equal steps, and where both have learned equally much."""
    if metrics is None or metrics.empty:
        return None
    fronts, samples = method_frontiers(part, metrics), run_samples(part, metrics, study.continual.stage_steps)
    blocks: dict[str, list] = {}
    for method, other in compared_methods(part, REFERENCE):
        if (method, other, "forgetting") in fronts:
            block = blocks.setdefault(other, [rf"\multicolumn{{6}}{{@{{}}l}}{{\emph{{minus {METHODS[other].label}}}}} \\"])
            block.append(_equal_own_row(method, other, fronts, samples))
    above = r" & \multicolumn{2}{c}{forgetting} & \multicolumn{1}{c}{final} & & "
    below = ["method", "at equal steps", "at equal own", "at equal own", "own compared", "replicates"]
    heading = f"{above} \\\\ \\cmidrule(lr){{2-3}}\\cmidrule(lr){{4-4}}\n{' & '.join(below)} \\\\"
    return tabular("@{}lccccc@{}", heading, _blocks(blocks.values())) if blocks else None


def _equal_own_row(method: str, other: str, fronts: Mapping, samples: Mapping) -> list[str | None]:
    forgotten, final = (fronts[method, other, outcome] for outcome in ("forgetting", "final"))
    equal_steps = samples["forgetting"].paired(*(run_name(REFERENCE, name) for name in (method, other)))
    cells = [
        difference_cell(found, points) for found in (equal_steps, *(difference(f.replicates["difference"]) for f in (forgotten, final)))
    ]
    n, total = len(forgotten.replicates), len(forgotten.replicates) + len(forgotten.absent)
    reach = f"{points(forgotten.replicates['low'].mean())}--{points(forgotten.replicates['high'].mean())}" if n else None
    return [METHODS[method].label, *cells, reach, f"{n} of {total}"]


# Drift


def drift_table(part: str, study: Study, tables: Tables) -> str | None:
    """Every measure by method and layer at the end of the stream on D1, its null and floor, and displacement at equal own."""
    drift, accuracy = tables.get("drift"), tables.get("accuracy")
    if drift is None or drift.empty or accuracy is None:
        return None
    ratios = drift_by_layer(equal_own_drift(drift, accuracy), DISPLACEMENT)
    ends = {name: ends_of(drift, REFERENCE, name, study.continual.stage_steps) for name in METHODS_OF[part][REFERENCE]}
    blocks = []
    for layer in sorted(ends[FULL]["layer"].unique()):
        here = {name: rows[rows["layer"] == layer] for name, rows in ends.items() if len(rows)}
        rows = [_drift_row(METHODS[name].label, found, ratios.get((name, layer))) for name, found in here.items()]
        null, floor = (_reference_row(here[FULL], name) for name in ("null", "floor"))
        blocks.append([rf"\multicolumn{{7}}{{@{{}}l}}{{\emph{{layer {layer}}}}} \\", *rows, null, floor])
    above = r" & & \multicolumn{2}{c}{1 $-$ CKA} & largest & Grassmann & displacement at"
    below = ["", "displacement", "all", "without top", "angle", "distance", "equal own, ratio"]
    heading = f"{above} \\\\ \\cmidrule(lr){{3-4}}\n{' & '.join(below)} \\\\"
    return tabular("@{}lcccccc@{}", heading, _blocks(blocks)) if blocks else None


def _drift_row(label: str, rows: pd.DataFrame, ratio: Mapping[str, float] | None) -> list[str | None]:
    cells = [_mean_sd(rows[rows["measure"] == measure], form) for measure, form in DRIFT_FORMS.items()]
    if ratio is None:
        return [label, *cells, "1" if label == METHODS[FULL].label else None]
    bounds = interval(ratio["ci_low"], ratio["ci_high"], nats)
    return [label, *cells, " ".join(filter(None, (nats(ratio["estimate"]), bounds))) or None]


def _reference_row(rows: pd.DataFrame, column: str) -> list[str | None]:
    label = {"null": "two runs, other batches", "floor": "split halves of the text"}[column]
    means = (rows.loc[rows["measure"] == measure, column].astype(float).mean() for measure in DRIFT_FORMS)
    return [label, *(form(mean) for mean, form in zip(means, DRIFT_FORMS.values(), strict=True)), ""]
