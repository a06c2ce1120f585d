"""The studies whose published tables are computed again (`test_recomputation`, `test_printed_numbers`), and how numbers are read."""

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from example_streams import example_streams
from recomputation import Run, read, rows, run_of, tidied
from recomputation_statistics import values_of

from sparsecl.number_formats import p_value
from sparsecl.preregistration import Preregistration, planned_analysis
from sparsecl.tree import REPOSITORY

EXAMPLE = "example streams"
RESULTS = REPOSITORY / "results"
SOURCES = (*sorted(path.parent.name for path in RESULTS.glob("*/published.json")), EXAMPLE)
SAMPLED = 60  # runs of a table
LATER = {"gain", "joint_efficiency_executed", "joint_efficiency_theoretical"}  # tables published before these were measured lack them
DISTURBED = 1e-12  # of itself; a number on the edge of rounding may be printed either way


@dataclass(frozen=True)
class Source:
    """One study's tables, as the recomputation reads them and as the package does."""

    name: str

    @property
    def folder(self) -> Path:
        return RESULTS / self.name

    @cached_property
    def study(self):
        from sparsecl.study_files import load_study

        return load_study("builtin-full" if self.name == EXAMPLE else self.name)

    @cached_property
    def theirs(self) -> dict[str, pd.DataFrame]:
        from sparsecl.tables import read_tables

        return example_streams(6, 3) if self.name == EXAMPLE else read_tables(self.folder)

    @cached_property
    def their_tests(self) -> pd.DataFrame:
        """The published tests; made anew where a publication is partial and has none yet."""
        from sparsecl.tables import read_table
        from sparsecl.verdict import tests_table

        if (self.folder / "tests.csv").is_file():
            return read_table("tests", self.folder)
        metrics, items, accuracy = (self.theirs.get(name) for name in ("metrics", "items", "accuracy"))
        return tests_table(metrics, Preregistration.model_validate(self.registration), items, accuracy, probes=self.theirs)

    @cached_property
    def tests(self) -> pd.DataFrame:
        return tidied(self.their_tests)

    @cached_property
    def tables(self) -> dict[str, pd.DataFrame]:
        if self.name == EXAMPLE:
            return {name: tidied(frame) for name, frame in self.theirs.items()}
        paths = [path for path in self.folder.iterdir() if path.suffix in (".csv", ".parquet")]
        return {path.stem: read(path) for path in paths if path.stem != "tests"}

    @cached_property
    def printed(self) -> dict[str, str | None]:
        """The values of the paper's text."""
        from sparsecl.paper_values import part_values

        return part_values(self.study, self.theirs | {"tests": self.their_tests})

    @cached_property
    def runs(self) -> list[Run]:
        return [run_of(row) for row in rows(self.tables["metrics"][list(Run._fields)].drop_duplicates())]

    @cached_property
    def registration(self) -> dict:
        """The registration, without hypotheses whose arms these tables lack; for the example with its numbers of replicates."""
        path = REPOSITORY / "paper" / "preregistration" / f"{self.study.name}.yaml"
        if not path.is_file():
            return planned_analysis(self.study).model_dump(mode="json")
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if self.name == EXAMPLE:
            for hypothesis in found["hypotheses"].values():
                hypothesis["replicates"] = 6
                for contrast in hypothesis.get("contrasts", ()):
                    contrast |= {"replicates": 3} if "replicates" in contrast else {}
            return found
        streamed = {run.arm if run.method == "full" else f"{run.arm}:{run.method}" for run in self.runs}
        return found | {"hypotheses": {name: h for name, h in found["hypotheses"].items() if needed_arms(h) <= streamed}}

    @cached_property
    def values(self):
        return values_of(self.tables["metrics"])

    def sampled(self, table: str) -> pd.DataFrame:
        """Keys of some of the runs of a table."""
        keys = self.tables[table][list(Run._fields)].drop_duplicates()
        generator = np.random.default_rng(zlib.crc32(f"{self.name}/{table}".encode()))
        return keys.iloc[np.sort(generator.permutation(len(keys))[:SAMPLED])]


def needed_arms(hypothesis: Mapping) -> set[str]:
    """The arms and runs without which a hypothesis has no test."""
    main = [contrast for contrast in hypothesis.get("contrasts", ()) if contrast.get("role") == "main"]
    return {*hypothesis.get("arms", ()), *(contrast[arm] for contrast in main for arm in ("treatment", "control"))}


@lru_cache
def source_of(name: str) -> Source:
    return Source(name)


def rounds_to(text: str, value: float, form, signed: bool = False) -> bool:
    arguments, most = (True,) if signed else (), 1.0 if form is p_value else math.inf
    return text in {form(min(value * (1 + shift), most), *arguments) for shift in (-DISTURBED, 0.0, DISTURBED)}


def read_number(text: str) -> float:
    """A number as the paper prints it."""
    return float(text.replace("$-$", "-").replace("$+$", "").replace("{,}", ""))
