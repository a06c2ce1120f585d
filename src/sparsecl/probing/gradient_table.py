"""Do domains pull a model in different directions? Gradient overlap per layer and kind of weights (paper, section Gradient overlap).

Pairs of domains are compared by the cosine of their mean gradients, by the intersection over union (IoU) of their Top-K supports
and by the subspaces their batches' gradients span. Cosines of random vectors shrink with the number of weights, and those of noisy
ones with the noise, so every number comes with what chance gives, what exchanged labels give, and what two halves of one domain reach.
"""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm

from sparsecl.base import Base
from sparsecl.experiment import Experiment
from sparsecl.lineage import ArmCheckpoint
from sparsecl.probing.gradients import GradientStatistics, GroupGradients, gradient_statistics
from sparsecl.probing.top_sets import chance_iou, top_count, top_neurons
from sparsecl.tokenizer import Row

COLUMNS = (
    "layer", "module", "domain_a", "domain_b", "measure", "value", "null", "null_label", "p_label", "ceiling",
    "parameters", "effective_dimension",
)  # fmt: skip
MEASURES = ("cosine", "top_support", "subspace", "largest_angle")
FEWEST_BATCHES = 4  # two in each half
# Of the halves a1, a2, b1, b2: the four pairs of different labels, then the two of one label.
_FIRST, _SECOND = [0, 0, 1, 1, 0, 2], [2, 3, 2, 3, 1, 3]
_CHUNK = 1 << 19  # numbers held at once while nulls are drawn: they stay in the cache

Compared = Float64[Tensor, "draws splits 6"]


def gradient_table(
    statistics: GradientStatistics, top_fraction: float, rank: int, permutations: int, generator: np.random.Generator, *, splits: int = 2
) -> pd.DataFrame:
    """Overlap of the gradients of every pair of domains in every group of weights; the columns are COLUMNS.

    The measures, each of half of a domain's batches with half of the other's (all four pairs, mean over `splits` random splits):

    - `cosine` of the halves' mean gradients, in [-1, 1];
    - `top_support`: IoU of the K entries of largest |mean gradient|, K = `top_fraction` of the sampled coordinates;
    - `subspace`: ||U1^T U2||_F^2 / rank of the principal subspaces of the halves' gradients (of their uncentred second moment);
    - `largest_angle` of these subspaces, radians, with an error of about 1e-7 near 0.

    `null` is chance: the standard deviation of the cosine of two random directions, 1 / sqrt(parameters), the expected IoU of
    two random sets, the expected overlap of two random subspaces, rank / parameters; absent for the angle. A sketch adds its error
    to what a measured number can resolve: there 1 / parameters becomes 1 / parameters + 1 / dimension. `null_label` is the mean
    over `permutations` random exchanges of the batches' labels, `p_label` the one-sided p that the domains are no further
    apart than that, (1 + draws at least as far apart) / (1 + draws) (Phipson and Smyth 2010). `ceiling` compares the
    two halves of one domain: mean over splits and the two domains, for the cosine their geometric mean, absent
    where halves disagree in sign. `effective_dimension` is described at `effective_dimension`, harmonic mean of the two.
    Absent numbers are NaN: all where a domain's gradient is zero. ValueError where the statistics or numbers cannot be used.
    """
    members = _members(statistics, rank, permutations, splits)
    prepared = [_prepared(group, top_fraction) for group in statistics.groups]
    rows = []
    for a, b in tqdm(list(combinations(members, 2)), desc="gradient overlap", delay=3, leave=False):
        pooled = torch.cat([members[a], members[b]])
        halves = drawn_halves(len(members[a]), permutations, splits, generator)
        for whole in prepared:
            pair, group = whole.of(pooled), whole.group
            shared = (group.parameters, pair_dimension(pair.gram))
            for measure, numbers in _measured(pair, halves.to(pair.gram.device), rank).items():
                rows.append((group.layer, group.module, a, b, measure, *numbers, *shared))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def gradients_of_arm(experiment: Experiment, base: Base, checkpoint: ArmCheckpoint) -> pd.DataFrame:
    """Rows of gradients.csv of one arm. Arms share batches, sketches and draws, so that their numbers are paired."""
    settings = experiment.study.probe
    statistics = gradient_statistics(
        checkpoint.model, probed_batches(experiment, base), experiment.generator("probe-gradient-sketches"), masks=checkpoint.masks
    )
    labels = experiment.generator("probe-gradient-labels")
    table = gradient_table(statistics, settings.top_fraction, settings.gradients.rank, settings.permutations, labels)
    return table.assign(arm=checkpoint.arm.name, seed=experiment.replicate)


