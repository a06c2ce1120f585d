"""Do domains use different experts? Divergence of two domains' routing, per layer (notebook 04; paper, section Expert routing).

A divergence means nothing alone: two samples of one text differ too, and by more the fewer tokens they have and the flatter their
load. So each comes with what exchanged labels give and with what two halves of one domain reach.
"""

from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from math import log

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float64
from torch import Tensor, nn
from tqdm import tqdm

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.experiment import Experiment
from sparsecl.items import GENERAL
from sparsecl.probing.activations import GroupMeans, common_token_weights
from sparsecl.probing.overlap import Halves
from sparsecl.probing.probed_rows import Lines
from sparsecl.probing.routing import RoutingProfile, routing_profile
from sparsecl.probing.top_sets import iou
from sparsecl.tables import COLUMNS

ROUTING_COLUMNS = ("layer", "domain_a", "domain_b", "measure", "value", "null_label", "p_label", "ceiling")
JSD, SAME_TOKENS, JACCARD, COACTIVATION = "jsd", "jsd/same-tokens", "top_p_jaccard", "coactivation"
LOAD = "load/"  # before the number of an expert
DIVERGENCES = (JSD, SAME_TOKENS)  # high where domains differ; the other measures of pairs are low there
_CHUNK = 1 << 22  # numbers held at once while nulls are drawn

Distribution = Float64[Tensor, "*samples outcomes"]
Compared = Float64[Tensor, "*samples"]


# Measures of two distributions


def entropy(p: Distribution) -> Compared:
    """Entropy in nats."""
    return torch.special.entr(p).sum(dim=-1)


def jensen_shannon(p: Distribution, q: Distribution) -> Compared:
    """Jensen-Shannon divergence in nats, in [0, log 2]."""
    return (entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2).clamp(min=0)


def normalised_divergence(p: Distribution, q: Distribution) -> Compared:
    """JSD / (log E - (H(p) + H(q)) / 2), in [0, 1] (Bandarkar et al. 2026), of E outcomes.

    The divisor bounds what the entropies allow, as H((p + q) / 2) <= log E, but is not always attained: JSD <= log 2 as well, which
    is less where the mean entropy is below log(E / 2). 1 where the mean of both is uniform, as for experts divided between two
    domains. Two uniform distributions allow no divergence and have none: 0. Near there the measure is sensitive: of two
    independent, almost uniform loads it is about 1/2 however small their irregularities, because half of these is what they do not
    share. Read it against its label null.
    """
    allowed = log(p.shape[-1]) - (entropy(p) + entropy(q)) / 2
    divergence = jensen_shannon(p, q)
    usable = allowed > 1e-12
    return torch.where(usable, (divergence / torch.where(usable, allowed, 1.0)).clamp(max=1), torch.zeros_like(divergence))


def top_p_set(p: Distribution, top_p: float) -> Bool[Tensor, "*samples outcomes"]:
    """Mark the fewest outcomes that together hold at least the share `top_p`, the likeliest first."""
    ordered, places = p.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    taken = before < top_p * (1 - 1e-12)  # a sum may miss its share by rounding
    return torch.zeros_like(taken).scatter(-1, places, taken)


def top_p_jaccard(p: Distribution, q: Distribution, top_p: float) -> Compared:
    """Intersection over union of the smallest sets of experts that hold the share `top_p` of each load."""
    return iou(top_p_set(p, top_p), top_p_set(q, top_p))


def coactivation_similarity(p: Distribution, q: Distribution) -> Compared:
    """1 - JSD in bits of two distributions over pairs of experts: 1 where equal, 0 where no pair works in both."""
    return 1 - jensen_shannon(p, q) / log(2)


# The table


