"""The rules of the verdict on a hypothesis about scale, H4 (paper, section Registered analysis).

Two slopes per doubling of the width, of the normalised activation overlap and of the disattenuated gradient cosine
(`scale_trend`); a slope falls or rises where its two-sided p < alpha and it does not lie merely within the margin by TOST.

* A, supported: both fall. Both must hold, which needs no correction (intersection-union test, Berger 1982). Not called where the mean
  cosine on the widest rung lies below 0 with its whole interval: domains that pull against each other are not orthogonal.
* B, equivalent: both slopes lie inside the margin by TOST, also where an interval excludes 0.
* C, against: one rises, after Holm's correction over the two, and the other does not fall.
* undecided otherwise; where noise is the reason, with a number of replicates for planning a new study only. More of them would
  not help where the slopes are known and disagree, or where domains pull against each other.
* none, where no margin was registered.
"""

import math
from collections.abc import Sequence

from sparsecl.decision import Verdict, replicates_to_plan
from sparsecl.hypotheses import ScaleHypothesis
from sparsecl.statistics import Contrast

HEADLINES = {
    "A": "supported: domains share less of a wider base, in its neurons and in its gradients",
    "B": "equivalent: the mean change per doubling of the width is smaller than the margin",
    "C": "refuted: domains share more of a wider base in at least one of the two quantities, and less in neither beyond the margin",
    "undecided": "undecided: the rule that was fixed gives no verdict",
    "none": "no verdict",
}


def decide_scale(contrasts: Sequence[Contrast], hypothesis: ScaleHypothesis, widest: Contrast, alpha: float = 0.05) -> Verdict:
    """The verdict from the deciding slopes (`scale_contrasts`) and the mean cosine on the widest rung (`rung_contrasts`)."""
    known = {contrast.metric: contrast for contrast in contrasts}
    if absent := {trend.metric for trend in hypothesis.deciding} - set(known):
        raise ValueError(f"no slope of {sorted(absent)}, only of {sorted(known)}; compute both with scale_contrasts")
    used = tuple(known[trend.metric] for trend in hypothesis.deciding)
    letter, reasons = _letter(used, hypothesis, widest, alpha)
    measured = [(contrast, trend.margin) for contrast, trend in zip(used, hypothesis.deciding, strict=True)]
    plan = replicates_to_plan(measured, alpha) if letter == "undecided" and _is_noise(used, hypothesis, alpha) else None
    return Verdict(letter, HEADLINES[letter], (*map(in_hundredths, used), *reasons), used, planned_replicates=plan)


def _letter(used: Sequence[Contrast], hypothesis: ScaleHypothesis, widest: Contrast, alpha: float) -> tuple[str, list[str]]:
    if not all(trend.margin for trend in hypothesis.deciding):
        return "none", ["no margin was registered"]
    registered = f"replicates where exactly {hypothesis.replicates} were registered"
    if wrong := [f"{_name(contrast)} has {contrast.n} {registered}" for contrast in used if contrast.n != hypothesis.replicates]:
        return "undecided", wrong
    falls, rises = [_falls(contrast, alpha) for contrast in used], [_rises(contrast, alpha) for contrast in used]
    if all(falls):
        conflict = widest.high < 0
        return ("undecided", [f"{in_hundredths(widest)}: gradients that oppose each other are not orthogonal"]) if conflict else ("A", [])
    if any(rises) and not any(falls):
        return "C", [f"rising: {', '.join(_name(contrast) for contrast, up in zip(used, rises, strict=True) if up)}"]
    if all(contrast.p_equivalence < alpha for contrast in used):
        return "B", [f"margin {_margins(hypothesis)}"]
    return "undecided", [_open_question(contrast, alpha) for contrast in used]


def _is_noise(used: Sequence[Contrast], hypothesis: ScaleHypothesis, alpha: float) -> bool:
    """Whether more replicates would help: there are as many as registered, and a slope neither falls, rises nor lies within the margin."""
    as_registered = all(contrast.n == hypothesis.replicates and not contrast.flag for contrast in used)
    return as_registered and any(
        not (_falls(contrast, alpha) or _rises(contrast, alpha) or contrast.p_equivalence < alpha) for contrast in used
    )


def _falls(contrast: Contrast, alpha: float) -> bool:
    return contrast.estimate < 0 and contrast.p < alpha and not contrast.p_equivalence < alpha


def _rises(contrast: Contrast, alpha: float) -> bool:
    return contrast.estimate > 0 and contrast.p_corrected < alpha and not contrast.p_equivalence < alpha


def _open_question(contrast: Contrast, alpha: float) -> str:
    """What is known of one slope, in words."""
    if contrast.flag:
        return f"{_name(contrast)}: no test ({contrast.flag})"
    if contrast.p_equivalence < alpha:
        return f"{_name(contrast)} lies within the margin"
    if _falls(contrast, alpha) or _rises(contrast, alpha):
        return f"{_name(contrast)} {'falls' if contrast.estimate < 0 else 'rises'}"
    if contrast.p < alpha:
        return f"{_name(contrast)} rises, but not after Holm's correction"
    return f"the interval of {_name(contrast)} excludes neither 0 nor the margin"


def _margins(hypothesis: ScaleHypothesis) -> str:
    return ", ".join(dict.fromkeys(f"{100 * trend.margin:g}" for trend in hypothesis.deciding))


def _name(contrast: Contrast) -> str:
    return contrast.metric.replace("_", " ")


def in_hundredths(contrast: Contrast) -> str:
    """A slope or mean with its interval, in hundredths of the distance from chance to ceiling."""
    where = f"{_name(contrast)} {contrast.name}"
    if math.isnan(contrast.low):
        return f"{where}: no interval ({contrast.flag})"
    return f"{where} {100 * contrast.estimate:+.1f} [{100 * contrast.low:+.1f}, {100 * contrast.high:+.1f}]"
