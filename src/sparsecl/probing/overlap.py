"""Do domains use different neurons? Overlap of the strongest neurons of two domains, per layer (notebook 04; paper, section Probes).

A domain's set is its K strongest feed-forward neurons; two domains are compared by intersection over union (IoU), layer
by layer. An IoU means nothing alone, so each comes with what it would be by chance, what it would be if the two domains
did not differ, and what two halves of one domain reach.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor
from tqdm import tqdm

from sparsecl.items import GENERAL
from sparsecl.probing.activations import ActivationProfile, GroupMeans
from sparsecl.probing.top_sets import chance_iou, nested_top_neurons, packed_sets, shared_count, top_count

SAME_TOKENS = "magnitude/same-tokens"
SELECTIONS = ("magnitude", "frequency", "contrast", SAME_TOKENS)
OVERLAP_COLUMNS = (
    "layer", "domain_a", "domain_b", "selection", "top_fraction", "value", "null", "null_label", "p_label", "ceiling",
)  # fmt: skip
FEWEST_GROUPS = 4  # two in each half
# Of the halves a1, a2, b1, b2: the four pairs of different labels, then the two of one label.
_FIRST, _SECOND = [0, 0, 1, 1, 0, 2], [2, 3, 2, 3, 1, 3]
_CHUNK = 1 << 19  # numbers held at once while nulls are drawn: more leave the cache, fewer make slow products

Pair = tuple[GroupMeans, GroupMeans]
Moments = tuple[Float64[Tensor, " neurons"], Float64[Tensor, " neurons"]]
Compared = Float64[Tensor, "draws splits 6"]


def overlap_table(
    profiles: Mapping[str, ActivationProfile],
    general: ActivationProfile,
    top_fractions: Sequence[float],
    permutations: int,
    generator: np.random.Generator,
    *,
    selections: Sequence[str] = ("magnitude", "contrast"),
    splits: int = 5,
) -> pd.DataFrame:
    """IoU of the Top-K neurons of every pair of domains in every layer, with its nulls and its ceiling.

    A row for each of `top_fractions` (K / neurons) and of `selections`, the statistic by which neurons are ranked:

    - `magnitude`: mean |activation|; it finds neurons that are always on;
    - `frequency`: how often a neuron is among a token's own Top-K, with the same K;
    - `contrast`: see `contrast_scores`; measured against general text, which takes part in no comparison;
    - `magnitude/same-tokens`: the control for the domains' words, see `common_token_weights`.

    Every number compares samples of one size, half of a domain's groups of documents, so that `value`, `null_label`
    and `ceiling` differ by the domains alone and not by how noisy their sets are:

    - `value`: both halves of a with both halves of b, mean over `splits` random splits;
    - `null`: no overlap beyond chance, two random sets of K neurons (`chance_iou`);
    - `null_label`: no difference between the domains, the mean of `value` over `permutations` random
      exchanges of their groups' labels; `p_label`: one-sided p that `value` is lower than that,
      (1 + draws at most as high) / (1 + draws) (Phipson and Smyth 2010);
    - `ceiling`: one half of a domain with its other half, mean over the splits and the two domains.

    `profiles` are the domains by name, without the general mixture, which is given apart. Value, label null and ceiling
    are absent (NaN) where a domain has fewer than four groups with a counted token. The columns are OVERLAP_COLUMNS;
    layers count from 0. Raises ValueError where K, a selection or a profile cannot be used.
    """
    _check_profiles(profiles, general, permutations, splits)
    layers, _, neurons = general.magnitude.mean.shape
    sizes = {fraction: top_count(neurons, fraction) for fraction in dict.fromkeys(top_fractions)}
    moments = [general_moments(general.magnitude, layer) for layer in range(layers)]
    chance = {k: chance_iou(neurons, k) for k in sizes.values()}
    rows = []
    for a, b in tqdm(list(combinations(profiles, 2)), desc="overlap", delay=3, leave=False):
        halves = Halves((profiles[a].magnitude, profiles[b].magnitude), permutations, splits, generator)
        found = _overlaps((profiles[a], profiles[b]), selections, set(sizes.values()), moments, halves)
        for layer in range(layers):
            for selection in selections:
                for fraction, k in sizes.items():
                    value, null, p_label, ceiling = found[selection, k][layer]
                    rows.append((layer, a, b, selection, fraction, value, chance[k], null, p_label, ceiling))
    return pd.DataFrame(rows, columns=list(OVERLAP_COLUMNS))


def _check_profiles(profiles: Mapping[str, ActivationProfile], general: ActivationProfile, permutations: int, splits: int) -> None:
    if permutations < 1 or splits < 1:
        raise ValueError(f"permutations {permutations} and splits {splits} must both be at least 1")
    if len(profiles) < 2 or GENERAL in profiles or any(profile is general for profile in profiles.values()):
        raise ValueError(
            f"profiles hold {list(profiles)}; give at least two domains and keep general text out of them, "
            "because a contrast against a compared domain forces low overlap"
        )
    layers, _, neurons = general.magnitude.mean.shape
    for domain, profile in {**profiles, GENERAL: general}.items():
        found, groups = tuple(profile.magnitude.mean.shape), len(profile.magnitude.weight)
        if (found[0], found[2]) != (layers, neurons) or found[1] != groups or groups < FEWEST_GROUPS:
            raise ValueError(
                f"profile of {domain} is {found} (layers, groups of documents, neurons) with {groups} token counts; "
                f"wanted {layers} layers, {neurons} neurons, {FEWEST_GROUPS} or more groups and a count for each; "
                "profile all domains with one model"
            )
        if not profile.magnitude.mean.isfinite().all():
            raise ValueError(f"profile of {domain} holds NaN or infinite activations; check the model for diverged weights")


def general_moments(general: GroupMeans, layer: int) -> Moments:
    """Mean of every neuron over general text, and the standard deviation between its documents."""
    weight = (general.weight / general.weight.sum()).double()[:, None]
    documents = general.mean[layer].double()
    centre = (weight * documents).sum(dim=0)
    return centre, (weight * (documents - centre) ** 2).sum(dim=0).sqrt()


def contrast_scores(mean: Float[Tensor, "*samples neurons"], general: Moments) -> Float[Tensor, "*samples neurons"]:
    """Distance of a domain's mean |activation| from the mean on general text, in standard deviations between general documents.

    General text takes part in no comparison: contrasting the compared domains with each other would force their sets
    apart. All domains share the general sample, which can lift their overlap above chance; the label null and the ceiling
    share it too, so read a contrast against them. Where documents are pooled, the deviation is that between groups: smaller
    by one factor for all neurons, which leaves their ranks alone.
    """
    centre, deviation = general
    difference = mean - centre
    scores = difference / deviation
    # A neuron that is zero everywhere (a pruned row) does not stand out: 0, not 0 / 0.
    constant = (deviation == 0).nonzero()[:, 0]
    scores[..., constant] = torch.where(difference[..., constant] == 0, 0.0, scores[..., constant])
    return scores


class Halves:
    """Random halves of two domains' groups, under the true labels (draw 0) and under exchanged ones; one object a pair.

    All statistics of a pair share the draws. A statistic that lacks some groups (no sampled token, no common word)
    gets draws of its own over the groups it has.
    """

    def __init__(self, pair: Pair, permutations: int, splits: int, generator: np.random.Generator) -> None:
        self._draws = permutations + 1, splits
        (self._spare,) = generator.spawn(1)
        everything = tuple(np.ones(len(means.weight), dtype=bool) for means in pair)
        self._members = {_key(everything): self._drawn(everything, generator)}

    def weights(self, pair: Pair) -> Float[Tensor, "draws splits 4 groups"] | None:
        """Weight of each pooled group that has a token in the means of the halves a1, a2, b1, b2.

        None where a domain has fewer than four such groups.
        """
        present = tuple((means.weight > 0).cpu().numpy() for means in pair)
        if min(side.sum() for side in present) < FEWEST_GROUPS:
            return None
        if (key := _key(present)) not in self._members:
            self._members[key] = self._drawn(present, self._spare)
        tokens = torch.cat([means.weight[means.weight > 0] for means in pair]).double().cpu()
        weights = torch.zeros(*self._draws, 4, len(tokens), dtype=torch.float64)
        for half, members in enumerate(self._members[key]):
            weights[:, :, half].scatter_(-1, members, tokens[members])
        return weights / weights.sum(dim=-1, keepdim=True)

    def _drawn(self, present: tuple[np.ndarray, np.ndarray], generator: np.random.Generator) -> list[Tensor]:
        draws, splits = self._draws
        first, both = present[0].sum(), present[0].sum() + present[1].sum()
        labels = generator.permuted(np.tile(np.arange(both), (draws, 1)), axis=1)
        labels[0] = np.arange(both)
        # Every split shuffles the groups that share a label, then cuts them in the middle.
        sides = [np.tile(side[:, None], (1, splits, 1)) for side in np.split(labels, [first], axis=1)]
        return [half for side in sides for half in torch.from_numpy(generator.permuted(side, axis=2)).split(side.shape[2] // 2, dim=2)[:2]]


def _key(present: tuple[np.ndarray, np.ndarray]) -> tuple[bytes, bytes]:
    return present[0].tobytes(), present[1].tobytes()


def _overlaps(
    pair: tuple[ActivationProfile, ActivationProfile],
    selections: Sequence[str],
    sizes: set[int],
    moments: Sequence[Moments],
    halves: Halves,
) -> dict[tuple[str, int], list[tuple[float, float, float, float]]]:
    """By selection and K: value, label null, its p, and the ceiling of every layer."""
    found = defaultdict(list)
    for means, wanted in _rankings(selections, pair, sizes):
        weights = halves.weights(means)
        for layer, general in enumerate(moments):
            if weights is None:
                compared = {(selection, k): None for selection, ks in wanted.items() for k in ks}
            else:
                pooled = torch.cat([side.mean[layer, side.weight > 0] for side in means]).double()
                compared = _half_overlaps(pooled, weights.to(pooled.device), wanted, general)
            for key, ious in compared.items():
                found[key].append(_summary(ious))
    return found


def _rankings(
    selections: Sequence[str], pair: tuple[ActivationProfile, ActivationProfile], sizes: set[int]
) -> list[tuple[Pair, dict[str, list[int]]]]:
    """The means by which neurons are ranked, and by selection the set sizes K that they serve; means of several selections once."""
    rankings = {}
    for selection in selections:
        for means, ks in _statistics(selection, pair, sizes):
            rankings.setdefault(tuple(map(id, means)), (means, {}))[1][selection] = ks
    return list(rankings.values())


def _statistics(selection: str, pair: tuple[ActivationProfile, ActivationProfile], sizes: set[int]) -> Iterator[tuple[Pair, list[int]]]:
    """The means by which a selection ranks neurons, and the set sizes K for which these means hold."""
    a, b = pair
    if selection in ("magnitude", "contrast"):
        yield (a.magnitude, b.magnitude), sorted(sizes)
    elif selection == "frequency":
        if missing := sizes - (a.frequency.keys() & b.frequency.keys()):
            raise ValueError(f"profiles hold no frequency at K = {sorted(missing)}; give activation_profile the same top_fractions")
        yield from (((a.frequency[k], b.frequency[k]), [k]) for k in sorted(sizes))
    elif selection == SAME_TOKENS:
        if a.same_tokens is None or b.same_tokens is None:
            raise ValueError("profiles hold no means over the same tokens; give activation_profile the weights of common_token_weights")
        yield (a.same_tokens, b.same_tokens), sorted(sizes)
    else:
        raise ValueError(f"selection {selection!r} is unknown; choose one of {SELECTIONS}")


def _half_overlaps(
    pooled: Float64[Tensor, "groups neurons"],
    weights: Float64[Tensor, "draws splits 4 groups"],
    wanted: Mapping[str, Sequence[int]],
    general: Moments,
) -> dict[tuple[str, int], Compared]:
    """By selection and K: IoU of the six pairs of halves in every draw and split, some draws at a time."""
    compared = defaultdict(list)
    for part in weights.split(max(1, _CHUNK // (weights[0, :, :, 0].numel() * pooled.shape[1]))):
        mean = part @ pooled
        for selection, ks in wanted.items():
            scores = contrast_scores(mean, general) if selection == "contrast" else mean
            for k, chosen in nested_top_neurons(scores, ks).items():
                sets = packed_sets(chosen)
                shared = torch.from_numpy(shared_count(sets[:, :, _FIRST], sets[:, :, _SECOND])).double()
                compared[selection, k].append(shared / (2 * k - shared))
    return {key: torch.cat(parts) for key, parts in compared.items()}


def _summary(compared: Compared | None) -> tuple[float, float, float, float]:
    """Value, label null, its one-sided p that the value is lower, and the ceiling; NaN where nothing could be compared."""
    if compared is None:
        return (np.nan,) * 4
    across = compared[..., :4].mean(dim=(1, 2))
    value, null = across[0], across[1:]
    as_low = (null <= value + 1e-9).sum().item()  # equal means of equal IoUs may differ in the last digit
    return value.item(), null.mean().item(), (1 + as_low) / (1 + len(null)), compared[0, :, 4:].mean().item()
