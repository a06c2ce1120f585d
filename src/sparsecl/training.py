"""Training: one loop for the base, recovery and every stage (paper, section Training).

AdamW with a cosine schedule and clipping. The loss falls on answer tokens with weight 1 and on prompt
tokens with `prompt_weight`. Rows are padded on the right and attention is causal, so real tokens never
see padding and no attention mask is needed. The batches are a function of (lengths, generator) alone:
arms that must see the same rows in the same order share a plan.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from sparsecl.flops import Consumption, consumption_of
from sparsecl.masks import ConfinedUpdates, Masks, assert_masks, masked_gradients
from sparsecl.records import Stopwatch, write_atomically
from sparsecl.settings import Optimisation
from sparsecl.tokenizer import Row

BETAS = (0.9, 0.95)
Penalty = Callable[[nn.Module], Float[Tensor, ""]]  # nats, added to the loss of a step
BUCKET_BATCHES = 32  # rows are sorted by length within this many batches, which keeps padding under 5 %


@dataclass(frozen=True)
class TrainingLog:
    """What a piece of training consumed and how its loss went."""

    losses: list[float]  # nats per weighted token, one per step
    tokens: int  # real tokens, padding excluded
    padded: int  # computed tokens, padding included
    rows: int  # rows trained on, repetitions counted
    seconds: float
    consumption: Consumption  # what its FLOPs depend on


def consumed(rows: Sequence[Row], plan: Sequence[np.ndarray], prompt_weight: float) -> Consumption:
    """What a training along `plan` consumes: a function of the plan alone, the same for every arm that follows it."""
    chosen = [rows[index] for batch in plan for index in batch]
    return consumption_of([(len(row.ids), row.answer_start) for row in chosen], prompt_weight)


def plan_batches(lengths: Sequence[int], steps: int, batch: int, generator: np.random.Generator) -> list[np.ndarray]:
    """Row indices of every step: whole shuffled passes over the rows, bucketed by length."""
    if len(lengths) < batch:
        raise ValueError(f"{len(lengths)} rows cannot fill a batch of {batch}; give more rows or a smaller batch")
    lengths = np.asarray(lengths)
    plan: list[np.ndarray] = []
    while len(plan) < steps:
        # Rows beyond the last whole batch sit this pass out: random ones, not always the longest.
        order = generator.permutation(len(lengths))[: len(lengths) // batch * batch]
        for start in range(0, len(order), batch * BUCKET_BATCHES):
            bucket = order[start : start + batch * BUCKET_BATCHES]
            bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
            batches = [bucket[i : i + batch] for i in range(0, len(bucket), batch)]
            plan.extend(batches[i] for i in generator.permutation(len(batches)))
    return plan[:steps]


def pad_rows(rows: Sequence[Row], pad: int = 0) -> tuple[Int[Tensor, "rows tokens"], Int[Tensor, " rows"], Int[Tensor, " rows"]]:
    """Right-padded ids, row lengths and answer starts."""
    lengths = torch.tensor([len(row.ids) for row in rows])
    ids = torch.full((len(rows), int(lengths.max())), pad)
    for index, row in enumerate(rows):
        ids[index, : len(row.ids)] = torch.from_numpy(row.ids)
    return ids, lengths, torch.tensor([row.answer_start for row in rows])


def token_weights(
    lengths: Int[Tensor, " rows"], starts: Int[Tensor, " rows"], width: int, prompt_weight: float
) -> Float[Tensor, "rows targets"]:
    """Loss weight of each predicted token (positions 1 to width - 1): answer 1, prompt `prompt_weight`, padding 0."""
    position = torch.arange(1, width)[None, :]
    weights = torch.where(position >= starts[:, None], 1.0, prompt_weight)
    return weights * (position < lengths[:, None])


def weighted_loss(model: nn.Module, ids: Int[Tensor, "rows tokens"], weights: Float[Tensor, "rows targets"]) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy in nats; the head is computed only where a weight is not zero."""
    hidden = model.model(ids, use_cache=False).last_hidden_state[:, :-1]
    chosen = weights > 0
    logits = model.lm_head(hidden[chosen]).float()
    losses = nn.functional.cross_entropy(logits, ids[:, 1:][chosen], reduction="none")
    return (losses * weights[chosen]).sum() / weights.sum()


