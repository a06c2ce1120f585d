r"""The LaTeX table of expert routing, by layer and state (paper, section Results on a model with experts)."""

import pandas as pd

from sparsecl.latex_tables import interval_cell, tabular
from sparsecl.methods import METHODS
from sparsecl.number_formats import nats
from sparsecl.paper_arms import REFERENCE
from sparsecl.paper_values_drift import mean_of
from sparsecl.paper_values_routing import beyond_labels, state_rows, states

MEASURES = ("jsd/same-tokens", "top_p_jaccard", "coactivation", "specialisation_max", "shared_gate")


def routing_table(routing: pd.DataFrame | None) -> str | None:
    """Divergence with its nulls, and what stands beside it, by layer before and after fine-tuning of the dense arm."""
    if routing is None or routing.empty:
        return None
    shown = [(method, state_rows(routing, arm, method)) for _, arm, method in states() if arm == REFERENCE]
    rows: list = []
    for layer in sorted(routing["layer"].unique()):
        rows += [r"\addlinespace"] if rows else []
        here = [(method, found[found["layer"] == layer]) for method, found in shown]
        lines = [_row(method, found) for method, found in here if len(found)]
        rows += [[str(layer) if number == 0 else "", *line] for number, line in enumerate(lines)]
    above = r" & & \multicolumn{4}{c}{divergence of two domains} & same & top-$p$ & co- & special- & shared"
    below = [
        "layer",
        "state",
        r"value, 95\,\% interval",
        "labels",
        "halves",
        "beyond",
        "tokens",
        "Jaccard",
        "activation",
        "isation",
        "gate",
    ]
    heading = f"{above} \\\\ \\cmidrule(lr){{3-6}}\n{' & '.join(below)} \\\\"
    return tabular("@{}llccccccccc@{}", heading, rows) if rows else None


def _row(method: str, rows: pd.DataFrame) -> list[str | None]:
    diverging = rows[rows["measure"] == "jsd"]
    levels = [nats(diverging[name].astype(float).mean()) for name in ("null_label", "ceiling")]
    cells, beyond = beyond_labels(diverging, "jsd")
    others = [nats(rows.loc[rows["measure"] == name, "value"].mean()) for name in MEASURES]
    label = METHODS[method].label if method else "before"
    return [label, interval_cell(mean_of(diverging), nats), *levels, f"{beyond} of {cells}", *others]
