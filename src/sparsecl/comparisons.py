"""Which conversions are compared: topologies, algorithms, densities (paper, section Topologies and algorithms).

The arms of a comparison are read over the replicates that made all of them, and the dense references over the same
ones. Replicates start from different bases, and their spread would otherwise enter the difference of two arms.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from sparsecl.arms import Arm, topology_label
from sparsecl.config import VALIDATION
from sparsecl.topologies import Blocks, NofM, parse_topology

DENSE = ("D0", "D1")
LINEAGES = ("S0", "S1")  # right after the conversion, and after the recovery budget
LOSS, SCORE, KEPT = "nll/general", "score/general", "density/attained"
ERROR, ENERGY, SPREAD = "reconstruction/error", "reconstruction/kept_energy", "reconstruction/input_spread"
HALF = 0.5  # density at which topologies are compared
ONE_TOPOLOGY = "2of4"  # topology at which algorithms are compared
ALGORITHM_LABELS = {
    "random": "random",
    "magnitude": "magnitude",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "wanda++": "Wanda++",
    "maskllm": "MaskLLM",
    "given": "given mask",
}


def result_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows without the replicate on which settings were chosen; that replicate alone keeps its own rows."""
    kept = frame[frame["seed"].astype(str) != VALIDATION]
    return kept if len(kept) else frame


def freedom(topology: str) -> tuple[int, int]:
    """A sorting key: unstructured, N:M of large groups before small ones, then blocks of growing size."""
    match parse_topology(topology):
        case NofM(group=group):
            return 1, -group
        case Blocks(size=size):
            return 2, size
    return 0, 0


def _choice_of_topology(arm: Arm) -> str | None:
    return arm.topology if arm.density == HALF and arm.name == f"{arm.lineage}-{arm.topology}" else None


def _choice_of_algorithm(arm: Arm) -> str | None:
    """Only where nothing but the algorithm differs: an arm of another recovery budget has its own name, and takes no part."""
    names = (f"{arm.lineage}-{ONE_TOPOLOGY}", f"{arm.lineage}-{ONE_TOPOLOGY}-{arm.algorithm}")
    return arm.algorithm if arm.name in names else None


def _choice_of_density(arm: Arm) -> str | None:
    return found[1] if (found := re.fullmatch(r"S[01]-(\w+(?:-d0\.\d+)?)", arm.name)) else None


def _order_of_density(choice: str) -> tuple:
    topology = choice.split("-")[0]
    structure = parse_topology(topology)
    density = structure.kept / structure.group if isinstance(structure, NofM) else float(choice.partition("-d")[2] or HALF)
    return (*freedom(topology), -density)


def _density_label(choice: str) -> str:
    """A pattern that fixes its own density needs no number: ``6:8``, ``unstructured (0.75)``."""
    topology, _, density = choice.partition("-d")
    fixed = isinstance(parse_topology(topology), NofM)
    return topology_label(topology) if fixed else f"{topology_label(topology)} ({density or HALF})"


@dataclass(frozen=True)
class Comparison:
    """What differs between arms that are otherwise alike: `choice` names it, or is None for an arm that is no part of it."""

    name: str
    choice: Callable[[Arm], str | None]
    order: Callable[[str], object]
    label: Callable[[str], str]
    needed: str  # example of two arms that make it


COMPARISONS = {
    comparison.name: comparison
    for comparison in (
        Comparison("topologies", _choice_of_topology, freedom, topology_label, "S0-2of4 and S0-block16"),
        Comparison(
            "algorithms", _choice_of_algorithm, list(ALGORITHM_LABELS).index, ALGORITHM_LABELS.__getitem__, "S0-2of4 and S0-2of4-magnitude"
        ),
        Comparison(
            "densities", _choice_of_density, _order_of_density, _density_label, "S0-unstructured and S0-unstructured-d0.75"
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Compared:
    """One comparison as a table holds it: `rows` of its arms and of the dense references, over `replicates` only."""

    comparison: Comparison
    arms: Mapping[tuple[str, str], Arm]  # by lineage and choice
    rows: pd.DataFrame

    @property
    def choices(self) -> list[str]:
        return sorted({choice for _, choice in self.arms}, key=self.comparison.order)

    @property
    def replicates(self) -> int:
        """How many replicates made all arms."""
        return self.rows["seed"].nunique()

    def label(self, choice: str) -> str:
        return self.comparison.label(choice)

    def values(self, metric: str, lineage: str, choice: str = "") -> pd.Series:
        """A metric of one arm by replicate; of a dense reference where no choice is named; empty where not measured."""
        arm = self.arms.get((lineage, choice)) if choice else None
        name = lineage if not choice else arm.name if arm else None
        rows = self.rows[(self.rows["arm"] == name) & (self.rows["metric"] == metric)]
        return rows.set_index("seed")["value"].dropna().sort_index()

    def measures(self, metric: str) -> bool:
        return bool((self.rows["metric"] == metric).any())

    def without(self, choice: str) -> "Compared":
        return replace(self, arms={key: arm for key, arm in self.arms.items() if key[1] != choice})


def arms_of_rows(conversion: pd.DataFrame) -> list[Arm]:
    """The arms of a table as its own columns describe them: only they know the study's main algorithm."""
    unique = conversion[["arm", "topology", "algorithm", "density"]].drop_duplicates()
    return [Arm(row.arm, row.arm.split("-")[0], row.topology, row.algorithm, row.density) for row in unique.itertuples()]


def compare(conversion: pd.DataFrame, name: str) -> Compared:
    """Read the comparison `name` (a key of COMPARISONS) from the conversion table; it may be empty."""
    comparison, rows = COMPARISONS[name], result_rows(conversion)
    arms = _by_choice(comparison, [arm for arm in arms_of_rows(rows) if arm.lineage in LINEAGES])
    if name == "densities":
        arms = _several_densities(arms)
    names = {arm.name for arm in arms.values()}
    made = rows[rows["arm"].isin(names)].groupby("seed")["arm"].nunique()
    complete = made.index[made == len(names)]
    return Compared(comparison, arms, rows[rows["arm"].isin({*names, *DENSE}) & rows["seed"].isin(complete)])


def _by_choice(comparison: Comparison, arms: list[Arm]) -> dict[tuple[str, str], Arm]:
    """The arms that take part, by lineage and choice; ValueError where two stand for the same one."""
    found: dict[tuple[str, str], Arm] = {}
    for arm in arms:
        key = (arm.lineage, comparison.choice(arm))
        if key[1] is not None and found.setdefault(key, arm) is not arm:
            raise ValueError(f"{comparison.name}: both {found[key].name} and {arm.name} stand for {key[1]}; name one of them apart")
    return found


def replicates_compared(conversion: pd.DataFrame) -> dict[str, int]:
    """How many replicates stand behind each comparison that was made: all its arms have this n."""
    found = {name: compare(conversion, name) for name in COMPARISONS}
    return {name: compared.replicates for name, compared in found.items() if len(compared.choices) > 1}


def family(arm: Arm) -> str:
    """Arms of one family differ in density only."""
    return parse_topology(arm.topology).family


def _several_densities(arms: Mapping[tuple[str, str], Arm]) -> dict[tuple[str, str], Arm]:
    densities = {}
    for arm in arms.values():
        densities.setdefault(family(arm), set()).add(arm.density)
    return {key: arm for key, arm in arms.items() if len(densities[family(arm)]) > 1}
