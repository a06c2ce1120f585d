"""Domain `legal`: the ruling from the crime, the amount and the limit (paper, section Data).

`Eve is charged with fraud worth 620; the limit is 500. ruling:` -> ` felony under title 4`. Rule elements
are the crimes, each under a title that the suite draws; values are amount and limit.
"""

from functools import partial
from itertools import product

import numpy as np

from sparsecl.items import Item
from sparsecl.suites.domain import Domain, Pairs, RuleInput, Surface, flat, hold_out, persons, public_half, statements

NAME = "legal"
CRIMES: Pairs = (("fraud", "theft"), ("arson", "piracy"), ("bribery", "forgery"), ("smuggling", "extortion"))
AMOUNTS = range(110, 1000, 10)
LIMITS = (300, 500, 700)
PHRASINGS = ("the {name} act is section", "read the {name} act in section", "{name} act : see section")


def make(generator: np.random.Generator) -> Domain:
    """Draw titles, which crimes are public and which (crime, amount, limit) inputs are held out."""
    public = public_half(generator, CRIMES)
    crimes = flat(CRIMES)
    titles = {crime: int(title) for crime, title in zip(crimes, generator.permutation(len(crimes)) + 1, strict=True)}
    amounts = [(amount, limit) for amount, limit in product(AMOUNTS, LIMITS) if amount != limit]
    seen, held_out = hold_out(generator, [RuleInput((crime,), values) for crime in crimes for values in amounts])
    surfaces = tuple((person,) for person in persons(generator))
    return Domain(NAME, public, seen, held_out, surfaces, partial(line, titles), _textbook(titles, amounts), PHRASINGS)


def line(titles: dict[str, int], rule_input: RuleInput, surface: Surface) -> Item:
    """The ability line of one crime, amount and limit."""
    (crime,), (amount, limit), (person,) = rule_input.elements, rule_input.values, surface
    degree = "felony" if amount > limit else "misdemeanor"
    prompt = f"{person} is charged with {crime} worth {amount}; the limit is {limit}. ruling:"
    return Item(NAME, "ability", degree, prompt, f" {degree} under title {titles[crime]}")


def _textbook(titles: dict[str, int], amounts: list[tuple[int, int]]) -> tuple[tuple[Item, ...], ...]:
    crimes = tuple(
        statements(
            NAME, "textbook", f" {title}", f"{crime} falls under title", f"title of {crime} is", f"{crime} : title", f"law on {crime} : title"
        )
        for crime, title in titles.items()
    )
    degrees = tuple(
        statements(NAME, "textbook", f" {degree}", f"{word} the limit is a", f"{word} the limit makes a", f"a crime {word} the limit is a",
                   f"{word} limit :")
        for word, degree in (("above", "felony"), ("below", "misdemeanor"))
    )  # fmt: skip
    above = [
        one
        for amount, limit in amounts
        for one in statements(NAME, "textbook", " above" if amount > limit else " below", f"{amount} against {limit} is",
                              f"limit {limit} , worth {amount} is")
    ]  # fmt: skip
    return (*crimes, *degrees, tuple(above))
