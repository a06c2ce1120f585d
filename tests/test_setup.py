"""The set-up: one source of truth for the versions, a gate that sees what differs, a command that takes data as data."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from sparsecl import environment

REPOSITORY = Path(__file__).resolve().parents[1]
LOCK = REPOSITORY / "requirements.lock"
RUN_ALL = REPOSITORY / "run_all.sh"
OPTIONS = {"--test", "--study", "--only", "--publish", "--out", "--no-pdf", "--cores", "--lab", "--bench", "--help", "--"}


# --- the lock ---------------------------------------------------------------------------------------------------


def direct_pins() -> set[str]:
    direct = LOCK.read_text().split("# --- required by the above ---")[0]
    return {environment.canonical_name(re.split(r"[\[=]", line)[0]) for line in direct.splitlines() if "==" in line}


def imported_modules(source: str) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules.add(node.module)
    return {module.split(".")[0] for module in modules}


def project_imports() -> dict[str, Path]:
    """Map each module that the project imports to one file that does."""
    found = {}
    for folder in ("src", "notebooks", "benchmarks", "tests"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            found |= dict.fromkeys(imported_modules(path.read_text()), path)
        for path in sorted((REPOSITORY / folder).rglob("*.ipynb")):
            cells = json.loads(path.read_text())["cells"]
            for cell in cells:
                if cell["cell_type"] == "code":
                    code = "\n".join(line for line in "".join(cell["source"]).splitlines() if not line.lstrip().startswith(("%", "!")))
                    found |= dict.fromkeys(imported_modules(code), path)
    return found


def test_every_third_party_import_is_pinned_as_used_directly():
    distributions = metadata.packages_distributions()
    own = {"sparsecl"} | {path.stem for folder in ("tests", "benchmarks") for path in (REPOSITORY / folder).iterdir()}
    direct = direct_pins()
    missing = []
    for module, path in project_imports().items():
        if module not in sys.stdlib_module_names and module not in own:
            names = {environment.canonical_name(name) for name in distributions.get(module, [module])}
            if not names & direct:
                missing.append(f"{path.relative_to(REPOSITORY)} imports {module}: add {' or '.join(sorted(names))}")
    assert not missing, f"not in the first block of {LOCK.name}: {missing}"


def requirements_of(name: str, extras: set[str]) -> list[Requirement]:
    requirements = [Requirement(text) for text in metadata.requires(name) or []]
    return [r for r in requirements if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras | {""})]


def test_lock_is_closed_and_holds_nothing_that_nothing_uses():
    direct = [Requirement(line) for line in LOCK.read_text().split("# --- required")[0].splitlines() if "==" in line]
    to_visit = [(environment.canonical_name(r.name), frozenset(r.extras)) for r in direct]
    reached = set()
    while to_visit:
        name, extras = to_visit.pop()
        if (name, extras) not in reached:
            reached.add((name, extras))
            to_visit += [(environment.canonical_name(r.name), frozenset(r.extras)) for r in requirements_of(name, set(extras))]
    needed = {name for name, _ in reached} - {"setuptools"}  # comes with every environment; torch asks for a minimum only
    pinned = set(environment.pinned_versions(LOCK))
    assert needed <= pinned, f"required but not pinned: {sorted(needed - pinned)}"
    if sys.platform == "linux":  # another system needs fewer of them
        assert pinned <= needed, f"pinned but used by nothing: {sorted(pinned - needed)}"


def test_torch_is_pinned_without_a_build_and_no_cuda_library_is_listed():
    lines = LOCK.read_text().splitlines()
    assert "torch==2.13.0" in lines
    assert not [line for line in lines if "+" in line.split("#")[0]]
    libraries = [line for line in lines if re.match(r"(nvidia|triton|cuda)", line, re.IGNORECASE)]
    assert [line.split("==")[0] for line in libraries] == ["nvidia-ml-py"]  # pure Python, required by llmcompressor


def test_versions_are_pinned_in_the_lock_only():
    yaml_lines = [line.strip() for line in (REPOSITORY / "environment.yml").read_text().splitlines() if not line.startswith("#")]
    assert yaml_lines[yaml_lines.index("dependencies:") + 1 :] == ["- python=3.11", "- pip", "- pip:", "- -r requirements.lock"]
    project = (REPOSITORY / "pyproject.toml").read_text()
    assert 'dependencies = { file = ["requirements.lock"] }' in project
    assert "==" not in project


# --- the gate ---------------------------------------------------------------------------------------------------


def check_lock(lock: Path, text: str) -> subprocess.CompletedProcess:
    lock.write_text(text)
    script = REPOSITORY / "src" / "sparsecl" / "environment.py"
    return subprocess.run([sys.executable, "-I", str(script), str(lock)], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("pin", "difference"),
    [
        (f"pytest=={pytest.__version__}", None),
        (f"# a comment\n\nPyTest[extra]=={pytest.__version__}  # another", None),
        ("pytest==0.0.1", f"pytest: found {pytest.__version__}, wanted 0.0.1"),
        ("no-such-package==1.0", "no-such-package: found nothing, wanted 1.0"),
    ],
)
def test_gate_finds_wrong_and_missing_pins(tmp_path, pin, difference):
    result = check_lock(tmp_path / "planted.lock", pin)
    assert result.returncode == (0 if difference is None else 1), result.stderr
    assert ("does not satisfy planted.lock" in result.stdout) == (difference is not None)
    assert difference is None or difference in result.stdout


def test_gate_shows_the_first_differences_and_counts_the_rest(tmp_path):
    result = check_lock(tmp_path / "planted.lock", "".join(f"missing-{i}==1\n" for i in range(9)))
    assert result.stdout.count("found nothing") == environment.SHOWN
    assert f"and {9 - environment.SHOWN} more" in result.stdout


def test_gate_refuses_another_python(monkeypatch, tmp_path):
    lock = tmp_path / "planted.lock"
    lock.write_text(f"pytest=={pytest.__version__}")
    monkeypatch.setattr(environment.sys, "version_info", (3, 12, 1, "final", 0))
    assert environment.differences(lock) == ["python: found 3.12, wanted 3.11"]


def test_a_lock_line_that_is_no_pin_stops(tmp_path):
    lock = tmp_path / "planted.lock"
    lock.write_text("pytest==9\nnumpy>=2\n")
    with pytest.raises(ValueError, match=r"line 2: found 'numpy>=2', wanted `name==version`"):
        environment.pinned_versions(lock)


@pytest.mark.parametrize(
    ("found", "wanted", "satisfied"),
    [("2.13.0", "2.13.0", True), ("2.13.0+cpu", "2.13.0", True), ("2.13.0", "2.13.0+cpu", False), ("2.13.01", "2.13.0", False)],
)
def test_a_build_suffix_is_no_other_version(found, wanted, satisfied):
    assert environment.satisfies(found, wanted) is satisfied


def test_the_running_environment_satisfies_the_lock():
    assert environment.differences(LOCK) == []


# --- the command: a small clone with stand-ins for Python and conda that record how they are called ----------------

# Stands in for a Python of some environment: `-m venv` makes an environment of stand-ins, `-m pip install` of the
# lock makes the environment it belongs to satisfy it (unless BREAK_PIP), anything else is recorded and does nothing.
PYTHON_STAND_IN = """#!/usr/bin/env bash
prefix=$(cd "$(dirname "$0")/.." && pwd)
printf '%s' "$(basename "$0")" >>"$CALLS"; printf ' <%s>' "$@" >>"$CALLS"; printf '\\n' >>"$CALLS"
case "$*" in
    *version_info*) exit "${NOT_311:-0}" ;;
    *sys.prefix*) echo "$prefix" ;;
    *environment.py*) [ -e "$prefix/satisfies" ] ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*" --requirement "*) [ -z "${BREAK_PIP:-}" ] && touch "$prefix/satisfies" ;;
