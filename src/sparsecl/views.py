"""Small frames that notebooks show: sample items and scores of one replicate (notebooks 01 to 03)."""

import pandas as pd

from sparsecl.items import GENERAL, Suite
from sparsecl.protocol import main_protocol


def sample_items(suite: Suite, per_kind: int = 2) -> pd.DataFrame:
    """The first test items of each domain and kind."""
    items = [item for domain in suite.domains for item in suite.test[domain]] + list(suite.general)
    frame = pd.DataFrame(
        [{"domain": item.domain, "kind": item.kind, "prompt": item.prompt[-90:], "answer": item.answer[:60]} for item in items]
    )
    return frame.groupby(["domain", "kind"], sort=False).head(per_kind).reset_index(drop=True)


def checkpoint_metrics(rows: list[dict]) -> pd.DataFrame:
    """Checkpoints down, metrics across, from rows of the conversion table without the recovery curve."""
    frame = pd.DataFrame(rows)
    frame = frame[~frame["metric"].str.startswith("recovery/")]
    return frame.pivot_table(index="arm", columns="metric", values="value", sort=False)


def conversion_costs_view(costs: dict[str, list[dict]]) -> pd.DataFrame:
    """Tokens, FLOPs and measured seconds of every conversion; no row where nothing was converted."""
    seconds = [row["wall_s"] for row in costs["timings"]]
    return pd.DataFrame(costs["cost"], columns=["arm", "tokens", "flops_dense"]).assign(wall_s=seconds).set_index("arm")


def main_streams(tables: dict[str, list[dict]], stage_steps: int) -> dict[str, pd.DataFrame]:
    """Accuracy and curves of the main protocol, of one replicate; `stage_steps` is the study's own stage length."""
    frames = {name: pd.DataFrame(tables[name]) for name in ("accuracy", "curves")}
    return {name: main_protocol(frame, stage_steps=stage_steps) for name, frame in frames.items()}


def stream_ends(accuracy: list[dict]) -> pd.DataFrame:
    """Mean score over the domains at the end of every stream of a replicate: arms down, methods, orders and stage lengths beside them."""
    frame = pd.DataFrame(accuracy)
    keys = ["arm", "method", "order", "stage_steps"]
    last = frame["stage"] == frame.groupby(keys)["stage"].transform("max")
    rows = frame[last & (frame["kind"] == "all") & (frame["domain"] != GENERAL)]
    return rows.groupby(keys)[["score", "nll"]].mean()


def stage_scores(accuracy: pd.DataFrame, arm: str, value: str = "score") -> pd.DataFrame:
    """R[t, i] of one arm: stages down, domains across, over both kinds of item."""
    rows = accuracy[(accuracy["arm"] == arm) & (accuracy["kind"] == "all")]
    return rows.pivot_table(index=["stage", "stage_domain"], columns="domain", values=value, sort=False)


def inference_view(rows: list[dict]) -> pd.DataFrame:
    """Theoretical and measured gain of every arm, format and load; the kernel column says why there is none."""
    shown = ["arm", "stack", "rows", "tokens", "gain_theoretical", "gain_measured", "kernel"]
    return pd.DataFrame(rows, columns=shown).set_index(shown[:4]).round({"gain_theoretical": 2, "gain_measured": 3})
