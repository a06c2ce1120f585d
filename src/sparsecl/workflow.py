"""The engine: `./run_all.sh` -> Snakemake -> notebooks (paper, Reproducibility).

    python -m sparsecl.workflow --study builtin --cores 2

`Plan` is the study's graph as the Snakefile asks for it; `main` holds the study's lock, runs Snakemake,
shows one progress line and ends with a summary. Nothing here schedules or retries: Snakemake does.
"""

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from sparsecl import job_status
from sparsecl.code_digest import module_digest, notebook_digest
from sparsecl.config import VALIDATION, Study
from sparsecl.published_replicates import is_published
from sparsecl.records import BrokenFile, write_json
from sparsecl.study_files import load_study
from sparsecl.tables import NOTEBOOKS, TABLES_RECORD, notebooks_of
from sparsecl.tree import REPOSITORY, Tree, open_tree, published

STATISTICS = "05_stats"


@dataclass(frozen=True)
class Plan:
    """Which records follow from which; paths are relative to the study's tree, where Snakemake runs."""

    study: Study
    study_source: str  # what was asked for: a name or a file
    output: str
    only: str | None
    pdf: bool
    publishes: bool = False  # complete replicates are copied to results/ as they finish, and those there are not run again

    @classmethod
    def read(cls, configuration: dict) -> "Plan":
        source = configuration["study"]
        return cls(
            load_study(source), source, configuration["output"], configuration["only"], configuration["pdf"], configuration["publishes"]
        )

    @property
    def tree(self) -> Tree:
        return open_tree(self.study.name, self.output)

    def record(self, notebook: str, replicate: int | str) -> str:
        return f"replicate-{replicate}/{notebook}.json"

    def upstream(self, notebook: str, replicate: str) -> list[str]:
        """Records a replicate's notebook needs."""
        position = NOTEBOOKS.index(notebook)
        # 04 probes the arms of 01 and 02; it waits for the streams of 03 where it follows models along them.
        before = self.study.probe.upstream if notebook == "04_probe" else NOTEBOOKS[position - 1]
        needed = [self.record(before, replicate)] if position else []
        owner = str(self.study.base_of(replicate))
        if not position and owner != replicate:
            needed.append(self.record("01_sparsify", owner))
        chooses = self.study.needs_validation() and VALIDATION not in self.reused()
        if notebook == "03_continual" and chooses and replicate != VALIDATION:
            needed.append(self.record("03_continual", VALIDATION))
        return needed

    def threads(self, notebook: str, replicate: str) -> int:
        owns_base = notebook == "01_sparsify" and str(self.study.base_of(replicate)) == replicate
        return self.study.base_threads if owns_base else 1

    def priority(self, notebook: str, replicate: str) -> int:
        """The validation replicate first, because every stream waits for its learning rate.

        A run that publishes then finishes replicate after replicate, the last ones first: they run the main protocol alone. In any
        other run all move along together, notebook after notebook, so that no core is idle at the end.
        """
        names = [str(name) for name in self.study.replicate_names()]
        if replicate == VALIDATION:
            return len(names) * len(NOTEBOOKS)
        place = names.index(replicate)
        return place if self.publishes else (len(NOTEBOOKS) - NOTEBOOKS.index(notebook)) * len(names) - 1 - place

    def code(self, notebook: str) -> str:
        return notebook_digest(REPOSITORY / "notebooks" / f"{notebook}.ipynb")

    def module_code(self, module: str) -> str:
        return module_digest(module)

    def settings(self, notebook: str) -> str:
        return self.study.digest_up_to(notebook)

    def recompute(self, notebook: str) -> str:
        """`--only` asks for the work itself again, not for what was kept of it."""
        return "true" if notebook == self.only else "false"

    def records(self) -> list[str]:
        """Records behind the tables; with `--publish` or `--only 05_stats`, a published replicate needs none."""
        return [
            self.record(notebook, replicate)
            for replicate in self.study.replicate_names()
            if replicate not in self.reused()
            for notebook in notebooks_of(replicate)
        ]

    def reused(self) -> list[int | str]:
        """Published replicates that this tree has not run and will not run."""
        if not (self.publishes or self.only == STATISTICS):
            return []
        return [name for name in self.study.replicate_names() if is_published(self.study, name) and not self._has_run(name)]

    def _has_run(self, replicate: int | str) -> bool:
        return self.tree.path(self.record(notebooks_of(replicate)[-1], replicate)).is_file()

    def parts(self) -> dict[str, str]:
        """The study behind each part of the paper."""
        from sparsecl.paper_parts import parts_of

        return parts_of(self.study.name)

    def part_study(self, part: str) -> str:
        """The study of a part as a notebook parameter; the study asked for may be a file."""
        name = self.parts()[part]
        return self.study_source if name == self.study.name else name

    def part_inputs(self, part: str) -> list[str]:
        """The tables behind a part, and the registered analysis of its study where there is one."""
        name = self.parts()[part]
        registration = REPOSITORY / "paper" / "preregistration" / f"{name}.yaml"
        tables = TABLES_RECORD if name == self.study.name else str(published(name) / "published.json")
        return [tables, *([str(registration)] if registration.is_file() else [])]

    def own_records(self) -> list[str]:
        """The 05_stats records of the parts that this study stands behind."""
        return [f"{STATISTICS}-{part}.json" for part, name in self.parts().items() if name == self.study.name]

    def part_records(self) -> list[str]:
        """One 05_stats record for each part that has tables: this study's and the published ones, which only the paper needs."""
        others = [part for part, name in self.parts().items() if name != self.study.name and (published(name) / "published.json").is_file()]
        return [*self.own_records(), *(f"{STATISTICS}-{part}.json" for part in others)]

    def paper_sources(self) -> list[str]:
        folder = REPOSITORY / "paper"
        return sorted(str(path) for pattern in ("*.tex", "sections/*.tex", "*.bib", "paper.yaml") for path in folder.glob(pattern))

    def targets(self) -> list[str]:
        """What this run is to make."""
        if self.only in NOTEBOOKS:
            return [self.record(self.only, replicate) for replicate in self.study.replicate_names() if self.only in notebooks_of(replicate)]
        if self.only == STATISTICS:
            return self.own_records()
        return ["paper/paper.json"] if self.pdf else [TABLES_RECORD, *self.own_records()]


