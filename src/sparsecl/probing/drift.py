"""How far fine-tuning moves the hidden states of general text (notebook 04; paper, section Representation drift).

h_0 and h_t are the hidden states of one layer at the same tokens of general text, before a stream and after its stage t.

- `displacement`: ||P (h_t - h_0)||_F / ||P h_0||_F over all tokens, P the projector on the layer's key subspace: the fewest
  principal directions of the *base's* hidden states that hold a given share of their variance (`key_subspaces`).
- `cka_distance`: 1 - linear CKA (Kornblith et al. 2019, eq. 5) with the unbiased HSIC_1 of Song et al. 2012 (eq. 5; in CKA:
  Nguyen et al. 2021, eq. 3), because tokens are not many times more than directions. Blind to rotations and to scale.
- `cka_distance_without_top`: the same after each side's own top principal component is taken out: CKA follows few
  directions of large variance (Davari et al. 2022).
- `largest_angle`, radians, and `grassmann`, ||theta||_2 of all principal angles, between the principal subspaces of h_0 and
  of h_t, both of as many dimensions as the key subspace.

Principal subspaces are those of the *centred* states: the mean is common to all tokens, says nothing of the text, and would
fill the share of energy alone. The displacement itself is not centred, as the proposal writes it: moving the mean counts.

All follow from sums over tokens (`hidden_moments`), layer by layer.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from sparsecl.probing.hidden_moments import AFTER, BEFORE, HiddenMoments, Layers, Scatter, States, TokenLengths, unbiased_hsic
from sparsecl.probing.hidden_states import HiddenStates, by_layer
from sparsecl.probing.subspaces import energy_rank, grassmann_distance, principal_angles, principal_subspace

MEASURES = ("displacement", "cka_distance", "cka_distance_without_top", "largest_angle", "grassmann")
FEWEST_DOCUMENTS = 4  # of the floor: two in each half

Bases = Sequence[Float[Tensor, "width rank"]]  # one subspace a layer; ranks differ
Pairs = Iterable[tuple[States, States]]  # batches of the same tokens, before and after


def cka_distance(moments: HiddenMoments) -> Layers:
    """1 - debiased linear CKA of the two sides, per layer; 0 where one is the other rotated and scaled, about 1 where unrelated.

    An unbiased estimate may lie a little below 0 or above 1. NaN where a side's own HSIC is not positive: too few tokens.
    """
    return _cka_distance(moments.second, moments.lengths)


def cka_distance_without_top(moments: HiddenMoments, pairs: Pairs) -> Layers:
    """`cka_distance` after each side's own top principal component is taken out; `pairs` are the tokens of `moments` once more.

    The second moments follow from the ones at hand. Only the tokens' lengths need the tokens, and cost little: they grow
    with the width, not with its square.
    """
    top = [_top_directions(moments.scatter(side)) for side in (BEFORE, AFTER)]
    lengths = TokenLengths(*top[0].shape, top[0].device)
    for before, after in pairs:
        lengths.update(without(before, top[0]), without(after, top[1]))
    one = torch.eye(top[0].shape[1], dtype=torch.float64, device=top[0].device)
    kept = [one - direction[:, :, None] * direction[:, None, :] for direction in top]
    return _cka_distance(lambda i, j: kept[i] @ moments.second(i, j) @ kept[j], lengths)


def _cka_distance(second: Callable[[int, int], Scatter], lengths: TokenLengths) -> Layers:
    before, after, across = (unbiased_hsic(second(i, j), lengths, i, j) for i, j in ((BEFORE, BEFORE), (AFTER, AFTER), (BEFORE, AFTER)))
    return 1 - across / torch.where((before > 0) & (after > 0), before * after, torch.nan).sqrt()


def _top_directions(scatter: Scatter) -> Float64[Tensor, "layers width"]:
    """The first principal direction of every layer."""
    return torch.stack([principal_subspace(layer, 1)[:, 0] for layer in scatter])


def without(states: States, directions: Float[Tensor, "layers width"]) -> Float64[Tensor, "layers tokens width"]:
    """The states without their component along one unit direction per layer."""
    states, directions = states.to(directions.device, torch.float64), directions.double()
    return states - (states @ directions[:, :, None]) * directions[:, None, :]


def key_subspaces(scatter: Scatter, energy: float) -> list[Float64[Tensor, "width rank"]]:
    """Per layer the fewest principal directions of the base's centred states that hold the share `energy` of their variance."""
    return [principal_subspace(layer, energy_rank(layer, energy)) for layer in scatter]


def energy_inside(second: Scatter, key: Bases) -> Layers:
    """||P h||_F^2 per layer from sum h h^T, P the projector on the key subspace."""
    found = torch.stack([(basis * (moment @ basis)).sum() for moment, basis in zip(second, _on(second, key), strict=True)])
    return found.clamp(min=0)  # where nothing lies inside, rounding may leave less than nothing


def displacement(moments: HiddenMoments, key: Bases, reference: Layers | None = None) -> Layers:
    """||P (h_t - h_0)||_F / ||P h_0||_F per layer; `reference` is another ||P h||_F^2 to divide by. Blind to what is outside P."""
    reference = energy_inside(moments.second(BEFORE, BEFORE), key) if reference is None else reference
    return (energy_inside(moments.change, key) / reference).sqrt()


