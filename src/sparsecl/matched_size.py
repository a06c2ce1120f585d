"""Matched non-zeros: parameters of a dense shape and non-zeros of a sparse arm, in closed form (paper, section Controls).

`Dnz` and `Dcut` are narrower dense models with as many parameters as a sparse arm has non-zeros. Everything counts:
linear layers, embeddings, norms, and the head once, because it is tied to the embedding. Nothing here imports torch.
"""

from collections.abc import Iterator

from sparsecl.settings import Model
from sparsecl.topologies import check_size, parse_topology

MOST_DIFFERENCE = 0.01  # of the non-zeros: beyond this a dense model does not count as matched
MULTIPLE = 4  # suggested sizes are multiples of this many units


def dense_parameters(model: Model, vocabulary: int) -> int:
    """Parameters of a Qwen3 model of this shape with `vocabulary` tokens, the tied head counted once."""
    return _always_dense(model, vocabulary) + model.layers * sum(outputs * inputs for outputs, inputs in model.linear_shapes().values())


def _always_dense(model: Model, vocabulary: int) -> int:
    """What no conversion prunes: embeddings; two norms a layer and the last one; the norms of queries and keys, one for all heads."""
    return vocabulary * model.hidden + model.layers * (2 * model.hidden + 2 * model.head_dim) + model.hidden


def sparse_nonzeros(model: Model, vocabulary: int, density: float, topology: str = "unstructured") -> int:
    """Weights of a converted model that may be non-zero: of each linear layer the attained share, the rest whole.

    One dense model serves all topologies of a density, so the default is the topology that attains any density to within
    a weight a row; N:M attains its own density and blocks the nearest possible one, whatever `density` asks for. Raises
    TopologyMisfit where a layer does not divide.
    """
    structure, kept = parse_topology(topology), 0
    for name, (outputs, inputs) in model.linear_shapes().items():
        check_size(structure, name, outputs, inputs)
        kept += outputs * structure.kept_of(inputs, density)
    return _always_dense(model, vocabulary) + model.layers * kept


def relative_difference(narrow: Model, model: Model, vocabulary: int, density: float, topology: str = "unstructured") -> float:
    """How many more parameters `narrow` has than `model` has non-zeros at `density`, as a fraction of the non-zeros."""
    nonzeros = sparse_nonzeros(model, vocabulary, density, topology)
    return (dense_parameters(narrow, vocabulary) - nonzeros) / nonzeros


def check_matched(narrow: Model, model: Model, vocabulary: int, density: float, topology: str = "unstructured") -> None:
    """Raise ValueError with both counts where `narrow` is more than 1 % away from the non-zeros of `model` at `density`."""
    difference = relative_difference(narrow, model, vocabulary, density, topology)
    if abs(difference) > MOST_DIFFERENCE:
        raise ValueError(
            f"the narrow model has {dense_parameters(narrow, vocabulary)} parameters, but the sparse one at density {density:g} has "
            f"{sparse_nonzeros(model, vocabulary, density, topology)} non-zeros: {difference:+.2%} apart, wanted at most "
            f"{MOST_DIFFERENCE:.0%}; change hidden or ffn (sparsecl.matched_size.suggest_narrow names shapes)"
        )


def suggest_narrow(model: Model, vocabulary: int, density: float) -> list[Model]:
    """Narrower shapes within 1 % of the non-zeros of `model` at `density`, those first that change its proportions least.

    Sizes are multiples of 4; layers and the width of a head stay, and heads go as whole key-value groups, so that every shape can
    also be cut from the base. For each width and number of groups there is one shape, with the neurons that come nearest.
    Raises ValueError where no shape comes within 1 %.
    """
    shapes = [shape for shape in _nearest_shapes(model, vocabulary, density) if _is_matched(shape, model, vocabulary, density)]
    if not shapes:
        raise ValueError(
            f"no shape with sizes in multiples of {MULTIPLE} has within {MOST_DIFFERENCE:.0%} of "
            f"{sparse_nonzeros(model, vocabulary, density)} parameters; a smaller vocabulary or a wider model leaves more to choose from"
        )
    return sorted(
        shapes, key=lambda shape: (_distortion(shape, model), abs(relative_difference(shape, model, vocabulary, density)), shape.hidden)
    )


def _is_matched(narrow: Model, model: Model, vocabulary: int, density: float) -> bool:
    return abs(relative_difference(narrow, model, vocabulary, density)) <= MOST_DIFFERENCE


def _nearest_shapes(model: Model, vocabulary: int, density: float) -> Iterator[Model]:
    wanted = sparse_nonzeros(model, vocabulary, density)
    for hidden in range(MULTIPLE, model.hidden + 1, MULTIPLE):
        for groups in range(1, model.kv_heads + 1):
            heads = groups * (model.heads // model.kv_heads)
            narrow = model.model_copy(update={"hidden": hidden, "heads": heads, "kv_heads": groups, "ffn": MULTIPLE})
            missing = wanted - dense_parameters(narrow, vocabulary)
            neurons = MULTIPLE + MULTIPLE * round(missing / (3 * MULTIPLE * hidden * model.layers))  # gate, up and down
            if MULTIPLE <= neurons <= model.ffn:
                yield narrow.model_copy(update={"ffn": neurons})


def _distortion(narrow: Model, model: Model) -> float:
    """The largest over the smallest of the shares kept of channels, neurons and heads: 1 where the proportions are the base's."""
    shares = [getattr(narrow, size) / getattr(model, size) for size in ("hidden", "ffn", "heads")]
    return max(shares) / min(shares)
