"""The analysis a study fixed before its results: `paper/preregistration/<study>.yaml` (paper, section Registered analysis).

Two forms of hypothesis. `paired`: a sparse arm improves one metric and is not worse on another, against
several controls (H1, H2). `topology_by_stage`: sparse topologies differ in their forgetting curves (H3).
A pilot fixes its analysis too, but claims nothing: its statements carry the status `pilot`. A study
without such a file gets `exploratory_analysis`, which states contrasts and has no margin, hence no verdict.
"""

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecl.arms import parse_arm
from sparsecl.protocol import METHOD, ORDER
from sparsecl.tree import REPOSITORY

FOLDER = REPOSITORY / "paper" / "preregistration"
Margin = Annotated[float, Field(gt=0)] | None
Replicates = Annotated[int, Field(ge=2)] | None


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PlannedContrast(_Frozen):
    """A paired comparison of two arms: treatment minus control."""

    treatment: str
    """The sparse arm, name."""
    control: str
    """The arm it is held against, name."""
    role: Literal["main", "strict", "beside"] = "beside"
    """main: the comparison the hypothesis is about; strict: a harder one that A needs too; beside: reported, decides nothing."""
    replicates: Replicates = None
    """Number of replicates fixed for this contrast where it is not the hypothesis' own, replicates."""

    @model_validator(mode="after")
    def _arms_are_known(self):
        parse_arm(self.treatment), parse_arm(self.control)
        return self

    @property
    def name(self) -> str:
        return f"{self.treatment} - {self.control}"


class DecidingMetric(_Frozen):
    """A metric over domains, which direction is better, and the largest difference that counts as none."""

    metric: str
    """Metric as in metrics.csv, name."""
    better: Literal["lower", "higher"]
    """The direction that speaks for an arm."""
    margin: Margin = None
    """Largest difference that counts as none, units of the metric; absent: no equivalence test and no verdict."""
    margin_reason: str = ""
    """Why that margin, sentences."""

    @property
    def sign(self) -> int:
        return 1 if self.better == "higher" else -1


class PairedHypothesis(_Frozen):
    """The sparse arm improves one metric and is not worse on another, against every deciding control."""

    test: Literal["paired"]
    """The form of the hypothesis."""
    statement: str
    """The hypothesis, a sentence."""
    improved: DecidingMetric
    """What must be better."""
    not_worse: DecidingMetric
    """What must not be worse beyond its margin: an arm that learns less also has less to lose."""
    replicates: Replicates = None
    """Number of replicates fixed beforehand; absent where it was not fixed, replicates."""
    contrasts: Annotated[tuple[PlannedContrast, ...], Field(min_length=1)]
    """One main comparison, strict ones, and any that stand beside."""

    @model_validator(mode="after")
    def _one_main(self):
        if [contrast.role for contrast in self.contrasts].count("main") != 1:
            raise ValueError("contrasts: exactly one needs the role main")
        return self

    @property
    def main(self) -> PlannedContrast:
        return next(contrast for contrast in self.contrasts if contrast.role == "main")

    @property
    def strict(self) -> tuple[PlannedContrast, ...]:
        return tuple(contrast for contrast in self.contrasts if contrast.role == "strict")

    @property
    def beside(self) -> tuple[PlannedContrast, ...]:
        return tuple(contrast for contrast in self.contrasts if contrast.role == "beside")

    @property
    def deciding(self) -> tuple[DecidingMetric, DecidingMetric]:
        return self.improved, self.not_worse

    def registered_replicates(self, contrast: PlannedContrast) -> int | None:
        return contrast.replicates or self.replicates


class TopologyHypothesis(_Frozen):
    """Topologies of equal density differ in forgetting: a repeated-measures ANOVA topology x stage, and all pairs."""

    test: Literal["topology_by_stage"]
    """The form of the hypothesis."""
    statement: str
    """The hypothesis, a sentence."""
    arms: Annotated[tuple[str, ...], Field(min_length=2)]
    """One sparse arm a topology, all of equal density, names."""
    forgetting: DecidingMetric
    """The end of the curves, over which the pairs are contrasted; its margin says which differences count."""
    replicates: Replicates = None
    """Number of replicates fixed beforehand, replicates."""

    @model_validator(mode="after")
    def _comparable(self):
        arms = [parse_arm(name) for name in self.arms]
        if len({arm.topology for arm in arms} - {""}) < len(arms) or len({arm.density for arm in arms}) > 1:
            raise ValueError(f"arms: {list(self.arms)} must be sparse arms of different topologies and one density")
        if self.forgetting.metric != "forgetting":
            raise ValueError(f"forgetting.metric: the curves F_k end in forgetting, not in {self.forgetting.metric}")
        return self

    @property
    def pairs(self) -> tuple[PlannedContrast, ...]:
        """Every pair of arms, in the registered order."""
        return tuple(PlannedContrast(treatment=first, control=second) for i, first in enumerate(self.arms) for second in self.arms[i + 1 :])

    @property
    def deciding(self) -> tuple[DecidingMetric]:
        return (self.forgetting,)


