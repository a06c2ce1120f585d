"""Do domains use different neurons? Top-K activation overlap per layer (notebook 04; paper, section Probes).

The activation of a feed-forward neuron is the input of `down_proj`, `act(gate) * up`. A domain's set is
its K strongest neurons; two domains are compared by intersection over union (IoU), layer by layer.
An IoU means nothing alone, so each comes with what it would be by chance, what it would be if the two
domains did not differ, and what two halves of one domain reach.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int
from scipy.stats import hypergeom
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from sparsecl.items import GENERAL

SELECTIONS = ("magnitude", "contrast")
OVERLAP_COLUMNS = (
    "layer", "domain_a", "domain_b", "selection", "top_fraction", "value", "null", "null_label", "p_label", "ceiling",
)  # fmt: skip
FEWEST_DOCUMENTS = 4  # two in each half
_CHUNK = 1 << 22  # numbers held at once while nulls are drawn


Numbers = float | np.ndarray | pd.Series


@dataclass(frozen=True)
class ActivationProfile:
    """Mean |activation| of every neuron in every document, and how many tokens each mean is over."""

    activation: Float[Tensor, "layers documents neurons"]
    tokens: Int[Tensor, " documents"]


def down_projections(model: nn.Module) -> list[nn.Module]:
    """The `mlp.down_proj` modules of a dense decoder, first layer first; ValueError where a layer has none."""
    modules = [module for name, module in model.named_modules() if name.endswith("mlp.down_proj")]
    layers = model.config.get_text_config().num_hidden_layers
    if len(modules) != layers:
        raise ValueError(
            f"{type(model).__name__} has {len(modules)} modules named mlp.down_proj, wanted one in each of its {layers} layers; "
            "this probe reads dense gated feed-forward layers, use a routing probe for experts"
        )
    return modules


@contextmanager
def feed_forward_activations(model: nn.Module, receive: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, every forward pass calls `receive(layer, activation)`, activation (rows, positions, neurons).

    The hooks are gone afterwards, also after an error.
    """
    handles = []
    try:
        for layer, module in enumerate(down_projections(model)):

            def hook(_module: nn.Module, inputs: tuple[Tensor, ...], layer: int = layer) -> None:
                receive(layer, inputs[0])  # a pre-hook that returned something would replace the input

            handles.append(module.register_forward_pre_hook(hook))
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


def activation_profile(
    model: nn.Module, rows: Sequence[Sequence[int]], batch: int, *, excluded_tokens: Collection[int]
) -> ActivationProfile:
    """Mean |activation| of each feed-forward neuron over each document's tokens.

    `rows` are token ids, one document each; `batch` rows run at once and do not change the result beyond
    rounding. Positions that hold one of `excluded_tokens` (BOS, template tokens) are seen by the model
    but not counted: they stand in every domain, and their activations are often huge. The statistics stay on the
    model's device, in float32; their size is layers x documents x neurons, whatever the documents' length.
    Raises ValueError for a document without a counted token and for a model that is not a dense decoder.
    """
    _check_rows(rows, batch, excluded_tokens)
    modules = down_projections(model)
    device = next(model.parameters()).device
    excluded = torch.tensor(sorted(excluded_tokens), dtype=torch.long, device=device)
    activation = torch.empty(len(modules), len(rows), modules[0].in_features, device=device)
    tokens = torch.empty(len(rows), dtype=torch.long, device=device)
    counted, documents = torch.empty(0), []  # of the batch that runs; the hooks read them

    def receive(layer: int, states: Tensor) -> None:
        total = states.abs().float().masked_fill(~counted.to(states.device)[..., None], 0).sum(dim=1)
        activation[layer, documents] = total.to(device) / counted.sum(dim=1, keepdim=True)

    # Rows of like length share a batch: less padding.
    order = sorted(range(len(rows)), key=lambda document: len(rows[document]))
    with evaluation_mode(model), feed_forward_activations(model, receive):
        for start in tqdm(range(0, len(order), batch), desc="activations", delay=3, leave=False):
            documents = order[start : start + batch]
            padded, attended = _padded([rows[document] for document in documents], device)
            counted = attended & ~torch.isin(padded, excluded)
            tokens[documents] = counted.sum(dim=1)
            model(input_ids=padded, attention_mask=attended.long(), use_cache=False, logits_to_keep=1)
    return ActivationProfile(activation, tokens)


def _check_rows(rows: Sequence[Sequence[int]], batch: int, excluded_tokens: Collection[int]) -> None:
    if not rows or batch < 1:
        raise ValueError(f"{len(rows)} rows in batches of {batch}; give at least one row and a batch of at least 1")
    excluded = set(excluded_tokens)
    for document, row in enumerate(rows):
        if excluded.issuperset(row):
            raise ValueError(f"row {document} has {len(row)} tokens and none that counts beside {sorted(excluded)}; leave the row out")


def _padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Int[Tensor, "rows positions"], Bool[Tensor, "rows positions"]]:
    """Right-padded ids, and which positions are real; a causal model never looks at what stands to the right."""
    ids = pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return ids.to(device), (torch.arange(ids.shape[1]) < lengths[:, None]).to(device)


