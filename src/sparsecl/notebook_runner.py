"""Run one notebook headless: what every Snakemake job calls (paper, Reproducibility).

    python -m sparsecl.notebook_runner 03_continual RECORD study=builtin replicate=0 output=runs

Unknown parameters are refused before a kernel starts (papermill only warns), the kernel must be this
environment's, the record is locked while the job runs, and executed notebooks appear by rename.
"""

import os
import sys
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from jupyter_client.kernelspec import KernelSpecManager

from sparsecl import job_status
from sparsecl.imports import hidden
from sparsecl.records import read_record
from sparsecl.tree import REPOSITORY

with hidden("rfc3987_syntax"):  # jsonschema's checker of internationalised addresses builds its grammar for 2.4 s
    import papermill
    from papermill.exceptions import PapermillExecutionError

KERNEL = "python3"
# oneDNN keeps compiled primitives and reordered weights for every batch shape it has seen; by default a
# thousand of each, which grew a bfloat16 training to 5 GB. With 16 it stays at 1 GB, at the same speed.
CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}


def check_parameters(notebook: Path, given: dict) -> None:
    """Raise ValueError where the notebook has no parameter of that name."""
    known = papermill.inspect_notebook(str(notebook))
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{notebook.name}: unknown parameter(s) {unknown}; known: {sorted(known)}")


def check_kernel() -> None:
    """Raise RuntimeError where Jupyter's python3 kernel belongs to another environment than this process."""
    command = Path(KernelSpecManager().get_kernel_spec(KERNEL).argv[0])
    command = Path(sys.executable) if command.name == str(command) else command  # a bare "python" resolves on PATH, i.e. here
    if command.parent.absolute() != Path(sys.executable).parent.absolute():
        raise RuntimeError(
            f"Jupyter would start {command}, not {sys.executable}: another environment's kernel comes first; "
            "set JUPYTER_PREFER_ENV_PATH=1 or remove that kernel with 'jupyter kernelspec remove python3'"
        )


def run_notebook(name: str, record: Path, executed: Path, parameters: dict) -> None:
    """Execute `notebooks/<name>.ipynb`; afterwards `record` must have been written, or the job failed."""
    notebook = REPOSITORY / "notebooks" / f"{name}.ipynb"
    check_parameters(notebook, parameters)
    check_kernel()
    executed.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(f"{record}.lock", timeout=0):
            record.unlink(missing_ok=True)
            _execute(notebook, executed, parameters)
            read_record(record)
    except Timeout:
        raise RuntimeError(f"{record} is being made by another process; wait for it or stop it, then run again") from None
    finally:
        Path(f"{record}.lock").unlink(missing_ok=True)


def _execute(notebook: Path, executed: Path, parameters: dict) -> None:
    running = executed.with_name(f".{executed.stem}.running.ipynb")
    failed = executed.with_name(f"{executed.stem}.failed.ipynb")
    failed.unlink(missing_ok=True)
    os.environ.update({name: os.environ.get(name, value) for name, value in CACHES.items()})  # the kernel inherits them
    try:
        papermill.execute_notebook(
            str(notebook), str(running), parameters, kernel_name=KERNEL, progress_bar=False, cwd=str(notebook.parent),
            shutdown_kernel="immediate",  # nothing is left to do there: the record is written, and torch takes seconds to unload
        )  # fmt: skip
    except PapermillExecutionError as error:
        running.replace(failed)
        raise RuntimeError(f"{error.ename}: {error.evalue} (see {failed})") from None
    finally:
        if running.exists():
            running.replace(executed)


def main(arguments: list[str]) -> int:
    name, record, *assignments = arguments
    record = Path(record).absolute()
    # Values are YAML, as papermill reads them on its own command line: 3 is a number, [] a list.
    parameters = {key: yaml.safe_load(value) for key, value in (assignment.split("=", 1) for assignment in assignments)}
    # A replicate's record lies in the replicate's folder, a study's in the tree, where Snakemake runs.
    job = record.stem if record.parent == Path.cwd() else f"{name} {record.parent.name}"
    root = Path.cwd()
    job_status.running(root, job)
    try:
        run_notebook(name, record, Path("notebooks") / f"{job.replace(' ', '.')}.ipynb", parameters)
    except Exception as error:  # whatever stops a job, the summary must name it
        job_status.failed(root, job, str(error))
        if not isinstance(error, RuntimeError | ValueError):
            raise
        print(f"{job}: {error}", file=sys.stderr)
        return 1
    job_status.finished(root, job)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
