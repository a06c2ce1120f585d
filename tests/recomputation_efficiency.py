"""Costs, speed, masks and probes a second time, from cost.csv, timings.csv, inference.csv, overlap.csv and metrics.csv alone.

For `test_recomputation`. Nothing here imports `sparsecl`. What known kernels can leave out follows from the topology in an arm's name
and from the number of weights that cost.csv says are masked: of blocks all three matrix products of training, of 2:4 the forward
product, of other patterns and of unstructured masks none, and none where dense weights have masked updates of these.
"""

import math
import re
from collections.abc import Iterable, Mapping
from statistics import median

import pandas as pd
from recomputation import rows
from recomputation_methods import chosen_rates
from recomputation_printed import (
    DASH,
    Cell,
    Number,
    Numbers,
    Row,
    arm_label,
    halves,
    interval,
    number_cell,
    paired_differences,
    results,
    topology_label,
)
from recomputation_statistics import Values

TERA = 1e12
STREAM = ("03_continual", "full")
COUNTED = ("executed", "theoretical", "attainable")
PRODUCTS = ("forward", "input_gradient", "weight_gradient")
HALF_MASKED = "S1-2of4"  # masks exactly half of the weights that any conversion may mask
ARMS = (
    "D1", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "Dg-2of4", "S1-unstructured", "S1-4of8", "S1-2of4", "S1-block16", "S1-block32", "S1-block64",
    "S1-6of8", "Sf-2of4",
)  # fmt: skip
CONVERSIONS = ("unstructured", "unstructured-d0.75", "2of4", "4of8", "5of8", "6of8", "block16", "block32", "block64")
FORMATS = {"csr": "compressed rows", "bsr": "compressed blocks", "semi-structured": "2:4 format"}

Effort = dict[str, dict[str, dict[str, float]]]  # arm -> replicate -> what its main stream took


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed)


def efforts(cost: pd.DataFrame, timings: pd.DataFrame) -> Effort:
    found: Effort = {}
    for row in rows(results(cost)):
        if (row.job, row.method) == STREAM:
            assert row.seed not in found.setdefault(row.arm, {}), f"two streams of {row.arm} in replicate {row.seed}"
            spared = 2 * row.tokens * row.masked * sum(left_out(row.arm).values())
            counted = {"executed": row.flops_dense, "theoretical": row.flops_sparse, "attainable": row.flops_dense - spared}
            found[row.arm][row.seed] = counted | {"tokens": row.tokens}
    for row in rows(timings):
        if (row.job, row.method) == STREAM and row.seed in found.get(row.arm, {}):
            of = found[row.arm][row.seed]
            of |= {"per_second": of["tokens"] / float(row.wall_s), "memory": float(row.peak_memory_bytes) / 1e6}
    return found


def left_out(arm: str) -> dict[str, bool]:
    """Of each product, whether a known kernel leaves the masked weights out."""
    blocks, pattern = "-block" in arm, re.search(r"-2of4(-|$)", arm) is not None
    if arm.startswith("D"):
        return {"forward": False, "input_gradient": False, "weight_gradient": arm.startswith("Dg") and blocks}
    return {"forward": blocks or pattern, "input_gradient": blocks, "weight_gradient": blocks}


def efficiency(effort: Effort, values: Values, keys: Iterable[str]) -> Numbers:
    found: Numbers = {}
    for arm, seeds in effort.items():
        means = {name: mean(of[name] for of in seeds.values()) for name in (*COUNTED, "tokens")}
        numbers = {f"flops_{name}": Number(float(f"{means[name]:.2e}"), "rate") for name in COUNTED}
        numbers |= {f"saved_{name}": Number(1 - means[name] / means["executed"], "points") for name in COUNTED[1:]}
        speeds = [of["per_second"] for of in seeds.values() if "per_second" in of]
        if speeds:
            numbers["peak_memory"] = Number(median(of["memory"] for of in seeds.values() if "memory" in of), "count")
            measured = {"": median(speeds), "_low": min(speeds), "_high": max(speeds)}
            numbers |= {f"tokens_per_second{end}": Number(value, "count") for end, value in measured.items()}
        numbers["tokens"] = Number(means["tokens"], "count")
        found |= {f"efficiency/{arm}/{name}": number for name, number in numbers.items()}
    return found | retention_per_flop(effort, values, keys)