def build_tables(study_source: str, output: str) -> None:
    """The rule `tables`."""
    from sparsecl.tables import compile_tables

    study = load_study(study_source)
    compile_tables(study, open_tree(study.name, output))


def build_pdf(study_source: str, output: str) -> None:
    """The rule `paper`: latexmk, then the copy in paper/ (or beside the tree with --out)."""
    from sparsecl.publication import build_paper, is_paper_of_record
    from sparsecl.records import sha256_of, write_atomically, write_record

    study = load_study(study_source)
    tree = open_tree(study.name, output)
    parts = Plan(study, study_source, output, None, True).parts()
    # A part without published tables makes it a draft, which says so on every page, instead of no paper at all.
    complete = all(name == study.name or (published(name) / "published.json").is_file() for name in parts.values())
    pdf = build_paper(tree.path("paper"), parts, complete and is_paper_of_record(parts))
    copy = paper_copy(output)
    write_atomically(copy, lambda temporary: shutil.copyfile(pdf, temporary))
    write_record(tree.path("paper", "paper.json"), {"parts": parts, "pdf_sha256": sha256_of(pdf), "copy": copy.name})


def paper_copy(output: str) -> Path:
    """Where the PDF is copied: paper/main.pdf, or DIR/main.pdf with `--out DIR`."""
    return REPOSITORY / "paper" / "main.pdf" if output == "runs" else Path(output) / "main.pdf"


def snakemake_command(plan: Plan, cores: int, extra: Sequence[str]) -> list[str]:
    """The Snakemake call, as a list: nothing passes through a shell."""
    root = plan.tree.root
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(root),
        "--configfile", str(root / "workflow.json"), "--cores", str(cores), "--rerun-incomplete", "--keep-going",
        "--rerun-triggers", "mtime", "params", "input", "--nocolor", *extra,
    ]  # fmt: skip
    return [*command, "--force", *plan.targets()] if plan.only else command


