"""What runs and what failed: one small file per job, and one for Snakemake, in the tree's `.status/` (read by the progress line).

A job that ends well leaves nothing; a failed one leaves its message for the summary.
"""

import os
import shutil
from pathlib import Path

import psutil

from sparsecl.records import read_json, write_json

FOLDER = ".status"
ENGINE = "Snakemake"
PROGRAMS = {"running": "sparsecl.notebook_runner", "engine": "snakemake"}  # what a process of that state was started with


def running(root: Path, job: str) -> None:
    """Say that this process is doing `job`."""
    write_json(_path(root, job), {"job": job, "state": "running", "process": os.getpid()})


def engine(root: Path, process: int) -> None:
    """Say that Snakemake works on this tree, as `process`; call `finished(root, ENGINE)` at its end."""
    write_json(_path(root, ENGINE), {"job": ENGINE, "state": "engine", "process": process})


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
    """Stop Snakemake and its jobs where a killed run left them, and forget all states; call it under the study's lock only.

    A killed driver takes neither along: they would go on writing into the tree of the new run. Returns the jobs' names.
    """
    left = [status for status in [*jobs(root, "engine"), *jobs(root, "running")] if _is_alive(status)]
    for status in left:  # Snakemake first: it would start the next job
        _stop(status["process"])
    shutil.rmtree(root / FOLDER, ignore_errors=True)
    return [status["job"] for status in left if status["job"] != ENGINE]


def _is_alive(status: dict) -> bool:
    """Whether the process is still there, and its number was not given to another program since."""
    try:
        return PROGRAMS[status["state"]] in psutil.Process(status["process"]).cmdline()
    except psutil.NoSuchProcess:
        return False


def _stop(number: int) -> None:
    try:
        process = psutil.Process(number)
        family = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:  # it went with its parent
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=10)


def _path(root: Path, job: str) -> Path:
    return root / FOLDER / f"{job.replace(' ', '.')}.json"
