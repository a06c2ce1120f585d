"""What sparse weights gain at inference: dense against sparse kernels, measured (H2; paper, section Efficiency).

A *stack* is a way to run the same weights: `dense` multiplies the zeros too; `semi-structured` is PyTorch's 2:4 format,
which has CUDA kernels only; `block-sparse` is PyTorch's BSR format. The theoretical gain of the pruned layers is the
inverse of their density. Where a stack has no kernel for a topology, a device or a dtype, its row says so and holds no time.
"""

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparsecl.arms import Arm
from sparsecl.masks import prunable_weights
from sparsecl.records import Stopwatch
from sparsecl.topologies import Blocks, parse_topology

DENSE, SEMI_STRUCTURED, BLOCK_SPARSE = "dense", "semi-structured", "block-sparse"
REPETITIONS = 7  # the median of these; the first pass is not counted


@dataclass(frozen=True)
class Load:
    """What is passed through the model: `rows` rows of `tokens` tokens at once."""

    rows: int
    tokens: int


LOADS = (Load(1, 1), Load(16, 32))  # latency of a decoding step, throughput of scoring


def stacks_of(arm: Arm) -> tuple[str, ...]:
    """The stacks whose format could hold the weights of an arm; of others there is no kernel to look for."""
    if not arm.is_sparse:
        return (DENSE,)
    if isinstance(parse_topology(arm.topology), Blocks):
        return DENSE, BLOCK_SPARSE
    return (DENSE, SEMI_STRUCTURED) if arm.topology == "2of4" else (DENSE,)


def converted_to(model: nn.Module, arm: Arm, stack: str) -> nn.Module:
    """A copy of `model` whose pruned weights are in the stack's format. RuntimeError where PyTorch has none for device or dtype."""
    converted = copy.deepcopy(model).eval()
    if stack == DENSE:
        return converted
    for name, weight in prunable_weights(converted).items():
        module = converted.get_submodule(name.rpartition(".")[0])
        if stack == SEMI_STRUCTURED:
            sparse = torch.sparse.to_sparse_semi_structured(weight.detach())
        else:
            size = parse_topology(arm.topology).size
            sparse = weight.detach().to_sparse_bsr((size, size))
        module.weight = nn.Parameter(sparse, requires_grad=False)
    return converted


@torch.no_grad()
def seconds_of(model: nn.Module, ids: Int[Tensor, "rows tokens"]) -> float:
    """Median seconds of a forward pass, the head included."""
    found = []
    for _ in range(REPETITIONS + 1):
        _wait(ids)
        watch = Stopwatch()
        model(ids, use_cache=False)
        _wait(ids)
        found.append(watch.seconds())
    return statistics.median(found[1:])


def _wait(ids: Tensor) -> None:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)


def inference_rows(model: nn.Module, arm: Arm, density: float, seed: int | str, device: str) -> Iterator[dict]:
    """Rows of inference.csv for one arm; `density` is the attained one of its pruned layers.

    `seconds` and `tokens_per_s` are absent where there is no kernel, and `kernel` says why.
    """
    vocabulary = model.config.vocab_size
    for stack in stacks_of(arm):
        for load in LOADS:
            ids = torch.randint(vocabulary, (load.rows, load.tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
            try:
                seconds, kernel = seconds_of(converted_to(model, arm, stack), ids), "measured"
            except (RuntimeError, NotImplementedError) as error:
                seconds, kernel = None, f"no kernel: {str(error).splitlines()[0][:120]}"
            yield {
                "arm": arm.name,
                "stack": stack,
                "seed": seed,
                "rows": load.rows,
                "tokens": load.tokens,
                "gain_theoretical": 1.0 if stack == DENSE else 1 / density,
                "seconds": seconds,
                "tokens_per_s": None if seconds is None else load.rows * load.tokens / seconds,
                "kernel": kernel,
                "device": device,
                "dtype": str(model.dtype).removeprefix("torch."),
            }
