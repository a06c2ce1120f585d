"""Planted metrics of methods on arms at several stage lengths, for tests of hypotheses about methods (H5). The numbers are invented."""

import itertools

import numpy as np
import pandas as pd

STAGE_STEPS, LENGTHS = 80, (20, 40, 80)
BETTER = 0.15
RUNS = {"D1": (1.0, 0.0), "D1:lora": (1.6, 0.0), "D1:activation-mask": (1.3, BETTER)}


def learned(steps, slowness):
    return 0.1 + 0.8 * (1 - np.exp(-steps / (40 * slowness)))


def rows_of(run, seed, steps, values, order="main"):
    arm, _, method = run.partition(":")
    method = method or "full"
    keys = {"arm": arm, "topology": "", "algorithm": "", "density": 1.0, "method": method, "order": order, "stage_steps": steps}
    keys |= {"base": str(seed), "seed": seed, "domain": "", "kind": "all"}
    return [{**keys, "metric": metric, "value": value} for metric, value in values.items()]


def metrics_of(runs=RUNS, noise=0.01, replicates=5, frontier=4, seed=0, lengths=LENGTHS):
    """metrics.csv of runs that map to (slowness, points kept beyond a common frontier).

    On the common frontier who learns less forgets less and even keeps a little more: final = 0.3 - own / 4.
    """
    generator, rows = np.random.default_rng(seed), []
    for replicate, (run, (slowness, kept)) in itertools.product(range(replicates), runs.items()):
        for steps in lengths if replicate < frontier else (STAGE_STEPS,):
            own = learned(steps, slowness) + generator.normal(0, noise)
            final = 0.3 - own / 4 + kept + generator.normal(0, noise)
            rows += rows_of(run, replicate, steps, {"own": own, "final": final, "forgetting": own - final})
    return pd.DataFrame(rows)
