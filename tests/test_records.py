"""Records and code digests: whole or not there, tampering noticed, reruns only where code that matters changed."""

import json

import pytest

from sparsecl import code_digest, records


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "deep" / "record.json"
    records.write_json(path, {"value": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        records.write_atomically(path, fail)
    assert records.read_json(path) == {"value": 1}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]


def test_a_full_disk_is_named_with_the_next_step(tmp_path):
    def full(_):
        raise OSError(28, "No space left on device")

    with pytest.raises(records.BrokenFile, match="table.csv could not be written .*No space left.* run the same command again"):
        records.write_atomically(tmp_path / "table.csv", full)
    assert not list(tmp_path.iterdir())


def test_nan_is_not_a_value(tmp_path):
    with pytest.raises(ValueError):
        records.write_json(tmp_path / "record.json", {"score": float("nan")})
    assert not (tmp_path / "record.json").exists()


def test_a_hand_edited_record_is_refused(tmp_path):
    path = tmp_path / "03_continual.json"
    records.write_record(path, {"score": 0.5})
    assert records.read_record(path)["score"] == 0.5
    path.write_text(json.dumps({**json.loads(path.read_text()), "score": 0.9}))
    with pytest.raises(records.BrokenFile, match="03_continual.json was changed after it was written; delete it"):
        records.read_record(path)
    path.write_text('{"score": ')
    with pytest.raises(records.BrokenFile, match="not whole JSON"):
        records.read_record(path)
    with pytest.raises(records.BrokenFile, match="does not exist"):
        records.read_record(tmp_path / "none.json")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of four modules: a imports b and (inside a function) c; d stands alone."""
    root = tmp_path / "src" / "sparsecl"
    root.mkdir(parents=True)
    sources = {
        "__init__": "",
        "a": "from sparsecl.b import f\ndef g():\n    from sparsecl import c\n    return c\n",
        "b": "import json\ndef f(): return 1\n",
        "c": "x = 1\n",
        "d": "y = 1\n",
    }
    for name, source in sources.items():
        (root / f"{name}.py").write_text(source)
    monkeypatch.setattr(code_digest, "PACKAGE", root)

    def digest() -> str:
        code_digest.module_digest.cache_clear()
        code_digest._reached.cache_clear()
        return code_digest.module_digest("sparsecl.a")

    return root, digest


def test_reached_modules_follow_imports_anywhere(package):
    _, digest = package
    digest()
    assert code_digest.reached_modules("sparsecl.a") == ["sparsecl", "sparsecl.a", "sparsecl.b", "sparsecl.c"]


def test_only_reached_code_changes_a_digest(package):
    root, digest = package
    before = digest()
    (root / "d.py").write_text("y = 2\n")
    (root / "c.py").write_text("x = 1  # why\n\n")
    assert digest() == before  # an unreached module and a comment
    (root / "c.py").write_text("x = 2\n")
    assert digest() != before


def test_a_notebook_digest_sees_code_not_prose(tmp_path):
    def digest(markdown: str, code: str) -> str:
        cells = [{"cell_type": "markdown", "source": [markdown]}, {"cell_type": "code", "source": [code]}]
        (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
        return code_digest.notebook_digest(tmp_path / "n.ipynb")

    assert digest("one", "from sparsecl.arms import Arm\n") == digest("two", "from sparsecl.arms import Arm\n")
    assert digest("one", "from sparsecl.arms import Arm\n") != digest("one", "from sparsecl.items import Item\n")


def test_plots_are_not_behind_training():
    """A plot edit must not retrain: no unit of work reaches a figure."""
    reached = code_digest.reached_modules("sparsecl.continual", "sparsecl.lineage", "sparsecl.base")
    assert not [name for name in reached if "figure" in name or "publication" in name or "paper" in name]
