"""Settings of the methods of continual fine-tuning, frozen and validated (paper, section Methods).

Every field carries a sentence and its unit. Nothing here imports torch: the workflow reads studies every time it plans.
"""

from typing import Annotated, Literal

from pydantic import Field

from sparsecl.settings_types import Count, Positive, Settings


class Lora(Settings):
    """LoRA (Hu et al. 2022) on all prunable linear layers; a new adapter each stage, merged at the stage's end."""

    rank: Count = 8
    """Rank of each adapter, rows of A and columns of B (r)."""
    alpha: Positive = 32.0
    """Scale of the adapters: the update is alpha / rank times B A, factor times the rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the adapters' inputs set to zero during training, fraction."""


class Replay(Settings):
    """Experience replay (Rolnick et al. 2019) from a small buffer of each finished domain."""

    lines_per_domain: Count = 64
    """Training lines kept of each finished domain, lines."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of every batch that comes from the buffer, fraction of its rows; it must make a whole number of rows."""


class Ewc(Settings):
    """Online elastic weight consolidation with decay 1 (Kirkpatrick et al. 2017; Schwarz et al. 2018).

    On domains that are learnt well gradients, and with them the Fisher information, are small: hence a strength far above 1.
    """

    strength: Positive = 100.0
    """Weight of the penalty (lambda); at 1 a finished domain counts as many rows as the current one, factor."""
    fisher_rows: Count = 256
    """Training rows of a finished domain behind its Fisher information, rows."""


class ActivationMask(Settings):
    """Fine-tuning of the units (neurons or experts) that a look at the new domain finds in use, and of as many random ones."""

    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    """Share of each layer's units whose weights may move, fraction; of the neurons also the Top-K of `frequency`."""
    selection: Literal["magnitude", "frequency"] = "magnitude"
    """What ranks the units: mean activation (of experts, mean routing weight), or in how many tokens they are among the strongest."""
    probe_rows: Count = 256
    """Training rows of the new domain that are read before its stage, rows."""


class ActivationMaskBranch(ActivationMask):
    """The same paths as a sparse side branch on frozen weights, merged at the stage's end."""


class OrthogonalLora(Lora):
    """LoRA whose update lies outside a subspace that protects earlier domains (after Saha et al. 2021), projected after every step."""

    basis: Literal["gradients", "inputs"] = "gradients"
    """What is protected: the row space of earlier domains' weight gradients, or, as in GPM, their layers' inputs."""
    energy: Annotated[float, Field(gt=0, lt=1)] = 0.97
    """Share of a finished domain's second moment that the basis is grown to hold, fraction."""
    basis_rows: Count = 256
    """Training rows of a finished domain behind its share of the basis, rows."""


class OLora(Lora):
    """O-LoRA (Wang et al. 2023) with the weights of its published code."""

    l1: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the sum of |A_old A_new^T| over layers, nats; it grows with layers, rank squared and finished domains."""
    l2: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the summed norms of the new A and B, nats."""


class Osf(Settings):
    """Orthogonal subspace fine-tuning (Nayak et al. 2025), as PEFT has it."""

    frozen: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Leading singular directions of every weight that stay, fraction of the smaller dimension."""


class MethodSettings(Settings):
    """What each method beside `full` needs; `full` has no settings of its own."""

    lora: Lora = Lora()
    """Settings of lora."""
    replay: Replay = Replay()
    """Settings of replay."""
    ewc: Ewc = Ewc()
    """Settings of ewc."""
    activation_mask: ActivationMask = ActivationMask()
    """Settings of activation-mask and of its control activation-mask-random."""
    activation_mask_branch: ActivationMaskBranch = ActivationMaskBranch()
    """Settings of activation-mask-branch."""
    orthogonal_lora: OrthogonalLora = OrthogonalLora()
    """Settings of orthogonal-lora."""
    o_lora: OLora = OLora()
    """Settings of o-lora."""
    osf: Osf = Osf()
    """Settings of osf."""
