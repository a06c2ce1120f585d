r"""From tables to the paper's PDF: generated inputs of each part, then latexmk (paper, all of it).

`write_part` fills `<build>/<part>/` with `values.tex` (a definition for every registered key), `tables/*.tex`
and `figures/*.pdf`; `build_paper` writes `<build>/build.tex` and runs latexmk there. The text types no
result: `\val{key}` stops LaTeX for an unknown key, and a dash stops the paper of record.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import yaml
from matplotlib.figure import Figure

from sparsecl import figures
from sparsecl.config import Study
from sparsecl.figure_style import NothingToDraw
from sparsecl.number_formats import latex_text, points, rate
from sparsecl.paper_arms import REFERENCE, TREATMENT
from sparsecl.paper_tables import part_tables
from sparsecl.paper_values import part_values, registered_keys
from sparsecl.records import write_text
from sparsecl.tree import REPOSITORY

PAPER = REPOSITORY / "paper"
EPOCH = "1767225600"  # 2026-01-01: PDFs of equal content have equal bytes
TIMEOUT = 300  # seconds
Drawing = tuple[Callable[..., Figure], tuple[str, ...]]  # a function, and the tables it takes


class PaperError(RuntimeError):
    """The paper could not be built; the message holds LaTeX's reason and the next step."""


def is_paper_of_record(parts: Mapping[str, str], paper: Path = PAPER) -> bool:
    """Whether the parts come from the studies that paper.yaml names, so that dashes stop the build."""
    return dict(parts) == yaml.safe_load((paper / "paper.yaml").read_text(encoding="utf-8"))["parts"]


def values_tex(part: str, values: Mapping[str, str | None]) -> str:
    """A definition for every registered key of a part; raises ValueError for a value whose key is not registered."""
    keys = registered_keys(part)
    unknown = sorted({f"{part}/{name}" for name in values} - set(keys))
    if unknown:
        raise ValueError(f"values {unknown[:5]} are not registered keys of the paper; register them in sparsecl.paper_values")
    lines = []
    for key in keys:
        value = values.get(key.removeprefix(f"{part}/"))
        lines.append(f"\\defineabsent{{{key}}}" if value is None else f"\\definevalue{{{key}}}{{{value}}}")
    return "\n".join([f"% Generated from the tables of part {part}; edits are lost.", *lines, ""])


def _registration_facts(registration) -> dict[str, str | None]:
    if registration is None:
        return {}
    return {"margin": points(registration.margin), "alpha": rate(registration.alpha), "status": latex_text(registration.status)}


