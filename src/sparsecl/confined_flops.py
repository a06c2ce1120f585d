"""FLOPs of training feed-forward layers alone, all else frozen (paper, Table of costs; methods activation-mask and -branch).

Embedding and head are frozen, so that the head's weight gradient is not formed, and nothing in the first layer before the
output of its neurons needs a gradient: not its attention, nor the inputs of its gate and up projections. Forming the branch
beside the weights, and zeroing gradients outside the paths, is no matrix product. That the counts are torch's is tested.
"""

from sparsecl.flops import Consumption, Products, linear_weights, training_flops
from sparsecl.settings import Model


def confined_flops(model: Model, vocabulary: int, consumption: Consumption, weights: Products) -> Products:
    """Training with these `weights` of the linear layers taking part; of `weight_gradient` those whose gradient is formed.

    Executed are all in the first two products and whole tensors in the third; in theory the kept ones, and those that move.
    With experts the first layer is counted as if it needed all input gradients.
    """
    whole = training_flops(model, vocabulary, consumption, weights)
    head = training_flops(model, vocabulary, Consumption(0, 0, consumption.predicted)).weight_gradient
    return whole + Products(0, 0, -head) + (Products(0, 0, 0) if model.experts else _first_layer(model, consumption, weights))


def _first_layer(model: Model, consumption: Consumption, weights: Products) -> Products:
    """Minus the input gradients that the first layer does without: of all its projections but the last, and of its attention."""
    spared = sum(outputs * inputs for name, (outputs, inputs) in model.linear_shapes().items() if name != "mlp.down_proj")
    share = weights.input_gradient / linear_weights(model)
    attention = training_flops(model, 0, Consumption(0, consumption.pairs, 0)).input_gradient // model.layers
    return Products(0, -round(share * 2 * consumption.tokens * spared) - attention, 0)