def retention_per_flop(effort: Effort, values: Values, keys: Iterable[str]) -> Numbers:
    """What the treatment retains beyond the reference, per 10^12 FLOPs of its own stream."""
    found: Numbers = {}
    for measure, who in sorted({tuple(key.split("/")[1:3]) for key in keys if key.startswith("efficiency/retention_per_flop_")}):
        treatment, reference = halves(who)
        ours, theirs = (values.get((arm, "retention", "all"), {}) for arm in (treatment, reference))
        spent = {seed: of[measure.rpartition("_")[2]] for seed, of in effort.get(treatment, {}).items()}
        gained = [(ours[seed] - theirs[seed]) * TERA / spent[seed] for seed in ours if seed in theirs and seed in spent]
        found |= paired_differences(f"efficiency/{measure}/{who}", gained, "points")
    return found


def shares(cost: pd.DataFrame) -> dict[str, dict[str, float]]:
    """By recovered arm, the share of weights that is kept and of each product that a known kernel saves."""
    masked = {row.arm: row.masked for row in rows(results(cost)) if row.masked > 0}
    found = {}
    for conversion in CONVERSIONS:
        if (arm := f"S1-{conversion}") in masked:
            share = masked[arm] / (2 * masked[HALF_MASKED])
            found[conversion] = {"kept": 1 - share} | {name: share * out for name, out in left_out(arm).items()}
    return found


def attainable(cost: pd.DataFrame) -> Numbers:
    return {
        f"attainable/{conversion}/{name}": Number(share, "points") for conversion, of in shares(cost).items() for name, share in of.items()
    }


# Inference


def gains(inference: pd.DataFrame) -> dict[tuple[str, str, str], list]:
    """(arm, format, load) -> rows; the smallest pass that was measured is the latency, the largest the throughput."""
    found: dict[tuple[str, str, str], list] = {}
    sizes = loads(inference)
    for row in rows(results(inference)):
        for load, size in sizes.items():
            if (int(row.rows), int(row.tokens)) == size:
                found.setdefault((row.arm, row.stack, load), []).append(row)
    return found


def loads(inference: pd.DataFrame) -> dict[str, tuple[int, int]]:
    sizes = {(int(row.rows), int(row.tokens)) for row in rows(results(inference)[["rows", "tokens"]].drop_duplicates())}
    ordered = sorted(sizes, key=lambda size: size[0] * size[1])
    return {"latency": ordered[0]} | ({"throughput": ordered[-1]} if len(ordered) > 1 else {})


def measured_gains(passes: list) -> list[float]:
    return [float(row.gain_measured) for row in passes if row.gain_measured]


def inference_numbers(inference: pd.DataFrame) -> Numbers:
    found: Numbers = {"inference/device": ", ".join(sorted({row.device for row in rows(results(inference))})).replace("_", r"\_")}
    for load, size in loads(inference).items():
        found |= {f"inference/{load}/{name}": Number(value, "count") for name, value in zip(("rows", "tokens"), size, strict=True)}
    for (arm, stack, load), passes in gains(inference).items():
        measured = measured_gains(passes)
        numbers = {"theoretical": Number(mean(float(row.gain_theoretical) for row in passes), "nats"), "n": Number(len(measured), "count")}
        if measured:
            of = {"measured": median(measured), "low": min(measured), "high": max(measured)}
            numbers |= {name: Number(value, "nats") for name, value in of.items()}
        found |= {f"inference/{arm}/{stack}/{load}/{name}": number for name, number in numbers.items()}
        found[f"inference/{arm}/{stack}/{load}/kernel"] = "yes" if measured else "no"
    return found


# Probes


def overlaps(overlap: pd.DataFrame) -> Numbers:
    """Cells (layer and pair of domains) in which every replicate's overlap lies above chance, and below that of shuffled labels."""
    cells: dict[str, dict[tuple, list]] = {}
    for row in rows(overlap):
        if row.selection == "magnitude":
            cells.setdefault(row.arm, {}).setdefault((row.layer, row.domain_a, row.domain_b), []).append(row)
    found: Numbers = {}
    for arm, of in cells.items():
        above = sum(all(row.value > float(row.null) for row in cell) for cell in of.values())
        below = sum(all(row.value < float(row.null_label) for row in cell) for cell in of.values())
        counts = {"cells": len(of), "above_chance": above, "below_label_null": below}
        found |= {f"overlap/{arm}/{name}": Number(value, "count") for name, value in counts.items()}
    return found


# Costs of the study


