"""The arms of the study: one spelling, label, colour and marker each (paper, Table 1).

An arm is a checkpoint lineage, e.g. ``D1`` or ``S1-2of4-wanda``. Names, colours and markers are
decided here and nowhere else, so that an arm looks the same in every figure and table.
"""

import re
from dataclasses import dataclass

from sparsecl.topologies import EXAMPLES, NofM, parse_topology

ALGORITHMS = ("random", "magnitude", "wanda", "wanda++", "sparsegpt", "maskllm", "given")
DENSE_LINEAGES = {
    "D0": "dense base",
    "D1": "dense, same extra tokens",
    "Dnz": "dense, matched non-zeros",
    "Dcut": "dense, cut to matched non-zeros",
    "Df": "dense, matched FLOPs",
}
SPARSE_LINEAGES = {
    "S0": "converted, no recovery",
    "S1": "converted and recovered",
    "Sf": "sparse, matched FLOPs",
    "Dg": "dense weights, masked updates",
}

# Colour-blind safe (Okabe and Ito 2008); dense arms are dark or warm, sparse topologies cool.
_COLOURS = {
    "D0": "#7F7F7F",
    "D1": "#1B1B1B",
    "Dnz": "#D55E00",
    "Dcut": "#B07AA1",
    "Df": "#E69F00",
    "Dg": "#8C564B",
    "of4": "#0072B2",
    "of8": "#56B4E9",
    "block16": "#009E73",
    "block32": "#4DAF7C",
    "block64": "#A6D9B9",
    "unstructured": "#CC79A7",
}
# An arm that names its algorithm is there to be compared with the same topology by another one.
_ALGORITHM_COLOURS = {
    "random": "#BBBBBB",
    "magnitude": "#999933",
    "wanda": "#882255",
    "wanda++": "#CC6677",
    "sparsegpt": "#0072B2",
    "maskllm": "#117733",
    "given": "#332288",
}
_MARKERS = {"D0": "P", "D1": "o", "Dnz": "v", "Dcut": "<", "Df": ">", "S0": "X", "S1": "s", "Sf": "D", "Dg": "^"}


@dataclass(frozen=True)
class Arm:
    """One arm; `topology` and `algorithm` are empty and `density` is 1.0 where the arm is dense."""

    name: str
    lineage: str
    topology: str = ""
    algorithm: str = ""
    density: float = 1.0

    @property
    def is_sparse(self) -> bool:
        return self.lineage in SPARSE_LINEAGES

    @property
    def columns(self) -> dict[str, str | float]:
        """The columns that name an arm in every table."""
        return {"arm": self.name, "topology": self.topology, "algorithm": self.algorithm, "density": self.density}

    @property
    def label(self) -> str:
        """The name as the paper writes it: ``S1 2:4``."""
        lineage, *rest = self.name.split("-")
        if not self.topology:
            return " ".join([lineage, *rest])
        return " ".join([lineage, topology_label(self.topology), *(re.sub(r"^d(?=0\.)", "", suffix) for suffix in rest[1:])])

    @property
    def description(self) -> str:
        return {**DENSE_LINEAGES, **SPARSE_LINEAGES}[self.lineage]

    @property
    def colour(self) -> str:
        if not self.topology or self.lineage == "Dg":
            return _COLOURS[self.lineage]
        named = [suffix for suffix in self.name.split("-") if suffix in _ALGORITHM_COLOURS]
        return _ALGORITHM_COLOURS[named[0]] if named else _COLOURS[parse_topology(self.topology).family]

    @property
    def marker(self) -> str:
        return _MARKERS[self.lineage]


def topology_label(topology: str) -> str:
    """A topology as the paper writes it: ``2:4``, ``block 16``."""
    return re.sub(r"^block", "block ", topology.replace("of", ":"))


def parse_arm(name: str, main_algorithm: str = "sparsegpt") -> Arm:
    """Read an arm name; raise ValueError naming what is allowed when it is not one.

    Without an algorithm or density suffix the arm uses `main_algorithm` at the density of its pattern, or at 50 % zeros
    (``S1-2of4``, ``S1-6of8``, ``S1-block16``); anything else is appended (``S1-2of4-wanda``, ``S1-unstructured-d0.75``).
    """
    lineage, *rest = name.split("-")
    if lineage in DENSE_LINEAGES and len(rest) <= 1:
        if not rest:
            return Arm(name, lineage)
        if lineage in ("Dnz", "Dcut", "Df") and re.fullmatch(r"0\.\d+", rest[0]):
            return Arm(name, lineage, density=float(rest[0]))
    if lineage in SPARSE_LINEAGES and rest:
        return _parse_sparse(name, lineage, rest[0], rest[1:], main_algorithm)
    raise ValueError(
        f"arm {name!r} is unknown; write a dense arm {tuple(DENSE_LINEAGES)} or a sparse one such as "
        f"S1-2of4: {tuple(SPARSE_LINEAGES)} with a topology ({EXAMPLES})"
    )


def _parse_sparse(name: str, lineage: str, topology: str, suffixes: list[str], algorithm: str) -> Arm:
    try:
        structure = parse_topology(topology)
    except ValueError as error:
        raise ValueError(f"arm {name!r}: {error}") from None
    fixed = structure.kept / structure.group if isinstance(structure, NofM) else None
    density = 0.5 if fixed is None else fixed
    for suffix in suffixes:
        if suffix in ALGORITHMS:
            algorithm = suffix
        elif (match := re.fullmatch(r"d(0\.\d+)", suffix)) and fixed is None:
            density = float(match[1])
        elif match:
            raise ValueError(f"arm {name!r}: {topology} itself fixes the density at {fixed:g}; leave {suffix!r} out")
        else:
            raise ValueError(f"arm {name!r}: {suffix!r} is neither an algorithm {ALGORITHMS} nor a density like d0.75")
    return Arm(name, lineage, topology, algorithm, density)
