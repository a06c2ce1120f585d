"""Whether git shows a registration to be older than its results, in small repositories."""

import json
import os
import subprocess
from types import SimpleNamespace

import pytest

from sparsecl.preregistration import load_preregistration
from sparsecl.registration_history import check_registration, registered_before_results

SETTINGS = "a" * 64
REGISTRATION = "paper/preregistration/full.yaml"


class Repository:
    """A git repository whose commits are a minute apart."""

    def __init__(self, root):
        self.root, self.minutes = root, 0
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments):
        date = f"2026-01-01T00:{self.minutes:02d}:00+00:00"
        environment = {
            "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org",
            "PATH": os.environ["PATH"],
        }  # fmt: skip
        return subprocess.run(["git", *arguments], cwd=self.root, check=True, capture_output=True, text=True, env=environment).stdout

    def commit(self, **files):
        """Write and commit files (`registration=text`, `results=settings`); returns the commit's short name."""
        self.minutes += 1
        if "registration" in files:
            self.write(REGISTRATION, files["registration"])
        if "results" in files:
            self.write("results/full/published.json", json.dumps({"settings_sha256": files["results"], "at": self.minutes}))
        self.git("add", "-A")
        self.git("commit", "-q", "-m", "next")
        return self.git("rev-parse", "HEAD").strip()[:10]

    def write(self, path, text):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def check(self):
        return registered_before_results("full", SETTINGS, self.root)


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path)


def test_a_registration_before_its_results_holds(repository):
    registered = repository.commit(registration="n: 20")
    results = repository.commit(results=SETTINGS)
    repository.commit(results=SETTINGS)
    check = repository.check()
    assert check.holds is True
    assert f"{registered} (2026-01-01), before the first results under the present settings in commit {results}" in check.sentence


def test_results_under_other_settings_do_not_count(repository):
    """An exploratory run of the same study was published before the registration was written."""
    repository.commit(results="b" * 64)
    repository.commit(registration="n: 20")
    assert repository.check().holds is None and "No table of full under the present settings" in repository.check().sentence
    repository.commit(results=SETTINGS)
    assert repository.check().holds is True


@pytest.mark.parametrize("late", ["after", "together", "edited", "edited and undone"])
def test_a_registration_that_changed_after_its_results_does_not_hold(repository, late):
    if late == "together":
        repository.commit(registration="n: 20", results=SETTINGS)
    else:
        if late != "after":
            repository.commit(registration="n: 20")
        results = repository.commit(results=SETTINGS)
        repository.commit(registration="n: 19")
        if late == "edited and undone":
            repository.commit(registration="n: 20")
        assert results in repository.check().sentence
    assert repository.check().holds is False and "not before the results" in repository.check().sentence


def test_results_of_a_branch_that_did_not_have_the_registration_do_not_hold(repository):
    repository.write("README", "x")
    repository.commit()
    repository.git("checkout", "-q", "-b", "results")
    branch = repository.commit(results=SETTINGS)
    repository.git("checkout", "-q", "main")
    repository.commit(registration="n: 20")
    repository.git("merge", "-q", "--no-ff", "-m", "both", "results")
    check = repository.check()
    assert check.holds is False and branch in check.sentence


def test_a_commit_dated_after_the_results_does_not_hold(repository):
    repository.minutes = 30
    repository.commit(registration="n: 20")
    repository.minutes = 10
    repository.commit(results=SETTINGS)
    assert repository.check().holds is False


@pytest.mark.parametrize("state", ["never added", "changed since", "staged"])
def test_an_uncommitted_registration_does_not_hold(repository, state):
    if state == "never added":
        repository.commit(results=SETTINGS)
        repository.write(REGISTRATION, "n: 20")
    else:
        repository.commit(registration="n: 20")
        repository.commit(results=SETTINGS)
        repository.write(REGISTRATION, "n: 19")
        if state == "staged":
            repository.git("add", "-A")
    check = repository.check()
    assert check.holds is False and "is not committed, or was changed since" in check.sentence


def test_without_history_git_cannot_say(repository, tmp_path_factory, monkeypatch):
    assert repository.check().holds is None, "no commit yet"
    folder = tmp_path_factory.mktemp("plain")
    plain = registered_before_results("full", SETTINGS, folder)
    assert plain.holds is None and "not a git repository" in plain.sentence
    repository.commit(registration="n: 20")
    inside = registered_before_results("full", SETTINGS, repository.root / "paper")
    assert inside.holds is None and "paper is not a clone of its own" in inside.sentence
    repository.commit(results=SETTINGS)
    repository.git("clone", "-q", "--depth", "1", f"file://{repository.root}", str(folder / "shallow"))
    shallow = registered_before_results("full", SETTINGS, folder / "shallow")
    assert shallow.holds is None and "git fetch --unshallow" in shallow.sentence
    monkeypatch.setenv("PATH", str(folder))
    absent = registered_before_results("full", SETTINGS, repository.root)
    assert absent.holds is None and "git is not installed" in absent.sentence


def test_a_study_with_another_seed_than_the_registered_one_does_not_hold(repository):
    registration = load_preregistration("builtin-full")
    study = SimpleNamespace(name="full", seed=registration.seed, digest=lambda: SETTINGS)
    repository.commit(registration="n: 20")
    repository.commit(results=SETTINGS)
    assert check_registration(study, registration, repository.root).holds is True
    study.seed += 1
    assert check_registration(study, registration, repository.root).holds is False
    pilot = check_registration(study, load_preregistration("builtin"), repository.root)
    assert pilot.holds is None and "status pilot" in pilot.sentence
