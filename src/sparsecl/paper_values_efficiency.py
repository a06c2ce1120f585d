r"""The paper's numbers about efficiency: FLOPs, throughput, memory, what kernels attain (H2; paper, section Efficiency).

FLOPs are counted three ways: *executed* (masks are applied to dense arithmetic), *theoretical* (masked weights cost nothing)
and *attainable* (masked weights are left out where a kernel is known that can, `flops.attainable_weights`). Seconds, memory
and the gains at inference are measured. Nothing here imports torch.
"""

from collections.abc import Mapping

import pandas as pd

from sparsecl.arms import Arm
from sparsecl.comparisons import result_rows
from sparsecl.config import Study
from sparsecl.crossover import JOB
from sparsecl.efficiency import TERA
from sparsecl.flops import Products, attainable_weights, kept_weights, linear_weights, same
from sparsecl.number_formats import count, latex_text, nats, points, rate
from sparsecl.paper_arms import ARMS, EFFICIENCY_CONTRASTS
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, contrast_name, difference, formatted, stream_sample
from sparsecl.protocol import METHOD
from sparsecl.topologies import parse_topology

COUNTED = ("flops_executed", "flops_theoretical", "flops_attainable")
THROUGHPUT = ("tokens_per_second", "tokens_per_second_low", "tokens_per_second_high")
EFFORT = (*COUNTED, "saved_theoretical", "saved_attainable", "tokens", "peak_memory", *THROUGHPUT)
PER_FLOP = {f"retention_per_flop_{kind}": f"flops_{kind}" for kind in ("executed", "theoretical")}
PRODUCTS = ("forward", "input_gradient", "weight_gradient")
CONVERSIONS = (
    "unstructured", "unstructured-d0.75", "2of4", "4of8", "5of8", "6of8", "block16", "block32", "block64",
)  # fmt: skip
STACKS = ("csr", "bsr", "semi-structured")
LOADS = ("latency", "throughput")  # the smallest pass that was measured, and the largest
GAIN = ("theoretical", "measured", "low", "high", "kernel", "n")


def efficiency_names() -> list[str]:
    """The registered keys of this module, without their part."""
    contrasts = [contrast_name(*pair) for pair in EFFICIENCY_CONTRASTS]
    return [
        *(f"efficiency/{arm}/{name}" for arm in ARMS for name in EFFORT),
        *(f"efficiency/{measure}/{pair}/{name}" for measure in PER_FLOP for pair in contrasts for name in DIFFERENCE_STATISTICS),
        *(f"attainable/{conversion}/{name}" for conversion in CONVERSIONS for name in ("kept", *PRODUCTS)),
        *(f"inference/S1-{c}/{stack}/{load}/{name}" for c in CONVERSIONS for stack in STACKS for load in LOADS for name in GAIN),
        *(f"inference/{load}/{name}" for load in LOADS for name in ("rows", "tokens")),
        "inference/device",
    ]


def efficiency_values(study: Study, tables: Mapping[str, pd.DataFrame], main: pd.DataFrame) -> dict[str, str | None]:
    """All values of this module; `main` are the metrics of the main protocol and may be empty."""
    effort = stream_effort(study, tables)
    values = _attainable_values(study) | _inference_values(tables.get("inference"))
    for arm in ARMS:
        values |= {f"efficiency/{arm}/{name}": value for name, value in _effort_values(effort[effort["arm"] == arm]).items()}
    if len(effort) and len(main):
        for measure in PER_FLOP:
            for pair in EFFICIENCY_CONTRASTS:
                found = difference(retention_per_flop(main, effort, *pair, measure))
                values |= formatted(found, points, f"efficiency/{measure}/{contrast_name(*pair)}", signed=True)
    return values


# Training


