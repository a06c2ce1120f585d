"""Topologies: names, sizes and densities of the sparse structures (paper, section Topologies).

``N:M`` (written `2of4`) means N non-zeros among M consecutive inputs of one output row; blocks are square, the same
number of them kept in every block row; unstructured masks compare the inputs of one output row. What a topology
means for the weights of a layer is in `sparsecl.mask_selection`. Nothing here imports torch: settings read it.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

BLOCK_SIZES = (16, 32, 64)
MASKLLM_TOPOLOGIES = ("1of4", "2of4", "3of4")  # at most 6 candidate masks a group, as in MaskLLM's paper; 4:8 would have 70
EXAMPLES = "NofM such as 2of4 or 6of8, block16, block32, block64, or unstructured"


class TopologyMisfit(ValueError):
    """A layer's size does not divide into the topology's groups."""


@dataclass(frozen=True)
class NofM:
    """`kept` non-zeros among `group` consecutive inputs."""

    kept: int
    group: int

    @property
    def name(self) -> str:
        return f"{self.kept}of{self.group}"

    @property
    def family(self) -> str:
        """Topologies that differ in their density only belong together in figures."""
        return f"of{self.group}"

    @property
    def tile(self) -> tuple[int, int]:
        """Output rows and inputs of the smallest piece that is judged together."""
        return 1, self.group

    def kept_of(self, inputs: int, density: float) -> int:
        """Kept weights among `inputs` inputs of a row; the pattern decides, whatever `density` asks for."""
        return inputs * self.kept // self.group


@dataclass(frozen=True)
class Blocks:
    """Square blocks of `size` x `size`."""

    size: int

    @property
    def name(self) -> str:
        return f"block{self.size}"

    @property
    def family(self) -> str:
        return self.name

    @property
    def tile(self) -> tuple[int, int]:
        return self.size, self.size

    def blocks_kept(self, inputs: int, density: float) -> int:
        """Kept blocks of a block row: the number nearest to `density`, at least one."""
        return max(round(density * (inputs // self.size)), 1)

    def kept_of(self, inputs: int, density: float) -> int:
        return self.blocks_kept(inputs, density) * self.size


@dataclass(frozen=True)
class Unstructured:
    """Any weights."""

    name = family = "unstructured"

    @property
    def tile(self) -> tuple[int, int]:
        return 1, 1

    def kept_of(self, inputs: int, density: float) -> int:
        return inputs - int(inputs * zero_share(density))  # zeros are rounded down, as Wanda's code does


Topology = NofM | Blocks | Unstructured


@lru_cache
def parse_topology(name: str) -> Topology:
    """Read a topology's name; ValueError says what is known."""
    if name == "unstructured":
        return Unstructured()
    if (match := re.fullmatch(r"block(\d+)", name)) and int(match[1]) in BLOCK_SIZES:
        return Blocks(int(match[1]))
    if (match := re.fullmatch(r"(\d+)of(\d+)", name)) and 0 < int(match[1]) < int(match[2]):
        return NofM(int(match[1]), int(match[2]))
    raise ValueError(f"topology {name!r} is unknown; write {EXAMPLES} (N non-zeros of M, fewer than M)")


def check_size(topology: Topology, layer: str, rows: int, inputs: int) -> None:
    """Raise TopologyMisfit naming the layer and the size that does not divide."""
    for axis, size, tile in zip(("output rows", "inputs"), (rows, inputs), topology.tile, strict=True):
        if size % tile:
            raise TopologyMisfit(
                f"{topology.name} needs {axis} divisible by {tile}, but {layer} has {size}; choose another topology or model size"
            )


def zero_share(density: float) -> float:
    """The zeros a density leaves; rounded, because 1 - 0.9 is 0.09999999999999998 in floats and would lose a zero of a row."""
    return round(1 - density, 9)


def attained_density(topology: Topology, inputs: int, density: float) -> float:
    """The kept share of a row of `inputs` weights that comes nearest to `density`."""
    return topology.kept_of(inputs, density) / inputs
