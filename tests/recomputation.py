"""The measures of a study a second time, from its tables alone: plain loops that share no code with the package.

For `test_recomputation`, which compares them with metrics.csv and with what `sparsecl` computes. Nothing here imports
`sparsecl`. Definitions are those of the paper's section Measures. R[t, i] is the score of domain i after stage t = 0..T.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pandas as pd

NUMBERS = {
    "density", "stage_steps", "stage", "step", "tokens", "score", "n", "nll", "value", "flops_dense", "flops_sparse", "trainable",
    "masked", "item", "correct", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect",
}  # fmt: skip
MAIN = ("full", "main")  # method and order of the main protocol


class Run(NamedTuple):
    """One stream of one replicate."""

    arm: str
    method: str
    order: str
    stage_steps: int
    seed: str


def read(path: Path) -> pd.DataFrame:
    """A table with numbers where numbers belong and text elsewhere; an absent text is empty, an absent number NaN."""
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str, keep_default_na=False)
    return tidied(frame)


def tidied(frame: pd.DataFrame) -> pd.DataFrame:
    """The same form for a table that was never written; replicates are text, because one is called `validation`."""
    columns = {}
    for name in frame:
        if name in NUMBERS:
            columns[name] = frame[name] if pd.api.types.is_numeric_dtype(frame[name]) else pd.to_numeric(frame[name].replace("", np.nan))
        else:
            columns[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    return pd.DataFrame(columns)


def rows(frame: pd.DataFrame) -> Iterator[SimpleNamespace]:
    """The rows of a table, one after the other."""
    names = list(frame)
    for values in zip(*(frame[name].tolist() for name in names), strict=True):
        yield SimpleNamespace(**dict(zip(names, values, strict=True)))


def run_of(row: SimpleNamespace) -> Run:
    return Run(row.arm, row.method, row.order, int(row.stage_steps), row.seed)


def main_lengths(runs: Sequence[Run], usual: int | None = None) -> dict[str, int]:
    """Of each arm that ran several stage lengths in a replicate the one that most ran; among equals `usual`, else ValueError."""
    replicates: dict[str, dict[int, set[str]]] = {}
    for run in runs:
        if (run.method, run.order) == MAIN:
            replicates.setdefault(run.arm, {}).setdefault(run.stage_steps, set()).add(run.seed)
    found = {}
    for arm, lengths in replicates.items():
        if len(set().union(*lengths.values())) == sum(map(len, lengths.values())):
            continue  # one length in every replicate, be it not the same one
        most = [length for length, seeds in lengths.items() if len(seeds) == max(map(len, lengths.values()))]
        if len(most) > 1 and usual not in most:
            raise ValueError(f"{arm}: equally many replicates ran the stage lengths {sorted(most)}")
        found[arm] = usual if usual in most else most[0]
    return found


def main_runs(runs: Sequence[Run], usual: int | None = None) -> set[Run]:
    lengths = main_lengths(runs, usual)
    return {run for run in runs if (run.method, run.order) == MAIN and lengths.get(run.arm, run.stage_steps) == run.stage_steps}


class Scores:
    """What one run scored: `score[kind][domain][stage]`, `nll` likewise, and inside a stage `curve[kind][stage, domain]` by step."""

    def __init__(self) -> None:
        self.stages: dict[int, str] = {}
        self.score: dict[str, dict[str, dict[int, float]]] = {}
        self.nll: dict[str, dict[str, dict[int, float]]] = {}
        self.curve: dict[str, dict[tuple[int, str], dict[int, float]]] = {}

    @property
    def order(self) -> list[str]:
        """The domain of every stage."""
        return [self.stages[stage] for stage in sorted(self.stages) if stage > 0]

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, domains in self.nll.items() if set(domains) - {"general"}}


def scores_by_run(accuracy: pd.DataFrame, curves: pd.DataFrame) -> dict[Run, Scores]:
    found: dict[Run, Scores] = {}
    for row in rows(accuracy):
        scores = found.setdefault(run_of(row), Scores())
        scores.stages[int(row.stage)] = row.stage_domain
        for table, value in ((scores.score, row.score), (scores.nll, row.nll)):
            stages = table.setdefault(row.kind, {}).setdefault(row.domain, {})
            if not math.isnan(value):
                assert int(row.stage) not in stages, f"{run_of(row)}: {row.domain}, {row.kind} twice after stage {row.stage}"
                stages[int(row.stage)] = value
    for row in rows(curves):
        curve = found[run_of(row)].curve.setdefault(row.kind, {})
        curve.setdefault((int(row.stage), row.domain), {})[int(row.step)] = row.score
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def metrics(
    accuracy: pd.DataFrame, curves: pd.DataFrame, chance: pd.DataFrame, cost: pd.DataFrame, main: set[Run]
) -> dict[tuple[Run, str, str, str], float]:
    """Values of metrics.csv by run, domain (empty: over domains), kind and name, of the runs in `accuracy`; `main`: the main protocol."""
    runs, guessing, values = scores_by_run(accuracy, curves), guessing_scores(chance), {}
    for run, scores in runs.items():
        for (domain, kind, name), value in metrics_of_run(scores, guessing).items():
            values[run, domain, kind, name] = value
        if run in main:
            values |= joint_efficiencies(run, values, cost)
    return values


def guessing_scores(chance: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Score of guessing by domain and kind, the mean over replicates."""
    lists: dict[tuple[str, str], list[float]] = {}
    for row in rows(chance):
        lists.setdefault((row.domain, row.kind), []).append(row.value)
    return {key: mean(values) for key, values in lists.items()}


