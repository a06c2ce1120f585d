r"""The paper's numbers about other methods, references, doses and recovery budgets (paper, sections Methods, Dose-response).

Arms are read over the replicates that ran all of what is compared, so that none has the easier bases: keys begin with
`methods/`, `doses/` and `budgets/`. `..._results` are in the tables' units, for the paper's LaTeX tables too.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.config import Study
from sparsecl.domain_orders import MAIN
from sparsecl.figure_style import over_domains
from sparsecl.methods import FULL, JOINT, REFERENCES, SINGLE
from sparsecl.number_formats import count, points, rate
from sparsecl.paper_arms import BUDGETS, DOSE_ARMS, REFERENCE, TREATMENT
from sparsecl.paper_samples import DIFFERENCE_STATISTICS, STATISTICS, Sample, contrast_name, formatted, stream_sample
from sparsecl.paper_values_design import learning_rates_of
from sparsecl.protocol import ORDER, main_protocol

BASELINES = (FULL, "lora", "replay", "ewc", SINGLE, JOINT)  # those of the main part; `paper_values_runs` has the others
METHOD_METRICS = ("own", "final", "forgetting", "acc")
METHOD_ARMS = (REFERENCE, TREATMENT)
USUAL_ARMS = (REFERENCE, TREATMENT, "S1-unstructured")  # of the usual dose and budget
DOSE_METRICS = ("own", "final", "forgetting")
BUDGET_ARMS = tuple(arm for pair in BUDGETS.values() for arm in pair)
DOSE_CONTRASTS = tuple((arm, REFERENCE) for arm in DOSE_ARMS if arm != REFERENCE)
BUDGET_CONTRASTS = tuple((sparse, dense) for dense, sparse in BUDGETS.values())


def method_names() -> list[str]:
    """The registered keys of this module, without their part."""
    return [*_method_names(), *_dose_names("doses", DOSE_ARMS, DOSE_CONTRASTS), *_dose_names("budgets", BUDGET_ARMS, BUDGET_CONTRASTS)]


def method_values(study: Study, tables: Mapping[str, pd.DataFrame], main: pd.DataFrame) -> dict[str, str | None]:
    """All values of this module; `tables` holds the metrics, `main` are those of the main protocol."""
    values = _values_of_methods(method_results(study, tables["metrics"])) | _learning_rates(study, tables)
    for prefix, arms, contrasts in (("doses", DOSE_ARMS, DOSE_CONTRASTS), ("budgets", BUDGET_ARMS, BUDGET_CONTRASTS)):
        for metric, sample in dose_results(main, arms).items():
            for arm in sample.wide:
                values |= formatted(sample.summary(arm), points, f"{prefix}/{arm}/{metric}", signed=False)
            for pair in contrasts:
                values |= formatted(sample.paired(*pair), points, f"{prefix}/{contrast_name(*pair)}/{metric}", signed=True)
    return values


# Methods and references


def _method_names() -> list[str]:
    """`methods/lora/D1/own/mean`, `methods/lora/S1-2of4-minus-D1/own/estimate`, `methods/lora-minus-full/D1/own/estimate`."""
    names = [f"methods/{method}/{arm}/{m}/{s}" for method in BASELINES for arm in METHOD_ARMS for m in METHOD_METRICS for s in STATISTICS]
    pairs = [f"methods/{method}/{contrast_name(TREATMENT, REFERENCE)}" for method in BASELINES]
    pairs += [f"methods/{contrast_name(method, FULL)}/{arm}" for method in BASELINES if method != FULL for arm in METHOD_ARMS]
    names += [f"{pair}/{metric}/{s}" for pair in pairs for metric in METHOD_METRICS for s in DIFFERENCE_STATISTICS]
    rates = [f"methods/{method}/learning_rate" for method in BASELINES if method not in REFERENCES]
    return [*names, *rates, "methods/replicates"]


def method_results(study: Study, metrics: pd.DataFrame) -> dict[str, Sample]:
    """Every method's values by metric, columns `<method>/<arm>`, over the replicates that ran all; empty with one method only.

    `single` has the own score alone: its mean over the domains that can be forgotten, as own has it. `joint` has the final
    score over the same domains, and the accuracy over all.
    """
    rows = metrics[metrics["arm"].isin(METHOD_ARMS) & (metrics["kind"] == "all")]
    present = [method for method in BASELINES if method in set(rows["method"])]
    if len(present) < 2:
        return {}
    frames = {metric: pd.concat([_wide(study, rows, name, metric) for name in present], axis="columns") for metric in METHOD_METRICS}
    frames = {metric: frame for metric, frame in frames.items() if len(frame.columns)}
    if not frames:
        return {}
    complete = set.intersection(*(set(frame.dropna().index) for frame in frames.values()))
    return {metric: Sample(frame[frame.index.isin(complete)]) for metric, frame in frames.items()}


def _wide(study: Study, rows: pd.DataFrame, method: str, metric: str) -> pd.DataFrame:
    """One metric of one method: a row per replicate, a column per arm that ran it; without columns where it has no such metric."""
    rows, forgettable = rows[rows["method"] == method], list(study.continual.orders[MAIN][:-1])
    if method == SINGLE:
        if metric != "own":
            return pd.DataFrame()
        rows = rows[rows["metric"] == "acc"]  # of the one domain that a run has
        return _mean_over(rows.assign(of=rows["order"].str.removeprefix(f"{SINGLE}-")), forgettable).add_prefix(f"{method}/")
    rows = rows[rows["metric"] == metric]
    if method == JOINT and metric == "final":
        return _mean_over(rows.assign(of=rows["domain"]), forgettable).add_prefix(f"{method}/")
    rows = main_protocol(rows, method, JOINT if method == JOINT else ORDER, study.continual.stage_steps)
    return rows[over_domains(rows)].pivot(index="seed", columns="arm", values="value").add_prefix(f"{method}/")


def _mean_over(rows: pd.DataFrame, domains: list[str]) -> pd.DataFrame:
    """Mean over `domains` (column `of`), seeds down and arms across; absent where one of them is."""
    cells = rows.pivot(index=["seed", "arm"], columns="of", values="value").reindex(columns=domains)
    return cells.mean(axis="columns", skipna=False).unstack("arm")


def _values_of_methods(samples: Mapping[str, Sample]) -> dict[str, str | None]:
    values = {}
    for metric, sample in samples.items():
        values["methods/replicates"] = count(len(sample.wide))
        for column in sample.wide:
            method, arm = column.split("/")
            values |= formatted(sample.summary(column), points, f"methods/{column}/{metric}", signed=False)
            if method != FULL:
                against = sample.paired(column, f"{FULL}/{arm}")
                values |= formatted(against, points, f"methods/{contrast_name(method, FULL)}/{arm}/{metric}", signed=True)
        for method in BASELINES:
            sparse = sample.paired(f"{method}/{TREATMENT}", f"{method}/{REFERENCE}")
            values |= formatted(sparse, points, f"methods/{method}/{contrast_name(TREATMENT, REFERENCE)}/{metric}", signed=True)
    return values


def _learning_rates(study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """One rate serves all arms of a method."""
    swept = [method for method in BASELINES if method in study.swept()]
    chosen = {method: learning_rates_of(tables.get("learning_rate"), study, method) for method in swept}
    return {f"methods/{method}/learning_rate": rate(max(rates.values())) for method, rates in chosen.items() if rates}


# Doses and budgets


def _dose_names(prefix: str, arms: Iterable[str], contrasts: Iterable[tuple[str, str]]) -> list[str]:
    summaries = [f"{prefix}/{arm}/{metric}/{name}" for arm in arms for metric in DOSE_METRICS for name in STATISTICS]
    pairs = [f"{prefix}/{contrast_name(*pair)}" for pair in contrasts]
    return summaries + [f"{pair}/{metric}/{name}" for pair in pairs for metric in DOSE_METRICS for name in DIFFERENCE_STATISTICS]


def dose_results(main: pd.DataFrame, arms: tuple[str, ...]) -> dict[str, Sample]:
    """Samples of those of `arms` that were run, over the replicates that ran them all; empty where no other dose or budget was."""
    samples = {metric: stream_sample(main, metric).of(arms) for metric in DOSE_METRICS}
    return samples if any(set(sample.wide) - set(USUAL_ARMS) for sample in samples.values()) else {}
