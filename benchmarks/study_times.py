"""Wall-clock time and peak memory of a whole study, and of a second run that finds nothing to do.

    ./run_all.sh --bench -- --study smoke

Runs the real command into a scratch folder. Times are of this machine at this moment; the README says
which machine its figures come from.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from sparsecl.records import read_record
from sparsecl.study_files import load_study
from sparsecl.tree import REPOSITORY


def seconds_of(study: str, out: Path) -> float:
    """Run the study once; a failure ends the benchmark with the command's own message."""
    started = time.perf_counter()
    subprocess.run([str(REPOSITORY / "run_all.sh"), "--study", study, "--out", str(out)], check=True)
    return time.perf_counter() - started


def peak_memory(tree: Path) -> int:
    """Largest resident size of a notebook's process, bytes."""
    return max(read_record(path)["peak_memory_bytes"] for path in tree.glob("replicate-*/0*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="smoke")
    study = parser.parse_args().study
    with tempfile.TemporaryDirectory() as folder:
        first, second = seconds_of(study, Path(folder)), seconds_of(study, Path(folder))
        tree = Path(folder) / load_study(study).name
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        memory = peak_memory(tree)
    figures = {"whole study, s": round(first), "nothing changed, s": round(second, 1), "peak memory of a job, GB": round(memory / 1e9, 2)}
    print(pd.Series({**figures, "disk of the tree, MB": round(size / 1e6)}, name=study).to_string())


if __name__ == "__main__":
    sys.exit(main())
