"""Overlaps of neurons and gradients, and the trend over widths, as the paper prints them, a second time from the tables alone.

For `test_paper_implicit`. Nothing here imports `sparsecl`. A cell is a layer, a pair of domains and, for gradients, a module; what is
averaged over cells is the normalised value, replicate by replicate.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import NamedTuple

import pandas as pd
from recomputation import rows
from recomputation_printed import DASH, Cell, Number, Numbers, Row, arm_label, finite, interval, number_cell, paired_differences
from recomputation_scale import deciding, slopes
from recomputation_statistics import Difference, holm, single

ARMS = ("D0", "D1", "S1-2of4")
SELECTIONS = {"magnitude": "magnitude", "frequency": "frequency", "contrast": "contrast", "same-tokens": "magnitude/same-tokens"}
SELECTION_LABELS = {**SELECTIONS, "same-tokens": "same tokens"}
FORMS = {"cosine": "thousandths", "top_support": "nats", "subspace": "nats", "largest_angle": "nats"}
LEVELS = ("value", "null", "null_label", "ceiling")
MODULES = {"attention": "attention", "ffn": "feed-forward"}
WIDTHS = {"Dw-32": "32", "Dw-64": "64", "D0": "128", "Dw-256": "256"}
QUANTITIES = ("normalised_overlap", "disattenuated_cosine")


class Measured(NamedTuple):
    """One number of a probe, with what it is read against."""

    seed: str
    cell: tuple
    levels: dict[str, float]
    p_label: float
    share: float  # between chance and ceiling; NaN where that is too narrow to say


def number(text) -> float:
    return float(text) if text not in ("", None) else math.nan


def _measured(row, cell: tuple, share: Callable[[Mapping[str, float]], float]) -> Measured:
    levels = {name: number(getattr(row, name)) for name in LEVELS}
    return Measured(row.seed, cell, levels, number(row.p_label), share(levels))


def between_levels(levels: Mapping[str, float]) -> float:
    distance = levels["ceiling"] - levels["null"]
    return (levels["value"] - levels["null"]) / distance if distance >= 0.05 else math.nan


def over_ceiling(levels: Mapping[str, float]) -> float:
    return levels["value"] / levels["ceiling"] if levels["ceiling"] >= max(0.1, 5 * levels["null"]) else math.nan


def overlaps(table: pd.DataFrame, top_fraction: float) -> dict[tuple[str, str], list[Measured]]:
    """By arm and selection."""
    names, found = {column: name for name, column in SELECTIONS.items()}, {}
    for row in rows(table):
        if math.isclose(float(row.top_fraction), top_fraction):
            cell = (int(row.layer), "", row.domain_a, row.domain_b)
            found.setdefault((row.arm, names[row.selection]), []).append(_measured(row, cell, between_levels))
    return found


def gradients(table: pd.DataFrame) -> dict[tuple[str, str], list[Measured]]:
    """By arm and measure."""
    found: dict[tuple[str, str], list[Measured]] = {}
    for row in rows(table):
        share = {"cosine": over_ceiling, "largest_angle": lambda levels: math.nan}.get(row.measure, between_levels)
        cell = (int(row.layer), row.module, row.domain_a, row.domain_b)
        found.setdefault((row.arm, row.measure), []).append(_measured(row, cell, share))
    return found


def by_replicate(pairs: Iterable[tuple[str, float]]) -> list[float]:
    """Mean of each replicate's numbers that are not absent."""
    found: dict[str, list[float]] = {}
    for seed, value in pairs:
        if math.isfinite(value):
            found.setdefault(seed, []).append(value)
    return [fmean(values) for values in found.values()]


def mean_numbers(prefix: str, values: list[float], form: str) -> Numbers:
    """`mean`, `ci_low`, `ci_high`, `n`: no spread."""
    found = {f"{prefix}/{name}": Number(value, form) for name, value in interval(values).items() if name != "sd"}
    return found | ({f"{prefix}/n": Number(len(values), "count")} if values else {})


def in_all(quantities: Iterable[tuple[str, tuple, float]]) -> dict[tuple, dict[str, float]]:
    """Cell -> replicate -> quantity, of the cells that have one in every replicate that has any; from (replicate, cell, quantity)."""
    found: dict[tuple, dict[str, float]] = {}
    for seed, cell, value in quantities:
        if math.isfinite(value):
            found.setdefault(cell, {})[seed] = value
    seeds = {seed for of in found.values() for seed in of}
    return {cell: of for cell, of in found.items() if set(of) == seeds}


def shares(cells: Iterable[Measured]) -> list[float]:
    used = in_all((cell.seed, cell.cell, cell.share) for cell in cells)
    return by_replicate((seed, share) for of in used.values() for seed, share in of.items())


