"""What the paper prints a second time, from the tables alone: means, spreads, differences and tests of the stream's measures.

For `test_recomputation`. Nothing here imports `sparsecl`. Every function returns numbers by the key that the text uses, without
its part; an absent number has no key. `keys` are those that the paper registered: of arms and contrasts only the names are read.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import pandas as pd
from recomputation import rows
from recomputation_statistics import Values, hedges, spread
from scipy import stats

NATS = ("general_loss_rise", "loss_forgetting", "loss_own", "loss_final")
POINTS = (
    "forgetting", "bwt", "own", "final", "retention", "acc", "fwt", "learning_speed", "joint_efficiency_executed",
    "joint_efficiency_theoretical", "general_retention",
)  # fmt: skip
BETWEEN = "-minus-"
VALIDATION = "validation"  # the replicate on which settings were chosen


class Number(NamedTuple):
    """A value and how the paper writes it: `points`, `nats`, `count`, `p_value`, `rate`, or `tenths` of the unit."""

    value: float
    form: str
    signed: bool = False
    within: float = 0.0  # of the printed number, where chance has a part in it


class Cell(NamedTuple):
    """A cell of a table: numbers in a frame such as `{} ({})`."""

    frame: str
    numbers: tuple[Number, ...]


Numbers = dict[str, Number | Cell | str]
ByReplicate = Mapping[str, float]
Row = list[Cell | str]  # of a table; text is written as it stands
DASH = "--"


def results(table: pd.DataFrame) -> pd.DataFrame:
    """Without the replicate on which settings were chosen, unless there is no other."""
    kept = table[table["seed"] != VALIDATION]
    return kept if len(kept) else table


def finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


@lru_cache
def t_quantile(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1))


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean and, of two values or more, the spread and the ends of the t interval."""
    if not values:
        return {}
    centre = math.fsum(values) / len(values)
    if len(values) < 2:
        return {"mean": centre}
    sd = spread(values)
    half = t_quantile(len(values)) * sd / math.sqrt(len(values))
    return {"mean": centre, "sd": sd, "ci_low": centre - half, "ci_high": centre + half}


def summary(prefix: str, values: Iterable[float], form: str) -> Numbers:
    """`<prefix>/mean`, `sd`, `ci_low`, `ci_high`, `n`."""
    measured = finite(values)
    found = {f"{prefix}/{name}": Number(value, form) for name, value in interval(measured).items()}
    return found | ({f"{prefix}/n": Number(len(measured), "count")} if measured else {})


def differences(treatment: ByReplicate, reference: ByReplicate) -> list[float]:
    """Treatment minus reference over the replicates of both."""
    return finite(treatment[seed] - reference[seed] for seed in treatment if seed in reference)


def paired(prefix: str, treatment: ByReplicate, reference: ByReplicate, form: str) -> Numbers:
    """`<prefix>/estimate`, `ci_low`, `ci_high`, `n`."""
    return paired_differences(prefix, differences(treatment, reference), form)


def paired_differences(prefix: str, measured: list[float], form: str) -> Numbers:
    found = {("estimate" if name == "mean" else name): value for name, value in interval(measured).items() if name != "sd"}
    numbers = {f"{prefix}/{name}": Number(value, form, True) for name, value in found.items()}
    return numbers | ({f"{prefix}/n": Number(len(measured), "count")} if measured else {})


# Measures


def measures(values: Values, tests: pd.DataFrame, keys: Iterable[str]) -> Numbers:
    """Every measure of the main protocol by arm and by contrast, kinds of item together and apart."""
    found: Numbers = {}
    tested = statements_of(tests)
    for name, who in sorted({tuple(key.split("/")[:2]) for key in keys if re.split("[-/]", key)[0] in POINTS + NATS}):
        metric, _, kind = name.partition("-")
        form, treatment, reference = "nats" if metric in NATS else "points", *halves(who)
        ours = values.get((treatment, metric, kind or "all"), {})
        if not reference:
            found |= summary(f"{name}/{who}", ours.values(), form)
            continue
        theirs = values.get((reference, metric, kind or "all"), {})
        label = f"{metric}/{kind}" if kind else metric
        found |= contrast(f"{name}/{who}", ours, theirs, form, tested.get((f"{treatment} - {reference}", label), {}))
    return found


def halves(who: str) -> tuple[str, str]:
    """Treatment and reference of a contrast; the second is empty for an arm."""
    treatment, _, reference = who.partition(BETWEEN)
    return treatment, reference


