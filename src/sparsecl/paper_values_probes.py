r"""The paper's numbers about shared neurons and aligned gradients (paper, section Results of the probes).

A cell is a layer, a pair of domains and, for gradients, a module. Every cell is normalised first (`probe_normalisation`); what
is averaged over cells, replicate by replicate, is the normalised value, over the cells that have one in every replicate. Keys
begin with `overlap/` and `gradients/`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from sparsecl.number_formats import count, nats, points, thousandths
from sparsecl.paper_arms import REFERENCE, TREATMENT
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, contrast_name, difference, formatted
from sparsecl.probe_normalisation import disattenuated_cosine, normalised_overlap

PROBED_ARMS = ("D0", REFERENCE, TREATMENT)
SELECTIONS = {"magnitude": "magnitude", "frequency": "frequency", "contrast": "contrast", "same-tokens": "magnitude/same-tokens"}
SHARED = {"cosine": thousandths, "top_support": nats, "subspace": nats}  # measures of gradients that are normalised
ANGLE = "largest_angle"  # radians; it has no chance level
MODULES = ("attention", "ffn")
LEVELS = ("value", "null", "null_label", "ceiling")
MEAN = ("mean", "ci_low", "ci_high", "n")
COUNTS = ("cells", "above_chance", "below_label_null")
USED = "cells_used"  # how many of how many cells the normalised mean is over
SIZES = ("parameters", "effective_dimension")
CELL = ["layer", "module", "domain_a", "domain_b"]
SPARSE_CONTRAST = (TREATMENT, REFERENCE)


def probe_names() -> list[str]:
    """The registered keys of this module, without their part."""
    overlaps = [f"overlap/{arm}/{selection}" for arm in PROBED_ARMS for selection in SELECTIONS]
    cosines = [f"gradients/{arm}/{measure}" for arm in PROBED_ARMS for measure in SHARED]
    sparse = contrast_name(*SPARSE_CONTRAST)
    contrasts = [
        *(f"overlap/{sparse}/{selection}" for selection in SELECTIONS),
        *(f"gradients/{sparse}/{measure}" for measure in SHARED),
        *(f"overlap/{arm}/{contrast_name('same-tokens', 'magnitude')}" for arm in PROBED_ARMS),
    ]
    return [
        *(f"{prefix}/{name}" for prefix in (*overlaps, *cosines) for name in (*MEAN, *LEVELS, *COUNTS, USED)),
        *(f"{prefix}/{name}" for prefix in contrasts for name in DIFFERENCE_STATISTICS),
        *(f"gradients/{arm}/{ANGLE}/{name}" for arm in PROBED_ARMS for name in ("value", "null_label", "ceiling")),
        *(f"gradients/{arm}/cosine/{module}/{name}" for arm in PROBED_ARMS for module in MODULES for name in MEAN),
        *(f"gradients/{arm}/{module}/{name}" for arm in PROBED_ARMS for module in MODULES for name in SIZES),
    ]


def probe_values(tables: Mapping[str, pd.DataFrame], top_fraction: float) -> dict[str, str | None]:
    """All values of this module; normalised ones in hundredths of the distance from chance to ceiling."""
    values: dict[str, str | None] = {}
    if len(overlap := tables.get("overlap", pd.DataFrame())):
        values |= _overlap_values(overlap, top_fraction)
    if len(gradients := tables.get("gradients", pd.DataFrame())):
        values |= _gradient_values(gradients)
    return values


# Cells


def overlap_cells(overlap: pd.DataFrame, selection: str, top_fraction: float) -> pd.DataFrame:
    """Rows of overlap.csv of one selection and fraction, with the cell's keys and `share`, the normalised overlap."""
    rows = overlap[(overlap["selection"] == selection) & np.isclose(overlap["top_fraction"], top_fraction)]
    return rows.assign(module="", share=normalised_overlap(rows["value"], rows["null"], rows["ceiling"]))


