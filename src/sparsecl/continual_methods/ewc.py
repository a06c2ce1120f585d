"""Online elastic weight consolidation with decay 1 (paper, section Methods; Kirkpatrick et al. 2017; Schwarz et al. 2018).

After domain k the Fisher information of its answers is added to that of the domains before it; in the next stage the
penalty ``strength / 2 * sum_i F_i (theta_i - theta*_i)^2`` holds the weights near theta*, those the stage starts from.
F is the empirical diagonal Fisher in nats per answer token, the unit of the training loss: with strength 1, loss and
penalty are the Laplace approximation in which a finished domain counts as many rows as the current one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from sparsecl.continual_methods.method import Method, Stage, StageContext, trainable_parameters
from sparsecl.flops import Consumption, consumption_of
from sparsecl.masks import Masks
from sparsecl.method_settings import Ewc
from sparsecl.records import BrokenFile, Stopwatch, write_atomically
from sparsecl.tokenizer import Row
from sparsecl.training import Penalty, pad_rows, token_weights

ROWS_AT_ONCE = 64  # more rows a pass are no faster
GRADIENTS_AT_ONCE = 2**24  # numbers held while rows' gradients are taken: 64 MiB, or one row of a model larger than that

Weights = Mapping[str, Tensor]  # parameter name -> a tensor of its shape


class ElasticWeightConsolidation(Method):
    """Full fine-tuning with the penalty; the state is the summed Fisher and the domains behind it.

    The anchor theta* needs no copy: every stage starts from the weights at which the last one ended.
    """

    def __init__(self, settings: Ewc) -> None:
        self._settings = settings
        self._fisher: dict[str, Tensor] = {}
        self._domains: tuple[str, ...] = ()

    @contextmanager
    def stage(self, model: nn.Module, masks: Masks | None, context: StageContext) -> Iterator[Stage]:
        if context.earlier != self._domains:
            raise ValueError(
                f"ewc: stage {context.domain} follows {context.earlier}, but the state knows {self._domains}; "
                "load the state saved at the end of the stage before"
            )
        rows = context.rows_of(context.domain)
        penalty = quadratic_penalty(self._fisher, model, self._settings.strength) if self._fisher else None
        stage = Stage(rows, context.plan(rows, context.batch), masks, trainable_parameters(model, masks), penalty)
        yield stage
        if not context.is_last:
            watch = Stopwatch()
            stage.extra = self._consolidate(model, rows, masks, context)
            stage.extra_seconds = watch.seconds()

    def _consolidate(self, model: nn.Module, rows: Sequence[Row], masks: Masks | None, context: StageContext) -> Consumption:
        """Add the Fisher of the finished domain; return what that passed forward and backward, the head at every token but the last."""
        count = min(self._settings.fisher_rows, len(rows))
        chosen = [rows[index] for index in context.generator(f"fisher-{context.domain}").choice(len(rows), count, replace=False)]
        fisher = diagonal_fisher(model, chosen, masks)
        self._fisher = {name: values + self._fisher[name] if self._fisher else values for name, values in fisher.items()}
        self._domains = (*context.earlier, context.domain)
        return consumption_of([(len(row.ids), 1) for row in chosen], prompt_weight=0.0)

    def save_state(self, path: Path) -> None:
        write_atomically(path, lambda temporary: save_file(self._fisher, temporary, metadata={"domains": "\n".join(self._domains)}))

    def load_state(self, path: Path) -> None:
        """Take up a saved state; BrokenFile where `path` is missing or not whole."""
        try:
            with safe_open(path, "pt") as file:
                self._fisher = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
                self._domains = tuple(name for name in file.metadata()["domains"].split("\n") if name)
        except (SafetensorError, OSError, KeyError, TypeError) as error:  # TypeError: a file without metadata
            raise BrokenFile(f"{path} is no state of ewc ({error}); delete the stage's folder and run the same command again") from error


def quadratic_penalty(fisher: Weights, anchor: nn.Module, strength: float) -> Penalty:
    """The penalty around the present weights of `anchor`, a function of the model, in nats (Kirkpatrick et al. 2017, eq. 3)."""
    centre = {name: parameter.detach().clone() for name, parameter in anchor.named_parameters()}

    def penalty(model: nn.Module) -> Float[Tensor, ""]:
        terms = [(fisher[name] * (parameter - centre[name]).square()).sum() for name, parameter in model.named_parameters()]
        return strength / 2 * torch.stack(terms).sum()

    return penalty


def diagonal_fisher(model: nn.Module, rows: Sequence[Row], masks: Masks | None) -> dict[str, Tensor]:
    """Empirical diagonal Fisher of the answers, per parameter, in nats per answer token; zero where masked.

    The squared gradient of each row's summed answer loss, added over rows and divided by their answer tokens. Squaring
    the mean gradient of a batch would be another quantity (van de Ven 2025, arXiv 2502.11756).
    """
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    at_once = max(1, min(ROWS_AT_ONCE, GRADIENTS_AT_ONCE // sum(parameter.numel() for parameter in parameters.values())))
    ordered = sorted(rows, key=lambda row: len(row.ids))  # like lengths beside each other: little padding
    tokens = 0.0
    for start in range(0, len(ordered), at_once):
        ids, lengths, starts = pad_rows(ordered[start : start + at_once])
        weights = token_weights(lengths, starts, ids.shape[1], 0.0)
        tokens += float(weights.sum())
        for name, gradients in _row_gradients(model, parameters, ids, weights).items():
            total[name] += gradients.square().sum(0)
    kept = {} if masks is None else masks.weights
    return {name: values / tokens * kept.get(name, 1) for name, values in total.items()}


def _row_gradients(
    model: nn.Module, parameters: Weights, ids: Int[Tensor, "rows tokens"], weights: Float[Tensor, "rows targets"]
) -> dict[str, Tensor]:
    """Gradient of each row's summed answer loss, rows first."""

    def row_loss(parameters: Weights, ids: Tensor, weights: Tensor) -> Tensor:
        logits = functional_call(model, parameters, (ids[None],), {"use_cache": False}).logits[0, :-1].float()
        return (nn.functional.cross_entropy(logits, ids[1:], reduction="none") * weights).sum()

    was_training = model.training
    model.eval()
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention cannot take rows' gradients apart
        gradients = vmap(grad(row_loss), in_dims=(None, 0, 0))(parameters, ids, weights)
    model.train(was_training)
    return gradients
