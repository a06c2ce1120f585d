"""Whether a registration was committed before the results it binds, from git (paper, section Registered analysis).

Git shows in which order files were committed, not when someone first looked at a result: the check can refute
a registration, and it lets readers see for themselves, but it cannot prove that nobody peeked.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from sparsecl.config import Study
from sparsecl.preregistration import Preregistration
from sparsecl.tree import REPOSITORY


@dataclass(frozen=True)
class RegistrationCheck:
    """What git says about the order of registration and results."""

    holds: bool | None  # None: git cannot tell, or there is nothing to compare yet
    sentence: str  # with its final stop


class _NoHistory(RuntimeError):
    """Git is not installed, the folder is no clone, or the clone is shallow."""


def check_registration(study: Study, registration: Preregistration, root: Path = REPOSITORY) -> RegistrationCheck:
    """The check that notebook 05 shows: the registered seed, then the order of commits; only `registered` analyses can fail."""
    if registration.status != "registered":
        return RegistrationCheck(None, f"The analysis of {study.name} has the status {registration.status} and binds no result.")
    if registration.seed is not None and registration.seed != study.seed:
        return RegistrationCheck(False, f"Study seed {study.seed} is not the registered seed {registration.seed}.")
    return registered_before_results(study.name, study.digest(), root)


def registered_before_results(study: str, settings_sha256: str, root: Path = REPOSITORY) -> RegistrationCheck:
    """Whether the last change of the registration is an ancestor of the first commit of this study's tables.

    The tables are those of `results/<study>` whose `published.json` carries `settings_sha256`; an earlier study of the
    same name under other settings, such as an exploratory run, does not count. `root` is the clone.
    """
    file = f"paper/preregistration/{study}.yaml"
    try:
        _require_history(root)
        registered = _git(root, "log", "-1", "--format=%H", "--", file)
        if not registered or _git(root, "status", "--porcelain", "--", file):
            return RegistrationCheck(False, f"The registration {file} is not committed, or was changed since; commit it before any result.")
        results = _results_commits(root, study, settings_sha256)
        if not results:
            when = f"the registration was last changed in commit {registered[:10]}"
            return RegistrationCheck(None, f"No table of {study} under the present settings is committed yet; {when}.")
        return _compare(root, registered, results)
    except _NoHistory as reason:
        return RegistrationCheck(None, f"Git cannot say whether the registration came before the results: {reason}.")


def _compare(root: Path, registered: str, results: list[str]) -> RegistrationCheck:
    """Names the first results that do not descend from the registration, or else the first ones at all."""
    wrong = [commit for commit in results if not _precedes(root, registered, commit)]
    first = (wrong or results)[0]
    days = [_git(root, "show", "-s", "--format=%cs", commit) for commit in (registered, first)]
    return RegistrationCheck(
        not wrong,
        f"The registration was last changed in commit {registered[:10]} ({days[0]}), {'not ' if wrong else ''}before the "
        f"{'' if wrong else 'first '}results under the present settings in commit {first[:10]} ({days[1]}).",
    )


def _precedes(root: Path, earlier: str, later: str) -> bool:
    """Whether one commit is a true ancestor of another and not dated after it."""
    dates = [int(_git(root, "show", "-s", "--format=%ct", commit)) for commit in (earlier, later)]
    ancestor = subprocess.run(["git", "merge-base", "--is-ancestor", earlier, later], cwd=root, capture_output=True).returncode == 0
    return ancestor and earlier != later and dates[0] <= dates[1]


def _results_commits(root: Path, study: str, settings_sha256: str) -> list[str]:
    """The commits, oldest first and on every branch that was merged, whose published tables carry these settings."""
    file = f"results/{study}/published.json"
    commits = _git(root, "log", "--reverse", "--topo-order", "--full-history", "--diff-filter=AM", "--format=%H", "--", file).split()
    return [commit for commit in commits if json.loads(_git(root, "show", f"{commit}:{file}"))["settings_sha256"] == settings_sha256]


def _require_history(root: Path) -> None:
    try:
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        _git(root, "rev-parse", "--verify", "HEAD")
        shallow = _git(root, "rev-parse", "--is-shallow-repository") == "true"
    except FileNotFoundError:
        raise _NoHistory("git is not installed") from None
    except subprocess.CalledProcessError as error:
        raise _NoHistory(f"git answers '{error.stderr.strip().splitlines()[0]}'") from None
    if top.resolve() != Path(root).resolve():
        raise _NoHistory(f"{root.name} is not a clone of its own")
    if shallow:
        raise _NoHistory("the clone is shallow; run git fetch --unshallow")


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, check=True, capture_output=True, text=True).stdout.strip()
