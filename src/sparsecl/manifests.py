"""Data manifests: which public file, at which commit, with which hash, holds each real data set (paper, section Data).

`data_manifests/<name>.yaml` describes one data set. `locate` finds its files in a local folder or on
the hub and lets none through whose sha256 or row count differs from the manifest. `read_rows` reads a
file by its ending and stops where a column is missing.
"""

import csv
import json
import lzma
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from sparsecl.records import BrokenFile, sha256_of
from sparsecl.settings import Count, Settings
from sparsecl.tree import REPOSITORY

MANIFESTS = REPOSITORY / "data_manifests"
FOLDER_VARIABLE = "SPARSECL_DATA"  # environment variable: the folder that holds the local files
DEFAULT_FOLDER = REPOSITORY.parent / "shared" / "data"


class DataFile(Settings):
    """One file of a data set."""

    path: Annotated[str, Field(pattern=r"^[^/].*\.(jsonl|jsonl\.xz|json|tsv|txt)$")]
    """Where the file lies below the data folder, relative path."""
    repository_path: str | None
    """Where the file lies in the public repository; null where no public file equals it, path."""
    columns: tuple[str, ...]
    """Columns that every row must have (top-level keys of a JSON object of lists), names."""
    rows: Count
    """Rows of the file: lines, or entries of a JSON object, without a header, rows."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the file's bytes, hexadecimal."""
    hub_path: str | None = None
    """The byte-identical file in the hub data set; null where none is known, path."""


class Split(Settings):
    """Which rows are trained on, chosen on and scored."""

    train: str | None
    """What the base and the stage train on, a phrase; null where nothing does."""
    validation: str | None
    """What settings are chosen on, a phrase; null where nothing is."""
    test: str | None
    """What is scored, a phrase; null where nothing is."""


class Manifest(Settings):
    """One data set: `data_manifests/<name>.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9\-]*$")]
    """The data set's name, also its file's name."""
    title: str
    """What the data set is, a phrase."""
    domain: Literal["code", "math", "medical", "legal", "dialogue", "general", "pretraining"]
    """Domain of the stream that it serves, or `general` (probe) or `pretraining` (text for the base)."""
    kind: Literal["ability", "fact"]
    """Whether held-out items test an ability or what is scored was trained on."""
    hub_id: str | None
    """Public id on the Hugging Face hub; null where there is none."""
    hub_revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None
    """Pinned commit of the hub data set; null where no file is read from the hub."""
    repository: str
    """Public GitHub repository that the files come from, owner/name."""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    """Commit of that repository, hexadecimal."""
    split: Split
    """Which rows are trained on, chosen on and scored."""
    licence: str
    """Licence of the data."""
    lm_eval_task: str | None
    """The public lm-eval task on the same data; null where there is none."""
    chance: Literal["majority", "uniform"] | None
    """Score of guessing: `majority` share of the commonest test answer, `uniform` one over the number of answers; null for free text."""
    files: Annotated[tuple[DataFile, ...], Field(min_length=1)]
    """The files, each with its hash."""
    notes: str
    """Traps of the data set, sentences."""

    @model_validator(mode="after")
    def _hub_files_are_pinned(self):
        if any(file.hub_path for file in self.files) and not (self.hub_id and self.hub_revision):
            raise ValueError("files: a hub_path needs hub_id and hub_revision; pin the revision or set hub_path to null")
        return self


def known_manifests() -> list[str]:
    return sorted(path.stem for path in MANIFESTS.glob("*.yaml"))


def load_manifest(name_or_file: str | Path) -> Manifest:
    """Read a manifest by name or from a YAML file; ValueError names what is wrong and what is known."""
    path = Path(name_or_file)
    if path.suffix != ".yaml":
        path = MANIFESTS / f"{name_or_file}.yaml"
        if str(name_or_file) not in known_manifests():
            raise ValueError(f"data set {str(name_or_file)!r} has no manifest; known: {', '.join(known_manifests())}")
    try:
        manifest = Manifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not a manifest: {error}") from None
    if manifest.name != path.stem:
        raise ValueError(f"{path}: name is {manifest.name!r}, wanted {path.stem!r}; make name and file name equal")
    return manifest


def data_folder() -> Path:
    """The local data folder: `$SPARSECL_DATA` where it is set, else `shared/data` beside the repository."""
    return Path(os.environ.get(FOLDER_VARIABLE) or DEFAULT_FOLDER)


def locate(manifest: Manifest) -> dict[str, Path]:
    """Find and verify every file of a data set; return its path by its relative path.

    The local folder serves when it holds all files, the hub otherwise. BrokenFile where a file is
    nowhere, or where its hash or row count is not the manifest's. A file is verified once per process.
    """
    folder = data_folder()
    absent = [file for file in manifest.files if not (folder / file.path).is_file()]
    found = {file.path: folder / file.path if not absent else _download(manifest, file, absent[0], folder) for file in manifest.files}
    for file in manifest.files:
        _verify(manifest, file, found[file.path])
    return found


def _download(manifest: Manifest, file: DataFile, absent: DataFile, folder: Path) -> Path:
    if file.hub_path is None:
        raise BrokenFile(_nowhere(manifest, absent, folder, "the manifest knows no byte-identical file there"))
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(manifest.hub_id, file.hub_path, repo_type="dataset", revision=manifest.hub_revision))
    except (OSError, ValueError) as error:  # the hub's own errors and being offline are OSErrors
        reason = str(error).strip().splitlines()
        raise BrokenFile(
            _nowhere(manifest, file, folder, f"asking for {file.hub_path} failed: {reason[0] if reason else error!r}")
        ) from error


def _nowhere(manifest: Manifest, file: DataFile, folder: Path, hub_reason: str) -> str:
    public = (
        "no public file equals it"
        if file.repository_path is None
        else f"github.com/{manifest.repository}/blob/{manifest.commit}/{file.repository_path}"
    )
    return (
        f"data set {manifest.name}: {file.path} is neither in {folder} nor on the hub ({manifest.hub_id or 'no hub id'}: {hub_reason}); "
        f"set {FOLDER_VARIABLE} to a folder that holds {file.path} (source: {public})"
    )


def _verify(manifest: Manifest, file: DataFile, path: Path) -> None:
    status = path.stat()
    sha256, rows = _fingerprint(path, status.st_size, status.st_mtime_ns)
    # Counting the rows of a compressed file costs as much as reading it, so `read_rows` counts them.
    if sha256 != file.sha256 or (rows != file.rows and path.suffix != ".xz"):
        raise BrokenFile(
            f"{path} is not the file of data set {manifest.name}: found sha256 {sha256} and {rows} rows in {status.st_size} bytes, "
            f"wanted sha256 {file.sha256} and {file.rows} rows; it is truncated, edited or another version: fetch it again, or set "
            f"{FOLDER_VARIABLE} to a folder that holds {file.path}"
        )


@cache
def _fingerprint(path: Path, size: int, modified_ns: int) -> tuple[str, int | str]:
    """Hash and row count of a file; its size and time of change are keys of the cache only."""
    try:
        return sha256_of(path), "unknown" if path.suffix == ".xz" else count_rows(path)
    except ValueError:
        return sha256_of(path), "unreadable"


def count_rows(path: Path) -> int:
    """Rows of an uncompressed file as manifests count them: entries of a JSON object, else lines without a TSV's header."""
    if path.suffix == ".json":
        return len(json.loads(path.read_text(encoding="utf-8")))
    with path.open("rb") as file:
        return sum(1 for _ in file) - (path.suffix == ".tsv")


