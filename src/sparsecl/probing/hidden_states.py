"""Hidden states of every decoder layer at the counted tokens of lines of text (paper, section Representation drift).

A hidden state is what a decoder layer hands on, the residual stream after it; layer 0 is the first. The embedding before it
and the final norm behind the last layer are not read: the norm rescales every token by its own length.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsecl.probing.passes import Batch, Side, run_pass


@dataclass(frozen=True)
class HiddenStates:
    """States of the counted tokens of some documents, in float32 on the model's device."""

    states: Float[Tensor, "layers tokens width"]
    documents: Int[Tensor, " tokens"]
    """Of which row of the pass each token is."""

    def of(self, documents: Collection[int]) -> "HiddenStates":
        """The tokens of these documents alone."""
        wanted = torch.tensor(sorted(documents), dtype=self.documents.dtype, device=self.documents.device)
        kept = torch.isin(self.documents, wanted)
        return HiddenStates(self.states[:, kept], self.documents[kept])


def decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The decoder layers, first one first; ValueError where there is no single list of as many layers as the model has."""
    count = model.config.get_text_config().num_hidden_layers
    lists = [
        module
        for name, module in model.named_modules()
        if name.split(".")[-1] == "layers" and isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        raise ValueError(f"{type(model).__name__} has {len(lists)} lists of {count} modules named layers, wanted one; pass a decoder")
    return list(lists[0])


class HiddenStateReader:
    """A reader of `passes.run_pass` that hands on the hidden states of every batch, as one `HiddenStates`.

    It keeps one batch only: `receive_batch` decides whether states are held or summed up at once.
    """

    side: Side = "output"

    def __init__(self, receive_batch: Callable[[HiddenStates], None]) -> None:
        self._receive_batch, self._layers, self._states = receive_batch, 0, []

    def watched(self, model: nn.Module) -> Sequence[nn.Module]:
        layers = decoder_layers(model)
        self._layers = len(layers)
        return layers

    def begin(self, batch: Batch) -> None:
        self._batch, self._states = _CountedTokens(batch), []

    def receive(self, layer: int, states: Tensor | tuple[Tensor, ...]) -> None:
        """Keep the counted tokens of a layer's output; after the last layer, hand the batch on."""
        states = states[0] if isinstance(states, tuple) else states
        rows, positions = (places.to(states.device) for places in self._batch.places)
        self._states.append(states[rows, positions].float().to(self._batch.documents.device))
        if layer == self._layers - 1:
            self._receive_batch(HiddenStates(torch.stack(self._states), self._batch.documents))


@dataclass
class _CountedTokens:
    """Where a batch has counted tokens; found once, because finding them waits for the device."""

    batch: Batch

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        return self.batch.counted.nonzero(as_tuple=True)

    @cached_property
    def documents(self) -> Int[Tensor, " tokens"]:
        return torch.tensor(self.batch.documents, device=self.batch.ids.device)[self.places[0]]


def hidden_states(
    model: nn.Module, rows: Sequence[Sequence[int]], batch_size: int, *, excluded_tokens: Collection[int]
) -> list[HiddenStates]:
    """The states of one pass, held: 4 bytes x layers x tokens x width. Batches, tokens and errors as `passes.run_pass`.

    The same rows and batch size give the same tokens in the same order for every model.
    """
    held: list[HiddenStates] = []
    run_pass(model, rows, batch_size, [HiddenStateReader(held.append)], excluded_tokens=excluded_tokens, description="hidden states")
    return held