def metrics_of_run(scores: Scores, guessing: Mapping[tuple[str, str], float]) -> dict[tuple[str, str, str], float]:
    found: dict[tuple[str, str, str], float] = {}
    if scores.order == ["joint"]:
        return joint_metrics(scores)
    for kind in scores.kinds:
        measured = {domain: stages for domain, stages in scores.score[kind].items() if stages and domain in scores.order}
        found |= {(domain, kind, name): value for (domain, name), value in score_metrics(measured, scores.order).items()}
        losses = {domain: stages for domain, stages in scores.nll[kind].items() if stages and domain in scores.order}
        found |= {(domain, kind, name): value for (domain, name), value in loss_metrics(losses, scores.order).items()}
        if len(measured) < len(scores.order):
            continue
        if scores.curve:
            found["", kind, "learning_speed"] = learning_speed(measured, scores.curve[kind], scores.order)
        parts = {d: [part for part in scores.kinds - {"all"} if d in scores.nll[part]] for d in scores.order}
        chances = {d: [guessing.get((d, part), math.nan) for part in (kind == "all" and parts[d] or [kind])] for d in scores.order}
        if len(scores.order) > 1 and not any(math.isnan(value) for values in chances.values() for value in values):
            gains = [measured[d][t - 1] - mean(chances[d]) for t, d in enumerate(scores.order, start=1) if t > 1]
            found["", kind, "fwt_over_chance"] = mean(gains)
    return found | general_metrics(scores)


def joint_metrics(scores: Scores) -> dict[tuple[str, str, str], float]:
    """All domains in one stage: what could be kept."""
    found = {}
    for kind in scores.kinds:
        final = {domain: stages[1] for domain, stages in scores.score[kind].items() if stages and domain != "general"}
        found |= {(domain, kind, "final"): value for domain, value in final.items()}
        if final:
            found["", kind, "acc"] = mean(list(final.values()))
    return found


def score_metrics(score: Mapping[str, Mapping[int, float]], order: Sequence[str]) -> dict[tuple[str, str], float]:
    """Metrics of one kind by domain and name; those over domains only where every domain has scores."""
    last, found, single = len(order), {}, {}
    for stage, domain in enumerate(order, start=1):
        if stage < last and domain in score:
            own, final = score[domain][stage], score[domain][last]
            highest = max(score[domain][earlier] for earlier in range(1, last))
            retained = final / own if own else math.nan
            single[domain] = {"forgetting": highest - final, "own": own, "final": final, "retention": retained}
    for domain, values in single.items():
        found |= {(domain, name): value for name, value in values.items()}
    if any(domain not in score for domain in order):
        return found
    if single:
        found |= {("", name): mean([values[name] for values in single.values()]) for name in ("forgetting", "own", "final", "retention")}
        found["", "bwt"] = mean([values["final"] - values["own"] for values in single.values()])
        found["", "fwt"] = mean([score[domain][t - 1] - score[domain][0] for t, domain in enumerate(order, start=1) if t > 1])
    found["", "acc"] = mean([score[domain][last] for domain in order])
    found["", "gain"] = sum(score[domain][last] - score[domain][0] for domain in order)
    return found


