"""Cut a dense model to a narrower one by the importance of its units (arms Dcut; paper, section Controls).

The recipe is Minitron's width pruning (Muralidharan et al. 2024, arXiv:2407.14679, sections 2.2 and 2.3): the importance
of a residual channel, feed-forward neuron or attention head is the size of its activation on calibration rows, and the
weights of the least important ones are trimmed away. Of the paper's aggregations we take the one it recommends, the mean
of absolute values over the tokens of a row and then the L2 norm over rows.

- Channels: outputs of all RMSNorms over the residual stream, their scores summed over norms, F_emb = sum_BS LN(X)_i.
- Neurons: F_neuron = sum_BS X (W_1^i)^T, which in a gated layer is the input of `down_proj`, act(gate) * up.
- Heads: F_head = sum_BS ||Attn(X W^Qi, X W^Ki, X W^Vi)||_2. Heads go as whole key-value groups, whose attention output is
  the concatenation over their heads. The paper's residual merging of heads needs the keys and values to stay, so it is not used.

Neurons and groups are ranked within their layer, as NVIDIA's own code does: equal indices of two layers have nothing in common.
The recipe rescales nothing. An RMSNorm over k of n channels divides by the root mean square of the k, so normalised values
change by the factor sqrt(k / n * (1 + removed energy / kept energy)): they shrink by up to sqrt(k / n), and recovery must make up for it.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sparsecl.settings import Model
from sparsecl.tokenizer import Row

UNITS = ("channels", "neurons", "groups")
SIZES = {  # size of a shape -> the same in a Qwen3 configuration
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
}
# What the output rows and the inputs of a parameter belong to, by module; None is never cut (tokens, the width of a head).
AXES = {
    "embed_tokens": (None, "channels"),
    "lm_head": (None, "channels"),
    "input_layernorm": ("channels",),
    "post_attention_layernorm": ("channels",),
    "norm": ("channels",),
    "q_proj": ("queries", "channels"),
    "k_proj": ("keys", "channels"),
    "v_proj": ("keys", "channels"),
    "o_proj": ("channels", "queries"),
    "q_norm": (None,),
    "k_norm": (None,),
    "gate_proj": ("neurons", "channels"),
    "up_proj": ("neurons", "channels"),
    "down_proj": ("channels", "neurons"),
}


@dataclass(frozen=True)
class Importance:
    """How much each unit is active on the calibration rows; larger is more important. Comparable within a row of a matrix only."""

    channels: Float[Tensor, " channels"]
    neurons: Float[Tensor, "layers neurons"]
    groups: Float[Tensor, "layers groups"]  # key-value groups: one key and value head with its query heads


@dataclass(frozen=True)
class KeptUnits:
    """Indices that stay, in ascending order."""

    channels: Int[Tensor, " kept_channels"]
    neurons: Int[Tensor, "layers kept_neurons"]
    groups: Int[Tensor, "layers kept_groups"]


def cut_to_shape(model: nn.Module, narrow: Model, rows: Sequence[Row]) -> nn.Module:
    """A narrower Qwen3 model made of the most important units of `model`, which stays as it is; same rows, same result.

    Everything but the sizes of `narrow` is the base's: RoPE, epsilon, attention kernel, special ids, tied or untied head.
    Raises ValueError where `narrow` is not a narrower form of the base.
    """
    check_cut(model, narrow)
    return keep_units(model, narrow, choose_units(measure_importance(model, rows), narrow))


def check_cut(model: nn.Module, narrow: Model) -> None:
    """Raise ValueError where `model` cannot be cut to the shape `narrow`."""
    if model.config.model_type != narrow.family:
        raise ValueError(f"a model of type {model.config.model_type!r} cannot be cut, only {narrow.family}; leave the Dcut arms out")
    base = {size: getattr(model.config, name) for size, name in SIZES.items()}
    for size, wanted in ((size, getattr(narrow, size)) for size in SIZES):
        if size in ("layers", "head_dim") and wanted != base[size]:
            raise ValueError(
                f"{size} of the narrow shape is {wanted}, but a cut keeps the base's {base[size]}; change channels, neurons or heads"
            )
        if wanted > base[size]:
            raise ValueError(f"{size} of the narrow shape is {wanted}, but the base has only {base[size]}; choose at most that")
    if narrow.heads * base["kv_heads"] != narrow.kv_heads * base["heads"]:
        raise ValueError(
            f"the narrow shape has {narrow.heads} heads on {narrow.kv_heads} kv_heads, but heads go as whole key-value groups, of "
            f"{base['heads'] // base['kv_heads']} heads each in the base; choose heads = {base['heads'] // base['kv_heads']} x kv_heads"
        )


def measure_importance(model: nn.Module, rows: Sequence[Row]) -> Importance:
    """Minitron's importance of every channel, neuron and key-value group over calibration rows, (batch=L2, seq=mean).

    Costs one forward pass without the head. Raises ValueError without rows or where an activation is not finite.
    """
    if not rows:
        raise ValueError("no rows to measure importance on; give at least one calibration row")
    watched = list(_watched(model))
    norms = _norms_over_rows(model, rows, watched)
    scores = {kind: torch.stack([norm for norm, seen in zip(norms, watched, strict=True) if seen[0] == kind]) for kind in UNITS}
    if broken := [kind for kind, score in scores.items() if not torch.isfinite(score).all()]:
        raise ValueError(f"the importance of {broken} is not finite; look at the weights and the calibration rows")
    return Importance(scores["channels"].sum(0), scores["neurons"], scores["groups"])


Watched = tuple[str, nn.Module, Callable[[Tensor, Tensor], Tensor]]


@torch.no_grad()
def _norms_over_rows(model: nn.Module, rows: Sequence[Row], watched: Sequence[Watched]) -> list[Float[Tensor, " units"]]:
    """Of each watched place, sqrt(sum over rows of (mean over tokens of |activation|)^2).

    Rows run one at a time: padding tokens would enter the means. Sums are in float64, so that hub models in bfloat16 lose nothing.
    """
    squares = [torch.zeros((), dtype=torch.float64)] * len(watched)

    def add(index: int, read: Callable, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        squares[index] = squares[index] + read(inputs[0][0].double(), output[0].double()).abs().mean(0).cpu() ** 2

    handles = [module.register_forward_hook(partial(add, index, read)) for index, (_, module, read) in enumerate(watched)]
    was_training = model.training
    try:
        model.eval()
        for row in rows:
            model.model(torch.from_numpy(row.ids)[None].to(model.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
    return [square.sqrt() for square in squares]


def _watched(model: nn.Module) -> Iterator[Watched]:
    """Kind of unit, module, and how to read (tokens, units) off its input and output; layers in order."""
    layers = model.model.layers
    for norm in [module for layer in layers for module in (layer.input_layernorm, layer.post_attention_layernorm)] + [model.model.norm]:
        yield "channels", norm, lambda inputs, output: output
    for layer in layers:
        yield "neurons", layer.mlp.down_proj, lambda inputs, output: inputs
        shape = (model.config.num_key_value_heads, -1)
        yield "groups", layer.self_attn.o_proj, lambda inputs, output, shape=shape: inputs.unflatten(1, shape).norm(dim=2)


def choose_units(importance: Importance, narrow: Model) -> KeptUnits:
    """The most important units; of equally important ones the lower index stays."""
    return KeptUnits(
        _highest(importance.channels, narrow.hidden), _highest(importance.neurons, narrow.ffn), _highest(importance.groups, narrow.kv_heads)
    )


def _highest(importance: Float[Tensor, "*layers units"], count: int) -> Int[Tensor, "*layers kept"]:
    return torch.argsort(importance, dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values


def keep_units(model: nn.Module, narrow: Model, kept: KeptUnits) -> nn.Module:
    """A trainable model of shape `narrow` with the weights that `model` has between the kept units."""
    configuration = copy.deepcopy(model.config)
    for size, name in SIZES.items():
        setattr(configuration, name, getattr(narrow, size))
    with torch.random.fork_rng(devices=[]):  # the initial weights are all overwritten; drawing them must not move anyone's generator
        smaller = type(model)(configuration).to(model.device, model.dtype)
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            *path, module, _ = name.split(".")
            layer = int(path[2]) if "layers" in path else None
            parameter.copy_(_piece(model.get_parameter(name), AXES[module], _indices(kept, layer, narrow)))
    return smaller


def _indices(kept: KeptUnits, layer: int | None, narrow: Model) -> Mapping[str, Int[Tensor, " kept"]]:
    """Kept indices of every axis that is cut; queries and keys are rows, `head_dim` of them a head."""
    if layer is None:
        return {"channels": kept.channels}
    queries = narrow.heads // narrow.kv_heads * narrow.head_dim
    return {
        "channels": kept.channels,
        "neurons": kept.neurons[layer],
        "queries": _spread(kept.groups[layer], queries),
        "keys": _spread(kept.groups[layer], narrow.head_dim),
    }


def _spread(groups: Int[Tensor, " groups"], rows: int) -> Int[Tensor, " rows"]:
    """The rows of groups that own `rows` consecutive rows each."""
    return (groups[:, None] * rows + torch.arange(rows)).flatten()


def _piece(weight: Tensor, axes: tuple[str | None, ...], indices: Mapping[str, Int[Tensor, " kept"]]) -> Tensor:
    """The part of a weight, or of a bias (its first axis), that lies between kept units."""
    for axis, kind in enumerate(axes[: weight.ndim]):
        if kind is not None:
            weight = weight.index_select(axis, indices[kind].to(weight.device))
    return weight
