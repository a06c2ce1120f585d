r"""Settings and sizes of a study as the text writes them (paper, section Method and all captions).

Keys are `<part>/design/...` and `<part>/learning_rate/...`; what a study does not have is None.
"""

from collections.abc import Mapping

import pandas as pd

from sparsecl.comparisons import result_rows
from sparsecl.config import Study
from sparsecl.methods import FULL
from sparsecl.number_formats import count, latex_text, points, rate
from sparsecl.paper_values_conversion import CONVERSION_DESIGN, conversion_facts

DESIGN = (
    "study", "title", "source", "replicates", "bases", "domains", "domain_list",
    "pretrain_steps", "pretrain_batch", "pretrain_learning_rate",
    "recover_steps", "recover_batch", "recover_learning_rate", "stage_steps", "stage_batch", "learning_rate_grid", "weight_decay", "clip",
    "algorithm", "dampening", "calibration_rows", "layers", "hidden", "ffn", "heads", "kv_heads", "head_dim", "vocabulary", "max_length",
    "dtype", "test_items", "general_items", "facts_per_domain", "fact_share", "probe_items", "top_fraction", "permutations",
    "parameters", "masked", "recovery_tokens", "calibration_tokens", "stream_tokens", "minutes", "margin", "alpha", "status", "seed",
    "curve_items", "comparison_replicates", "device",
)  # fmt: skip
METHOD_DESIGN = ("lora_rank", "lora_alpha", "replay_lines", "replay_share", "ewc_strength", "ewc_fisher_rows")
# Names of `continual.further` whose streams the paper speaks of.
FURTHER_SETS = ("controls", "topologies", "doses", "budgets", "frontier", "orders", "methods", "references")
FURTHER = ("replicates", "stage_steps", "orders")


def design_names(streamed: tuple[str, ...]) -> list[str]:
    """The registered keys of this module; `streamed` are the arms whose learning rate the text gives."""
    return [
        *(f"learning_rate/{arm}" for arm in streamed),
        *(f"design/{name}" for name in (*DESIGN, *CONVERSION_DESIGN, *METHOD_DESIGN)),
        *(f"design/further/{streams}/{name}" for streams in FURTHER_SETS for name in FURTHER),
    ]


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
        "learning_rate_grid": ", ".join(map(rate, sorted(stream.learning_rates))) if study.needs_validation() else None,
        "weight_decay": rate(stream.weight_decay), "clip": rate(study.recover.clip), "algorithm": latex_text(study.sparsify.algorithm),
        "dampening": rate(study.sparsify.dampening), "calibration_rows": count(study.sparsify.calibration_rows),
        "vocabulary": count(study.tokenizer.vocabulary), "max_length": count(study.tokenizer.max_length),
        "dtype": latex_text(study.dtype.replace("-", " ")), "probe_items": count(study.probe.items),
        "top_fraction": points(study.probe.top_fraction), "permutations": count(study.probe.permutations),
        "facts_per_domain": count(getattr(data, "facts_per_domain", None)), "fact_share": points(getattr(data, "fact_share", None)),
        "curve_items": count(stream.curve_items),
        "comparison_replicates": count(study.comparison.replicates) if study.comparison else None,
    }  # fmt: skip
    return facts | conversion_facts(study) | _method_facts(study) | _further_facts(study) | _costs(tables)


def _method_facts(study: Study) -> dict[str, str | None]:
    """Settings of the methods that the study runs beside the main protocol."""
    used, settings = study.streamed(), study.continual.method_settings
    facts: dict[str, str | None] = dict.fromkeys(METHOD_DESIGN)
    if "lora" in used:
        facts |= {"lora_rank": count(settings.lora.rank), "lora_alpha": rate(settings.lora.alpha)}
    if "replay" in used:
        facts |= {"replay_lines": count(settings.replay.lines_per_domain), "replay_share": points(settings.replay.share)}
    if "ewc" in used:
        facts |= {"ewc_strength": rate(settings.ewc.strength), "ewc_fisher_rows": count(settings.ewc.fisher_rows)}
    return facts


def _further_facts(study: Study) -> dict[str, str | None]:
    """How many replicates run each set of further streams, at which stage lengths (the study's own with them), in how many orders."""
    facts, own = {}, study.continual.stage_steps
    for name, streams in study.continual.further.items():
        if name in FURTHER_SETS:
            facts[f"further/{name}/replicates"] = count(streams.replicates)
            facts[f"further/{name}/stage_steps"] = ", ".join(count(steps) for steps in sorted({own, *streams.stage_steps}))
            facts[f"further/{name}/orders"] = count(len({"main", *study.continual.orders_named(streams.orders)}))
    return facts


def _costs(tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """Sizes and efforts that only a run knows."""
    facts = {}
    if (cost := tables.get("cost")) is not None and len(cost):
        cost = result_rows(cost)
        spent = cost[cost["arm"] == "D1"].groupby(["job", "method"])["tokens"].mean()
        facts["parameters"] = count(cost.loc[cost["arm"] == "D1", "trainable"].max())
        facts["masked"] = count(cost.loc[cost["arm"] == "S1-2of4", "masked"].max())
        facts["recovery_tokens"] = count(spent.get(("02_recover", "recovery")))
        facts["calibration_tokens"] = count(spent.get(("02_recover", "calibration")))
        facts["stream_tokens"] = count(spent.get(("03_continual", "full")))
    if (timings := tables.get("timings")) is not None and len(timings):
        facts["minutes"] = f"{timings['wall_s'].sum() / 60:.1f}"
        facts["device"] = latex_text(", ".join(sorted(set(timings["device"]))))
    return facts


def chosen_learning_rates(learning_rate: pd.DataFrame | None, study: Study, arms: tuple[str, ...]) -> dict[str, str | None]:
    """The stage learning rate of each streamed arm in the main protocol, by key."""
    chosen = learning_rates_of(learning_rate, study, FULL)
    return {f"learning_rate/{arm}": rate(chosen.get(arm)) for arm in arms}


def learning_rates_of(learning_rate: pd.DataFrame | None, study: Study, method: str) -> Mapping[str, float]:
    """Learning rates of a method by arm: chosen on the validation replicate, or fixed by the study."""
    if method not in study.swept():
        return dict.fromkeys(study.streamed().get(method, ()), study.continual.fixed_learning_rate(method))
    if learning_rate is None or learning_rate.empty:
        return {}
    chosen = learning_rate[learning_rate["chosen"].astype(bool) & (learning_rate["method"] == method)]
    return chosen.groupby("arm")["learning_rate"].max().to_dict()
