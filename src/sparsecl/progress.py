"""One progress line while Snakemake runs, and a summary at its end (run by `sparsecl.workflow`)."""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread

from sparsecl import job_status

REFRESH_SECONDS = 0.5
STEPS = re.compile(r"(\d+) of (\d+) steps")
TOTAL = re.compile(r"^total\s+(\d+)")


class _Count:
    """Jobs done and all, read off Snakemake's log as it grows."""

    def __init__(self) -> None:
        self.done = self.total = 0

    def read(self, line: str) -> None:
        if match := STEPS.search(line):
            self.done, self.total = int(match[1]), int(match[2])
        elif match := TOTAL.match(line):
            self.total = int(match[1])


def _line(count: _Count, elapsed: float, root: Path) -> str:
    running, failed = (", ".join(status["job"] for status in job_status.jobs(root, state)) for state in ("running", "failed"))
    failures = f"  FAILED: {failed}" if failed else ""  # others go on; the messages stand in the summary
    return f"jobs {count.done}/{count.total}  {_clock(elapsed)}  now: {running or 'planning'}{failures}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _show(line: str, shown: str) -> str:
    """Rewrite the line on a terminal; elsewhere print it when the jobs changed."""
    if sys.stdout.isatty():
        print(f"\r{line[:118]:<118}", end="", flush=True)
    elif re.sub(r"\d+:\d\d", "", line) != re.sub(r"\d+:\d\d", "", shown):
        print(line, flush=True)
    else:
        return shown
    return line


def follow(command: Sequence[str], root: Path, plan, watch: Callable[[], None] | None = None) -> int:
    """Run Snakemake with its output in `<root>/snakemake.log`; returns its exit status. Shows progress and calls `watch` now and then."""
    started, count, shown = time.monotonic(), _Count(), ""
    log = root / "snakemake.log"
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        job_status.engine(root, process.pid)

        def copy() -> None:
            for line in process.stdout:
                file.write(line)
                file.flush()
                count.read(line)

        reader = Thread(target=copy, daemon=True)
        reader.start()
        try:
            while process.poll() is None:
                if count.total:
                    shown = _show(_line(count, time.monotonic() - started, root), shown)
                if watch is not None:
                    watch()
                time.sleep(REFRESH_SECONDS)
        except KeyboardInterrupt:
            process.wait()
        reader.join()
    job_status.finished(root, job_status.ENGINE)
    if shown and sys.stdout.isatty():
        print()
    return _summary(process.returncode, count, time.monotonic() - started, root, log, plan)


def _summary(status: int, count: _Count, elapsed: float, root: Path, log: Path, plan) -> int:
    if status:
        for failed in job_status.jobs(root, "failed"):
            print(f"failed: {failed['job']}\n  {failed['message']}", file=sys.stderr)
        print(
            f"study {plan.study.name}: stopped after {_clock(elapsed)}; finished work is kept, "
            f"run the same command again to go on. Log: {log}",
            file=sys.stderr,
        )
        return status
    made = f"{count.total} jobs done" if count.total else "nothing to do"
    print(f"study {plan.study.name}: {made} in {_clock(elapsed)}; tables in {root / 'results'}{_pdf(plan)}")
    return 0


def _pdf(plan) -> str:
    from sparsecl.workflow import paper_copy

    copy = paper_copy(plan.output)
    return f", paper in {copy}" if plan.pdf and not plan.only and copy.is_file() else ""
