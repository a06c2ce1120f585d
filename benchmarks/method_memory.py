"""Peak memory and time of a training stage under every method of continual fine-tuning, beside full fine-tuning.

    ./run_all.sh --bench

A Qwen3 of realistic proportions (width 512, feed-forward 1536, 4 layers, random weights), dense, on random rows of 64 tokens in
batches of 8, with the settings of the built-in study of implicit sparsity. A process of its own for every method runs two
stages of few steps, so that what a method carries on from a finished domain (a buffer, adapters, a basis, a Fisher information)
is there and in use. `peak` is the largest resident size of that process beyond that of one which only loads the model: weights
are in neither, gradients, AdamW's moments, activations and the method's own needs are. Few rows of the finished domain are read
(64), one pass of the selection; more of them make a stage longer, not larger.

A step is timed afterwards in the same process, in turns with one of full fine-tuning on a second model: the median of the ratios
with its interval, CPU seconds of a thread each. What a stage does before and after its steps is not in it.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the package is imported; bars of several loops would mix

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn
from training_step import Turns

from sparsecl.config import Model
from sparsecl.continual_methods import MAKERS, Method, StageContext, method_of
from sparsecl.methods import FULL
from sparsecl.modeling import build_model
from sparsecl.randomness import generator, stream_seed
from sparsecl.records import peak_memory_bytes
from sparsecl.study_files import load_study
from sparsecl.tokenizer import Row
from sparsecl.training import train

STUDY = "builtin-implicit"
SHAPE = Model(family="qwen3", hidden=512, ffn=1536, layers=4, heads=8, kv_heads=4, head_dim=64)
VOCABULARY, LENGTH, ROWS, BATCH = 4096, 64, 64, 8
SPECIALS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
DOMAINS = ("first", "second", "third")  # the third is only named: a last stage prepares nothing for a next one
STEPS, TIMED, WARM = 3, 14, 2  # the first steps of a timed stage hold what it does before them
LEARNING_RATE = 1e-3
LOADED = "model loaded"


def fresh_model() -> nn.Module:
    return build_model(SHAPE, VOCABULARY, LENGTH, 0, SPECIALS)


def rows_of(domain: str) -> list[Row]:
    """Rows of random tokens whose second half is the answer."""
    drawn = generator(0, 0, domain)
    return [Row(drawn.integers(3, VOCABULARY, LENGTH), LENGTH // 2) for _ in range(ROWS)]


def run_stage(method: Method, model: nn.Module, number: int, steps: int, after_step: Callable[[int], None] | None = None) -> None:
    """Stage `number` of a stream, counted from 0, as `sparsecl.continual` runs it."""
    study = load_study(STUDY)
    context = StageContext(
        domain=DOMAINS[number], earlier=DOMAINS[:number], is_last=number == len(DOMAINS) - 1, rows_of=rows_of, steps=steps, batch=BATCH,
        generator=lambda name: generator(0, 0, name), seed=lambda name: stream_seed(0, 0, name),
    )  # fmt: skip
    settings = study.continual.model_copy(update={"batch": BATCH}).stage(LEARNING_RATE, steps)
    with method.stage(model, None, context) as stage:
        train(
            model, stage.rows, stage.plan, settings, description=DOMAINS[number], masks=stage.masks, penalty=stage.penalty,
            constrain=stage.constrain, after_step=after_step,
        )  # fmt: skip


def step_ratios(method: Method, model: nn.Module) -> np.ndarray:
    """CPU seconds of every step of the last stage, over those of the step of full fine-tuning right before it."""
    turns = Turns(2)

    def work(place: int, method: Method, model: nn.Module, number: int) -> None:
        torch.set_num_threads(1)  # a setting of the thread
        try:
            turns.take(place)
            run_stage(method, model, number, TIMED, lambda step: turns.step(place, step == TIMED))
        except Exception as error:
            turns.fail(error)

    full = (0, method_of(FULL, load_study(STUDY).continual.method_settings), fresh_model(), 0)
    threads = [threading.Thread(target=work, args=run) for run in (full, (1, method, model, len(DOMAINS) - 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.failure:
        raise turns.failure
    beside, own = (np.array(seconds[WARM:]) for seconds in turns.seconds)
    return own / beside


def measured(name: str) -> tuple[int, np.ndarray | None]:
    """Peak of this fresh process, bytes, and the ratios of the steps; of LOADED alone there are none."""
    torch.set_num_threads(1)
    model = fresh_model()
    if name == LOADED:
        return peak_memory_bytes(), None
    method = method_of(name, load_study(STUDY).continual.method_settings)
    for number in range(len(DOMAINS) - 1):
        run_stage(method, model, number, STEPS)
    return peak_memory_bytes(), step_ratios(method, model)


def table_of(found: dict[str, tuple[int, np.ndarray | None]]) -> pd.DataFrame:
    loaded = found[LOADED][0]
    full = found[FULL][0] - loaded
    rows = []
    for name, (peak, ratios) in found.items():
        if ratios is not None:
            interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
            rows.append((name, (peak - loaded) / 1e6, (peak - loaded) / full, np.median(ratios), interval.low, interval.high))
    return pd.DataFrame(rows, columns=["method", "peak MB", "of full", "step, of full", "low", "high"])


def main() -> None:
    # No child starts with what another one has touched; nor with more of this process's peak, which Linux hands on, than the imports.
    context = multiprocessing.get_context("spawn")
    found = {}
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for name in (LOADED, *MAKERS):
            found[name] = processes.submit(measured, name).result()
    weights = 4 * sum(parameter.numel() for parameter in fresh_model().parameters()) / 1e6
    print(f"{LOADED}: {found[LOADED][0] / 1e6:.0f} MB, of which weights {weights:.0f} MB")
    print(table_of(found).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
