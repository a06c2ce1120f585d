"""The analysis a study fixed before its results: `paper/preregistration/<study>.yaml` (paper, section Registered analysis).

The forms of hypothesis are in `hypotheses`. A pilot fixes its analysis too, but claims nothing: its statements carry
the status `pilot`. A study without such a file gets `exploratory_analysis`, which states contrasts and has no margin,
hence no verdict.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from sparsecl.arms import parse_arm
from sparsecl.config import Study
from sparsecl.hypotheses import DecidingMetric, Family, Frozen, Hypothesis, PairedHypothesis, PlannedContrast
from sparsecl.methods import REFERENCES
from sparsecl.protocol import METHOD, ORDER, run_parts
from sparsecl.tree import REPOSITORY

FOLDER = REPOSITORY / "paper" / "preregistration"
CONTROL = "D1"  # of an exploratory analysis


class Preregistration(Frozen):
    """The registered analysis of one study."""

    study: str
    """The study whose results it binds, name."""
    status: Literal["pilot", "registered", "exploratory"]
    """pilot: finds the settings of a later study; registered: committed before its results; exploratory: neither."""
    question: str
    """What the study asks, a sentence."""
    seed: int | None = None
    """The study seed whose replicates are registered; absent where any will do."""
    kind: Literal["ability", "fact", "all"] = "all"
    """Kind of item behind a metric without a suffix, name."""
    method: Literal[METHOD] = METHOD
    """Method of the arms that are named without one: that of the main protocol, name."""
    order: Literal[ORDER] = ORDER
    """Domain order: that of the main protocol, name."""
    deciding_topology: str | None = None
    """The sparse topology that paired hypotheses are decided on, name; absent where hypotheses are about methods or scale."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of every test, probability."""
    exclusions: str = ""
    """Which replicates may be left out, sentences."""
    own: str
    """What was learned in the first place, always reported beside what decides, name."""
    hypotheses: Annotated[dict[str, Hypothesis], Field(min_length=1)]
    """Hypotheses by name; the first paired one leads: it gives the families their contrasts."""
    families: dict[str, Family]
    """Exploratory tests by family; what a hypothesis tests already is not tested again."""

    @model_validator(mode="after")
    def _pieces_fit(self):
        without = [name for name, family in self.families.items() if family.contrasts is None]
        if without and not isinstance(self.leading, PairedHypothesis):
            raise ValueError(f"families: {without} need contrasts of their own, since no hypothesis has the form paired")
        if self.own not in {metric for family in self.families.values() for metric in family.metrics}:
            raise ValueError(f"families: {self.own} is in none; less forgetting can mean less learned, so it is always reported")
        if both := set(self.hypotheses) & set(self.families):
            raise ValueError(f"families: {sorted(both)} name a hypothesis too; tests.csv could not tell them apart")
        for name, hypothesis in self.hypotheses.items():
            self._fixed_beforehand(name, hypothesis)
        return self

    def _fixed_beforehand(self, name: str, hypothesis: Hypothesis) -> None:
        if self.status != "exploratory":
            fixed = all(metric.margin and metric.margin_reason for metric in hypothesis.deciding) and hypothesis.replicates
            if not fixed:
                raise ValueError(f"hypotheses.{name}: a pilot or registered analysis fixes margin, margin_reason and replicates beforehand")
        if isinstance(hypothesis, PairedHypothesis) and self.deciding_topology is not None:
            treatments = [contrast.treatment for contrast in hypothesis.contrasts]
            wrong = [run for run in treatments if parse_arm(run_parts(run)[0]).topology != self.deciding_topology]
            if wrong:
                raise ValueError(f"hypotheses.{name}.contrasts: {wrong} are not of the deciding topology {self.deciding_topology}")

    @property
    def leading(self) -> Hypothesis:
        """The first paired hypothesis, or else the first one: what the study is about."""
        paired = [hypothesis for hypothesis in self.hypotheses.values() if isinstance(hypothesis, PairedHypothesis)]
        return paired[0] if paired else next(iter(self.hypotheses.values()))

    @property
    def margin(self) -> float | None:
        """The margin of what the leading hypothesis claims to improve; figures draw it."""
        return self.leading.deciding[0].margin


def load_preregistration(study: str, folder: Path = FOLDER) -> Preregistration | None:
    """The study's registration; None where it has none. ValueError names the file, key and value that cannot be used."""
    path = folder / f"{study}.yaml"
    if not path.is_file():
        return None
    try:
        registration = Preregistration.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc'])) or 'file'}: {p['msg'].removeprefix('Value error, ')}" for p in error.errors())
        raise ValueError(f"{path}: {problems}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML: {error}") from None
    if registration.study != study:
        raise ValueError(f"{path}: study is {registration.study!r}, but the file is named after {study!r}; make them agree")
    return registration


def planned_analysis(study: Study) -> Preregistration:
    """The study's registration, or an exploratory analysis.

    That holds the 2:4 arm against D1; in a study that streams no sparse arm, every further method on D1 against full fine-tuning.
    """
    if (registration := load_preregistration(study.name)) is not None:
        return registration
    measure = "score" if study.measure == "score" else "loss"
    further = [streams for streams in study.continual.further.values() if CONTROL in streams.arms]
    methods = [method for streams in further for method in streams.methods if method not in (METHOD, *REFERENCES)]
    if methods and not any(parse_arm(arm).is_sparse for arm in study.continual.arms):
        return exploratory_analysis(study.name, [f"{CONTROL}:{method}" for method in dict.fromkeys(methods)], measure=measure)
    return exploratory_analysis(study.name, measure=measure)


def exploratory_analysis(
    study: str, treatments: Sequence[str] = ("S1-2of4",), control: str = CONTROL, measure: Literal["score", "loss"] = "score"
) -> Preregistration:
    """The analysis of a study that registered none, on scores or on answer-token loss: contrasts, no margin, no verdict.

    `treatments` are runs, each held against `control`; the first is the main one.
    """
    improved, kept, own = {"score": ("forgetting", "final", "own"), "loss": ("loss_forgetting", "loss_final", "loss_own")}[measure]
    beside = (own, "bwt", "acc", "retention", "learning_speed", "general_retention") if measure == "score" else (own, "general_loss_rise")
    roles = ["main"] + ["beside"] * (len(treatments) - 1)
    hypothesis = PairedHypothesis(
        test="paired",
        statement="How do the arms differ in what they forget, keep and learn?",
        improved=DecidingMetric(metric=improved, better="lower"),
        not_worse=DecidingMetric(metric=kept, better="higher" if measure == "score" else "lower"),
        contrasts=tuple(PlannedContrast(treatment=t, control=control, role=r) for t, r in zip(treatments, roles, strict=True)),
    )
    return Preregistration(
        study=study,
        status="exploratory",
        question=hypothesis.statement,
        own=own,
        hypotheses={"H1": hypothesis},
        families={"beside": Family(metrics=beside)},
    )
