"""Say whether the running Python satisfies the lock file: the gate in front of everything `run_all.sh` does.

    python -I src/sparsecl/environment.py requirements.lock

Exit status 0 if it does; 1 if not, with the first differences on standard output. Standard library only, and no
package is imported: it must answer at once, and in a Python that has nothing installed. `-I`, because a script's
folder comes first on the path and modules here, `statistics` for one, bear names of the standard library.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

PYTHON = (3, 11)
SHOWN = 5

PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?==(?P<version>[^\s;#]+)\s*(#.*)?$")


def canonical_name(name: str) -> str:
    """Spell a distribution name as PEP 503 does: lower case, one hyphen for any run of `-`, `_` and `.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned_versions(lock: Path) -> dict[str, str]:
    """Read the pins of a lock file, canonical name -> version; raise ValueError on a line that is not `name==version`."""
    pins = {}
    for number, line in enumerate(lock.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pin = PIN.match(line)
        if pin is None:
            raise ValueError(f"{lock}, line {number}: found {line!r}, wanted `name==version`; pin one exact version")
        pins[canonical_name(pin["name"])] = pin["version"]
    return pins


def installed_versions() -> dict[str, str]:
    """List the distributions this interpreter finds, canonical name -> version; the first on the path counts, as in an import."""
    versions = {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name is not None:
            versions.setdefault(canonical_name(name), distribution.version)
    return versions


def satisfies(found: str, wanted: str) -> bool:
    """A build suffix is not another version (PEP 440): `2.13.0+cpu` satisfies `2.13.0`, not the reverse."""
    return found == wanted or ("+" not in wanted and found.split("+")[0] == wanted)


def differences(lock: Path) -> list[str]:
    """Say in one line each what keeps the running interpreter from satisfying `lock`; an empty list means that it does."""
    pins = pinned_versions(lock)
    if sys.version_info[:2] != PYTHON:
        return [f"python: found {sys.version_info[0]}.{sys.version_info[1]}, wanted {PYTHON[0]}.{PYTHON[1]}"]
    installed = installed_versions()
    return [
        f"{name}: found {installed.get(name, 'nothing')}, wanted {wanted}"
        for name, wanted in pins.items()
        if name not in installed or not satisfies(installed[name], wanted)
    ]


def main(arguments: list[str]) -> int:
    """Check the running interpreter against the lock file named on the command line."""
    if len(arguments) != 1:
        print("usage: python -I src/sparsecl/environment.py requirements.lock", file=sys.stderr)
        return 2
    lock = Path(arguments[0])
    found = differences(lock)
    if not found:
        print(f"{sys.prefix} satisfies {lock.name}")
        return 0
    print(f"{sys.prefix} does not satisfy {lock.name}:")
    for line in found[:SHOWN]:
        print(f"  {line}")
    if len(found) > SHOWN:
        print(f"  and {len(found) - SHOWN} more")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
