"""Does implicit sparsity grow with width? Slopes over a ladder of dense bases (H4; paper, section Scale).

A cell is a layer, a pair of domains and, for gradients, a module. Cells are normalised first (`probe_normalisation`), averaged
within a replicate and width next, over those that have a value on every rung, and a line over log2(width) is fitted in
every replicate last: its slope, a change per doubling of the width, is the replicate's one value.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from sparsecl.hypotheses import ActivationTrend, GradientTrend, ScaleHypothesis
from sparsecl.metrics import MissingMeasurement
from sparsecl.probe_normalisation import disattenuated_cosine, normalised_overlap
from sparsecl.statistics import Contrast, contrast_with_zero, with_holm

SLOPE = "per doubling of width"
BELOW_LABELS = "below_label_null"  # the share of cells with p_label <= alpha
LESS_LABELS = "less_label_null"  # the quantity less what it is where domains do not differ
_CELL = ["layer", "module", "domain_a", "domain_b"]
Tables = Mapping[str, pd.DataFrame]


def activation_cells(overlap: pd.DataFrame, trend: ActivationTrend) -> pd.DataFrame:
    """Rows of overlap.csv of the trend's selection: arm, seed, the cell, `value` and `label` (of the label null), normalised."""
    rows = overlap[(overlap["selection"] == trend.selection) & np.isclose(overlap["top_fraction"], trend.top_fraction)]
    values = [normalised_overlap(rows[name], rows["null"], rows["ceiling"], trend.smallest_range) for name in ("value", "null_label")]
    return rows.assign(module="", value=values[0], label=values[1])


def gradient_cells(gradients: pd.DataFrame, trend: GradientTrend) -> pd.DataFrame:
    """Rows of gradients.csv of the trend's measure, as `activation_cells`, disattenuated."""
    rows = gradients[gradients["measure"] == trend.measure]
    limits = trend.smallest_ceiling, trend.nulls_below_ceiling
    values = [disattenuated_cosine(rows[name], rows["null"], rows["ceiling"], *limits) for name in ("value", "null_label")]
    return rows.assign(value=values[0], label=values[1])


def rung_means(cells: pd.DataFrame, ladder: Mapping[str, int]) -> pd.DataFrame:
    """Mean of `value` by replicate (rows) and arm of the ladder (columns), over the cells that the replicate has on every rung.

    A cell without a value on one rung would change what the others are compared with. Replicates without such a cell are
    not there. `cells` holds arm, seed, the cell's keys and `value`.
    """
    rows = cells[cells["arm"].isin(list(ladder))]
    wide = rows.pivot(index=["seed", *_CELL], columns="arm", values="value").reindex(columns=list(ladder)).dropna()
    return wide.groupby("seed").mean()


def slopes(means: pd.DataFrame, ladder: Mapping[str, int]) -> pd.Series:
    """Least-squares slope over log2(width) by replicate, units of `value` per doubling; `means` as of `rung_means`."""
    doublings = np.log2([ladder[arm] for arm in means.columns])
    centred = doublings - doublings.mean()
    return means @ centred / (centred @ centred)


def slope_contrast(cells: pd.DataFrame, ladder: Mapping[str, int], name: str, metric: str, margin=None, alpha=0.05) -> Contrast:
    """The slope with its interval over replicates, its t-test against 0 and its TOST against the margin."""
    return contrast_with_zero(slopes(rung_means(cells, ladder), ladder).to_numpy(), name, metric, margin, alpha)


def scale_contrasts(probes: Tables, hypothesis: ScaleHypothesis, alpha: float = 0.05) -> list[Contrast]:
    """The two deciding slopes, of activations and of gradients, Holm-corrected together.

    `probes` holds the tables overlap and gradients; one that is missing raises MissingMeasurement.
    """
    cells = _deciding_cells(probes, hypothesis)
    return with_holm([slope_contrast(cells[t.metric], hypothesis.ladder, SLOPE, t.metric, t.margin, alpha) for t in hypothesis.deciding])


def rung_contrasts(probes: Tables, hypothesis: ScaleHypothesis, alpha: float = 0.05) -> dict[tuple[str, str], Contrast]:
    """Mean over replicates of both quantities on every rung, by metric and arm; 0 is chance, and orthogonality."""
    found = {}
    for metric, cells in _deciding_cells(probes, hypothesis).items():
        means = rung_means(cells, hypothesis.ladder)
        found |= {(metric, arm): contrast_with_zero(means[arm].to_numpy(), arm, metric, alpha=alpha) for arm in hypothesis.ladder}
    return found