def loss_metrics(loss: Mapping[str, Mapping[int, float]], order: Sequence[str]) -> dict[tuple[str, str], float]:
    last, found, single = len(order), {}, {}
    for stage, domain in enumerate(order, start=1):
        if stage < last and domain in loss:
            own, final = loss[domain][stage], loss[domain][last]
            lowest = min(loss[domain][earlier] for earlier in range(1, last))
            single[domain] = {"loss_forgetting": final - lowest, "loss_own": own, "loss_final": final}
    for domain, values in single.items():
        found |= {(domain, name): value for name, value in values.items()}
    if single and all(domain in loss for domain in order):
        found |= {("", name): mean([values[name] for values in single.values()]) for name in ("loss_forgetting", "loss_own", "loss_final")}
    return found


def learning_speed(
    score: Mapping[str, Mapping[int, float]], curve: Mapping[tuple[int, str], Mapping[int, float]], order: Sequence[str]
) -> float:
    """Mean over the stages of the area under the stage's own curve above its start, over the stage's length."""
    speeds = []
    for stage, domain in enumerate(order, start=1):
        points = dict(curve[stage, domain])
        points.setdefault(0, score[domain][stage - 1])
        steps = sorted(points)
        area = sum((b - a) * ((points[a] + points[b]) / 2 - points[0]) for a, b in zip(steps, steps[1:], strict=False))
        speeds.append(area / steps[-1])
    return mean(speeds)


def general_metrics(scores: Scores) -> dict[tuple[str, str, str], float]:
    """What the general mixture kept, from before the stream to its end."""
    found, last = {}, len(scores.order)
    for kind in scores.nll:
        score, nll = scores.score[kind].get("general", {}), scores.nll[kind].get("general", {})
        if {0, last} <= set(score):
            found["", kind, "general_retention"] = score[last] / score[0] if score[0] else math.nan
        if {0, last} <= set(nll):
            found["", kind, "general_loss_rise"] = nll[last] - nll[0]
    return found


def joint_efficiencies(run: Run, values: Mapping[tuple, float], cost: pd.DataFrame) -> dict[tuple[Run, str, str, str], float]:
    """Gain over all domains per 10^12 FLOPs of the stream's training; `executed` counts masked weights, `theoretical` does not."""
    spent = cost[(cost["arm"] == run.arm) & (cost["method"] == run.method) & (cost["seed"] == run.seed) & (cost["job"] == "03_continual")]
    found = {}
    for row in rows(spent):
        for kind in ("ability", "fact", "all"):
            if (run, "", kind, "gain") in values:
                gain = values[run, "", kind, "gain"]
                found[run, "", kind, "joint_efficiency_executed"] = gain / (row.flops_dense / 1e12)
                found[run, "", kind, "joint_efficiency_theoretical"] = gain / (row.flops_sparse / 1e12)
    return found


def means_over_kinds(table: pd.DataFrame) -> dict[tuple, tuple[float, float, int]]:
    """Score, loss and number of items that rows of kind `all` must hold: unweighted means over the kinds, and the sum of items."""
    parts: dict[tuple, list[SimpleNamespace]] = {}
    for row in rows(table):
        if row.kind != "all":
            parts.setdefault(place(row), []).append(row)
    found = {}
    for key, kinds in parts.items():
        scores = [row.score for row in kinds if not math.isnan(row.score)]
        found[key] = (mean(scores) if scores else math.nan, mean([row.nll for row in kinds]), sum(int(row.n) for row in kinds))
    return found


def place(row: SimpleNamespace) -> tuple:
    """Where a score was taken; `step` is there inside a stage only."""
    return (*run_of(row), int(row.stage), int(getattr(row, "step", -1)), row.domain)


def means_over_items(items: pd.DataFrame) -> dict[tuple, tuple[float, float, int]]:
    """Share of right items, mean loss and number of items by run, stage, domain and kind; one pass of numpy, because there are many."""
    names = ["arm", "method", "order", "stage_steps", "seed", "stage", "domain", "kind"]
    codes, keys = np.zeros(len(items), dtype=np.int64), []
    for name in names:
        values, levels = pd.factorize(items[name])
        codes, keys = codes * len(levels) + values, [*keys, levels]
    cells, first, which = np.unique(codes, return_index=True, return_inverse=True)
    counts = np.bincount(which)
    right = np.bincount(which, weights=items["correct"].to_numpy(dtype=float)) / counts
    loss = np.bincount(which, weights=items["nll"].to_numpy(dtype=float)) / counts
    columns = [items[name].to_numpy()[first].tolist() for name in names]
    measured = zip(right.tolist(), loss.tolist(), counts.tolist(), strict=True)
    return dict(zip(zip(*columns, strict=True), measured, strict=True))
