"""Planted tables of the parts `implicit` and `moe` of the paper: those of `example_probes` with costs, rates and tests beside.

The numbers are invented. Everything that the two studies measure is there, so that what the paper prints can be held against
a second computation before they are published.
"""

from functools import cache

import numpy as np
import pandas as pd
from example_probes import ON_SPARSE, PLANTED_METHODS, STAGE_STEPS, example_probes

from sparsecl.preregistration import load_preregistration
from sparsecl.tables import tidy
from sparsecl.verdict import compute_verdicts, tests_table

STUDIES = {"implicit": "builtin-implicit", "moe": "builtin-moe"}
REPLICATES = 5  # as registered


def _streams() -> list[tuple[str, str]]:
    return [*(("D1", method) for method in PLANTED_METHODS), *(("S1-2of4", method) for method in ON_SPARSE)]


def costs(generator: np.random.Generator) -> dict[str, pd.DataFrame]:
    """cost.csv and timings.csv of the streams of the main length; those of another length have a job of their own."""
    cost, timings = [], []
    for number, (arm, method) in enumerate(_streams()):
        for seed in (*range(REPLICATES), "validation"):
            for job in ("03_continual", "03_continual/main/25"):
                keys = {"arm": arm, "method": method, "seed": seed, "job": job}
                tokens = {"tokens": 100_000, "flops_dense": 10**12, "flops_sparse": 8 * 10**11}
                cost.append({**keys, **tokens, "trainable": 40_000 + 1_000 * number, "masked": 20_000 if arm.startswith("S") else 0})
                measured = {"wall_s": 30 + number + generator.uniform(0, 4), "peak_memory_bytes": int(8e8 + generator.integers(0, 10**8))}
                timings.append({**keys, **measured, "device": "cpu", "dtype": "float32"})
    return {"cost": tidy("cost", cost), "timings": tidy("timings", timings)}


def learning_rates() -> pd.DataFrame:
    rows = []
    for arm, method in _streams():
        for rate in (1e-3, 2e-3):
            keys = {"arm": arm, "method": method, "learning_rate": rate, "domain": "code", "kind": "all"}
            rows.append(
                {**keys, "own": 0.5, "final": 0.4, "nll_own": 1.0, "nll_final": 1.2, "chosen": rate == (2e-3 if method == "lora" else 1e-3)}
            )
    return pd.DataFrame(rows)


def general_retention(metrics: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The measure of general text, whose kind has a name of its own."""
    rows = metrics[metrics["metric"] == "retention"]
    return rows.assign(metric="general_retention", kind="ability", value=0.6 + generator.normal(0, 0.05, len(rows)))


def masks_on_sparse(generator: np.random.Generator, masks: pd.DataFrame) -> pd.DataFrame:
    """The mask's selections on the sparse arm, a little more alike."""
    rows = masks[masks["method"] == "activation-mask"]
    return rows.assign(arm="S1-2of4", value=rows["value"] + 0.05 + generator.normal(0, 0.01, len(rows)))


def with_gaps(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """In single replicates a domain whose halves do not agree, a gradient that is not measured, and a pair without numbers."""
    overlap, gradients = tables["overlap"].copy(), tables["gradients"].copy()
    pair = {name: (table["layer"] == 1) & (table["domain_a"] == "code") & (table["domain_b"] == "math") for name, table in tables.items()
            if name in ("overlap", "gradients")}  # fmt: skip
    unstable = pair["overlap"] & (overlap["arm"] == "D0") & (overlap["seed"] == 1)
    overlap.loc[unstable, "ceiling"] = overlap.loc[unstable, "null"] + 0.03
    absent = pair["overlap"] & (overlap["arm"] == "S1-2of4") & (overlap["selection"] == "frequency") & (overlap["seed"] == 2)
    overlap.loc[absent, ["value", "null_label", "p_label", "ceiling"]] = np.nan
    weak = pair["gradients"] & (gradients["arm"] == "D1") & (gradients["measure"] == "cosine") & (gradients["seed"] == 3)
    gradients.loc[weak, "ceiling"] = 0.05
    assert unstable.sum() and absent.sum() and weak.sum()
    return tables | {"overlap": overlap, "gradients": gradients}


@cache
def _tables() -> dict[str, pd.DataFrame]:
    generator = np.random.default_rng(7)
    tables = with_gaps(example_probes(REPLICATES))
    tables["metrics"] = pd.concat([tables["metrics"], general_retention(tables["metrics"], generator)], ignore_index=True)
    tables["update_masks"] = pd.concat([tables["update_masks"], masks_on_sparse(generator, tables["update_masks"])], ignore_index=True)
    tables |= costs(generator) | {"learning_rate": learning_rates()}
    registration = load_preregistration(STUDIES["implicit"])
    about = {"probes": tables, "stage_steps": STAGE_STEPS}
    return tables | {"tests": tests_table(tables["metrics"], registration, None, tables["accuracy"], **about)}


def example_implicit() -> dict[str, pd.DataFrame]:
    """All tables by name, tests.csv of the registration among them."""
    return {name: table.copy() for name, table in _tables().items()}


def example_verdicts() -> dict:
    """The verdicts that the registered analysis gives on these tables."""
    tables, registration = _tables(), load_preregistration(STUDIES["implicit"])
    about = {"probes": tables, "stage_steps": STAGE_STEPS}
    return compute_verdicts(tables["metrics"], registration, tables["accuracy"], **about)
