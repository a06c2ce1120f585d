"""Which units of the feed-forward layers a domain uses, and the weights that belong to them (paper, section Methods).

A unit is a neuron of a dense layer or an expert of a mixture. The path of a neuron is its row of `gate_proj`, its row of
`up_proj` and its column of `down_proj`; the path of an expert is its slice of `gate_up_proj` and `down_proj`. Neuron-level
fine-tuning (NCFT, arXiv 2407.06488) trains such paths too, but ranks neurons by their gradients.

    use        neuron                                           expert
    magnitude  mean |activation| over tokens                    mean routing weight over tokens, 0 where not routed
    frequency  share of tokens in whose Top-K the neuron is     share of tokens routed to it

A contrast against general text is not offered: a stream without replay has no such text.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sparsecl.masks import Masks
from sparsecl.probing.passes import Batch, run_pass
from sparsecl.probing.top_sets import top_count, top_neurons

PROBE_BATCH = 64  # rows passed at once; the result does not depend on it beyond rounding
DENSE = {"gate_proj.weight": 0, "up_proj.weight": 0, "down_proj.weight": 1}  # parameter -> dimension along which neurons lie
EXPERTS = {"experts.gate_up_proj": 0, "experts.down_proj": 0}


def unit_parameters(model: nn.Module) -> list[dict[str, int]]:
    """For every layer the parameters that hold its units, by name, and the dimension along which the units lie.

    ValueError unless all layers have units of one kind, as many in each.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    blocks = [name for name, _ in model.named_modules() if name.endswith(".mlp")]
    layers = []
    for block in blocks:
        held = EXPERTS if f"{block}.experts.down_proj" in shapes else DENSE
        layers.append({f"{block}.{name}": dimension for name, dimension in held.items()})
    missing = [name for layer in layers for name in layer if name not in shapes]
    counts = {shapes[name][dimension] for layer in layers for name, dimension in layer.items() if name in shapes}
    if missing or len(counts) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} feed-forward layers with {sorted(counts)} units, without {missing[:3]}; wanted "
            "gated layers or stacked experts, as many units in each layer; use another method for this model"
        )
    return layers


def has_experts(model: nn.Module) -> bool:
    """Whether the units are experts."""
    return any(name.endswith("experts.down_proj") for name in unit_parameters(model)[0])


def unit_count(model: nn.Module) -> int:
    """Units of each layer."""
    name, dimension = next(iter(unit_parameters(model)[0].items()))
    return model.get_parameter(name).shape[dimension]


def unit_use(model: nn.Module, rows: Sequence[Sequence[int]], selection: str, fraction: float) -> Float[Tensor, "layers units"]:
    """How much `rows` (token ids) use each unit, as the table above says, from one forward pass; special tokens do not count.

    K of `frequency` is `fraction` of the neurons; experts have the router's own. ValueError where the selection is unknown.
    """
    reader = (_ExpertUse if has_experts(model) else _NeuronUse)(model, selection, fraction)
    run_pass(model, rows, PROBE_BATCH, [reader], excluded_tokens=special_tokens(model), description="units in use")
    return reader.total / reader.tokens


def gradients_formed(model: nn.Module, names: Iterable[str]) -> int:
    """Weights whose gradient is formed where the parameters `names` are trained, as `sparsecl.flops` counts them: those that a
    token passes, whole tensors of a dense layer and of stacked experts the part that the router chooses."""
    weights = sum(model.get_parameter(name).numel() for name in names)
    settings = model.config.get_text_config()
    return weights * settings.num_experts_per_tok // settings.num_experts if has_experts(model) else weights


def special_tokens(model: nn.Module) -> set[int]:
    """Beginning, end and padding, as the model's configuration names them."""
    settings = model.config.get_text_config()
    found: set[int] = set()
    for value in (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id):
        found |= set() if value is None else {value} if isinstance(value, int) else set(value)
    return found


class _NeuronUse:
    """A reader of a pass: sums over tokens of |activation|, or of membership in the token's Top-K."""

    side = "input"

    def __init__(self, model: nn.Module, selection: str, fraction: float) -> None:
        if selection not in ("magnitude", "frequency"):
            raise ValueError(f"selection {selection!r} is unknown; choose magnitude or frequency")
        self._selection, self._k = selection, top_count(unit_count(model), fraction)
        self.total = torch.zeros(len(unit_parameters(model)), unit_count(model), dtype=torch.float64)
        self.tokens = 0
        self._counted = torch.empty(0)

    def watched(self, model: nn.Module) -> Sequence[nn.Module]:
        return [model.get_submodule(next(reversed(layer)).removesuffix(".weight")) for layer in unit_parameters(model)]

    def begin(self, batch: Batch) -> None:
        self._counted = batch.counted.flatten()
        self.tokens += int(self._counted.sum())

    def receive(self, layer: int, states: Float[Tensor, "batch positions neurons"]) -> None:
        use = states.flatten(0, 1)[self._counted].abs().float()
        self._add(layer, top_neurons(use, self._k) if self._selection == "frequency" else use)

    def _add(self, layer: int, use: Tensor) -> None:
        self.total[layer] += use.sum(dim=0, dtype=torch.float64).cpu()


class _ExpertUse(_NeuronUse):
    """The same for experts: sums of routing weights, or of tokens routed."""

    side = "output"

    def watched(self, model: nn.Module) -> Sequence[nn.Module]:
        return [model.get_submodule(next(iter(layer)).removesuffix("experts.gate_up_proj") + "gate") for layer in unit_parameters(model)]

    def receive(self, layer: int, states: tuple[Tensor, Tensor, Tensor]) -> None:
        _, weights, experts = (part[self._counted].detach() for part in states)  # logits, weights and indices of the chosen experts
        amounts = torch.ones_like(weights) if self._selection == "frequency" else weights
        self._add(layer, weights.new_zeros(len(weights), self.total.shape[1]).scatter_(1, experts, amounts))


def most_used(use: Float[Tensor, "layers units"], fraction: float) -> Bool[Tensor, "layers units"]:
    """The `fraction` of each layer's units that are used most; ValueError where that is no unit or all."""
    return top_neurons(use, top_count(use.shape[1], fraction))


def drawn_units(model: nn.Module, fraction: float, generator: np.random.Generator) -> Bool[Tensor, "layers units"]:
    """As many units of each layer as `most_used` takes, drawn at random."""
    return most_used(torch.from_numpy(generator.random((len(unit_parameters(model)), unit_count(model)))), fraction)


def path_masks(model: nn.Module, selected: Bool[Tensor, "layers units"], masks: Masks | None) -> dict[str, Tensor]:
    """For every parameter that holds units, True at the weights on the paths of `selected`; only alive ones where `masks` are given."""
    paths = {}
    for chosen, held in zip(selected, unit_parameters(model), strict=True):
        for name, dimension in held.items():
            weight = model.get_parameter(name)
            along = [-1 if axis == dimension else 1 for axis in range(weight.ndim)]
            path = chosen.to(weight.device).view(along).expand_as(weight)
            paths[name] = path.clone() if masks is None else path & masks.weights[name].to(weight.device)
    return paths
