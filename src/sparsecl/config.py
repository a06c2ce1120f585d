"""Studies as frozen, validated settings: `configs/<study>.yaml` -> `Study` (paper, section Method).

Every field carries a sentence and its unit. Unknown keys, wrong types and impossible values stop
with the key, the value seen and what is allowed. Nothing here imports torch: the workflow reads
studies every time it plans.
"""

import hashlib
import json
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sparsecl.arms import Arm, parse_arm
from sparsecl.matched_size import check_matched
from sparsecl.methods import DENSE_ONLY, FULL, RATE_OF, REFERENCES, WHOLE_WEIGHTS
from sparsecl.settings import (
    Comparison,
    Continual,
    Count,
    FurtherStreams,
    GeneratedData,
    Ladder,
    ManifestData,
    Model,
    Optimisation,
    Probe,
    Settings,
    Sparsify,
    Tokenizer,
)
from sparsecl.topologies import MASKLLM_TOPOLOGIES, TopologyMisfit, check_size, parse_topology

# The settings each notebook adds to those of the notebooks before it.
SECTIONS = {
    "01_sparsify": (
        "seed",
        "bases",
        "dtype",
        "data",
        "tokenizer",
        "model",
        "pretrain",
        "narrow",
        "ladder",
        "arms",
        "comparison",
        "sparsify",
        "scoring_batch",
    ),
    "02_recover": ("recover", "match_calibration"),
    "03_continual": ("continual", "measure"),
    "04_probe": ("probe",),
}
VALIDATION = "validation"  # the replicate on which settings are chosen; it never enters a result


