"""The forms of hypothesis that a registration can hold (paper, section Registered analysis).

Three forms. `paired`: a run improves one metric and is not worse on another, against several controls (H1, H2; H5A, H5B).
`topology_by_stage`: sparse topologies differ in their forgetting curves (H3). `scale_trend`: a quantity of the probes
falls over a ladder of widths (H4). A run is written `D1` where it went through the stream by full fine-tuning, and
`D1:lora` where by another method.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sparsecl.arms import RUNG, parse_arm
from sparsecl.methods import METHODS
from sparsecl.protocol import METHOD, run_parts

Margin = Annotated[float, Field(gt=0)] | None
Replicates = Annotated[int, Field(ge=2)] | None


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def check_run(run: str) -> None:
    """ValueError unless `run` is an arm, or an arm and a method other than that of the main protocol (`D1:lora`)."""
    arm, method = run_parts(run)
    parse_arm(arm)
    if method not in METHODS or run == f"{arm}:{METHOD}":
        raise ValueError(f"run {run!r}: write the arm alone for {METHOD}, else a method after the colon: {sorted(set(METHODS) - {METHOD})}")


class PlannedContrast(Frozen):
    """A paired comparison of two runs: treatment minus control."""

    treatment: str
    """The run the hypothesis is about: the sparse arm, or a method on an arm, name."""
    control: str
    """The run it is held against, name."""
    role: Literal["main", "strict", "beside"] = "beside"
    """main: the comparison the hypothesis is about; strict: a harder one that A needs too; beside: reported, decides nothing."""
    replicates: Replicates = None
    """Number of replicates fixed for this contrast where it is not the hypothesis' own, replicates."""

    @model_validator(mode="after")
    def _runs_are_known(self):
        check_run(self.treatment), check_run(self.control)
        return self

    @property
    def name(self) -> str:
        return f"{self.treatment} - {self.control}"


class DecidingMetric(Frozen):
    """A metric over domains, which direction is better, and the largest difference that counts as none."""

    metric: str
    """Metric as in metrics.csv, name."""
    better: Literal["lower", "higher"]
    """The direction that speaks for a run."""
    margin: Margin = None
    """Largest difference that counts as none, units of the metric; absent: no equivalence test and no verdict."""
    margin_reason: str = ""
    """Why that margin, sentences."""

    @property
    def sign(self) -> int:
        return 1 if self.better == "higher" else -1


class AtEqualOwn(Frozen):
    """The improvement must also hold where both runs of the main contrast have learned equally much.

    The mean vertical difference of their frontiers over several stage lengths needs a t-interval on the better side of 0, and
    a common range of own in every replicate.
    """

    replicates: Annotated[int, Field(ge=2)]
    """Number of replicates with several stage lengths fixed beforehand, replicates."""


class PairedHypothesis(Frozen):
    """The treatment improves one metric and is not worse on another, against every deciding control."""

    test: Literal["paired"]
    """The form of the hypothesis."""
    statement: str
    """The hypothesis, a sentence."""
    improved: DecidingMetric
    """What must be better."""
    not_worse: DecidingMetric
    """What must not be worse beyond its margin: a run that learns less also has less to lose."""
    replicates: Replicates = None
    """Number of replicates fixed beforehand; absent where it was not fixed, replicates."""
    at_equal_own: AtEqualOwn | None = None
    """What A needs beyond the contrasts: the improvement along the frontiers of the main contrast's runs; absent: nothing."""
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


class TopologyHypothesis(Frozen):
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


class ActivationTrend(Frozen):
    """The trend of the normalised activation overlap, (IoU - chance) / (ceiling - chance), of one selection."""

    metric: Literal["normalised_overlap"] = "normalised_overlap"
    """The quantity, name."""
    selection: str
    """Selection of neurons in overlap.csv, name."""
    top_fraction: Annotated[float, Field(gt=0, lt=1)]
    """Share of a layer's neurons that a domain's set holds, fraction."""
    smallest_range: Annotated[float, Field(gt=0)] = 0.05
    """A cell whose ceiling is not this far above chance has no value: a domain's own set is not stable there, IoU."""
    margin: Margin = None
    """Largest slope that counts as none, per doubling of the width; absent: no verdict."""
    margin_reason: str = ""
    """Why that margin, sentences."""


class GradientTrend(Frozen):
    """The trend of the disattenuated gradient cosine, cosine / split-half ceiling."""

    metric: Literal["disattenuated_cosine"] = "disattenuated_cosine"
    """The quantity, name."""
    measure: Literal["cosine"] = "cosine"
    """Measure in gradients.csv, name."""
    smallest_ceiling: Annotated[float, Field(gt=0)] = 0.1
    """A cell whose ceiling is smaller has no value, cosine."""
    nulls_below_ceiling: Annotated[float, Field(ge=1)] = 5.0
    """Nor has one whose ceiling is less than so many times 1 / sqrt(parameters), factor."""
    margin: Margin = None
    """Largest slope that counts as none, per doubling of the width; absent: no verdict."""
    margin_reason: str = ""
    """Why that margin, sentences."""


class ScaleHypothesis(Frozen):
    """Domains share less of a wider base: two quantities of the probes fall over a ladder of widths."""

    test: Literal["scale_trend"]
    """The form of the hypothesis."""
    statement: str
    """The hypothesis, a sentence."""
    ladder: dict[str, Annotated[int, Field(gt=0)]]
    """Width of each dense base, units of the residual stream by arm."""
    base: str = "D0"
    """The arm of the ladder on which implicit sparsity itself is reported, name."""
    replicates: Replicates = None
    """Number of replicates fixed beforehand, replicates."""
    activation: ActivationTrend
    """Do domains use more different neurons?"""
    gradient: GradientTrend
    """Are gradients of domains closer to orthogonal?"""

    @model_validator(mode="after")
    def _ladder_is_one(self):
        wrong = [arm for arm, width in self.ladder.items() if arm not in (self.base, f"{RUNG}-{width}")]
        if wrong or self.base not in self.ladder or len(set(self.ladder.values())) < max(len(self.ladder), 3):
            raise ValueError(f"ladder: {self.ladder} must hold {self.base} and arms such as Dw-64 with their own widths, at least 3 in all")
        return self

    @property
    def deciding(self) -> tuple[ActivationTrend, GradientTrend]:
        return self.activation, self.gradient

    @property
    def widest(self) -> str:
        return max(self.ladder, key=self.ladder.__getitem__)


class Family(Frozen):
    """Exploratory tests that Holm's correction runs over together."""

    metrics: tuple[str, ...]
    """Metrics, names; a suffix names a kind of item: forgetting/fact."""
    contrasts: tuple[PlannedContrast, ...] | None = None
    """Comparisons; absent: the contrasts of the leading hypothesis."""


Hypothesis = Annotated[PairedHypothesis | TopologyHypothesis | ScaleHypothesis, Field(discriminator="test")]
