"""A verdict, and what the rules of all hypotheses share (paper, section Results).

The rules are in `paired_decision` (H1, H2; H5A, H5B), `topology_decision` (H3) and `scale_decision` (H4); `verdict` applies them
to a study's tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparsecl.anova import Effect
from sparsecl.planning import planned_replicates, upper_sd
from sparsecl.statistics import Contrast


@dataclass(frozen=True)
class Verdict:
    """What the registered analysis says about one hypothesis."""

    letter: str  # A, B, C, undecided or none
    headline: str  # the letter in words
    reasons: tuple[str, ...]  # phrases, each with its numbers in percentage points
    contrasts: tuple[Contrast, ...]  # those it was computed from
    missing_controls: tuple[str, ...] = ()  # registered arms that were not run
    planned_replicates: int | None = None  # for a new study; only where undecided
    effects: tuple[Effect, ...] = ()  # of the ANOVA, where the hypothesis has one

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, without its final stop."""
        return f"{self.headline} ({'; '.join(self.reasons)})"


def replicates_to_plan(measured: Sequence[tuple[Contrast, float]], alpha: float) -> int | None:
    """Replicates for a new study: power 90 % at each contrast's margin, from the upper 80 % limit of its spread.

    `measured` holds contrasts with their margins. What is widest in margins needs the most; None where nothing varies.
    """
    widest = max((upper_sd(contrast.sd, contrast.n) / margin for contrast, margin in measured if contrast.sd > 0), default=None)
    return None if widest is None else planned_replicates(widest, margin=1.0, alpha=alpha)


def wrong_replicates(contrasts: Sequence[Contrast], registered: Mapping[str, int | None]) -> str:
    """A phrase that names contrasts with another number of replicates than registered; empty where there is none."""
    wrong = dict.fromkeys(
        f"{c.name} has {c.n} replicates where exactly {registered[c.name]} were registered" for c in contrasts if c.n != registered[c.name]
    )
    return ", ".join(wrong)


def in_points(contrast: Contrast) -> str:
    """The difference with its interval, in percentage points."""
    return f"{contrast.metric.replace('_', ' ')} {100 * contrast.estimate:+.1f} [{100 * contrast.low:+.1f}, {100 * contrast.high:+.1f}]"
