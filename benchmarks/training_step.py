"""Cost of a training step under a mask beside a dense one, measured side by side, on the built-in study's model and rows.

    ./run_all.sh --bench

One training per variant, a thread each; they hand each other the turn after every step, so that whatever else the machine
does meets all alike, and every step is compared with the dense step on the same batch right before or after it. Seconds are CPU
seconds of the thread. Reported are the median of these ratios with its interval, and for a variant with masks what a stage of
100 steps pays once beside its steps: hooks at its start, the check that masked weights are zero at its end.

Ends with status 1 where the masked step misses its limit. `dense again` has the same cost by construction: what it shows
beside 1 is the error of the measurement.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the package is imported; bars of several loops would mix

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from sparsecl.continual_methods.lora import add_adapters
from sparsecl.masks import ConfinedUpdates, Masks, apply_masks, assert_masks, masked_gradients, prunable_weights
from sparsecl.modeling import build_model
from sparsecl.study_files import load_study
from sparsecl.suites import build_suite
from sparsecl.tokenizer import Row, encode, train_tokenizer
from sparsecl.training import plan_batches, train

MOST = 1.03  # of a dense step
STEPS, WARM = 250, 10
DENSE, STAGE = "dense", 100


@dataclass(frozen=True)
class Variant:
    """A model ready for a stage, and the masks that `train` is given."""

    model: nn.Module
    masks: Masks | None = None
    update_masks: Masks | None = None
    beside: str = DENSE  # the variant whose step it is compared with
    limit: float = float("nan")


class Turns:
    """Lets trainings take one step after the other, and keeps the CPU seconds of every step."""

    def __init__(self, count: int) -> None:
        self.seconds: list[list[float]] = [[] for _ in range(count)]
        self.failure: BaseException | None = None
        self._turn, self._changed = 0, threading.Condition()

    def take(self, place: int) -> None:
        """Wait for one's turn and start the clock."""
        with self._changed:
            self._changed.wait_for(lambda: self.failure or self._turn == place)
        if self.failure:
            raise RuntimeError("another training failed") from self.failure
        self._started = time.thread_time()

    def step(self, place: int, is_last: bool) -> None:
        """Stop the clock, hand the turn on, and wait for the next one."""
        self.seconds[place].append(time.thread_time() - self._started)
        with self._changed:
            self._turn = (place + 1) % len(self.seconds)
            self._changed.notify_all()
        if not is_last:
            self.take(place)

    def fail(self, error: BaseException) -> None:
        """End the waiting of the others."""
        with self._changed:
            self.failure = self.failure or error
            self._changed.notify_all()


def random_masks(model: nn.Module) -> Masks:
    """Two of every four weights, anyhow: only the cost matters here."""
    pattern = torch.tensor([True, True, False, False])
    kept = {name: pattern.repeat(weight.numel() // 4).view_as(weight) for name, weight in prunable_weights(model).items()}
    return Masks("2of4", "random", 0.5, "", kept)


def variants(study, tokenizer) -> dict[str, Variant]:
    def fresh() -> nn.Module:
        return build_model(study.model, len(tokenizer), study.tokenizer.max_length, 0, {"pad_token_id": tokenizer.pad_token_id})

    def masked(model: nn.Module) -> nn.Module:
        apply_masks(model, masks)
        return model

    def adapted(model: nn.Module, masks: Masks | None) -> nn.Module:
        add_adapters(model, masks, study.continual.method_settings.lora)
        return model

    def eager(model: nn.Module) -> nn.Module:
        model.set_attn_implementation("eager")
        return model

    masks = random_masks(fresh())
    return {
        DENSE: Variant(fresh()),
        "masked": Variant(masked(fresh()), masks, limit=MOST),
        "dense again": Variant(fresh()),
        "updates masked (Dg)": Variant(fresh(), update_masks=masks),
        "dense LoRA": Variant(adapted(fresh(), None)),
        "masked LoRA": Variant(adapted(masked(fresh()), masks), beside="dense LoRA"),
        "dense, eager attention": Variant(eager(fresh())),
    }


def stage_rows(study) -> tuple[list[Row], object]:
    """The rows of a stage, and the tokenizer."""
    suite = build_suite(study, 0)
    tokenizer = train_tokenizer(suite.pretraining, study.tokenizer.vocabulary)
    return encode(tokenizer, suite.train[suite.domains[0]], study.tokenizer.max_length), tokenizer


def seconds_of_steps(chosen: dict[str, Variant], rows: list[Row], study) -> dict[str, np.ndarray]:
    """CPU seconds of every step of every variant along one plan."""
    settings = study.continual.stage(study.continual.learning_rates[0], STEPS)
    plan = plan_batches([len(row.ids) for row in rows], STEPS, settings.batch, np.random.default_rng(0))
    turns = Turns(len(chosen))

    def work(place: int, variant: Variant) -> None:
        torch.set_num_threads(1)  # a setting of the thread
        try:
            turns.take(place)
            train(
                variant.model, rows, plan, settings, description="benchmark", masks=variant.masks, update_masks=variant.update_masks,
                after_step=lambda step: turns.step(place, step == STEPS),
            )  # fmt: skip
        except Exception as error:
            turns.fail(error)

    threads = [threading.Thread(target=work, args=item) for item in enumerate(chosen.values())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if turns.failure:
        raise turns.failure
    return {name: np.array(seconds[WARM:]) for name, seconds in zip(chosen, turns.seconds, strict=True)}


def once_a_stage(variant: Variant) -> float:
    """CPU seconds that masks cost a stage beside its steps."""

    def once() -> None:
        held = None if variant.update_masks is None else ConfinedUpdates(variant.model, variant.update_masks)
        with masked_gradients(variant.model, variant.masks or variant.update_masks):
            assert_masks(variant.model, variant.masks, "in the benchmark")
        del held

    return median_seconds(once)


def median_seconds(action: Callable[[], None], repetitions: int = 15) -> float:
    found = []
    for _ in range(repetitions):
        started = time.thread_time()
        action()
        found.append(time.thread_time() - started)
    return float(np.median(found))


def main() -> int:
    torch.set_num_threads(1)
    study = load_study("builtin")
    rows, tokenizer = stage_rows(study)
    chosen = variants(study, tokenizer)
    seconds = seconds_of_steps(chosen, rows, study)
    table = []
    for name, variant in chosen.items():
        ratios = seconds[name] / seconds[variant.beside]
        interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
        once = once_a_stage(variant) / (STAGE * np.median(seconds[variant.beside]))
        table.append(
            (
                name,
                1000 * np.median(seconds[name]),
                variant.beside,
                np.median(ratios),
                interval.low,
                interval.high,
                variant.limit,
                100 * once,
            )
        )
    names = ["step", "median ms", "beside", "ratio", "low", "high", "at most", f"once, % of {STAGE} steps"]
    table = pd.DataFrame(table, columns=names)
    print(table.round(3).to_string(index=False, na_rep="-"))
    missed = table[table["ratio"] > table["at most"]]
    for row in missed.itertuples():
        print(f"limit missed: a {row.step} step costs {row.ratio:.3f} dense steps, at most {MOST} were promised")
    return 1 if len(missed) else 0


if __name__ == "__main__":
    sys.exit(main())
