"""One replicate of one study as a notebook sees it: settings, random streams, files, inputs.

Work is done in units (a base, a conversion, a recovered arm, a stage). A unit's key is the digest of its
settings, its upstream units and the code it reaches; a finished unit with the same key is loaded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sparsecl.arms import Arm
from sparsecl.config import Study, replicate_name
from sparsecl.items import Suite
from sparsecl.randomness import generator, stream_seed
from sparsecl.records import Stopwatch, peak_memory_bytes, provenance, read_record, sha256_of, write_record
from sparsecl.study_files import load_study
from sparsecl.tree import Tree, open_tree


class MissingInput(RuntimeError):
    """A notebook's input has not been made yet; the message names the command that makes it."""


@dataclass(frozen=True)
class Experiment:
    """A study's replicate with its tree; `arms` restricts the work where it is not empty."""

    study: Study
    replicate: int | str
    tree: Tree
    arms: tuple[str, ...] = ()
    recompute: bool = False
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def folder(self) -> str:
        return self.tree.replicate(self.replicate)

    @property
    def device(self) -> str:
        return provenance()["device"]

    @property
    def base(self) -> int | str:
        """The replicate whose base this one starts from."""
        return self.study.base_of(self.replicate)

    def arms_made(self, *lineages: str) -> tuple[Arm, ...]:
        """The arms of these lineages that this replicate makes."""
        return tuple(arm for arm in self.chosen(self.study.arms_of(self.replicate)) if arm.lineage in lineages)

    def chosen(self, names: Sequence[str]) -> tuple[Arm, ...]:
        """The arms of `names` that this run works on."""
        known = [arm.name for arm in self.study.all_arms()]
        if unknown := set(self.arms) - set(known):
            raise ValueError(f"arms {sorted(unknown)} are not in study {self.study.name}; known: {known}")
        return tuple(self.study.arm(name) for name in names if not self.arms or name in self.arms)

    def generator(self, stream: str) -> np.random.Generator:
        """A fresh generator of one of this replicate's streams."""
        return generator(self.study.seed, self.replicate, stream)

    def base_generator(self, stream: str) -> np.random.Generator:
        """A fresh generator of one of the streams that belong to the base."""
        return generator(self.study.seed, self.base, stream)

    def seed(self, stream: str) -> int:
        """The seed of one of this replicate's streams, for generators that are not numpy's."""
        return stream_seed(self.study.seed, self.replicate, stream)

    def base_seed(self, stream: str) -> int:
        return stream_seed(self.study.seed, self.base, stream)

    @cached_property
    def suite(self) -> Suite:
        from sparsecl.suites import build_suite

        return build_suite(self.study, self.replicate)

    def write_path(self, *parts: str) -> Path:
        return self.tree.path(self.folder, *parts)

    def find(self, *parts: str) -> Path | None:
        return self.tree.find(self.folder, *parts)

    def record_path(self, notebook: str) -> Path:
        return self.write_path(f"{notebook}.json")

    def require(self, notebook: str, replicate: int | str | None = None) -> dict[str, Any]:
        """The record of an upstream notebook; MissingInput says in one sentence what to run where there is none."""
        replicate = self.replicate if replicate is None else replicate
        path = self.tree.find(self.tree.replicate(replicate), f"{notebook}.json")
        if path is None:
            raise MissingInput(
                f"{self.tree.path(self.tree.replicate(replicate), notebook + '.json')} is not there yet: run notebook {notebook} with "
                f"replicate = {replicate!r}, or ./run_all.sh --study {self.study.name} --only {notebook}"
            )
        return read_record(path)

    def finish(
        self, notebook: str, tables: Mapping[str, Sequence[Mapping] | pd.DataFrame], files: Sequence[Path] = (), **about: Any
    ) -> Path:
        """Write this job's record: rows for the tables, hashes of its files, provenance and cost."""
        path = self.record_path(notebook)
        content = {
            "notebook": notebook,
            "study": self.study.name,
            "replicate": self.replicate,
            "base": self.base,
            "arms": list(self.arms),
            "settings_sha256": self.study.digest_up_to(notebook),
            "provenance": provenance(),
            "wall_s": round(self.watch.seconds(), 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "files": {str(file.relative_to(path.parent)): sha256_of(file) for file in files},
            "tables": {name: _rows_of(rows) for name, rows in tables.items()},
            **about,
        }
        write_record(path, content)
        return path


def _rows_of(rows: Sequence[Mapping] | pd.DataFrame) -> list[Mapping]:
    """Rows as a record keeps them: an absent number is None."""
    return rows.astype(object).where(rows.notna(), None).to_dict("records") if isinstance(rows, pd.DataFrame) else list(rows)


def open_experiment(
    study: str, replicate: int | str, arms: Sequence[str] = (), output: str | Path = "runs", recompute: bool = False
) -> Experiment:
    """Open a replicate for a notebook; bad parameters are refused here, before any work."""
    settings = load_study(study)
    replicate = replicate_name(replicate)
    if replicate not in settings.replicate_names():
        raise ValueError(f"replicate {replicate!r} is not in study {settings.name}; known: {settings.replicate_names()}")
    return Experiment(settings, replicate, open_tree(settings.name, output), tuple(arms), recompute)
