"""What notebook 05 does with the tables: tests, verdict, and the paper's inputs (paper, section Results).

Reads tables only; no model is loaded and torch is not imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from sparsecl.config import Study
from sparsecl.decision import Verdict
from sparsecl.preregistration import Preregistration, planned_analysis
from sparsecl.protocol import one_length_a_run
from sparsecl.publication import part_figures, write_part
from sparsecl.records import sha256_of, write_atomically, write_record
from sparsecl.registration_history import RegistrationCheck, check_registration
from sparsecl.statistics import summary_table
from sparsecl.study_files import load_study
from sparsecl.tables import chance_scores, read_tables, tables_directory
from sparsecl.tree import REPOSITORY, Tree, open_tree
from sparsecl.verdict import compute_verdicts, tests_table

SHOWN_METRICS = ("forgetting", "own", "final", "bwt", "acc", "loss_forgetting", "loss_own", "loss_final")


@dataclass(frozen=True)
class StudyTables:
    """A study's tables, the analysis fixed for it, and where the paper's inputs go."""

    study: Study
    part: str
    tables: dict[str, pd.DataFrame]
    registration: Preregistration  # exploratory where git shows that it is younger than its results
    registration_check: RegistrationCheck
    folder: Path  # of the tables
    tree: Tree  # of the study whose paper is built

    @property
    def source(self) -> str:
        return str(self.folder.relative_to(REPOSITORY)) if self.folder.is_relative_to(REPOSITORY) else str(self.folder)

    @property
    def replicates(self) -> int:
        return self.tables["accuracy"]["seed"].nunique()


@dataclass(frozen=True)
class Analysis:
    """The computed statements."""

    summary: pd.DataFrame
    tests: pd.DataFrame
    verdicts: dict[str, Verdict]  # by hypothesis
    margin: float | None
    registration_check: RegistrationCheck

    @property
    def statement(self) -> str:
        """Every verdict in a line, and whether the analysis was committed before the results."""
        verdicts = [f"{name} {verdict.letter}: {verdict.sentence}." for name, verdict in self.verdicts.items()]
        return "\n".join([*verdicts, self.registration_check.sentence])


def open_statistics(study: str, part: str, output: str, paper_of: str) -> StudyTables:
    """Find and read a study's tables; BrokenFile names the command where there are none."""
    settings = load_study(study)
    owner = paper_of or settings.name
    folder = tables_directory(settings, open_tree(settings.name, output))
    registration = planned_analysis(settings)
    check = check_registration(settings, registration)
    if check.holds is False:
        registration = registration.model_copy(update={"status": "exploratory"})
    return StudyTables(settings, part, read_tables(folder), registration, check, folder, open_tree(owner, output))


def analyse(statistics: StudyTables) -> Analysis:
    """Summaries, tests and verdicts from the metrics (with the accuracy for H3, the probes for H4, and the items for the bootstrap)."""
    tables, registration = statistics.tables, statistics.registration
    metrics, accuracy = tables["metrics"], tables["accuracy"]
    shown = metrics[metrics["metric"].isin(SHOWN_METRICS) & (metrics["domain"] == "") & (metrics["kind"] == "all")]
    also = {"probes": tables, "stage_steps": statistics.study.continual.stage_steps}
    tests = tests_table(metrics, registration, tables.get("items"), accuracy, **also)
    verdicts = compute_verdicts(metrics, registration, accuracy, **also)
    return Analysis(summary_table(one_length_a_run(shown)), tests, verdicts, registration.margin, statistics.registration_check)


def draw_figures(statistics: StudyTables) -> dict[str, Figure]:
    """Every figure that the tables can fill, by name; drawn once, for the notebook and the paper."""
    return part_figures(statistics.tables, statistics.registration.margin, study=statistics.study)


def shown(figures: Mapping[str, Figure], name: str) -> Figure | str:
    """A figure, or a sentence where this study has none."""
    return figures.get(name, f"{name}: this study did not measure it")


def write_outputs(statistics: StudyTables, analysis: Analysis, figures: Mapping[str, Figure]) -> Path:
    """Write the paper's inputs of this part, tests.csv and the record of notebook 05."""
    tables = {**statistics.tables, "tests": analysis.tests}
    folder = write_part(
        statistics.tree.path("paper"),
        statistics.study,
        statistics.part,
        tables,
        analysis.verdicts,
        statistics.registration,
        chance_scores(tables["chance"]),
        figures,
    )
    tests = folder / "tests.csv"
    write_atomically(tests, lambda temporary: analysis.tests.to_csv(temporary, index=False))
    record = statistics.tree.path(f"05_stats-{statistics.part}.json")
    letters = {name: verdict.letter for name, verdict in analysis.verdicts.items()}
    about = {"notebook": "05_stats", "study": statistics.study.name, "part": statistics.part, "verdicts": letters}
    digests = {"settings_sha256": statistics.study.digest(), "tables": _digests(statistics.folder), "tests_sha256": sha256_of(tests)}
    write_record(record, {**about, **digests})
    return record


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".parquet")}
