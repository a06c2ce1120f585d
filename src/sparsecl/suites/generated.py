"""The generated suite: draws the splits of every domain and of the general mixture (paper, section Data).

Everything follows from the generator that is passed in: each part draws from its own child stream, so
a change to one domain leaves the others as they were. Nothing iterates over a set.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import TypeVar

import numpy as np

from sparsecl.items import GENERAL, Item, Suite
from sparsecl.settings import GeneratedData
from sparsecl.suites import code, dialogue, facts, general, legal, math, medical
from sparsecl.suites.domain import Domain, RuleInput, hold_out

MAKERS = {"code": code.make, "math": math.make, "medical": medical.make, "legal": legal.make, "dialogue": dialogue.make}
MIXTURE = {"format": 0.45, "fact": 0.13, "textbook": 0.22, "arithmetic": 0.12, "ordinals": 0.08}  # shares of the pretraining lines
T = TypeVar("T")


@dataclass(frozen=True)
class DomainSplits:
    """The lines of one domain; `general_*` and `pretraining_*` serve the mixture."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    pretraining_format: tuple[Item, ...]
    pretraining_textbook: tuple[Item, ...]
    general_format: tuple[Item, ...]
    general_textbook: tuple[Item, ...]


def build(settings: GeneratedData, generator: np.random.Generator) -> Suite:
    """Draw the suite; ValueError where a setting asks for more distinct items than the rules have."""
    _check_domains(settings.domains)
    names_stream, mixture_stream, *domain_streams = generator.spawn(2 + len(MAKERS))
    streams = dict(zip(MAKERS, domain_streams, strict=True))
    names = facts.names(names_stream, settings.facts_per_domain * len(settings.domains) + general.FACTS)
    splits = {}
    for place, name in enumerate(settings.domains):
        own_names = names[place * settings.facts_per_domain :][: settings.facts_per_domain]
        splits[name] = _split_domain(name, place, own_names, settings, streams[name])
    pretraining, held_out = _mixture(splits, names[-general.FACTS :], settings, mixture_stream)
    test = {name: split.test for name, split in splits.items()}
    return Suite(
        domains=settings.domains,
        pretraining=pretraining,
        train={name: split.train for name, split in splits.items()},
        validation={name: split.validation for name, split in splits.items()},
        test=test,
        general=held_out,
        chance=chance({**test, GENERAL: held_out}),
    )


def chance(items: dict[str, tuple[Item, ...]]) -> dict[tuple[str, str], float]:
    """Score of always giving the most frequent answer, per (domain, kind) of the test items."""
    answers: dict[tuple[str, str], Counter] = {}
    for domain, lines in items.items():
        for item in lines:
            answers.setdefault((domain, item.kind), Counter())[item.answer] += 1
    return {key: max(counts.values()) / counts.total() for key, counts in answers.items()}


def _check_domains(domains: tuple[str, ...]) -> None:
    unknown = [name for name in domains if name not in MAKERS]
    if unknown or len(set(domains)) != len(domains) or not domains:
        raise ValueError(f"data.domains: {domains} must be distinct names out of {tuple(MAKERS)}")


