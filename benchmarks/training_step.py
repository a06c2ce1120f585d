"""Cost of a masked training step beside a dense one, and of eager beside fused attention, measured side by side.

    ./run_all.sh --bench

Interleaved repetitions on the builtin study's model; ratios of medians, because single timings are noisy.
"""

import statistics
import sys
import time

import numpy as np
import pandas as pd
import torch

from sparsecl.masks import Masks, apply_masks, prunable_weights
from sparsecl.modeling import build_model
from sparsecl.settings import Optimisation
from sparsecl.study_files import load_study
from sparsecl.tokenizer import Row
from sparsecl.training import plan_batches, train

STEPS, REPETITIONS = 15, 7


def random_masks(model) -> Masks:
    """Two of every four weights, anyhow: only the cost matters here."""
    pattern = torch.tensor([True, True, False, False])
    return Masks(
        "2of4",
        "random",
        0.5,
        "",
        {name: pattern.repeat(weight.numel() // 4).view_as(weight) for name, weight in prunable_weights(model).items()},
    )


def milliseconds(model, rows, masks: Masks | None) -> float:
    settings = Optimisation(steps=STEPS, batch=32, learning_rate=1e-3)
    plan = plan_batches([len(row.ids) for row in rows], STEPS, 32, np.random.default_rng(0))
    started = time.perf_counter()
    train(model, rows, plan, settings, description="benchmark", masks=masks)
    return (time.perf_counter() - started) / STEPS * 1000


def main() -> None:
    torch.set_num_threads(1)
    study, generator = load_study("builtin"), np.random.default_rng(0)
    rows = [Row(generator.integers(3, 768, generator.integers(14, 28)), 8) for _ in range(STEPS * 32)]
    models = {name: build_model(study.model, 768, 48, 0, {"pad_token_id": 0}) for name in ("dense", "masked", "fused attention")}
    models["fused attention"].set_attn_implementation("sdpa")
    masks = random_masks(models["masked"])
    apply_masks(models["masked"], masks)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(REPETITIONS):
        for name, model in models.items():
            times[name].append(milliseconds(model, rows, masks if name == "masked" else None))
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = pd.DataFrame({"median ms a step": medians, "beside dense": {name: value / medians["dense"] for name, value in medians.items()}})
    print(table.round(3).to_string())


if __name__ == "__main__":
    sys.exit(main())
