"""The general mixture beside the domains: facts, arithmetic and ordinals (paper, section Data).

It gives the base skills that no stage trains, so that what a conversion or the stream costs in
general shows on its own.
"""

from itertools import permutations

from sparsecl.items import GENERAL, Item

FACTS = 40
FACT_PHRASINGS = ("the river {name} is long", "length of the river {name} :", "how long is the {name} river?")
LARGEST_OPERAND = 12
ORDINALS = ("first", "second", "third")
FRUITS = ("apple", "cherry", "fig", "grape", "lemon", "mango", "pear", "plum")


def arithmetic() -> list[Item]:
    """Every sum and every difference without a negative result, e.g. `12 + 7 =` -> ` 19`."""
    operands = range(LARGEST_OPERAND + 1)
    sums = [(f"{a} + {b} =", a + b) for a in operands for b in operands]
    differences = [(f"{a} - {b} =", a - b) for a in operands for b in operands if a >= b]
    return [Item(GENERAL, "ability", "arithmetic", prompt, f" {result}") for prompt, result in sums + differences]


def ordinals() -> list[Item]:
    """Every place in every row of three fruits, e.g. `second of fig pear plum is` -> ` pear`."""
    return [
        Item(GENERAL, "ability", "ordinals", f"{ordinal} of {' '.join(row)} is", f" {row[place]}")
        for row in permutations(FRUITS, len(ORDINALS))
        for place, ordinal in enumerate(ORDINALS)
    ]
