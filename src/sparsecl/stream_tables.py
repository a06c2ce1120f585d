"""What a stream measured, as rows of the tables (paper, section Measures)."""

from collections.abc import Mapping, Sequence

import numpy as np

from sparsecl.costs import cost_tables, total_costs
from sparsecl.experiment import Experiment
from sparsecl.items import Item, has_answers
from sparsecl.scoring import ItemScores
from sparsecl.streams import Stream


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


STREAM_TABLES = ("accuracy", "curves", "items", "update_masks", "stage_measures", "cost", "timings")


def stream_tables(experiment: Experiment, stream: Stream, reports: Sequence[dict]) -> dict[str, list[dict]]:
    """Rows of all tables of one stream."""
    keys = {
        **stream.arm.columns,
        "method": stream.method,
        "order": stream.order,
        "stage_steps": stream.stage_steps,
        "base": str(experiment.base),
        "seed": experiment.replicate,
    }
    tables: dict[str, list[dict]] = {name: [] for name in STREAM_TABLES}
    named = {name: keys[name] for name in ("arm", "method", "order", "stage_steps", "seed")}
    last = len(reports) - 1
    for number, report in enumerate(reports):
        stage = {**keys, "stage": number, "stage_domain": report["domain"]}
        tables["accuracy"] += [{**stage, **row} for row in report["scores"]]
        tables["curves"] += [{**stage, **row} for row in report["curve"]]
        tables["items"] += _item_rows(stage, report, last)
        place = {**named, "stage": number, "stage_domain": report["domain"]}
        tables["update_masks"] += [{**place, **row} for row in report.get("selections", [])]
        tables["stage_measures"] += [{**place, "measure": name, "value": value} for name, value in report.get("measures", {}).items()]
    total = total_costs([report["costs"] for report in reports if report["costs"]])
    names = {"arm": stream.arm.name, "method": stream.method, "seed": experiment.replicate}
    job = {**names, "job": stream.job(experiment.study)}
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
