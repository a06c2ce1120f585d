"""What sparse weights gain at inference: the same weights run dense and in sparse formats (H2; paper, section Efficiency).

A *stack* is a format with its kernels: `dense` multiplies the zeros too; `csr` is PyTorch's compressed rows, for any mask;
`bsr` its compressed blocks; `semi-structured` its 2:4 format, which has CUDA kernels only. Where a stack has no kernel for a
device or a dtype, its row says why and holds no time. The passes of all stacks take turns, so that what else the machine
does falls on all of them, and the gain is the median of the paired ratios.
"""

import copy
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sparsecl.arms import Arm
from sparsecl.experiment import Experiment
from sparsecl.flops import Consumption, linear_weights, same, training_flops
from sparsecl.lineage import ArmCheckpoint
from sparsecl.masks import Masks, prunable_weights
from sparsecl.records import Stopwatch
from sparsecl.settings import Model
from sparsecl.topologies import Blocks, parse_topology

DENSE = "dense"
REPETITIONS = 7  # rounds of one pass a stack; a first one warms up and is not counted


@dataclass(frozen=True)
class Load:
    """What is passed through the model at once: `rows` rows of `tokens` tokens."""

    rows: int
    tokens: int

    def consumption(self) -> Consumption:
        tokens = self.rows * self.tokens
        return Consumption(tokens, tokens * self.tokens, tokens)


LOADS = (Load(1, 1), Load(8, 32))  # latency of one token, throughput of a batch


def in_blocks(weight: Tensor, arm: Arm) -> Tensor:
    size = parse_topology(arm.topology).size
    return weight.to_sparse_bsr((size, size))


FORMATS: Mapping[str, Callable[[Tensor, Arm], Tensor]] = {
    "csr": lambda weight, arm: weight.to_sparse_csr(),
    "bsr": in_blocks,
    "semi-structured": lambda weight, arm: torch.sparse.to_sparse_semi_structured(weight),
}


def stacks_of(arm: Arm) -> tuple[str, ...]:
    """The formats that could hold the weights of a sparse arm."""
    if isinstance(parse_topology(arm.topology), Blocks):
        return "csr", "bsr"
    return ("csr", "semi-structured") if arm.topology == "2of4" else ("csr",)


def inference_table(experiment: Experiment, checkpoints: Sequence[ArmCheckpoint]) -> list[dict]:
    """Rows of inference.csv of a replicate; empty where no recovered arm is sparse."""
    measured = measured_arms([checkpoint.arm for checkpoint in checkpoints])
    shape = experiment.study.model
    return [
        row
        for found in checkpoints
        if found.arm in measured
        for row in inference_rows(found.model, found.arm, found.masks, shape, experiment.replicate, experiment.device)
    ]


def measured_arms(arms: Sequence[Arm]) -> list[Arm]:
    """One arm a topology, by the main algorithm: speed depends on where the zeros are, not on how they came there."""
    return [arm for arm in arms if arm.name == f"S1-{arm.topology}"]


def converted(model: nn.Module, arm: Arm, stack: str) -> nn.Module:
    """A copy of `model` with its pruned weights in the stack's format; RuntimeError where PyTorch has none for device or dtype."""
    model = copy.deepcopy(model).eval()
    for name, weight in prunable_weights(model).items():
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.weight = nn.Parameter(FORMATS[stack](weight.detach(), arm), requires_grad=False)
    return model


def inference_rows(model: nn.Module, arm: Arm, masks: Masks, shape: Model, seed: int | str, device: str) -> Iterator[dict]:
    """Rows of inference.csv for one arm; `gain_theoretical` is the dense FLOPs of a pass over those with masked weights free.

    `seconds` is the median of a pass and `gain_measured` the dense seconds over the stack's, absent where there is no kernel.
    """
    for load in LOADS:
        ids = torch.randint(model.config.vocab_size, (load.rows, load.tokens), generator=torch.Generator().manual_seed(0)).to(model.device)
        dense = copy.deepcopy(model).eval()
        for stack in stacks_of(arm):
            try:
                pairs, kernel = paired_seconds(dense, converted(model, arm, stack), ids), "measured"
            except (RuntimeError, NotImplementedError) as error:
                pairs, kernel = [], f"no kernel: {str(error).splitlines()[0][:100]}"
            yield {
                "arm": arm.name,
                "stack": stack,
                "seed": seed,
                "rows": load.rows,
                "tokens": load.tokens,
                "kernel": kernel,
                "gain_theoretical": theoretical_gain(shape, model.config.vocab_size, masks, load),
                "gain_measured": statistics.median(a / b for a, b in pairs) if pairs else None,
                "seconds_dense": statistics.median(a for a, _ in pairs) if pairs else None,
                "seconds": statistics.median(b for _, b in pairs) if pairs else None,
                "device": device,
                "dtype": str(model.dtype).removeprefix("torch."),
            }


def theoretical_gain(shape: Model, vocabulary: int, masks: Masks, load: Load) -> float:
    """Forward FLOPs of the whole model, attention and head included, over those with masked weights free."""
    everything = linear_weights(shape)
    dense, sparse = (
        training_flops(shape, vocabulary, load.consumption(), same(weights)).forward
        for weights in (everything, everything - masks.size + masks.kept)
    )
    return dense / sparse


@torch.no_grad()
def paired_seconds(dense: nn.Module, sparse: nn.Module, ids: Int[Tensor, "rows tokens"]) -> list[tuple[float, float]]:
    """Seconds of a forward pass, head included, of both models in turn."""
    rounds = [tuple(_seconds(model, ids) for model in (dense, sparse)) for _ in range(REPETITIONS + 1)]
    return rounds[1:]


def _seconds(model: nn.Module, ids: Tensor) -> float:
    _wait(ids)
    watch = Stopwatch()
    model(ids, use_cache=False)
    _wait(ids)
    return watch.seconds()


def _wait(ids: Tensor) -> None:
    if ids.is_cuda:
        torch.cuda.synchronize(ids.device)
