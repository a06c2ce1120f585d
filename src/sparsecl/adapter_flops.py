"""FLOPs of training low-rank adapters on frozen weights, counted from the shape (paper, Table of costs).

On a dense arm PEFT computes ``W x + B (A x)``; on a sparse one the adapted weight ``W + M * (B A)`` is formed in every step
(`continual_methods.masked_lora`). Embedding and head are frozen, so that nothing before the first layer's adapters needs a
gradient. Not counted: the merge at a stage's end. That the counts are torch's is tested.
"""

from sparsecl.flops import Consumption, Products, linear_weights, same, spared_first_input_gradients, training_flops
from sparsecl.settings import Model


def adapter_weights(model: Model, rank: int) -> int:
    """Weights of the adapters of all prunable linear layers."""
    return model.layers * rank * sum(outputs + inputs for outputs, inputs in model.linear_shapes().values())


def lora_flops(model: Model, vocabulary: int, consumption: Consumption, rank: int) -> Products:
    """Training of adapters beside dense weights: the base forms no weight gradient, the adapters all three products.

    The first layer's query, key and value adapters see an input that needs no gradient, so that A's is not formed there.
    """
    base, adapters = linear_weights(model), adapter_weights(model, rank)
    whole = training_flops(model, vocabulary, consumption, Products(base + adapters, base + adapters, adapters))
    first = 2 * consumption.tokens * 3 * rank * model.hidden
    return whole + _frozen_head(model, vocabulary, consumption) + _first_layer(model, consumption) + Products(0, -first, 0)


def masked_lora_flops(model: Model, vocabulary: int, consumption: Consumption, steps: int, rank: int, weights: int) -> Products:
    """Training of adapters under a mask, `weights` of the linear layers taking part: all (executed), or the kept ones (theory).

    Every step forms B A at these weights, and from their gradient those of B and A.
    """
    update = 2 * steps * rank * weights
    whole = training_flops(model, vocabulary, consumption, same(weights)) + Products(update, 0, 2 * update)
    share = weights / linear_weights(model)
    first = _first_layer(model, consumption).input_gradient
    return whole + _frozen_head(model, vocabulary, consumption) + Products(0, round(share * first), 0)


def _first_layer(model: Model, consumption: Consumption) -> Products:
    return spared_first_input_gradients(model, consumption.tokens, layers=1)


def _frozen_head(model: Model, vocabulary: int, consumption: Consumption) -> Products:
    head = training_flops(model, vocabulary, Consumption(0, 0, consumption.predicted))
    return Products(0, 0, -head.weight_gradient)
