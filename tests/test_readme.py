"""The README tells what the committed tables say, and names only options that exist."""

import re
import subprocess

import pandas as pd

from sparsecl.frontier import compare_frontiers, frontier_points
from sparsecl.preregistration import load_preregistration
from sparsecl.study_files import load_study
from sparsecl.tables import read_tables
from sparsecl.tree import REPOSITORY
from sparsecl.verdict import compute_verdicts

README = (REPOSITORY / "README.md").read_text()


SECOND = README[README.index("**The second question.**") : README.index("This repository is a reproducible paper.")].replace("\n", " ")
ANSWER = README[README.index("**The answer so far.**") : README.index("**The second question.**")].replace("\n", " ")
TABLES = REPOSITORY / "results" / "builtin-full"
IMPLICIT = REPOSITORY / "results" / "builtin-implicit"


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0").replace("+", "")


def stated(text: str) -> list[tuple[str, ...]]:
    """Every difference with its interval: estimate, low, high."""
    number = r"([+-]?\d+\.\d)"
    found = re.findall(rf"{number} (?:points )?\((?:95 % interval )?{number} to {number}\)", text)
    return [tuple(value.lstrip("+") for value in values) for values in found]


def measured() -> dict[tuple[str, str], tuple[str, str, str]]:
    """(contrast, metric) -> the same three, of the registered and exploratory tests and of the frontier."""
    tests = pd.read_csv(TABLES / "tests.csv")
    rows = tests[~tests["hypothesis"].str.contains("equivalence|bootstrap|anova")]
    found = {(row.contrast, row.metric): tuple(map(points, (row.estimate, row.ci_low, row.ci_high))) for row in rows.itertuples()}
    metrics = frontier_points(read_tables(TABLES)["metrics"])
    for outcome in ("forgetting", "final"):
        interval = compare_frontiers(metrics, "S1-2of4", "D1", outcome).interval
        found["frontier", outcome] = tuple(map(points, (interval.mean, interval.low, interval.high)))
    return found


def test_the_answer_is_that_of_the_tables():
    found, said = measured(), stated(ANSWER)
    unknown = set(said) - set(found.values())
    assert len(said) >= 11 and not unknown, f"no test measured {unknown}"
    against_d1 = [("S1-2of4 - D1", name) for name in ("forgetting", "final", "own")]
    for statement in [*against_d1, ("S1-2of4 - Dnz-0.5", "forgetting"), ("frontier", "final")]:
        assert found[statement] in said, f"{statement}: the README lacks {found[statement]}"
    main = pd.read_csv(TABLES / "tests.csv").query("hypothesis == 'H1' and contrast == 'S1-2of4 - D1' and metric == 'forgetting'").iloc[0]
    assert f"half-width of {50 * (main['ci_high'] - main['ci_low']):.1f} points" in ANSWER


def test_the_answer_names_the_computed_verdicts():
    study = load_study("builtin-full")
    tables = read_tables(TABLES)
    verdicts = compute_verdicts(tables["metrics"], load_preregistration(study.name), tables["accuracy"])
    assert {name: verdict.letter for name, verdict in verdicts.items()} == {"H1": "undecided", "H2": "undecided", "H3": "A"}
    assert "Undecided, by the rule" in ANSWER and "(H2) is undecided" in ANSWER and "(H3) is supported" in ANSWER


def test_the_second_answer_is_that_of_its_tables():
    tests = pd.read_csv(IMPLICIT / "tests.csv")
    rows = tests[~tests["hypothesis"].str.contains("equivalence|bootstrap")]
    found = {
        (row.hypothesis, row.contrast, row.metric): tuple(map(points, (row.estimate, row.ci_low, row.ci_high))) for row in rows.itertuples()
    }
    methods = ("full", "lora", "replay", "orthogonal-lora")
    frontiers = frontier_points(read_tables(IMPLICIT)["metrics"], methods=methods)
    for treatment, control in (("orthogonal-lora", "lora"), ("replay", "full")):
        names = [f"D1:{name}" if name != "full" else "D1" for name in (treatment, control)]
        interval = compare_frontiers(frontiers, *names).interval
        found["frontier", treatment, control] = tuple(map(points, (interval.mean, interval.low, interval.high)))
    said = stated(SECOND)
    assert len(said) >= 8 and not (unknown := set(said) - set(found.values())), unknown
    for key in (("H4", "per doubling of width", "normalised_overlap"), ("H5A", "D1:activation-mask - D1", "forgetting")):
        assert found[key] in said
    for name, method in (("H5A", "activation-mask"), ("H5B", "orthogonal-lora")):
        assert found[f"{name} at equal own", f"D1:{method} - D1", "forgetting"] in said


def test_the_second_answer_names_the_computed_verdicts():
    study = load_study("builtin-implicit")
    tables = read_tables(IMPLICIT)
    probes = {name: tables[name] for name in ("overlap", "gradients")}
    registration, steps = load_preregistration(study.name), study.continual.stage_steps
    verdicts = compute_verdicts(tables["metrics"], registration, tables["accuracy"], probes=probes, stage_steps=steps)
    assert {name: verdict.letter for name, verdict in verdicts.items()} == {"H4": "C", "H5A": "undecided", "H5B": "undecided"}
    assert "H4: refuted" in SECOND and "H5A and H5B: undecided" in SECOND


def test_every_option_and_file_it_names_exists():
    known = subprocess.run([str(REPOSITORY / "run_all.sh"), "--help"], capture_output=True, text=True).stdout
    for option in set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", README)) - {"--executor"}:
        assert option in known, option
    for path in re.findall(r"`((?:src|notebooks|configs|results|paper|data_manifests)/[\w./-]+)`", README):
        assert path.endswith("main.pdf") or (REPOSITORY / path).exists(), path


def test_nothing_is_left_to_fill_in():
    for name in ("README.md", "CLAIMS.md", "LOG.md", "CHANGELOG.md"):
        assert "@@" not in (REPOSITORY / name).read_text(), name
