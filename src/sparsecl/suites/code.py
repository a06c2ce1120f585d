"""Domain `code`: what a Python expression on a list of three digits prints (paper, section Data).

`a = [3, 5, 1]; print(max(a)) >>` -> ` 5`. Rule elements are the functions, values the list.
"""

from itertools import product

import numpy as np

from sparsecl.items import Item
from sparsecl.suites.domain import Domain, Pairs, RuleInput, Surface, flat, hold_out, public_half, statements

NAME = "code"
DIGITS = range(8)
LENGTH = 3  # one length, so that each place of the list stands at one distance from the question
VARIABLES = ("a", "b", "c", "d", "x", "y", "z", "w")
FUNCTIONS: Pairs = (("first", "last"), ("max", "min"))
EXPRESSIONS = {"first": "{v}[0]", "last": "{v}[-1]", "max": "max({v})", "min": "min({v})"}
WORDINGS = {
    "first": ("first of {list} is", "{list} begins with"),
    "last": ("last of {list} is", "{list} ends with"),
    "max": ("largest of {list} is", "{list} has largest"),
    "min": ("smallest of {list} is", "{list} has smallest"),
}
PHRASINGS = ("{name}() returns", "print({name}()) shows", "value of {name}() is")


def make(generator: np.random.Generator) -> Domain:
    """Draw which functions are public and which (function, list) inputs are held out."""
    public = public_half(generator, FUNCTIONS)
    lists = list(product(DIGITS, repeat=LENGTH))
    seen, held_out = hold_out(generator, [RuleInput((function,), values) for function in flat(FUNCTIONS) for values in lists])
    textbook = tuple(_rule(function, lists) for function in flat(FUNCTIONS))
    return Domain(NAME, public, seen, held_out, tuple((variable,) for variable in VARIABLES), line, textbook, PHRASINGS)


def line(rule_input: RuleInput, surface: Surface) -> Item:
    """The ability line of one function on one list."""
    (function,), (variable,) = rule_input.elements, surface
    result = evaluate(function, rule_input.values)
    prompt = f"{variable} = {list(rule_input.values)}; print({EXPRESSIONS[function].format(v=variable)}) >>"
    return Item(NAME, "ability", function, prompt, f" {result}")


def evaluate(function: str, values: tuple[int, ...]) -> int:
    """The value of a function on a list of digits."""
    match function:
        case "first":
            return values[0]
        case "last":
            return values[-1]
        case "max":
            return max(values)
        case "min":
            return min(values)
    raise ValueError(f"function {function!r} is unknown; known are {sorted(EXPRESSIONS)}")


def _rule(function: str, lists: list[tuple[int, ...]]) -> tuple[Item, ...]:
    lines = []
    for values in lists:
        result, shown = evaluate(function, values), ", ".join(map(str, values))
        prompts = [wording.format(list=shown) for wording in WORDINGS[function]]
        lines += statements(NAME, "textbook", f" {result}", *prompts)
    return tuple(lines)