def routing_table(
    profiles: Mapping[str, RoutingProfile],
    general: RoutingProfile,
    top_p: float,
    permutations: int,
    generator: np.random.Generator,
    *,
    splits: int = 5,
) -> pd.DataFrame:
    """How differently every two domains are routed in every layer, and how each by itself; the columns are ROUTING_COLUMNS.

    Measures of pairs, each of half of a domain's groups of documents with half of the other's (all four pairs of halves, mean
    over `splits` random splits), so that value, null and ceiling compare samples of one size:

    - `jsd`: `normalised_divergence` of the loads; `jsd/same-tokens`: the same with all domains reweighted to one distribution
      of words (`common_token_weights`): what remains is not due to which words the domains use;
    - `top_p_jaccard`: see there; `coactivation`: `coactivation_similarity` of the pairs of experts that share a token.

    `null_label` is the mean over `permutations` random exchanges of the groups' labels; `p_label` the one-sided p that the domains
    differ no more than that, (1 + draws at least as different) / (1 + draws) (Phipson and Smyth 2010): a divergence is to
    be higher, a similarity lower. `ceiling` compares the halves of one domain: mean over the splits and the two domains.

    Measures of one domain (`domain_b` empty, over all its tokens):

    - `specialisation_max`: max_i N_i / N over k / E, the largest share of the domain's tokens that an expert gets over the uniform
      one (Muennighoff et al. 2024, OLMoE, equation 7), 1 to E / k; its null draws as many groups from all domains;
    - `load_maxvio`: max_i N_i / mean_i N_i - 1 (Wang et al. 2024) on the general text alone, where it speaks of the balance of the
      model: of one domain it would be the specialisation again, less 1;
    - `entropy` of the load over log E, in [0, 1]; `shared_gate`: mean gate of the shared expert, in (0, 1);
    - `load/<expert>`: N_i / N, share of the tokens that this expert gets, of every domain and of the general text; sums to k.

    Absent numbers are NaN, or have no row: `coactivation` where k is 1, `shared_gate` without a shared expert. ValueError where
    a domain has fewer than four groups, or top_p is not a share.
    """
    _check(profiles, general, top_p, permutations, splits)
    (spare,) = generator.spawn(1)
    rows = []
    for a, b in tqdm(list(combinations(profiles, 2)), desc="routing", delay=3, leave=False):
        halves = Halves((profiles[a].load, profiles[b].load), permutations, splits, generator)
        for measure, means, compare in _pair_measures(profiles[a], profiles[b], top_p):
            for layer, numbers in enumerate(_compared(means, halves, compare, measure in DIVERGENCES)):
                rows.append((layer, a, b, measure, *numbers))
    for domain in profiles:
        rows += [(layer, domain, "", *numbers) for layer, *numbers in _domain_measures(domain, profiles, permutations, spare)]
    for domain, profile in {**profiles, GENERAL: general}.items():
        rows += _load_rows(domain, profile)
    for layer, share in enumerate(_whole(general.load)):
        rows.append((layer, GENERAL, "", "load_maxvio", float(share.max() / share.mean()) - 1, np.nan, np.nan, np.nan))
    return pd.DataFrame(rows, columns=list(ROUTING_COLUMNS))


def routing_of_model(
    experiment: Experiment, base: Base, model: nn.Module, rows: Mapping[str, Lines], arm: Arm, method: str, stage: int
) -> pd.DataFrame:
    """Rows of routing.csv of one model: `arm` before fine-tuning (stage 0, no method), or after so many stages of a stream of `method`.

    `rows` are those of `probe_rows`. All models share lines and draws, so that their numbers are paired.
    """
    settings, special = experiment.study.probe, base.tokenizer.all_special_ids
    weights = common_token_weights({domain: lines for domain, lines in rows.items() if domain != GENERAL}, special)
    batch = experiment.study.scoring_batch
    profiles = {
        domain: routing_profile(model, lines, batch, excluded_tokens=special, token_weights=weights.get(domain))
        for domain, lines in rows.items()
    }
    general = profiles.pop(GENERAL)
    table = routing_table(profiles, general, settings.routing.top_p, settings.permutations, experiment.generator("probe-routing"))
    about = {"arm": arm.name, "method": method, "seed": experiment.replicate, "stage": stage}
    return table.assign(**about)[list(COLUMNS["routing"])]


def _check(profiles: Mapping[str, RoutingProfile], general: RoutingProfile, top_p: float, permutations: int, splits: int) -> None:
    if permutations < 1 or splits < 1 or not 0 < top_p < 1:
        raise ValueError(f"permutations {permutations}, splits {splits}, top_p {top_p}: wanted at least 1, at least 1, and between 0 and 1")
    if len(profiles) < 2 or GENERAL in profiles:
        raise ValueError(f"profiles hold {list(profiles)}; give at least two domains, and general text apart")
    layers, _, experts = general.load.mean.shape
    for domain, profile in profiles.items():
        found, groups, _ = profile.load.mean.shape
        if (found, profile.experts) != (layers, experts) or groups < 4:
            raise ValueError(
                f"profile of {domain} has {found} layers, {profile.experts} experts and {groups} groups of documents; wanted "
                f"{layers}, {experts} and 4 or more: profile all domains with one model, and read more documents"
            )


Comparison = Callable[[Distribution, Distribution], Compared]


