"""Hidden packages: absent inside the block, importable after it, and never taken from who has them already."""

import importlib
import sys

import pytest

from sparsecl.imports import hidden


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """`optional_part`, and `asks_for_it`, which imports it where it is installed."""
    (tmp_path / "optional_part.py").write_text("")
    (tmp_path / "asks_for_it.py").write_text(
        "import importlib.util\nfound = importlib.util.find_spec('optional_part') is not None\nif found:\n    import optional_part\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("optional_part", "asks_for_it"):
        sys.modules.pop(name, None)


def test_a_hidden_package_looks_not_installed_and_can_be_imported_afterwards(packages):
    with hidden("optional_part"):
        asks_for_it = importlib.import_module("asks_for_it")
    assert not asks_for_it.found
    assert importlib.import_module("optional_part").__name__ == "optional_part"


def test_an_imported_package_is_not_hidden(packages):
    optional_part = importlib.import_module("optional_part")

    with hidden("optional_part"):
        assert sys.modules["optional_part"] is optional_part


def test_nothing_is_hidden_from_who_has_asked_already(packages):
    sys.modules["asks_for_it"] = sys  # any module: its import is over
    with hidden("optional_part", before="asks_for_it"):
        assert importlib.import_module("optional_part").__name__ == "optional_part"


def test_a_failing_import_leaves_nothing_hidden(packages):
    with pytest.raises(ZeroDivisionError), hidden("optional_part"):
        raise ZeroDivisionError
    assert "optional_part" not in sys.modules