class Family(_Frozen):
    """Exploratory tests that Holm's correction runs over together."""

    metrics: tuple[str, ...]
    """Metrics, names; a suffix names a kind of item: forgetting/fact."""
    contrasts: tuple[PlannedContrast, ...] | None = None
    """Comparisons; absent: the contrasts of the first hypothesis."""


Hypothesis = Annotated[PairedHypothesis | TopologyHypothesis, Field(discriminator="test")]


class Preregistration(_Frozen):
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
    """Method of continual fine-tuning: that of the main protocol, name."""
    order: Literal[ORDER] = ORDER
    """Domain order: that of the main protocol, name."""
    deciding_topology: str
    """The sparse topology that paired hypotheses are decided on, name."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of every test, probability."""
    exclusions: str = ""
    """Which replicates may be left out, sentences."""
    own: str
    """What was learned in the first place, always reported beside what decides, name."""
    hypotheses: Annotated[dict[str, Hypothesis], Field(min_length=1)]
    """Hypotheses by name; the first compares arms and gives the families their contrasts."""
    families: dict[str, Family]
    """Exploratory tests by family; what a hypothesis tests already is not tested again."""

    @model_validator(mode="after")
    def _pieces_fit(self):
        if not isinstance(self.leading, PairedHypothesis):
            raise ValueError("hypotheses: the first one must have the form paired; it gives the families their contrasts")
        if self.own not in {metric for family in self.families.values() for metric in family.metrics}:
            raise ValueError(f"families: {self.own} is in none; less forgetting can mean less learned, so it is always reported")
        if both := set(self.hypotheses) & set(self.families):
            raise ValueError(f"families: {sorted(both)} name a hypothesis too; tests.csv could not tell them apart")
        for name, hypothesis in self.hypotheses.items():
            self._fixed_beforehand(name, hypothesis)
        return self

    def _fixed_beforehand(self, name: str, hypothesis: PairedHypothesis | TopologyHypothesis) -> None:
        if self.status != "exploratory":
            fixed = all(metric.margin and metric.margin_reason for metric in hypothesis.deciding) and hypothesis.replicates
            if not fixed:
                raise ValueError(f"hypotheses.{name}: a pilot or registered analysis fixes margin, margin_reason and replicates beforehand")
        if isinstance(hypothesis, PairedHypothesis):
            wrong = [c.treatment for c in hypothesis.contrasts if parse_arm(c.treatment).topology != self.deciding_topology]
            if wrong:
                raise ValueError(f"hypotheses.{name}.contrasts: {wrong} are not of the deciding topology {self.deciding_topology}")

    @property
    def leading(self) -> PairedHypothesis | TopologyHypothesis:
        """The first hypothesis, the one the study is about."""
        return next(iter(self.hypotheses.values()))

    @property
    def margin(self) -> float | None:
        """The margin of what the first hypothesis claims to improve; figures draw it."""
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


def exploratory_analysis(study: str, treatment: str = "S1-2of4", control: str = "D1", measure: Literal["score", "loss"] = "score"):
    """The analysis of a study that registered none, on scores or on answer-token loss: contrasts, no margin, no verdict."""
    improved, kept, own = {"score": ("forgetting", "final", "own"), "loss": ("loss_forgetting", "loss_final", "loss_own")}[measure]
    beside = (own, "bwt", "acc", "retention", "learning_speed", "general_retention") if measure == "score" else (own, "general_loss_rise")
    hypothesis = PairedHypothesis(
        test="paired",
        statement="How do the arms differ in what they forget, keep and learn?",
        improved=DecidingMetric(metric=improved, better="lower"),
        not_worse=DecidingMetric(metric=kept, better="higher" if measure == "score" else "lower"),
        contrasts=(PlannedContrast(treatment=treatment, control=control, role="main"),),
    )
    return Preregistration(
        study=study,
        status="exploratory",
        question=hypothesis.statement,
        deciding_topology=parse_arm(treatment).topology,
        own=own,
        hypotheses={"H1": hypothesis},
        families={"beside": Family(metrics=beside)},
    )
