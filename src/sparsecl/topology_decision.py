"""The rules of the verdict on a topology hypothesis, H3 (paper, section Registered analysis).

Two statements about sparse topologies of equal density: a repeated-measures ANOVA topology x stage on the
forgetting curves (main effect and interaction, Greenhouse-Geisser, Holm over the two), and every pair of
topologies in forgetting at the end (paired t, Holm over the pairs, TOST).

* A, supported: an effect of the ANOVA is significant, and so is a pair whose difference is not merely within the margin.
* B, equivalent: every pair lies inside the margin by TOST, also where the ANOVA is significant.
* undecided otherwise, with a number of replicates for planning a new study only.

There is no C: the hypothesis says that topologies differ, and a difference in either direction supports it.
"""

import math
from collections.abc import Sequence

from sparsecl.anova import Effect
from sparsecl.decision import Verdict, in_points, replicates_to_plan, wrong_replicates
from sparsecl.hypotheses import TopologyHypothesis
from sparsecl.statistics import Contrast

HEADLINES = {
    "A": "supported: topologies of equal density differ in what they forget",
    "B": "equivalent: no two topologies differ by as much as the margin",
    "undecided": "undecided",
    "none": "no verdict",
}


def decide_topologies(
    effects: Sequence[Effect], contrasts: Sequence[Contrast], hypothesis: TopologyHypothesis, alpha: float = 0.05
) -> Verdict:
    """The verdict from the ANOVA (`anova_effects`) and all pairs (`hypothesis_contrasts`); ValueError where a pair is missing."""
    absent = {pair.name for pair in hypothesis.pairs} - {contrast.name for contrast in contrasts}
    if absent:
        raise ValueError(f"pairs {sorted(absent)} have no contrast; every topology of {list(hypothesis.arms)} must be run")
    used, margin = tuple(contrasts), hypothesis.forgetting.margin
    anova = [effect.numbers for effect in effects]
    pairs = [f"{contrast.name}: {in_points(contrast)}" for contrast in used]

    def verdict(letter: str, *reasons: str, plan: int | None = None) -> Verdict:
        return Verdict(letter, HEADLINES[letter], reasons, used, planned_replicates=plan, effects=tuple(effects))

    if margin is None:
        return verdict("none", *anova, "no margin was registered")
    if wrong := _wrong_replicates(effects, used, hypothesis):
        return verdict("undecided", *anova, wrong)
    different = [contrast for contrast in used if contrast.p_corrected < alpha and not contrast.p_equivalence < alpha]
    if different and any(effect.p_corrected < alpha for effect in effects):
        return verdict("A", *anova, *(f"{contrast.name}: {in_points(contrast)}" for contrast in different))
    if all(contrast.p_equivalence < alpha for contrast in used):
        return verdict("B", *anova, *pairs, f"margin {100 * margin:g}")
    plan = replicates_to_plan([(contrast, margin) for contrast in used], alpha)
    return verdict("undecided", *anova, *pairs, _open_question(effects, used, bool(different), alpha), plan=plan)


def _wrong_replicates(effects: Sequence[Effect], contrasts: Sequence[Contrast], hypothesis: TopologyHypothesis) -> str:
    registered = hypothesis.replicates
    seen = sorted({effect.n for effect in effects} - {registered})
    curves = f"the curves have {seen[0]} replicates where exactly {registered} were registered" if seen else ""
    return wrong_replicates(contrasts, dict.fromkeys((contrast.name for contrast in contrasts), registered)) or curves


def _open_question(effects: Sequence[Effect], contrasts: Sequence[Contrast], different: bool, alpha: float) -> str:
    """Why neither letter holds, in words."""
    if flags := {contrast.flag for contrast in contrasts} - {""}:
        return f"no test ({', '.join(sorted(flags))})"
    if any(math.isnan(effect.p) for effect in effects):
        return "no test (the curves have no variance)"
    significant = any(effect.p_corrected < alpha for effect in effects)
    if significant:
        return "the curves differ, but no pair does by more than the margin may cover, and not all pairs are shown to lie within it"
    return "a pair differs, but the curves are not shown to" if different else "neither curves nor pairs are shown to differ or agree"
