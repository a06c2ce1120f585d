"""Manifests: every description loads and is true, and no wrong, short or missing file gets through."""

import csv
import hashlib
import json
import lzma
from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from sparsecl import manifests
from sparsecl.manifests import FOLDER_VARIABLE, DataFile, Manifest, data_folder, known_manifests, load_manifest, locate, read_rows
from sparsecl.records import BrokenFile
from sparsecl.study_files import load_study

LEDGER = data_folder() / "MANIFEST.tsv"
needs_ledger = pytest.mark.skipif(
    not LEDGER.is_file(), reason=f"no MANIFEST.tsv in {data_folder()}; set {FOLDER_VARIABLE} to the data folder"
)
ROWS = b'{"question": "one?", "answer": "1"}\n{"question": "two?", "answer": "2"}\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    return tmp_path


def plant(folder: Path, path: str = "math/two.jsonl", content: bytes = ROWS, **changes) -> DataFile:
    """Write a file and return a true description of it, save for `changes`."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    (folder / path).write_bytes(content)
    truth = {"path": path, "repository_path": "data/two.jsonl", "columns": ("question", "answer"), "rows": 2}
    return DataFile(**(truth | {"sha256": hashlib.sha256(content).hexdigest()} | changes))


def describe(*files: DataFile, **changes) -> Manifest:
    return Manifest(**{**load_manifest("gsm8k").model_dump(), "files": files, **changes})


@pytest.mark.parametrize("name", known_manifests())
def test_every_manifest_says_what_is_asked_of_it(name: str) -> None:
    manifest = load_manifest(name)
    assert manifest.name == name and manifest.notes and manifest.licence
    assert len({file.path for file in manifest.files}) == len(manifest.files)


def test_the_stream_has_one_data_set_per_domain() -> None:
    domains = sorted(load_manifest(name).domain for name in load_study("realtext").data.manifests)
    assert domains == ["code", "dialogue", "general", "legal", "math", "medical", "pretraining"]
    cuad = load_manifest("cuad")
    assert len(cuad.files) == 38 and sum(file.rows for file in cuad.files) == 18_186


@needs_ledger
@pytest.mark.parametrize("name", known_manifests())
def test_manifests_agree_with_the_ledger_of_the_data_folder(name: str) -> None:
    with LEDGER.open(encoding="utf-8", newline="") as file:
        ledger = {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}
    manifest = load_manifest(name)
    for file in manifest.files:
        row = ledger[file.path]
        assert (file.sha256, file.rows) == (row["sha256"], int(row["rows"]))
        assert (manifest.repository, manifest.commit) == (row["repo"], row["commit"])
        assert file.repository_path in (row["path_in_repo"], None)


@needs_ledger
@pytest.mark.parametrize("name", [name for name in known_manifests() if name != "classic-books"])
def test_the_real_files_are_the_ones_described(name: str) -> None:
    manifest = load_manifest(name)
    found = locate(manifest)
    for file in manifest.files:
        assert sum(1 for _ in read_rows(found[file.path], file)) == file.rows


def test_unknown_data_set_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'gsm9k' has no manifest; known: .*gsm8k"):
        load_manifest("gsm9k")


def test_unknown_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.yaml"
    path.write_text((manifests.MANIFESTS / "gsm8k.yaml").read_text() + "lisence: MIT\n")
    with pytest.raises(ValueError, match="lisence"):
        load_manifest(path)


def test_name_and_file_name_agree(tmp_path: Path) -> None:
    path = tmp_path / "other.yaml"
    path.write_text((manifests.MANIFESTS / "gsm8k.yaml").read_text())
    with pytest.raises(ValueError, match="name is 'gsm8k', wanted 'other'"):
        load_manifest(path)


def test_hub_file_without_pinned_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs hub_id and hub_revision"):
        describe(plant(tmp_path, hub_path="main/two.jsonl"))


def test_true_file_is_found(folder: Path) -> None:
    file = plant(folder)
    assert locate(describe(file)) == {"math/two.jsonl": folder / "math/two.jsonl"}
    assert [row["answer"] for row in read_rows(folder / file.path, file)] == ["1", "2"]


@pytest.mark.parametrize(
    ("content", "found_rows"), [(ROWS[:36], 1), (ROWS.replace(b"two", b"six"), 2), (b"", 0)], ids=["truncated", "edited", "empty"]
)
def test_changed_file_stops_with_found_and_wanted(folder: Path, content: bytes, found_rows: int) -> None:
    file = plant(folder)
    (folder / file.path).write_bytes(content)
    with pytest.raises(BrokenFile) as error:
        locate(describe(file))
    message = str(error.value)
    assert str(folder / file.path) in message
    assert f"found sha256 {hashlib.sha256(content).hexdigest()} and {found_rows} rows" in message
    assert f"wanted sha256 {file.sha256} and 2 rows" in message and "fetch it again" in message


def test_wrong_row_count_stops_although_the_hash_is_right(folder: Path) -> None:
    with pytest.raises(BrokenFile, match=r"and 2 rows in 72 bytes, wanted sha256 \w+ and 3 rows"):
        locate(describe(plant(folder, rows=3)))


def test_file_edited_after_it_was_verified_is_noticed(folder: Path) -> None:
    file = plant(folder)
    locate(describe(file))
    (folder / file.path).write_bytes(ROWS + b"\n")
    with pytest.raises(BrokenFile, match="and 3 rows"):
        locate(describe(file))


def test_unchanged_file_is_hashed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed = []
    true_hash = manifests.sha256_of
    monkeypatch.setattr(manifests, "sha256_of", lambda path: hashed.append(path) or true_hash(path))
    manifest = describe(plant(folder))
    assert locate(manifest) == locate(manifest)
    assert len(hashed) == 1


def test_missing_file_names_places_hub_id_and_next_step(folder: Path) -> None:
    plant(folder)
    absent = DataFile(path="math/three.jsonl", repository_path="data/three.jsonl", columns=(), rows=1, sha256="0" * 64)
    with pytest.raises(BrokenFile) as error:
        locate(describe(plant(folder), absent))
    message = str(error.value)
    assert "math/three.jsonl is neither in" in message and str(folder) in message and "openai/gsm8k" in message
    assert f"set {FOLDER_VARIABLE} to a folder that holds math/three.jsonl" in message
    assert "github.com/openai/grade-school-math/blob/3101c7d5072418e28b9008a6636bde82a006892c/data/three.jsonl" in message


def hub_manifest(source: Path, folder: Path, **changes) -> Manifest:
    """A manifest of a file that the hub has and `folder` has not."""
    file = plant(source, hub_path="main/two.jsonl", **changes)
    return describe(file, hub_revision="a" * 40)


def test_hub_serves_what_the_folder_lacks_at_the_pinned_revision(folder: Path, tmp_path_factory, monkeypatch) -> None:
    source = tmp_path_factory.mktemp("hub")
    manifest = hub_manifest(source, folder)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.hf_hub_download", lambda *where, **how: asked.append((where, how)) or str(source / "math/two.jsonl")
    )
    assert locate(manifest) == {"math/two.jsonl": source / "math/two.jsonl"}
    assert asked == [(("openai/gsm8k", "main/two.jsonl"), {"repo_type": "dataset", "revision": "a" * 40})]


def test_hub_file_with_another_hash_is_refused(folder: Path, tmp_path_factory, monkeypatch) -> None:
    source = tmp_path_factory.mktemp("hub")
    manifest = hub_manifest(source, folder, sha256="0" * 64)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *where, **how: str(source / "math/two.jsonl"))
    with pytest.raises(BrokenFile, match="wanted sha256 0{64}"):
        locate(manifest)


def test_offline_hub_says_where_it_looked_and_what_to_set(folder: Path, tmp_path_factory, monkeypatch) -> None:
    manifest = hub_manifest(tmp_path_factory.mktemp("hub"), folder)

    def offline(*where, **how):
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(BrokenFile) as error:
        locate(manifest)
    message = str(error.value)
    assert "openai/gsm8k: asking for main/two.jsonl failed" in message and "outgoing traffic has been disabled" in message
    assert str(folder) in message and f"set {FOLDER_VARIABLE} to a folder that holds math/two.jsonl" in message


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("a.jsonl", b'{"question": "one?"}\n', r"row 1: column 'answer' is missing; found \['question'\], wanted \['answer', 'question'\]"),
        ("a.tsv", b"question\ttext\none?\t1\n", r"row 1: column 'answer' is missing; found \['question', 'text'\]"),
        ("a.json", b'{"7": {"question": "one?"}}', r"entry '7': column 'answer' is missing; found \['key', 'question'\]"),
        ("a.json", b'{"question": []}', r"top level: column 'answer' is missing; found \['question'\]"),
        ("a.jsonl", b'{"question": "one?", "ans', r"cannot be read .* fetch it again"),
        ("a.jsonl.xz", lzma.compress(ROWS)[:-20], r"cannot be read .* fetch it again"),
        ("a.jsonl.xz", lzma.compress(ROWS), r"holds 2 rows, wanted 1; fetch the file again"),
    ],
    ids=["jsonl", "tsv", "object", "top-level", "cut-line", "cut-xz", "xz-rows"],
)
def test_unusable_rows_name_file_found_and_wanted(tmp_path: Path, path: str, content: bytes, message: str) -> None:
    file = plant(tmp_path, path, content, rows=1)
    with pytest.raises(BrokenFile, match=message) as error:
        list(read_rows(tmp_path / path, file))
    assert str(tmp_path / path) in str(error.value)


@pytest.mark.parametrize(
    ("path", "content", "rows"),
    [
        ("a.jsonl.xz", lzma.compress(ROWS), [json.loads(line) for line in ROWS.splitlines()]),
        ("a.tsv", b'label\ttext\nYes\t"a ""b"" c"\nNo\td\n', [{"label": "Yes", "text": 'a "b" c'}, {"label": "No", "text": "d"}]),
        ("a.txt", b" one\r\n\n", [{"text": " one"}, {"text": ""}]),
        ("a.json", b'{"x": {"q": 1}, "y": [2]}', [{"key": "x", "q": 1}, {"key": "y", "value": [2]}]),
    ],
)
def test_rows_of_every_format(tmp_path: Path, path: str, content: bytes, rows: list[dict]) -> None:
    file = plant(tmp_path, path, content, columns=())
    assert list(read_rows(tmp_path / path, file)) == rows
    if not path.endswith(".xz"):
        assert manifests.count_rows(tmp_path / path) == 2
