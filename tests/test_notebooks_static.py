"""Notebooks: thin, stripped, lint-clean, literal parameters, sections in the agreed order."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SECTIONS = ["Parameters", "Load the study", "Inputs", "Work", "Reading", "Outputs"]


def cells(path: Path, kind: str) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_the_five_notebooks_are_there():
    assert [path.stem for path in NOTEBOOKS] == ["01_sparsify", "02_recover", "03_continual", "04_probe", "05_stats"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_is_thin(self, path):
        lines = [len([line for line in source(cell).splitlines() if line.strip()]) for cell in cells(path, "code")]
        assert sum(lines) <= 150 and max(lines) <= 20

    def test_is_stripped(self, path):
        assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells(path, "code"))

    def test_has_one_parameters_cell_of_literals(self, path):
        tagged = [cell for cell in cells(path, "code") if "parameters" in cell["metadata"].get("tags", [])]
        assert len(tagged) == 1
        for statement in ast.parse(source(tagged[0])).body:
            assert isinstance(statement, ast.Assign)
            ast.literal_eval(statement.value)  # raises where it is not a literal

    def test_tells_its_story_in_order(self, path):
        headings = [line[3:] for cell in cells(path, "markdown") for line in source(cell).splitlines() if line.startswith("## ")]
        assert headings == SECTIONS
        assert "**Question.**" in source(cells(path, "markdown")[0])

    def test_imports_in_one_cell_and_hides_nothing(self, path):
        trees = [ast.parse(source(cell)) for cell in cells(path, "code")]
        importing = [tree for tree in trees if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree))]
        assert len(importing) == 1
        nodes = [node for tree in trees for node in ast.walk(tree)]
        assert not [node for node in nodes if isinstance(node, ast.Try | ast.While)]
        assert not [alias for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names if alias.name == "*"]
        assert "no_grad" not in ast.unparse(ast.Module([statement for tree in trees for statement in tree.body], []))

    def test_knows_no_path_of_a_machine(self, path):
        assert not [cell for cell in cells(path, "code") if '"/' in source(cell) or "'/" in source(cell)]


def test_the_tree_is_lint_clean():
    root = Path(__file__).parents[1]
    for arguments in (["check", "."], ["format", "--check", "."]):
        found = subprocess.run([sys.executable, "-m", "ruff", *arguments], cwd=root, capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
