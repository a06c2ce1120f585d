"""Seeded tables of the probes and of the methods that use them, for tests of figures, values and verdicts.

Every number follows a planted law with little noise, so that tests can say what a figure must show: `planted_overlap` and
`planted_cosine` are the normalised quantities, `PLANTED_METHODS` own score, forgetting and drift. The numbers are invented.
"""

from collections.abc import Iterator
from functools import cache
from itertools import combinations

import numpy as np
import pandas as pd

from sparsecl.arms import parse_arm
from sparsecl.tables import tidy

DOMAINS = ("code", "math", "medical", "dialogue")
PAIRS = tuple(combinations(DOMAINS, 2))
LAYERS = (0, 1)
WIDTHS = {"Dw-32": 32, "Dw-64": 64, "D0": 128, "Dw-256": 256}
PROBED = ("D0", "D1", "S1-2of4", "Dw-32", "Dw-64", "Dw-256")
FRACTIONS = {0.01: 0.006, 0.05: 0.026, 0.1: 0.053}  # chance IoU
SELECTIONS = {"magnitude": 0.55, "frequency": 0.5, "contrast": 0.3, "magnitude/same-tokens": 0.7}  # normalised overlap at width 128
SHARED_LABELS = ("math", "medical")  # the one pair that is not below the null of permuted labels
TREND, SPARSE, DEEPER = -0.06, -0.08, 0.1  # of the normalised overlap: a doubling of the width, a sparse arm, a layer
MODULES = {"attention": 0.45, "ffn": 0.3}  # cosine over its ceiling at width 128
COSINE_CEILING = 0.8
EXPERT_LAYERS, FULL_ATTENTION = (0, 1, 2, 3), (3,)
JSD_LEVELS = {"null_label": 0.03, "p_label": 0.01, "ceiling": 0.02}
ABSENT_LEVELS = dict.fromkeys(JSD_LEVELS)
ROUTED = ("full", "lora", "activation-mask")
STAGE_STEPS, LENGTHS = 100, (25, 50, 200)
# Own score on D1, points forgotten there, displacement at the last stage.
PLANTED_METHODS = {
    "full": (0.82, 0.50, 0.60), "lora": (0.74, 0.42, 0.45), "replay": (0.80, 0.20, 0.50), "ewc": (0.72, 0.30, 0.30),
    "activation-mask": (0.60, 0.28, 0.28), "activation-mask-random": (0.55, 0.26, 0.33), "activation-mask-branch": (0.62, 0.30, 0.25),
    "orthogonal-lora": (0.70, 0.25, 0.22), "o-lora": (0.71, 0.36, 0.40), "osf": (0.76, 0.24, 0.20),
}  # fmt: skip
ON_SPARSE = ("full", "activation-mask", "orthogonal-lora")
MASKED = {"activation-mask": 0.35, "activation-mask-random": 0.14, "activation-mask-branch": 0.4}  # IoU of two domains' selected units
CHANCE_IOU = 0.14


def planted_overlap(arm: str, selection: str, layer: int) -> float:
    """Normalised overlap of the mean pair, the same at every fraction."""
    widened = TREND * (np.log2(WIDTHS.get(arm, 128)) - 7)
    return SELECTIONS[selection] + widened + DEEPER * layer + (SPARSE if arm.startswith("S") else 0)


def planted_cosine(arm: str, module: str, layer: int) -> float:
    """Cosine of the mean pair over its ceiling: it does not change with the width."""
    return MODULES[module] + DEEPER * layer + (SPARSE if arm.startswith("S") else 0)


def _pair_effect(number: int) -> float:
    """What a pair departs from the mean pair; sums to 0 over the pairs."""
    return 0.03 * (number - (len(PAIRS) - 1) / 2)


