r"""Values by arm and replicate, and what the paper writes of them: means, paired differences, tests (paper, all results).

What the numbers of the text and the cells of its tables share; keys are `<measure>/<arm>/mean` or
`<measure>/<treatment>-minus-<reference>/estimate`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from sparsecl.comparisons import result_rows
from sparsecl.figure_style import mean_interval, over_domains
from sparsecl.number_formats import count, is_absent, nats, p_value, points
from sparsecl.protocol import main_protocol

STREAM_METRICS = {  # measures of the stream with the form of their numbers
    "forgetting": points,
    "bwt": points,
    "own": points,
    "final": points,
    "retention": points,
    "acc": points,
    "fwt": points,
    "learning_speed": points,
    "joint_efficiency_executed": points,  # per 10^12 FLOPs
    "joint_efficiency_theoretical": points,
    "general_retention": points,
    "general_loss_rise": nats,
    "loss_forgetting": nats,
    "loss_own": nats,
    "loss_final": nats,
}
METRIC_NAMES = {
    "own": r"own $\bar R_{ii}$",
    "final": r"final $\bar R_{Ti}$",
    "forgetting": r"forgetting $F$",
    "bwt": "backward transfer",
    "retention": r"retention (\%)",
    "acc": "accuracy, all domains",
    "fwt": "forward transfer",
    "learning_speed": "learning speed",
    "general_retention": r"general retention (\%)",
    "general_loss_rise": "rise of general loss (nats)",
    "loss_forgetting": "loss forgetting (nats)",
    "loss_own": "own loss (nats)",
    "loss_final": "final loss (nats)",
}
STATISTICS = ("mean", "sd", "ci_low", "ci_high", "n")
DIFFERENCE_STATISTICS = ("estimate", "ci_low", "ci_high", "n")
CONTRAST_STATISTICS = ("estimate", "ci_low", "ci_high", "p", "p_holm", "g", "n", "tost_p", "bootstrap_low", "bootstrap_high")
HYPOTHESES = ("H1", "H2", "H3")
BESIDE, EQUIVALENCE, BOOTSTRAP = " beside", " equivalence", " bootstrap"  # what follows a hypothesis' name in tests.csv
_FORMS = {"p": p_value, "p_holm": p_value, "tost_p": p_value, "n": count, "g": nats}


def contrast_name(treatment: str, reference: str) -> str:
    return f"{treatment}-minus-{reference}"


def statistic_names(metrics: Iterable[str], arms: Iterable[str], contrasts: Iterable[tuple[str, str]]) -> list[str]:
    """Keys of every metric by arm and by contrast."""
    contrasts = [contrast_name(*pair) for pair in contrasts]
    return [
        *(f"{metric}/{arm}/{statistic}" for metric in metrics for arm in arms for statistic in STATISTICS),
        *(f"{metric}/{contrast}/{statistic}" for metric in metrics for contrast in contrasts for statistic in CONTRAST_STATISTICS),
    ]


@dataclass(frozen=True)
class Sample:
    """Values of one measure by arm and replicate: `wide` has a row per replicate and a column per arm."""

    wide: pd.DataFrame

    def summary(self, arm: str) -> dict[str, float | None]:
        values = self.wide[arm].dropna() if arm in self.wide else pd.Series(dtype=float)
        mean, low, high = mean_interval(values)
        return {"mean": mean, "sd": values.std(ddof=1), "ci_low": low, "ci_high": high, "n": len(values) or None}

    def paired(self, treatment: str, reference: str) -> dict[str, float | None]:
        """Mean paired difference with its t interval; no p, which only a registered or exploratory test has."""
        if not {treatment, reference} <= set(self.wide):
            return {}
        return difference(self.wide[treatment] - self.wide[reference])

    def of(self, arms: Iterable[str]) -> "Sample":
        """Those of `arms` that were measured, over the replicates that ran all of them: equal bases for every arm."""
        return Sample(self.wide[[arm for arm in arms if arm in self.wide]].dropna())


def difference(values: pd.Series) -> dict[str, float | None]:
    """Mean of paired differences, one a replicate, with its t interval."""
    values = values.dropna()
    mean, low, high = mean_interval(values)
    return {"estimate": mean, "ci_low": low, "ci_high": high, "n": len(values) or None}


def main_metrics(metrics: pd.DataFrame, stage_steps: int) -> pd.DataFrame:
    """The main protocol's rows of metrics.csv; `stage_steps` is the study's own stage length."""
    return metrics if metrics.empty else main_protocol(metrics, stage_steps=stage_steps)


def stream_sample(main: pd.DataFrame, metric: str, kind: str = "all", domain: str = "") -> Sample:
    """One metric over domains (or for one domain), by arm and replicate; `main` as of `main_metrics`, else ValueError."""
    rows = main[main["metric"] == metric]
    rows = rows[rows["domain"] == domain if domain else over_domains(rows)]
    if metric == "general_retention" and kind == "all" and not (rows["kind"] == "all").any():
        rows = rows.assign(kind="all")  # the general mixture has one kind, whatever its tables call it
    return Sample(rows[rows["kind"] == kind].pivot(index="seed", columns="arm", values="value"))


def checkpoint_sample(conversion: pd.DataFrame, metric: str) -> Sample:
    """One measure of the checkpoints before the stream, by arm and replicate."""
    rows = result_rows(conversion[conversion["metric"] == metric])
    return Sample(rows.pivot_table(index="seed", columns="arm", values="value", aggfunc="mean"))


def contrast_test(tests: pd.DataFrame, treatment: str, reference: str, metric: str) -> dict[str, float | None]:
    """The statistics of one contrast from tests.csv; empty where it was not tested.

    `metric` is spelled as in the registration, `forgetting/fact` for one kind of item. Where several statements test the
    same contrast and metric, one is read: what decides a hypothesis before what stands beside one, that before an
    exploratory family, and among equals the first in the table. Equivalence and bootstrap are those of the same
    statement, so that all numbers of a contrast have one family and one margin.
    """
    if tests.empty:
        return {}
    chosen = (tests["metric"].to_numpy() == metric) & (tests["contrast"].to_numpy() == f"{treatment} - {reference}")
    rows = tests[chosen].drop_duplicates("hypothesis").set_index("hypothesis")
    statements = [name for name in rows.index if not name.endswith((EQUIVALENCE, BOOTSTRAP))]
    if not statements:
        return {}
    statement = min(statements, key=_rank)  # the first of equal rank
    row = rows.loc[statement]
    found = {"estimate": row["estimate"], "ci_low": row["ci_low"], "ci_high": row["ci_high"], "n": row["n"]}
    found |= {"p": row["p"], "p_holm": row["p_corrected"], "g": row["effect"]}
    if (equivalence := statement + EQUIVALENCE) in rows.index:
        found["tost_p"] = rows.loc[equivalence, "p"]
    if (bootstrap := statement + BOOTSTRAP) in rows.index:
        found |= {"bootstrap_low": rows.loc[bootstrap, "ci_low"], "bootstrap_high": rows.loc[bootstrap, "ci_high"]}
    return found


def _rank(statement: str) -> int:
    """0 for what decides a hypothesis, 1 for what stands beside one, 2 for an exploratory family."""
    if statement in HYPOTHESES:
        return 0
    return 1 if statement.removesuffix(BESIDE) in HYPOTHESES else 2


def formatted(statistics: Mapping[str, float | None], form, prefix: str, signed: bool) -> dict[str, str | None]:
    """Statistics by their name as values by their key; `form` writes those that have the unit of the measure."""
    return {
        f"{prefix}/{name}": None if is_absent(value) else _FORMS.get(name, form)(value, signed and name not in _FORMS)
        for name, value in statistics.items()
    }


def sample_values(
    name: str, sample: Sample, form, arms: Iterable[str], contrasts: Iterable[tuple[str, str]], tests: pd.DataFrame, test_metric: str
) -> dict[str, str | None]:
    """One measure as values: every arm's summary, every contrast's difference with its test where there is one."""
    values, tests = {}, tests[tests["metric"] == test_metric] if len(tests) else tests
    for arm in arms:
        values |= formatted(sample.summary(arm), form, f"{name}/{arm}", signed=False)
    for treatment, reference in contrasts:
        statistics = sample.paired(treatment, reference) | contrast_test(tests, treatment, reference, test_metric)
        values |= formatted(statistics, form, f"{name}/{contrast_name(treatment, reference)}", signed=True)
    return values
