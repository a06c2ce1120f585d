"""Settings of the methods of continual fine-tuning, frozen and validated (paper, section Methods).

Every field carries a sentence and its unit. Nothing here imports torch: the workflow reads studies every time it plans.
"""

from typing import Annotated

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


class MethodSettings(Settings):
    """What each method beside `full` needs; `full` has no settings of its own."""

    lora: Lora = Lora()
    """Settings of lora."""
    replay: Replay = Replay()
    """Settings of replay."""
    ewc: Ewc = Ewc()
    """Settings of ewc."""
