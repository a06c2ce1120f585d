"""Which experts a domain's tokens are sent to: statistics of one streaming pass (notebook 04; paper, section Expert routing).

Per layer and group of documents: the share of tokens that go to each routed expert and to each pair of experts, the former also
with every domain reweighted to the same words, and the mean gate of the shared expert, which serves every token and is
therefore kept apart from the routed ones. Layers are never pooled: expert 3 of one layer has nothing to do with expert 3 of
another. The statistics stay on the model's device, in float32; their size does not depend on how many tokens are read.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sparsecl.load_balancing import routers
from sparsecl.probing.activations import GROUPS, GroupMeans
from sparsecl.probing.passes import Batch, run_pass


@dataclass(frozen=True)
class RoutingProfile:
    """Where a model sends the tokens of one domain's documents; the last axis of each mean is given in brackets."""

    experts_per_token: int
    """Routed experts that each token goes to (k)."""
    load: GroupMeans
    """Share of a group's tokens that go to each routed expert (experts); the shares of a layer add up to k."""
    pairs: GroupMeans | None
    """Share of tokens that go to both of two experts (pairs i < j, row by row); absent where k is 1."""
    same_tokens: GroupMeans | None
    """`load` over tokens reweighted to the distribution common to all domains; absent where no weights were given."""
    shared_gate: GroupMeans | None
    """Mean sigmoid gate of the shared expert (one number); absent in a model without one."""

    @property
    def experts(self) -> int:
        return self.load.mean.shape[-1]


def routing_profile(
    model: nn.Module,
    rows: Sequence[Sequence[int]],
    batch_size: int,
    *,
    excluded_tokens: Collection[int],
    token_weights: Float[Tensor, " vocabulary"] | None = None,
    groups: int = GROUPS,
) -> RoutingProfile:
    """Read `rows` (token ids, one document each) once; document i belongs to group i mod `groups`.

    `excluded_tokens` are routed but not counted (see `run_pass`). `token_weights` come from `activations.common_token_weights`,
    by token id; with them `same_tokens` is kept. ValueError for a model without routers and for a document
    without a counted token.
    """
    load = RouterReader(model, len(rows), token_weights, groups)
    gate = SharedGateReader(model, len(rows), groups)
    run_pass(model, rows, batch_size, [load, gate], excluded_tokens=excluded_tokens, description="routing")
    shares = load.means()
    return RoutingProfile(load.k, shares["load"], shares.get("pairs"), shares.get("same_tokens"), gate.means())


class _GroupReader:
    """A reader of `run_pass` that knows each document's group and its tokens' weights: 1 if counted, and those given."""

    side = "output"

    def __init__(self, model: nn.Module, documents: int, token_weights: Float[Tensor, " vocabulary"] | None, groups: int) -> None:
        if groups < 1:
            raise ValueError(f"documents are pooled into {groups} groups; give at least 1")
        self._groups, self._device = min(groups, max(documents, 1)), next(model.parameters()).device
        # One more weight, of 0, for ids beyond those that the weights know.
        self._token_weights = None if token_weights is None else nn.functional.pad(token_weights.float(), (0, 1)).to(self._device)
        self._weight = torch.zeros(self._groups, 1 if token_weights is None else 2, device=self._device)

    def begin(self, batch: Batch) -> None:
        self._group = torch.tensor([document % self._groups for document in batch.documents], device=batch.ids.device)
        weights = [batch.counted.float()]
        if self._token_weights is not None:
            weights.append(weights[0] * self._token_weights[batch.ids.clamp(max=len(self._token_weights) - 1)])
        self._weights = torch.stack(weights, dim=1)  # (batch, sums, positions)
        self._add(self._weight, self._weights.sum(dim=2))

    def _add(self, total: Float[Tensor, "groups ..."], of_documents: Float[Tensor, "batch ..."]) -> None:
        """Float sums of rows that share a group: index_put_ adds them in a fixed order on every device."""
        total.index_put_((self._group,), of_documents.to(total), accumulate=True)


class RouterReader(_GroupReader):
    """Counts the tokens of each group that go to each expert and to each pair of experts."""

    def __init__(self, model: nn.Module, documents: int, token_weights: Float[Tensor, " vocabulary"] | None, groups: int) -> None:
        super().__init__(model, documents, token_weights, groups)
        found = routers(model)
        self.k, experts = found[0].top_k, found[0].num_experts
        self._load = torch.zeros(len(found), self._groups, self._weight.shape[1], experts, device=self._device)
        self._upper = torch.triu_indices(experts, experts, offset=1, device=self._device)
        pairs = self._upper.shape[1] if self.k > 1 else 0
        self._pairs = torch.zeros(len(found), self._groups, pairs, device=self._device)

    def watched(self, model: nn.Module) -> list[nn.Module]:
        return routers(model)

    def receive(self, layer: int, states: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _weights, experts = states  # of all positions, padding included, one below the other
        chosen = torch.zeros(logits.shape, device=self._device).scatter_(1, experts.to(self._device), 1)
        chosen = chosen.view(len(self._group), -1, chosen.shape[1])
        self._add(self._load[layer], self._weights @ chosen)
        if self.k > 1:
            together = chosen.transpose(1, 2) @ (chosen * self._weights[:, 0, :, None])
            self._add(self._pairs[layer], together[:, *self._upper])

    def means(self) -> dict[str, GroupMeans]:
        """`load`, and `pairs` and `same_tokens` where they were kept; call it after the pass."""
        weight = self._weight
        found = {"load": GroupMeans(self._load[:, :, 0] / weight[:, :1], weight[:, 0])}
        if self.k > 1:
            found["pairs"] = GroupMeans(self._pairs / weight[:, :1], weight[:, 0])
        if weight.shape[1] > 1:
            found["same_tokens"] = GroupMeans(self._load[:, :, 1] / weight[:, 1:], weight[:, 1])
        return found


class SharedGateReader(_GroupReader):
    """Averages the gate of each layer's shared expert, in (0, 1)."""

    def __init__(self, model: nn.Module, documents: int, groups: int) -> None:
        super().__init__(model, documents, None, groups)
        self._gate = torch.zeros(len(self.watched(model)), self._groups, 1, device=self._device)

    def watched(self, model: nn.Module) -> list[nn.Module]:
        return [module for name, module in model.named_modules() if name.endswith("shared_expert_gate")]

    def receive(self, layer: int, states: Float[Tensor, "*positions 1"]) -> None:
        opened = states.float().sigmoid().view(len(self._group), -1)
        self._add(self._gate[layer], (opened.to(self._device) * self._weights[:, 0]).sum(dim=1, keepdim=True))

    def means(self) -> GroupMeans | None:
        """None where no layer has a shared expert; call it after the pass."""
        return GroupMeans(self._gate / self._weight, self._weight[:, 0]) if len(self._gate) else None
