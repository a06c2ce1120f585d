"""Cost of the gradient probe beside the forward and backward passes it cannot do without, measured side by side.

    ./run_all.sh --bench

A model with the proportions of a small Qwen3 (4 layers of width 512, random weights) reads batches of 8 rows of 64 to 128
tokens, on one thread. Every turn runs each variant over the same batches, in changing order, and compares it with the plain passes
of that turn: loss and gradients of all parameters, as a training forms them. `of the probed weights` forms only the gradients that
the probe reads, a stricter comparison. Set-up is in the probe's time and falls on a turn's few batches, where a study has
many. The table, whose cost does not depend on the model's size, is timed once, at the size of the built-in study of
implicit sparsity: four domains of 32 batches, rank 4, 100 exchanges of labels. Seconds are CPU seconds of the thread.

Ends with status 1 where the probe with its table misses its limit.
"""

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the package is imported

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from sparsecl.config import Model
from sparsecl.masks import Masks, prunable_weights
from sparsecl.modeling import build_model
from sparsecl.probing.gradient_table import gradient_table
from sparsecl.probing.gradients import COORDINATES, DIMENSION, GradientStatistics, GroupGradients, gradient_statistics, weight_groups
from sparsecl.tokenizer import Row
from sparsecl.training import pad_rows, token_weights, weighted_loss

MOST = 1.10  # of plain passes
TURNS, BATCHES, ROWS = 15, 4, 8
VOCABULARY, LENGTHS = 4096, (64, 128)
SHAPE = Model(family="qwen3", hidden=512, ffn=1536, layers=4, heads=8, kv_heads=4, head_dim=64)
DOMAINS, STUDY_BATCHES, RANK, PERMUTATIONS, TOP_FRACTION = 4, 32, 4, 100, 0.1
PLAIN, PROBE = "plain passes", "probe"


def random_batches(generator: np.random.Generator) -> list[list[Row]]:
    """Rows of random tokens whose second half is the answer."""
    lengths = generator.integers(LENGTHS[0], LENGTHS[1] + 1, (BATCHES, ROWS))
    return [[Row(generator.integers(3, VOCABULARY, length), int(length) // 2) for length in batch] for batch in lengths]


def plain_passes(model: nn.Module, batches: list[list[Row]], only: set[str] | None = None) -> None:
    """Forward and backward over the batches; gradients of the parameters named in `only`, or of all."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(only is None or name in only)
    for rows in batches:
        ids, lengths, starts = pad_rows(rows)
        model.zero_grad(set_to_none=True)
        weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], 0.0)).backward()


def half_masks(model: nn.Module) -> Masks:
    """Two of every four weights, anyhow: only the cost matters here."""
    pattern = torch.tensor([True, True, False, False])
    kept = {name: pattern.repeat(weight.numel() // 4).view_as(weight) for name, weight in prunable_weights(model).items()}
    return Masks("2of4", "given", 0.5, "", kept)


def variants(model: nn.Module, batches: list[list[Row]]) -> dict[str, Callable[[], None]]:
    def probe(masks: Masks | None) -> None:
        gradient_statistics(model, {"any": batches}, np.random.default_rng(0), masks=masks)

    probed = {name for weights in weight_groups(model).values() for name in weights}
    masks = half_masks(model)
    return {
        PLAIN: lambda: plain_passes(model, batches),
        "plain passes again": lambda: plain_passes(model, batches),
        "of the probed weights": lambda: plain_passes(model, batches, probed),
        PROBE: lambda: probe(None),
        "probe under masks": lambda: probe(masks),
    }


def seconds_of(action: Callable[[], None]) -> float:
    started = time.thread_time()
    action()
    return time.thread_time() - started


def seconds_of_turns(chosen: dict[str, Callable[[], None]], generator: np.random.Generator) -> pd.DataFrame:
    """CPU seconds of every variant, a row a turn; a first turn is not counted."""
    turns = []
    for _ in range(TURNS + 1):
        found = {name: seconds_of(chosen[name]) for name in generator.permutation(list(chosen))}
        turns.append(found)
    return pd.DataFrame(turns[1:])[list(chosen)]


def seconds_of_table(generator: np.random.Generator) -> float:
    """CPU seconds of the whole table of an arm."""
    count = DOMAINS * STUDY_BATCHES
    numbers = torch.Generator().manual_seed(0)
    groups = tuple(
        GroupGradients(
            layer, module, 10**6, torch.randn(count, DIMENSION, generator=numbers), torch.randn(count, COORDINATES, generator=numbers), True
        )
        for layer in range(SHAPE.layers)
        for module in ("attention", "ffn")
    )
    statistics = GradientStatistics(tuple(f"domain {index // STUDY_BATCHES}" for index in range(count)), groups)
    return seconds_of(lambda: gradient_table(statistics, TOP_FRACTION, RANK, PERMUTATIONS, generator))


def main() -> int:
    torch.set_num_threads(1)
    generator = np.random.default_rng(0)
    model = build_model(SHAPE, VOCABULARY, LENGTHS[1], 0, {"pad_token_id": 0}).eval()
    seconds = seconds_of_turns(variants(model, random_batches(generator)), generator)
    table = []
    for name in seconds:
        ratios = (seconds[name] / seconds[PLAIN]).to_numpy()
        interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
        table.append((name, 1000 * seconds[name].median() / BATCHES, np.median(ratios), interval.low, interval.high))
    table = pd.DataFrame(table, columns=["variant", "median ms a batch", "ratio", "low", "high"])
    print(table.round(3).to_string(index=False))
    share = seconds_of_table(generator) / (seconds[PLAIN].median() / BATCHES * DOMAINS * STUDY_BATCHES)
    whole = table.set_index("variant")["ratio"][PROBE] + share
    print(f"the table adds {share:.3f} of the plain passes over {DOMAINS} x {STUDY_BATCHES} batches: {whole:.3f} together")
    if whole > MOST:
        print(f"limit missed: the probe costs {whole:.3f} plain passes, at most {MOST} were promised")
    return 1 if whole > MOST else 0


if __name__ == "__main__":
    sys.exit(main())