def scale_beside(probes: Tables, hypothesis: ScaleHypothesis, alpha: float = 0.05) -> list[Contrast]:
    """What decides nothing: slopes by layer and module, means on every rung, raw |cosine|, and whether `base` is implicitly sparse."""
    cells, ladder = _deciding_cells(probes, hypothesis), hypothesis.ladder
    found = []
    for metric, rows in cells.items():
        parts = {f"layer {layer}": part for layer, part in rows.groupby("layer")}
        parts |= {module: part for module, part in rows.groupby("module") if module}
        found += [slope_contrast(part, ladder, f"{SLOPE}, {name}", metric, alpha=alpha) for name, part in parts.items()]
        found += _against_labels(rows[rows["arm"] == hypothesis.base], hypothesis.base, metric, alpha)
    found += rung_contrasts(probes, hypothesis, alpha).values()
    return with_holm([*found, *_raw_cosines(probes["gradients"], hypothesis, alpha)])


def selection_slopes(probes: Tables, hypothesis: ScaleHypothesis, alpha: float = 0.05) -> list[Contrast]:
    """Slopes of the normalised overlap for every other selection of neurons and top fraction of the table, Holm-corrected."""
    overlap, main = _table(probes, "overlap"), hypothesis.activation
    overlap = overlap[overlap["arm"].isin(list(hypothesis.ladder))]
    found = []
    for selection, top_fraction in overlap[["selection", "top_fraction"]].drop_duplicates().itertuples(index=False):
        if selection == main.selection and np.isclose(top_fraction, main.top_fraction):
            continue
        trend = main.model_copy(update={"selection": selection, "top_fraction": top_fraction})
        name = f"{main.metric}/{selection}/{top_fraction:g}"
        found.append(slope_contrast(activation_cells(overlap, trend), hypothesis.ladder, SLOPE, name, alpha=alpha))
    return with_holm(found)


def _deciding_cells(probes: Tables, hypothesis: ScaleHypothesis) -> dict[str, pd.DataFrame]:
    activation, gradient = hypothesis.deciding
    return {
        activation.metric: activation_cells(_table(probes, "overlap"), activation),
        gradient.metric: gradient_cells(_table(probes, "gradients"), gradient),
    }


def _table(probes: Tables, name: str) -> pd.DataFrame:
    if (table := probes.get(name)) is None or table.empty:
        raise MissingMeasurement(f"a hypothesis about scale needs the table {name}, which is absent; run 04_probe with that probe")
    return table


def _against_labels(cells: pd.DataFrame, base: str, metric: str, alpha: float) -> list[Contrast]:
    """Do domains differ at all on `base`? The share of cells below the label null, and the quantity less that null's."""
    cells = cells.dropna(subset=["value"])
    share = (cells["p_label"] <= alpha).groupby(cells["seed"]).mean()
    less = (cells["value"] - cells["label"]).groupby(cells["seed"]).mean()
    return [
        _without_test(contrast_with_zero(share.to_numpy(), base, f"{metric}/{BELOW_LABELS}", alpha=alpha)),
        contrast_with_zero(less.to_numpy(), base, f"{metric}/{LESS_LABELS}", alpha=alpha),
    ]


def _raw_cosines(gradients: pd.DataFrame, hypothesis: ScaleHypothesis, alpha: float) -> list[Contrast]:
    """|cosine| on every rung and its slope in powers of 2, each with what 1 / sqrt(parameters) alone gives."""
    rows = gradients[gradients["measure"] == hypothesis.gradient.measure]
    found = []
    for metric, values in {"absolute_cosine": rows["value"].abs(), "trivial_cosine": rows["parameters"] ** -0.5}.items():
        means = rung_means(rows.assign(value=values), hypothesis.ladder)
        found += [_without_test(contrast_with_zero(means[arm].to_numpy(), arm, metric, alpha=alpha)) for arm in hypothesis.ladder]
        found.append(contrast_with_zero(slopes(np.log2(means), hypothesis.ladder).to_numpy(), SLOPE, f"log2_{metric}", alpha=alpha))
    return found


def _without_test(contrast: Contrast) -> Contrast:
    """Of a share or a size, which 0 is no hypothesis about."""
    return replace(contrast, p=float("nan"))
