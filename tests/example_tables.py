"""Seeded tables in the exact columns of the contract, for tests of figures and of the paper.

The numbers are invented; only their shape and rough size are those of a study.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sparsecl.arms import Arm, parse_arm

DOMAINS = ("code", "math", "medical", "legal", "dialogue")
STREAMED = ("D1", "S1-2of4")
TOPOLOGY_ARMS = ("D1", "S1-2of4", "S1-4of8", "S1-block16", "S1-block32", "S1-block64", "S1-unstructured")
CONTROLS = ("D0", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "S0-2of4", "Sf-2of4", "Dg-2of4", "S1-2of4-random")
STAGE_STEPS = 100
# General score that is planted for S0 of every compared conversion; S1 loses a sixth of what S0 loses.
TOPOLOGY_SCORES = {"2of4": 0.71, "4of8": 0.75, "block16": 0.5, "block32": 0.42, "block64": 0.3, "unstructured": 0.78}
ALGORITHM_SCORES = {"random": 0.12, "magnitude": 0.62, "wanda": 0.69, "wanda++": 0.7, "maskllm": 0.8}
DENSITY_SCORES = {
    "unstructured-d0.8": 0.875, "unstructured-d0.75": 0.87, "unstructured-d0.7": 0.86, "unstructured-d0.6": 0.83,
    "6of8": 0.865, "5of8": 0.82, "block16-d0.75": 0.7,
}  # fmt: skip
ALL_REPLICATES = {"D0": 0.88, "D1": 0.9} | {f"S0-{name}": score for name, score in TOPOLOGY_SCORES.items()}
FEWER_REPLICATES = {
    **{f"S0-2of4-{name}": score for name, score in ALGORITHM_SCORES.items()},
    **{f"S0-{name}": score for name, score in DENSITY_SCORES.items()},
}


def stage_steps(arm: str) -> int:
    """Arms of equal FLOPs have a length of their own."""
    return {"Df": 60, "Sf": 150}.get(arm[:2], STAGE_STEPS)


def _run(arm: str, seed: int) -> dict:
    return parse_arm(arm).columns | {"method": "full", "order": "main", "stage_steps": stage_steps(arm), "base": seed, "seed": seed}


def _score(generator, stage: float, position: int, kind: str, arm: str) -> float:
    """A domain rises at its own stage and falls afterwards, facts more than abilities."""
    rise = {"ability": 0.75, "fact": 0.92}[kind] - (0.04 if arm != "D1" else 0)
    fall = {"ability": 0.14, "fact": 0.3}[kind] * (0.88 if arm != "D1" else 1)
    since = stage - position
    level = 0.12 + 0.03 * stage if since < 0 else rise - fall * min(since, 2.5)
    return float(np.clip(level + generator.normal(0, 0.03), 0, 1))


def _rows(generator, arm: str, seed: int, stage: float, columns: dict) -> list[dict]:
    rows = []
    for position, domain in enumerate(DOMAINS, start=1):
        kinds = {kind: _score(generator, stage if stage >= position else stage, position, kind, arm) for kind in ("ability", "fact")}
        kinds["all"] = sum(kinds.values()) / 2
        for kind, score in kinds.items():
            rows.append(
                {**_run(arm, seed), **columns, "domain": domain, "kind": kind, "score": score, "n": 192, "nll": 4.5 * (1 - score) + 0.2}
            )
    rows.append(
        {**_run(arm, seed), **columns, "domain": "general", "kind": "all", "score": 0.8 - 0.11 * stage, "n": 256, "nll": 0.5 + 0.4 * stage}
    )
    return rows


def _stream(replicates: int, generator, arms: Sequence[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    accuracy, curves = [], []
    for arm in arms:
        for seed in range(replicates):
            for stage in range(len(DOMAINS) + 1):
                where = {"stage": stage, "stage_domain": DOMAINS[stage - 1] if stage else ""}
                accuracy += _rows(generator, arm, seed, stage, where)
                for point in range(1, 6) if stage else ():
                    step = point * stage_steps(arm) // 5
                    inside = {**where, "step": step, "tokens": step * 900}
                    curves += _rows(generator, arm, seed, stage - 1 + point / 5, inside)
    return pd.DataFrame(accuracy), pd.DataFrame(curves)


def compared_replicates(replicates: int) -> int:
    """Algorithms and densities are compared on fewer replicates than topologies."""
    return max(replicates - 1, 2)


def planted_scores() -> dict[str, float]:
    """General score planted for every checkpoint."""
    scores = ALL_REPLICATES | FEWER_REPLICATES
    recovered = {"S1" + arm[2:]: 0.9 - (0.9 - score) / 6 for arm, score in scores.items() if arm.startswith("S0")}
    return scores | recovered


def _checkpoint(arm: Arm, seed: int, score: float, generator) -> list[dict]:
    run = {"arm": arm.name, "topology": arm.topology, "algorithm": arm.algorithm, "density": arm.density, "base": seed, "seed": seed}
    values = {"density/attained": arm.density, "score/general": score, "nll/general": 2.2 * (1 - score), "score/general/arithmetic": score}
    if arm.lineage in ("S1", "D1"):
        start = 2.2 * (1 - (planted_scores()["S0" + arm.name[2:]] if arm.is_sparse else 0.88))
        for step in range(0, 201, 40):
            values[f"recovery/nll/{step}"] = 0.22 + (start - 0.22) * np.exp(-step / 40) + generator.normal(0, 0.01)
    if arm.lineage == "S0":
        values |= {"reconstruction/error": 0.08, "reconstruction/kept_energy": 0.86}
    if arm.lineage == "D0":
        values["reconstruction/input_spread"] = 0.2
    return [{**run, "metric": metric, "value": value} for metric, value in values.items()]


def _conversion(replicates: int, generator) -> pd.DataFrame:
    rows = []
    for name, score in planted_scores().items():
        fewer = "S0" + name[2:] in FEWER_REPLICATES
        for seed in range(compared_replicates(replicates) if fewer else replicates):
            rows += _checkpoint(parse_arm(name), seed, score + generator.normal(0, 0.02), generator)
    # The replicate on which settings were chosen has rows too; they enter no result.
    rows += [row | {"seed": "validation"} for name in ("D0", "S0-2of4") for row in _checkpoint(parse_arm(name), -1, 0.0, generator)]
    return pd.DataFrame(rows)


def _metrics(accuracy: pd.DataFrame) -> pd.DataFrame:
    """The study's metrics from R[t, i], by their definitions."""
    rows, last = [], len(DOMAINS)
    for (arm, seed, kind), run in accuracy.groupby(["arm", "seed", "kind"]):
        scores = run.pivot_table(index="stage", columns="domain", values="score")
        losses = run.pivot_table(index="stage", columns="domain", values="nll")
        own = {domain: scores.loc[stage, domain] for stage, domain in enumerate(DOMAINS[:-1], start=1)}
        values = {
            "forgetting": np.mean([scores.loc[1 : last - 1, d].max() - scores.loc[last, d] for d in own]),
            "bwt": np.mean([scores.loc[last, d] - own[d] for d in own]),
            "own": np.mean(list(own.values())),
            "final": np.mean([scores.loc[last, d] for d in own]),
            "retention": np.mean([scores.loc[last, d] / own[d] for d in own]),
            "acc": np.mean([scores.loc[last, d] for d in DOMAINS]),
            "fwt": np.mean([scores.loc[stage - 1, d] - scores.loc[0, d] for stage, d in enumerate(DOMAINS[1:], start=2)]),
            "loss_forgetting": np.mean([losses.loc[last, d] - losses.loc[1 : last - 1, d].min() for d in own]),
            "loss_own": np.mean([losses.loc[stage, d] for stage, d in enumerate(DOMAINS[:-1], start=1)]),
            "loss_final": np.mean([losses.loc[last, d] for d in own]),
        }
        if kind == "all":
            values["general_retention"] = scores.loc[last, "general"] / scores.loc[0, "general"]
        rows += [{**_run(arm, seed), "domain": "", "kind": kind, "metric": name, "value": value} for name, value in values.items()]
        for stage, domain in enumerate(DOMAINS, start=1):
            by_domain = {"own": scores.loc[stage, domain], "final": scores.loc[last, domain]}
            if stage < last:
                by_domain["forgetting"] = scores.loc[1 : last - 1, domain].max() - scores.loc[last, domain]
                by_domain["retention"] = scores.loc[last, domain] / scores.loc[stage, domain]
            rows += [
                {**_run(arm, seed), "domain": domain, "kind": kind, "metric": name, "value": value} for name, value in by_domain.items()
            ]
    return pd.DataFrame(rows)


