"""Seeded tables with every further stream that the full built-in study runs, for tests of figures, tables and values.

Scores follow a planted law: a domain rises to `own` at its own stage and falls afterwards, by KEPT of what is left to fall in
every later stage; noise is small. `planted_metrics` says what the tables must then show. The numbers are invented.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from example_tables import DOMAINS, STAGE_STEPS, example_tables, stage_steps

from sparsecl.arms import parse_arm
from sparsecl.domain_orders import MAIN, williams_design
from sparsecl.efficiency import joint_efficiency_rows
from sparsecl.metrics import metrics_table
from sparsecl.tables import chance_scores, tidy

MAIN_ARMS = ("D1", "S1-2of4", "S1-4of8", "S1-block32", "Dnz-0.5", "Df-0.5", "Dg-2of4")
CONTROLS = ("D0", "S0-2of4", "Sf-2of4", "Dcut-0.5", "S1-2of4-random")
DOSES = ("S1-6of8", "S1-unstructured", "S1-unstructured-d0.75")
BUDGETS = ("S1-2of4-b0.5", "S1-2of4-b2", "D1-b0.5", "D1-b2")
FURTHER_ARMS = (*CONTROLS, *DOSES, *BUDGETS)
FRONTIER_ARMS, LENGTHS = ("D1", "S1-2of4", "Dnz-0.5"), (25, 50, 200)  # beside STAGE_STEPS
ORDER_ARMS = MAIN_ARMS[:4]
METHOD_ARMS, METHODS = ("D1", "S1-2of4"), ("lora", "replay", "ewc")
RATES = (1e-3, 2e-3, 4e-3)
CHOSEN_RATES = {"full": 2e-3, "lora": 4e-3, "replay": 2e-3, "ewc": 1e-3}

KINDS = ("ability", "fact", "all")
TEXT = ("arm", "topology", "algorithm", "method", "order", "base", "stage_domain", "domain", "kind")  # object columns filter faster
ITEMS = {"ability": 96, "fact": 48}
CURVE_POINTS = 5
START, TRANSFER = 0.12, 0.01  # score before the stream, and what every foreign stage adds before a domain's own
KEPT = 0.6  # share of a domain's whole fall that is still ahead after each later stage
GENERAL_FALL = {"dense": 0.09, "sparse": 0.07}  # of the general score, a stage


@dataclass(frozen=True)
class Planted:
    """Mean over the kinds: the score right after a domain's own stage, and how far it would fall in an endless stream."""

    own: float
    fall: float


# At the arm's own main stage length.
PLANTED = {
    "D1": Planted(0.80, 0.30), "S1-2of4": Planted(0.75, 0.20), "S1-4of8": Planted(0.77, 0.24), "S1-block32": Planted(0.68, 0.16),
    "Dnz-0.5": Planted(0.76, 0.31), "Df-0.5": Planted(0.77, 0.28), "Dg-2of4": Planted(0.78, 0.29),
    "D0": Planted(0.77, 0.29), "S0-2of4": Planted(0.62, 0.17), "Sf-2of4": Planted(0.78, 0.22), "Dcut-0.5": Planted(0.72, 0.28),
    "S1-2of4-random": Planted(0.70, 0.21), "S1-6of8": Planted(0.79, 0.27), "S1-unstructured": Planted(0.78, 0.25),
    "S1-unstructured-d0.75": Planted(0.795, 0.28), "S1-2of4-b0.5": Planted(0.72, 0.19), "S1-2of4-b2": Planted(0.77, 0.21),
    "D1-b0.5": Planted(0.79, 0.295), "D1-b2": Planted(0.81, 0.305),
}  # fmt: skip
METHOD_EFFECTS = {"full": (0.0, 1.0), "lora": (-0.05, 0.7), "replay": (-0.02, 0.4), "ewc": (-0.08, 0.6)}  # on own, times the fall
ALONE, MIXED = 0.02, -0.03  # what `single` and `joint` reach, beside own
KIND_EFFECTS = {"ability": (-0.06, 0.6), "fact": (0.06, 1.4)}
# Measured speed of a pass by arm and stack, in dense passes: one token, then a batch; absent: no kernel.
INFERENCE_GAINS = {
    ("S1-2of4", "csr"): (0.9, 0.35), ("S1-2of4", "semi-structured"): None, ("S1-4of8", "csr"): (0.88, 0.34),
    ("S1-block32", "csr"): (0.95, 0.4), ("S1-block32", "bsr"): (0.7, 1.25), ("S1-6of8", "csr"): (0.8, 0.25),
    ("S1-unstructured", "csr"): (0.89, 0.33),
}  # fmt: skip
LOADS = ((1, 1), (8, 32))  # rows, tokens of a row
NO_KERNEL = "no kernel: sparse semi-structured is only supported on CUDA"


