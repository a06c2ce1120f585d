"""The unit of data: a prompt, its right answer, and where both belong (paper, section Data).

A `Suite` is everything one replicate trains on and is scored on; the generated suite and real data
sets both end here, so nothing after this module knows which one it serves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

GENERAL = "general"  # the domain name of the general mixture; never averaged into the stream's metrics


@dataclass(frozen=True, slots=True)
class Item:
    """One training or test line; the answer starts with white space unless the prompt is empty."""

    domain: str  # a domain of the stream, or GENERAL
    kind: str  # "ability" (held-out inputs) or "fact" (random association, memorised)
    task: str  # the finer task, e.g. "max" or "arithmetic"
    prompt: str
    answer: str


@dataclass(frozen=True)
class Suite:
    """The data of one replicate. Splits share no (prompt, answer) pair, save that facts are scored as trained."""

    domains: tuple[str, ...]
    pretraining: tuple[Item, ...]  # what the base, recovery and D1 train on
    train: Mapping[str, tuple[Item, ...]]  # per domain, what its stage trains on
    validation: Mapping[str, tuple[Item, ...]]  # per domain, scored when settings are chosen
    test: Mapping[str, tuple[Item, ...]]  # per domain, scored in the study
    general: tuple[Item, ...]  # held-out general mixture
    chance: Mapping[tuple[str, str], float] = field(default_factory=dict)  # (domain, kind) -> score of guessing
    sources: Mapping[str, str] = field(default_factory=dict)  # file -> sha256, real data only


def has_answers(items: Sequence[Item]) -> bool:
    """Whether the items can be right or wrong: text without a prompt has no right answer, only a loss."""
    return all(item.prompt for item in items)
