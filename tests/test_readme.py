"""The README tells what the committed tables say, and names only options that exist."""

import re
import subprocess

import pandas as pd

from sparsecl.tree import REPOSITORY

README = (REPOSITORY / "README.md").read_text()


def points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-0.0", "+0.0")


def test_the_answer_is_that_of_the_tables():
    tests = pd.read_csv(REPOSITORY / "results" / "builtin" / "tests.csv")
    main = tests[(tests["contrast"] == "S1-2of4 - D1") & tests["hypothesis"].isin(["H1", "beside"])].set_index("metric")
    for metric in ("forgetting", "final", "own"):
        row = main.loc[metric]
        estimate, interval = points(row["estimate"]), f"{points(row['ci_low'])} to {points(row['ci_high'])})"
        pattern = rf"{re.escape(estimate)} (points )?\((95 % interval )?{re.escape(interval)}"
        assert re.search(pattern, README.replace("\n", " ")), f"{metric}: the README lacks {estimate} ({interval}"


def test_every_option_and_file_it_names_exists():
    known = subprocess.run([str(REPOSITORY / "run_all.sh"), "--help"], capture_output=True, text=True).stdout
    for option in set(re.findall(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", README)) - {"--executor"}:
        assert option in known, option
    for path in re.findall(r"`((?:src|notebooks|configs|results|paper|data_manifests)/[\w./-]+)`", README):
        assert path.endswith("main.pdf") or (REPOSITORY / path).exists(), path


def test_nothing_is_left_to_fill_in():
    for name in ("README.md", "CLAIMS.md", "LOG.md", "CHANGELOG.md"):
        assert "@@" not in (REPOSITORY / name).read_text(), name
