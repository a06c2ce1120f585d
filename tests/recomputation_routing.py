"""The use of experts as the paper prints it, a second time from routing.csv alone.

For `test_paper_implicit`. Nothing here imports `sparsecl`. A state is an arm before fine-tuning, or `D1` after a method's stream.
"""

from collections.abc import Mapping
from statistics import fmean

import pandas as pd
from recomputation import rows
from recomputation_printed import DASH, Cell, Number, Numbers, Row, differences, number_cell, paired_differences
from recomputation_probes import Measured, by_replicate, in_every_replicate, mean_numbers, number, share_cell
from recomputation_runs import LABELS, METHODS

PAIRS = {"jsd": "jsd", "same-tokens": "jsd/same-tokens", "top_p_jaccard": "top_p_jaccard", "coactivation": "coactivation"}
NEEDED = ("value", "null_label")  # of a cell that is counted
ALONE = ("specialisation_max", "load_maxvio", "entropy", "shared_gate")
STATES = {"D0": ("D0", ""), "D1": ("D1", ""), **{f"{'D1' if m == 'full' else 'D1:' + m}-after": ("D1", m) for m in METHODS["moe"]["D1"]}}


def state(routing: pd.DataFrame, name: str) -> dict[str, list[Measured]]:
    """Rows of a state by measure: before fine-tuning, or after the last stage."""
    arm, method = STATES[name]
    last = max(map(int, routing["stage"])) if method else 0
    found: dict[str, list[Measured]] = {}
    for row in rows(routing):
        if (row.arm, row.method, int(row.stage)) == (arm, method, last):
            levels = {column: number(getattr(row, column)) for column in ("value", "null_label", "ceiling")}
            cell = (int(row.layer), row.domain_a, row.domain_b)
            found.setdefault(row.measure, []).append(Measured(row.seed, cell, levels, number(row.p_label), levels["value"]))
    return found


def routing(table_: pd.DataFrame) -> Numbers:
    found: Numbers = {}
    states = {name: state(table_, name) for name in STATES}
    for name, of in states.items():
        for measure in (*PAIRS, *ALONE):
            cells, prefix = of.get(PAIRS.get(measure, measure), []), f"routing/{name}/{measure}"
            found |= mean_numbers(prefix, by_replicate((cell.seed, cell.share) for cell in cells), "nats")
            for level in ("null_label", "ceiling"):
                values = [cell.levels[level] for cell in cells if cell.levels[level] == cell.levels[level]]
                found |= {f"{prefix}/{level}": Number(fmean(values), "nats")} if values else {}
                if level == "null_label" and values and measure in PAIRS:
                    count, beyond = in_every_replicate(cells, lambda levels, m=measure: is_beyond(levels, m), NEEDED)
                    found |= {f"{prefix}/cells": Number(count, "count"), f"{prefix}/beyond_label_null": Number(beyond, "count")}
    for name, (_, method) in STATES.items():
        for other, label in (("D1", "before"), ("D1-after", "D1-after")):
            if method and other != name:
                found |= changes(states[name], states[other], f"routing/{name}-minus-{label}")
    return found


def is_beyond(levels: Mapping[str, float], measure: str) -> bool:
    higher = measure in ("jsd", "same-tokens")
    return levels["value"] > levels["null_label"] if higher else levels["value"] < levels["null_label"]


def changes(ours: Mapping[str, list[Measured]], theirs: Mapping[str, list[Measured]], prefix: str) -> Numbers:
    found: Numbers = {}
    for measure in (*PAIRS, *ALONE):
        means = []
        for of in (ours, theirs):
            seeds: dict[str, list[float]] = {}
            for cell in of.get(PAIRS.get(measure, measure), []):
                seeds.setdefault(cell.seed, []).append(cell.share)
            means.append({seed: fmean(values) for seed, values in seeds.items()})
        found |= paired_differences(f"{prefix}/{measure}", differences(*means), "nats")
    return found


def routing_table(table_: pd.DataFrame) -> list[Row]:
    found: list[Row] = []
    states = {name: state(table_, name) for name, (arm, _) in STATES.items() if arm == "D1"}
    for layer in sorted(set(map(int, table_["layer"]))):
        first = True
        for name, of in states.items():
            here = {measure: [cell for cell in cells if cell.cell[0] == layer] for measure, cells in of.items()}
            if any(here.values()):
                method = STATES[name][1]
                found.append([str(layer) if first else "", LABELS[method] if method else "before", *_routing_cells(here)])
                first = False
    return found


def _routing_cells(here: Mapping[str, list[Measured]]) -> Row:
    cells = here["jsd"]
    mean = share_cell(by_replicate((cell.seed, cell.share) for cell in cells))
    value = mean if isinstance(mean, str) else Cell(mean.frame, tuple(n._replace(form="nats") for n in mean.numbers))
    levels = [number_cell(fmean(cell.levels[name] for cell in cells), "nats") for name in ("null_label", "ceiling")]
    count, beyond = in_every_replicate(cells, lambda levels: is_beyond(levels, "jsd"), NEEDED)
    names = ("jsd/same-tokens", "top_p_jaccard", "coactivation", "specialisation_max", "shared_gate")
    means = [[cell.share for cell in here.get(name, [])] for name in names]
    return [value, *levels, f"{beyond} of {count}", *(number_cell(fmean(of), "nats") if of else DASH for of in means)]