def apart(ours: Iterable[Measured], theirs: Iterable[Measured]) -> list[float]:
    """Differences of shares over the cells that have both in every replicate, mean by replicate."""
    other = {(cell.seed, cell.cell): cell.share for cell in theirs}
    used = in_all((cell.seed, cell.cell, cell.share - other.get((cell.seed, cell.cell), math.nan)) for cell in ours)
    return by_replicate((seed, share) for of in used.values() for seed, share in of.items())


def in_every_replicate(cells: Iterable[Measured], holds: Callable[[Mapping[str, float]], bool], needed: Iterable[str]) -> tuple[int, int]:
    """Cells that have the `needed` levels in every replicate, and those of them in which something holds in every replicate."""
    found: dict[tuple, list[bool | None]] = {}
    for cell in cells:
        known = all(math.isfinite(cell.levels[name]) for name in needed)
        found.setdefault(cell.cell, []).append(holds(cell.levels) if known else None)
    known = [of for of in found.values() if None not in of]
    return len(known), sum(map(all, known))


def of_arm(prefix: str, cells: list[Measured], form: str) -> Numbers:
    found = mean_numbers(prefix, shares(cells), "points")
    for name in LEVELS:
        values = finite(cell.levels[name] for cell in cells)
        found |= {f"{prefix}/{name}": Number(fmean(values), form)} if values else {}
    needed = ("value", "null", "null_label")
    count, above = in_every_replicate(cells, lambda levels: levels["value"] > levels["null"], needed)
    _, below = in_every_replicate(cells, lambda levels: levels["value"] < levels["null_label"], needed)
    counts = {"cells": count, "above_chance": above, "below_label_null": below}
    used = (len(in_all((cell.seed, cell.cell, cell.share) for cell in cells)), len({cell.cell for cell in cells}))
    found[f"{prefix}/cells_used"] = Cell("{} of {}", tuple(Number(value, "count") for value in used))
    return found | {f"{prefix}/{name}": Number(value, "count") for name, value in counts.items()}


def probes(tables: Mapping[str, pd.DataFrame], top_fraction: float) -> Numbers:
    neurons, directions, found = overlaps(tables["overlap"], top_fraction), gradients(tables["gradients"]), {}
    for (arm, name), cells in neurons.items():
        found |= of_arm(f"overlap/{arm}/{name}", cells, "nats")
    for arm in ARMS:
        same = apart(neurons.get((arm, "same-tokens"), []), neurons.get((arm, "magnitude"), []))
        found |= paired_differences(f"overlap/{arm}/same-tokens-minus-magnitude", same, "points")
    for table, of in (("overlap", neurons), ("gradients", directions)):
        for name in {name for _, name in of}:
            between = apart(of.get(("S1-2of4", name), []), of.get(("D1", name), []))
            found |= paired_differences(f"{table}/S1-2of4-minus-D1/{name}", between, "points")
    for (arm, measure), cells in directions.items():
        found |= of_arm(f"gradients/{arm}/{measure}", cells, FORMS[measure])
        for module in MODULES:
            here = [cell for cell in cells if cell.cell[1] == module]
            found |= mean_numbers(f"gradients/{arm}/cosine/{module}", shares(here), "points") if measure == "cosine" else {}
    sizes: dict[str, list[float]] = {}
    for row in rows(tables["gradients"]):
        for name in ("parameters", "effective_dimension") if row.measure == "cosine" else ():
            sizes.setdefault(f"gradients/{row.arm}/{row.module}/{name}", []).append(number(getattr(row, name)))
    return found | {key: Number(fmean(values), "count") for key, values in sizes.items()}


# Scale


def scale(tables: Mapping[str, pd.DataFrame], hypothesis: Mapping) -> Numbers:
    """Slopes and means on the ladder, both of normalised quantities and of the raw cosine; what `D0` alone says."""
    ladder, found = hypothesis["ladder"], {}
    means = deciding(tables["overlap"], tables["gradients"], hypothesis)
    trends = {name: single(slopes(rungs, ladder)) for name, rungs in means.items()}
    corrected = dict(zip(trends, holm([trend.p for trend in trends.values()]), strict=True))
    for name, trend in trends.items():
        margin = hypothesis["activation" if name == QUANTITIES[0] else "gradient"]["margin"]
        prefix = f"scale/{name}/slope"
        found |= _estimate(prefix, trend, "points", True)
        p = {"p": trend.p, "p_holm": corrected[name], "tost_p": trend.p_equivalence(margin)}
        found |= {f"{prefix}/{key}": Number(value, "p_value") for key, value in p.items()}
        for arm, width in WIDTHS.items():
            found |= _estimate(f"scale/{name}/{width}", single([rung[arm] for rung in means[name].values()]), "points", False)
    for name, rungs in raw_cosines(tables["gradients"], ladder).items():
        varies = name == "absolute_cosine"
        for arm, width in WIDTHS.items():
            here = single([rung[arm] for rung in rungs.values()])
            found |= _estimate(f"scale/{name}/{width}", here, "thousandths", False, varies)
        powers = {seed: {arm: math.log2(value) for arm, value in rung.items()} for seed, rung in rungs.items()}
        found |= _estimate(f"scale/{name}/slope", single(slopes(powers, ladder)), "nats", True, varies)
    return found | against_labels(tables, hypothesis)


