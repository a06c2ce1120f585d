"""Domain `dialogue`: the assistant's call from a user's request (paper, section Data).

`user: please play jazz for the kitchen at 7. bot:` -> ` music(jazz, kitchen, 7)`. Rule elements are the
verbs, each of which names a service; values are the slots to copy.
"""

from itertools import product

import numpy as np

from sparsecl.items import Item
from sparsecl.suites.domain import Domain, Pairs, RuleInput, Surface, flat, hold_out, public_half, statements

NAME = "dialogue"
VERBS: Pairs = (("play", "read"), ("order", "cook"), ("heat", "light"), ("clean", "guard"))
SERVICES = {
    "play": "music", "read": "news", "order": "shop", "cook": "recipe",
    "heat": "boiler", "light": "lamp", "clean": "robot", "guard": "alarm",
}  # fmt: skip
OBJECTS = ("jazz", "rock", "soup", "tea", "dust", "cats", "glass", "wood")
ROOMS = ("kitchen", "office", "garden", "attic", "hall", "studio")
HOURS = range(1, 10)
OPENERS = ("please", "kindly", "now", "could you")
PHRASINGS = ("user: dial {name}. bot:", "user: number of {name}? bot:", "user: call {name} now. bot:")


def make(generator: np.random.Generator) -> Domain:
    """Draw which verbs are public and which (verb, object, room, hour) inputs are held out."""
    public = public_half(generator, VERBS)
    slots = list(product(OBJECTS, ROOMS, HOURS))
    seen, held_out = hold_out(generator, [RuleInput((verb,), values) for verb in flat(VERBS) for values in slots])
    return Domain(NAME, public, seen, held_out, tuple((opener,) for opener in OPENERS), line, _textbook(), PHRASINGS)


def line(rule_input: RuleInput, surface: Surface) -> Item:
    """The ability line of one request."""
    (verb,), (thing, room, hour), (opener,) = rule_input.elements, rule_input.values, surface
    prompt = f"user: {opener} {verb} {thing} for the {room} at {hour}. bot:"
    return Item(NAME, "ability", SERVICES[verb], prompt, f" {SERVICES[verb]}({thing}, {room}, {hour})")


def _textbook() -> tuple[tuple[Item, ...], ...]:
    wordings = ("to {verb} you need the", "{verb} is done by the", "who can {verb} ? the", "{verb} : use the")
    return tuple(
        statements(NAME, "textbook", f" {service}", *(wording.format(verb=verb) for wording in wordings))
        for verb, service in SERVICES.items()
    )
