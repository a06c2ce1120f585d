"""Seeded tables in the exact columns of the contract, for tests of figures and of the paper.

The numbers are invented; only their shape and rough size are those of a study.
"""

import numpy as np
import pandas as pd

from sparsecl.arms import Arm, parse_arm

DOMAINS = ("code", "math", "medical", "legal", "dialogue")
STREAMED = {"D1": ("", "", 1.0), "S1-2of4": ("2of4", "sparsegpt", 0.5)}
RUN = ("arm", "topology", "algorithm", "density", "method", "order", "stage_steps", "base", "seed")
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


def _run(arm: str, seed: int) -> dict:
    topology, algorithm, density = STREAMED[arm]
    return dict(zip(RUN, (arm, topology, algorithm, density, "full", "main", STAGE_STEPS, seed, seed), strict=True))


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


def _stream(replicates: int, generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    accuracy, curves = [], []
    for arm in STREAMED:
        for seed in range(replicates):
            for stage in range(len(DOMAINS) + 1):
                where = {"stage": stage, "stage_domain": DOMAINS[stage - 1] if stage else ""}
                accuracy += _rows(generator, arm, seed, stage, where)
                for point in range(1, 6) if stage else ():
                    step = point * STAGE_STEPS // 5
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


def _learning_rate() -> pd.DataFrame:
    rows = []
    for arm in STREAMED:
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


def _overlap(replicates: int, generator) -> pd.DataFrame:
    rows = []
    for arm in ("D0", "D1", "S1-2of4"):
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
            for job in ("02_recover", "03_continual"):
                run = {"arm": arm, "method": "full", "seed": seed, "job": job}
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


def example_tables(replicates: int = 5, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table but `tests` and `items`, by name."""
    generator = np.random.default_rng(seed)
    accuracy, curves = _stream(replicates, generator)
    cost, timings = _costs(replicates)
    return {
        "accuracy": accuracy,
        "curves": curves,
        "conversion": _conversion(replicates, generator),
        "metrics": _metrics(accuracy),
        "learning_rate": _learning_rate(),
        "overlap": _overlap(replicates, generator),
        "cost": cost,
        "timings": timings,
    }