def prepare(plan: Plan) -> None:
    """Write the configuration Snakemake reads and clear what a killed run left; needs the study's lock."""
    root = plan.tree.root
    if stopped := job_status.stop_left_over(root):
        print(f"stopped what a killed run had left running: {', '.join(stopped)}")
    shutil.rmtree(root / ".snakemake" / "locks", ignore_errors=True)
    about = {"study": plan.study_source, "output": plan.output, "only": plan.only, "pdf": plan.pdf, "publishes": plan.publishes}
    write_json(root / "workflow.json", about)


def run(plan: Plan, cores: int, extra: Sequence[str]) -> int:
    """Run the plan under the study's lock; returns the exit status."""
    from sparsecl.progress import follow
    from sparsecl.tables import publish

    root = plan.tree.root
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / ".lock", timeout=0):
            prepare(plan)
            if plan.publishes and plan.reused():
                print(f"taken from {published(plan.study.name).relative_to(REPOSITORY)}, not run: replicates {_named(plan.reused())}")
            watch = Publication(plan) if plan.publishes else None
            status = follow(snakemake_command(plan, cores, extra), root, plan, watch)
            if status == 0 and plan.publishes:
                part = next(part for part, name in plan.parts().items() if name == plan.study.name)
                print(f"published: {publish(plan.study, plan.tree, plan.tree.path('paper', part, 'tests.csv')).relative_to(REPOSITORY)}")
            return status
    except Timeout:
        print(f"study {plan.study.name} is already being run in {root}; wait for it or stop it first", file=sys.stderr)
        return 1


class Publication:
    """Publishes the complete replicates whenever one more is finished, so that a long run that is lost loses little."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._known = self._finished()

    def _finished(self) -> set[int | str]:
        """Replicates whose last record is there; reads no file, for it is asked twice a second."""
        study, tree = self._plan.study, self._plan.tree
        return {
            name
            for name in study.replicate_names()
            if all(tree.path(self._plan.record(notebook, name)).is_file() for notebook in notebooks_of(name))
        }

    def __call__(self) -> None:
        from sparsecl.tables import publish_finished

        finished = self._finished()
        if finished > self._known:
            self._known = finished
            try:
                done = publish_finished(self._plan.study, self._plan.tree)
            except (ValueError, BrokenFile) as error:  # what is run is worth more than its early publication
                print(f"not published now, the run goes on: {error}", file=sys.stderr, flush=True)
            else:
                print(f"published so far: replicates {_named(done)}", flush=True)


def _named(replicates: Sequence[int | str]) -> str:
    return ", ".join(str(name) for name in replicates) or "none"


def parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options `run_all.sh` hands over; what follows `--` goes to Snakemake."""
    arguments = list(arguments)
    extra: list[str] = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, extra = arguments[:cut], arguments[cut + 1 :]
    parser = argparse.ArgumentParser(prog="sparsecl.workflow", allow_abbrev=False)
    parser.add_argument("--study", default="builtin")
    parser.add_argument("--only", choices=[*NOTEBOOKS, STATISTICS])
    parser.add_argument("--publish", action="store_true")
    parser.add_argument("--out", default="runs")
    parser.add_argument("--no-pdf", action="store_true")
    parser.add_argument("--cores", type=int, default=min(2, os.cpu_count() or 1))
    return parser.parse_args(arguments), extra


def main(arguments: Sequence[str]) -> int:
    options, extra = parse(arguments)
    try:
        study = load_study(options.study)
        output = options.out if options.out == "runs" else str(Path(options.out).absolute())
        plan = Plan(study, options.study, output, options.only, not options.no_pdf, options.publish)
        return run(plan, options.cores, extra)
    except (ValueError, BrokenFile) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def do_step(name: str, study_source: str, output: str) -> int:
    """One of the rules that are no notebook; its failure is named in the summary like a notebook's."""
    root = Path.cwd()
    job_status.running(root, name)
    try:
        {"tables": build_tables, "paper": build_pdf}[name](study_source, output)
    except Exception as error:
        job_status.failed(root, name, str(error))
        raise
    job_status.finished(root, name)
    return 0


if __name__ == "__main__":
    is_step = sys.argv[1:2] in (["tables"], ["paper"])
    sys.exit(do_step(*sys.argv[1:]) if is_step else main(sys.argv[1:]))