def planted(arm: str, method: str = "full", steps: int | None = None) -> Planted:
    """What a stream of an arm follows; another stage length than its main one learns and loses less or more."""
    own, fall, main = PLANTED[arm].own, PLANTED[arm].fall, stage_steps(arm)
    if steps not in (None, main):
        own = START + (own - START) * (1 - np.exp(-steps / 40)) / (1 - np.exp(-main / 40))
        fall *= np.sqrt(steps / main)
    added, factor = METHOD_EFFECTS[method]
    return Planted(own + added, fall * factor)


def planted_metrics(arm: str, method: str = "full", steps: int | None = None) -> dict[str, float]:
    """Own, forgetting and final over the domains that can be forgotten, kind `all`, without noise."""
    law = planted(arm, method, steps)
    forgotten = law.fall * np.mean([1 - KEPT**later for later in range(1, len(DOMAINS))])
    return {"own": law.own, "forgetting": forgotten, "final": law.own - forgotten}


def planted_stages(law: Planted) -> np.ndarray:
    """R[t, i] without noise by kind: stages x domains in the order of the stream x (ability, fact)."""
    count = len(DOMAINS)
    since = np.arange(count + 1)[:, None] - np.arange(1, count + 1)[None]
    before = START + TRANSFER * np.arange(count + 1)[:, None]
    matrices = [
        np.where(since < 0, before, law.own + added - law.fall * factor * (1 - KEPT ** np.maximum(since, 0)))
        for added, factor in KIND_EFFECTS.values()
    ]
    return np.stack(matrices, axis=-1)


def _inside(stages: np.ndarray) -> np.ndarray:
    """The same at the points 0..CURVE_POINTS of every stage: a domain rises quickly in its own, others change evenly."""
    share = np.arange(CURVE_POINTS + 1) / CURVE_POINTS
    quick = (1 - np.exp(-3 * share)) / (1 - np.exp(-3))
    parts = []
    for stage in range(1, len(stages)):
        progress = np.where(np.arange(stages.shape[1])[None] == stage - 1, quick[:, None], share[:, None])[..., None]
        parts.append(stages[stage - 1] + progress * (stages[stage] - stages[stage - 1]))
    return np.concatenate(parts)


@dataclass(frozen=True)
class Run:
    arm: str
    method: str
    order: str
    steps: int
    seed: int

    @property
    def domains(self) -> tuple[str, ...]:
        """The domain of every stage."""
        if self.method == "joint":
            return ("joint",)
        if self.method == "single":
            return (self.order.removeprefix("single-"),)
        return williams_design(DOMAINS)[self.order]

    @property
    def keys(self) -> dict:
        names = {"method": self.method, "order": self.order, "stage_steps": self.steps, "base": str(self.seed), "seed": self.seed}
        return parse_arm(self.arm).columns | names

    @property
    def is_main(self) -> bool:
        return (self.method, self.order, self.steps) == ("full", MAIN, stage_steps(self.arm))

    @property
    def job(self) -> str:
        usual = self.order == MAIN and self.steps == stage_steps(self.arm)
        return "03_continual" if usual else f"03_continual/{self.order}/{self.steps}"