def gradient_cells(gradients: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Rows of gradients.csv of one measure, with `share`: the cosine over its ceiling, an overlap between chance and ceiling.

    An angle is no share of anything: its `share` is absent.
    """
    rows = gradients[gradients["measure"] == measure]
    if measure == ANGLE:
        return rows.assign(share=np.nan)
    normalise = disattenuated_cosine if measure == "cosine" else normalised_overlap
    return rows.assign(share=normalise(rows["value"], rows["null"], rows["ceiling"]))


def mean_share(cells: pd.DataFrame) -> dict[str, float | None]:
    """Mean with its t interval over replicates, each the mean over `used_shares`; rows of one arm."""
    found = difference(used_shares(cells.set_index(["seed", *CELL])["share"]).mean())
    return {"mean" if name == "estimate" else name: value for name, value in found.items()}


def used_shares(shares: pd.Series) -> pd.DataFrame:
    """Cells (rows) by replicate (columns): those that have a share in every replicate that has any.

    A cell that comes and goes would change what a replicate is the mean of. `shares` is indexed by seed and the cell's keys.
    """
    return shares.unstack("seed").dropna(axis="columns", how="all").dropna()


def cells_used(cells: pd.DataFrame) -> str:
    """How many of how many cells `mean_share` is over."""
    shares = cells.set_index(["seed", *CELL])["share"]
    return f"{count(len(used_shares(shares)))} of {count(len(cells.drop_duplicates(CELL)))}"


def share_difference(treatment: pd.DataFrame, reference: pd.DataFrame) -> dict[str, float | None]:
    """Treatment minus reference over the cells that have a share of both in every replicate; rows of one arm each."""
    keys = ["seed", *CELL]
    if treatment.empty or reference.empty:
        return {}
    return difference(used_shares(treatment.set_index(keys)["share"] - reference.set_index(keys)["share"]).mean())


def mean_levels(cells: pd.DataFrame) -> dict[str, float | None]:
    """Value, both nulls and ceiling as they were measured, means over cells and replicates."""
    return {name: float(cells[name].mean()) for name in LEVELS}


def cell_counts(cells: pd.DataFrame) -> dict[str, int]:
    """In how many cells every replicate's value lies above chance, or below the mean of the label null.

    A mean would hide where domains differ. Counted are cells with a value and both nulls in every replicate: what is absent lies
    on no side.
    """
    sides = cells.assign(
        known=cells[["value", "null", "null_label"]].notna().all(axis="columns"),
        above=cells["value"] > cells["null"],
        below=cells["value"] < cells["null_label"],
    )
    found = sides.groupby(CELL)[["known", "above", "below"]].all().query("known")
    return dict(zip(COUNTS, (len(found), int(found["above"].sum()), int(found["below"].sum())), strict=True))


# Values


def _overlap_values(overlap: pd.DataFrame, top_fraction: float) -> dict[str, str | None]:
    values, sparse = {}, contrast_name(*SPARSE_CONTRAST)
    cells = {name: overlap_cells(overlap, selection, top_fraction) for name, selection in SELECTIONS.items()}
    for name, rows in cells.items():
        values |= _values_by_arm(rows, "overlap", name, nats)
        values |= formatted(_sparse_minus_dense(rows), points, f"overlap/{sparse}/{name}", signed=True)
    for arm in PROBED_ARMS:
        same = share_difference(*(cells[name][cells[name]["arm"] == arm] for name in ("same-tokens", "magnitude")))
        values |= formatted(same, points, f"overlap/{arm}/{contrast_name('same-tokens', 'magnitude')}", signed=True)
    return values


def _gradient_values(gradients: pd.DataFrame) -> dict[str, str | None]:
    values, sparse = {}, contrast_name(*SPARSE_CONTRAST)
    for measure, form in SHARED.items():
        rows = gradient_cells(gradients, measure)
        values |= _values_by_arm(rows, "gradients", measure, form)
        values |= formatted(_sparse_minus_dense(rows), points, f"gradients/{sparse}/{measure}", signed=True)
    for arm in PROBED_ARMS:
        of_arm = gradients[gradients["arm"] == arm]
        angles = mean_levels(of_arm[of_arm["measure"] == ANGLE])
        values |= {f"gradients/{arm}/{ANGLE}/{name}": nats(angles[name]) for name in ("value", "null_label", "ceiling")}
        cosines = gradient_cells(of_arm, "cosine")
        for module in MODULES:
            here = cosines[cosines["module"] == module]
            values |= formatted(mean_share(here), points, f"gradients/{arm}/cosine/{module}", signed=False)
            values |= {f"gradients/{arm}/{module}/{name}": count(here[name].mean()) for name in SIZES}
    return values


def _values_by_arm(cells: pd.DataFrame, table: str, name: str, form) -> dict[str, str | None]:
    values = {}
    for arm in PROBED_ARMS:
        if len(rows := cells[cells["arm"] == arm]):
            prefix = f"{table}/{arm}/{name}"
            values |= formatted(mean_share(rows), points, prefix, signed=False)
            values |= {f"{prefix}/{level}": form(value) for level, value in mean_levels(rows).items()}
            values |= {f"{prefix}/{number}": count(value) for number, value in cell_counts(rows).items()}
            values[f"{prefix}/{USED}"] = cells_used(rows)
    return values


def _sparse_minus_dense(cells: pd.DataFrame) -> dict[str, float | None]:
    return share_difference(*(cells[cells["arm"] == arm] for arm in SPARSE_CONTRAST))
