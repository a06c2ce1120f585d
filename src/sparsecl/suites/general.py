"""The general mixture beside the domains: facts, arithmetic and ordinals (paper, section Data).

It gives the base skills that no stage trains, so that what a conversion or the stream costs in
general shows on its own.
"""

from itertools import permutations, product

from sparsecl.items import GENERAL, Item

FACTS = 40
FACT_PHRASINGS = ("the river {name} is long", "length of the river {name} :", "how long is the {name} river?")
LARGEST_OPERAND = 9
LARGEST_CHAINED = 6
SIGNS = {1: "+", -1: "-"}
SUM_WORDINGS = ("{a} + {b} =", "{a} plus {b} is", "sum of {a} and {b} is", "{b} more than {a} is")
DIFFERENCE_WORDINGS = ("{a} - {b} =", "{a} minus {b} is", "{a} less {b} is", "{b} less than {a} is")
ORDINALS = ("first", "second", "third")
FRUITS = ("apple", "cherry", "fig", "grape", "lemon", "mango", "pear", "plum")


def arithmetic() -> list[Item]:
    """Every one-digit sum and difference in every wording, e.g. `4 + 7 =` -> ` 11`, and the chains of two."""
    operands = range(LARGEST_OPERAND + 1)
    sums = [(wording.format(a=a, b=b), a + b) for a in operands for b in operands for wording in SUM_WORDINGS]
    differences = [(wording.format(a=a, b=b), a - b) for a in operands for b in range(a + 1) for wording in DIFFERENCE_WORDINGS]
    items = [Item(GENERAL, "ability", "arithmetic", prompt, f" {result}") for prompt, result in sums + differences]
    return items + chains()


def chains() -> list[Item]:
    """Two operations with the working shown, `3 + 4 - 2 :` -> ` 3 + 4 = 7; 7 - 2 = 5`, as long as results are one digit."""
    items = []
    for a, b, c in product(range(1, LARGEST_CHAINED + 1), repeat=3):
        for first, second in product((1, -1), repeat=2):
            middle, last = a + first * b, a + first * b + second * c
            if 0 <= middle <= LARGEST_OPERAND and 0 <= last <= LARGEST_OPERAND:
                one, two = SIGNS[first], SIGNS[second]
                working = f" {a} {one} {b} = {middle}; {middle} {two} {c} = {last}"
                items.append(Item(GENERAL, "ability", "arithmetic", f"{a} {one} {b} {two} {c} :", working))
    return items


def ordinals() -> list[Item]:
    """Every place in every row of three fruits, e.g. `second of fig pear plum is` -> ` pear`."""
    return [
        Item(GENERAL, "ability", "ordinals", f"{ordinal} of {' '.join(row)} is", f" {row[place]}")
        for row in permutations(FRUITS, len(ORDINALS))
        for place, ordinal in enumerate(ORDINALS)
    ]
