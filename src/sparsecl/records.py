"""Records: what a job measured, with everything needed to trust it, written last and atomically.

A record is JSON beside its artefacts. It holds the rows the job adds to each table, the sha256 of
every artefact and upstream record, and the provenance: settings digest, code digest, versions,
device, cost. Whole files appear by rename or not at all.
"""

import hashlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDED_PACKAGES = ("torch", "transformers", "llmcompressor", "lm_eval", "pingouin", "numpy", "pandas")


class BrokenFile(RuntimeError):
    """A file is missing, truncated, edited by hand or from other settings."""


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_of_json(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary sibling of `path` and rename it; on any error `path` is untouched."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise BrokenFile(f"{path} could not be written ({error}); free space or fix the folder, then run the same command again") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinity are refused, because an absent value is absent (null)."""
    write_text(path, json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON; a file that is not whole raises BrokenFile naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BrokenFile(f"{path} does not exist; run the job that makes it") from None
    except ValueError as error:
        raise BrokenFile(f"{path} is not whole JSON ({error}); delete it and run the same command again") from None


def provenance() -> dict[str, Any]:
    """Versions, device and threads of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "versions": {name: version(name) for name in RECORDED_PACKAGES},
        "device": torch.cuda.get_device_name() if cuda else f"cpu ({platform.machine()})",
        "threads": torch.get_num_threads(),
    }


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far, bytes (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Stopwatch:
    """Wall-clock seconds since it was made, without those in which it was paused."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What happens inside is not counted."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began

    def seconds(self) -> float:
        return time.perf_counter() - self._start


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Add the digest of the content itself, so that a hand-edited record is noticed."""
    return {**content, "sha256": sha256_of_json({key: value for key, value in content.items() if key != "sha256"})}


def read_record(path: Path) -> dict[str, Any]:
    """Read a sealed record; raise BrokenFile where it was changed after it was written."""
    record = read_json(path)
    if not isinstance(record, dict) or seal(record)["sha256"] != record.get("sha256"):
        raise BrokenFile(f"{path} was changed after it was written; delete it and run the same command again")
    return record


def write_record(path: Path, content: Mapping[str, Any]) -> None:
    write_json(path, seal(content))