def learning_rate_at(step: int, settings: Optimisation) -> float:
    """Linear warm-up, then a cosine to zero; `step` counts from 0."""
    warmup = max(round(settings.warmup * settings.steps), 1)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(settings.steps - warmup, 1)
    return settings.learning_rate * 0.5 * (1 + cos(pi * progress))


def arithmetic(dtype: str):
    """The context in which forward passes of training run."""
    return torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16-autocast" else nullcontext()


def train(
    model: nn.Module,
    rows: Sequence[Row],
    plan: Sequence[np.ndarray],
    settings: Optimisation,
    *,
    description: str,
    masks: Masks | None = None,
    update_masks: Masks | None = None,
    penalty: Penalty | None = None,
    constrain: Callable[[], None] | None = None,
    dtype: str = "float32",
    after_step: Callable[[int], None] | None = None,
    checkpoint: Path | None = None,
) -> TrainingLog:
    """Train in place, along `plan`, the parameters of `model` that require a gradient; `masks` hold throughout.

    `update_masks` confines the updates of a dense model: weights outside keep their values. `penalty` is added to
    the loss of every step; `constrain` is called right after a step, to undo or project what it applied. `after_step` is called
    with the number of finished steps. With `settings.checkpoint_every` and a `checkpoint` file the training resumes there after an
    interruption and ends in the same weights.
    Raises FloatingPointError at the first loss that is not finite.
    """
    model.train()
    watch = Stopwatch()
    losses: list[float] = []
    tokens = padded = 0
    trained = [parameter for _, parameter in _trained(model)]
    confined = None if update_masks is None else ConfinedUpdates(model, update_masks)
    with masked_gradients(model, masks or update_masks):
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, betas=BETAS, weight_decay=settings.weight_decay, fused=True)
        start = _resume(model, optimizer, checkpoint)
        for step in tqdm(range(settings.steps), desc=description, mininterval=1):
            batch = [rows[index] for index in plan[step]]
            lengths = [len(row.ids) for row in batch]
            tokens, padded = tokens + sum(lengths), padded + max(lengths) * len(batch)
            if step < start:
                continue
            losses.append(_one_step(model, optimizer, batch, settings, step, dtype, description, penalty))
            if confined is not None:
                confined.restore()
            if constrain is not None:
                constrain()
            if after_step is not None:
                with watch.paused():  # scoring is no training
                    after_step(step + 1)
                model.train()
            if checkpoint and settings.checkpoint_every and (step + 1) % settings.checkpoint_every == 0:
                _save_state(model, optimizer, checkpoint, step + 1)
    assert_masks(model, masks, f"after {description}")
    consumption = consumed(rows, plan[: settings.steps], settings.prompt_weight)
    return TrainingLog(losses, tokens, padded, settings.steps * settings.batch, watch.seconds(), consumption)


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[Row],
    settings: Optimisation,
    step: int,
    dtype: str,
    description: str,
    penalty: Penalty | None,
) -> float:
    """One optimizer step; returns the loss without the penalty."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate_at(step, settings)
    ids, lengths, starts = pad_rows(batch)
    with arithmetic(dtype):
        loss = weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], settings.prompt_weight))
    if not torch.isfinite(loss):
        raise FloatingPointError(
            f"{description}: loss is {loss.item()} at step {step + 1}; lower learning_rate (now {settings.learning_rate})"
        )
    optimizer.zero_grad(set_to_none=True)
    (loss if penalty is None else loss + penalty(model)).backward()
    nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], settings.clip)
    optimizer.step()
    return loss.item()


def _save_state(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, step: int) -> None:
    """Weights and AdamW's moments in one safetensors file, so that a resumed run equals an uninterrupted one."""
    tensors = {f"weight/{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in _trained(model):
        for key in ("exp_avg", "exp_avg_sq"):
            tensors[f"{key}/{name}"] = optimizer.state[parameter][key].clone()
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata={"step": str(step)}))


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path | None) -> int:
    """Load the state saved at `path`, if any; return how many steps it has finished."""
    if path is None or not path.is_file():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            step = int(file.metadata()["step"])
    except SafetensorError:
        path.unlink()  # the training state is only a shortcut: without it the training starts again
        return 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"weight/{name}"])
        for name, parameter in _trained(model):
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"exp_avg/{name}"],
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"],
            }
    return step