def planned_runs(replicates: int, further: int) -> list[Run]:
    """Every stream of every replicate; all but the main ones in the first `further` only."""
    main = [(arm, "full", MAIN, stage_steps(arm)) for arm in MAIN_ARMS]
    beside = [(arm, "full", MAIN, stage_steps(arm)) for arm in FURTHER_ARMS]
    beside += [(arm, "full", MAIN, steps) for arm in FRONTIER_ARMS for steps in LENGTHS]
    beside += [(arm, "full", order, STAGE_STEPS) for arm in ORDER_ARMS for order in williams_design(DOMAINS) if order != MAIN]
    beside += [(arm, method, MAIN, STAGE_STEPS) for arm in METHOD_ARMS for method in METHODS]
    beside += [(arm, "single", f"single-{domain}", STAGE_STEPS) for arm in METHOD_ARMS for domain in DOMAINS]
    beside += [(arm, "joint", "joint", STAGE_STEPS * len(DOMAINS)) for arm in METHOD_ARMS]
    return [Run(*stream, seed) for seed in range(replicates) for stream in (main + beside if seed < further else main)]


def _scores(run: Run) -> np.ndarray:
    """Planted scores: stages x DOMAINS x (ability, fact)."""
    if run.method in ("single", "joint"):
        trained = [run.method == "joint" or domain == run.domains[0] for domain in DOMAINS]
        own = PLANTED[run.arm].own + (ALONE if run.method == "single" else MIXED)
        after = np.array([[own + added if here else START for added, _ in KIND_EFFECTS.values()] for here in trained])
        return np.stack([np.full_like(after, START), after])
    stages = planted_stages(planted(run.arm, run.method, run.steps))
    return stages[:, [run.domains.index(domain) for domain in DOMAINS]]


def _long(points: pd.DataFrame, scores: np.ndarray, counts: Mapping[str, int]) -> pd.DataFrame:
    """Rows of the tables for scores (points x DOMAINS x (ability, fact)), with the mean of the kinds."""
    size = len(DOMAINS) * len(KINDS)
    values = np.concatenate([scores, scores.mean(axis=-1, keepdims=True)], axis=-1).ravel()
    counts = counts | {"all": sum(counts.values())}
    return points.loc[points.index.repeat(size)].assign(
        domain=np.tile(np.repeat(DOMAINS, len(KINDS)), len(points)), kind=np.tile(KINDS, len(points) * len(DOMAINS)), score=values,
        n=np.tile([counts[kind] for kind in KINDS], len(points) * len(DOMAINS)), nll=4.5 * (1 - values) + 0.2,
    )  # fmt: skip


def _general(points: pd.DataFrame) -> pd.DataFrame:
    score = 0.8 - GENERAL_FALL["dense"] * points["stage"]
    score = score.mask(points["topology"] != "", 0.8 - GENERAL_FALL["sparse"] * points["stage"])
    return points.assign(domain="general", kind="all", score=score, n=200, nll=4.5 * (1 - score) + 0.2)


class Noise:
    """What varies: replicates in their domains, arms within a replicate, and every single score."""

    def __init__(self, generator: np.random.Generator, replicates: int) -> None:
        self.generator = generator
        self.of_replicate = generator.normal(0, 0.02, (replicates, len(DOMAINS), 1))
        self.of_arm = {arm: generator.normal(0, 0.006, replicates) for arm in PLANTED}

    def added(self, scores: np.ndarray, run: Run, before: int) -> np.ndarray:
        """`scores` with noise; the first `before` points vary little, because nothing was learned there."""
        shift = np.broadcast_to(self.of_replicate[run.seed] + self.of_arm[run.arm][run.seed], scores.shape).copy()
        shift[:before] *= 0.1
        return np.clip(scores + shift + self.generator.normal(0, 0.008, scores.shape), 0, 1)

    def shares_of_items(self, scores: np.ndarray, run: Run) -> np.ndarray:
        """The same after every stage, as shares of right items."""
        counts = np.array([ITEMS[kind] for kind in KIND_EFFECTS])
        return np.round(self.added(scores, run, before=1) * counts) / counts


