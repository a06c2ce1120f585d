r"""The paper's numbers about moved representations and selected units (paper, sections on drift and on the activation mask).

Drift is read at the end of a stream of the main length, and compared with full fine-tuning where both have learned equally much
(`drift_frontier`). Keys begin with `drift/` and `update_masks/`.
"""

import math
from collections.abc import Mapping

import pandas as pd

from sparsecl.drift_frontier import RATIO_MEASURES, compare_drift, drift_differences, drift_points, over_layers
from sparsecl.methods import FULL
from sparsecl.number_formats import count, nats, points, thousandths
from sparsecl.paper_arms import REFERENCE
from sparsecl.paper_samples import difference, formatted
from sparsecl.paper_values_probes import MEAN
from sparsecl.paper_values_runs import MASKED, METHODS_OF, SEVERAL_LENGTHS
from sparsecl.protocol import ORDER, main_protocol

DRIFT_FORMS = {  # shares and angles with two decimals, distances that are near 0 with three
    "displacement": nats, "cka_distance": thousandths, "cka_distance_without_top": thousandths, "largest_angle": nats, "grassmann": nats,
}  # fmt: skip
FLOORED = ("largest_angle", "grassmann")  # measures of subspaces: others compare each token with itself and have no floor
EQUAL_OWN = ("estimate", "ci_low", "ci_high", "n", "absent")


def drift_names(part: str) -> list[str]:
    """The registered keys of this module, without their part."""
    by_arm = METHODS_OF[part].items()
    runs = [f"{method}/{arm}" for arm, methods in by_arm for method in methods]
    masked = [f"update_masks/{method}/{arm}" for arm, methods in by_arm for method in methods if method in MASKED]
    others = [method for method in METHODS_OF[part][REFERENCE] if method != FULL and part in SEVERAL_LENGTHS]
    compared = [f"drift/equal_own/{method}/{measure}" for method in others for measure in DRIFT_FORMS]
    return [
        *(f"drift/{run}/{measure}/{name}" for run in runs for measure in DRIFT_FORMS for name in MEAN),
        *(f"drift/{arm}/{measure}/{name}" for arm, _ in by_arm for measure in DRIFT_FORMS for name in references_of(measure)),
        *(f"{prefix}/{name}" for prefix in compared for name in EQUAL_OWN),
        *(f"{prefix}/{kind}/{name}" for prefix in masked for kind in ("overlap", "collisions") for name in MEAN),
        *(f"{prefix}/null" for prefix in masked),
    ]


def references_of(measure: str) -> tuple[str, ...]:
    """The columns of drift.csv that a measure is read against."""
    return ("null", "floor") if measure in FLOORED else ("null",)


def drift_values(part: str, tables: Mapping[str, pd.DataFrame], stage_steps: int) -> dict[str, str | None]:
    """All values of this module; what is compared at equal own needs the accuracy too."""
    values: dict[str, str | None] = {}
    if len(drift := tables.get("drift", pd.DataFrame())):
        values |= _values_at_the_end(part, drift, stage_steps)
        if part in SEVERAL_LENGTHS and len(accuracy := tables.get("accuracy", pd.DataFrame())):
            values |= _values_at_equal_own(part, over_layers(equal_own_drift(drift, accuracy)))
    if len(masks := tables.get("update_masks", pd.DataFrame())):
        values |= _mask_values(part, masks, stage_steps)
    return values


# Drift


def ends_of(drift: pd.DataFrame, arm: str, method: str, stage_steps: int) -> pd.DataFrame:
    """Rows of drift.csv after the last stage of one run's streams of the main length."""
    rows = main_protocol(drift[drift["arm"] == arm], method, ORDER, stage_steps)
    return rows[rows["stage"] == rows["stage"].max()]


def mean_of(rows: pd.DataFrame, column: str = "value") -> dict[str, float | None]:
    """Mean with its t interval over replicates, each the mean of its rows."""
    found = difference(rows.groupby("seed")[column].mean())
    return {"mean" if name == "estimate" else name: value for name, value in found.items()}


def equal_own_drift(drift: pd.DataFrame, accuracy: pd.DataFrame) -> pd.DataFrame:
    """Each method minus full fine-tuning at equal own on the dense arm, by layer, measure and replicate (`drift_differences`)."""
    return drift_differences(drift_points(drift[drift["arm"] == REFERENCE], accuracy))


def drift_by_layer(differences: pd.DataFrame, measure: str) -> dict[tuple[str, int], dict[str, float]]:
    """By method and layer, `equal_own_statistics` of one measure."""
    rows = compare_drift(differences[differences["measure"] == measure])
    return {(row.method, row.layer): equal_own_statistics(row, measure) for row in rows.itertuples()}


def equal_own_statistics(row, measure: str) -> dict[str, float]:
    """Of a positive measure the ratio of drifts, of another one their difference, with the ends of its interval."""
    back = math.exp if measure in RATIO_MEASURES else float
    return {"estimate": back(row.estimate), "ci_low": back(row.low), "ci_high": back(row.high), "n": row.n or None, "absent": row.absent}


def _values_at_the_end(part: str, drift: pd.DataFrame, stage_steps: int) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for arm, methods in METHODS_OF[part].items():
        for method in methods:
            rows = ends_of(drift, arm, method, stage_steps)
            for measure, form in DRIFT_FORMS.items():
                here = rows[rows["measure"] == measure]
                values |= formatted(mean_of(here), form, f"drift/{method}/{arm}/{measure}", signed=False)
                if method == FULL:
                    values |= {f"drift/{arm}/{measure}/{name}": form(here[name].astype(float).mean()) for name in references_of(measure)}
    return values


def _values_at_equal_own(part: str, compared: pd.DataFrame) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for row in compared.itertuples():
        if row.method in METHODS_OF[part][REFERENCE]:
            prefix, is_ratio = f"drift/equal_own/{row.method}/{row.measure}", row.measure in RATIO_MEASURES
            found = equal_own_statistics(row, row.measure)
            values[f"{prefix}/absent"] = count(found.pop("absent"))
            values |= formatted(found, nats if is_ratio else DRIFT_FORMS[row.measure], prefix, signed=not is_ratio)
    return values


# Units that the activation mask selects


def _mask_values(part: str, masks: pd.DataFrame, stage_steps: int) -> dict[str, str | None]:
    values: dict[str, str | None] = {}
    for arm, methods in METHODS_OF[part].items():
        for method in (method for method in methods if method in MASKED):
            prefix, rows = f"update_masks/{method}/{arm}", main_protocol(masks[masks["arm"] == arm], method, ORDER, stage_steps)
            pairs, last = rows[rows["value"].notna()], rows[rows["collisions"].notna() & (rows["stage"] == rows["stage"].max())]
            values |= formatted(mean_of(pairs), nats, f"{prefix}/overlap", signed=False)
            values |= formatted(mean_of(last, "collisions"), points, f"{prefix}/collisions", signed=False)
            values[f"{prefix}/null"] = nats(pairs["null"].astype(float).mean())
    return values