def _learning_rate(arms: Sequence[str]) -> pd.DataFrame:
    rows = []
    for arm in arms:
        for rate, own, final in ((5e-4, 0.72, 0.38), (1e-3, 0.82, 0.4), (2e-3, 0.83, 0.33)):
            own -= 0.03 * (arm != "D1")
            for kind in ("ability", "fact", "all"):
                rows.append(
                    {
                        "arm": arm,
                        "method": "full",
                        "learning_rate": rate,
                        "domain": "",
                        "kind": kind,
                        "own": own,
                        "final": final,
                        "chosen": rate == 1e-3,
                    }
                )
    return pd.DataFrame(rows)


def _overlap(replicates: int, generator, arms: Sequence[str]) -> pd.DataFrame:
    rows = []
    for arm in dict.fromkeys(("D0", *arms)):
        for seed in range(replicates):
            for layer in range(3):
                for i, a in enumerate(DOMAINS):
                    for b in DOMAINS[i + 1 :]:
                        value = 0.3 + 0.06 * layer + generator.normal(0, 0.04)
                        rows.append(
                            {
                                "arm": arm,
                                "seed": seed,
                                "layer": layer,
                                "domain_a": a,
                                "domain_b": b,
                                "selection": "magnitude",
                                "top_fraction": 0.1,
                            }
                            | {"value": value, "null": 0.053, "null_label": 0.71, "p_label": 0.01, "ceiling": 0.84}
                        )
    return pd.DataFrame(rows)


