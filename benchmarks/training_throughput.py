"""Training throughput beside `transformers.Trainer`, and how many of the computed tokens are padding.

    ./run_all.sh --bench

Both train the built-in study's model on the same rows, each row once, with the same batch, steps and optimiser in float32 on
one thread, in turns in one process. The Trainer has its defaults (random batches, padded to the longest row by its collator)
but for its output, which is off. Its clock runs from the first batch to the last step; ours covers the whole call. It is the
process's CPU clock: with one thread it tells the wall time of an idle machine, and what else a busy one does is not in it. Real
tokens are counted, so the ratio of times is the ratio of throughputs; it is taken within each turn, and its median is reported
with an interval. Between the two stand ours on random batches and ours with the head at every token: they say what padding and
logits cost; what then remains to the Trainer is its collator, its attention mask, logits of padding, and its loop.

Ends with status 1 where a limit of the project's budget is missed.
"""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

os.environ.setdefault("TQDM_DISABLE", "1")  # read when the package is imported; bars of two loops would mix

import numpy as np
import pandas as pd
import torch
from scipy import stats
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from sparsecl.config import Study
from sparsecl.items import Suite
from sparsecl.modeling import build_model
from sparsecl.randomness import generator
from sparsecl.settings import Optimisation
from sparsecl.study_files import load_study
from sparsecl.suites import build_suite
from sparsecl.tokenizer import PreTrainedTokenizerFast, Row, encode, train_tokenizer
from sparsecl.training import BETAS, BUCKET_BATCHES, plan_batches, train

LEAST_RATIO, MOST_PADDING = 1.5, 0.05
STEPS, TURNS = BUCKET_BATCHES, 15  # one bucket: what lies within it is as in a whole training
OURS, UNSORTED, ALL_LOGITS = "sparsecl", "sparsecl, random batches", "sparsecl, random batches, head at all tokens"
TRAINER, GROUPED = "Trainer", "Trainer, grouped by length"


@dataclass(frozen=True)
class Case:
    """One kind of training of the study; turns draw their rows from `pools` one after the other (a stage trains on one domain)."""

    name: str
    pools: Sequence[Sequence[Row]]
    settings: Optimisation


