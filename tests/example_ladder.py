"""Planted tables of the probes over a ladder of widths, for tests of the trend with scale (H4). The numbers are invented."""

from itertools import combinations

import numpy as np
import pandas as pd

LADDER = {"Dw-32": 32, "Dw-64": 64, "D0": 128, "Dw-256": 256}
DOMAINS = ("code", "math", "medical", "dialogue")
PAIRS = tuple(combinations(DOMAINS, 2))
LABELS = 0.85  # where domains do not differ, as a share of the way from chance to the ceiling


def _cells(modules=("",)):
    """A fixed effect of every cell, so that cells differ as those of real models do; its mean is 0."""
    cells = [(layer, module, *pair) for layer in range(2) for module in modules for pair in PAIRS]
    return dict(zip(cells, np.linspace(-0.06, 0.06, len(cells)), strict=True))


def levels(slope, level=0.3):
    """A mean by arm that changes by `slope` with each doubling; `level` is that of D0."""
    return {arm: level + slope * np.log2(width / LADDER["D0"]) for arm, width in LADDER.items()}


def overlap_table(means, replicates=5, noise=0.02, seed=0, selection="magnitude", top_fraction=0.1):
    """overlap.csv whose normalised overlap has the given mean by arm; chance and ceiling change with the width."""
    generator, rows = np.random.default_rng(seed), []
    for replicate in range(replicates):
        for arm, mean in means.items():
            null, ceiling = 0.05 + 1 / LADDER[arm], 0.9 - 4 / LADDER[arm]
            shared = generator.normal(0, noise)
            for (layer, _, a, b), effect in _cells().items():
                normalised = mean + effect + shared + generator.normal(0, noise)
                numbers = {"value": null + normalised * (ceiling - null), "null_label": null + LABELS * (ceiling - null)}
                keys = {"arm": arm, "seed": replicate, "layer": layer, "domain_a": a, "domain_b": b}
                keys |= {"selection": selection, "top_fraction": top_fraction}
                rows.append({**keys, **numbers, "null": null, "p_label": 0.01 if normalised < LABELS else 0.5, "ceiling": ceiling})
    return pd.DataFrame(rows)


def reliability(arm):
    """Split-half cosine of one domain's mean gradient: the noise of finite batches grows with the number of parameters."""
    return {"Dw-32": 0.9, "Dw-64": 0.8, "D0": 0.6, "Dw-256": 0.4}[arm]


def gradient_table(means, replicates=5, noise=0.02, seed=1):
    """gradients.csv whose disattenuated cosine has the given mean by arm; the raw one shrinks with the width beside."""
    generator, rows = np.random.default_rng(seed), []
    for replicate in range(replicates):
        for arm, mean in means.items():
            parameters, ceiling = 4 * LADDER[arm] ** 2, reliability(arm)
            shared = generator.normal(0, noise)
            for (layer, module, a, b), effect in _cells(("attention", "ffn")).items():
                cosine = mean + effect + shared + generator.normal(0, noise)
                keys = {"arm": arm, "seed": replicate, "layer": layer, "module": module, "domain_a": a, "domain_b": b, "measure": "cosine"}
                numbers = {"value": cosine * ceiling, "null": parameters**-0.5, "null_label": LABELS * ceiling, "p_label": 0.01}
                rows.append({**keys, **numbers, "ceiling": ceiling, "parameters": parameters, "effective_dimension": parameters / 10})
    return pd.DataFrame(rows)


def probes(overlap_slope, gradient_slope, noise=0.02, seed=0, level=0.3):
    """Both tables, with planted slopes per doubling of the width."""
    return {
        "overlap": overlap_table(levels(overlap_slope, level), noise=noise, seed=seed),
        "gradients": gradient_table(levels(gradient_slope, level), noise=noise, seed=seed + 1),
    }
