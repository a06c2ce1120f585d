"""Random associations that can only be memorised: a made-up name and a two-digit number (paper, section Data)."""

from itertools import product

import numpy as np

from sparsecl.items import Item

ONSETS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v", "z")
VOWELS = ("a", "e", "i", "o", "u")
CODAS = ("x", "n", "l", "m", "s", "k", "r", "t")
PHRASINGS_PER_FACT = 3
NUMBERS = range(10, 100)


def names(generator: np.random.Generator, count: int) -> list[str]:
    """Draw `count` distinct pronounceable names such as `plorax`; ValueError where there are not as many."""
    syllables = list(product(ONSETS, VOWELS))
    available = len(syllables) ** 2 * len(CODAS)
    if count > available:
        raise ValueError(f"facts_per_domain asks for {count} names in all, but only {available} distinct names exist; lower it")
    drawn = np.unravel_index(generator.choice(available, count, replace=False), (len(syllables), len(syllables), len(CODAS)))
    return ["".join(syllables[one] + syllables[two]) + CODAS[end] for one, two, end in zip(*drawn, strict=True)]


def lines(generator: np.random.Generator, domain: str, fact_names: list[str], phrasings: tuple[str, ...]) -> tuple[Item, ...]:
    """Every fact in every phrasing; all phrasings of a fact share its random number."""
    numbers = generator.integers(NUMBERS.start, NUMBERS.stop, len(fact_names))
    return tuple(
        Item(domain, "fact", "fact", phrasing.format(name=name), f" {number}")
        for name, number in zip(fact_names, numbers, strict=True)
        for phrasing in phrasings
    )
