r"""The pieces that every generated LaTeX table is made of (paper, all tables)."""

from collections.abc import Callable, Iterable, Mapping

from sparsecl.number_formats import DASH


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
