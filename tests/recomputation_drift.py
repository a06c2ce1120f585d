"""Drift of representations and selected units as the paper prints them, a second time from the tables alone.

For `test_paper_implicit`. Nothing here imports `sparsecl`. Drift is read after the last stage, and compared where two methods have learned
equally much.
"""

import math
from collections.abc import Mapping
from statistics import fmean

import numpy as np
import pandas as pd
from recomputation import rows
from recomputation_printed import DASH, Cell, Number, Numbers, Row, interval, mean_sd, number_cell
from recomputation_probes import by_replicate, mean_numbers, number
from recomputation_runs import LABELS, METHODS

DRIFTS = {
    "displacement": "nats", "cka_distance": "thousandths", "cka_distance_without_top": "thousandths", "largest_angle": "nats",
    "grassmann": "nats",
}  # fmt: skip
ANGLES = ("largest_angle", "grassmann")  # they alone have a floor
RATIOS = ("displacement", "largest_angle", "grassmann")


def main_length(table: pd.DataFrame) -> dict[tuple[str, str], int]:
    """Of every arm and method the stage length that most replicates ran in the main order."""
    ran: dict[tuple[str, str], dict[int, set[str]]] = {}
    for row in rows(table[table["order"] == "main"][["arm", "method", "stage_steps", "seed"]].drop_duplicates()):
        ran.setdefault((row.arm, row.method), {}).setdefault(int(row.stage_steps), set()).add(row.seed)
    return {key: max(of, key=lambda steps: len(of[steps])) for key, of in ran.items()}


def ends(drift: pd.DataFrame) -> dict[tuple[str, str, str], list]:
    """Rows after the last stage at the main length, by arm, method and measure."""
    usual, found, last = main_length(drift), {}, max(map(int, drift["stage"]))
    for row in rows(drift[drift["order"] == "main"]):
        if int(row.stage) == last and usual[row.arm, row.method] == int(row.stage_steps):
            found.setdefault((row.arm, row.method, row.measure), []).append(row)
    return found


def drift_numbers(part: str, tables: Mapping[str, pd.DataFrame]) -> Numbers:
    found: Numbers = {}
    for (arm, method, measure), of in ends(tables["drift"]).items():
        form = DRIFTS[measure]
        found |= mean_numbers(f"drift/{method}/{arm}/{measure}", by_replicate((row.seed, row.value) for row in of), form)
        if method == "full":
            for name in ("null", "floor") if measure in ANGLES else ("null",):
                values = [number(getattr(row, name)) for row in of if getattr(row, name) != ""]
                found |= {f"drift/{arm}/{measure}/{name}": Number(fmean(values), form)} if values else {}
    if part != "implicit":
        return found
    for (method, measure), by_seed in equal_own(tables).items():
        values = [fmean(layers.values()) for layers in by_seed.values() if not any(map(math.isnan, layers.values()))]
        prefix = f"drift/equal_own/{method}/{measure}"
        found |= back(prefix, values, measure)
        found[f"{prefix}/absent"] = Number(len(by_seed) - len(values), "count")
    return found


def back(prefix: str, values: list[float], measure: str) -> Numbers:
    """A log ratio as a ratio, another measure as a signed difference."""
    whole, form = (math.exp, "nats") if measure in RATIOS else (float, DRIFTS[measure])
    stated = {("estimate" if name == "mean" else name): whole(value) for name, value in interval(values).items() if name != "sd"}
    found = {f"{prefix}/{name}": Number(value, form, measure not in RATIOS) for name, value in stated.items()}
    return found | ({f"{prefix}/n": Number(len(values), "count")} if values else {})