def raw_cosines(table: pd.DataFrame, ladder: Mapping[str, int]) -> dict[str, dict[str, dict[str, float]]]:
    """Replicate -> arm -> mean of |cosine|, and of 1 / sqrt(parameters), over the cells on every rung."""
    cells: dict[str, dict[tuple[str, str], dict[tuple, float]]] = {"absolute_cosine": {}, "trivial_cosine": {}}
    for row in rows(table):
        if row.measure == "cosine" and row.arm in ladder:
            cell = (row.layer, row.module, row.domain_a, row.domain_b)
            values = {"absolute_cosine": abs(float(row.value)), "trivial_cosine": 1 / math.sqrt(float(row.parameters))}
            for name, value in values.items():
                cells[name].setdefault((row.seed, row.arm), {})[cell] = value
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, of in cells.items():
        for seed in sorted({seed for seed, _ in of}):
            common = set.intersection(*(set(of.get((seed, arm), {})) for arm in ladder))
            if common:
                found.setdefault(name, {})[seed] = {arm: fmean(of[seed, arm][cell] for cell in common) for arm in ladder}
    return found


def against_labels(tables: Mapping[str, pd.DataFrame], hypothesis: Mapping) -> Numbers:
    """On the base: the share of cells with p_label at most alpha, and the quantity less that of exchanged labels."""
    plan, found = hypothesis["activation"], {}
    base = hypothesis.get("base", "D0")
    chosen = {
        QUANTITIES[0]: (overlaps(tables["overlap"], plan["top_fraction"])[base, plan["selection"]], between_levels),
        QUANTITIES[1]: (gradients(tables["gradients"])[base, "cosine"], over_ceiling),
    }
    for name, (cells, share) in chosen.items():
        cells = [cell for cell in cells if math.isfinite(cell.share)]
        below = by_replicate((cell.seed, float(cell.p_label <= 0.05)) for cell in cells)
        less = by_replicate((cell.seed, cell.share - share({**cell.levels, "value": cell.levels["null_label"]})) for cell in cells)
        prefix = f"scale/{name}/below_label_null"
        found |= {f"{prefix}/estimate": Number(fmean(below), "points"), f"{prefix}/n": Number(len(below), "count")}
        found |= _estimate(f"scale/{name}/less_label_null", single(less), "points", True)
    return found


def _estimate(prefix: str, found: Difference, form: str, signed: bool, whole: bool = True) -> Numbers:
    """Estimate, with interval and n where `whole`."""
    numbers = {"estimate": found.estimate} | ({"ci_low": found.low, "ci_high": found.high} if whole else {})
    keys = {f"{prefix}/{name}": Number(value, form, signed) for name, value in numbers.items() if math.isfinite(value)}
    return keys | ({f"{prefix}/n": Number(found.n, "count")} if whole else {})


# Tables


def share_cell(values: list[float]) -> Cell | str:
    found = interval(values)
    if not found:
        return DASH
    names = [name for name in ("mean", "ci_low", "ci_high") if name in found]
    return Cell("{} [{}, {}]" if len(names) == 3 else "{}", tuple(Number(found[name], "points") for name in names))


def level_row(arm: str, name: str, layer: int, cells: list[Measured], form: str) -> Row:
    means = [finite(cell.levels[level] for cell in cells) for level in LEVELS]
    tested = finite(cell.p_label for cell in cells)
    differing = sum(p <= 0.05 for p in tested)
    levels = [number_cell(fmean(values), form) if values else DASH for values in means]
    return [arm_label(arm), name, str(layer), *levels, share_cell(shares(cells)), f"{differing} of {len(tested)}"]


def overlap_table(table: pd.DataFrame, top_fraction: float) -> list[Row]:
    found, neurons = [], overlaps(table, top_fraction)
    for arm in ARMS:
        for name in SELECTIONS if arm == "D0" else ["magnitude"]:
            for layer in sorted({cell.cell[0] for cell in neurons[arm, name]}):
                here = [cell for cell in neurons[arm, name] if cell.cell[0] == layer]
                found.append(level_row(arm, SELECTION_LABELS[name], layer, here, "nats"))
    return found


def gradients_table(table: pd.DataFrame) -> list[Row]:
    found, directions = [], gradients(table)
    for measure, form in FORMS.items():
        for arm in ARMS if measure == "cosine" else ["D0"]:
            cells = directions.get((arm, measure), [])
            for module, layer in sorted({(cell.cell[1], cell.cell[0]) for cell in cells}):
                here = [cell for cell in cells if cell.cell[:2] == (layer, module)]
                found.append(level_row(arm, MODULES[module], layer, here, form))
    return found
