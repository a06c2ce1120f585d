"""What runs and what failed: one small file per job in the tree's `.status/` (read by the progress line).

A job that ends well leaves nothing; a failed one leaves its message for the summary.
"""

import os
import shutil
from pathlib import Path

import psutil

from sparsecl.records import read_json, write_json

FOLDER = ".status"


def running(root: Path, job: str) -> None:
    """Say that this process is doing `job`."""
    write_json(_path(root, job), {"job": job, "state": "running", "process": os.getpid()})


def failed(root: Path, job: str, message: str) -> None:
    write_json(_path(root, job), {"job": job, "state": "failed", "message": message})


def finished(root: Path, job: str) -> None:
    _path(root, job).unlink(missing_ok=True)


def jobs(root: Path, state: str) -> list[dict]:
    """The jobs in a state, by name."""
    found = []
    for path in sorted((root / FOLDER).glob("[!.]*.json")):
        if path.exists():  # a job may end between listing and reading
            found.append(read_json(path))
    return [status for status in found if status["state"] == state]


def stop_left_over(root: Path) -> list[str]:
    """Stop jobs that a killed run left behind, and forget all states; call it under the study's lock only.

    A killed Snakemake does not take its jobs along: they would go on writing into the tree of the new run.
    """
    stopped = []
    for status in jobs(root, "running"):
        try:
            process = psutil.Process(status["process"])
            if "sparsecl.notebook_runner" not in process.cmdline():
                continue  # the number was given to another program since
            family = [*process.children(recursive=True), process]
            for member in family:
                member.kill()
            psutil.wait_procs(family, timeout=10)
            stopped.append(status["job"])
        except psutil.NoSuchProcess:
            continue
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    return stopped


def _path(root: Path, job: str) -> Path:
    return root / FOLDER / f"{job.replace(' ', '.')}.json"