def figures_of(part: str, paper: Path = PAPER) -> set[str]:
    """Names of the figures that the text shows of one part."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((paper / "sections").glob("*.tex")))
    return set(re.findall(rf"\\paperfigure{{{re.escape(part)}/(\w+)}}", text))


def part_figures(
    tables: Mapping[str, pd.DataFrame], margin: float | None = None, names: set[str] | None = None, study: Study | None = None
) -> dict[str, Figure]:
    """Those of the named figures (default: all) that the tables can fill, by file name without suffix.

    `study` says what the tables do not: the width of D0.
    """
    known = _streams_figures(margin) | _checkpoint_figures() | _probe_figures(study)
    found = {}
    for name in sorted(known if names is None else names):
        draw, needed = known[name]
        try:
            if all(len(tables.get(table, ())) for table in needed):
                found[name] = draw(*(tables[table] for table in needed))
        except NothingToDraw:
            continue  # a study without scores, or without a sweep, has no such figure
    return found


def _checkpoint_figures() -> dict[str, Drawing]:
    return {
        "conversion_and_recovery": (figures.conversion_and_recovery, ("conversion",)),
        "topology_comparison": (figures.topology_comparison, ("conversion",)),
        "algorithm_comparison": (figures.algorithm_comparison, ("conversion",)),
        "density_scan": (figures.density_scan, ("conversion",)),
        "recovery_curves": (figures.recovery_curves, ("conversion",)),
        "inference_speed": (figures.inference_speed, ("inference",)),
    }


def _streams_figures(margin: float | None) -> dict[str, Drawing]:
    return {
        "forgetting_curves": (lambda *both: figures.forgetting_curves(*map(of_main_contrast, both)), ("curves", "accuracy")),
        "accuracy_matrices": (lambda accuracy: figures.accuracy_matrices(of_main_contrast(accuracy)), ("accuracy",)),
        "forgetting_own_final": (lambda metrics: figures.forgetting_own_final(of_main_contrast(metrics), margin), ("metrics",)),
        "learning_rate_sweep": (figures.learning_rate_sweep, ("learning_rate",)),
        "loss_forgetting": (figures.loss_forgetting, ("accuracy", "curves")),
        "controls": (lambda metrics: figures.controls(metrics, margin), ("metrics",)),
        "efficiency_plane": (figures.efficiency_plane, ("metrics",)),
        "forgetting_by_topology": (figures.forgetting_by_topology, ("accuracy",)),
        "learned_forgotten_frontier": (figures.learned_forgotten_frontier, ("metrics",)),
        "forgetting_by_order": (lambda metrics: figures.forgetting_by_order(metrics, margin=margin), ("metrics",)),
        "dose_response": (figures.dose_response, ("metrics",)),
        "crossover": (figures.crossover, ("curves", "accuracy", "timings")),
        "methods_plane": (figures.methods_plane, ("metrics",)),
        "plasticity_stability": (figures.plasticity_stability, ("metrics",)),
        "retention_by_domain": (figures.retention_by_domain, ("metrics", "accuracy")),
        "learning_rate_methods": (figures.learning_rate_methods, ("learning_rate",)),
        "update_mask_overlap": (figures.update_mask_overlap, ("update_masks",)),
    }


def _probe_figures(study: Study | None) -> dict[str, Drawing]:
    widths = study.widths() if study is not None else None
    return {
        "layer_overlap": (figures.layer_overlap, ("overlap",)),
        "overlap_heatmaps": (figures.overlap_heatmaps, ("overlap",)),
        "overlap_by_fraction": (figures.overlap_by_fraction, ("overlap",)),
        "gradient_overlap": (figures.gradient_overlap, ("gradients",)),
        "scale_trend": (lambda overlap, gradients: figures.scale_trend(overlap, gradients, widths), ("overlap", "gradients")),
        "sparsity_and_probes": (figures.sparsity_and_probes, ("overlap", "gradients")),
        "routing_divergence": (figures.routing_divergence, ("routing",)),
        "expert_use": (figures.expert_use, ("routing",)),
        "routing_load": (figures.routing_load, ("routing",)),
        "drift_by_layer": (figures.drift_by_layer, ("drift",)),
        "drift_plane": (figures.drift_plane, ("drift", "accuracy")),
    }


def of_main_contrast(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main contrast's arms; the whole table where one of them was not run."""
    arms = {TREATMENT, REFERENCE}
    return table[table["arm"].isin(arms)] if arms <= set(table["arm"]) else table


def write_part(
    directory: Path,
    study: Study,
    part: str,
    tables: Mapping[str, pd.DataFrame],
    verdict=None,
    registration=None,
    chance: Mapping[tuple[str, str], float] | None = None,
    drawn: Mapping[str, Figure] | None = None,
) -> Path:
    """Write values, tables and figures of one part under `<directory>/<part>/`; returns that folder.

    `tables` maps table names (accuracy, curves, conversion, cost, timings, overlap, learning_rate, metrics,
    tests) to frames; absent ones leave dashes. `verdict` is a `sparsecl.verdict.Verdict`, `registration` a
    `sparsecl.preregistration.Preregistration`; both may be None. `chance` is the score of guessing by (domain, kind);
    `drawn` are figures by name, where they were drawn already.
    """
    folder = Path(directory) / part
    shutil.rmtree(folder, ignore_errors=True)  # a figure of an earlier run must not pass for one of this run
    statements = {name: hypothesis.statement for name, hypothesis in getattr(registration, "hypotheses", {}).items()}
    values = part_values(study, tables, verdict, _registration_facts(registration), statements, part)
    write_text(folder / "values.tex", values_tex(part, values))
    for name, text in part_tables(study, tables, chance, verdict, statements, part).items():
        write_text(folder / "tables" / f"{name}.tex", text)
    shown = figures_of(part)
    if drawn is None:
        drawn = part_figures(tables, getattr(registration, "margin", None), shown, study)
    for name in sorted(shown & set(drawn)):
        figures.save(drawn[name], folder / "figures" / f"{name}.pdf")
    return folder