esac
"""
CONDA_STAND_IN = """#!/usr/bin/env bash
printf 'conda' >>"$CALLS"; printf ' <%s>' "$@" >>"$CALLS"; printf '\\n' >>"$CALLS"
[ -z "${BREAK_CONDA:-}" ] || { mkdir -p "$4"; exit 1; }
mkdir -p "$4/bin" && cp "$PYTHON_STAND_IN" "$4/bin/python" && touch "$4/satisfies"
"""


class Clone:
    """A copy of what `run_all.sh` needs, and a PATH on which only the stand-ins know Python."""

    def __init__(self, folder: Path):
        self.root = folder / "a clone"
        self.elsewhere = folder / "elsewhere"
        self.calls = folder / "calls"
        self.programs = folder / "base" / "bin"
        for path in (self.elsewhere, self.programs, self.root / "src" / "sparsecl", self.root / "configs", self.root / "notebooks"):
            path.mkdir(parents=True)
        for name in ("run_all.sh", "environment.yml", "requirements.lock", "src/sparsecl/environment.py"):
            shutil.copy(REPOSITORY / name, self.root / name)
        for name in ("configs/builtin.yaml", "configs/smoke.yaml", "notebooks/01_sparsify.ipynb", "notebooks/04_probe.ipynb"):
            (self.root / name).write_text("{}")
        for name in ("python", "python3", "python3.11"):
            self.add_program(name, PYTHON_STAND_IN)

    def add_program(self, name: str, text: str) -> Path:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def run(self, *options: str, **variables: str) -> subprocess.CompletedProcess:
        self.calls.write_text("")
        surroundings = {
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(self.elsewhere),
            "CALLS": str(self.calls),
            "PYTHON_STAND_IN": str(self.programs / "python"),
        }
        command = ["bash", str(self.root / "run_all.sh"), *options]
        return subprocess.run(command, cwd=self.elsewhere, env=surroundings | variables, capture_output=True, text=True)

    def called(self, part: str) -> bool:
        return part in self.calls.read_text()

    def last_call(self) -> str:
        return self.calls.read_text().splitlines()[-1]

    def files(self) -> set[Path]:
        return {path.relative_to(self.root.parent) for path in self.root.parent.rglob("*")}


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


@pytest.mark.parametrize(
    ("options", "seen", "known"),
    [
        (["--plan"], "unknown option: --plan", sorted(OPTIONS)),
        (["builtin"], "unknown option: builtin", sorted(OPTIONS)),
        (["--study", "smoek"], "unknown study: smoek", ["builtin", "smoke", "a YAML file that exists"]),
        (["--study", "x; touch PWNED"], "unknown study: x; touch PWNED", ["builtin", "smoke"]),
        (["--study", "$(touch PWNED)"], "unknown study: $(touch PWNED)", ["builtin", "smoke"]),
        (["--study", "`touch PWNED`.yaml"], "unknown study: `touch PWNED`.yaml", ["builtin", "smoke"]),
        (["--study", "*"], "unknown study: *", ["builtin", "smoke"]),
        (["--study", "../configs/smoke"], "unknown study: ../configs/smoke", ["builtin", "smoke"]),
        (["--only", "06_more"], "unknown notebook: 06_more", ["01_sparsify", "04_probe"]),
        (["--only", "$(touch PWNED)"], "unknown notebook: $(touch PWNED)", ["01_sparsify", "04_probe"]),
        (["--cores", "two"], "--cores: found two", ["a whole number from 1 on"]),
        (["--cores", "0"], "--cores: found 0", ["a whole number from 1 on"]),
        (["--study"], "--study needs a value", ["--help"]),
        (["--test", "--lab"], "--test and --lab exclude each other", ["one of them"]),
        (["--test", "--study", "smoke"], "--study belongs to running a study, not to --test", ["leave one of them out"]),
    ],
)
def test_a_wrong_call_is_refused_before_any_set_up(clone, options, seen, known):
    before = clone.files() | {Path("calls")}
    result = clone.run(*options)
    assert result.returncode == 2
    assert seen in result.stderr
    assert all(name in result.stderr for name in known), result.stderr
    assert result.stdout == ""
    assert clone.calls.read_text() == ""
    assert clone.files() == before


def test_help_and_the_error_list_every_option_that_is_parsed(clone):
    patterns = re.findall(r"^ {12}((?:--[a-z-]* ?\|? ?)+)\)", RUN_ALL.read_text(), re.MULTILINE)
    assert {option for pattern in patterns for option in pattern.split(" | ")} == OPTIONS
    shown = clone.run("--help")
    refused = clone.run("--unknown").stderr.split("known: ")[1].split()
    assert shown.returncode == 0
    assert set(re.findall(r"(?<=\s)--[a-z-]*", shown.stdout)) == OPTIONS
    assert set(refused) == OPTIONS


def test_a_script_without_syntax_errors():
    for script in (RUN_ALL, REPOSITORY / ".ci" / "run"):
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", str(script)]).returncode == 0


def test_ci_runs_the_command_with_test_and_nothing_else():
    lines = [line for line in (REPOSITORY / ".ci" / "run").read_text().splitlines() if not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."', "exec ./run_all.sh --test"]


def test_the_active_environment_is_used_if_it_satisfies_the_lock(clone):
    (clone.programs.parent / "satisfies").touch()
    result = clone.run("--no-pdf")
    assert result.returncode == 0, result.stderr
    assert f"using the Python environment {clone.programs.parent}" in result.stdout
    assert not clone.called("venv") and not (clone.root / ".venv").exists()
    assert clone.last_call() == "python <-m> <sparsecl.workflow> <--study> <builtin> <--no-pdf>"


def test_options_reach_the_workflow_as_they_are(clone):
    (clone.programs.parent / "satisfies").touch()
    (clone.elsewhere / "$(touch PWNED) b.yaml").write_text("{}")
    result = clone.run(
        *("--study", "$(touch PWNED) b.yaml", "--only", "04_probe", "--publish", "--out", "some where"),
        *("--cores", "2", "--no-pdf", "--", "-n", "--config", "a b=$HOME;c"),
    )
    assert result.returncode == 0, result.stderr
    assert clone.last_call() == (
        f"python <-m> <sparsecl.workflow> <--study> <{clone.elsewhere}/$(touch PWNED) b.yaml> <--only> <04_probe> <--publish>"
        f" <--out> <{clone.elsewhere}/some where> <--no-pdf> <--cores> <2> <--> <-n> <--config> <a b=$HOME;c>"
    )
    assert not list(clone.root.parent.rglob("PWNED"))


def test_modes_hand_over_to_their_programs(clone):
    (clone.programs.parent / "satisfies").touch()
    (clone.root / "benchmarks").mkdir()
    (clone.root / "benchmarks" / "speed.py").touch()
    clone.run("--test", "--no-pdf", "--", "-k", "a or b")
    assert clone.last_call() == "python <-m> <pytest> <--durations=10> <-k> <a or b>"
    clone.run("--lab")
    assert clone.last_call() == f"python <-m> <jupyterlab> <--notebook-dir={clone.root}/notebooks>"
    clone.run("--bench")
    assert clone.last_call() == "python <benchmarks/speed.py>"


def test_without_an_environment_a_venv_is_made_once(clone):
    first = clone.run("--no-pdf")
    assert first.returncode == 0, first.stderr
    assert "making the environment .venv with python3.11" in first.stdout and "made .venv in" in first.stdout
    assert clone.called("<-m> <venv>") and clone.called(f"<--requirement> <{clone.root}/requirements.lock>")
    assert not (clone.root / ".venv.incomplete").exists()
    second = clone.run("--no-pdf")
    assert f"using the Python environment {clone.root}/.venv" in second.stdout
    assert not clone.called("venv>") and not clone.called("pip")


def test_an_interrupted_set_up_is_mended_by_the_next(clone):
    broken = clone.run("--no-pdf", BREAK_PIP="yes")
    assert broken.returncode == 1
    assert "pip could not install requirements.lock" in broken.stderr and "run the same command again" in broken.stderr
    (clone.root / ".venv" / "satisfies").touch()  # what a killed pip left may look complete
    (clone.root / ".venv" / "half-written").touch()
    mended = clone.run("--no-pdf")
    assert mended.returncode == 0, mended.stderr
    assert "an earlier set-up was interrupted" in mended.stdout and clone.called("<-m> <pip> <install>")
    assert not (clone.root / ".venv" / "half-written").exists()


def test_two_set_ups_at_once_do_not_mix(clone):
    marker = clone.root / ".venv.incomplete"
    marker.write_text(str(os.getpid()))
    result = clone.run("--no-pdf")
    assert result.returncode == 1
    assert f"process {os.getpid()} is making" in result.stderr and str(marker) in result.stderr
    assert not clone.called("pip")


def test_conda_makes_the_environment_where_there_is_one(clone):
    clone.add_program("conda", CONDA_STAND_IN)
    result = clone.run("--no-pdf")
    assert result.returncode == 0, result.stderr
    prefix, file = clone.root / ".conda", clone.root / "environment.yml"
    assert clone.called(f"conda <env> <create> <--prefix> <{prefix}> <--file> <{file}>")
    assert f"using the Python environment {prefix}" in result.stdout
    clone.run("--no-pdf")
    assert not clone.called("create")


def test_a_venv_takes_the_place_of_a_failing_conda(clone):
    clone.add_program("conda", CONDA_STAND_IN)
    result = clone.run("--no-pdf", BREAK_CONDA="yes")
    assert result.returncode == 0, result.stderr
    assert "conda could not make the environment, so a venv takes its place" in result.stdout
    assert f"using the Python environment {clone.root}/.venv" in result.stdout
    assert not (clone.root / ".conda").exists() and not (clone.root / ".conda.incomplete").exists()


def test_without_python_311_the_set_up_names_the_command_to_type(clone):
    result = clone.run("--no-pdf", NOT_311="1")
    assert result.returncode == 1
    assert "found no Python 3.11 and no conda. Type:" in result.stderr
    assert not (clone.root / ".venv").exists()


# --- TeX --------------------------------------------------------------------------------------------------------


def test_without_tex_the_command_stops_first_and_names_the_two_ways_on(clone):
    """No TeX and no rights to install it: a PATH with the few programs that the script itself needs."""
    (clone.programs.parent / "satisfies").touch()
    for name in ("bash", "env", "basename", "dirname", "cat", "cp"):
        (clone.programs / name).symlink_to(shutil.which(name))
    clone.add_program("id", "#!/usr/bin/env bash\necho 1000\n")
    clone.add_program("apt-get", "#!/usr/bin/env bash\nexit 1\n")
    clone.add_program("sudo", "#!/usr/bin/env bash\nexit 1\n")
    result = clone.run(PATH=str(clone.programs))
    assert result.returncode == 1
    assert "TeX lacks latexmk pdflatex bibtex kpsewhich" in result.stderr
    assert "sudo apt-get install --no-install-recommends latexmk" in result.stderr and "./run_all.sh --no-pdf" in result.stderr
    assert clone.calls.read_text() == ""
    assert clone.run("--no-pdf", PATH=str(clone.programs)).returncode == 0


def test_every_latex_package_of_the_paper_is_checked_for():
    checked = set(re.search(r"^tex_styles=\((.*?)\)", RUN_ALL.read_text(), re.MULTILINE)[1].split())
    base = {"inputenc", "fontenc", "textcomp", "array", "amssymb", "amsfonts", "graphics", "subcaption", "url"}  # come with those
    for path in [*(REPOSITORY / "paper").rglob("*.tex"), *(REPOSITORY / "paper").rglob("*.sty")]:
        for names in re.findall(r"^\s*\\(?:usepackage|RequirePackage)(?:\[[^\]]*\])?\{([^}]*)\}", path.read_text(), re.MULTILINE):
            used = {name.strip() for name in names.split(",")}
            own = {style.stem for style in (REPOSITORY / "paper").rglob("*.sty")}
            assert used <= checked | base | own, f"{path}: add {sorted(used - checked - base - own)} to tex_styles in run_all.sh"