def _shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers near `weights` that sum to `total`."""
    edges = np.rint(np.cumsum(weights) / np.sum(weights) * total).astype(int)
    return np.diff(edges, prepend=0).tolist()


def _repeat(lines: Sequence[T], count: int) -> list[T]:
    """The lines, again from the start where `count` is more than there are."""
    return list(islice(cycle(lines), count))


def _enough(field: str, value: int, wanted: int, available: int, what: str) -> None:
    if wanted > available:
        raise ValueError(f"data.{field}: {value} needs {wanted} {what}, but only {available} are left; lower data.{field}")


def _shuffled(generator: np.random.Generator, lines: Sequence[T]) -> list[T]:
    return [lines[index] for index in generator.permutation(len(lines))]


class _Lines:
    """The distinct lines of some rule inputs in random order; made only when taken."""

    def __init__(self, domain: Domain, inputs: tuple[RuleInput, ...], generator: np.random.Generator):
        self._domain, self._inputs = domain, inputs
        order = generator.permutation(len(inputs) * len(domain.surfaces))
        public = np.array([domain.is_public(one) for one in inputs])
        self.all = order
        self.public = order[public[order // len(domain.surfaces)]]

    def items(self, indices: np.ndarray) -> tuple[Item, ...]:
        inputs, surfaces = self._inputs, self._domain.surfaces
        return tuple(self._domain.line(inputs[i // len(surfaces)], surfaces[i % len(surfaces)]) for i in indices)


def _split_domain(name: str, place: int, names: list[str], settings: GeneratedData, generator: np.random.Generator) -> DomainSplits:
    make_stream, fact_stream, seen_stream, held_stream, textbook_stream = generator.spawn(5)
    domain = MAKERS[name](make_stream)
    fact_lines = facts.lines(fact_stream, name, names, domain.fact_phrasings)
    pretraining_format, train = _seen(domain, place, fact_lines, settings, seen_stream)
    test, validation, general_format = _held_out(domain, place, settings, held_stream)
    pretraining_textbook, general_textbook = _textbook(domain, place, settings, textbook_stream)
    return DomainSplits(
        train=train,
        validation=validation + fact_lines,
        test=test + fact_lines,
        pretraining_format=pretraining_format,
        pretraining_textbook=pretraining_textbook,
        general_format=general_format,
        general_textbook=general_textbook,
    )


def _quota(total: int, part: str, place: int, settings: GeneratedData, weights: Sequence[float]) -> int:
    """How many of `total` lines of the mixture are `part` of the domain at `place`."""
    of_part = _shares(total, weights)[list(MIXTURE).index(part)]
    return _shares(of_part, [1.0] * len(settings.domains))[place]


def _seen(
    domain: Domain, place: int, fact_lines: tuple[Item, ...], settings: GeneratedData, generator: np.random.Generator
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The domain's lines of the pretraining (public elements) and of its stage (all elements, and facts)."""
    lines = _Lines(domain, domain.seen, generator)
    pretraining_count = _quota(settings.pretraining_lines, "format", place, settings, list(MIXTURE.values()))
    # Half of the public lines at most: the stage needs public lines that the base has not read.
    public = lines.public[: min(pretraining_count, len(lines.public) // 2)]
    # A fresh order: in the old one the public lines that are left come last, and a stage would miss them.
    rest = generator.permutation(lines.all[~np.isin(lines.all, public)])
    fact_count = round(settings.fact_share * settings.train_lines)
    if fact_count < len(fact_lines):
        raise ValueError(
            f"data.fact_share: {settings.fact_share} of data.train_lines {settings.train_lines} is {fact_count} lines, but the facts of "
            f"{domain.name} have {len(fact_lines)} and all are trained; raise data.train_lines or data.fact_share"
        )
    ability_count = settings.train_lines - fact_count
    ability = _repeat(lines.items(rest[:ability_count]), ability_count)
    train = _shuffled(generator, ability + _repeat(fact_lines, fact_count))
    return tuple(_repeat(lines.items(public), pretraining_count)), tuple(train)


def _held_out(
    domain: Domain, place: int, settings: GeneratedData, generator: np.random.Generator
) -> tuple[tuple[Item, ...], tuple[Item, ...], tuple[Item, ...]]:
    """The domain's test, validation and general lines, pairwise disjoint, over held-out rule inputs."""
    lines = _Lines(domain, domain.held_out, generator)
    what = f"distinct held-out ability items of {domain.name}"
    test_end = settings.test_items
    validation_end = test_end + settings.validation_items
    _enough("test_items", settings.test_items, test_end, len(lines.all), what)
    _enough("validation_items", settings.validation_items, settings.validation_items, len(lines.all) - test_end, what)
    test, validation = lines.all[:test_end], lines.all[test_end:validation_end]
    left = lines.public[~np.isin(lines.public, lines.all[:validation_end])]
    count = _quota(settings.general_items, "format", place, settings, [1.0] * len(MIXTURE))
    _enough("general_items", settings.general_items, count, len(left), f"distinct public held-out items of {domain.name}")
    in_format = tuple(replace(item, domain=GENERAL, task="format") for item in lines.items(left[:count]))
    return lines.items(test), lines.items(validation), in_format


def _textbook(
    domain: Domain, place: int, settings: GeneratedData, generator: np.random.Generator
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Textbook lines for pretraining, every rule in it, and held-out wordings or values of the rules."""
    count = _quota(settings.pretraining_lines, "textbook", place, settings, list(MIXTURE.values()))
    general_count = _quota(settings.general_items, "textbook", place, settings, [1.0] * len(MIXTURE))
    quotas = _shares(count, [len(rule) ** 0.5 for rule in domain.textbook])
    pretraining, held_out = [], []
    for rule, quota in zip(domain.textbook, quotas, strict=True):
        seen, out = hold_out(generator, rule)
        pretraining += _repeat(_shuffled(generator, seen), quota)
        held_out += out
    _enough("general_items", settings.general_items, general_count, len(held_out), f"held-out textbook lines of {domain.name}")
    chosen = _shuffled(generator, held_out)[:general_count]
    return tuple(pretraining), tuple(replace(item, domain=GENERAL) for item in chosen)


def _mixture(
    splits: dict[str, DomainSplits], names: list[str], settings: GeneratedData, generator: np.random.Generator
) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """The pretraining lines and the held-out general items, both shuffled."""
    pretraining = [item for split in splits.values() for item in (*split.pretraining_format, *split.pretraining_textbook)]
    held_out = [item for split in splits.values() for item in (*split.general_format, *split.general_textbook)]
    wanted = dict(zip(MIXTURE, _shares(settings.pretraining_lines, list(MIXTURE.values())), strict=True))
    asked = dict(zip(MIXTURE, _shares(settings.general_items, [1.0] * len(MIXTURE)), strict=True))
    fact_lines = facts.lines(generator, GENERAL, names, general.FACT_PHRASINGS)
    parts = {"fact": (fact_lines, fact_lines)}
    for part, population in (("arithmetic", general.arithmetic()), ("ordinals", general.ordinals())):
        parts[part] = hold_out(generator, population)
    for part, (seen, out) in parts.items():
        _enough("general_items", settings.general_items, asked[part], len(out), f"general items of task {part}")
        pretraining += _repeat(_shuffled(generator, seen), wanted[part])
        held_out += _shuffled(generator, out)[: asked[part]]
    return tuple(_shuffled(generator, pretraining)), tuple(_shuffled(generator, held_out))