def _costs(replicates: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    cost, timings = [], []
    for arm in STREAMED:
        for seed in range(replicates):
            jobs = [("02_recover", "recovery"), ("03_continual", "full"), *([("02_recover", "calibration")] if arm == "D1" else [])]
            for job, method in jobs:
                run = {"arm": arm, "method": method, "seed": seed, "job": job}
                sparse = 1.1e12 if arm == "D1" else 7e11
                cost.append(
                    {
                        **run,
                        "tokens": 450000,
                        "flops_dense": 1.1e12,
                        "flops_sparse": sparse,
                        "trainable": 542000,
                        "masked": 0 if arm == "D1" else 196608,
                    }
                )
                timings.append({**run, "wall_s": 21.5 + seed, "peak_memory_bytes": 9e8, "device": "cpu", "dtype": "float32"})
    for name in ("S0-2of4", *(f"S0-2of4-{algorithm}" for algorithm in ("magnitude", "wanda", "maskllm"))):
        for seed in range(replicates if name == "S0-2of4" else compared_replicates(replicates)):
            run = {"arm": name, "method": "conversion", "seed": seed, "job": "01_sparsify"}
            tokens = {"S0-2of4-magnitude": 0, "S0-2of4-maskllm": 260000}.get(name, 2600)
            counted = {"tokens": tokens, "flops_dense": 1e6 * tokens, "flops_sparse": 1e6 * tokens, "trainable": 542000, "masked": 196608}
            cost.append({**run, **counted})
            timings.append({**run, "wall_s": 0.1 + tokens / 1e4, "peak_memory_bytes": 9e8, "device": "cpu", "dtype": "float32"})
    return pd.DataFrame(cost), pd.DataFrame(timings)


def example_tables(replicates: int = 5, seed: int = 0, arms: Sequence[str] = STREAMED) -> dict[str, pd.DataFrame]:
    """Every table but `tests` and `items`, by name; `arms` are those of the stream."""
    generator = np.random.default_rng(seed)
    accuracy, curves = _stream(replicates, generator, arms)
    cost, timings = _costs(replicates)
    return {
        "accuracy": accuracy,
        "curves": curves,
        "conversion": _conversion(replicates, generator),
        "metrics": _metrics(accuracy),
        "learning_rate": _learning_rate(arms),
        "overlap": _overlap(replicates, generator, arms),
        "cost": cost,
        "timings": timings,
    }