def probed_batches(experiment: Experiment, base: Base) -> dict[str, list[list[Row]]]:
    """Disjoint random batches of each domain's training lines, facts and abilities as in its stage; the same for every arm."""
    generator, settings = experiment.generator("probe-gradients"), experiment.study.probe.gradients
    wanted = settings.batches * settings.rows
    batches = {}
    for domain, items in experiment.suite.train.items():
        if len(items) < wanted:
            raise ValueError(
                f"{domain} has {len(items)} training lines, the gradient probe wants {settings.batches} batches of {settings.rows}; "
                "lower probe.gradients.batches or rows"
            )
        chosen = tuple(items[index] for index in generator.permutation(len(items))[:wanted])
        rows = base.rows(chosen, experiment.study.tokenizer.max_length)
        batches[domain] = [rows[start : start + settings.rows] for start in range(0, wanted, settings.rows)]
    return batches


def _members(statistics: GradientStatistics, rank: int, permutations: int, splits: int) -> dict[str, Int[Tensor, " batches"]]:
    """The batches of each domain, by position, after checks."""
    labels = np.array(statistics.domains)
    members = {domain: torch.from_numpy(np.flatnonzero(labels == domain)) for domain in dict.fromkeys(statistics.domains)}
    counts = {domain: len(batches) for domain, batches in members.items()}
    if len(counts) < 2 or len(set(counts.values())) > 1 or min(counts.values()) < FEWEST_BATCHES:
        raise ValueError(f"batches by domain are {counts}; wanted equally many of two or more domains, {FEWEST_BATCHES} or more of each")
    if not 1 <= rank <= min(counts.values()) // 2 or permutations < 1 or splits < 1:
        raise ValueError(
            f"rank {rank}, permutations {permutations}, splits {splits}: wanted at least 1, and a rank of no more "
            f"than half of the {min(counts.values())} batches of a domain"
        )
    return members


@dataclass(frozen=True)
class _Prepared:
    """A group of weights, with all batches or with those of one pair of domains."""

    group: GroupGradients
    gram: Float64[Tensor, "batches batches"]
    entries: Float[Tensor, "batches coordinates"]
    k: int
    chance_support: float

    def of(self, batches: Int[Tensor, " chosen"]) -> "_Prepared":
        chosen = batches.to(self.gram.device)
        return replace(self, gram=self.gram[chosen][:, chosen], entries=self.entries[chosen])


def _prepared(group: GroupGradients, top_fraction: float) -> _Prepared:
    sketches, entries = group.sketches.double(), group.coordinates.float()
    gram, count = sketches @ sketches.T, entries.shape[1]
    if not gram.isfinite().all():
        raise ValueError(f"gradients of {group.module} in layer {group.layer} are not finite; check the model for diverged weights")
    k = top_count(count, top_fraction)
    return _Prepared(group, gram, entries, k, chance_iou(count, k))


def drawn_halves(batches: int, permutations: int, splits: int, generator: np.random.Generator) -> Int[Tensor, "draws splits 4 half"]:
    """Which of 2 x `batches` pooled batches are in the halves a1, a2, b1, b2; draw 0 has the true labels, a first.

    Of an odd number a random batch sits each split out, so that all halves are of one size.
    """
    labels = generator.permuted(np.tile(np.arange(2 * batches), (permutations + 1, 1)), axis=1)
    labels[0] = np.arange(2 * batches)
    sides = np.repeat(labels.reshape(-1, 1, 2, batches), splits, axis=1)
    half = batches // 2
    return torch.from_numpy(generator.permuted(sides, axis=-1)[..., : 2 * half].reshape(permutations + 1, splits, 4, half))


def _measured(
    pair: _Prepared, halves: Int[Tensor, "draws splits 4 half"], rank: int
) -> dict[str, tuple[float, float, float, float, float]]:
    """value, null, null_label, p_label and ceiling of each measure for one pair of domains."""
    if not all(bool(block.any()) for block in pair.gram.diagonal().chunk(2)):  # a block without a live weight
        return dict.fromkeys(MEASURES, (np.nan,) * 5)
    chance = 1 / pair.group.parameters + pair.group.sketched / pair.group.sketches.shape[1]
    overlap, angle = subspace_comparison(pair.gram, halves, rank)
    return {
        "cosine": _summary(mean_cosines(pair.gram, halves), chance**0.5, geometric=True),
        "top_support": _summary(support_overlaps(pair.entries, halves, pair.k), pair.chance_support),
        "subspace": _summary(overlap, min(1.0, rank * chance)),
        "largest_angle": _summary(angle, np.nan, distance=True),
    }


def _summary(
    compared: Compared, null: float, *, geometric: bool = False, distance: bool = False
) -> tuple[float, float, float, float, float]:
    """value, null, null_label, p_label, ceiling; `distance` where larger is further apart."""
    across = compared[..., :4].mean(dim=(1, 2))
    value, exchanged = across[0], across[1:]
    further = exchanged >= value - 1e-9 if distance else exchanged <= value + 1e-9  # equal sums may differ in the last digit
    within = compared[0, :, 4:].mean(dim=0)
    ceiling = torch.where(within > 0, within, torch.nan).prod().sqrt() if geometric else within.mean()
    p_label = (1 + further.sum().item()) / (1 + len(exchanged))
    return value.item(), null, exchanged.mean().item(), p_label, ceiling.item()