def statements_of(tests: pd.DataFrame) -> dict[tuple[str, str], dict[str, dict]]:
    """Rows of tests.csv by contrast and metric, then by statement."""
    found: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows(tests):
        found.setdefault((row.contrast, row.metric), {}).setdefault(row.hypothesis, vars(row))
    return found


def contrast(prefix: str, ours: ByReplicate, theirs: ByReplicate, form: str, statements: Mapping[str, dict]) -> Numbers:
    """A difference, and the test of it that stands first: a hypothesis', one beside a hypothesis, a family's."""
    found = paired(prefix, ours, theirs, form)
    if not (statement := leading(statements)):
        return found
    seeds = [seed for seed in ours if seed in theirs]
    x, y = [ours[seed] for seed in seeds], [theirs[seed] for seed in seeds]
    row = statements[statement]
    sd = spread(differences(ours, theirs))
    p = 2 * float(stats.t.sf(abs(found[f"{prefix}/estimate"].value) * math.sqrt(len(x)) / sd, len(x) - 1))
    numbers = {"p": Number(p, "p_value"), "p_holm": Number(row["p_corrected"], "p_value"), "g": Number(hedges(x, y), "nats")}
    if f"{statement} equivalence" in statements:
        numbers["tost_p"] = Number(statements[f"{statement} equivalence"]["p"], "p_value")
    if drawn := statements.get(f"{statement} bootstrap"):
        numbers |= {f"bootstrap_{end}": Number(drawn[f"ci_{end}"], form, True) for end in ("low", "high")}
    return found | {f"{prefix}/{name}": number for name, number in numbers.items() if not math.isnan(number.value)}


def leading(statements: Iterable[str]) -> str:
    """Of the statements about one contrast the one that its numbers come from; empty where none tested it."""
    plain = [name for name in statements if not name.endswith((" equivalence", " bootstrap", " anova"))]
    ranks = [lambda name: re.fullmatch(r"H\d", name), lambda name: re.fullmatch(r"H\d beside", name), lambda name: name]
    return next((name for rank in ranks for name in plain if rank(name)), "")


# Cells of tables


def mean_sd(values: Iterable[float], form: str) -> Cell | str:
    found = interval(finite(values))
    numbers = tuple(Number(found[name], form) for name in ("mean", "sd") if name in found)
    return Cell("{} ({})" if len(numbers) == 2 else "{}", numbers) if numbers else DASH


def mean_cell(values: Iterable[float], form: str) -> Cell | str:
    found = interval(finite(values))
    return Cell("{}", (Number(found["mean"], form),)) if found else DASH


def sd_cell(values: Iterable[float], form: str) -> Cell | str:
    found = interval(finite(values))
    return Cell("({})", (Number(found["sd"], form),)) if "sd" in found else ""


def number_cell(value: float, form: str, signed: bool = False) -> Cell | str:
    return DASH if math.isnan(value) else Cell("{}", (Number(value, form, signed),))


def difference_cells(measured: Sequence[float], form: str) -> tuple[Cell | str, Cell | str]:
    """The mean difference, and its interval."""
    found = interval(measured)
    if not found:
        return DASH, DASH
    ends = tuple(Number(found[name], form, True) for name in ("ci_low", "ci_high") if name in found)
    return number_cell(found["mean"], form, True), Cell("[{}, {}]", ends) if ends else DASH


def difference_cell(measured: Sequence[float], form: str) -> Cell | str:
    """Both in one cell."""
    estimate, ends = difference_cells(measured, form)
    return estimate if isinstance(ends, str) else Cell("{} [{}, {}]", (*estimate.numbers, *ends.numbers))


def p_cell(p: float) -> Cell | str:
    return DASH if math.isnan(p) else Cell("{}", (Number(p, "bare_p"),))


def arm_label(arm: str) -> str:
    """An arm as the paper writes it: S1 2:4, S1 block 16, S1 2:4 2B."""
    lineage, *rest = arm.split("-")
    rest = [re.sub(r"^b([\d.]+)$", r"\1B", re.sub(r"^d(?=0\.)", "", topology_label(part))) for part in rest]
    return " ".join([lineage, *rest])


def topology_label(topology: str) -> str:
    return re.sub(r"^block", "block ", re.sub(r"^(\d+)of(\d+)$", r"\1:\2", topology))


def contrast_label(treatment: str, reference: str) -> str:
    return f"{arm_label(treatment)} $-$ {arm_label(reference)}"
