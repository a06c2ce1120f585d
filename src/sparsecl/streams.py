"""Which streams a replicate runs, and with which learning rate (paper, sections Stream and Learning rates).

The main protocol runs in every replicate; further arms, methods, orders and stage lengths run in the first ones only.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sparsecl.arms import Arm
from sparsecl.base import Base
from sparsecl.config import VALIDATION, Study
from sparsecl.domain_orders import MAIN, REPEAT
from sparsecl.experiment import Experiment
from sparsecl.matched_flops import matched_steps, stage_consumption
from sparsecl.methods import FULL, JOINT, RATE_OF, REFERENCES, SINGLE
from sparsecl.settings import Continual, FurtherStreams


@dataclass(frozen=True)
class Stream:
    """One run: an arm, a method, an order, a learning rate, a stage length."""

    arm: Arm
    method: str
    order: str
    learning_rate: float
    stage_steps: int

    @property
    def folder(self) -> str:
        return f"{self.method}-{self.order}-{self.stage_steps}steps-lr{self.learning_rate:g}"

    @property
    def has_curve(self) -> bool:
        """Whether points inside the stages are scored: where curves are read, which is along the main order."""
        return self.order == MAIN

    def has_main_length(self, study: Study) -> bool:
        """Arms of equal FLOPs have a stage length of their own."""
        return self.stage_steps == study.continual.stage_steps or self.arm.lineage in ("Df", "Sf")

    def is_main(self, study: Study) -> bool:
        """Whether this is the main protocol, of which items are kept."""
        return self.method == FULL and self.order == MAIN and self.has_main_length(study)

    def job(self, study: Study) -> str:
        """How the cost table names it beside arm and method."""
        is_usual = self.order == MAIN and self.has_main_length(study)
        return "03_continual" if is_usual else f"03_continual/{self.order}/{self.stage_steps}"

    @property
    def batches(self) -> str:
        """Suffix of the random streams of its stages: a repeat draws other batches."""
        return f"-{REPEAT}" if self.order == REPEAT else ""

    def domains(self, settings: Continual) -> tuple[str, ...]:
        """The domain of every stage; the references have one stage only."""
        if self.method == JOINT:
            return (JOINT,)
        if self.method == SINGLE:
            return (self.order.removeprefix(f"{SINGLE}-"),)
        return settings.all_orders()[self.order]


def planned_streams(experiment: Experiment, base: Base, rates: Mapping[str, float] | None) -> list[Stream]:
    """The runs of this replicate: on the validation replicate the whole grid for every method, elsewhere the chosen rates."""
    settings, consumption = experiment.study.continual, stage_consumption(experiment, base)

    def length(arm: Arm, steps: int) -> int:
        return matched_steps(experiment.study, arm, steps, consumption)

    if experiment.replicate == VALIDATION:
        return [
            Stream(arm, method, MAIN, rate, length(arm, settings.stage_steps))
            for method, arms in experiment.study.swept().items()
            for arm in experiment.chosen(arms)
            for rate in settings.learning_rates
        ]
    main = FurtherStreams(replicates=experiment.study.replicates, arms=settings.arms)
    sets = [main, *(streams for streams in settings.further.values() if experiment.replicate < streams.replicates)]
    planned = [
        Stream(arm, method, order, rates[FULL if method in REFERENCES else RATE_OF.get(method, method)], length(arm, steps))
        for streams in sets
        for arm in experiment.chosen(streams.arms)
        for method, order, steps in _kinds(settings, streams)
    ]
    return list(dict.fromkeys(planned))  # a run that two sets name is run once


def _kinds(settings: Continual, streams: FurtherStreams) -> Iterator[tuple[str, str, int]]:
    """Method, order and steps of a stage of every stream of a set, for each of its arms."""
    for method in streams.methods:
        for steps in streams.stage_steps or (settings.stage_steps,):
            if method == JOINT:
                yield method, JOINT, steps * len(settings.orders[MAIN])
            elif method == SINGLE:
                yield from ((method, f"{SINGLE}-{domain}", steps) for domain in settings.orders[MAIN])
            else:
                yield from ((method, order, steps) for order in settings.orders_named(streams.orders))


def choose_learning_rates(rows: Sequence[dict], measure: str) -> dict[str, float]:
    """The learning rate of every method of a sweep."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: choose_learning_rate([row for row in rows if row["method"] == method], measure) for method in methods}


def choose_learning_rate(rows: Sequence[dict], measure: str) -> float:
    """The lowest rate that learns as well as the best: within one standard error of its mean over arms and domains.

    One rate serves all arms, because the stream's optimisation must not differ between them; the mean over the
    arms favours none. The shortfall is paired by arm and domain. The one-standard-error rule (Breiman et al. 1984)
    keeps a rate from winning by noise, at the cost of everything that a larger rate overwrites.
    """
    learned = _learned(rows, measure)
    best = max(learned, key=lambda rate: (learned[rate].mean(), -rate))
    return min(rate for rate in learned if _mean_within_one_standard_error_of_zero(learned[best] - learned[rate]))


def _learned(rows: Sequence[dict], measure: str) -> dict[float, np.ndarray]:
    """Per rate, what each arm has learned of each domain right after its stage, in one order of (arm, domain)."""
    column, sign = ("own", 1) if measure == "score" else ("nll_own", -1)
    learned: dict[float, dict[tuple[str, str, str], float]] = {}
    for row in rows:
        if row["kind"] == "all":
            learned.setdefault(row["learning_rate"], {})[row["arm"], row["method"], row["domain"]] = sign * row[column]
    cells = next(iter(learned.values())).keys()
    if differing := [rate for rate, values in learned.items() if values.keys() != cells]:
        raise ValueError(f"the sweep has other arms or domains under {differing} than under {next(iter(learned))}; run 03_continual again")
    return {rate: np.array([values[cell] for cell in cells]) for rate, values in learned.items()}


def _mean_within_one_standard_error_of_zero(shortfalls: np.ndarray) -> bool:
    error = shortfalls.std(ddof=1) / np.sqrt(len(shortfalls)) if len(shortfalls) > 1 else 0.0
    return bool(shortfalls.mean() <= error)
