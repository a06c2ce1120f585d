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
    "Dw": "dense base of another width",
    "Dnz": "dense, matched non-zeros",
    "Dcut": "dense, cut to matched non-zeros",
    "Df": "dense, matched FLOPs",
}
MATCHED = ("Dnz", "Dcut", "Df")  # matched to sparse arms of a density, which their name ends in
RUNG = "Dw"  # a rung of the ladder of widths, which its name ends in
SPARSE_LINEAGES = {
    "S0": "converted, no recovery",
    "S1": "converted and recovered",
    "Sf": "sparse, as many FLOPs as D1",
}
MASKED_UPDATES = {"Dg": "dense weights, masked updates"}  # named after the arm whose masks confine its updates

# Colour-blind safe (Okabe and Ito 2008); dense arms are dark or warm, sparse topologies cool.
_COLOURS = {
    "D0": "#7F7F7F",
    "D1": "#1B1B1B",
    "Dw": "#7F7F7F",
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
_MARKERS = {"D0": "P", "D1": "o", "Dw": "p", "Dnz": "v", "Dcut": "<", "Df": ">", "S0": "X", "S1": "s", "Sf": "D", "Dg": "^"}


BUDGET = r"b(\d+(?:\.\d+)?)"  # a suffix: the recovery in units of the study's


@dataclass(frozen=True)
class Arm:
    """One arm; `topology` and `algorithm` are empty where the arm is dense, and `density` is 1.0 unless it is matched.

    `Dg` names a topology and is dense. `budget` is the recovery in units of the study's.
    """

    name: str
    lineage: str
    topology: str = ""
    algorithm: str = ""
    density: float = 1.0
    budget: float = 1.0

    @property
    def is_sparse(self) -> bool:
        return self.lineage in SPARSE_LINEAGES

    @property
    def masks_updates(self) -> bool:
        return self.lineage in MASKED_UPDATES

    @property
    def conversion(self) -> str:
        """What a sparse arm was converted to, the name of its masks: ``2of4-wanda`` of ``S1-2of4-wanda-b2``."""
        return "-".join(part for part in self.name.split("-")[1:] if not re.fullmatch(BUDGET, part))

    @property
    def columns(self) -> dict[str, str | float]:
        """The columns that name an arm in every table: topology and algorithm are those of its weights, empty where they are dense."""
        topology, algorithm = (self.topology, self.algorithm) if self.is_sparse else ("", "")
        return {"arm": self.name, "topology": topology, "algorithm": algorithm, "density": 1.0 if self.masks_updates else self.density}

    @property
    def label(self) -> str:
        """The name as the paper writes it: ``S1 2:4``; of another recovery budget B ``S1 2:4 2B``."""
        lineage, *rest = self.name.split("-")
        rest = [topology_label(rest[0]), *rest[1:]] if self.topology else rest
        return " ".join([lineage, *(re.sub(rf"^{BUDGET}$", r"\1B", re.sub(r"^d(?=0\.)", "", part)) for part in rest)])

    @property
    def description(self) -> str:
        return {**DENSE_LINEAGES, **SPARSE_LINEAGES, **MASKED_UPDATES}[self.lineage]

    @property
    def colour(self) -> str:
        if not self.is_sparse:
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
    (``S1-2of4``, ``S1-6of8``, ``S1-block16``); anything else is appended (``S1-2of4-wanda``, ``S1-unstructured-d0.75``,
    ``S1-2of4-b2`` with twice the recovery).
    """
    lineage, *rest = name.split("-")
    budgets = [float(found[1]) for part in rest if (found := re.fullmatch(BUDGET, part))]
    rest = [part for part in rest if not re.fullmatch(BUDGET, part)]
    if budgets and (len(budgets) > 1 or budgets[0] in (0, 1) or lineage not in ("D1", "S1")):
        raise ValueError(f"arm {name!r}: a recovery budget such as b0.5 or b2 stands once, after D1 or S1, and is neither 0 (D0, S0) nor 1")
    budget = budgets[0] if budgets else 1.0
    if lineage in DENSE_LINEAGES and not rest and lineage not in (*MATCHED, RUNG):
        return Arm(name, lineage, budget=budget)
    if lineage in MATCHED and len(rest) == 1 and re.fullmatch(r"0\.\d+", rest[0]):
        return Arm(name, lineage, density=float(rest[0]))
    if lineage == RUNG and len(rest) == 1 and re.fullmatch(r"[1-9]\d*", rest[0]):
        return Arm(name, lineage)
    if lineage in (*SPARSE_LINEAGES, *MASKED_UPDATES) and rest:
        return _parse_sparse(name, lineage, rest[0], rest[1:], main_algorithm, budget)
    raise ValueError(
        f"arm {name!r} is unknown; write a dense arm {tuple(DENSE_LINEAGES)} (the density of the sparse arms after {MATCHED}: Dnz-0.5; "
        f"a width after {RUNG}: Dw-64), "
        f"or one such as S1-2of4: {(*SPARSE_LINEAGES, *MASKED_UPDATES)} with a topology ({EXAMPLES})"
    )


def _parse_sparse(name: str, lineage: str, topology: str, suffixes: list[str], algorithm: str, budget: float) -> Arm:
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
    return Arm(name, lineage, topology, algorithm, density, budget)
