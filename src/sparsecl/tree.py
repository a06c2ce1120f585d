"""Where everything lies; nothing else in the package spells a path.

A study's tree is `runs/<study>/` (or below `--out`). Opened in JupyterLab a notebook writes under
`runs/lab/<study>` and reads what it lacks from `runs/<study>`, so stepping through never harms a run.
"""

from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
LAB = Path("runs/lab")


@dataclass(frozen=True)
class Tree:
    """The files of one study: `root` is written, `fallback` is only read."""

    root: Path
    fallback: Path | None = None

    def path(self, *parts: str) -> Path:
        """Where to write a file of this tree (parents are made by who writes)."""
        return self.root.joinpath(*parts)

    def find(self, *parts: str) -> Path | None:
        """The file in this tree, or else in the fallback; None where neither has it."""
        for root in (self.root, self.fallback):
            if root is not None and root.joinpath(*parts).exists():
                return root.joinpath(*parts)
        return None

    def replicate(self, replicate: int | str) -> str:
        return f"replicate-{replicate}"


def open_tree(study_name: str, output: str | Path) -> Tree:
    """The tree of a study below the folder `output` (relative to the repository)."""
    output = REPOSITORY / output
    fallback = REPOSITORY / "runs" / study_name
    root = output / study_name
    return Tree(root, None if root == fallback else fallback)


def published(study_name: str) -> Path:
    """Committed tables of a study; may not exist."""
    return REPOSITORY / "results" / study_name
