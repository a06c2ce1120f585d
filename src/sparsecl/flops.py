"""FLOPs of a model counted from its shape (paper, Table of costs; steps of the arms Df and Sf).

Counted are matrix products, a multiply-add as 2: the prunable linear layers, the two products of attention, the head. Not
counted: norms, softmax, activations, rotary angles, the optimizer, and the embedding, whose look-up is a copy and whose
gradient a sum (it shares its matrix with the head; it trains, so that the first layer too needs an input gradient).
Attention counts the whole square of scores, as `eager` computes it and torch's FlopCounterMode counts it; a causal kernel
could leave half of it out. Its backward pass is twice its forward pass; that fused kernels form the scores anew is not
counted. The head counts the positions whose loss weight is not zero, the only ones where `training.weighted_loss` forms
logits. Padding is not counted: arms are matched in real tokens, and batches bucketed by length pad less than 5 %.

With routed experts a token costs the weights that are active for it: its `experts_per_token` experts, the shared expert, the
router and the gates. A DeltaNet layer is counted as its recurrence (Yang et al. 2025, Gated Delta Networks, equation 10): for
each token and value head a product of the state with the key, one with the query, and an outer product; the chunked
kernel forms more products within chunks of 64 positions, and its convolution of four taps is not counted. Conversions and adapters
of models with experts are not counted (`require_dense`).

Three counts differ in the weights that take part in each product: all of them (what is executed, masks being applied to
dense arithmetic), only the kept ones (theory), or what a known kernel attains (`attainable_weights`).
Nothing here imports torch. That the counts are those of torch, and of actual masks, is tested.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from sparsecl.settings import Model
from sparsecl.topologies import Blocks, NofM, Topology


@dataclass(frozen=True)
class Consumption:
    """What the FLOPs of a piece of work depend on beside the model; real tokens, repetitions counted."""

    tokens: int
    pairs: int  # sum over rows of the squared length: the scores of one head
    predicted: int  # positions at which the head is computed

    def without_head(self) -> "Consumption":
        return replace(self, predicted=0)


def consumption_of(rows: Iterable[tuple[int, int]], prompt_weight: float) -> Consumption:
    """Training on rows given as (length, first answer token, at least 1); without `prompt_weight` only answers are predicted."""
    rows = list(rows)
    return Consumption(
        tokens=sum(length for length, _ in rows),
        pairs=sum(length**2 for length, _ in rows),
        predicted=sum(length - (1 if prompt_weight else start) for length, start in rows),
    )


@dataclass(frozen=True)
class Products:
    """One number for each of the three matrix products of training: FLOPs, or the weights that take part."""

    forward: int
    input_gradient: int
    weight_gradient: int

    @property
    def backward(self) -> int:
        return self.input_gradient + self.weight_gradient

    @property
    def total(self) -> int:
        return self.forward + self.backward

    def __add__(self, other: "Products") -> "Products":
        return Products(
            self.forward + other.forward, self.input_gradient + other.input_gradient, self.weight_gradient + other.weight_gradient
        )


def same(weights: int) -> Products:
    """The same weights in all three products: all of them, or in theory the kept ones."""
    return Products(weights, weights, weights)


def linear_weights(model: Model) -> int:
    """Weights of the prunable linear layers that a token passes: with experts the active ones, else all."""
    counts = model.linear_counts()
    return sum(counts[name] * rows * inputs for name, (rows, inputs) in model.linear_shapes().items())


def kept_weights(model: Model, topology: Topology, density: float) -> int:
    """Weights a mask of this topology keeps of `linear_weights`; exact for N:M and blocks, nominal for unstructured masks."""
    counts = model.linear_counts()
    return sum(counts[name] * rows * topology.kept_of(inputs, density) for name, (rows, inputs) in model.linear_shapes().items())


def require_dense(model: Model, work: str) -> None:
    """Raise ValueError where `model` has experts: `work` is counted for dense models alone."""
    if model.experts:
        raise ValueError(f"FLOPs of {work} are not counted for a model with {model.experts} experts; leave the count absent (None)")


def attainable_weights(model: Model, topology: Topology, density: float) -> Products:
    """Weights that take part where a known kernel leaves masked ones out.

    2:4 (sparse tensor cores; 1:4 or 2:8 is stored as 2:4): the forward product only. The zeros lie along the inputs of a row, so the
    transposed matrix of the input gradient is not 2:4, and the weight gradient would be a product of two dense matrices
    sampled at single weights. Other N:M and unstructured masks: none. Blocks: all three, for a transposed block-sparse matrix
    is block-sparse, and a weight gradient can be formed for the kept blocks alone.
    """
    everything, kept = linear_weights(model), kept_weights(model, topology, density)
    if isinstance(topology, Blocks):
        return same(kept)
    if isinstance(topology, NofM) and topology.kept <= 2 and topology.group % 4 == 0:
        return replace(same(everything), forward=everything // 2)
    return same(everything)


def training_flops(model: Model, vocabulary: int, consumption: Consumption, weights: Products | None = None) -> Products:
    """FLOPs of training on `consumption` with these `weights` of the linear layers taking part (None: all in every product)."""
    part = same(linear_weights(model)) if weights is None else weights
    tokens, head = consumption.tokens, 2 * consumption.predicted * model.hidden * vocabulary
    linears = Products(2 * tokens * part.forward, 2 * tokens * part.input_gradient, 2 * tokens * part.weight_gradient)
    mixing = _attention_flops(model, consumption.pairs)
    if model.experts:
        mixing += _recurrence_flops(model, tokens) + same(2 * tokens * _router_weights(model))
    return linears + same(head) + mixing


def _attention_flops(model: Model, pairs: int) -> Products:
    """Scores and their product with the values; both operands of both need a gradient, and none is a weight."""
    once = 2 * 2 * model.full_attention_layers() * model.heads * model.head_dim * pairs
    return Products(once, 2 * once, 0)


def _recurrence_flops(model: Model, tokens: int) -> Products:
    """Three products with the state of each value head for each token; both operands need a gradient, and none is a weight."""
    delta_layers = model.layers - model.full_attention_layers()
    once = 2 * 3 * delta_layers * model.delta_value_heads * model.delta_head_dim**2 * tokens
    return Products(once, 2 * once, 0)


def _router_weights(model: Model) -> int:
    """Linear weights that no conversion prunes: routers, gates of the shared experts, decay and step size of the DeltaNet heads."""
    delta_layers = model.layers - model.full_attention_layers()
    return model.hidden * (model.layers * (model.experts + 1) + delta_layers * 2 * model.delta_value_heads)


# Steps of equal FLOPs


def dense_steps_of_equal_flops(model: Model, vocabulary: int, steps: int, kept: int, consumption: Consumption) -> int:
    """Steps of a dense training (arm Df) that cost what `steps` sparse ones cost in theory: to the nearest, at least 1.

    `kept` weights of the linear layers are kept. `consumption` is that of the sparse training; only its proportions count,
    because the dense training draws from the same rows, whose mean cost a step is the same.
    """
    dense, sparse = _dense_and_sparse(model, vocabulary, kept, consumption)
    return _rescaled(steps, sparse, dense)


def sparse_steps_of_equal_flops(model: Model, vocabulary: int, steps: int, kept: int, consumption: Consumption) -> int:
    """The reverse (arm Sf): steps of a sparse training that cost in theory what `steps` dense ones cost."""
    dense, sparse = _dense_and_sparse(model, vocabulary, kept, consumption)
    return _rescaled(steps, dense, sparse)


def _dense_and_sparse(model: Model, vocabulary: int, kept: int, consumption: Consumption) -> tuple[int, int]:
    everything = linear_weights(model)
    if not 1 <= kept <= everything:
        raise ValueError(f"{kept} kept weights of {everything}: give the number of kept weights (flops.kept_weights), not a density")
    return tuple(training_flops(model, vocabulary, consumption, same(weights)).total for weights in (everything, kept))


def _rescaled(steps: int, spent: int, price: int) -> int:
    return max((2 * steps * spent + price) // (2 * price), 1)  # whole numbers: no rounding error, halves go up


# Conversions

# Leading terms of LAPACK's own counts (Anderson, Dongarra and Moore, LAPACK working note 41), times n^3.
CHOLESKY = 1 / 3
INVERSE_FROM_CHOLESKY = 2 / 3
INVERSE_BY_LU = 8 / 3  # torch.linalg.inv solves for the identity: 2/3 for the factors, 2 for the solutions


def sparsegpt_flops(model: Model, tokens: int) -> int:
    """SparseGPT beside its forward passes: for each layer a Hessian, its inverse, that one's Cholesky factor, the columns."""
    require_dense(model, "a conversion")
    return model.layers * sum(
        2 * tokens * inputs**2
        + round((2 * CHOLESKY + INVERSE_FROM_CHOLESKY) * inputs**3)
        + outputs * inputs * (inputs + 1)  # every column is subtracted from itself and all columns after it
        for outputs, inputs in model.linear_shapes().values()
    )