class Clock(TrainerCallback):
    """Seconds from the start of training to its last step, without what the Trainer does before and after."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = time.process_time()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.seconds = time.process_time() - self.started


def fresh_model(study: Study, tokenizer: PreTrainedTokenizerFast) -> torch.nn.Module:
    return build_model(study.model, len(tokenizer), study.tokenizer.max_length, 0, {"pad_token_id": tokenizer.pad_token_id})


def seconds_of_ours(model, case: Case, rows: Sequence[Row], plan: Sequence[np.ndarray], prompt_weight: float) -> float:
    settings = case.settings.model_copy(update={"prompt_weight": prompt_weight})
    started = time.process_time()
    train(model, rows, plan, settings, description="benchmark")
    return time.process_time() - started


def seconds_of_trainer(model, case: Case, rows: Sequence[Row], tokenizer: PreTrainedTokenizerFast, sampling: str, folder: str) -> float:
    """Prompts carry no label where our loss leaves them out; the Trainer knows no weight in between."""
    settings = case.settings
    start = [row.answer_start if settings.prompt_weight == 0 else 0 for row in rows]
    data = [
        {"input_ids": row.ids.tolist(), "labels": [-100] * first + row.ids[first:].tolist()} for row, first in zip(rows, start, strict=True)
    ]
    arguments = TrainingArguments(
        output_dir=folder, use_cpu=True, max_steps=settings.steps, per_device_train_batch_size=settings.batch,
        learning_rate=settings.learning_rate, lr_scheduler_type="cosine", warmup_steps=settings.warmup, weight_decay=settings.weight_decay,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=settings.clip, train_sampling_strategy=sampling,
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    clock = Clock()
    trainer = Trainer(model, arguments, DataCollatorForSeq2Seq(tokenizer), data, callbacks=[clock])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return clock.seconds


def seconds_of_turn(study: Study, tokenizer, case: Case, number: int, folder: str) -> dict[str, float]:
    """Seconds of every variant on the same rows, each from the same weights."""
    draw, pool = np.random.default_rng(number), case.pools[number % len(case.pools)]
    chosen = [pool[index] for index in draw.choice(len(pool), case.settings.steps * case.settings.batch, replace=False)]
    sorted_plan = plan_batches([len(row.ids) for row in chosen], case.settings.steps, case.settings.batch, draw)
    random_plan = np.array_split(draw.permutation(len(chosen)), case.settings.steps)
    ours = {
        OURS: (sorted_plan, case.settings.prompt_weight),
        UNSORTED: (random_plan, case.settings.prompt_weight),
        ALL_LOGITS: (random_plan, 1.0),
    }
    found = {}
    for name in draw.permutation([*ours, TRAINER, GROUPED]):
        model = fresh_model(study, tokenizer)
        if name in ours:
            found[name] = seconds_of_ours(model, case, chosen, *ours[name])
        else:
            sampling = "random" if name == TRAINER else "group_by_length"
            found[name] = seconds_of_trainer(model, case, chosen, tokenizer, sampling, folder)
    return found | {"tokens": sum(len(row.ids) for row in chosen)}


def throughput(study: Study, tokenizer, case: Case) -> pd.DataFrame:
    """Tokens per second of every variant, and the ratio of ours to it: median over the turns with a 95 % interval."""
    with tempfile.TemporaryDirectory() as folder:
        turns = pd.DataFrame([seconds_of_turn(study, tokenizer, case, number, folder) for number in range(TURNS + 1)])[1:]
    rows = []
    for name in (OURS, UNSORTED, ALL_LOGITS, TRAINER, GROUPED):
        ratios = turns[name] / turns[OURS]
        interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
        limit = LEAST_RATIO if name == TRAINER else np.nan
        rows.append((case.name, name, (turns["tokens"] / turns[name]).median(), ratios.median(), interval.low, interval.high, limit))
    return pd.DataFrame(rows, columns=["training", "loop", "tokens/s", "ours is faster by", "low", "high", "at least"])


def cases(study: Study, suite: Suite, tokenizer: PreTrainedTokenizerFast) -> tuple[Case, Case]:
    length = study.tokenizer.max_length
    stages = [encode(tokenizer, suite.train[domain], length) for domain in suite.domains]
    everything = [encode(tokenizer, suite.pretraining, length)]
    return (
        Case("stages", stages, study.continual.stage(study.continual.learning_rates[0], STEPS)),
        Case("pretraining", everything, study.pretrain.model_copy(update={"steps": STEPS})),
    )


def padding(study: Study, replicate: int) -> pd.Series:
    """Share of the computed tokens that are padding in every training of a replicate, along the plans that the study follows."""
    suite, length = build_suite(study, replicate), study.tokenizer.max_length
    tokenizer = train_tokenizer(suite.pretraining, study.tokenizer.vocabulary)
    lengths = [len(row.ids) for row in encode(tokenizer, suite.pretraining, length)]
    trainings = {"pretraining": (lengths, study.pretrain, "base-order"), "recovery": (lengths, study.recover, "recovery")}
    for domain in suite.domains:
        lengths = [len(row.ids) for row in encode(tokenizer, suite.train[domain], length)]
        trainings[f"stage {domain}"] = (lengths, study.continual.stage(1.0), f"batches-{domain}")
    shares = {}
    for name, (lengths, settings, stream) in trainings.items():
        plan = plan_batches(lengths, settings.steps, settings.batch, generator(study.seed, replicate, stream))
        batches = np.array(lengths)[np.stack(plan)]
        shares[name] = 1 - batches.sum() / (batches.max(axis=1) * settings.batch).sum()
    return pd.Series(shares)


def main() -> int:
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    study = load_study("builtin")
    suite = build_suite(study, 0)
    tokenizer = train_tokenizer(suite.pretraining, study.tokenizer.vocabulary)
    shares = pd.concat([padding(study, replicate) for replicate in range(study.replicates)], axis=1)
    shares = pd.DataFrame({"padding, % of computed tokens": 100 * shares.mean(axis=1), "most of any replicate": 100 * shares.max(axis=1)})
    print(shares.assign(limit=100 * MOST_PADDING).round(2).to_string(), flush=True)
    tables = []
    for case in cases(study, suite, tokenizer):
        tables.append(throughput(study, tokenizer, case))
        rounded = tables[-1].round({"tokens/s": 0, "ours is faster by": 2, "low": 2, "high": 2})
        print(rounded.to_string(index=False, na_rep="-"), flush=True)
    speed = pd.concat(tables)
    slow = speed[speed["ours is faster by"] < speed["at least"]]
    padded = shares[shares["most of any replicate"] >= 100 * MOST_PADDING]
    for missed in (
        *slow["training"].add(f": less than {LEAST_RATIO} times the Trainer's throughput"),
        *padded.index + ": too much padding",
    ):
        print(f"limit missed: {missed}")
    return 1 if len(slow) or len(padded) else 0


if __name__ == "__main__":
    sys.exit(main())
