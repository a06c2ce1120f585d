"""Which units each finished stage of a stream selected, and how far a new selection overlaps them (table update_masks.csv)."""

from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from sparsecl.continual_methods.method import StageContext
from sparsecl.continual_methods.stream_state import check_follows, load_tensors, save_tensors
from sparsecl.probing.top_sets import chance_iou, iou


class SelectionHistory:
    """The selected units of every finished domain, first to last, along a stream of `method`."""

    def __init__(self, method: str) -> None:
        self._method = method
        self._selected: dict[str, Tensor] = {}

    def check(self, context: StageContext) -> None:
        """ValueError unless this is the history of the stage's earlier domains."""
        check_follows(self._method, context, tuple(self._selected))

    def add(self, domain: str, selected: Bool[Tensor, "layers units"]) -> None:
        self._selected[domain] = selected.cpu()

    def of(self, domain: str) -> Bool[Tensor, "layers units"]:
        """What a finished domain selected; KeyError where it is not finished."""
        return self._selected[domain]

    def compared(self, selected: Bool[Tensor, "layers units"]) -> list[dict]:
        """Rows of update_masks.csv for a new selection, without the keys of the stream; none where it is the first.

        Per layer and earlier domain `value`, the IoU of the two sets, and `null`, that of two random sets as large; with
        `earlier_domain` empty `collisions`, the share of the new set that any earlier stage selected. Else absent (None).
        """
        if not self._selected:
            return []
        rows = []
        units, taken = selected.shape[1], torch.stack(list(self._selected.values())).any(dim=0)
        for layer, chosen in enumerate(selected.cpu()):
            null = chance_iou(units, int(chosen.sum()))
            for domain, before in self._selected.items():
                rows.append(_row(layer, domain, value=float(iou(chosen, before[layer])), null=null))
            rows.append(_row(layer, "", collisions=float((chosen & taken[layer]).sum() / chosen.sum())))
        return rows

    def save(self, path: Path) -> None:
        """Write the safetensors file `path`; nothing where no stage is finished."""
        if self._selected:
            save_tensors(path, self._selected, tuple(self._selected))

    def load(self, path: Path) -> None:
        """Take up a saved history; BrokenFile where `path` is missing or not whole."""
        tensors, domains = load_tensors(path, self._method)
        self._selected = {domain: tensors[domain] for domain in domains}


def _row(layer: int, earlier_domain: str, value: float | None = None, null: float | None = None, collisions: float | None = None) -> dict:
    return {"layer": layer, "earlier_domain": earlier_domain, "value": value, "null": null, "collisions": collisions}
