r"""The paper's numbers about the use of experts (paper, section Results on a model with experts).

A state is an arm before fine-tuning, or the dense arm at the end of a method's stream. Keys begin with `routing/`.
"""

from collections.abc import Iterator, Mapping

import pandas as pd

from sparsecl.methods import FULL
from sparsecl.number_formats import count, nats
from sparsecl.paper_arms import REFERENCE
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, contrast_name, difference, formatted
from sparsecl.paper_values_drift import mean_of
from sparsecl.paper_values_probes import MEAN
from sparsecl.paper_values_runs import METHODS_OF, run_name

PART = "moe"
DIVERGENCES = {"jsd": "jsd", "same-tokens": "jsd/same-tokens"}  # high where domains differ
SIMILARITIES = {"top_p_jaccard": "top_p_jaccard", "coactivation": "coactivation"}  # low there
PAIRED = DIVERGENCES | SIMILARITIES
ALONE = ("specialisation_max", "load_maxvio", "entropy", "shared_gate")  # measures of one domain, or of general text
COUNTS = ("cells", "beyond_label_null")
CELL = ["layer", "domain_a", "domain_b"]
BEFORE = ""  # the method of a model that has not been fine-tuned


def states() -> Iterator[tuple[str, str, str]]:
    """Name, arm and method: the bases, then the dense arm after every method."""
    yield from ((arm, arm, BEFORE) for arm in ("D0", REFERENCE))
    yield from ((f"{run_name(REFERENCE, method)}-after", REFERENCE, method) for method in METHODS_OF[PART][REFERENCE])


def routing_names() -> list[str]:
    """The registered keys of this module, without their part."""
    named = [name for name, _, _ in states()]
    changes = [contrast_name(name, "before") for name, _, method in states() if method]
    changes += [contrast_name(name, f"{run_name(REFERENCE, FULL)}-after") for name, _, method in states() if method not in (BEFORE, FULL)]
    return [
        *(f"routing/{state}/{measure}/{name}" for state in named for measure in (*PAIRED, *ALONE) for name in MEAN),
        *(f"routing/{state}/{measure}/{name}" for state in named for measure in PAIRED for name in ("null_label", "ceiling", *COUNTS)),
        *(f"routing/{state}/specialisation_max/null_label" for state in named),
        *(f"routing/{change}/{measure}/{s}" for change in changes for measure in (*PAIRED, *ALONE) for s in DIFFERENCE_STATISTICS),
    ]


def routing_values(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """All values of this module."""
    values: dict[str, str | None] = {}
    if (routing := tables.get("routing")) is None or routing.empty:
        return values
    rows_of = {name: state_rows(routing, arm, method) for name, arm, method in states()}
    for state, rows in rows_of.items():
        for measure in (*PAIRED, *ALONE):
            values |= _state_values(f"routing/{state}/{measure}", rows[rows["measure"] == PAIRED.get(measure, measure)], measure)
    full = f"{run_name(REFERENCE, FULL)}-after"
    for state, _, method in states():
        for other, name in ((REFERENCE, "before"), (full, full)):
            if method and other != state:
                values |= _changes(rows_of[state], rows_of[other], f"routing/{contrast_name(state, name)}")
    return values


def state_rows(routing: pd.DataFrame, arm: str, method: str) -> pd.DataFrame:
    """Rows of one arm before fine-tuning, or after the last stage of a method."""
    rows = routing[(routing["arm"] == arm) & (routing["method"].fillna("") == method)]
    rows = rows[rows["stage"] > 0] if method else rows[rows["stage"] == 0]
    return rows[rows["stage"] == rows["stage"].max()]


def beyond_labels(rows: pd.DataFrame, measure: str) -> tuple[int, int]:
    """Cells that have a value and a label null in every replicate, and those in which every replicate differs more than exchanged
    labels do in the mean: above for divergences, below for similarities."""
    beyond = rows["value"] > rows["null_label"] if measure in DIVERGENCES else rows["value"] < rows["null_label"]
    known = rows[["value", "null_label"]].notna().all(axis="columns")
    cells = rows.assign(known=known, beyond=beyond).groupby(CELL)[["known", "beyond"]].all().query("known")
    return len(cells), int(cells["beyond"].sum())


def _state_values(prefix: str, rows: pd.DataFrame, measure: str) -> dict[str, str | None]:
    if rows.empty:
        return {}
    values = formatted(mean_of(rows), nats, prefix, signed=False)
    if measure in PAIRED:
        values |= {f"{prefix}/{name}": nats(rows[name].astype(float).mean()) for name in ("null_label", "ceiling")}
        if rows["null_label"].notna().any():
            values |= {f"{prefix}/{name}": count(n) for name, n in zip(COUNTS, beyond_labels(rows, measure), strict=True)}
    if measure == "specialisation_max":
        values[f"{prefix}/null_label"] = nats(rows["null_label"].astype(float).mean())
    return values


def _changes(rows: pd.DataFrame, others: pd.DataFrame, prefix: str) -> dict[str, str | None]:
    """How a state differs from another of the same replicates, mean over layers and pairs or domains."""
    values = {}
    for measure in (*PAIRED, *ALONE):
        ours, theirs = (table[table["measure"] == PAIRED.get(measure, measure)].groupby("seed")["value"].mean() for table in (rows, others))
        values |= formatted(difference((ours - theirs).dropna()), nats, f"{prefix}/{measure}", signed=True)
    return values
