"""Gradients of the answer loss, batch by batch, for each layer and kind of weights (notebook 04; paper, section Gradient overlap).

A gradient is as large as the model, so of each batch and group of weights two small things are kept:

- a sketch: a random linear map of the group's gradient to `dimension` numbers which preserves inner products. All that follows
  from inner products is read off it: cosines of any grouping of the batches, effective dimension, subspaces. A group of no more
  weights than that is kept whole, and its inner products are exact.
- the entries at `coordinates` places, the same in every batch: a random sample of the group's weights, from which the Top-K
  support of any mean of batches is estimated.

Both live on the device of the weights; memory is groups x batches x (dimension + coordinates) numbers, whatever the number of
tokens. In a masked arm the gradient of a masked weight does not count.

The sketch is a count sketch (Charikar et al. 2002) by segments. A gradient is cut into segments x_t of `dimension` numbers;
each is multiplied by a fixed sign pattern and by a sign of its own, moved cyclically by a random shift of its own, and added up.
Inner products are kept without bias. With n = dimension the variance of one is at most 4 |x|^2 |y|^2 / n, because two
segments meet at each relative shift with chance 1 / n: the error of a cosine is at most 2 / sqrt(n), and about 1 / sqrt(n)
(0.4 % at the default) where no segment of one gradient resembles another segment of the other.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm import tqdm

from sparsecl.masks import Masks, prunable_weights
from sparsecl.tokenizer import Row
from sparsecl.training import pad_rows, token_weights, weighted_loss

DIMENSION = 2**16  # numbers a sketch keeps of each batch and group: 256 KiB
COORDINATES = 2**12
MODULES = ("attention", "ffn")

Batches = Sequence[Sequence[Row]]
Group = tuple[int, str]  # layer, one of MODULES

_IN_A_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(\w+)\.")
_MODULE_OF = {"self_attn": "attention", "linear_attn": "attention", "mlp": "ffn"}


@dataclass(frozen=True)
class GroupGradients:
    """What is kept of the gradients of one group of weights, batch by batch."""

    layer: int
    module: str
    parameters: int
    """Weights of the group that may be non-zero."""
    sketches: Float[Tensor, "batches dimension"]
    """Inner products of rows are those of the gradients: exact where dimension is the group's size, else within the sketch's error."""
    coordinates: Float[Tensor, "batches coordinates"]
    """The gradients' entries at a random sample of the kept weights."""
    sketched: bool = False
    """Whether `sketches` are shorter than the gradients."""


@dataclass(frozen=True)
class GradientStatistics:
    """The gradients of a model over batches of several domains."""

    domains: tuple[str, ...]
    """The domain of each batch."""
    groups: tuple[GroupGradients, ...]


def weight_groups(model: nn.Module) -> dict[Group, dict[str, nn.Parameter]]:
    """The prunable weights of each decoder layer's attention and feed-forward block, by name; experts belong to the latter.

    What lies outside the decoder layers is left out. ValueError for a block of unknown name, or where there is no layer.
    """
    groups: dict[Group, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, weight in prunable_weights(model).items():
        if found := _IN_A_LAYER.search(name):
            if found[2] not in _MODULE_OF:
                raise ValueError(
                    f"{name} lies in a block named {found[2]}, known are {tuple(_MODULE_OF)}; say in gradients.py which kind it is"
                )
            groups[int(found[1]), _MODULE_OF[found[2]]][name] = weight
    if not groups:
        raise ValueError(f"{type(model).__name__} has no linear weights in modules named layers.<number>; give a decoder of transformers")
    return dict(sorted(groups.items()))


def gradient_statistics(
    model: nn.Module,
    batches: Mapping[str, Batches],
    generator: np.random.Generator,
    *,
    masks: Masks | None = None,
    dimension: int = DIMENSION,
    coordinates: int = COORDINATES,
) -> GradientStatistics:
    """Gradients of the mean answer loss (nats a token, no loss on prompts) of each domain's batches, without dropout.

    `batches` holds lists of rows by domain; `generator` draws sketches and coordinates alone. Afterwards, also after an error,
    weights, modes and flags of `model` are as before and its gradients are None. ValueError where there is nothing to read,
    FloatingPointError for a loss that is not finite.
    """
    chosen = [(domain, rows) for domain, listed in batches.items() for rows in listed]
    if not chosen or dimension < 1 or coordinates < 1:
        raise ValueError(f"{len(chosen)} batches, dimension {dimension}, coordinates {coordinates}; all must be at least 1")
    kept = {} if masks is None else masks.weights
    recorders = [
        _Recorder(key, weights, kept, len(chosen), dimension, coordinates, generator) for key, weights in weight_groups(model).items()
    ]
    receivers = {name: recorder.receive for recorder in recorders for name in recorder.names}
    with _gradients_handed_over(model, receivers):
        for index, (domain, rows) in enumerate(tqdm(chosen, desc="gradients", delay=3, leave=False)):
            _answer_loss(model, rows, domain).backward()
            for recorder in recorders:
                recorder.finish_batch(index)
    return GradientStatistics(tuple(domain for domain, _ in chosen), tuple(recorder.result() for recorder in recorders))


def _answer_loss(model: nn.Module, rows: Sequence[Row], domain: str) -> Float[Tensor, ""]:
    device = next(model.parameters()).device
    ids, lengths, starts = pad_rows(rows)
    loss = weighted_loss(model, ids.to(device), token_weights(lengths, starts, ids.shape[1], 0.0).to(device))
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"loss is {loss.item()} on a batch of {len(rows)} rows of {domain}, wanted a finite one; "
            "check the model for diverged weights and the rows for answers"
        )
    return loss


