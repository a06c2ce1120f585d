"""Which feed-forward neurons respond to a domain's text: statistics of one streaming pass (notebook 04; paper, section Probes).

The activation of a feed-forward neuron is the input of `down_proj`, `act(gate) * up`. Over the tokens of each group of
documents we keep its mean absolute value (`magnitude`), how often the neuron is among a token's K strongest (`frequency`),
and the mean absolute value with every domain reweighted to the same words (`same_tokens`). The statistics stay on the
model's device, in float32; their size is layers x groups x neurons, whatever the number and the length of the documents.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sparsecl.probing.passes import Batch, run_pass
from sparsecl.probing.top_sets import top_count

GROUPS = 128
"""Most groups that a domain's documents are pooled into; a study that reads fewer lines has one line in each."""
STRIDE = 4
"""One in so many counted tokens of a document enters `frequency`: ranking a layer's neurons at every token costs too much."""


@dataclass(frozen=True)
class GroupMeans:
    """Mean of a statistic of every neuron over the tokens of each group of documents, and the tokens' total weight.

    A group of weight 0 has no mean (NaN). Without token weights the weight is the number of tokens.
    """

    mean: Float[Tensor, "layers groups neurons"]
    weight: Float[Tensor, " groups"]


@dataclass(frozen=True)
class ActivationProfile:
    """How a model's neurons respond to one domain's documents."""

    magnitude: GroupMeans
    """|activation|."""
    frequency: Mapping[int, GroupMeans] = field(default_factory=dict)
    """By K: share of the sampled tokens at which the neuron is among the K with the largest |activation|."""
    same_tokens: GroupMeans | None = None
    """|activation| over tokens reweighted to the distribution common to all domains; absent where no weights were given."""


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


def activation_profile(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    *,
    excluded_tokens: Collection[int],
    top_fractions: Sequence[float] = (),
    token_weights: Float[Tensor, " vocabulary"] | None = None,
    groups: int = GROUPS,
) -> ActivationProfile:
    """Read `rows` (token ids, one document each) once; document i belongs to group i mod `groups`.

    `batch_size` does not change the result beyond rounding; `excluded_tokens` are not counted (see `run_pass`).
    `top_fractions` are the fractions K / neurons at which `frequency` is kept. `token_weights` come from
    `common_token_weights`, by token id; with them `same_tokens` is kept. Raises ValueError for a document without a
    counted token, for a fraction that gives no set, and for a model that is not a dense decoder.
    """
    reader = ActivationReader(model, len(rows), top_fractions, token_weights, groups)
    run_pass(model, rows, batch_size, [reader], excluded_tokens=excluded_tokens, description="activations")
    return reader.profile()


class ActivationReader:
    """Reader of `run_pass` that collects an `ActivationProfile`; the arguments are those of `activation_profile`."""

    side = "input"

    def __init__(
        self,
        model: nn.Module,
        documents: int,
        top_fractions: Sequence[float] = (),
        token_weights: Float[Tensor, " vocabulary"] | None = None,
        groups: int = GROUPS,
    ) -> None:
        if groups < 1:
            raise ValueError(f"documents are pooled into {groups} groups; give at least 1")
        modules, device = down_projections(model), next(model.parameters()).device
        neurons = modules[0].in_features
        self._groups = min(groups, max(documents, 1))
        self._counts = sorted({top_count(neurons, fraction) for fraction in top_fractions}, reverse=True)
        # One more weight, of 0, for ids beyond those that the weights know.
        self._token_weights = None if token_weights is None else nn.functional.pad(token_weights.float(), (0, 1)).to(device)
        sums = 1 if token_weights is None else 2
        self._weight = torch.zeros(self._groups, sums, device=device)
        self._sum = torch.zeros(len(modules), self._groups, sums, neurons, device=device)
        self._sampled = torch.zeros(self._groups, device=device)
        self._memory = torch.empty(0, device=device)  # of one layer's activations, used again: asking for new memory costs more
        self._chosen = torch.zeros(len(self._counts), len(modules), self._groups * neurons, device=device)

    def watched(self, model: nn.Module) -> list[nn.Module]:
        return down_projections(model)

    def begin(self, batch: Batch) -> None:
        """Lay out the batch's weights and sampled positions, the same for all layers."""
        self._group = torch.tensor([document % self._groups for document in batch.documents], device=batch.ids.device)
        weights = [batch.counted.float()]
        if self._token_weights is not None:
            weights.append(weights[0] * self._token_weights[batch.ids.clamp(max=len(self._token_weights) - 1)])
        self._weights = torch.stack(weights, dim=1)
        # Float sums of rows that share a group: index_put_ adds them in a fixed order on every device.
        self._weight.index_put_((self._group,), self._weights.sum(dim=2), accumulate=True)
        if self._counts:
            sampled = sampled_positions(batch)
            self._positions = sampled.flatten().nonzero()[:, 0]
            self._position_group = self._group[sampled.nonzero()[:, 0]]
            self._ones = torch.ones(len(self._positions) * self._counts[0], device=batch.ids.device)
            self._sampled.index_add_(0, self._position_group, self._ones[: len(self._positions)])

    def receive(self, layer: int, states: Float[Tensor, "batch positions neurons"]) -> None:
        size = torch.abs(states.to(self._sum.device, torch.float32), out=self._memory.resize_(states.shape))
        # A product with the weights reads the activations once; padding and excluded tokens weigh 0.
        self._sum[layer].index_put_((self._group,), self._weights @ size, accumulate=True)
        if self._counts:
            places = strongest_last(size.flatten(0, 1).index_select(0, self._positions), self._counts)
            places += self._position_group[:, None] * size.shape[2]  # where the neurons of a token's group begin
            for chosen, k in zip(self._chosen[:, layer], self._counts, strict=True):
                # Whole numbers: exact in any order up to 2^24 tokens a group.
                chosen.scatter_add_(0, places[:, -k:].flatten(), self._ones[: len(places) * k])

    def profile(self) -> ActivationProfile:
        """What the pass has seen; call it after the pass."""
        means = [GroupMeans(self._sum[:, :, i] / self._weight[:, i, None], self._weight[:, i]) for i in range(self._weight.shape[1])]
        shape = (self._sum.shape[0], self._groups, self._sum.shape[3])
        frequency = {
            k: GroupMeans(chosen.view(shape) / self._sampled[:, None], self._sampled)
            for k, chosen in zip(self._counts, self._chosen, strict=True)
        }
        return ActivationProfile(means[0], frequency, means[1] if len(means) > 1 else None)