def write_build(directory: Path, parts: Mapping[str, str], of_record: bool) -> None:
    """Write build.tex, which says what is built, and dashes for every part that no tables were given for."""
    lines = [r"\paperofrecordtrue" if of_record else r"\paperofrecordfalse", f"\\def\\studyname{{{latex_text(parts['main'])}}}"]
    lines += [f"\\csdef{{studyof@{part}}}{{\\textsf{{{latex_text(study)}}}}}" for part, study in sorted(parts.items())]
    write_text(Path(directory) / "build.tex", "\n".join([*lines, ""]))
    for part in parts:
        if not (Path(directory) / part / "values.tex").is_file():
            write_text(Path(directory) / part / "values.tex", values_tex(part, {}))


def build_paper(build_directory: Path, parts: Mapping[str, str] | None = None, of_record: bool | None = None, paper: Path = PAPER) -> Path:
    """Build the PDF from `paper/` and the generated parts below `build_directory`; returns `<build_directory>/main.pdf`.

    `parts` names the study behind each part (default: paper.yaml). `of_record` decides whether a dash stops
    LaTeX and whether pages carry the study's name (default: whether `parts` are those of paper.yaml).
    Raises PaperError with LaTeX's reason.
    """
    build = Path(build_directory).resolve()
    build.mkdir(parents=True, exist_ok=True)
    parts = dict(parts or yaml.safe_load((paper / "paper.yaml").read_text(encoding="utf-8"))["parts"])
    write_build(build, parts, is_paper_of_record(parts, paper) if of_record is None else of_record)
    if shutil.which("latexmk") is None:
        raise PaperError(
            "latexmk is not installed; install TeX Live with latexmk (Debian: texlive-latex-extra latexmk), or leave the PDF out"
        )
    command = [
        "latexmk",
        "-norc",
        "-pdf",
        "-interaction=nonstopmode",
        "-halt-on-error",
        "-file-line-error",
        str(Path(paper).resolve() / "main.tex"),
    ]
    search = f".:{Path(paper).resolve()}:"  # the trailing colon keeps TeX's own folders
    environment = {
        **os.environ, "TEXINPUTS": search, "BIBINPUTS": search, "max_print_line": "1000",
        "SOURCE_DATE_EPOCH": EPOCH, "FORCE_SOURCE_DATE": "1",
    }  # fmt: skip
    pdf = build / "main.pdf"
    pdf.unlink(missing_ok=True)  # after a failure no older PDF may pass for the new one
    # Forgets what latexmk did before: a changed dash or key must be seen, whatever the file times say.
    (build / "main.fdb_latexmk").unlink(missing_ok=True)
    try:
        finished = subprocess.run(command, cwd=build, env=environment, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        raise PaperError(f"latexmk did not finish within {TIMEOUT} s; read {build / 'main.log'}") from None
    if finished.returncode or not pdf.is_file():
        raise PaperError(f"the paper could not be built: {_reason(build / 'main.log', finished.stdout + finished.stderr)}")
    return pdf


def _reason(log: Path, output: str) -> str:
    """LaTeX's own error, with its last lines where it names none; both say which file to read on."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else output
    errors = re.findall(r"^(?:!|\S+:\d+:) .*(?:\n(?!l\.\d).*){0,3}", text, flags=re.MULTILINE)
    shown = errors[0].strip() if errors else "\n".join((text or output).strip().splitlines()[-12:])
    key = re.search(r"value `([^']+)'", shown)
    step = f"\nkey {key[1]}: register it in sparsecl.paper_values, or measure it in this study" if key else ""
    return f"{shown}{step}\nread {log}"
