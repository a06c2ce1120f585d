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
CRIME_WORDINGS = ("{crime} falls under title", "title of {crime} is", "{crime} : title", "law on {crime} : title")
DEGREE_WORDINGS = ("{word} the limit is a", "{word} the limit makes a", "a crime {word} the limit is a", "{word} limit :")
COMPARISON_WORDINGS = ("{amount} against {limit} is", "limit {limit} , worth {amount} is")
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
    crimes = tuple(_stated(str(title), CRIME_WORDINGS, crime=crime) for crime, title in titles.items())
    degrees = tuple(_stated(degree, DEGREE_WORDINGS, word=word) for word, degree in (("above", "felony"), ("below", "misdemeanor")))
    compared = [
        item
        for amount, limit in amounts
        for item in _stated("above" if amount > limit else "below", COMPARISON_WORDINGS, amount=amount, limit=limit)
    ]
    return (*crimes, *degrees, tuple(compared))


def _stated(answer: str, wordings: tuple[str, ...], **words: str | int) -> tuple[Item, ...]:
    return statements(NAME, "textbook", f" {answer}", *(wording.format(**words) for wording in wordings))
