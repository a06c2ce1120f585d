r"""How far orthogonal LoRA keeps out of what it protects, as the paper says it (paper, section On a sparse base).

Read from stage_measures.csv over the stages of the main length after the first, which has nothing to protect yet. Keys begin with
`protection/`.
"""

import pandas as pd

from sparsecl.number_formats import points, rate
from sparsecl.paper_arms import REFERENCE
from sparsecl.paper_samples import formatted
from sparsecl.paper_values_drift import mean_of
from sparsecl.paper_values_probes import MEAN
from sparsecl.protocol import ORDER, main_protocol

METHOD = "orthogonal-lora"
ARMS = (REFERENCE, "S1-2of4")
MEASURES = {"component": "protected_component", "share": "protected_share"}  # by key: shares of the update, of the input directions


def protection_names() -> list[str]:
    """The registered keys of this module, without their part."""
    means = [f"protection/{arm}/{name}/{statistic}" for arm in ARMS for name in MEASURES for statistic in MEAN]
    return means + [f"protection/{arm}/largest_component" for arm in ARMS]


def protection_values(measures: pd.DataFrame, stage_steps: int) -> dict[str, str | None]:
    """Means over stages and replicates, in percent, and the largest share of any applied update that lies inside the subspace."""
    values: dict[str, str | None] = {}
    for arm in ARMS if len(measures) else ():
        rows = main_protocol(measures[measures["arm"] == arm], METHOD, ORDER, stage_steps)
        found = {name: rows[rows["measure"] == measure] for name, measure in MEASURES.items()}
        for name, here in found.items():
            values |= formatted(mean_of(here), points, f"protection/{arm}/{name}", signed=False)
        if len(found["component"]):
            values[f"protection/{arm}/largest_component"] = rate(float(f"{found['component']['value'].astype(float).max():.1g}"))
    return values
