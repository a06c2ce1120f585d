"""The general mixture beside the domains: facts, arithmetic and ordinals (paper, section Data).

It gives the base skills that no stage trains, so that what a conversion or the stream costs in
general shows on its own.
"""

from itertools import permutations

from sparsecl.items import GENERAL, Item

FACTS = 40
FACT_PHRASINGS = ("the river {name} is long", "length of the river {name} :", "how long is the {name} river?")
LARGEST = 9  # the math domain needs exactly these; sums beyond left too few repetitions to learn any
SUM_WORDINGS = ("{a} + {b} =", "{a} plus {b} is", "sum of {a} and {b} is", "{b} more than {a} is")
DIFFERENCE_WORDINGS = ("{a} - {b} =", "{a} minus {b} is", "{a} less {b} is", "{b} less than {a} is")
ORDINALS = ("first", "second", "third")
FRUITS = ("apple", "cherry", "fig", "grape", "lemon", "mango", "pear", "plum")


def arithmetic() -> list[Item]:
    """Every sum and difference of one-digit numbers with a one-digit result in every wording, e.g. `4 + 3 =` -> ` 7`."""
    pairs = [(a, b) for a in range(LARGEST + 1) for b in range(LARGEST + 1 - a)]
    sums = [(wording.format(a=a, b=b), a + b) for a, b in pairs for wording in SUM_WORDINGS]
    differences = [(wording.format(a=a + b, b=b), a) for a, b in pairs for wording in DIFFERENCE_WORDINGS]
    return [Item(GENERAL, "ability", "arithmetic", prompt, f" {result}") for prompt, result in sums + differences]


def ordinals() -> list[Item]:
    """Every place in every row of three fruits, e.g. `second of fig pear plum is` -> ` pear`."""
    return [
        Item(GENERAL, "ability", "ordinals", f"{ordinal} of {' '.join(row)} is", f" {row[place]}")
        for row in permutations(FRUITS, len(ORDINALS))
        for place, ordinal in enumerate(ORDINALS)
    ]