def mean_cosines(gram: Float64[Tensor, "batches batches"], halves: Int[Tensor, "draws splits 4 half"]) -> Compared:
    """Cosines of the mean gradients of the six pairs of halves, from the inner products of all batches' gradients."""
    weights = _weights(halves, len(gram)).to(gram)
    products = weights @ gram @ weights.mT
    norms = products.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    return (products / (norms[..., :, None] * norms[..., None, :]))[..., _FIRST, _SECOND].clamp(-1, 1)


def _weights(halves: Int[Tensor, "draws splits 4 half"], batches: int) -> Float[Tensor, "draws splits 4 batches"]:
    """Weight of each batch in the mean of each half."""
    return torch.zeros(*halves.shape[:3], batches, device=halves.device).scatter_(-1, halves, 1 / halves.shape[-1])


def support_overlaps(entries: Float[Tensor, "batches coordinates"], halves: Int[Tensor, "draws splits 4 half"], k: int) -> Compared:
    """IoU of the `k` largest |mean gradient| entries of the six pairs of halves."""
    weights = _weights(halves, len(entries)).to(entries)
    compared = []
    for part in weights.split(max(1, _CHUNK // (weights[0, ..., 0].numel() * entries.shape[1]))):
        chosen = top_neurons((part @ entries).abs(), k).float()
        shared = (chosen @ chosen.mT)[..., _FIRST, _SECOND].double()  # whole numbers, exact
        compared.append(shared / (2 * k - shared))
    return torch.cat(compared)


def subspace_comparison(
    gram: Float64[Tensor, "batches batches"], halves: Int[Tensor, "draws splits 4 half"], rank: int
) -> tuple[Compared, Compared]:
    """Overlap and largest principal angle of the halves' principal subspaces, for the six pairs of halves.

    With the gradients of a half as rows of G, its principal directions are G^T v / sqrt(lambda), v and lambda eigenvectors and
    eigenvalues of its block of the Gram matrix (the kernel trick), so gradients themselves are not needed. A direction
    that a half does not have, because its gradients span less, overlaps with nothing.
    """
    block = gram[halves[..., :, None], halves[..., None, :]]
    values, vectors = torch.linalg.eigh(block)
    values, vectors = values[..., None, -rank:], vectors[..., -rank:]
    present = values > 1e-12 * values[..., -1:]
    loadings = torch.where(present, vectors / torch.where(present, values, 1.0).sqrt(), 0.0)
    bases = torch.zeros(*halves.shape[:3], len(gram), rank, dtype=gram.dtype, device=gram.device)
    bases.scatter_(-2, halves[..., None].expand_as(loadings), loadings)
    cosines = bases[:, :, _FIRST].mT @ gram @ bases[:, :, _SECOND]
    smallest = torch.linalg.svdvals(cosines)[..., -1].clamp(max=1)
    return cosines.square().sum(dim=(-2, -1)) / rank, smallest.acos()


def effective_dimension(gram: Float64[Tensor, "batches batches"]) -> float:
    """Participation ratio (tr C)^2 / tr C^2 of the covariance C of one domain's batch gradients, from their Gram matrix.

    It is the number of directions that the noise of batches fills evenly: the cosine of two independent noises has the standard
    deviation 1 / sqrt(effective dimension), not 1 / sqrt(parameters). Estimated from differences of disjoint pairs of batches, which
    are free of the mean: mean |d|^2 |d'|^2 / mean <d, d'>^2 over pairs of differences, which may exceed the number of batches.
    A sketch bounds it by about its dimension. NaN where no batch differs from another.
    """
    pairs = len(gram) // 2
    signs = torch.tensor([1.0, -1.0], dtype=gram.dtype, device=gram.device)
    blocks = gram[: 2 * pairs, : 2 * pairs].reshape(pairs, 2, pairs, 2)
    products = torch.einsum("aibj,i,j->ab", blocks, signs, signs)
    first, second = torch.triu_indices(pairs, pairs, offset=1, device=gram.device)
    norms = products.diagonal()
    resolved = products[first, second].square().sum()
    return float((norms[first] * norms[second]).sum() / resolved) if resolved > 0 else float("nan")


def pair_dimension(gram: Float64[Tensor, "batches batches"]) -> float:
    """Harmonic mean of two domains' effective dimensions; `gram` holds the batches of one and then those of the other."""
    half = len(gram) // 2
    return float(2 / (1 / effective_dimension(gram[:half, :half]) + 1 / effective_dimension(gram[half:, half:])))
