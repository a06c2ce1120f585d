"""The analysis a study fixed before its results: `paper/preregistration/<study>.yaml` (paper, section Registered analysis).

A pilot fixes its analysis too, but claims nothing: its statements carry the status `pilot`. A study
without such a file gets `exploratory_analysis`, which states contrasts and has no margin, hence no verdict.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecl.arms import parse_arm
from sparsecl.tree import REPOSITORY

FOLDER = REPOSITORY / "paper" / "preregistration"
HYPOTHESIS = "H1"  # the family that the verdict is computed from


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PlannedContrast(_Frozen):
    """A paired comparison of two arms: treatment minus control."""

    treatment: str
    """The sparse arm, name."""
    control: str
    """The dense arm it is held against, name."""
    role: Literal["main", "strict"]
    """main: the same shape and tokens (D1); strict: a control for capacity or compute."""

    @model_validator(mode="after")
    def _arms_are_known(self):
        parse_arm(self.treatment), parse_arm(self.control)
        return self

    @property
    def name(self) -> str:
        return f"{self.treatment} - {self.control}"


class Preregistration(_Frozen):
    """The registered analysis of one study."""

    study: str
    """The study whose results it binds, name."""
    status: Literal["pilot", "registered", "exploratory"]
    """pilot: finds the settings of a later study; registered: committed before its results; exploratory: neither."""
    question: str
    """The hypothesis, a sentence."""
    metric: str
    """The metric that decides together with `retained`, name; lower is better."""
    retained: str
    """What is kept in the end, name; higher is better for scores."""
    own: str
    """What was learned in the first place, always reported beside the other two, name."""
    kind: Literal["ability", "fact", "all"] = "all"
    """Kind of item behind a metric without a suffix; forgetting/fact names another, name."""
    method: str = "full"
    """Method of continual fine-tuning, name."""
    order: str = "main"
    """Domain order, name."""
    deciding_topology: str
    """The sparse topology that decides, name."""
    margin: Annotated[float, Field(gt=0)] | None = None
    """Largest difference that counts as none, score units; absent: no equivalence test and no verdict."""
    margin_reason: str = ""
    """Why that margin, sentences."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of every test, probability."""
    replicates: Annotated[int, Field(ge=2)] | None = None
    """Number of replicates fixed beforehand; absent where it was not fixed, replicates."""
    exclusions: str = ""
    """Which replicates may be left out, a sentence."""
    contrasts: Annotated[tuple[PlannedContrast, ...], Field(min_length=1)]
    """Comparisons; the hypothesis is supported only where it holds in all of them."""
    families: dict[str, tuple[str, ...]]
    """Metrics by family; Holm's correction runs over a family's metrics and contrasts. H1 decides, the others are exploratory."""

    @model_validator(mode="after")
    def _pieces_fit(self):
        if set(self.families.get(HYPOTHESIS, ())) != {self.metric, self.retained}:
            raise ValueError(f"families.{HYPOTHESIS}: must hold exactly metric and retained ({self.metric}, {self.retained})")
        if self.own not in {metric for family in self.families.values() for metric in family}:
            raise ValueError(f"families: {self.own} is in none; less forgetting can mean less learned, so it is always reported")
        if [contrast.role for contrast in self.contrasts].count("main") != 1:
            raise ValueError("contrasts: exactly one needs the role main")
        wrong = [c.treatment for c in self.contrasts if parse_arm(c.treatment).topology != self.deciding_topology]
        if wrong:
            raise ValueError(f"contrasts: treatments {wrong} are not of the deciding topology {self.deciding_topology}")
        if self.status != "exploratory" and not (self.margin and self.margin_reason and self.replicates):
            raise ValueError("margin, margin_reason, replicates: a pilot or registered analysis fixes all three beforehand")
        if self.margin and (self.metric, self.retained) != ("forgetting", "final"):
            raise ValueError(
                f"margin: the verdict is defined on forgetting and final, not on {self.metric} and {self.retained}; leave it out"
            )
        return self

    @property
    def main(self) -> PlannedContrast:
        return next(contrast for contrast in self.contrasts if contrast.role == "main")

    @property
    def strict(self) -> tuple[PlannedContrast, ...]:
        return tuple(contrast for contrast in self.contrasts if contrast.role == "strict")


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


def exploratory_analysis(study: str, treatment: str = "S1-2of4", control: str = "D1", measure: Literal["score", "loss"] = "score"):
    """The analysis of a study that registered none, on scores or on answer-token loss: contrasts, no margin, no verdict."""
    metric, retained, own = {"score": ("forgetting", "final", "own"), "loss": ("loss_forgetting", "loss_final", "loss_own")}[measure]
    beside = (own, "bwt", "acc", "retention", "learning_speed", "general_retention") if measure == "score" else (own, "general_loss_rise")
    return Preregistration(
        study=study,
        status="exploratory",
        question="How do the arms differ in what they forget, keep and learn?",
        metric=metric,
        retained=retained,
        own=own,
        deciding_topology=parse_arm(treatment).topology,
        contrasts=(PlannedContrast(treatment=treatment, control=control, role="main"),),
        families={HYPOTHESIS: (metric, retained), "beside": beside},
    )
