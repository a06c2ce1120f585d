r"""The pieces that every generated LaTeX table is made of (paper, all tables)."""

from collections.abc import Callable, Iterable, Mapping

from sparsecl.arms import parse_arm
from sparsecl.number_formats import DASH, interval, is_absent, p_value


def tabular(columns: str, heading: Iterable[str] | str, rows: Iterable[Iterable[str | None] | str]) -> str:
    r"""A booktabs tabular; a row given as text is set as it is (``\midrule``), an absent cell becomes a dash."""
    lines = [
        f"\\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        heading if isinstance(heading, str) else " & ".join(heading) + r" \\",
        r"\midrule",
    ]
    for row in rows:
        lines.append(row if isinstance(row, str) else " & ".join(DASH if cell is None else str(cell) for cell in row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def mean_cell(summary: Mapping[str, float | None], form: Callable[..., str | None]) -> str | None:
    """`82.3 (2.1)`: mean and standard deviation over replicates, from a summary that holds `mean` and `sd`."""
    mean, sd = form(summary["mean"]), form(summary["sd"])
    return mean if sd is None or mean is None else f"{mean} ({sd})"


def interval_cell(found: Mapping[str, float | None], form: Callable[..., str | None]) -> str | None:
    """`61.2 [58.0, 64.4]`: a mean with its interval, without signs, from statistics that hold `mean`, `ci_low` and `ci_high`."""
    mean, bounds = form(found.get("mean")), interval(found.get("ci_low"), found.get("ci_high"), form)
    return mean if mean is None or bounds is None else f"{mean} {bounds}"


def difference_cell(found: Mapping[str, float | None], form: Callable[..., str | None]) -> str | None:
    """`-5.1 [-10.8, 0.6]`: a difference with its interval, from statistics that hold `estimate`, `ci_low` and `ci_high`."""
    estimate, bounds = form(found.get("estimate"), True), interval(found.get("ci_low"), found.get("ci_high"), form, True)
    return estimate if estimate is None or bounds is None else f"{estimate} {bounds}"


def bare_p(p: float | None) -> str | None:
    """A p-value for a cell, without the relation that text needs: 0.034, or $< 0.001$."""
    return None if is_absent(p) else p_value(p).replace("= ", "")


def contrast_label(treatment: str, reference: str) -> str:
    """Two arms as the paper writes their difference."""
    return f"{parse_arm(treatment).label} $-$ {parse_arm(reference).label}"
