"""The shape of a study's base: a dense Qwen3, or a Qwen3.5 with routed experts (paper, section Models).

Nothing here imports torch: the workflow reads studies every time it plans.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparsecl.settings_types import Count, Positive, Settings

FULL_ATTENTION_EVERY = 4  # of the layers of Qwen3.5: the 4th, the 8th and so on
MIXTURE_FIELDS = (
    "experts", "experts_per_token", "shared_ffn", "delta_key_heads", "delta_value_heads", "delta_head_dim", "router_aux_coefficient",
)  # fmt: skip


class Model(Settings):
    """The shape of the base, pretrained by the run."""

    family: Literal["qwen3", "qwen3_5_moe"]
    """Architecture of the base, a transformers model type; with experts, every 4th layer has full attention, the others DeltaNet."""
    hidden: Count
    """Width of the residual stream, units."""
    ffn: Count
    """Neurons of each feed-forward layer, or of each routed expert, neurons."""
    layers: Count
    """Decoder layers, layers."""
    heads: Count
    """Attention heads, heads."""
    kv_heads: Count
    """Key and value heads, heads."""
    head_dim: Count
    """Width of a head, units."""
    attention: Literal["sdpa", "eager"] = "sdpa"
    """Implementation of attention: on a CPU eager is faster under bfloat16, the fused kernel in float32, name."""
    initializer_range: Positive = 0.02
    """Standard deviation of initial weights; narrow models need more than the usual 0.02, weight units."""
    experts: Annotated[int, Field(ge=2)] | None = None
    """Routed experts of each layer; absent in a dense model, like all that follows, experts."""
    experts_per_token: Count | None = None
    """Routed experts that a token goes to, experts."""
    shared_ffn: Count | None = None
    """Neurons of the shared expert, which every token passes, neurons."""
    delta_key_heads: Count | None = None
    """Key (and query) heads of a DeltaNet layer, heads."""
    delta_value_heads: Count | None = None
    """Value heads of a DeltaNet layer, heads."""
    delta_head_dim: Count | None = None
    """Width of a head of a DeltaNet layer, units."""
    router_aux_coefficient: Annotated[float, Field(ge=0)] | None = None
    """Weight of the load-balancing loss while the base is pretrained, and never afterwards; 0 for none, nats."""

    @model_validator(mode="after")
    def _heads_share_keys(self):
        if self.heads % self.kv_heads:
            raise ValueError(f"heads: {self.heads} is not a multiple of kv_heads {self.kv_heads}; choose a divisor of heads")
        return self

    @model_validator(mode="after")
    def _experts_fit(self):
        given = {name: getattr(self, name) for name in MIXTURE_FIELDS}
        if self.family == "qwen3":
            if present := [name for name, value in given.items() if value is not None]:
                raise ValueError(f"{present[0]}: {given[present[0]]}, but a qwen3 model has no experts; drop {present} or change family")
            return self
        if absent := [name for name, value in given.items() if value is None]:
            raise ValueError(f"{absent[0]}: absent, but family {self.family} needs all of {MIXTURE_FIELDS}; add {absent}")
        if self.experts_per_token >= self.experts:
            raise ValueError(f"experts_per_token: {self.experts_per_token} of {self.experts} experts; choose 1 to {self.experts - 1}")
        if self.layers < FULL_ATTENTION_EVERY:
            raise ValueError(
                f"layers: {self.layers} leaves no full-attention layer, which is every {FULL_ATTENTION_EVERY}th; "
                f"choose at least {FULL_ATTENTION_EVERY}"
            )
        if self.delta_value_heads % self.delta_key_heads:
            raise ValueError(
                f"delta_value_heads: {self.delta_value_heads} is not a multiple of delta_key_heads {self.delta_key_heads}; choose one"
            )
        return self

    def full_attention_layers(self) -> int:
        """Layers with full attention: all of a dense model, every 4th of one with experts (the other ones have DeltaNet)."""
        return self.layers // FULL_ATTENTION_EVERY if self.experts else self.layers

    def linear_counts(self) -> dict[str, int]:
        """How many matrices of each of `linear_shapes` a token passes on its way through all layers.

        With experts these are the active ones: of the routed experts `experts_per_token` in every layer.
        """
        full, delta = self.full_attention_layers(), self.layers - self.full_attention_layers()
        passed = {"self_attn": full, "linear_attn": delta, "mlp.experts": self.layers * (self.experts_per_token or 0)}
        return {name: passed.get(name.rpartition(".")[0], self.layers) for name in self.linear_shapes()}

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Shape (out, in) of every prunable linear layer of one decoder layer; with experts, of the layers of both kinds."""
        return self._mixture_shapes() if self.experts else self._dense_shapes()

    def _mixture_shapes(self) -> dict[str, tuple[int, int]]:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        delta_key, delta_value = self.delta_key_heads * self.delta_head_dim, self.delta_value_heads * self.delta_head_dim
        attention = {
            "self_attn.q_proj": (2 * query, self.hidden),  # the query, and the gate of the attention's output
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "linear_attn.in_proj_qkv": (2 * delta_key + delta_value, self.hidden),
            "linear_attn.in_proj_z": (delta_value, self.hidden),
            "linear_attn.out_proj": (self.hidden, delta_value),
        }
        for expert, neurons in (("mlp.experts", self.ffn), ("mlp.shared_expert", self.shared_ffn)):
            attention |= {f"{expert}.{part}_proj": (neurons, self.hidden) for part in ("gate", "up")}
            attention |= {f"{expert}.down_proj": (self.hidden, neurons)}
        return attention

    def _dense_shapes(self) -> dict[str, tuple[int, int]]:
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (query, self.hidden),
            "self_attn.k_proj": (key, self.hidden),
            "self_attn.v_proj": (key, self.hidden),
            "self_attn.o_proj": (self.hidden, query),
            "mlp.gate_proj": (self.ffn, self.hidden),
            "mlp.up_proj": (self.ffn, self.hidden),
            "mlp.down_proj": (self.hidden, self.ffn),
        }