def equal_own(tables: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """By method and measure, then by replicate and layer: the mean vertical distance to full fine-tuning of D1; NaN without a range."""
    points = drift_points(tables["drift"], tables["accuracy"])
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for (method, measure, seed, layer), line in points.items():
        other = points.get(("full", measure, seed, layer))
        if method != "full" and other is not None and min(len(line), len(other)) > 1:
            found.setdefault((method, measure), {}).setdefault(seed, {})[layer] = distance(sorted(line), sorted(other))
    return found


def drift_points(drift: pd.DataFrame, accuracy: pd.DataFrame) -> dict[tuple[str, str, str, str], list[tuple[float, float]]]:
    """(own, drift) of D1 by method, measure, replicate and layer, one a stage length; both are means over the stages."""
    own: dict[tuple, list[float]] = {}
    for row in rows(accuracy[(accuracy["order"] == "main") & (accuracy["kind"] == "all") & (accuracy["arm"] == "D1")]):
        if row.stage > 0 and row.domain == row.stage_domain:
            own.setdefault((row.method, row.seed, int(row.stage_steps)), []).append(row.score)
    moved: dict[tuple, list[float]] = {}
    for row in rows(drift[(drift["order"] == "main") & (drift["arm"] == "D1")]):
        value = (math.log(row.value) if row.value > 0 else math.nan) if row.measure in RATIOS else row.value
        moved.setdefault((row.method, row.measure, row.seed, row.layer, int(row.stage_steps)), []).append(value)
    found: dict[tuple[str, str, str, str], list[tuple[float, float]]] = {}
    for (method, measure, seed, layer, steps), values in moved.items():
        found.setdefault((method, measure, seed, layer), []).append((fmean(own[method, seed, steps]), fmean(values)))
    return found


def distance(ours: list[tuple[float, float]], theirs: list[tuple[float, float]]) -> float:
    low, high = max(ours[0][0], theirs[0][0]), min(ours[-1][0], theirs[-1][0])
    if low >= high:
        return math.nan
    knots = sorted({low, high, *(x for x, _ in (*ours, *theirs) if low < x < high)})
    total = 0.0
    for left, right in zip(knots, knots[1:], strict=False):  # the middle of a piece is exact where both lines are straight
        middle = (left + right) / 2
        first, second = (float(np.interp(middle, *zip(*line, strict=True))) for line in (ours, theirs))
        total += (right - left) * (first - second)
    return total / (high - low)


def displacements(drift: pd.DataFrame) -> dict[tuple[str, str], list[float]]:
    """At the end of the stream, mean over layers, by replicate."""
    last = {(arm, method): of for (arm, method, measure), of in ends(drift).items() if measure == "displacement"}
    return {key: by_replicate((row.seed, row.value) for row in of) for key, of in last.items()}


# Selected units


def masks(part: str, table: pd.DataFrame) -> Numbers:
    usual, found, last = main_length(table), {}, max(map(int, table["stage"]))
    pairs: dict[tuple[str, str], list] = {}
    before: dict[tuple[str, str], list] = {}
    for row in rows(table[table["order"] == "main"]):
        key = (row.arm, row.method)
        if usual[key] == int(row.stage_steps):
            if row.earlier_domain:
                pairs.setdefault(key, []).append(row)
            elif int(row.stage) == last:
                before.setdefault(key, []).append(row)
    for (arm, method), of in pairs.items():
        prefix = f"update_masks/{method}/{arm}"
        found |= mean_numbers(f"{prefix}/overlap", by_replicate((row.seed, row.value) for row in of), "nats")
        found[f"{prefix}/null"] = Number(fmean(float(row.null) for row in of), "nats")
    for (arm, method), of in before.items():
        values = by_replicate((row.seed, float(row.collisions)) for row in of)
        found |= mean_numbers(f"update_masks/{method}/{arm}/collisions", values, "points")
    return found


# Table


def drift_table(part: str, tables: Mapping[str, pd.DataFrame]) -> list[Row]:
    last, ratios, found = ends(tables["drift"]), equal_own(tables), []
    for layer in sorted({int(row.layer) for of in last.values() for row in of}):
        of = {key: [row for row in rows if int(row.layer) == layer] for key, rows in last.items()}
        for method in (method for method in METHODS[part]["D1"] if ("D1", method, "displacement") in of):
            cells = [mean_sd(by_replicate((r.seed, r.value) for r in of["D1", method, m]), form) for m, form in DRIFTS.items()]
            found.append([LABELS[method], *cells, _ratio(method, ratios.get((method, "displacement"), {}), str(layer))])
        for name, label in {"null": "two runs, other batches", "floor": "split halves of the text"}.items():
            values = {m: [number(getattr(r, name)) for r in of["D1", "full", m] if getattr(r, name) != ""] for m in DRIFTS}
            found.append([label, *(number_cell(fmean(v), DRIFTS[m]) if v else DASH for m, v in values.items()), ""])
    return found


def _ratio(method: str, by_seed: Mapping[str, Mapping[str, float]], layer: str) -> Cell | str:
    values = [layers[layer] for layers in by_seed.values() if math.isfinite(layers[layer])]
    found = back("", values, "displacement")
    names = [name for name in ("/estimate", "/ci_low", "/ci_high") if name in found]
    if not names:
        return "1" if method == "full" else DASH
    return Cell("{} [{}, {}]" if len(names) == 3 else "{}", tuple(found[name] for name in names))
