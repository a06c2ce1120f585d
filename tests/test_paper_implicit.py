"""The parts `implicit` and `moe` of the paper: every printed number and table cell is recomputed from the tables alone.

On the published tables where there are some, on planted ones in any case. The independent route is in `recomputation_implicit`.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import pandas as pd
import pytest
import yaml
from example_implicit import STUDIES, example_implicit, example_verdicts
from recomputation import read, tidied
from recomputation_implicit import numbers, table
from test_printed_numbers import is_printed

from sparsecl.preregistration import Preregistration
from sparsecl.study_files import load_study
from sparsecl.tree import REPOSITORY

PLANTED = "planted"
IMPLICIT_TABLES = {"verdicts", "methods", "overlap_layers", "gradient_layers", "scale", "equal_own", "drift"}
TABLES = {"implicit": IMPLICIT_TABLES, "moe": {"methods", "routing"}}
# Printed, but not derived from a table: what the study's file sets, and words.
SETTING_NAMES = """
    study title source replicates bases domains domain_list pretrain_steps pretrain_batch pretrain_learning_rate recover_steps recover_batch
    recover_learning_rate stage_steps stage_batch learning_rate_grid weight_decay clip algorithm dampening calibration_rows layers hidden
    ffn heads kv_heads head_dim vocabulary max_length dtype test_items general_items facts_per_domain fact_share probe_items top_fraction
    permutations seed curve_items comparison_replicates lora_rank lora_alpha replay_lines replay_share top_fractions gradient_batches
    gradient_rows gradient_rank drift_energy drift_rows drift_tokens ladder_widths ladder_replicates mask_fraction mask_rows branch_fraction
    orthogonal_energy orthogonal_rows o_lora_l1 osf_frozen experts experts_per_token top_p further/methods/replicates
    further/methods/stage_steps further/methods/orders further/frontier/replicates further/frontier/stage_steps further/frontier/orders
    margin alpha status"""
SETTINGS = {f"design/{name}" for name in SETTING_NAMES.split()}
WORDS = {f"verdict/{name}/{word}" for name in ("H4", "H5A", "H5B") for word in ("sentence", "statement", "missing_controls")}


@dataclass(frozen=True)
class Part:
    """What the paper prints of one part, as the package writes it and as it is recomputed."""

    name: str
    source: str  # planted, or a published study

    @cached_property
    def study(self):
        return load_study(STUDIES[self.name])

    @cached_property
    def theirs(self) -> dict[str, pd.DataFrame]:
        from sparsecl.tables import read_table, read_tables

        if self.source == PLANTED:
            return example_implicit()
        folder = REPOSITORY / "results" / self.source
        return read_tables(folder) | {"tests": read_table("tests", folder)}

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        if self.source == PLANTED:
            return {name: tidied(frame) for name, frame in self.theirs.items()}
        paths = (REPOSITORY / "results" / self.source).iterdir()
        return {path.stem: read(path) for path in paths if path.suffix in (".csv", ".parquet")}

    @cached_property
    def registration(self) -> dict | None:
        path = REPOSITORY / "paper" / "preregistration" / f"{STUDIES[self.name]}.yaml"
        return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def verdicts(self) -> dict:
        from sparsecl.verdict import compute_verdicts

        if self.registration is None:
            return {}
        if self.source == PLANTED:
            return example_verdicts()
        registration, steps = Preregistration.model_validate(self.registration), self.study.continual.stage_steps
        return compute_verdicts(self.theirs["metrics"], registration, self.theirs["accuracy"], probes=self.theirs, stage_steps=steps)

    @cached_property
    def registered(self) -> set[str]:
        from sparsecl.paper_values import registered_keys

        return {key.removeprefix(f"{self.name}/") for key in registered_keys(self.name)}

    @cached_property
    def values(self) -> dict[str, str]:
        from sparsecl.paper_values import part_values

        found = part_values(self.study, self.theirs, self.verdicts, {}, {}, self.name)
        assert set(found) <= self.registered, sorted(set(found) - self.registered)[:5]
        return {key: text for key, text in found.items() if text is not None}

    @cached_property
    def printed_tables(self) -> dict[str, str]:
        from sparsecl.paper_tables import part_tables

        return part_tables(self.study, self.theirs, None, self.verdicts, {}, self.name)

    @cached_property
    def settings(self) -> dict[str, float]:
        return {"stage_steps": self.study.continual.stage_steps, "top_fraction": self.study.probe.top_fraction}

    @cached_property
    def recomputed(self) -> dict:
        found = numbers(self.name, self.tables, self.registration, self.settings)
        return {key: number for key, number in found.items() if key in self.registered}


def sources() -> list[tuple[str, str]]:
    found = [(part, PLANTED) for part in STUDIES]
    return found + [(part, study) for part, study in STUDIES.items() if (REPOSITORY / "results" / study / "published.json").is_file()]


@lru_cache
def part_of(name: str, source: str) -> Part:
    return Part(name, source)


@pytest.fixture(params=sources(), ids="-".join)
def part(request) -> Part:
    return part_of(*request.param)


def test_every_printed_number_is_recomputed(part):
    """None without a recomputation but the named settings and words, and none recomputed that the paper prints as absent."""
    printed, again = set(part.values), set(part.recomputed)
    assert printed - again <= SETTINGS | WORDS, sorted(printed - again - SETTINGS - WORDS)[:10]
    assert again <= printed, sorted(again - printed)[:10]


def test_printed_numbers(part):
    pairs = [(key, part.values[key], found) for key, found in part.recomputed.items()]
    wrong = [f"{key}: {text}, again {found}" for key, text, found in pairs if not is_printed(text, found)]
    assert len(pairs) > 500 and not wrong, (len(wrong), wrong[:5])


def test_printed_tables(part):
    """Every cell below the heading but of rows that span columns, which hold words."""
    assert set(part.printed_tables) == TABLES[part.name]
    for name, text in part.printed_tables.items():
        body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
        lines = [line.removesuffix(r" \\") for line in body.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
        printed = [[cell.strip() for cell in line.split(" & ")] for line in lines]
        again = table(part.name, name, part.tables, part.registration, part.settings)
        assert [len(row) for row in printed] == [len(row) for row in again], name
        pairs = [(text, cell) for row, cells in zip(printed, again, strict=True) for text, cell in zip(row, cells, strict=True)]
        wrong = [f"{text}, again {cell}" for text, cell in pairs if not is_printed(text, cell)]
        assert len(pairs) > 20 and not wrong, (name, len(wrong), wrong[:5])


def test_sentences_of_verdicts(part):
    """Every estimate and interval in the sentence of a verdict is one of the numbers that decide, or is that at equal own."""
    known = {text.replace("$-$", "-").replace("$+$", "+") for row in table_of_verdicts(part) for text in row}
    known |= {equal_own_text(part.values, name) for name in ("H5A", "H5B") if part.verdicts}
    for name in part.verdicts:
        sentence = part.values[f"verdict/{name}/sentence"].replace("$-$", "-")
        stated = re.findall(r"[+-]?\d+\.\d \[[+-]?\d+\.\d, [+-]?\d+\.\d\]", sentence)
        assert stated and set(stated) <= known, (name, set(stated) - known)


def table_of_verdicts(part) -> list[list[str]]:
    lines = part.printed_tables["verdicts"].splitlines() if part.verdicts else []
    return [[cell.strip() for cell in line.split(" & ")] for line in lines]


def equal_own_text(values, name: str) -> str:
    estimate, low, high = (values[f"equal_own/{name}/forgetting/{key}"] for key in ("estimate", "ci_low", "ci_high"))
    return f"{estimate} [{low}, {high}]".replace("$-$", "-").replace("$+$", "+")


def test_a_part_has_keys_of_its_own():
    from sparsecl.paper_values import registered_keys

    main, implicit, moe = (registered_keys(name) for name in ("main", "implicit", "moe"))
    assert all(len(keys) == len(set(keys)) for keys in (main, implicit, moe))
    assert not [key for key in main if "osf" in key or "/drift/" in key]
    assert "implicit/verdict/H5A/letter" in implicit and "moe/routing/D1/jsd/mean" in moe and not [key for key in moe if "/verdict/" in key]


def cells(shares) -> pd.DataFrame:
    """A row a cell and replicate from shares by cell (rows) and replicate (columns); chance is 0.1, the label null 0.5."""
    rows = [
        {"seed": seed, "layer": layer, "module": "", "domain_a": "code", "domain_b": "math", "share": share, "value": share}
        for layer, of in enumerate(shares)
        for seed, share in enumerate(of)
    ]
    return pd.DataFrame(rows).assign(null=0.1, null_label=0.5)


def test_means_are_over_the_cells_that_every_replicate_has():
    from sparsecl.paper_values_probes import cell_counts, cells_used, mean_share, share_difference

    whole, gap = cells([[0.2, 0.4], [0.3, 0.5], [0.8, 0.9]]), cells([[0.2, 0.4], [0.3, 0.5], [0.8, float("nan")]])
    assert mean_share(whole)["mean"] == pytest.approx((0.2 + 0.4 + 0.3 + 0.5 + 0.8 + 0.9) / 6) and cells_used(whole) == "3 of 3"
    assert mean_share(gap)["mean"] == pytest.approx((0.2 + 0.4 + 0.3 + 0.5) / 4) and cells_used(gap) == "2 of 3"
    assert share_difference(gap.assign(share=gap["share"] + 0.1), whole)["estimate"] == pytest.approx(0.1)
    assert cell_counts(whole) == {"cells": 3, "above_chance": 3, "below_label_null": 1}
    assert cell_counts(gap) == {"cells": 2, "above_chance": 2, "below_label_null": 1}, "what is absent lies on no side"
    without = mean_share(cells([[0.2, float("nan")], [0.3, float("nan")]]))
    assert without["mean"] == pytest.approx(0.25) and without["n"] == 1, "a replicate without any cell is not there"


def test_absent_divergences_are_not_counted():
    from sparsecl.paper_values_routing import beyond_labels

    assert beyond_labels(cells([[0.6, 0.7], [0.6, 0.4], [0.8, float("nan")]]), "jsd") == (2, 1)
    without_null = cells([[0.6, 0.7], [0.1, 0.4], [0.2, 0.2]]).assign(null_label=[0.5, 0.5, 0.5, 0.5, 0.5, None])
    assert beyond_labels(without_null, "coactivation") == (2, 1)


def test_one_number_of_replicates_stands_for_all_frontiers():
    from sparsecl.paper_values_runs import run_values

    study, tables = load_study(STUDIES["implicit"]), example_implicit()
    metrics = tables["metrics"]
    fewer = metrics[~(metrics["method"].isin(["lora", "osf"]) & (metrics["seed"] == 0))]
    with pytest.raises(ValueError, match="replicates with several stage lengths differ: .*osf and lora': 3"):
        run_values("implicit", study, {"metrics": fewer})


def test_what_was_not_measured_is_absent_and_never_zero():
    from sparsecl.paper_tables import part_tables
    from sparsecl.paper_values import part_values

    for name, study in STUDIES.items():
        nothing = part_values(load_study(study), {}, part=name)
        assert {key for key, text in nothing.items() if text is not None} <= SETTINGS
        assert part_tables(load_study(study), {}, part=name) == {}
