"""Joint efficiency: what a stream gained in all domains per training FLOP (H2; paper, section Efficiency).

The gain is sum_i (R[T, i] - R[0, i]) over all domains. FLOPs are those of the stream's training: `executed` counts all
weights, because masks are applied to dense arithmetic; `theoretical` lets masked weights cost nothing.
"""

import pandas as pd

from sparsecl.metrics import METRIC_COLUMNS
from sparsecl.protocol import main_protocol

TERA = 1e12
COUNTS = {"joint_efficiency_executed": "flops_dense", "joint_efficiency_theoretical": "flops_sparse"}


def joint_efficiency_rows(metrics: pd.DataFrame, cost: pd.DataFrame) -> pd.DataFrame:
    """Rows of metrics.csv: gain per 10^12 FLOPs of every main stream whose cost is known, by kind, in score units."""
    gains = main_protocol(metrics[metrics["metric"] == "gain"])
    spent = cost[cost["job"] == "03_continual"].assign(seed=lambda rows: rows["seed"].astype(str))
    spent = spent.set_index(["arm", "method", "seed"])
    keys = pd.MultiIndex.from_frame(gains[["arm", "method", "seed"]].astype(str))
    rows = []
    for metric, column in COUNTS.items():
        flops = spent[column].reindex(keys).to_numpy(dtype=float)
        rows.append(gains.assign(metric=metric, value=gains["value"].to_numpy() * TERA / flops))
    return pd.concat(rows)[METRIC_COLUMNS].dropna(subset=["value"])
