"""Digests of code: which modules a notebook or module reaches, and what they hold.

A job reruns when the code it reaches changes, and only then: a plot edit must not retrain. Reached
means imported, directly or through other modules of this package, anywhere in the file.
"""

import ast
import hashlib
import json
from functools import cache
from pathlib import Path

from sparsecl.tree import REPOSITORY

PACKAGE = REPOSITORY / "src" / "sparsecl"


def _module_file(name: str) -> Path | None:
    path = PACKAGE.parent.joinpath(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(source: str) -> set[str]:
    """Names of this package's modules that a piece of Python imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update({node.module} | {f"{node.module}.{alias.name}" for alias in node.names})
    return {name for name in names if name.split(".")[0] == "sparsecl" and _module_file(name)}


@cache
def _reached(name: str) -> frozenset[str]:
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        waiting.extend(_imports(_module_file(module).read_text(encoding="utf-8")))
    return frozenset(seen)


def reached_modules(*names: str) -> list[str]:
    """The named modules and all they import, sorted."""
    return sorted(frozenset().union(*(_reached(name) for name in names)))


def _code_only(source: str) -> str:
    """Python without comments and layout (docstrings stay): prose edits in comments change no digest."""
    return ast.unparse(ast.parse(source))


@cache
def module_digest(*names: str) -> str:
    """sha256 over the code of the named modules and all they reach."""
    digest = hashlib.sha256()
    for name in reached_modules(*names):
        digest.update(f"{name}\n{_code_only(_module_file(name).read_text(encoding='utf-8'))}\n".encode())
    return digest.hexdigest()


def notebook_source(path: Path) -> str:
    """The code cells of a notebook, joined."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def notebook_digest(path: Path) -> str:
    """sha256 over a notebook's code and every module it reaches."""
    source = notebook_source(path)
    modules = module_digest(*sorted(_imports(source) | {"sparsecl"}))
    return hashlib.sha256(f"{_code_only(source)}\n{modules}".encode()).hexdigest()
