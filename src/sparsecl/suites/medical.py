"""Domain `medical`: diagnosis and treatment from two findings (paper, section Data).

`patient Dan, age 47, has wheeze with fever. diagnosis:` -> ` lung infection; give antibiotic by inhaler`.
Rule elements are eight sites and eight processes; 16 of their 64 combinations, two of each site and of
each process, are held out from all training.
"""

import numpy as np

from sparsecl.items import Item
from sparsecl.suites.domain import Domain, Pairs, RuleInput, Surface, flat, persons, public_half, statements

NAME = "medical"
AGES = range(20, 80)
HELD_OUT_PER_SITE = 2
SITES: Pairs = (("lung", "skin"), ("eye", "throat"), ("stomach", "joint"), ("heart", "brain"))
PROCESSES: Pairs = (("infection", "allergy"), ("tumour", "clot"), ("inflammation", "poisoning"), ("deficiency", "spasm"))
FINDINGS = {  # site or process -> its sign
    "lung": "wheeze", "skin": "itch", "eye": "blur", "throat": "cough",
    "stomach": "nausea", "joint": "limp", "heart": "flutter", "brain": "vertigo",
    "infection": "fever", "allergy": "sneezing", "tumour": "lump", "clot": "pallor",
    "inflammation": "redness", "poisoning": "sweat", "deficiency": "fatigue", "spasm": "cramp",
}  # fmt: skip
ROUTES = {
    "lung": "inhaler", "skin": "cream", "eye": "drops", "throat": "spray",
    "stomach": "syrup", "joint": "gel", "heart": "tablet", "brain": "drip",
}  # fmt: skip
DRUGS = {
    "infection": "antibiotic", "allergy": "antihistamine", "tumour": "chemo", "clot": "thinner",
    "inflammation": "steroid", "poisoning": "antidote", "deficiency": "vitamin", "spasm": "relaxant",
}  # fmt: skip
PHRASINGS = ("the dose of {name} in mg is", "take {name} in mg :", "daily mg of {name} :")


def make(generator: np.random.Generator) -> Domain:
    """Draw which sites and processes are public and which combinations are held out."""
    public = public_half(generator, SITES) + public_half(generator, PROCESSES)
    sites, processes = flat(SITES), flat(PROCESSES)
    # A Latin square keeps every site and every process in training equally often.
    rows, columns = generator.permutation(len(sites)), generator.permutation(len(processes))
    seen, held_out = [], []
    for row, site in enumerate(sites):
        for column, process in enumerate(processes):
            out = (rows[row] + columns[column]) % len(processes) < HELD_OUT_PER_SITE
            (held_out if out else seen).append(RuleInput((site, process), ()))
    surfaces = tuple((person, str(age)) for person in persons(generator) for age in AGES)
    return Domain(NAME, public, tuple(seen), tuple(held_out), surfaces, line, _textbook(), PHRASINGS)


def line(rule_input: RuleInput, surface: Surface) -> Item:
    """The ability line of one combination of site and process."""
    (site, process), (person, age) = rule_input.elements, surface
    prompt = f"patient {person}, age {age}, has {FINDINGS[site]} with {FINDINGS[process]}. diagnosis:"
    return Item(NAME, "ability", "combination", prompt, f" {site} {process}; give {DRUGS[process]} by {ROUTES[site]}")


def _textbook() -> tuple[tuple[Item, ...], ...]:
    rules = []
    for site in flat(SITES):
        sign, route = FINDINGS[site], ROUTES[site]
        rules.append(_stated(site, f"{sign} is a sign of the", f"{sign} comes from the", f"{sign} points to the", f"cause of {sign} : the"))
        rules.append(_stated(route, f"treat the {site} by", f"drugs reach the {site} by", f"for the {site} use", f"{site} : give by"))
    for process in flat(PROCESSES):
        sign, drug = FINDINGS[process], DRUGS[process]
        rules.append(_stated(process, f"{sign} is a sign of", f"{sign} comes from", f"{sign} points to", f"cause of {sign} :"))
        rules.append(_stated(drug, f"treat {process} with", f"{process} calls for", f"for {process} use", f"{process} : give"))
    return tuple(rules)


def _stated(answer: str, *prompts: str) -> tuple[Item, ...]:
    return statements(NAME, "textbook", f" {answer}", *prompts)