def subspace_distances(a: Scatter, b: Scatter, key: Bases) -> dict[str, Layers]:
    """`largest_angle` and `grassmann` per layer, between principal subspaces of as many dimensions as the key subspace has."""
    angles = [
        principal_angles(principal_subspace(first, basis.shape[1]), principal_subspace(second, basis.shape[1]))
        for first, second, basis in zip(a, b.to(a.device), key, strict=True)
    ]
    found = {"largest_angle": [float(layer[-1]) for layer in angles], "grassmann": [grassmann_distance(layer) for layer in angles]}
    return {measure: torch.tensor(values, dtype=torch.float64) for measure, values in found.items()}


def drift_between(
    before: Sequence[HiddenStates], after: Sequence[HiddenStates], key: Bases, reference: Layers | None = None
) -> dict[str, Layers]:
    """All MEASURES per layer between two models' states at the same tokens.

    `reference` as of `displacement`. Raises ValueError where the two do not hold the same tokens.
    """
    _check_same_tokens(before, after)
    references = [None] * len(key) if reference is None else reference.split(1)
    layers = zip(by_layer(before), by_layer(after), key, references, strict=True)
    found = [_drift_of_layer(first, second, [basis], size) for first, second, basis, size in layers]
    return {measure: torch.cat([layer[measure] for layer in found]).cpu() for measure in MEASURES}


def _drift_of_layer(
    before: Sequence[HiddenStates], after: Sequence[HiddenStates], key: Bases, reference: Layers | None
) -> dict[str, Layers]:
    """All measures of states that hold one layer."""
    moments = HiddenMoments(1, before[0].states.shape[2], before[0].states.device)
    for first, second in _pairs(before, after):
        moments.update(first, second)
    return {
        "displacement": displacement(moments, key, reference),
        "cka_distance": cka_distance(moments),
        "cka_distance_without_top": cka_distance_without_top(moments, _pairs(before, after)),
        **subspace_distances(moments.scatter(BEFORE), moments.scatter(AFTER), key),
    }


def subspace_floor(states: Sequence[HiddenStates], key: Bases, generator: np.random.Generator, splits: int = 5) -> dict[str, Layers]:
    """`largest_angle` and `grassmann` without any drift: between random halves of the documents, mean over `splits` splits.

    A half has half the tokens, and halves share none where before and after share all: drift above this floor is more than
    sampling makes of it, drift below may still be real. The other measures compare each token with itself, so that without
    drift they are 0 by construction and have no floor.
    """
    documents = np.unique(np.concatenate([batch.documents.cpu().numpy() for batch in states]))
    if len(documents) < FEWEST_DOCUMENTS:
        raise ValueError(f"{len(documents)} documents give no halves; read at least {FEWEST_DOCUMENTS}")
    found = []
    for _ in range(splits):
        order = generator.permutation(documents)
        halves = (order[: len(order) // 2].tolist(), order[len(order) // 2 :].tolist())
        found.append(_distances_of_halves(states, halves, key))
    return {measure: torch.stack([split[measure] for split in found]).mean(dim=0) for measure in found[0]}


def _distances_of_halves(states: Sequence[HiddenStates], halves: Sequence[list[int]], key: Bases) -> dict[str, Layers]:
    layers = [
        subspace_distances(*(scatter_of([batch.of(half) for batch in layer]) for half in halves), [basis])
        for layer, basis in zip(by_layer(states), key, strict=True)
    ]
    return {measure: torch.cat([layer[measure] for layer in layers]) for measure in layers[0]}


def key_subspaces_of(states: Sequence[HiddenStates], energy: float) -> list[Float64[Tensor, "width rank"]]:
    """`key_subspaces` of held states."""
    return [basis for layer in by_layer(states) for basis in key_subspaces(scatter_of(layer), energy)]


def energy_of(states: Sequence[HiddenStates], key: Bases) -> Layers:
    """`energy_inside` of held states."""
    return torch.cat([energy_inside(second_of(layer), [basis]) for layer, basis in zip(by_layer(states), key, strict=True)])


def scatter_of(states: Iterable[HiddenStates]) -> Scatter:
    """sum (h - mean)(h - mean)^T per layer over the tokens of all batches."""
    tokens, second, total = _sums(states)
    return second - total[:, :, None] * total[:, None, :] / tokens


def second_of(states: Iterable[HiddenStates]) -> Scatter:
    """sum h h^T per layer over the tokens of all batches, not centred."""
    return _sums(states)[1]


def _sums(states: Iterable[HiddenStates]) -> tuple[int, Scatter, Float64[Tensor, "layers width"]]:
    """Over the tokens of all batches: how many, sum h h^T and sum h."""
    tokens, second, total = 0, 0.0, 0.0
    for batch in states:
        part = batch.states.double()
        tokens, second, total = tokens + part.shape[1], second + part.mT @ part, total + part.sum(dim=1)
    return tokens, second, total


def _pairs(before: Sequence[HiddenStates], after: Sequence[HiddenStates]) -> Iterator[tuple[States, States]]:
    return ((first.states, second.states) for first, second in zip(before, after, strict=True))


def _on(like: Tensor, key: Bases) -> list[Tensor]:
    return [basis.to(like.device, torch.float64) for basis in key]


def _check_same_tokens(before: Sequence[HiddenStates], after: Sequence[HiddenStates]) -> None:
    sizes = [[tuple(batch.states.shape) for batch in side] for side in (before, after)]
    same = before and sizes[0] == sizes[1]
    if not same or any(not torch.equal(a.documents, b.documents.to(a.documents.device)) for a, b in zip(before, after, strict=True)):
        raise ValueError(
            f"hidden states (layers, tokens, width) of batches {sizes[0][:3]} before and {sizes[1][:3]} after are not of the same tokens; "
            "run both models over the same rows in batches of the same size"
        )