def read_rows(path: Path, file: DataFile) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file; BrokenFile where a row lacks a column or the file ends at another row than its manifest says.

    A line of text is a row with column `text`. An entry of a JSON object is a row with its `key` and,
    where the entry is an object, that object's columns, else its `value`.
    """
    number = 0
    try:
        for row in _rows(path, file.columns):
            number += 1
            yield row
    except (ValueError, EOFError, lzma.LZMAError) as error:
        raise BrokenFile(f"{path} cannot be read ({error}); it is truncated or edited: fetch it again") from error
    if number != file.rows:
        raise BrokenFile(f"{path} holds {number} rows, wanted {file.rows}; fetch the file again, or correct the manifest's rows")


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if path.suffix == ".json":
        yield from _entries(path, columns)
        return
    for number, row in enumerate(_lines(path), start=1):
        _require(path, f"row {number}", row, columns)
        yield row


def _require(path: Path, where: str, row: Mapping[str, Any], columns: tuple[str, ...]) -> None:
    if missing := [column for column in columns if column not in row]:
        raise BrokenFile(
            f"{path}, {where}: column {missing[0]!r} is missing; found {sorted(map(str, row))}, wanted {sorted(columns)}; "
            "fetch the file again, or correct the manifest's columns"
        )


def _entries(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON object; where its entries are no objects, `columns` are keys of the object itself."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if not any(isinstance(value, dict) for value in content.values()):
        _require(path, "top level", content, columns)
        columns = ()
    for key, value in content.items():
        row = {"key": key, **value} if isinstance(value, dict) else {"key": key, "value": value}
        _require(path, f"entry {key!r}", row, columns)
        yield row


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a TSV, a text or a JSON-lines file, compressed or not."""
    with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8", newline="") as file:
        if path.suffix == ".tsv":
            yield from csv.DictReader(file, delimiter="\t")
        elif path.suffix == ".txt":
            yield from ({"text": line.rstrip("\r\n")} for line in file)
        else:
            yield from (json.loads(line) for line in file)
