"""Domain `math`: two-step word problems with the working shown (paper, section Data).

`Ann has 3 pens, buys 4, then sells 2. how many?` -> ` 3 + 4 = 7; 7 - 2 = 5`. Rule elements are the
verbs, each of which adds or takes away; values are the three operands.
"""

from itertools import product

import numpy as np

from sparsecl.items import Item
from sparsecl.suites.domain import Domain, Pairs, RuleInput, Surface, flat, hold_out, persons, public_half, statements

NAME = "math"
OPERANDS = range(1, 7)
LARGEST = 9  # results stay one digit: the domain is about verbs and order, carrying is not
THINGS = ("pens", "cups", "nuts", "eggs")
ADDING: Pairs = (("buys", "finds"),)
TAKING: Pairs = (("sells", "loses"),)
PHRASINGS = ("the constant {name} equals", "{name} is the number", "let us use {name} =")


def make(generator: np.random.Generator) -> Domain:
    """Draw which verbs are public and which (verbs, operands) inputs are held out."""
    public = public_half(generator, ADDING + TAKING)
    verbs = product(flat(ADDING + TAKING), repeat=2)
    inputs = [RuleInput(pair, values) for pair in verbs for values in product(OPERANDS, repeat=3) if _one_digit(pair, values)]
    seen, held_out = hold_out(generator, inputs)
    surfaces = tuple((person, thing) for person in persons(generator) for thing in THINGS)
    return Domain(NAME, public, seen, held_out, surfaces, line, _textbook(), PHRASINGS)


def steps(verbs: tuple[str, ...], values: tuple[int, ...]) -> list[tuple[int, str, int, int]]:
    """The working: (left, sign, right, result) per verb."""
    total, working = values[0], []
    for verb, value in zip(verbs, values[1:], strict=True):
        sign, result = ("+", total + value) if verb in flat(ADDING) else ("-", total - value)
        working.append((total, sign, value, result))
        total = result
    return working


def line(rule_input: RuleInput, surface: Surface) -> Item:
    """The ability line of two verbs and three operands."""
    (first, second), (start, change, then), (person, thing) = rule_input.elements, rule_input.values, surface
    working = steps(rule_input.elements, rule_input.values)
    answer = "; ".join(f"{left} {sign} {right} = {result}" for left, sign, right, result in working)
    prompt = f"{person} has {start} {thing}, {first} {change}, then {second} {then}. how many?"
    return Item(NAME, "ability", "".join(sign for _, sign, _, _ in working), prompt, f" {answer}")


def _one_digit(verbs: tuple[str, ...], values: tuple[int, ...]) -> bool:
    return all(0 <= result <= LARGEST for *_, result in steps(verbs, values))


def _textbook() -> tuple[tuple[Item, ...], ...]:
    meanings = tuple(
        statements(NAME, "textbook", answer, f"who {verb} will", f"one who {verb} must", f"she {verb} so we", f"he {verb} so we")
        for verbs, answer in ((flat(ADDING), " add"), (flat(TAKING), " subtract"))
        for verb in verbs
    )
    pairs = list(product(range(LARGEST + 1), repeat=2))
    sums = [line for a, b in pairs if a + b <= LARGEST for line in _working("+", a, b, a + b, "add", "to")]
    differences = [line for a, b in pairs if a >= b for line in _working("-", a, b, a - b, "subtract", "from")]
    return (*meanings, tuple(sums), tuple(differences))


def _working(sign: str, left: int, right: int, result: int, verb: str, preposition: str) -> tuple[Item, ...]:
    answer = f" {left} {sign} {right} = {result}"
    return statements(
        NAME, "textbook", answer, f"from {left} {verb} {right} :", f"{verb} {right} {preposition} {left} :", f"{left} then {verb} {right} :"
    )
