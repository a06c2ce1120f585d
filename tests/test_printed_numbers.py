"""Every number and table cell that the paper prints of the full study is recomputed from the tables alone, and compared as printed.

The independent route is in the modules `recomputation*`; a new key without a recomputation fails here.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product

import pandas as pd
import pytest
from published_sources import DISTURBED, Source, read_number, source_of
from recomputation_conversions import algorithms_table, checkpoints, comparisons, conversion_table, topologies_table
from recomputation_design import anova_numbers, deciding, domains_table, sizes, verdict_numbers, verdicts_table
from recomputation_efficiency import (
    attainable,
    costs,
    costs_table,
    efficiency,
    efficiency_table,
    efforts,
    fractions_table,
    inference_numbers,
    kernels_table,
    overlaps,
)
from recomputation_methods import (
    controls_table,
    doses_and_budgets,
    doses_table,
    measures_table,
    method_samples,
    methods,
    methods_table,
    stream_topologies_table,
)
from recomputation_printed import Cell, Number, measures, statements_of
from recomputation_robustness import crossovers, frontier_table, frontiers, orders, orders_table
from recomputation_statistics import difference

from sparsecl.number_formats import count, nats, p_value, points, rate, thousandths
from sparsecl.preregistration import Preregistration

PAPER = "builtin-full"
FORMS = {
    "points": points, "nats": nats, "count": count, "p_value": p_value, "rate": rate, "thousandths": thousandths,
    "tenths": lambda value, _: f"{value:.1f}", "bare_p": lambda value, _: p_value(value).replace("= ", ""),
}  # fmt: skip
# Printed, but not derived from a table: why, and what.
SETTINGS = {
    "what the study's file sets; no table holds it": """
        layers hidden ffn heads kv_heads head_dim vocabulary max_length dtype seed study title source algorithm dampening calibration_rows
        pretrain_steps pretrain_batch pretrain_learning_rate recover_steps recover_batch recover_learning_rate clip stage_batch weight_decay
        facts_per_domain fact_share probe_items permutations
        wandaplusplus_alpha wandaplusplus_rounds wandaplusplus_samples wandaplusplus_learning_rate
        maskllm_steps maskllm_batch maskllm_learning_rate maskllm_prior_strength maskllm_regularisation maskllm_temperature_start
        maskllm_temperature_end maskllm_scale_start maskllm_scale_end
        lora_rank lora_alpha replay_lines replay_share ewc_strength ewc_fisher_rows""",
}
SENTENCES = {f"verdict/{of}sentence" for of in ("", "H1/", "H2/", "H3/")}  # words, whose numbers have a test of their own


@dataclass(frozen=True)
class Paper:
    """What the paper prints of a study, as the package writes it and as it is recomputed."""

    source: Source

    @cached_property
    def verdicts(self) -> Mapping:
        from sparsecl.verdict import compute_verdicts

        registration = Preregistration.model_validate(self.source.registration)
        return compute_verdicts(self.source.theirs["metrics"], registration, self.source.theirs["accuracy"])

    @cached_property
    def values(self) -> dict[str, str]:
        """The registered keys that have a value."""
        from sparsecl.paper_values import registered_keys
        from sparsecl.paper_verdicts import verdict_values

        found = self.source.printed | verdict_values(self.verdicts, {})
        registered = {key.partition("/")[2] for key in registered_keys("main")}
        return {key: text for key, text in found.items() if key in registered and text is not None}

    @cached_property
    def tables(self) -> dict[str, str]:
        from sparsecl.paper_tables import part_tables

        return part_tables(self.source.study, self.source.theirs | {"tests": self.source.their_tests}, verdicts=self.verdicts)

    @cached_property
    def over_domains(self) -> pd.DataFrame:
        metrics = self.source.tables["metrics"]
        return metrics[(metrics["domain"] == "") & (metrics["kind"] == "all") & metrics["metric"].isin(["own", "forgetting", "final"])]

    @cached_property
    def methods(self) -> dict:
        return method_samples(self.source.values, self.source.tables["metrics"], self.source.tables["accuracy"])

    @cached_property
    def efforts(self) -> dict:
        return efforts(self.source.tables["cost"], self.source.tables["timings"])

    @cached_property
    def measures(self) -> dict:
        return measures(self.source.values, self.source.tests, self.registered)

    @cached_property
    def registered(self) -> list[str]:
        from sparsecl.paper_values import registered_keys

        return [key.partition("/")[2] for key in registered_keys("main")]

    @cached_property
    def recomputed(self) -> dict:
        """Numbers and texts by registered key."""
        tables, values, keys = self.source.tables, self.source.values, self.registered
        found = self.measures | checkpoints(tables["conversion"], keys) | comparisons(tables["conversion"])
        found |= doses_and_budgets(values, keys) | methods(self.methods, tables["learning_rate"])
        found |= efficiency(self.efforts, values, keys) | attainable(tables["cost"]) | inference_numbers(tables["inference"])
        found |= overlaps(tables["overlap"]) | costs(tables) | sizes(tables)
        found |= frontiers(self.over_domains) | crossovers(tables["curves"], tables["accuracy"], tables["timings"])
        found |= orders(self.over_domains) | verdict_numbers(values, tables, self.source.registration)
        return {key: found[key] for key in keys if key in found}

    def recomputed_table(self, name: str) -> list:
        tables, values = self.source.tables, self.source.values
        scores = ["own", "final", "forgetting"]
        beside = ["bwt", "retention", "acc", "fwt", "learning_speed", "general_retention"]
        kinds = [f"{score}-{kind}" for kind in ("ability", "fact") for score in scores]
        losses = ["loss_own", "loss_final", "loss_forgetting", "general_loss_rise"]
        return {
            "conversion": lambda: conversion_table(tables["conversion"]),
            "topologies": lambda: topologies_table(tables["conversion"]),
            "algorithms": lambda: algorithms_table(tables["conversion"], tables["cost"], tables["timings"]),
            "metrics": lambda: measures_table(values, self.measures, [*scores, *beside, *kinds]),
            "losses": lambda: measures_table(values, self.measures, losses),
            "domains": lambda: domains_table(tables["metrics"], tables["accuracy"]),
            "controls": lambda: controls_table(values, statements_of(self.source.tests)),
            "stream_topologies": lambda: stream_topologies_table(values, statements_of(self.source.tests)),
            "doses": lambda: doses_table(values),
            "methods": lambda: methods_table(self.methods),
            "frontier": lambda: frontier_table(self.over_domains),
            "orders": lambda: orders_table(self.over_domains),
            "efficiency": lambda: efficiency_table(self.efforts, values),
            "fractions": lambda: fractions_table(self.efforts, tables["cost"]),
            "kernels": lambda: kernels_table(tables["inference"]),
            "costs": lambda: costs_table(tables["cost"], tables["timings"]),
            "verdicts": lambda: verdicts_table(values, self.source.tests, self.source.registration),
        }[name]()


@lru_cache
def paper_of(name: str) -> Paper:
    return Paper(source_of(name))


@pytest.fixture
def paper() -> Paper:
    return paper_of(PAPER)


def ways_to_print(found: Number | Cell | str) -> set[str]:
    """A number on the edge of rounding may be printed either way."""
    if isinstance(found, str):
        return {found}
    if isinstance(found, Cell):
        return {found.frame.format(*texts) for texts in product(*map(ways_to_print, found.numbers))}
    most = 1.0 if found.form in ("p_value", "bare_p") else math.inf
    return {FORMS[found.form](min(found.value * (1 + shift), most), found.signed) for shift in (-DISTURBED, 0.0, DISTURBED)}


def is_printed(text: str, found: Number | Cell | str) -> bool:
    if isinstance(found, Number) and found.within:
        return abs(read_number(text.strip("$= ")) - found.value) <= found.within
    return text in ways_to_print(found)


def test_every_printed_number_is_recomputed(paper):
    """No number without a recomputation but the named settings, and none recomputed that the paper prints as absent."""
    settings = {f"design/{name}" for names in SETTINGS.values() for name in names.split()}
    printed, again = set(paper.values), set(paper.recomputed)
    assert printed - again == settings | SENTENCES, sorted((printed - again) ^ (settings | SENTENCES))[:10]
    assert again <= printed, sorted(again - printed)[:10]


def test_printed_numbers(paper):
    pairs = [(key, text, paper.recomputed[key]) for key, text in paper.values.items() if key in paper.recomputed]
    wrong = [f"{key}: {text}, again {found}" for key, text, found in pairs if not is_printed(text, found)]
    assert len(pairs) > 5000 and not wrong, (len(wrong), wrong[:5])


def test_every_table_but_the_settings_is_recomputed(paper):
    assert set(paper.tables) == {*TABLES, "settings"}


TABLES = (
    "conversion", "topologies", "algorithms", "metrics", "losses", "domains", "controls", "stream_topologies", "doses", "methods",
    "frontier", "orders", "efficiency", "fractions", "kernels", "costs", "verdicts",
)  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_printed_tables(paper, name):
    """Every cell below the heading but of rows that span columns: these hold words, or numbers that have keys."""
    body = paper.tables[name].split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    printed, again = [line.split(" & ") for line in lines], paper.recomputed_table(name)
    assert [len(row) for row in printed] == [len(row) for row in again]
    pairs = [(text, cell) for row, cells in zip(printed, again, strict=True) for text, cell in zip(row, cells, strict=True)]
    wrong = [f"{text}, again {cell}" for text, cell in pairs if not is_printed(text.strip(), cell)]
    assert len(pairs) > 20 and not wrong, (len(wrong), wrong[:5])


def test_sentences_of_verdicts(paper):
    """Every difference, interval and F in the sentence of a verdict, by the contrast and the metric that it names."""
    for name, hypothesis in paper.source.registration["hypotheses"].items():
        rest = paper.values[f"verdict/{name}/sentence"].replace("$-$", "-")
        for (treatment, control), metric in deciding(hypothesis):
            found = difference(paper.source.values, treatment, control, metric["metric"])
            label, measure = (f"{treatment} - {control}", f"against {control}"), metric["metric"].replace("_", " ")
            written = f"{measure} {100 * found.estimate:+.1f} [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"
            rest = re.sub(rf"((?:{'|'.join(map(re.escape, label))}): (?:[^;]*, )?){re.escape(written)}", r"\1measured", rest)
        if "arms" in hypothesis:
            found = anova_numbers(paper.source.tables["accuracy"], hypothesis["arms"])
            for effect in ("topology", "interaction"):
                df, df_error, f, p = (found[f"anova/{effect}/{name}"].value for name in ("df", "df_error", "f", "p_holm"))
                rest = rest.replace(f"F({df}, {df_error}) = {f:.2f}, corrected p = {p:.2g}", "measured")
        assert rest.count("measured") > 3 and not re.findall(r"(?<![\w-])[+-]?\d+\.\d", rest), rest
