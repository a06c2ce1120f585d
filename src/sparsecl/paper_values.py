r"""Every number of the paper's text: the registered keys, and their values from the tables (paper, all sections).

A key is `<part>/<rest>`, e.g. `main/forgetting/S1-2of4-minus-D1/estimate`; the text writes `\val{key}`.
The keys are a product of registries, so that a study that measured less prints dashes in the same places.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

from sparsecl.comparisons import result_rows
from sparsecl.config import Study
from sparsecl.figure_style import CHECKPOINT_ARMS, main_rows, mean_interval, over_domains
from sparsecl.number_formats import count, is_absent, latex_text, nats, p_value, points, rate
from sparsecl.paper_values_conversion import CONVERSION_DESIGN, comparison_names, comparison_values, conversion_facts

STREAM_ARMS = ("D1", "S1-2of4")
STREAM_METRICS = {
    "forgetting": points,
    "bwt": points,
    "own": points,
    "final": points,
    "retention": points,
    "acc": points,
    "fwt": points,
    "learning_speed": points,
    "general_retention": points,
    "general_loss_rise": nats,
    "loss_forgetting": nats,
    "loss_own": nats,
    "loss_final": nats,
}
KINDS = {"all": "", "ability": "-ability", "fact": "-fact"}
CHECKPOINT_METRICS = {
    "general_score": ("score/general", points),
    "general_loss": ("nll/general", nats),
    "density": ("density/attained", points),
}
STATISTICS = ("mean", "sd", "ci_low", "ci_high", "n")
CONTRAST_STATISTICS = ("estimate", "ci_low", "ci_high", "p", "p_holm", "g", "n", "tost_p", "bootstrap_low", "bootstrap_high")
STREAM_CONTRASTS = (("S1-2of4", "D1"),)
CHECKPOINT_CONTRASTS = (("S0-2of4", "D0"), ("S1-2of4", "D0"), ("D1", "D0"))
DESIGN = (
    "study", "title", "source", "replicates", "bases", "domains", "domain_list",
    "pretrain_steps", "pretrain_batch", "pretrain_learning_rate",
    "recover_steps", "recover_batch", "recover_learning_rate", "stage_steps", "stage_batch", "learning_rate_grid", "weight_decay", "clip",
    "algorithm", "dampening", "calibration_rows", "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "max_length",
    "dtype", "test_items", "general_items", "facts_per_domain", "fact_share", "probe_items", "top_fraction", "permutations",
    "parameters", "masked", "recovery_tokens", "calibration_tokens", "stream_tokens", "minutes", "margin", "alpha", "status", "seed",
)  # fmt: skip
OVERLAP_ARMS = ("D0", "D1", "S1-2of4")
OVERLAP_COUNTS = ("cells", "above_chance", "below_label_null")
HYPOTHESES = ("H1", "H2", "H3")
VERDICT = ("letter", "sentence", "missing_controls", "planned_replicates")


def contrast_name(treatment: str, reference: str) -> str:
    return f"{treatment}-minus-{reference}"


def _names(metrics: Iterable[str], arms: Iterable[str], contrasts: Iterable[tuple[str, str]]) -> list[str]:
    contrasts = [contrast_name(*pair) for pair in contrasts]
    return [
        *(f"{metric}/{arm}/{statistic}" for metric in metrics for arm in arms for statistic in STATISTICS),
        *(f"{metric}/{contrast}/{statistic}" for metric in metrics for contrast in contrasts for statistic in CONTRAST_STATISTICS),
    ]


def registered_keys(part: str) -> list[str]:
    """Every key that the paper may use of one part; `05_stats` emits them all, measured or not."""
    stream = [metric + suffix for metric in STREAM_METRICS for suffix in KINDS.values()]
    rest = [
        *_names(stream, STREAM_ARMS, STREAM_CONTRASTS),
        *_names(CHECKPOINT_METRICS, CHECKPOINT_ARMS, CHECKPOINT_CONTRASTS),
        *comparison_names(),
        *(f"learning_rate/{arm}" for arm in STREAM_ARMS),
        *(f"overlap/{arm}/{name}" for arm in OVERLAP_ARMS for name in OVERLAP_COUNTS),
        *(f"design/{name}" for name in (*DESIGN, *CONVERSION_DESIGN)),
        *(f"verdict/{name}" for name in VERDICT),
        *(f"verdict/{hypothesis}/{name}" for hypothesis in HYPOTHESES for name in VERDICT),
    ]
    return [f"{part}/{name}" for name in rest]


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
        difference = (self.wide[treatment] - self.wide[reference]).dropna()
        mean, low, high = mean_interval(difference)
        return {"estimate": mean, "ci_low": low, "ci_high": high, "n": len(difference) or None}


def stream_sample(metrics: pd.DataFrame, metric: str, kind: str = "all", domain: str = "") -> Sample:
    """One metric of the main protocol over domains (or for one domain), by arm and replicate."""
    rows = main_rows(metrics)
    rows = rows[(rows["metric"] == metric) & (rows["domain"] == domain if domain else over_domains(rows))]
    if metric == "general_retention" and kind == "all" and not (rows["kind"] == "all").any():
        rows = rows.assign(kind="all")  # the general mixture has one kind, whatever its tables call it
    rows = rows[rows["kind"] == kind]
    return Sample(rows.pivot_table(index="seed", columns="arm", values="value", aggfunc="mean"))


def checkpoint_sample(conversion: pd.DataFrame, metric: str) -> Sample:
    """One measure of the checkpoints before the stream, by arm and replicate."""
    rows = result_rows(conversion[conversion["metric"] == metric])
    return Sample(rows.pivot_table(index="seed", columns="arm", values="value", aggfunc="mean"))


def contrast_test(tests: pd.DataFrame, treatment: str, reference: str, metric: str) -> dict[str, float | None]:
    """The statistics of one contrast from tests.csv; empty where it was not tested.

    `metric` is spelled as in the registration, `forgetting/fact` for one kind of item.
    """
    if tests.empty:
        return {}
    rows = tests[(tests["metric"] == metric) & (tests["contrast"] == f"{treatment} - {reference}")]
    equivalence = rows[rows["hypothesis"].str.endswith("equivalence")]
    bootstrap = rows[rows["hypothesis"].str.endswith("bootstrap")]
    difference = rows.drop(equivalence.index.union(bootstrap.index))
    found: dict[str, float | None] = {}
    for row in difference.head(1).itertuples():
        found |= {"estimate": row.estimate, "ci_low": row.ci_low, "ci_high": row.ci_high, "n": row.n}
        found |= {"p": row.p, "p_holm": row.p_corrected, "g": row.effect}
    for row in equivalence.head(1).itertuples():
        found["tost_p"] = row.p
    for row in bootstrap.head(1).itertuples():
        found |= {"bootstrap_low": row.ci_low, "bootstrap_high": row.ci_high}
    return found


def _formatted(statistics: Mapping[str, float | None], form, prefix: str, signed: bool) -> dict[str, str | None]:
    forms = {"p": p_value, "p_holm": p_value, "tost_p": p_value, "n": count, "g": nats}
    return {
        f"{prefix}/{name}": None if is_absent(value) else forms.get(name, form)(value, signed and name not in forms)
        for name, value in statistics.items()
    }


def _measured(name: str, sample: Sample, form, arms, contrasts, tests: pd.DataFrame, test_metric: str) -> dict[str, str | None]:
    values = {}
    for arm in arms:
        values |= _formatted(sample.summary(arm), form, f"{name}/{arm}", signed=False)
    for treatment, reference in contrasts:
        statistics = sample.paired(treatment, reference) | contrast_test(tests, treatment, reference, test_metric)
        values |= _formatted(statistics, form, f"{name}/{contrast_name(treatment, reference)}", signed=True)
    return values


def design_facts(study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """Settings and sizes of a study as the text writes them; what a kind of data does not have is None."""
    data, model, stream = study.data, study.model, study.continual
    facts = {name: count(getattr(model, name)) for name in ("layers", "hidden", "ffn", "heads", "kv_heads", "head_dim")}
    facts |= {name: count(getattr(data, name)) for name in ("test_items", "general_items")}
    for name, stage in (("pretrain", study.pretrain), ("recover", study.recover)):
        facts |= {
            f"{name}_steps": count(stage.steps),
            f"{name}_batch": count(stage.batch),
            f"{name}_learning_rate": rate(stage.learning_rate),
        }
    facts |= {
        "study": latex_text(study.name), "title": latex_text(study.title), "source": data.source,
        "seed": str(study.seed),
        "replicates": count(study.replicates), "bases": count(study.bases or study.replicates), "domains": count(len(data.domains)),
        "domain_list": r" $\rightarrow$ ".join(latex_text(domain) for domain in stream.orders["main"]),
        "stage_steps": count(stream.stage_steps), "stage_batch": count(stream.batch),
        "learning_rate_grid": ", ".join(rate(value) for value in sorted(stream.learning_rates)),
        "weight_decay": rate(stream.weight_decay), "clip": rate(study.recover.clip), "algorithm": latex_text(study.sparsify.algorithm),
        "dampening": rate(study.sparsify.dampening), "calibration_rows": count(study.sparsify.calibration_rows),
        "vocabulary": count(study.tokenizer.vocabulary), "max_length": count(study.tokenizer.max_length),
        "dtype": latex_text(study.dtype.replace("-", " ")), "probe_items": count(study.probe.items),
        "top_fraction": points(study.probe.top_fraction), "permutations": count(study.probe.permutations),
        "facts_per_domain": count(getattr(data, "facts_per_domain", None)), "fact_share": points(getattr(data, "fact_share", None)),
    }  # fmt: skip
    return facts | conversion_facts(study) | _costs(tables)


def _costs(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """Sizes and efforts that only a run knows."""
    facts = {}
    if (cost := tables.get("cost")) is not None and len(cost):
        spent = cost[cost["arm"] == "D1"].groupby(["job", "method"])["tokens"].mean()
        facts["parameters"] = count(cost.loc[cost["arm"] == "D1", "trainable"].max())
        facts["masked"] = count(cost.loc[cost["arm"] == "S1-2of4", "masked"].max())
        facts["recovery_tokens"] = count(spent.get(("02_recover", "recovery")))
        facts["calibration_tokens"] = count(spent.get(("02_recover", "calibration")))
        facts["stream_tokens"] = count(spent.get(("03_continual", "full")))
    if (timings := tables.get("timings")) is not None and len(timings):
        facts["minutes"] = f"{timings['wall_s'].sum() / 60:.1f}"
    return facts


def chosen_learning_rates(learning_rate: pd.DataFrame | None, study: Study) -> dict[str, str | None]:
    """The stage learning rate of each streamed arm: chosen on the validation replicate, or the only one of the grid."""
    if len(study.continual.learning_rates) == 1:
        return {f"learning_rate/{arm}": rate(study.continual.learning_rates[0]) for arm in STREAM_ARMS}
    chosen = (
        learning_rate[learning_rate["chosen"].astype(bool)] if learning_rate is not None else pd.DataFrame(columns=["arm", "learning_rate"])
    )
    by_arm = chosen.groupby("arm")["learning_rate"].max()
    return {f"learning_rate/{arm}": rate(by_arm.get(arm)) for arm in STREAM_ARMS}


def overlap_counts(overlap: pd.DataFrame, arm: str) -> dict[str, str | None]:
    """In how many cells (layer x domain pair) every replicate's overlap lies above chance, or below the label null.

    Counting cells keeps layers and pairs apart; a mean over them would hide where domains differ. Neurons
    chosen by magnitude only: a score contrasted over domains has low overlap by construction.
    """
    rows = overlap[(overlap["arm"] == arm) & (overlap["selection"] == "magnitude")]
    if rows.empty:
        return {}
    sides = rows.assign(above=rows["value"] > rows["null"], below=rows["value"] < rows["null_label"])
    cells = sides.groupby(["layer", "domain_a", "domain_b"])[["above", "below"]].all()
    counts = zip(OVERLAP_COUNTS, (len(cells), cells["above"].sum(), cells["below"].sum()), strict=True)
    return {f"overlap/{arm}/{name}": count(value) for name, value in counts}


def part_values(
    study: Study, tables: Mapping[str, pd.DataFrame], verdicts: Mapping | None = None, facts: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """All values of one part by the rest of their key, formatted; None where the study did not measure it.

    `tables` maps table names to frames; `verdicts` maps hypotheses to `sparsecl.decision.Verdict`; `facts` adds design facts
    known elsewhere (margin, alpha), formatted.
    """
    tests = tables.get("tests", pd.DataFrame())
    values: dict[str, str | None] = {}
    if (metrics := tables.get("metrics")) is not None and len(metrics):
        for metric, form in STREAM_METRICS.items():
            for kind, suffix in KINDS.items():
                sample = stream_sample(metrics, metric, kind)
                tested = metric if kind == "all" else f"{metric}/{kind}"
                values |= _measured(metric + suffix, sample, form, STREAM_ARMS, STREAM_CONTRASTS, tests, tested)
    if (conversion := tables.get("conversion")) is not None and len(conversion):
        for name, (metric, form) in CHECKPOINT_METRICS.items():
            values |= _measured(name, checkpoint_sample(conversion, metric), form, CHECKPOINT_ARMS, CHECKPOINT_CONTRASTS, tests, metric)
        values |= comparison_values(conversion)
    if (overlap := tables.get("overlap")) is not None and len(overlap):
        for arm in OVERLAP_ARMS:
            values |= overlap_counts(overlap, arm)
    values |= chosen_learning_rates(tables.get("learning_rate"), study)
    values |= {f"design/{name}": value for name, value in {**design_facts(study, tables), **(facts or {})}.items()}
    return values | verdict_values(verdicts or {})


def verdict_values(verdicts: Mapping) -> dict[str, str | None]:
    """The computed verdicts as the text prints them, by hypothesis; without a hypothesis in the key, those of the first, H1.

    A letter also selects the paragraphs that follow from it.
    """
    values = {f"{hypothesis}/{name}": value for hypothesis in verdicts for name, value in _verdict_values(verdicts[hypothesis]).items()}
    first = _verdict_values(verdicts[HYPOTHESES[0]]) if HYPOTHESES[0] in verdicts else {}
    return {f"verdict/{name}": value for name, value in (first | values).items()}


def _verdict_values(verdict) -> dict[str, str | None]:
    # The sentence is plain text: a hyphen before a digit is a minus there, one inside an arm's name is not.
    sentence = re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex_text(verdict.sentence))
    return {
        "letter": latex_text(verdict.letter),
        "sentence": sentence,
        "missing_controls": latex_text(", ".join(verdict.missing_controls)) or None,
        "planned_replicates": count(verdict.planned_replicates),
    }
