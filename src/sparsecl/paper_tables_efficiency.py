r"""The LaTeX tables of efficiency: what streams cost, what kernels can save, what inference gains (H2; paper, section Efficiency).

Each function returns None where the study did not measure it. Means over replicates for what is counted, medians for what
is measured.
"""

import math
from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.arms import parse_arm, topology_label
from sparsecl.config import Study
from sparsecl.latex_tables import tabular
from sparsecl.number_formats import count, nats, points
from sparsecl.paper_arms import EFFICIENCY_ARMS
from sparsecl.paper_samples import Sample, main_metrics, stream_sample
from sparsecl.paper_values_efficiency import (
    COUNTED,
    PRODUCTS,
    attainable_shares,
    inference_gains,
    load_sizes,
    recovered_arms,
    stream_effort,
)

GAINED = ("learning_speed", "joint_efficiency_executed", "joint_efficiency_theoretical")
STACK_LABELS = {"csr": "compressed rows", "bsr": "compressed blocks", "semi-structured": "2:4 format"}


def efficiency_table(study: Study, tables: Mapping[str, pd.DataFrame]) -> str | None:
    """FLOPs of the stream counted three ways, throughput, memory, learning speed and joint efficiency by arm."""
    effort = stream_effort(study, tables)
    ran = [arm for arm in EFFICIENCY_ARMS if arm in set(effort["arm"])]
    if not ran:
        return None
    main = main_metrics(tables.get("metrics", pd.DataFrame()), study.continual.stage_steps)
    samples = {name: stream_sample(main, name) for name in GAINED} if len(main) else {}
    power = _power_of_thousand(effort["flops_executed"].astype(float))
    rows = [_effort_row(arm, effort[effort["arm"] == arm], 10**power, samples) for arm in ran]
    groups = ["", rf"\multicolumn{{3}}{{c}}{{FLOPs ($10^{{{power}}}$)}}", "tokens", "memory", "learning"]
    above = " & ".join([*groups, r"\multicolumn{2}{c}{gain per $10^{12}$ FLOPs}"])
    below = ["arm", "executed", "theory", "attainable", "per second", "(MB)", "speed", "executed", "theory"]
    heading = f"{above} \\\\ \\cmidrule(lr){{2-4}}\\cmidrule(l){{8-9}}\n{' & '.join(below)} \\\\"
    return tabular("@{}lcccccccc@{}", heading, rows)


def _effort_row(arm: str, effort: pd.DataFrame, unit: int, samples: Mapping[str, Sample]) -> list[str | None]:
    """`effort` of one arm; FLOPs in `unit`, gains in points."""
    flops = [nats(effort[name].astype(float).mean() / unit) for name in COUNTED]
    measured = [count(effort["tokens_per_second"].median()), count(effort["peak_memory"].median() / 1e6)]
    gained = [points(samples[name].summary(arm)["mean"]) if samples else None for name in GAINED]
    return [parse_arm(arm).label, *flops, *measured, *gained]


def _power_of_thousand(values: Iterable[float]) -> int:
    return 3 * math.floor(math.log10(max(values)) / 3)


def fractions_table(study: Study, tables: Mapping[str, pd.DataFrame]) -> str | None:
    """Which share of each matrix product a known kernel can leave out, by topology, and what that is of a stream's FLOPs."""
    effort = stream_effort(study, tables)
    rows = []
    for arm in recovered_arms(study).values():
        shares = attainable_shares(study, arm)
        here = effort[effort["arm"] == arm.name][list(COUNTED)].astype(float).mean()
        saved = [1 - here[name] / here["flops_executed"] for name in ("flops_theoretical", "flops_attainable")]
        usual = arm.name == f"S1-{arm.topology}"
        label = topology_label(arm.topology) + ("" if usual else f" ({arm.density:g})")
        rows.append([label, *(points(shares[name]) for name in ("kept", *PRODUCTS)), *map(points, saved)])
    above = r" & & \multicolumn{3}{c}{saved of the linear layers (\%)} & \multicolumn{2}{c}{saved of a stream (\%)}"
    below = ["topology", r"kept (\%)", "forward", "input gradient", "weight gradient", "in theory", "attainable"]
    heading = f"{above} \\\\ \\cmidrule(lr){{3-5}}\\cmidrule(l){{6-7}}\n{' & '.join(below)} \\\\"
    return tabular("@{}lcccccc@{}", heading, rows) if rows else None


def kernels_table(study: Study, tables: Mapping[str, pd.DataFrame]) -> str | None:
    """The theoretical gain of a pass beside the measured one (median, range over replicates), by topology and format."""
    gains = inference_gains(tables.get("inference"))
    if gains.empty:
        return None
    sizes, made = load_sizes(tables["inference"]), {arm.name: arm for arm in recovered_arms(study).values()}
    measured = dict.fromkeys((arm, stack) for arm, stack, _ in gains.index)
    rows = []
    for arm, stack in sorted((pair for pair in measured if pair[0] in made), key=lambda pair: list(made).index(pair[0])):
        cells = [cell for load in sizes for cell in _gain_cells(gains, arm, stack, load)]
        rows.append([topology_label(made[arm].topology), STACK_LABELS.get(stack, stack), *cells])
    groups = ["", "", *(rf"\multicolumn{{2}}{{c}}{{{load} ({_size(*size)})}}" for load, size in sizes.items())]
    rules = "".join(rf"\cmidrule(lr){{{column}-{column + 1}}}" for column in range(3, 3 + 2 * len(sizes), 2))
    below = ["topology", "format", *["in theory", "measured"] * len(sizes)]
    heading = f"{' & '.join(groups)} \\\\ {rules}\n{' & '.join(below)} \\\\"
    return tabular("@{}ll" + "cc" * len(sizes) + "@{}", heading, rows) if rows else None


def _size(rows: int, tokens: int) -> str:
    rows_of = "" if rows == 1 else f"{rows} rows of "
    return f"{rows_of}{tokens} token{'s' if tokens > 1 else ''}"


def _gain_cells(gains: pd.DataFrame, arm: str, stack: str, load: str) -> list[str | None]:
    if (arm, stack, load) not in gains.index:
        return [None, None]
    row = gains.loc[(arm, stack, load)]
    if not row["kernel"]:
        return [nats(row["theoretical"]), "no kernel"]
    spread = f" ({nats(row['low'])}--{nats(row['high'])})" if row["n"] > 1 else ""
    return [nats(row["theoretical"]), nats(row["measured"]) + spread]