def _pair_measures(
    a: RoutingProfile, b: RoutingProfile, top_p: float
) -> Iterator[tuple[str, tuple[GroupMeans | None, GroupMeans | None], Comparison]]:
    """The measures of a pair: their name, the means they are taken of, and how two distributions are compared."""
    yield JSD, (a.load, b.load), normalised_divergence
    yield SAME_TOKENS, (a.same_tokens, b.same_tokens), normalised_divergence
    yield JACCARD, (a.load, b.load), lambda p, q: top_p_jaccard(p, q, top_p)
    yield COACTIVATION, (a.pairs, b.pairs), coactivation_similarity


def _compared(
    means: tuple[GroupMeans | None, GroupMeans | None], halves: Halves, compare: Comparison, divergence: bool
) -> Iterator[tuple[float, float, float, float]]:
    """Value, label null, its p and the ceiling, layer by layer; nothing where no means were kept."""
    if means[0] is None or means[1] is None:
        return
    weights = halves.weights(means)
    for layer in range(len(means[0].mean)):
        if weights is None:
            yield (np.nan,) * 4
            continue
        pooled = torch.cat([side.mean[layer, side.weight > 0] for side in means]).double()
        across, ceiling = [], None
        for part in weights.to(pooled.device).split(max(1, _CHUNK // (weights[0, :, :, 0].numel() * pooled.shape[1]))):
            a1, a2, b1, b2 = _distributions(part @ pooled).unbind(dim=2)
            across.append(sum(compare(a, b) for a in (a1, a2) for b in (b1, b2)).mean(dim=1) / 4)
            if ceiling is None:
                ceiling = (compare(a1[0], a2[0]) + compare(b1[0], b2[0])).mean().item() / 2
        yield *_against_labels(torch.cat(across), divergence), ceiling


def _distributions(shares: Float64[Tensor, "*samples outcomes"]) -> Distribution:
    return shares / shares.sum(dim=-1, keepdim=True)


def _against_labels(values: Float64[Tensor, " draws"], divergence: bool) -> tuple[float, float, float]:
    """The observed value (draw 0), the mean of the other draws, and the one-sided p that these differ as much."""
    value, null = values[0], values[1:]
    different = null >= value - 1e-9 if divergence else null <= value + 1e-9  # equal numbers may differ in the last digit
    return value.item(), null.mean().item(), (1 + different.sum().item()) / (1 + len(null))


def _whole(means: GroupMeans) -> Float64[Tensor, "layers outcomes"]:
    """Mean over all tokens of a domain."""
    present = means.weight > 0
    weight = means.weight[present].double()
    return weight / weight.sum() @ means.mean[:, present].double()


def _domain_measures(
    domain: str, profiles: Mapping[str, RoutingProfile], permutations: int, generator: np.random.Generator
) -> Iterator[tuple[int, str, float, float, float, float]]:
    """Layer, measure, value, label null, its p, ceiling of the measures of one domain."""
    profile = profiles[domain]
    uniform = profile.experts_per_token / profile.experts
    drawn = _drawn_loads(len(profile.load.weight), profiles, permutations, generator)
    for layer, share in enumerate(_whole(profile.load)):
        draws = torch.cat([share[None], drawn[layer]]).amax(dim=-1) / uniform
        yield layer, "specialisation_max", *_against_labels(draws, divergence=True), np.nan
        yield layer, "entropy", float(entropy(_distributions(share))) / log(profile.experts), np.nan, np.nan, np.nan
    if profile.shared_gate is not None:
        for layer, gate in enumerate(_whole(profile.shared_gate)):
            yield layer, "shared_gate", float(gate), np.nan, np.nan, np.nan


def _load_rows(domain: str, profile: RoutingProfile) -> list[tuple]:
    """Rows of the table with each expert's share of a domain's tokens."""
    return [
        (layer, domain, "", f"{LOAD}{expert}", float(share), np.nan, np.nan, np.nan)
        for layer, shares in enumerate(_whole(profile.load))
        for expert, share in enumerate(shares)
    ]


def _drawn_loads(
    count: int, profiles: Mapping[str, RoutingProfile], permutations: int, generator: np.random.Generator
) -> Float64[Tensor, "layers draws experts"]:
    """Loads of `count` groups drawn at random from all domains, `permutations` times."""
    pooled = torch.cat([profile.load.mean for profile in profiles.values()], dim=1).double()
    weight = torch.cat([profile.load.weight for profile in profiles.values()]).double()
    order = generator.permuted(np.tile(np.arange(len(weight)), (permutations, 1)), axis=1)[:, :count]
    chosen = torch.zeros(permutations, len(weight), dtype=torch.float64).scatter_(1, torch.from_numpy(order), 1).to(weight.device) * weight
    return chosen / chosen.sum(dim=1, keepdim=True) @ pooled
