"""Checkpoints before the stream and compared conversions a second time, from conversion.csv, cost.csv and timings.csv alone.

For `test_recomputation`. Nothing here imports `sparsecl`. Arms are selected by their names: S0 is right after the conversion, S1
after the recovery of the study's own budget. Compared are 2:4 by every algorithm, every topology at half of the weights, and the
densities of those families that have several; each over the replicates that made every arm of the comparison.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
from recomputation import rows
from recomputation_printed import (
    ByReplicate,
    Number,
    Numbers,
    Row,
    arm_label,
    contrast,
    difference_cells,
    differences,
    finite,
    halves,
    interval,
    mean_cell,
    mean_sd,
    results,
    summary,
    topology_label,
)

LOSS, SCORE, KEPT = "nll/general", "score/general", "density/attained"
CHECKPOINTS = {"general_score": (SCORE, "points"), "general_loss": (LOSS, "nats"), "density": (KEPT, "points")}
TOPOLOGY = r"(?:unstructured|\d+of\d+|block\d+)"
# Every algorithm by the suffix of its arms; the study's own has none.
ALGORITHMS = {
    "random": "random", "magnitude": "magnitude", "wanda": "Wanda", "": "SparseGPT", "wanda++": "Wanda++", "maskllm": "MaskLLM",
}  # fmt: skip
MAIN_CHECKPOINTS = {
    "D0": ("dense base", "the base"),
    "S0-2of4": ("converted, no recovery", "immediate loss"),
    "S1-2of4": ("converted and recovered", "the treatment"),
    "D1": ("dense, same extra tokens", "control, same shape"),
}

Measured = dict[tuple[str, str], dict[str, float]]  # (arm, metric) -> replicate -> value


def measured(conversion: pd.DataFrame) -> Measured:
    found: Measured = {}
    for row in rows(results(conversion)):
        values = found.setdefault((row.arm, row.metric), {})
        assert row.seed not in values, f"{row.arm}, {row.metric} twice in replicate {row.seed}"
        values[row.seed] = row.value
    return found


def checkpoints(conversion: pd.DataFrame, keys: Iterable[str]) -> Numbers:
    """Score, loss and kept weights of the checkpoints by arm and contrast; no test was made of them."""
    values, found = measured(conversion), {}
    for name, who in sorted({tuple(key.split("/")[:2]) for key in keys if key.split("/")[0] in CHECKPOINTS}):
        metric, form = CHECKPOINTS[name]
        ours, theirs = (values.get((arm, metric), {}) for arm in halves(who))
        found |= contrast(f"{name}/{who}", ours, theirs, form, {}) if halves(who)[1] else summary(f"{name}/{who}", ours.values(), form)
    return found


@dataclass(frozen=True)
class Comparison:
    """What is compared by label, each with the arms of S0 and S1, and the replicates that made all these arms."""

    arms: Mapping[str, tuple[str, str]]
    seeds: frozenset[str]
    values: Measured

    def of(self, arm: str, metric: str) -> dict[str, float]:
        return {seed: value for seed, value in self.values.get((arm, metric), {}).items() if seed in self.seeds and not math.isnan(value)}

    def mean(self, arm: str, metric: str) -> float:
        return interval(finite(self.of(arm, metric).values())).get("mean", math.nan)

    def above_dense(self, label: str) -> list[float]:
        """Differences in general loss between the recovered arm and D1."""
        return differences(self.of(self.arms[label][1], LOSS), self.of("D1", LOSS))


def comparison(conversion: pd.DataFrame, conversions: Mapping[str, str]) -> Comparison:
    """`conversions` maps labels to what follows the lineage in the names of arms."""
    values = measured(conversion)
    made = {arm: {seed for (name, _), of in values.items() if name == arm for seed in of} for arm, _ in values}
    arms = {label: (f"S0-{name}", f"S1-{name}") for label, name in conversions.items()}
    arms = {label: pair for label, pair in arms.items() if set(pair) & set(made)}
    present = [made[arm] for pair in arms.values() for arm in pair if arm in made]
    return Comparison(arms, frozenset(set.intersection(*present)) if present else frozenset(), values)


def conversions(conversion: pd.DataFrame) -> dict[str, float]:
    """Density by what follows S0 or S1 in the name of an arm."""
    return {row.arm[3:]: row.density for row in rows(conversion) if re.match("S[01]-", row.arm)}


def topologies(conversion: pd.DataFrame) -> Comparison:
    at_half = {name for name, density in conversions(conversion).items() if re.fullmatch(TOPOLOGY, name) and density == 0.5}
    return comparison(conversion, {topology_label(name): name for name in sorted(at_half, key=coarseness)})


def coarseness(topology: str) -> tuple[int, int]:
    """Unstructured, patterns of large groups first, blocks of growing size."""
    size = int((re.findall(r"\d+$", topology) or "0")[0])
    return (0, 0) if topology == "unstructured" else (2, size) if topology.startswith("block") else (1, -size)


def algorithms(conversion: pd.DataFrame) -> Comparison:
    present = conversions(conversion)
    names = {label: f"2of4-{suffix}" if suffix else "2of4" for suffix, label in ALGORITHMS.items()}
    return comparison(conversion, {label: name for label, name in names.items() if name in present})


def densities(conversion: pd.DataFrame) -> Comparison:
    families: dict[str, dict[str, str]] = {}
    for name, density in conversions(conversion).items():
        if found := re.fullmatch(rf"({TOPOLOGY})(?:-d0\.\d+)?", name):
            pattern = re.fullmatch(r"\d+(of\d+)", found[1])
            label = topology_label(found[1]) if pattern else f"{topology_label(found[1])} ({density:g})"
            families.setdefault(pattern[1] if pattern else found[1], {})[label] = name
    return comparison(conversion, {label: name for family in families.values() if len(family) > 1 for label, name in family.items()})


def comparisons(conversion: pd.DataFrame) -> Numbers:
    """Replicates and arms of every comparison, its range of general loss, and how many recovered arms differ from D1."""
    by_algorithm = algorithms(conversion)
    weighted = Comparison(
        {label: pair for label, pair in by_algorithm.arms.items() if label != "random"}, by_algorithm.seeds, by_algorithm.values
    )
    named = {"topologies": topologies(conversion), "algorithms": by_algorithm, "algorithms-without-random": weighted}
    found: Numbers = {}
    for name, compared in (named | {"densities": densities(conversion)}).items():
        if len(compared.arms) > 1 and compared.seeds:
            numbers = {"replicates": Number(len(compared.seeds), "count"), "arms": Number(len(compared.arms), "count")}
            numbers |= loss_range(compared, 0) | loss_range(compared, 1) | apart_from_dense(compared)
            found |= {f"comparison/{name}/{key}": value for key, value in numbers.items()}
    spreads = list(by_algorithm.of("D0", "reconstruction/input_spread").values())
    return found | ({"comparison/input_spread": Number(math.fsum(spreads) / len(spreads), "points")} if spreads else {})


def loss_range(compared: Comparison, lineage: int) -> Numbers:
    means = sorted((compared.mean(pair[lineage], LOSS), label) for label, pair in compared.arms.items())
    means = [(mean, label) for mean, label in means if not math.isnan(mean)]
    if len(means) < 2:
        return {}
    (low, lowest), (high, highest) = means[0], means[-1]
    found = {"lowest_name": lowest, "highest_name": highest, "lowest_loss": Number(low, "nats"), "highest_loss": Number(high, "nats")}
    return {f"S{lineage}/{name}": value for name, value in (found | {"span": Number(high - low, "nats")}).items()}


def apart_from_dense(compared: Comparison) -> Numbers:
    """How many recovered arms have an interval of the difference to D1 above zero, and below; nothing where one has none."""
    ends = [interval(compared.above_dense(label)) for label in compared.arms]
    if not all("ci_low" in found for found in ends):
        return {}
    counts = {"above": sum(found["ci_low"] > 0 for found in ends), "below": sum(found["ci_high"] < 0 for found in ends)}
    return {f"S1/{side}_dense": Number(number, "count") for side, number in counts.items()}


# Tables


def conversion_table(conversion: pd.DataFrame) -> list[Row]:
    values, found = measured(conversion), []
    for arm, (made, role) in MAIN_CHECKPOINTS.items():
        cells = [mean_sd(values[arm, metric].values(), form) for metric, form in ((SCORE, "points"), (LOSS, "nats"))]
        kept = mean_cell(values[arm, KEPT].values(), "points") if arm.startswith("S") else "100"
        found.append([arm_label(arm), made, role, kept, *cells])
    return found


def pair_of_cells(compared: Comparison, pair: tuple[str, str], metric: str, form: str) -> Row:
    return [mean_sd(compared.of(arm, metric).values(), form) for arm in pair]


def topologies_table(conversion: pd.DataFrame) -> list[Row]:
    compared, dense = topologies(conversion), ("D0", "D1")
    losses, scores = pair_of_cells(compared, dense, LOSS, "nats"), pair_of_cells(compared, dense, SCORE, "points")
    found: list[Row] = [["dense", "100", *losses, "--", "--", *scores]]
    for label, pair in compared.arms.items():
        kept = [value for arm in pair for value in compared.of(arm, KEPT).values()]
        apart = difference_cells(compared.above_dense(label), "nats")
        losses, scores = pair_of_cells(compared, pair, LOSS, "nats"), pair_of_cells(compared, pair, SCORE, "points")
        found.append([label, mean_cell(kept, "points"), *losses, *apart, *scores])
    return found


def algorithms_table(conversion: pd.DataFrame, cost: pd.DataFrame, timings: pd.DataFrame) -> list[Row]:
    compared, dense = algorithms(conversion), ("D0", "D1")
    losses, scores = pair_of_cells(compared, dense, LOSS, "nats"), pair_of_cells(compared, dense, SCORE, "points")
    found: list[Row] = [["none (dense)", *losses, *scores, *4 * ["--"]]]
    for label, pair in compared.arms.items():
        layers = [mean_cell(compared.of(pair[0], f"reconstruction/{name}").values(), "points") for name in ("error", "kept_energy")]
        tokens, seconds = spent(cost, pair[0], "tokens", compared.seeds), spent(timings, pair[0], "wall_s", compared.seeds)
        losses, scores = pair_of_cells(compared, pair, LOSS, "nats"), pair_of_cells(compared, pair, SCORE, "points")
        found.append([label, *losses, *scores, *layers, mean_cell(tokens.values(), "count"), mean_cell(seconds.values(), "tenths")])
    return found


def spent(table: pd.DataFrame, arm: str, column: str, seeds: Iterable[str]) -> ByReplicate:
    """What the conversion of an arm took, by replicate."""
    chosen = table[(table["arm"] == arm) & (table["method"] == "conversion") & table["seed"].isin(list(seeds))]
    return {row["seed"]: float(row[column]) for row in chosen.to_dict("records")}
