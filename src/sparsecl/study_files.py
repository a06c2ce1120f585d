"""Reading studies: `configs/<study>.yaml` -> `Study`, with errors a person can act on."""

from pathlib import Path

import yaml
from pydantic import ValidationError

from sparsecl.config import Study
from sparsecl.tree import REPOSITORY


def known_studies() -> list[str]:
    return sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))


def load_study(name_or_file: str | Path) -> Study:
    """Read a study by name (`configs/<name>.yaml`) or from a YAML file; SystemExit-worthy errors are ValueError."""
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = REPOSITORY / "configs" / f"{name_or_file}.yaml"
        if str(name_or_file) not in known_studies():
            raise ValueError(f"study {str(name_or_file)!r} is unknown; known: {', '.join(known_studies())}, or give a YAML file")
    if not path.is_file():
        raise ValueError(f"study file {path} does not exist; known studies: {', '.join(known_studies())}")
    try:
        return Study.model_validate(yaml.safe_load(path.read_text()))
    except ValidationError as error:
        raise ValueError(_readable(path, error)) from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None


def _readable(path: Path, error: ValidationError) -> str:
    lines = [f"{path}: {error.error_count()} setting(s) cannot be used"]
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        seen = "" if isinstance(problem["input"], dict) else f" (value {problem['input']!r})"
        lines.append(f"  {key or 'study'}{seen}: {problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)
