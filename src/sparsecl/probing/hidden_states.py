"""Hidden states of every decoder layer at the counted tokens of lines of text (paper, section Representation drift).

A hidden state is what a decoder layer hands on, the residual stream after it; layer 0 is the first. The embedding before it
and the final norm behind the last layer are not read: the norm rescales every token by its own length.

What is held is bounded: of a long text, `sampled_positions` are read alone.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsecl.probing.passes import Batch, Side, run_pass

Positions = Sequence[Sequence[int]]  # by document, which of its tokens are read


@dataclass(frozen=True)
class HiddenStates:
    """States of the counted tokens of some documents, or of a sample of them, in float32 on the model's device."""

    states: Float[Tensor, "layers tokens width"]
    documents: Int[Tensor, " tokens"]
    """Of which row of the pass each token is."""

    def of(self, documents: Collection[int]) -> "HiddenStates":
        """The tokens of these documents alone."""
        wanted = torch.tensor(sorted(documents), dtype=self.documents.dtype, device=self.documents.device)
        kept = torch.isin(self.documents, wanted)
        return HiddenStates(self.states[:, kept], self.documents[kept])

    def layer(self, number: int) -> "HiddenStates":
        """One layer alone."""
        return HiddenStates(self.states[number : number + 1], self.documents)


def by_layer(states: Sequence[HiddenStates]) -> Iterator[list[HiddenStates]]:
    """The same batches layer by layer: matrices of width x width are then made for one layer at a time."""
    return ([batch.layer(number) for batch in states] for number in range(states[0].states.shape[0]))


def sampled_positions(
    rows: Sequence[Sequence[int]], tokens: int, excluded_tokens: Collection[int], generator: np.random.Generator
) -> list[list[int]]:
    """At most `tokens` of the counted positions of all rows, by row: every set of them is as likely; all where there are not more."""
    excluded = set(excluded_tokens)
    counted = [(document, place) for document, row in enumerate(rows) for place, token in enumerate(row) if token not in excluded]
    if len(counted) > tokens:
        counted = [counted[index] for index in np.sort(generator.choice(len(counted), tokens, replace=False))]
    positions: list[list[int]] = [[] for _ in rows]
    for document, place in counted:
        positions[document].append(place)
    return positions


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

    It keeps one batch only: `receive_batch` decides whether states are held or summed up at once. Read are the counted tokens, or
    `positions` of each document alone.
    """

    side: Side = "output"

    def __init__(self, receive_batch: Callable[[HiddenStates], None], positions: Positions | None = None) -> None:
        self._receive_batch, self._positions, self._layers, self._states = receive_batch, positions, 0, []

    def watched(self, model: nn.Module) -> Sequence[nn.Module]:
        layers = decoder_layers(model)
        self._layers = len(layers)
        return layers

    def begin(self, batch: Batch) -> None:
        self._batch, self._states = _ReadTokens(batch, self._positions), []

    def receive(self, layer: int, states: Tensor | tuple[Tensor, ...]) -> None:
        """Keep the read tokens of a layer's output; after the last layer, hand the batch on."""
        states = states[0] if isinstance(states, tuple) else states
        rows, positions = (places.to(states.device) for places in self._batch.places)
        self._states.append(states[rows, positions].float().to(self._batch.documents.device))
        if layer == self._layers - 1:
            self._receive_batch(HiddenStates(torch.stack(self._states), self._batch.documents))


@dataclass
class _ReadTokens:
    """Where a batch has tokens that are read; found once, because finding them waits for the device."""

    batch: Batch
    positions: Positions | None

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        if self.positions is None:
            return self.batch.counted.nonzero(as_tuple=True)
        places = [(row, place) for row, document in enumerate(self.batch.documents) for place in self.positions[document]]
        rows, positions = torch.tensor(places, dtype=torch.long, device=self.batch.ids.device).reshape(-1, 2).unbind(1)
        return rows, positions

    @cached_property
    def documents(self) -> Int[Tensor, " tokens"]:
        return torch.tensor(self.batch.documents, device=self.batch.ids.device)[self.places[0]]


def hidden_states(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    *,
    excluded_tokens: Collection[int],
    positions: Positions | None = None,
) -> list[HiddenStates]:
    """The states of one pass, held: 4 bytes x layers x tokens x width. Batches, tokens and errors as `passes.run_pass`.

    The same rows, batch size and `positions` give the same tokens in the same order for every model.
    """
    held: list[HiddenStates] = []
    run_pass(
        model, rows, batch_size, [HiddenStateReader(held.append, positions)], excluded_tokens=excluded_tokens, description="hidden states"
    )
    return held