def stream_effort(study: Study, tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """What the main stream of every arm and replicate took; may be empty.

    Columns: arm, seed, tokens, the FLOPs of `COUNTED`, tokens_per_second and peak_memory (bytes; both NaN where not measured).
    """
    columns = ["arm", "seed", "tokens", *COUNTED, "tokens_per_second", "peak_memory"]
    cost, timings = tables.get("cost"), tables.get("timings")
    if cost is None or cost.empty:
        return pd.DataFrame(columns=columns)
    rows = _streams(cost).rename(columns={"flops_dense": "flops_executed", "flops_sparse": "flops_theoretical"})
    arms = {arm.name: arm for arm in study.all_arms()}
    spared = rows["arm"].map({name: _spared_weights(study, arms[name]) if name in arms else 0 for name in set(rows["arm"])})
    rows = rows.assign(flops_attainable=rows["flops_executed"] - 2 * rows["tokens"] * spared)
    measured = ["arm", "seed", "wall_s", "peak_memory_bytes"]
    timed = pd.DataFrame(columns=measured) if timings is None or timings.empty else _streams(timings)[measured]
    rows = rows.merge(timed, on=["arm", "seed"], how="left", validate="one_to_one")
    seconds, peak = (pd.to_numeric(rows[name]) for name in ("wall_s", "peak_memory_bytes"))
    return rows.assign(tokens_per_second=rows["tokens"] / seconds, peak_memory=peak)[columns]


def _streams(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main streams; a table that also holds the validation replicate reads its seeds as text."""
    rows = result_rows(table[(table["job"] == JOB) & (table["method"] == METHOD)])
    return rows.assign(seed=rows["seed"].astype(str))


def _spared_weights(study: Study, arm: Arm) -> int:
    """Weights that known kernels leave out of the three products, all three together."""
    if not arm.topology:
        return 0
    everything, part = linear_weights(study.model), attainable_weights(study.model, parse_topology(arm.topology), arm.density)
    if arm.masks_updates:  # its weights are dense: only updates are masked
        part = Products(everything, everything, part.weight_gradient)
    return same(everything).total - part.total


def _effort_values(effort: pd.DataFrame) -> dict[str, str | None]:
    """Means of what is counted, medians over replicates of what is measured, with the range of the throughput."""
    if effort.empty:
        return {}
    mean, speed = effort[["tokens", *COUNTED]].astype(float).mean(), effort["tokens_per_second"].dropna()
    values = {name: rate(float(f"{mean[name]:.2e}")) for name in COUNTED} | {"tokens": count(mean["tokens"])}
    for kind in ("theoretical", "attainable"):
        values[f"saved_{kind}"] = points(1 - mean[f"flops_{kind}"] / mean["flops_executed"])
    values["peak_memory"] = count(effort["peak_memory"].median() / 1e6)
    found = (speed.median(), speed.min(), speed.max())
    return values | {name: count(value) for name, value in zip(THROUGHPUT, found, strict=True)}


def retention_per_flop(main: pd.DataFrame, effort: pd.DataFrame, treatment: str, reference: str, measure: str) -> pd.Series:
    """Difference of retention per 10^12 FLOPs that the treatment's stream spent, by replicate; empty where an arm was not run."""
    wide = stream_sample(main, "retention").wide
    if not {treatment, reference} <= set(wide):
        return pd.Series(dtype=float)
    spent = effort[effort["arm"] == treatment].set_index("seed")[PER_FLOP[measure]].astype(float)
    gained = (wide[treatment] - wide[reference]).rename(index=str)
    return (gained * TERA / spent.reindex(gained.index)).dropna()


# What known kernels can leave out


def attainable_shares(study: Study, arm: Arm) -> dict[str, float]:
    """Share of a sparse arm's weights that is kept, and of each product's FLOPs in the linear layers that a known kernel saves."""
    everything, topology = linear_weights(study.model), parse_topology(arm.topology)
    part = attainable_weights(study.model, topology, arm.density)
    saved = {name: 1 - getattr(part, name) / everything for name in PRODUCTS}
    return {"kept": kept_weights(study.model, topology, arm.density) / everything} | saved


def recovered_arms(study: Study) -> dict[str, Arm]:
    """The study's recovered sparse arms by the main algorithm and budget, by conversion, in the paper's order."""
    made = {arm.name: arm for arm in study.all_arms()}
    return {conversion: made[f"S1-{conversion}"] for conversion in CONVERSIONS if f"S1-{conversion}" in made}


def _attainable_values(study: Study) -> dict[str, str | None]:
    found = {conversion: attainable_shares(study, arm) for conversion, arm in recovered_arms(study).items()}
    return {f"attainable/{conversion}/{name}": points(share) for conversion, shares in found.items() for name, share in shares.items()}


# Inference


def inference_gains(inference: pd.DataFrame | None) -> pd.DataFrame:
    """Gains over replicates by arm, stack and load: columns of `GAIN`, indexed by these three; `kernel` says whether there is one."""
    if inference is None or inference.empty:
        return pd.DataFrame(columns=GAIN)
    rows = result_rows(inference)
    loads = load_sizes(rows)
    names = {size: name for name, size in loads.items()}
    sizes = zip(rows["rows"], rows["tokens"], strict=True)
    rows = rows.assign(load=[names.get(size) for size in sizes], gain_measured=pd.to_numeric(rows["gain_measured"])).dropna(subset=["load"])
    grouped = rows.groupby(["arm", "stack", "load"])
    measured = grouped["gain_measured"].agg(["median", "min", "max", "count"]).set_axis(["measured", "low", "high", "n"], axis="columns")
    return measured.assign(theoretical=grouped["gain_theoretical"].mean(), kernel=measured["n"] > 0)[list(GAIN)]


def load_sizes(inference: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """(rows, tokens) of the smallest and the largest pass that was measured."""
    sizes = inference[["rows", "tokens"]].drop_duplicates()
    ordered = sorted(sizes.itertuples(index=False, name=None), key=lambda size: size[0] * size[1])
    return dict(zip(LOADS, (ordered[0], ordered[-1]), strict=True)) if len(ordered) > 1 else {LOADS[0]: ordered[0]}


def _inference_values(inference: pd.DataFrame | None) -> dict[str, str | None]:
    gains = inference_gains(inference)
    if gains.empty:
        return {}
    values = {"inference/device": latex_text(", ".join(sorted(set(result_rows(inference)["device"]))))}
    for load, size in load_sizes(result_rows(inference)).items():
        values |= {f"inference/{load}/{name}": count(value) for name, value in zip(("rows", "tokens"), size, strict=True)}
    known = {f"S1-{conversion}" for conversion in CONVERSIONS}
    for (arm, stack, load), row in gains.iterrows():
        if arm in known and stack in STACKS:
            prefix = f"inference/{arm}/{stack}/{load}"
            values |= {f"{prefix}/{name}": nats(row[name]) for name in ("theoretical", "measured", "low", "high")}
            values |= {f"{prefix}/kernel": "yes" if row["kernel"] else "no", f"{prefix}/n": count(row["n"])}
    return values