def _cells(generator: np.random.Generator, replicates: int) -> Iterator[tuple[dict, float]]:
    """Keys of every (arm, seed, layer, pair), and what its quantities depart from the plan."""
    for arm in PROBED:
        for seed in range(replicates):
            of_replicate = generator.normal(0, 0.02)
            for layer in LAYERS:
                for number, (a, b) in enumerate(PAIRS):
                    yield {"arm": arm, "seed": seed, "layer": layer, "domain_a": a, "domain_b": b}, of_replicate + _pair_effect(number)


def overlap(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    rows = []
    for keys, departure in _cells(generator, replicates):
        below = (keys["domain_a"], keys["domain_b"]) != SHARED_LABELS
        for selection in SELECTIONS:
            share = planted_overlap(keys["arm"], selection, keys["layer"]) + departure + generator.normal(0, 0.01)
            for fraction, null in FRACTIONS.items():
                ceiling = 0.75 + 0.5 * fraction
                values = {
                    "value": null + share * (ceiling - null), "null": null, "null_label": ceiling - 0.05,
                    "p_label": 0.01 if below else 0.4, "ceiling": ceiling,
                }  # fmt: skip
                rows.append({**keys, "selection": selection, "top_fraction": fraction, **values})
    return tidy("overlap", rows)


def gradients(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    rows = []
    for keys, departure in _cells(generator, replicates):
        width = WIDTHS.get(keys["arm"], 128)
        for module in MODULES:
            parameters = {"attention": 3, "ffn": 6}[module] * width**2
            sizes = {"parameters": parameters, "effective_dimension": parameters**0.5}
            cosine = planted_cosine(keys["arm"], module, keys["layer"]) + departure
            measures = {
                "cosine": (COSINE_CEILING * cosine, 1 / parameters**0.5, 0.75 * COSINE_CEILING, COSINE_CEILING),
                "top_support": (0.053 + 0.5 * cosine, 0.053, 0.5, 0.6),
                "subspace": (0.1 + 0.6 * cosine, 4 / width**2, 0.6, 0.75),
                "largest_angle": (1.5 - 0.6 * cosine, None, 0.9, 0.8),
            }
            for measure, (value, null, label, ceiling) in measures.items():
                levels = {"null": null, "null_label": label, "p_label": 0.01, "ceiling": ceiling}
                found = {"measure": measure, "value": value + generator.normal(0, 0.005)}
                rows.append({**keys, "module": module, **found, **levels, **sizes})
    return tidy("gradients", rows)


def planted_divergence(layer: int, method: str) -> float:
    """Divergence of the mean pair: largest in the middle layers, and raised by fine-tuning."""
    return 0.2 + 0.15 * (layer in (1, 2)) + {"": 0.0, "full": 0.1, "lora": 0.05, "activation-mask": 0.02}[method]


def routing(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    rows = []
    states = [("D0", ""), ("D1", ""), *(("D1", method) for method in ROUTED)]
    for (arm, method), seed, layer in ((state, seed, layer) for state in states for seed in range(replicates) for layer in EXPERT_LAYERS):
        keys = {"arm": arm, "method": method, "seed": seed, "stage": len(DOMAINS) if method else 0, "layer": layer}
        diverged = planted_divergence(layer, method)
        for number, (a, b) in enumerate(PAIRS):
            here = diverged + _pair_effect(number)
            pairs = {"jsd": here, "jsd/same-tokens": here / 2, "top_p_jaccard": 0.9 - here, "coactivation": 0.8 - here}
            for measure, value in pairs.items():
                found = {"measure": measure, "value": value + generator.normal(0, 0.005)}
                rows.append({**keys, "domain_a": a, "domain_b": b, **found, **(JSD_LEVELS if measure.startswith("jsd") else ABSENT_LEVELS)})
        for number, domain in enumerate(DOMAINS):
            for measure, value in {"specialisation_max": 1.5 + 2 * diverged, "entropy": 0.9 - diverged, "shared_gate": 0.4}.items():
                found = {"measure": measure, "value": value + 0.02 * (number - 1.5) + generator.normal(0, 0.005)}
                levels = ABSENT_LEVELS | ({"null_label": 1.3, "p_label": 0.01} if measure == "specialisation_max" else {})
                rows.append({**keys, "domain_a": domain, "domain_b": "", **found, **levels})
            for expert in range(len(DOMAINS)):  # each domain has its own, in another place in every replicate
                found = {"measure": f"load/{expert}", "value": 0.7 if expert == (number + seed) % len(DOMAINS) else 0.1}
                rows.append({**keys, "domain_a": domain, "domain_b": "", **found, **ABSENT_LEVELS})
        found = {"measure": "load_maxvio", "value": 0.5 + diverged + generator.normal(0, 0.02)}
        rows.append({**keys, "domain_a": "general", "domain_b": "", **found, **ABSENT_LEVELS})
    return tidy("routing", rows)


def _lengths(method: str, arm: str) -> tuple[int, ...]:
    """Stage lengths of a stream: all methods on D1, full fine-tuning on the sparse arm too."""
    return (*LENGTHS, STAGE_STEPS) if arm == "D1" or method == "full" else (STAGE_STEPS,)


def streams() -> list[tuple[str, str, int]]:
    """(arm, method, stage_steps) of every stream."""
    named = [("D1", method) for method in PLANTED_METHODS] + [("S1-2of4", method) for method in ON_SPARSE]
    return [(arm, method, steps) for arm, method in named for steps in _lengths(method, arm)]


def seeds_of(steps: int, replicates: int) -> range:
    """Other stage lengths run in fewer replicates than the main one."""
    return range(replicates if steps == STAGE_STEPS else max(replicates - 1, 1))


def planted_stream(arm: str, method: str, steps: int) -> tuple[float, float, float]:
    """Own score, forgetting and displacement; shorter stages learn, forget and move less."""
    own, forgetting, drift = PLANTED_METHODS[method]
    sparse = arm.startswith("S")
    learned = (1 - np.exp(-steps / 40)) / (1 - np.exp(-STAGE_STEPS / 40))
    return (own - 0.04 * sparse) * learned, (forgetting - 0.1 * sparse) * (steps / STAGE_STEPS) ** 0.5, drift * (steps / STAGE_STEPS) ** 0.4


def drift(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    rows = []
    for arm, method, steps in streams():
        moved = planted_stream(arm, method, steps)[2]
        measures = {"displacement": 1.0, "cka_distance": 0.5, "cka_distance_without_top": 0.8, "largest_angle": 1.5, "grassmann": 2.0}
        floors = {"largest_angle": 0.045, "grassmann": 0.06}  # of subspaces alone
        for seed in seeds_of(steps, replicates):
            run = {"arm": arm, "method": method, "order": "main", "stage_steps": steps, "seed": seed}
            for stage, domain in enumerate(DOMAINS, start=1):
                for layer in LAYERS:
                    for measure, factor in measures.items():
                        value = factor * (moved * (0.8 + 0.2 * layer) * (stage / len(DOMAINS)) ** 0.5 + generator.normal(0, 0.008))
                        keys = {"stage": stage, "stage_domain": domain, "layer": layer, "measure": measure}
                        rows.append({**run, **keys, "value": value, "null": 0.15 * factor, "floor": floors.get(measure)})
    return tidy("drift", rows)


def stage_measures(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    """What orthogonal LoRA tells of its stages after the first: next to nothing inside its subspace on D1, half of the update on S1."""
    rows = []
    for arm, inside in (("D1", 5e-8), ("S1-2of4", 0.5)):
        runs = ((seed, stage, steps) for steps in (*LENGTHS, STAGE_STEPS) for seed in seeds_of(steps, replicates) for stage in (2, 3, 4))
        for seed, stage, steps in runs:
            keys = {"arm": arm, "method": "orthogonal-lora", "order": "main", "stage_steps": steps, "seed": seed, "stage": stage}
            inside_here = inside * generator.uniform(0.8, 1.2) * (1 if steps == STAGE_STEPS else 3)
            found = {"protected_component": inside_here, "protected_share": 0.2 * stage / 2 + 0.01 * generator.normal(), "full_layers": 0}
            rows += [{**keys, "stage_domain": DOMAINS[stage - 1], "measure": name, "value": value} for name, value in found.items()]
    return tidy("stage_measures", rows)


def update_masks(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    rows = []
    for (method, share), seed, layer in ((item, seed, layer) for item in MASKED.items() for seed in range(replicates) for layer in LAYERS):
        run = {"arm": "D1", "method": method, "order": "main", "stage_steps": STAGE_STEPS, "seed": seed, "layer": layer}
        for stage, domain in list(enumerate(DOMAINS, start=1))[1:]:  # the first collides with nothing
            keys = run | {"stage": stage, "stage_domain": domain}
            for place, earlier in enumerate(DOMAINS[: stage - 1]):
                value = share + 0.1 * layer * (method != "activation-mask-random") + 0.02 * place + generator.normal(0, 0.01)
                rows.append({**keys, "earlier_domain": earlier, "value": value, "null": CHANCE_IOU, "collisions": None})
            before = 1 - (1 - share) ** (stage - 1)
            rows.append({**keys, "earlier_domain": "", "value": None, "null": None, "collisions": before})
    return tidy("update_masks", rows)


def learned_and_lost(generator: np.random.Generator, replicates: int) -> list[tuple[dict, float, float]]:
    """Keys of every run of `streams`, its own score and what it forgets of every domain but the last."""
    found = []
    for arm, method, steps in streams():
        own, forgetting, _ = planted_stream(arm, method, steps)
        for seed in seeds_of(steps, replicates):
            run = parse_arm(arm).columns | {"method": method, "order": "main", "stage_steps": steps, "base": seed, "seed": seed}
            found.append((run, own + generator.normal(0, 0.015), forgetting + generator.normal(0, 0.02)))
    return found


def metrics(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    """metrics.csv over the domains that can be forgotten, of the same runs as `accuracy`."""
    rows = []
    for run, learned, lost in learned_and_lost(generator, replicates):
        values = {"own": learned, "forgetting": lost, "final": learned - lost, "retention": 1 - lost / learned}
        rows += [{**run, "domain": "", "kind": "all", "metric": name, "value": value} for name, value in values.items()]
    return pd.DataFrame(rows)


def accuracy(generator: np.random.Generator, replicates: int) -> pd.DataFrame:
    """A domain rises to `own` at its own stage, and has lost what is lost after the next."""
    rows = []
    for run, learned, lost in learned_and_lost(generator, replicates):
        for stage, trained in enumerate(("", *DOMAINS)):
            for place, domain in enumerate(DOMAINS, start=1):
                score = 0.1 if stage < place else learned - lost * (stage > place)
                keys = {"stage": stage, "stage_domain": trained, "domain": domain, "kind": "all"}
                rows.append({**run, **keys, "score": score, "n": 192, "nll": 4.5 * (1 - score)})
    return tidy("accuracy", rows)


@cache
def _tables(replicates: int, seed: int) -> dict[str, pd.DataFrame]:
    makers = (overlap, gradients, routing, drift, update_masks)
    tables = {make.__name__: make(np.random.default_rng([seed, number]), replicates) for number, make in enumerate(makers)}
    tables["stage_measures"] = stage_measures(np.random.default_rng([seed, len(makers) + 1]), replicates)
    # The same draws behind both, so that metrics are those of the scores.
    return tables | {make.__name__: make(np.random.default_rng([seed, len(makers)]), replicates) for make in (accuracy, metrics)}


def example_probes(replicates: int = 3, seed: int = 0) -> dict[str, pd.DataFrame]:
    """overlap, gradients, routing, drift, update_masks, stage_measures, accuracy and metrics, by name."""
    return {name: table.copy() for name, table in _tables(replicates, seed).items()}