def _points(runs: Sequence[Run], inside: bool) -> pd.DataFrame:
    """One row a stage of every run, stage 0 too, or one a point inside the stages."""
    rows = []
    for run in runs:
        steps = [{"step": run.steps * point // CURVE_POINTS} for point in range(CURVE_POINTS + 1)] if inside else [{}]
        stages = list(enumerate(("", *run.domains)))[inside:]
        rows += [
            {**run.keys, "main": run.is_main, "stage": stage, "stage_domain": name, **step} for stage, name in stages for step in steps
        ]
    return pd.DataFrame(rows)


def _accuracy(runs: Sequence[Run], scores: Sequence[np.ndarray]) -> pd.DataFrame:
    """Kinds stand apart on the main protocol only: thousands of rows that no test reads would cost seconds."""
    points = _points(runs, inside=False)
    rows = pd.concat([_long(points, np.concatenate(scores), ITEMS), _general(points)])
    return tidy("accuracy", rows[rows["main"] | (rows["kind"] == "all")].drop(columns="main"))


def _curves(runs: Sequence[Run], noise: "Noise") -> pd.DataFrame:
    points = _points(runs, inside=True)
    scores = np.concatenate([noise.added(_inside(_scores(run)), run, before=1) for run in runs])
    rows = _long(points.assign(tokens=130 * points["step"]), scores, dict.fromkeys(ITEMS, 16))
    return tidy("curves", rows[rows["main"] | (rows["kind"] == "all")].drop(columns="main"))


def _items(runs: Sequence[Run], scores: Sequence[np.ndarray], generator: np.random.Generator) -> pd.DataFrame:
    """Single items right after a domain's own stage and at the end; as many are right as the score says, the easiest ones."""
    groups, right = [], []
    for run, score in zip(runs, scores, strict=True):
        names = {name: run.keys[name] for name in ("arm", "method", "order", "stage_steps", "seed")}
        for place, domain in enumerate(DOMAINS):
            for number, (kind, count) in enumerate(ITEMS.items()):
                difficulty = generator.permutation(count)
                for stage in sorted({place + 1, len(DOMAINS)}):
                    groups.append({**names, "stage": stage, "domain": domain, "kind": kind})
                    right.append(difficulty < round(score[stage, place, number] * count))
    sizes, correct = [len(part) for part in right], np.concatenate(right)
    rows = pd.DataFrame(groups).loc[np.repeat(np.arange(len(groups)), sizes)]
    item = np.concatenate([np.arange(size) for size in sizes])
    return tidy("items", rows.assign(item=item, correct=correct.astype(int), nll=4.2 - 4 * correct))


def _size(arm: str) -> tuple[float, float]:
    """Executed and theoretical FLOPs of a step as shares of D1's."""
    found = parse_arm(arm)
    if found.lineage in ("Dnz", "Dcut"):
        return 0.57, 0.57
    if found.masks_updates:
        return 1.0, 0.87
    return 1.0, 1 - 0.76 * (1 - found.density) if found.is_sparse else 1.0


def _costs(runs: Sequence[Run], base: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Cost and timings of every stream, beside the conversions and recoveries of `base`."""
    cost, timings = [], []
    for run in runs:
        names = {"arm": run.arm, "method": run.method, "seed": run.seed, "job": run.job}
        steps, (executed, theoretical) = run.steps * len(run.domains), _size(run.arm)
        sizes = {"trainable": 542000, "masked": 196608 if parse_arm(run.arm).is_sparse else 0}
        flops = {"flops_dense": round(4.4e9 * steps * executed), "flops_sparse": round(4.4e9 * steps * theoretical)}
        cost.append({**names, "tokens": 130 * steps, **flops, **sizes})
        seconds = 0.04 * steps * (1.02 if parse_arm(run.arm).is_sparse else 1.0) * (1 + 0.01 * run.seed)
        measured = {"wall_s": seconds, "peak_memory_bytes": 9e8 * executed**0.5, "device": "cpu (x86_64)", "dtype": "float32"}
        timings.append({**names, **measured})
    for table, rows in (("cost", cost), ("timings", timings)):
        earlier = base[table][base[table]["job"] != "03_continual"]
        yield table, tidy(table, pd.concat([earlier, pd.DataFrame(rows)], ignore_index=True))


def _inference(replicates: int, further: int, generator: np.random.Generator) -> pd.DataFrame:
    rows = []
    for (arm, stack), gains in INFERENCE_GAINS.items():
        for seed in range(replicates if arm in MAIN_ARMS else further):
            for number, (count, tokens) in enumerate(LOADS):
                dense = 1e-3 * count
                gain = None if gains is None else gains[number] * float(np.exp(generator.normal(0, 0.03)))
                rows.append(
                    {
                        "arm": arm,
                        "seed": seed,
                        "stack": stack,
                        "rows": count,
                        "tokens": tokens,
                        "kernel": NO_KERNEL if gain is None else "measured",
                        "gain_theoretical": 1 / _size(arm)[1],
                        "gain_measured": gain,
                        "seconds_dense": None if gain is None else dense,
                        "seconds": None if gain is None else dense / gain,
                        "device": "cpu (x86_64)",
                        "dtype": "float32",
                    }
                )
    return tidy("inference", pd.DataFrame(rows))


def _learning_rate() -> pd.DataFrame:
    """The sweep on the validation replicate: full fine-tuning for every arm of the stream, the other methods for two."""
    rows = []
    for method, chosen in CHOSEN_RATES.items():
        for arm in (*MAIN_ARMS, *FURTHER_ARMS) if method == "full" else METHOD_ARMS:
            for rate in RATES:
                distance = abs(np.log2(rate / chosen))
                own, final = (planted_metrics(arm, method)[name] for name in ("own", "final"))
                own, final = own - 0.04 * distance, final - 0.03 * np.log2(rate / chosen)
                for place, domain in enumerate(DOMAINS):
                    for kind in KINDS:
                        scores = {"own": own + 0.01 * (place - 2), "final": final + 0.01 * (place - 2)}
                        losses = {f"nll_{name}": 4.5 * (1 - score) for name, score in scores.items()}
                        keys = {"arm": arm, "method": method, "learning_rate": rate, "domain": domain, "kind": kind}
                        rows.append({**keys, **scores, **losses, "chosen": rate == chosen})
    return tidy("learning_rate", pd.DataFrame(rows))


@cache
def _tables(replicates: int, further: int, seed: int) -> dict[str, pd.DataFrame]:
    generator = np.random.default_rng(seed)
    noise, runs, base = Noise(generator, replicates), planned_runs(replicates, further), example_tables(replicates, seed)
    scores = [noise.shares_of_items(_scores(run), run) for run in runs]
    main = [number for number, run in enumerate(runs) if run.is_main]
    streamed = {
        "accuracy": _accuracy(runs, scores),
        "curves": _curves([run for run in runs if run.order == MAIN], noise),
        "items": _items([runs[number] for number in main], [scores[number] for number in main], generator),
        "chance": _chance(replicates),
    } | dict(_costs(runs, base))
    made = {"inference": _inference(replicates, further, generator), "learning_rate": _learning_rate(), "metrics": _metrics(streamed)}
    return {name: base[name] for name in ("conversion", "overlap")} | streamed | made


def _chance(replicates: int) -> pd.DataFrame:
    rows = [(seed, domain, kind, 0.1) for seed in range(replicates) for domain in DOMAINS for kind in ITEMS]
    return pd.DataFrame(rows, columns=["seed", "domain", "kind", "value"])


def _metrics(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The study's own metrics, arm by arm: a run then looks for its curve among few rows."""
    accuracy, curves = (tables[name].astype(dict.fromkeys(TEXT, object)) for name in ("accuracy", "curves"))
    chance = chance_scores(tables["chance"])
    metrics = pd.concat([metrics_table(rows, curves[curves["arm"] == arm], chance) for arm, rows in accuracy.groupby("arm")])
    metrics = pd.concat([metrics, joint_efficiency_rows(metrics, tables["cost"])], ignore_index=True)
    return metrics.astype(dict.fromkeys(set(TEXT) & set(metrics) | {"metric"}, str))


def example_streams(replicates: int = 6, further: int = 3, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Every table but `tests`, by name; what is not the main protocol is there for the first `further` replicates only."""
    return {name: table.copy() for name, table in _tables(replicates, further, seed).items()}
