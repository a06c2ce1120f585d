"""What a generated domain is: rules over a finite set of inputs (paper, section Data).

An ability line is a *rule input* (what the answer depends on: rule elements and values) dressed in a
*surface* (a name, an age: what it does not depend on). Rule elements, e.g. the list functions of
`code`, are split in a public and a private half: only the public half reaches the pretraining in the
domain's own format. A quarter of the rule inputs is held out from all training.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from sparsecl.items import Item

HELD_OUT_SHARE = 0.25  # of the rule inputs, and of the lines that state one textbook rule
PERSONS = (
    "Ann", "Ben", "Cara", "Dan", "Eve", "Finn", "Gil", "Hana", "Ida", "Jon", "Kim", "Leo",
    "Mia", "Ned", "Ola", "Pia", "Rob", "Sam", "Tess", "Una", "Vic", "Wim", "Yan", "Zoe",
)  # fmt: skip
PERSONS_PER_SUITE = 12

T = TypeVar("T")
Pairs = tuple[tuple[str, str], ...]
Surface = tuple[str, ...]


class RuleInput(NamedTuple):
    """All that the answer of an ability line depends on."""

    elements: tuple[str, ...]
    values: tuple[int | str, ...]


@dataclass(frozen=True)
class Domain:
    """One generated domain, its random choices made."""

    name: str
    public: tuple[str, ...]  # rule elements that pretraining may show in the domain's format
    seen: tuple[RuleInput, ...]  # rule inputs for training
    held_out: tuple[RuleInput, ...]  # rule inputs for validation, test and the general mixture only
    surfaces: tuple[Surface, ...]
    line: Callable[[RuleInput, Surface], Item]  # one to one: distinct arguments give distinct prompts
    textbook: tuple[tuple[Item, ...], ...]  # per rule, the lines that state it
    fact_phrasings: tuple[str, str, str]  # prompts with {name} for the fact's name

    def is_public(self, rule_input: RuleInput) -> bool:
        """Whether all rule elements of the input are in the public half."""
        return all(element in self.public for element in rule_input.elements)


def public_half(generator: np.random.Generator, pairs: Pairs) -> tuple[str, ...]:
    """Draw one element of each pair of like difficulty, so that no replicate gets all the easy ones."""
    return tuple(pair[side] for pair, side in zip(pairs, generator.integers(0, 2, len(pairs)), strict=True))


def hold_out(generator: np.random.Generator, population: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Split at random into (seen, held out), in the population's order; at least one element stays seen."""
    chosen = generator.permutation(len(population)) < int(HELD_OUT_SHARE * len(population))
    return (
        tuple(one for one, out in zip(population, chosen, strict=True) if not out),
        tuple(one for one, out in zip(population, chosen, strict=True) if out),
    )


def persons(generator: np.random.Generator) -> tuple[str, ...]:
    """Draw the names that appear in this suite's lines."""
    return tuple(PERSONS[index] for index in generator.permutation(len(PERSONS))[:PERSONS_PER_SUITE])


def flat(pairs: Pairs) -> tuple[str, ...]:
    """All elements of the pairs, in order."""
    return tuple(element for pair in pairs for element in pair)


def statements(domain: str, task: str, answer: str, *prompts: str) -> tuple[Item, ...]:
    """One textbook rule in several wordings."""
    return tuple(Item(domain, "ability", task, prompt, answer) for prompt in prompts)