def sampled_positions(batch: Batch) -> Bool[Tensor, "batch positions"]:
    """Mark every fourth counted token (`STRIDE`) of each document; document i starts at its token i mod 4.

    The start moves on, so that lines of one format are not read at the same places only. Independent of the batch.
    """
    start = torch.tensor(batch.documents, device=batch.ids.device)[:, None]
    return batch.counted & ((batch.counted.cumsum(dim=1) - 1 - start) % STRIDE == 0)


def strongest_last(values: Float[Tensor, "tokens neurons"], counts: Sequence[int]) -> Int[Tensor, "tokens largest"]:
    """Neurons of each token whose last k columns are its k largest values, for each k of `counts`, the largest first.

    Within these sets they lie in no order; ties are broken anyhow.
    """
    if values.device.type != "cpu":
        return values.topk(counts[0], dim=1).indices.flip(1)
    # NumPy's partition is vectorised: four times as fast as topk of PyTorch on a CPU, and fastest at one place a time.
    found = torch.from_numpy(np.argpartition(values.numpy(), -counts[0], axis=1)[:, -counts[0] :])
    if len(counts) > 1:
        inner = np.argpartition(values.gather(1, found).numpy(), [-k for k in counts[1:]], axis=1)
        found = found.gather(1, torch.from_numpy(inner))
    return found


def common_token_weights(
    rows: Mapping[str, Sequence[Sequence[int]]], excluded_tokens: Collection[int]
) -> dict[str, Float[Tensor, " vocabulary"]]:
    """Weight of every token id in each domain that gives all domains one distribution of words.

    With p_d(t) the share of token id t among the counted tokens of domain d, the common distribution is
    q(t) = min_d p_d(t) / sum_t min_d p_d(t), and a token of domain d weighs q(t) / p_d(t): 0 where some domain never
    uses it. Means under these weights control for *which* tokens the domains use and how often. They do not control for
    what stands before a token: the same token in another context is another computation, and that difference between
    domains remains, as it should. Nor do they speak of the words that only some domains use.

    Weights run over ids 0 to the largest one seen. All are 0 where no token occurs in every domain.
    """
    excluded = list(excluded_tokens)
    size = 1 + max(int(max(row, default=0)) for lines in rows.values() for row in lines)
    shares = {}
    for domain, lines in rows.items():
        count = np.bincount(np.concatenate([np.asarray(row, dtype=np.int64) for row in lines]), minlength=size).astype(float)
        count[[token for token in excluded if token < size]] = 0
        shares[domain] = count / count.sum()
    smallest = np.min(list(shares.values()), axis=0)
    common = smallest / smallest.sum() if smallest.any() else smallest
    return {
        domain: torch.from_numpy(np.divide(common, share, out=np.zeros(size), where=share > 0)).float() for domain, share in shares.items()
    }
