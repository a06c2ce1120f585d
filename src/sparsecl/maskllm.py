"""MaskLLM: learn which of a group's candidate masks to keep, weights frozen (Fang et al. 2024; paper, section Conversion).

A group of M weights has C(M, N) candidate masks (six for 2:4). Each group learns one logit a candidate; training
draws soft masks by Gumbel softmax, y = softmax((kappa pi + g) / tau), and minimises the language-model loss minus
lambda ||W * M||^2. tau falls and kappa rises linearly. The prior is SparseGPT's mask.
Labels and gradients are needed, so this is a training job of its own and no modifier of the pipeline. Memory: logits,
gradients and AdamW's moments in float32 take 4 * 4 * C(M, N) / M bytes a masked weight, 24 for 2:4.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from sparsecl.masks import Mask, prunable_weights
from sparsecl.settings import MaskLearning
from sparsecl.tokenizer import Row
from sparsecl.topologies import MASKLLM_TOPOLOGIES, Topology
from sparsecl.training import BETAS, learning_rate_at, pad_rows, token_weights, weighted_loss

Place = tuple[nn.Module, str]  # a module and the name of its parameter


def candidate_masks(topology: Topology) -> Float[Tensor, "candidates group"]:
    """Every mask of one group, in the paper's order for 2:4: 1100, 1010, 1001, 0110, 0101, 0011."""
    if topology.name not in MASKLLM_TOPOLOGIES:
        raise ValueError(f"maskllm has no candidates for {topology.name}; it is defined for {MASKLLM_TOPOLOGIES}, choose one of them")
    masks = torch.zeros(comb(topology.group, topology.kept), topology.group)
    for row, places in enumerate(combinations(range(topology.group), topology.kept)):
        masks[row, list(places)] = 1.0
    return masks


class CandidateChoice(nn.Module):
    """A parametrization of a frozen weight: W * M with a learned, softly drawn M."""

    def __init__(self, prior: Mask, topology: Topology, settings: MaskLearning, generator: torch.Generator):
        super().__init__()
        self.register_buffer("candidates", candidate_masks(topology))
        groups = prior.cpu().reshape(-1, topology.group).float()
        noise = settings.initial_std * torch.randn(len(groups), len(self.candidates), generator=generator)
        # Equations 9 and 10: a candidate gains by its overlap with the prior mask, on the scale of the initial logits.
        overlap = groups @ self.candidates.T - topology.kept / 2
        self.logits = nn.Parameter(noise + settings.initial_std * settings.prior_strength * overlap)
        self.generator = generator
        self.temperature, self.scale = settings.temperature[0], settings.scale[0]

    def soft_mask(self) -> Float[Tensor, "groups group"]:
        """A differentiable draw of every group's mask."""
        uniform = torch.rand(self.logits.shape, generator=self.generator).clamp_min(1e-20).to(self.logits.device)
        gumbel = -(-uniform.log()).clamp_min(1e-20).log()
        return torch.softmax((self.logits * self.scale + gumbel) / self.temperature, dim=1) @ self.candidates

    def mask(self, shape: torch.Size) -> Mask:
        """The most likely candidate of every group."""
        return self.candidates[self.logits.argmax(1)].bool().view(shape)

    def forward(self, weight: Float[Tensor, "*experts outputs inputs"]) -> Float[Tensor, "*experts outputs inputs"]:
        return weight * self.soft_mask().view_as(weight).to(weight.dtype)


def learn_masks(
    model: nn.Module,
    prior: Mapping[str, Mask],
    topology: Topology,
    rows: Sequence[Row],
    plan: Sequence[np.ndarray],
    settings: MaskLearning,
    seed: int,
) -> dict[str, Mask]:
    """Learn the masks of every prunable weight of `model`, whose weights stay as they are.

    ValueError where the topology has no candidates; FloatingPointError at the first loss that is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    places = {name: _place(model, name) for name in prunable_weights(model)}
    choices = {name: CandidateChoice(prior[name], topology, settings, generator) for name in places}
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False).eval()
    torch.set_flush_denormal(True)  # a sharp softmax is full of them, and a processor takes ten times as long for each
    try:
        for name, (module, tensor) in places.items():
            parametrize.register_parametrization(module, tensor, choices[name].to(getattr(module, tensor).device))
        _optimise(model, places, choices, rows, plan, settings)
    finally:
        torch.set_flush_denormal(False)
        for module, tensor in places.values():
            if parametrize.is_parametrized(module, tensor):
                parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
    return {name: choices[name].mask(weight.shape) for name, weight in prunable_weights(model).items()}


def _place(model: nn.Module, name: str) -> Place:
    module, _, tensor = name.rpartition(".")
    return model.get_submodule(module), tensor


def _optimise(
    model: nn.Module,
    places: dict[str, Place],
    choices: dict[str, CandidateChoice],
    rows: Sequence[Row],
    plan: Sequence[np.ndarray],
    settings: MaskLearning,
) -> None:
    training = settings.training
    logits = [choice.logits for choice in choices.values()]
    optimizer = torch.optim.AdamW(logits, lr=training.learning_rate, betas=BETAS, eps=1e-5, weight_decay=training.weight_decay)
    for step in tqdm(range(training.steps), desc="learn masks", mininterval=1):
        progress = step / max(training.steps - 1, 1)
        for choice in choices.values():
            choice.temperature = _linear(settings.temperature, progress)
            choice.scale = _linear(settings.scale, progress)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, training)
        ids, lengths, starts = pad_rows([rows[index] for index in plan[step]])
        with parametrize.cached():  # one draw of the masks serves the loss and the regularisation
            loss = weighted_loss(model, ids, token_weights(lengths, starts, ids.shape[1], training.prompt_weight))
            kept = sum((getattr(module, tensor) ** 2).sum() for module, tensor in places.values())
            # The published code lets the regularisation fade to zero over the training.
            total = loss - settings.regularisation * (1 - progress) * kept
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"mask learning: loss is {total.item()} at step {step + 1}; "
                f"lower maskllm.training.learning_rate (now {training.learning_rate})"
            )
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(logits, training.clip)
        optimizer.step()


def _linear(ends: tuple[float, float], progress: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * progress
