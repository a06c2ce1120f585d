"""The study behind each part of the paper (`paper/paper.yaml`); reads no tables and imports no plotting."""

from collections.abc import Mapping

import yaml

from sparsecl.tree import REPOSITORY

MAIN = "main"


def parts_of_record() -> dict[str, str]:
    """Part -> study, as in the paper of record."""
    return dict(yaml.safe_load((REPOSITORY / "paper" / "paper.yaml").read_text(encoding="utf-8"))["parts"])


def parts_of(study: str) -> dict[str, str]:
    """Part -> study when `study` is built: a study of record keeps its part, any other stands in for `main`."""
    parts = parts_of_record()
    return parts if study in parts.values() else {**parts, MAIN: study}


def is_of_record(parts: Mapping[str, str]) -> bool:
    return dict(parts) == parts_of_record()