def top_count(neurons: int, top_fraction: float) -> int:
    """K, the whole number of neurons nearest to `top_fraction` of a layer; ValueError unless 1 <= K < neurons."""
    count = round(neurons * top_fraction) if 0 < top_fraction < 1 else 0
    if not 1 <= count < neurons:
        raise ValueError(
            f"top_fraction {top_fraction} of {neurons} neurons does not give a set of 1 to {neurons - 1}; "
            f"choose a fraction from {1 / neurons:.3g} to {(neurons - 1) / neurons:.3g}"
        )
    return count


def selection_scores(
    selection: str,
    mean: Float[Tensor, "*samples neurons"],
    general: Float[Tensor, "documents neurons"],
    general_tokens: Int[Tensor, " documents"],
) -> Float[Tensor, "*samples neurons"]:
    """Score by which a domain's neurons are ranked in one layer, from the domain's mean |activation|.

    `magnitude` is that mean; it finds neurons that are always on. `contrast` is its distance from the
    mean on general text, in standard deviations between general documents. General text takes part in
    no comparison: contrasting the compared domains with each other would force their sets apart.
    All domains share the general sample, which can lift their overlap above chance; the label null and
    the ceiling share it too, so read a contrast against them.
    """
    if selection == "magnitude":
        return mean
    if selection != "contrast":
        raise ValueError(f"selection {selection!r} is unknown; choose one of {SELECTIONS}")
    weight = (general_tokens / general_tokens.sum()).to(mean)[:, None]
    general = general.to(mean)
    general_mean = (weight * general).sum(dim=0)
    deviation = (weight * (general - general_mean) ** 2).sum(dim=0).sqrt()
    difference = mean - general_mean
    # A neuron that is zero everywhere (a pruned row) does not stand out: 0, not 0 / 0.
    return torch.where(difference == 0, 0.0, difference / deviation)


def top_neurons(scores: Float[Tensor, "*samples neurons"], k: int) -> Bool[Tensor, "*samples neurons"]:
    """Mark the `k` highest scores; among equal ones the lowest index wins. ValueError for NaN."""
    if scores.isnan().any():
        raise ValueError(
            f"{int(scores.isnan().sum())} of {scores.numel()} neuron scores are NaN, wanted none; check the model for diverged weights"
        )
    lowest = scores.topk(k, dim=-1).values[..., -1:]
    chosen, tied = scores >= lowest, scores == lowest
    surplus = chosen.sum(dim=-1, keepdim=True) - k
    if surplus.any():  # rare: rank the ties from the end, the last ones go
        chosen &= ~(tied & (tied.flip(-1).cumsum(dim=-1).flip(-1) <= surplus))
    return chosen


def iou(a: Bool[Tensor, "*samples neurons"], b: Bool[Tensor, "*samples neurons"]) -> Float64[Tensor, "*samples"]:
    """Intersection over union of two sets of neurons, in [0, 1]; NaN where both are empty."""
    return (a & b).sum(dim=-1).double() / (a | b).sum(dim=-1)


def chance_iou(neurons: int, k: int) -> float:
    """Expected IoU of two independent random sets of `k` of `neurons`: E[h / (2k - h)], h hypergeometric.

    Exact; close to p / (2 - p) with p = k / neurons.
    """
    shared = np.arange(max(0, 2 * k - neurons), k + 1)
    return float(np.sum(hypergeom.pmf(shared, neurons, k, k) * shared / (2 * k - shared)))


def normalised_overlap(value: Numbers, null: Numbers, ceiling: Numbers, smallest_range: float = 0.05) -> np.ndarray | np.float64:
    """(value - null) / (ceiling - null): 0 is chance, 1 is what a domain shares with itself.

    Takes numbers or columns. NaN where the ceiling is less than `smallest_range` above the null: such a
    domain's own set is not stable, and the ratio would be noise.
    """
    value, null, ceiling = (np.asarray(column, dtype=float) for column in (value, null, ceiling))
    usable = ceiling - null >= smallest_range
    return np.where(usable, (value - null) / np.where(usable, ceiling - null, 1.0), np.nan)[()]