class Study(Settings):
    """One study: `configs/<name>.yaml`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.\-]*$")]
    """The study's name, also its folder in runs/ and results/."""
    title: str
    """What the study is, a phrase for headers and captions."""
    seed: int
    """Seed from which every random stream derives, integer."""
    replicates: Annotated[int, Field(ge=2)]
    """Number of replicates, at least 2 (an interval needs a spread)."""
    bases: Literal[1] | None = None
    """1 where all replicates share one base (seeds are then fine-tuning seeds); absent: a base each."""
    dtype: Literal["float32", "bfloat16-autocast"] = "float32"
    """Arithmetic of training and scoring, name; weights stay float32."""
    base_threads: Count = 1
    """Threads of the job that trains the base; all other jobs use one, threads."""
    arms: tuple[str, ...]
    """Arms made by notebooks 01 and 02 in every replicate; S1 brings the S0 it starts from, names."""
    comparison: Comparison | None = None
    """Further arms, made in fewer replicates."""
    data: Annotated[GeneratedData | ManifestData, Field(discriminator="source")]
    """Where items come from."""
    tokenizer: Tokenizer
    """The tokenizer trained by the run."""
    model: Model
    """The shape of the base."""
    pretrain: Optimisation
    """Training of the base."""
    narrow: dict[str, Model] = {}
    """Shape of the dense models with as many parameters as the sparse arms of a density have non-zeros, by that density."""
    ladder: Ladder | None = None
    """Dense bases of other widths, for the probes' trend with scale."""
    sparsify: Sparsify
    """Conversion."""
    recover: Optimisation
    """Recovery of S1, and D1's training on the same rows."""
    match_calibration: bool = False
    """Whether D1 first trains once on the rows that calibrated the conversion, so that it has seen all that S1 has, yes or no."""
    continual: Continual
    """The domain stream."""
    probe: Probe
    """The probes."""
    measure: Literal["score", "nll"] = "score"
    """What claims are about: right answers, or answer-token loss where scores have no signal, name."""
    scoring_batch: Count = 128
    """Rows scored at once, rows."""

    @model_validator(mode="after")
    def _pieces_fit(self):
        if sorted(self.continual.orders["main"]) != sorted(self.data.domains):
            raise ValueError(f"continual.orders.main: {self.continual.orders['main']} must hold exactly the domains {self.data.domains}")
        for arm in self.all_arms():
            self._check_arm(arm)
        absent = set(self.continual.arms) - set(self.arms)
        if absent:
            raise ValueError(f"continual.arms: {sorted(absent)} are not among arms {self.arms}; add them there")
        for name, streams in self.continual.further.items():
            self._check_further(name, streams)
        if unused := sorted(set(self.continual.method_learning_rates) - set(self.streamed())):
            raise ValueError(f"continual.method_learning_rates: {unused} do not run or take another's rate; runs: {list(self.streamed())}")
        self._check_probes()
        for density in sorted({arm.density for arm in self.all_arms() if arm.lineage in ("Dnz", "Dcut")}):
            if f"{density:g}" not in self.narrow:
                raise ValueError(f"narrow: no shape for density {density:g}, which arms Dnz-{density:g} or Dcut-{density:g} need; add it")
            check_matched(self.narrow[f"{density:g}"], self.model, self.tokenizer.vocabulary, density)
        return self

    def _check_probes(self) -> None:
        """Every probe has what it reads."""
        if self.probe.items > self.data.test_items:
            raise ValueError(f"probe.items: {self.probe.items} is more than data.test_items {self.data.test_items}")
        if round(self.probe.top_fraction * self.model.ffn) < 1:
            raise ValueError(
                f"probe.top_fraction: {self.probe.top_fraction} of {self.model.ffn} neurons is none; "
                f"allowed is 1/{self.model.ffn} to below 1"
            )
        if (self.probe.routing is not None) != (self.model.family == "qwen3_5_moe"):
            raise ValueError(
                f"probe.routing: {'given' if self.probe.routing else 'absent'}, but model.family is {self.model.family}; "
                "the routing probe belongs to models with experts"
            )
        if self.ladder is not None and self.ladder.replicates > self.replicates:
            raise ValueError(f"ladder.replicates: {self.ladder.replicates} of {self.replicates} replicates; choose at most that")

    def _check_further(self, name: str, streams: FurtherStreams) -> None:
        """Their arms are made where they run, and other stage lengths cannot be taken for the main protocol."""
        where = f"continual.further.{name}"
        if streams.replicates > self.replicates:
            raise ValueError(f"{where}.replicates: {streams.replicates} of {self.replicates} replicates; choose at most that")
        compared = self.comparison.arms if self.comparison and self.comparison.replicates >= streams.replicates else ()
        if absent := set(streams.arms) - set(_with_starts((*self.arms, *compared))):
            made = f"made in {streams.replicates} replicates"
            raise ValueError(f"{where}.arms: {sorted(absent)} are not {made}; add them to arms or comparison")
        dense_only, sparse = sorted(set(streams.methods) & set(DENSE_ONLY)), [name for name in streams.arms if self.arm(name).is_sparse]
        if dense_only and sparse:
            raise ValueError(f"{where}: {dense_only} would fill the zeros of {sparse}; run them on dense arms alone")
        outside = sorted(set(streams.methods) - set(WHOLE_WEIGHTS))
        confined = [name for name in streams.arms if self.arm(name).masks_updates]
        if outside and confined:
            raise ValueError(f"{where}: {outside} choose what they train, and so does {confined}; run them on other arms")
        if set(streams.stage_steps) - {self.continual.stage_steps} and streams.replicates == self.replicates:
            raise ValueError(f"{where}.replicates: other stage lengths need fewer replicates than the study's {self.replicates}; lower it")

    def _check_arm(self, arm: Arm) -> None:
        if not arm.topology:
            return
        if self.model.experts:
            raise ValueError(f"arms: {arm.name}: conversions of a base with experts are not counted yet; use dense arms for it")
        for layer, (rows, columns) in self.model.linear_shapes().items():
            try:
                check_size(parse_topology(arm.topology), layer, rows, columns)
            except TopologyMisfit as error:
                raise ValueError(f"arms: {arm.name}: {error}") from None
        if arm.algorithm == "maskllm" and arm.topology not in MASKLLM_TOPOLOGIES:
            raise ValueError(f"arms: {arm.name}: maskllm is defined for {MASKLLM_TOPOLOGIES}, not for {arm.topology}; choose one of them")
        for field, algorithm in (("maskllm", "maskllm"), ("given_mask", "given")):
            if arm.algorithm == algorithm and getattr(self.sparsify, field) is None:
                raise ValueError(f"sparsify.{field}: absent, but arm {arm.name} needs it; add it or drop the arm")

    def arm(self, name: str) -> Arm:
        return parse_arm(name, self.sparsify.algorithm)

    def all_arms(self) -> tuple[Arm, ...]:
        """Every arm of the study, the compared ones last."""
        further = (self.comparison.arms if self.comparison else ()) + (self.ladder.arms if self.ladder else ())
        return tuple(self.arm(name) for name in _with_starts(self.arms + further))

    def arms_of(self, replicate: int | str) -> tuple[str, ...]:
        """Arms that a replicate makes; where settings are chosen, only those of the stream and what they start from."""
        if replicate == VALIDATION:
            return _with_starts(("D0", *(arm for arms in self.swept().values() for arm in arms)))
        compared = self.comparison is not None and replicate < self.comparison.replicates
        climbs = self.ladder is not None and replicate < self.ladder.replicates
        return _with_starts(self.arms + (self.comparison.arms if compared else ()) + (self.ladder.arms if climbs else ()))

    def widths(self) -> dict[str, int]:
        """Width of every dense base by arm: D0 and the ladder."""
        shapes = {} if self.ladder is None else dict(zip(self.ladder.arms, self.ladder.shapes.values(), strict=True))
        return {"D0": self.model.hidden, **{name: shape.hidden for name, shape in shapes.items()}}

    def streamed(self) -> dict[str, tuple[str, ...]]:
        """The arms that decide on a method's learning rate: those of every replicate, and of another method its own.

        References and controls that take the rate of another method have none.
        """
        arms = {FULL: self.continual.arms}
        for streams in self.continual.further.values():
            for method in set(streams.methods) - {FULL, *REFERENCES, *RATE_OF}:
                arms[method] = tuple(dict.fromkeys((*arms.get(method, ()), *streams.arms)))
        return dict(sorted(arms.items()))

    def swept(self) -> dict[str, tuple[str, ...]]:
        """Of these the methods for which the grid is tried; the others have a fixed learning rate."""
        given = self.continual.method_learning_rates
        return {method: arms for method, arms in self.streamed().items() if len(self.continual.learning_rates) > 1 and method not in given}

    def needs_validation(self) -> bool:
        """Whether a learning rate has to be chosen, i.e. the validation replicate runs."""
        return bool(self.swept())

    def base_of(self, replicate: int | str) -> int | str:
        """The replicate whose job trains the base that `replicate` starts from."""
        return replicate if self.bases is None else replicate_name(0)

    def replicate_names(self) -> tuple[int | str, ...]:
        """Every replicate to run, the validation replicate first where there is one."""
        return ((VALIDATION,) if self.needs_validation() else ()) + tuple(range(self.replicates))

    def digest_up_to(self, notebook: str) -> str:
        """sha256 over the settings that a notebook and those before it depend on: other edits leave its record valid."""
        position = list(SECTIONS).index(notebook) + 1
        return self.digest(*(section for sections in list(SECTIONS.values())[:position] for section in sections))

    def digest(self, *sections: str) -> str:
        """sha256 over the named sections (all of them when none is named).

        Defaults are left out, so that a new setting does not make finished work foreign. Hence: a default never changes,
        and a new setting's default means what was done before it existed.
        """
        content = self.model_dump(mode="json", include=set(sections) or None, exclude_defaults=True)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _with_starts(names: tuple[str, ...]) -> tuple[str, ...]:
    """Put before every arm what it starts from: the S0 of S1 and Sf, D1 and the masks of Dg."""
    found: list[str] = []
    for name in names:
        arm = parse_arm(name)
        found += ["D1"] * arm.masks_updates + [f"S0-{arm.conversion}"] * bool(arm.topology) + [name]
    return tuple(dict.fromkeys(found))


def replicate_name(text: int | str) -> int | str:
    """Read a replicate as it stands in paths and parameters: a number or `validation`."""
    if text == VALIDATION:
        return VALIDATION
    if not str(text).isdigit():
        raise ValueError(f"replicate {text!r} is neither a number from 0 nor {VALIDATION!r}")
    return int(text)