@contextmanager
def _gradients_handed_over(model: nn.Module, receivers: Mapping[str, Callable[[str, Tensor], None]]) -> Iterator[None]:
    """Inside, a backward pass hands each named weight's gradient to its receiver and drops it: one is held at a time."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    handles = []

    def handed(name: str) -> Callable[[nn.Parameter], None]:
        def hand_over(parameter: nn.Parameter) -> None:
            receivers[name](name, parameter.grad)
            parameter.grad = None

        return hand_over

    try:
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.grad = None  # an old one would be added to
            parameter.requires_grad_(name in receivers)
            if name in receivers:
                handles.append(parameter.register_post_accumulate_grad_hook(handed(name)))
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, flag in flags:
            parameter.requires_grad_(flag).grad = None
        for module, training in modes:
            module.training = training


class _Recorder:
    """Keeps sketch and sampled entries of one group's gradients, batch after batch."""

    def __init__(
        self,
        key: Group,
        weights: Mapping[str, nn.Parameter],
        masks: Mapping[str, Tensor],
        batches: int,
        dimension: int,
        coordinates: int,
        generator: np.random.Generator,
    ) -> None:
        device = next(iter(weights.values())).device
        sizes = {name: weight.numel() for name, weight in weights.items()}
        self.names = tuple(weights)
        self._key = key
        self._removed = {name: ~masks[name].to(device).flatten() for name in weights if name in masks}
        self._parameters = sum(sizes.values()) - sum(int(removed.sum()) for removed in self._removed.values())
        self._sketch = Sketch(sizes, dimension, generator, device)
        self._sketches = torch.zeros(batches, self._sketch.dimension, device=device)
        self._places = _sampled_places(sizes, self._removed, coordinates, generator, device)
        self._sampled = {name: torch.zeros(batches, len(places), device=device) for name, places in self._places.items()}
        self._batch = 0

    def receive(self, name: str, gradient: Tensor) -> None:
        """Take up one weight's gradient, which may be changed; a weight without one (an unused expert) counts as zero."""
        flat = gradient.flatten().float()
        if name in self._removed:
            flat.masked_fill_(self._removed[name], 0)
        self._sketch.add(name, flat)
        self._sampled[name][self._batch] = flat[self._places[name]]

    def finish_batch(self, index: int) -> None:
        self._sketches[index] = self._sketch.take()
        self._batch = index + 1

    def result(self) -> GroupGradients:
        sketched = self._sketch.size > self._sketch.dimension
        return GroupGradients(*self._key, self._parameters, self._sketches, torch.cat(list(self._sampled.values()), dim=1), sketched)


class Sketch:
    """The linear map of the module's docstring, of one group's gradient; weights are added one by one, in any order."""

    def __init__(
        self, sizes: Mapping[str, int], dimension: int, generator: np.random.Generator, device: torch.device | str = "cpu"
    ) -> None:
        """`sizes` are the numbers of the group's weights by name, `dimension` the most numbers to keep."""
        self.size = sum(sizes.values())
        self.dimension = min(dimension, self.size)
        segments = {name: -(-size // self.dimension) for name, size in sizes.items()}
        if self.size <= dimension:  # each weight in a place of its own, unchanged
            starts = np.cumsum([0, *sizes.values()])
            self._moves = {name: [(int(start), 1.0)] for name, start in zip(sizes, starts, strict=False)}
            self._pattern = torch.ones(self.dimension, device=device)
        else:
            self._moves = {name: _random_moves(count, self.dimension, generator) for name, count in segments.items()}
            self._pattern = torch.tensor(_signs(self.dimension, generator), dtype=torch.float32, device=device)
        self._sum = torch.zeros(2 * self.dimension, device=device)  # a moved segment stands in one piece; its end belongs to the front

    def add(self, name: str, flat: Float[Tensor, " numbers"]) -> None:
        for segment, (shift, sign) in zip(flat.split(self.dimension), self._moves[name], strict=True):
            self._sum[shift : shift + len(segment)].addcmul_(segment, self._pattern[: len(segment)], value=sign)

    def take(self) -> Float[Tensor, " dimension"]:
        """The sketch of what was added since the last call."""
        front, end = self._sum.split(self.dimension)
        taken = front + end
        self._sum.zero_()
        return taken


def _signs(count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 2, count) * 2.0 - 1.0


def _random_moves(segments: int, dimension: int, generator: np.random.Generator) -> list[tuple[int, float]]:
    """Shift and sign of each segment."""
    return list(zip(generator.integers(0, dimension, segments).tolist(), _signs(segments, generator).tolist(), strict=True))


def _sampled_places(
    sizes: Mapping[str, int], removed: Mapping[str, Tensor], count: int, generator: np.random.Generator, device: torch.device
) -> dict[str, Int[Tensor, " places"]]:
    """Random kept places of a group's weights, `count` in all or every one, as positions in each flattened weight."""
    kept = {name: size - int(removed[name].sum()) if name in removed else size for name, size in sizes.items()}
    total = sum(kept.values())
    chosen = np.sort(generator.choice(total, min(count, total), replace=False, shuffle=False))
    places = {}
    for (name, amount), start in zip(kept.items(), np.cumsum([0, *kept.values()]), strict=False):
        within = torch.from_numpy(chosen[(chosen >= start) & (chosen < start + amount)] - start).to(device)
        places[name] = (~removed[name]).nonzero().flatten()[within] if name in removed else within
    return places