def block_sparsegpt_flops(model: Model, tokens: int, blocks: Blocks, density: float) -> int:
    """Block SparseGPT beside its forward passes: for each layer a Hessian, `block_saliency` and `refitted`."""
    require_dense(model, "a conversion")
    return model.layers * sum(
        2 * tokens * inputs**2 + saliency_flops(outputs, inputs, blocks) + refit_flops(outputs, inputs, blocks, density)
        for outputs, inputs in model.linear_shapes().values()
    )


def saliency_flops(outputs: int, inputs: int, blocks: Blocks) -> int:
    """`block_pruning.block_saliency`: the Hessian's inverse, an inverse for every group of inputs, and w^T A w for every block."""
    groups = (inputs // blocks.size) * INVERSE_BY_LU * blocks.size**3
    return round((CHOLESKY + INVERSE_FROM_CHOLESKY) * inputs**3 + groups) + 2 * outputs * inputs * (blocks.size + 1)


def refit_flops(outputs: int, inputs: int, blocks: Blocks, density: float) -> int:
    """`block_pruning.refitted`: for every block row the factor of its kept inputs, the product (W H)_K and two triangular solves."""
    kept = blocks.kept_of(inputs, density)
    return round(outputs // blocks.size * CHOLESKY * kept**3) + 2 * outputs * inputs * kept + 2 * outputs * kept**2


def regional_gradient_flops(model: Model, consumption: Consumption) -> Products:
    """Wanda++'s regional gradients: every decoder layer by itself, whose inputs need no gradient; the head is not run."""
    return training_flops(model, 0, consumption.without_head()) + spared_first_input_gradients(model, consumption.tokens, model.layers)


def mask_learning_flops(model: Model, vocabulary: int, consumption: Consumption, steps: int, candidates: int) -> Products:
    """Training of MaskLLM's logits: embedding and head are frozen, and each step draws a soft mask from all `candidates`.

    The draw is a product of (groups, candidates) with (candidates, group); it counts among the forward and the weight gradients.
    """
    whole = training_flops(model, vocabulary, consumption) + spared_first_input_gradients(model, consumption.tokens, 1)
    head = training_flops(model, vocabulary, Consumption(0, 0, consumption.predicted)).weight_gradient
    draw = 2 * steps * linear_weights(model) * candidates
    return whole + Products(draw, 0, draw - head)


def spared_first_input_gradients(model: Model, tokens: int, layers: int) -> Products:
    """Minus the input gradient of the projections that see the residual stream before anything trained does, in `layers` layers."""
    require_dense(model, "adapters and conversions")
    shapes = model.linear_shapes()
    first = sum(shapes[f"self_attn.{name}_proj"][0] * shapes[f"self_attn.{name}_proj"][1] for name in "qkv")
    return Products(0, -2 * tokens * layers * first, 0)
