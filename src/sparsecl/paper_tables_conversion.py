r"""The LaTeX tables of checkpoints before the stream: main arms, topologies, algorithms (paper, sections Method and Results).

Compared arms are summarised over the replicates that made all of them (`sparsecl.comparisons`); a comparison that a study
did not make has no table.
"""

from collections.abc import Callable, Mapping

import pandas as pd

from sparsecl.comparisons import DENSE, ENERGY, ERROR, KEPT, LINEAGES, LOSS, SCORE, Compared, compare
from sparsecl.config import Study
from sparsecl.figure_style import CHECKPOINT_ARMS
from sparsecl.latex_tables import mean_cell, tabular
from sparsecl.number_formats import count, interval, latex_text, nats, points
from sparsecl.paper_samples import Sample, checkpoint_sample

ROLES = {
    "D0": "the base",
    "S0": "immediate loss",
    "S1": "the treatment",
    "D1": "control, same shape",
}


def conversion_table(study: Study, tables: Mapping[str, pd.DataFrame]) -> str | None:
    """The main checkpoints before the stream: what each is, its kept weights, its general score and loss."""
    samples = {name: checkpoint_sample(tables["conversion"], name) for name in (KEPT, SCORE, LOSS)}
    made, rows = {arm.name: arm for arm in study.all_arms()}, []
    for arm in (made[name] for name in CHECKPOINT_ARMS if name in made):
        density = "100" if not arm.is_sparse else points(samples[KEPT].summary(arm.name)["mean"])
        cells = [mean_cell(samples[SCORE].summary(arm.name), points), mean_cell(samples[LOSS].summary(arm.name), nats)]
        rows.append([arm.label, latex_text(arm.description), ROLES.get(arm.lineage, ""), density, *cells])
    heading = ["arm", "what it is", "role", r"kept (\%)", r"general score (\%)", "general loss"]
    return tabular("lllccc", heading, rows)


def _heading(groups: Mapping[str, int], below: list[str]) -> str:
    """A heading of two lines: `groups` span that many columns each, an empty name spans without a rule."""
    above, rules, column = [], [], 1
    for name, width in groups.items():
        above.append(rf"\multicolumn{{{width}}}{{c}}{{{name.strip()}}}")
        rules += [rf"\cmidrule(lr){{{column}-{column + width - 1}}}"] if name.strip() else []
        column += width
    return " & ".join(above) + r" \\ " + "".join(rules) + "\n" + " & ".join(below) + r" \\"


def _cells(compared: Compared, metric: str, form: Callable[..., str | None], choice: str) -> list[str | None]:
    """Mean (sd) at once and after recovery; of D0 and D1 where no choice is named."""
    lineages = LINEAGES if choice else DENSE
    return [mean_cell(Sample(compared.values(metric, name, choice).to_frame("arm")).summary("arm"), form) for name in lineages]


def _difference_to_dense(compared: Compared, choice: str) -> list[str | None]:
    """Paired difference of general loss between S1 and D1, with its interval."""
    wide = pd.DataFrame({"S1": compared.values(LOSS, "S1", choice), "D1": compared.values(LOSS, "D1")})
    found = Sample(wide).paired("S1", "D1")
    return [nats(found["estimate"], True), interval(found["ci_low"], found["ci_high"], nats, True)]


def topologies_table(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """General loss and score by topology at once and after recovery, beside the dense base (at once) and D1 (after recovery)."""
    compared = compare(tables["conversion"], "topologies")
    if len(compared.choices) < 2 or not compared.replicates:
        return None
    rows: list = [["dense", "100", *_cells(compared, LOSS, nats, ""), None, None, *_cells(compared, SCORE, points, "")], r"\midrule"]
    for choice in compared.choices:
        kept = pd.concat([compared.values(KEPT, name, choice) for name in LINEAGES])
        cells = [*_cells(compared, LOSS, nats, choice), *_difference_to_dense(compared, choice), *_cells(compared, SCORE, points, choice)]
        rows.append([compared.label(choice), points(kept.mean()), *cells])
    groups = {"": 2, "general loss (nats)": 4, r"general score (\%)": 2}
    below = ["topology", r"kept (\%)", "at once", "recovered", "S1 $-$ D1", r"95\,\% interval", "at once", "recovered"]
    return tabular("lccccccc", _heading(groups, below), rows)


def _cost(tables: Mapping[str, pd.DataFrame], compared: Compared, choice: str) -> list[str | None]:
    """Tokens that a conversion looked at and its seconds, means over the compared replicates; None where not measured."""
    arm, found = compared.arms.get(("S0", choice)), []
    for table, column, form in (("cost", "tokens", count), ("timings", "wall_s", lambda value: f"{value:.1f}")):
        rows = tables.get(table)
        values = pd.Series(dtype=float)
        if rows is not None and len(rows) and arm is not None:
            chosen = (rows["arm"] == arm.name) & (rows["method"] == "conversion")
            values = rows.loc[chosen & rows["seed"].astype(str).isin(compared.rows["seed"].astype(str)), column]
        found.append(form(values.mean()) if len(values) else None)
    return found


def algorithms_table(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """General loss and score by algorithm at 2:4 at once and after recovery, with what the conversion itself consumed."""
    compared = compare(tables["conversion"], "algorithms")
    if len(compared.choices) < 2 or not compared.replicates:
        return None
    rows: list = [["none (dense)", *_cells(compared, LOSS, nats, ""), *_cells(compared, SCORE, points, ""), *4 * [None]], r"\midrule"]
    for choice in compared.choices:
        layers = [points(compared.values(metric, "S0", choice).mean()) for metric in (ERROR, ENERGY)]
        cells = [*_cells(compared, LOSS, nats, choice), *_cells(compared, SCORE, points, choice)]
        rows.append([compared.label(choice), *cells, *layers, *_cost(tables, compared, choice)])
    groups = {"": 1, "general loss (nats)": 2, r"general score (\%)": 2, r"layers (\%)": 2, "conversion": 2}
    below = ["algorithm", "at once", "recovered", "at once", "recovered", "error", "kept", "tokens", "seconds"]
    return tabular("lcccccccc", _heading(groups, below), rows)