def costs(tables: Mapping[str, pd.DataFrame]) -> Numbers:
    """Sizes, tokens and times that only a run knows, and the learning rates that the validation replicate chose."""
    cost, timings = list(rows(results(tables["cost"]))), list(rows(tables["timings"]))
    jobs = {"recovery": ("02_recover", "recovery"), "calibration": ("02_recover", "calibration"), "stream": STREAM}
    found: Numbers = {
        "design/parameters": Number(max(row.trainable for row in cost if row.arm == "D1"), "count"),
        "design/masked": Number(max(row.masked for row in cost if row.arm == HALF_MASKED), "count"),
        "design/minutes": Number(math.fsum(float(row.wall_s) for row in timings) / 60, "tenths"),
        "design/device": ", ".join(sorted({row.device for row in timings})).replace("_", r"\_"),
    }
    for name, job in jobs.items():
        if spent := [row.tokens for row in cost if row.arm == "D1" and (row.job, row.method) == job]:
            found[f"design/{name}_tokens"] = Number(mean(spent), "count")
    chosen = chosen_rates(tables["learning_rate"]).get("full", {})
    return found | {f"learning_rate/{arm}": Number(rate, "rate") for arm, rate in chosen.items()}


# Tables


def efficiency_table(effort: Effort, values: Values) -> list[Row]:
    largest = max(of["executed"] for seeds in effort.values() for of in seeds.values())
    unit, found = 1000.0 ** math.floor(math.log10(largest) / 3), []
    for arm in (arm for arm in ARMS if arm in effort):
        seeds = effort[arm].values()
        flops = [number_cell(mean(of[name] for of in seeds) / unit, "nats") for name in COUNTED]
        measured = [number_cell(median(of.get(name, math.nan) for of in seeds), "count") for name in ("per_second", "memory")]
        gained = [values.get((arm, name, "all"), {}) for name in ("learning_speed", *(f"joint_efficiency_{kind}" for kind in COUNTED[:2]))]
        gained = [number_cell(interval(list(of.values())).get("mean", math.nan), "points") for of in gained]
        found.append([arm_label(arm), *flops, *measured, *gained])
    return found


def fractions_table(effort: Effort, cost: pd.DataFrame) -> list[Row]:
    found: list[Row] = []
    for conversion, share in shares(cost).items():
        seeds = list(effort.get(f"S1-{conversion}", {}).values())
        saved = [1 - mean(of[name] for of in seeds) / mean(of["executed"] for of in seeds) if seeds else math.nan for name in COUNTED[1:]]
        name, _, density = conversion.partition("-d")
        cells = [number_cell(value, "points") for value in (*(share[part] for part in ("kept", *PRODUCTS)), *saved)]
        found.append([topology_label(name) + (f" ({density})" if density else ""), *cells])
    return found


def kernels_table(inference: pd.DataFrame) -> list[Row]:
    found, measured = [], gains(inference)
    for conversion in CONVERSIONS:
        for stack in sorted({stack for arm, stack, _ in measured if arm == f"S1-{conversion}"}):
            cells = [cell for load in loads(inference) for cell in gain_cells(measured.get((f"S1-{conversion}", stack, load), []))]
            found.append([topology_label(conversion), FORMATS[stack], *cells])
    return found


def gain_cells(passes: list) -> Row:
    if not passes:
        return [DASH, DASH]
    theoretical, measured = number_cell(mean(float(row.gain_theoretical) for row in passes), "nats"), measured_gains(passes)
    if not measured:
        return [theoretical, "no kernel"]
    numbers = tuple(Number(value, "nats") for value in (median(measured), min(measured), max(measured)))
    return [theoretical, Cell("{} ({}--{})", numbers) if len(measured) > 1 else Cell("{}", numbers[:1])]


def costs_table(cost: pd.DataFrame, timings: pd.DataFrame) -> list[Row]:
    """Training effort per replicate by job and arm."""
    jobs = {("01_sparsify", "conversion"): "conversion", ("02_recover", "calibration"): "calibration rows"}
    jobs |= {("02_recover", "recovery"): "extra training", STREAM: "stream"}
    found: list[Row] = []
    for job, name in jobs.items():
        for arm in ("D1", HALF_MASKED, "S0-2of4"):
            spent = [row for row in rows(results(cost)) if (row.arm, (row.job, row.method)) == (arm, job)]
            if spent:
                seconds = [float(row.wall_s) for row in rows(results(timings)) if (row.arm, (row.job, row.method)) == (arm, job)]
                flops = [mean(getattr(row, f"flops_{kind}") for row in spent) for kind in ("dense", "sparse")]
                cells = [Cell("{}", (Number(float(f"{value:.2e}"), "rate"),)) for value in flops]
                cells = [number_cell(mean(row.tokens for row in spent), "count"), *cells]
                found.append([name, arm_label(arm), *cells, number_cell(mean(seconds), "tenths") if seconds else DASH])
    return found
