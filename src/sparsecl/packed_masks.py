"""Masks at one bit a weight, in memory as on disk (paper, section Conversion).

A boolean tensor takes a byte a weight, a quarter to a half of the weights themselves; of these only the mask that is asked
for exists, and only as long as it is looked at.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

Mask = Bool[Tensor, "*experts outputs inputs"]


class PackedMasks(Mapping[str, Mask]):
    """Parameter name -> mask; every look-up unpacks a new tensor on the CPU, so writing into one changes nothing here."""

    def __init__(self, masks: Iterable[tuple[str, Mask]]) -> None:
        """Pack the masks one by one as they come: a generator never has more than one of them whole."""
        self._bits: dict[str, np.ndarray] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for name, mask in masks:
            self._bits[name] = np.packbits(mask.cpu().numpy())
            self._shapes[name] = tuple(mask.shape)
            del mask  # before the next one is made

    @classmethod
    def of_bits(cls, bits: Mapping[str, np.ndarray], shapes: Mapping[str, Sequence[int]]) -> "PackedMasks":
        """Masks that are packed already, by numpy's `packbits` over the flat weight."""
        packed = cls(())
        packed._bits = {name: bits[name] for name in shapes}
        packed._shapes = {name: tuple(shape) for name, shape in shapes.items()}
        return packed

    def __getitem__(self, name: str) -> Mask:
        shape = self._shapes[name]
        flat = np.unpackbits(self._bits[name], count=math.prod(shape)).view(np.bool_)
        return torch.from_numpy(flat.reshape(shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
