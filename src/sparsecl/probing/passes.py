"""One pass of a model over lines of text, for any number of readers at once (notebook 04; paper, section Probes).

A reader names the modules it watches and receives their input or output in every batch, next to which positions
count. Activations, hidden states and routing are all read this way, so one forward pass can serve all of them.

    run_pass(model, rows, 16, [first_reader, second_reader], excluded_tokens=tokenizer.all_special_ids)
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

Side = Literal["input", "output"]


@dataclass(frozen=True)
class Batch:
    """Some documents of a pass, right-padded; everything lies on the device of the model's first parameter."""

    documents: list[int]
    """Index of each batch row in the rows of the pass."""
    ids: Int[Tensor, "batch positions"]
    attended: Bool[Tensor, "batch positions"]
    """Real tokens; the rest is padding."""
    counted: Bool[Tensor, "batch positions"]
    """Real tokens that enter statistics: no padding, no excluded token."""


@runtime_checkable
class Reader(Protocol):
    """What `run_pass` asks of a probe: it watches modules and keeps statistics of what they read or write."""

    side: Side
    """Whether `receive` gets the first positional input of a watched module, or its output as the module returns it."""

    def watched(self, model: nn.Module) -> Sequence[nn.Module]:
        """The modules to watch, first layer first."""

    def begin(self, batch: Batch) -> None:
        """Called before each forward pass."""

    def receive(self, layer: int, states: Any) -> None:
        """Called in the forward pass of the batch last begun, for the watched module number `layer`."""


def run_pass(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    readers: Sequence[Reader],
    *,
    excluded_tokens: Collection[int],
    description: str = "probe",
) -> None:
    """Run `model` over `rows` (token ids, one document each) without gradients or dropout; `readers` receive what they watch.

    `batch_size` rows of like length run at once, the shortest first. Positions that hold one of `excluded_tokens` (BOS,
    template tokens) are seen by the model but not counted: they stand in every domain, and their activations are often huge.
    Output logits are not formed beyond the last position. Afterwards, also after an error, hooks are gone and
    every module is in the mode it was in. Raises ValueError for a document without a counted token.
    """
    batches = batches_of(rows, batch_size, next(model.parameters()).device, excluded_tokens)
    with evaluation_mode(model), ExitStack() as hooks:
        for reader in readers:
            hooks.enter_context(watching(reader.watched(model), reader.side, reader.receive))
        for batch in tqdm(batches, total=-(-len(rows) // batch_size), desc=description, delay=3, leave=False):
            for reader in readers:
                reader.begin(batch)
            model(input_ids=batch.ids, attention_mask=batch.attended.long(), use_cache=False, logits_to_keep=1)


def batches_of(rows: Sequence[Sequence[int]], batch_size: int, device: torch.device, excluded_tokens: Collection[int]) -> Iterator[Batch]:
    """The batches of a pass, one at a time; rows of like length share one, so that there is little padding. Raises as `check_rows`."""
    check_rows(rows, batch_size, excluded_tokens)
    excluded = torch.tensor(sorted(excluded_tokens), dtype=torch.long, device=device)
    order = sorted(range(len(rows)), key=lambda document: len(rows[document]))

    def made(documents: list[int]) -> Batch:
        ids, attended = padded([rows[document] for document in documents], device)
        return Batch(documents, ids, attended, attended & ~torch.isin(ids, excluded))

    return (made(order[start : start + batch_size]) for start in range(0, len(order), batch_size))


def check_rows(rows: Sequence[Sequence[int]], batch_size: int, excluded_tokens: Collection[int]) -> None:
    """Raise ValueError where there is nothing to read, or a row without a counted token."""
    if not rows or batch_size < 1:
        raise ValueError(f"{len(rows)} rows in batches of {batch_size}; give at least one row and a batch of at least 1")
    excluded = set(excluded_tokens)
    for document, row in enumerate(rows):
        if excluded.issuperset(row):
            raise ValueError(f"row {document} has {len(row)} tokens and none that counts beside {sorted(excluded)}; leave the row out")


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "batch positions"], Bool[Tensor, "batch positions"]]:
    """Right-padded ids, and which positions are real; a causal model never looks at what stands to the right."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


@contextmanager
def watching(modules: Sequence[nn.Module], side: Side, receive: Callable[[int, Any], None]) -> Iterator[None]:
    """Inside, every forward pass calls `receive(layer, states)` for each of `modules`; the hooks are gone afterwards.

    `states` is the module's first positional input or its whole output; `receive` must not change it in place.
    """
    handles = []
    try:
        for layer, module in enumerate(modules):

            def before(_module: nn.Module, inputs: tuple, layer: int = layer) -> None:
                receive(layer, inputs[0])  # a hook that returned something would replace the input

            def after(_module: nn.Module, _inputs: tuple, output: Any, layer: int = layer) -> None:
                receive(layer, output)

            handles.append(module.register_forward_pre_hook(before) if side == "input" else module.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Inside, no dropout and no gradients; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
