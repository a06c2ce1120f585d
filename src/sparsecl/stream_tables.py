"""What a stream measured, as rows of the tables, and the learning rate chosen from a sweep (paper, section Measures)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecl.arms import Arm
from sparsecl.costs import cost_tables, total_costs
from sparsecl.experiment import Experiment
from sparsecl.items import Item, has_answers
from sparsecl.scoring import ItemScores


@dataclass(frozen=True)
class Stream:
    """One run: an arm, a method, an order, a learning rate."""

    arm: Arm
    method: str
    order: str
    learning_rate: float
    stage_steps: int

    @property
    def folder(self) -> str:
        return f"{self.method}-{self.order}-{self.stage_steps}steps-lr{self.learning_rate:g}"


def score_rows_of(scores: Mapping[tuple[str, str], ItemScores], items: Mapping[tuple[str, str], Sequence[Item]]) -> list[dict]:
    """One row per domain and kind, and `all`: the unweighted mean of the kinds present.

    Text without a prompt has no right answer, so its score is absent (None) and only its loss counts.
    """
    rows = [
        {
            "domain": domain,
            "kind": kind,
            "score": score.score if has_answers(items[domain, kind]) else None,
            "n": len(score),
            "nll": score.loss,
        }
        for (domain, kind), score in scores.items()
    ]
    for domain in dict.fromkeys(row["domain"] for row in rows):
        kinds = [row for row in rows if row["domain"] == domain]
        present = [row["score"] for row in kinds if row["score"] is not None]
        rows.append(
            {
                "domain": domain,
                "kind": "all",
                "score": float(np.mean(present)) if present else None,
                "n": sum(row["n"] for row in kinds),
                "nll": float(np.mean([row["nll"] for row in kinds])),
            }
        )
    return rows


def stream_tables(experiment: Experiment, stream: Stream, reports: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of accuracy, curves, cost and timings of one stream."""
    keys = {
        **stream.arm.columns,
        "method": stream.method,
        "order": stream.order,
        "stage_steps": stream.stage_steps,
        "base": str(experiment.base),
        "seed": experiment.replicate,
    }
    tables: dict[str, list[dict]] = {"accuracy": [], "curves": [], "items": [], "cost": [], "timings": []}
    last = len(reports) - 1
    for number, report in enumerate(reports):
        stage = {**keys, "stage": number, "stage_domain": report["domain"]}
        tables["accuracy"] += [{**stage, **row} for row in report["scores"]]
        tables["curves"] += [{**stage, **row} for row in report["curve"]]
        tables["items"] += _item_rows(stage, report, last)
    total = total_costs([report["costs"] for report in reports if report["costs"]])
    job = {
        "arm": stream.arm.name,
        "method": stream.method,
        "seed": experiment.replicate,
        "job": "03_continual" if stream.order == "main" else f"03_continual/{stream.order}",
    }
    return tables | cost_tables(job, total, experiment.device, experiment.study.dtype)


def _item_rows(stage: dict, report: dict, last: int) -> list[dict]:
    """Items of a domain right after its own stage and at the end of the stream."""
    names = ("arm", "method", "order", "stage_steps", "seed", "stage")
    return [
        {
            **{name: stage[name] for name in names},
            "domain": group["domain"],
            "kind": group["kind"],
            "item": item,
            "correct": right,
            "nll": loss,
        }
        for group in report["items"]
        if stage["stage"] == last or group["domain"] == stage["stage_domain"]
        for item, (right, loss) in enumerate(zip(group["correct"], group["nll"], strict=True))
    ]


def sweep_rows(stream: Stream, reports: Sequence[dict]) -> list[dict]:
    """Rows of the learning-rate table: each domain's score and loss right after its stage and at the end."""
    rows = []
    for report in reports[1:]:
        for row in report["scores"]:
            if row["domain"] != report["domain"]:
                continue
            end = next(end for end in reports[-1]["scores"] if (end["domain"], end["kind"]) == (row["domain"], row["kind"]))
            rows.append(
                {
                    "arm": stream.arm.name,
                    "method": stream.method,
                    "learning_rate": stream.learning_rate,
                    "domain": row["domain"],
                    "kind": row["kind"],
                    "own": row["score"],
                    "final": end["score"],
                    "nll_own": row["nll"],
                    "nll_final": end["nll"],
                }
            )
    return rows


def choose_learning_rate(rows: Sequence[dict], measure: str) -> float:
    """The lowest rate that learns as well as the best: within one standard error of its mean over arms and domains.

    One rate serves all arms, because the stream's optimisation must not differ between them; the mean over the
    arms favours none. The shortfall is paired by arm and domain. The one-standard-error rule (Breiman et al. 1984)
    keeps a rate from winning by noise, at the cost of everything that a larger rate overwrites.
    """
    learned = _learned(rows, measure)
    best = max(learned, key=lambda rate: (learned[rate].mean(), -rate))
    return min(rate for rate in learned if _mean_within_one_standard_error_of_zero(learned[best] - learned[rate]))


def _learned(rows: Sequence[dict], measure: str) -> dict[float, np.ndarray]:
    """Per rate, what each arm has learned of each domain right after its stage, in one order of (arm, domain)."""
    column, sign = ("own", 1) if measure == "score" else ("nll_own", -1)
    learned: dict[float, dict[tuple[str, str, str], float]] = {}
    for row in rows:
        if row["kind"] == "all":
            learned.setdefault(row["learning_rate"], {})[row["arm"], row["method"], row["domain"]] = sign * row[column]
    cells = next(iter(learned.values())).keys()
    if differing := [rate for rate, values in learned.items() if values.keys() != cells]:
        raise ValueError(f"the sweep has other arms or domains under {differing} than under {next(iter(learned))}; run 03_continual again")
    return {rate: np.array([values[cell] for cell in cells]) for rate, values in learned.items()}


def _mean_within_one_standard_error_of_zero(shortfalls: np.ndarray) -> bool:
    error = shortfalls.std(ddof=1) / np.sqrt(len(shortfalls)) if len(shortfalls) > 1 else 0.0
    return bool(shortfalls.mean() <= error)