def overlap_table(
    profiles: Mapping[str, ActivationProfile],
    general: ActivationProfile,
    top_fraction: float,
    permutations: int,
    generator: np.random.Generator,
    *,
    selections: Sequence[str] = SELECTIONS,
    splits: int = 5,
) -> pd.DataFrame:
    """IoU of the Top-K neurons of every pair of domains in every layer, with its nulls and its ceiling.

    Every number compares samples of one size, half of a domain's documents, so that `value`, `null_label`
    and `ceiling` differ by the domains alone and not by how noisy their sets are:

    - `value`: both halves of a with both halves of b, mean over `splits` random splits;
    - `null`: no overlap beyond chance, two random sets of K neurons (`chance_iou`);
    - `null_label`: no difference between the domains, the mean of `value` over `permutations` random
      exchanges of their documents' labels; `p_label`: one-sided p that `value` is lower than that,
      (1 + draws at most as high) / (1 + draws) (Phipson and Smyth 2010);
    - `ceiling`: one half of a domain with its other half, mean over the splits and the two domains.

    `profiles` are the domains by name, without the general mixture, which is given apart. The columns
    are OVERLAP_COLUMNS; layers count from 0. Raises ValueError where K or a profile cannot be used.
    """
    _check_profiles(profiles, general, permutations, splits)
    layers, _, neurons = general.activation.shape
    k = top_count(neurons, top_fraction)
    rows = []
    for a, b in tqdm(list(combinations(profiles, 2)), desc="overlap", delay=3, leave=False):
        pair = (profiles[a], profiles[b])
        weights = _half_weights(pair, permutations, splits, generator).to(general.activation.device)
        for layer in range(layers):
            documents = torch.cat([profile.activation[layer] for profile in pair]).double()
            reference = (general.activation[layer], general.tokens)
            for selection in selections:
                across, ceiling = _half_overlaps(documents, weights, k, selection, reference)
                value, null, p_label = _against_labels(across)
                rows.append((layer, a, b, selection, top_fraction, value, chance_iou(neurons, k), null, p_label, ceiling))
    return pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))


def _check_profiles(profiles: Mapping[str, ActivationProfile], general: ActivationProfile, permutations: int, splits: int) -> None:
    if permutations < 1 or splits < 1:
        raise ValueError(f"permutations {permutations} and splits {splits} must both be at least 1")
    if len(profiles) < 2 or GENERAL in profiles or any(profile is general for profile in profiles.values()):
        raise ValueError(
            f"profiles hold {list(profiles)}; give at least two domains and keep general text out of them, "
            "because a contrast against a compared domain forces low overlap"
        )
    layers, _, neurons = general.activation.shape
    for domain, profile in {**profiles, GENERAL: general}.items():
        found = tuple(profile.activation.shape)
        if (found[0], found[2]) != (layers, neurons) or found[1] != len(profile.tokens) or found[1] < FEWEST_DOCUMENTS:
            raise ValueError(
                f"profile of {domain} is {found} (layers, documents, neurons) with {len(profile.tokens)} token counts; "
                f"wanted {layers} layers, {neurons} neurons, {FEWEST_DOCUMENTS} or more documents and a count for each; "
                "profile all domains with one model"
            )
        if not profile.activation.isfinite().all():
            raise ValueError(f"profile of {domain} holds NaN or infinite activations; check the model for diverged weights")


def _half_weights(
    pair: tuple[ActivationProfile, ActivationProfile], permutations: int, splits: int, generator: np.random.Generator
) -> Float[Tensor, "draws splits 4 documents"]:
    """Weight of each pooled document in the mean of the halves a1, a2, b1, b2; draw 0 has the true labels."""
    first, second = (len(profile.tokens) for profile in pair)
    labels = generator.permuted(np.tile(np.arange(first + second), (permutations + 1, 1)), axis=1)
    labels[0] = np.arange(first + second)
    # Every split shuffles the documents that share a label, then cuts them in the middle.
    sides = [np.tile(side[:, None], (1, splits, 1)) for side in np.split(labels, [first], axis=1)]
    a, b = (torch.from_numpy(generator.permuted(side, axis=2)).split(side.shape[2] // 2, dim=2)[:2] for side in sides)
    tokens = torch.cat([profile.tokens for profile in pair]).double().cpu()
    weights = torch.zeros(permutations + 1, splits, 4, first + second, dtype=torch.float64)
    for half, members in enumerate((*a, *b)):
        weights[:, :, half].scatter_(-1, members, tokens[members])
    return weights / weights.sum(dim=-1, keepdim=True)


def _half_overlaps(
    documents: Float[Tensor, "documents neurons"],
    weights: Float[Tensor, "draws splits 4 documents"],
    k: int,
    selection: str,
    reference: tuple[Tensor, Tensor],
) -> tuple[Float64[Tensor, " draws"], float]:
    """Mean IoU of the halves of different labels in each draw, and of the same label under the true labels."""
    across, ceiling = [], None
    for part in weights.split(max(1, _CHUNK // (weights[0, :, :, 0].numel() * documents.shape[1]))):
        a1, a2, b1, b2 = top_neurons(selection_scores(selection, part @ documents, *reference), k).unbind(dim=2)
        across.append(sum(iou(a, b) for a in (a1, a2) for b in (b1, b2)).mean(dim=1) / 4)
        if ceiling is None:
            ceiling = (iou(a1[0], a2[0]) + iou(b1[0], b2[0])).mean().item() / 2
    return torch.cat(across), ceiling


def _against_labels(across: Float64[Tensor, " draws"]) -> tuple[float, float, float]:
    """The observed value (draw 0), the mean over exchanged labels, and the one-sided p that it is lower."""
    value, null = across[0], across[1:]
    as_low = (null <= value + 1e-9).sum().item()  # equal means of equal IoUs may differ in the last digit
    return value.item(), null.mean().item(), (1 + as_low) / (1 + len(null))
