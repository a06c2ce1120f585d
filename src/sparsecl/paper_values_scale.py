r"""The trend over widths, and the comparison at equal learning, as the paper prints them (paper, part on implicit sparsity).

From tests.csv alone: what the verdicts on H4, H5A and H5B rest on, and what stands beside H4.
"""

from collections.abc import Iterable

import pandas as pd

from sparsecl.equal_own import AT_EQUAL_OWN
from sparsecl.number_formats import nats, points, thousandths
from sparsecl.paper_samples import BESIDE, EQUIVALENCE, formatted
from sparsecl.scale_trend import BELOW_LABELS, LESS_LABELS, SLOPE

SCALE = "H4"
METHODS_HYPOTHESES = ("H5A", "H5B")
QUANTITIES = ("normalised_overlap", "disattenuated_cosine")
RAW = "absolute_cosine"
TRIVIAL = "trivial_cosine"  # 1 / sqrt(parameters), the same in every replicate
RUNGS = {"Dw-32": "32", "Dw-64": "64", "D0": "128", "Dw-256": "256"}  # arm -> width, in a key
BASE = "D0"
OUTCOMES = ("forgetting", "final")
TEST = ("estimate", "ci_low", "ci_high", "p", "p_holm", "tost_p", "n")
MEAN = ("estimate", "ci_low", "ci_high", "n")
AGAINST_LABELS = {BELOW_LABELS: ("estimate", "n"), LESS_LABELS: MEAN}  # a share that is 1 in every replicate has no interval


def scale_names() -> list[str]:
    """The registered keys of this module, without their part."""
    return [
        *(f"scale/{metric}/slope/{name}" for metric in QUANTITIES for name in TEST),
        *(f"scale/{metric}/{width}/{name}" for metric in (*QUANTITIES, RAW) for width in RUNGS.values() for name in MEAN),
        *(f"scale/{RAW}/slope/{name}" for name in MEAN),
        *(f"scale/{TRIVIAL}/{at}/estimate" for at in ("slope", *RUNGS.values())),
        *(f"scale/{metric}/{null}/{name}" for metric in QUANTITIES for null, names in AGAINST_LABELS.items() for name in names),
        *(f"equal_own/{hypothesis}/{metric}/{name}" for hypothesis in METHODS_HYPOTHESES for metric in OUTCOMES for name in (*MEAN, "p")),
    ]


def scale_values(tests: pd.DataFrame, main_contrasts: dict[str, str]) -> dict[str, str | None]:
    """Values by key; slopes and means in hundredths of the distance from chance to ceiling, of raw |cosine| means as they are and
    slopes in powers of 2.

    `main_contrasts` names the main contrast of each hypothesis about methods, as in tests.csv.
    """
    values: dict[str, str | None] = {}
    for metric in QUANTITIES:
        slope = _test(tests, SCALE, SLOPE, metric)
        values |= formatted(slope, points, f"scale/{metric}/slope", signed=True)
        for null, names in AGAINST_LABELS.items():
            found = _test(tests, SCALE + BESIDE, BASE, f"{metric}/{null}", names)
            values |= formatted(found, points, f"scale/{metric}/{null}", signed=null == LESS_LABELS)
    for metric, names in {**dict.fromkeys((*QUANTITIES, RAW), MEAN), TRIVIAL: MEAN[:1]}.items():
        for arm, width in RUNGS.items():
            form = points if metric in QUANTITIES else thousandths
            values |= formatted(_test(tests, SCALE + BESIDE, arm, metric, names), form, f"scale/{metric}/{width}", signed=False)
    for metric, names in {RAW: MEAN, TRIVIAL: MEAN[:1]}.items():
        values |= formatted(_test(tests, SCALE + BESIDE, SLOPE, f"log2_{metric}", names), nats, f"scale/{metric}/slope", signed=True)
    for hypothesis, contrast in main_contrasts.items():
        for metric in OUTCOMES:
            found = _test(tests, hypothesis + AT_EQUAL_OWN, contrast, metric, (*MEAN, "p"))
            values |= formatted(found, points, f"equal_own/{hypothesis}/{metric}", signed=True)
    return values


def _test(tests: pd.DataFrame, hypothesis: str, contrast: str, metric: str, names: Iterable[str] = TEST) -> dict[str, float | None]:
    """One row of tests.csv by the names of its statistics, with the equivalence p; empty where it was not measured."""
    if tests.empty:
        return {}
    rows = tests[(tests["contrast"] == contrast) & (tests["metric"] == metric)].set_index("hypothesis")
    if hypothesis not in rows.index:
        return {}
    row = rows.loc[hypothesis]
    found = {name: row[name] for name in MEAN} | {"p": row["p"], "p_holm": row["p_corrected"]}
    if hypothesis + EQUIVALENCE in rows.index:
        found["tost_p"] = rows.loc[hypothesis + EQUIVALENCE, "p"]
    return {name: value for name, value in found.items() if name in names}
