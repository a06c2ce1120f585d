r"""The computed verdicts as the paper prints them: values and the table of what they rest on (paper, section Results).

A letter also selects the paragraphs that follow from it.
"""

import re
from collections.abc import Mapping

from sparsecl.arms import parse_arm
from sparsecl.latex_tables import bare_p, difference_cell, tabular
from sparsecl.methods import METHODS
from sparsecl.number_formats import DASH, count, latex_text, nats, p_value, points
from sparsecl.paper_parts import MAIN
from sparsecl.paper_samples import HYPOTHESES, METRIC_NAMES, STREAM_METRICS
from sparsecl.protocol import METHOD, run_parts

VERDICT = ("letter", "sentence", "missing_controls", "planned_replicates", "statement")
PART_HYPOTHESES = {"implicit": ("H4", "H5A", "H5B"), "moe": ()}  # of the other parts: those of the main one
EFFECTS = {"topology": "topology", "topology * stage": "interaction"}  # of the ANOVA, by the name that anova.py gives them
EFFECT = ("f", "df", "df_error", "epsilon", "p", "p_holm", "ges", "n")
_OUTCOMES = {"undecided": "undecided", "none": "no verdict"}


def hypotheses_of(part: str) -> tuple[str, ...]:
    """The hypotheses that a part of the paper has a verdict on."""
    return PART_HYPOTHESES.get(part, HYPOTHESES)


def verdict_names(part: str = MAIN) -> list[str]:
    """The registered keys of this module, without their part."""
    names = hypotheses_of(part)
    keys = [f"verdict/{hypothesis}/{name}" for hypothesis in names for name in VERDICT]
    if part in PART_HYPOTHESES:
        return keys  # no first hypothesis that stands for the part, and no topologies
    return [
        *(f"verdict/{name}" for name in VERDICT),
        *keys,
        *(f"verdict/{hypothesis}/anova/{effect}/{name}" for hypothesis in names for effect in EFFECTS.values() for name in EFFECT),
    ]


def verdict_values(verdicts: Mapping, statements: Mapping[str, str]) -> dict[str, str | None]:
    """Values by hypothesis; without a hypothesis in the key, those of the first, H1. `statements` are the registered hypotheses."""
    found = {name: _values(verdict, statements.get(name)) for name, verdict in verdicts.items()}
    values = {f"verdict/{hypothesis}/{name}": value for hypothesis, of in found.items() for name, value in of.items()}
    for hypothesis, verdict in verdicts.items():
        for effect in verdict.effects:
            values |= {f"verdict/{hypothesis}/anova/{EFFECTS[effect.source]}/{name}": v for name, v in _effect(effect).items()}
    return values | {f"verdict/{name}": value for name, value in found.get(HYPOTHESES[0], {}).items()}


def _values(verdict, statement: str | None) -> dict[str, str | None]:
    return {
        "letter": latex_text(verdict.letter),
        "sentence": with_minus_signs(verdict.sentence),
        "missing_controls": latex_text(", ".join(verdict.missing_controls)) or None,
        "planned_replicates": count(verdict.planned_replicates),
        "statement": None if statement is None else latex_text(statement.strip()),
    }


def with_minus_signs(text: str) -> str:
    """Plain text for LaTeX: a hyphen before a digit is a minus there, one inside an arm's name is not."""
    return re.sub(r"(?<![\w.])-(?=\d)", "$-$", latex_text(text))


def _effect(effect) -> dict[str, str | None]:
    numbers = {"f": effect.f, "epsilon": effect.epsilon, "ges": effect.eta_squared}
    return {
        **{name: nats(value) for name, value in numbers.items()},
        **{name: count(value) for name, value in (("df", effect.df), ("df_error", effect.df_error), ("n", effect.n))},
        "p": p_value(effect.p),
        "p_holm": p_value(effect.p_corrected),
    }


def verdicts_table(verdicts: Mapping, statements: Mapping[str, str]) -> str | None:
    """Every hypothesis with its outcome, and below it what decided: contrasts with interval, Holm p and equivalence p, the ANOVA."""
    rows: list = []
    for hypothesis, verdict in verdicts.items():
        statement = with_minus_signs(statements.get(hypothesis, "").strip())
        outcome = _OUTCOMES.get(verdict.letter, f"outcome {latex_text(verdict.letter)}")
        heading = rf"\textbf{{{latex_text(hypothesis)}, {outcome}.}} {statement}".strip()
        rows += [r"\midrule"] if rows else []
        rows += [rf"\multicolumn{{6}}{{@{{}}p{{0.98\linewidth}}@{{}}}}{{{heading}}} \\", r"\addlinespace[2pt]"]
        rows += [_effect_row(effect) for effect in verdict.effects]
        rows += [_contrast_row(contrast) for contrast in verdict.contrasts]
    heading = ["comparison", "measure", "$n$", r"difference, 95\,\% interval", "$p$ (Holm)", "$p$ (TOST)"]
    return tabular("@{}llcccc@{}", heading, rows) if rows else None


def _contrast_row(contrast) -> list[str | None]:
    statistics = {"estimate": contrast.estimate, "ci_low": contrast.low, "ci_high": contrast.high}
    return [
        _comparison(contrast.name),
        METRIC_NAMES.get(contrast.metric, latex_text(contrast.metric.replace("_", " "))).split(" $")[0],
        count(contrast.n),
        difference_cell(statistics, STREAM_METRICS.get(contrast.metric, points)),
        bare_p(contrast.p_corrected),
        bare_p(contrast.p_equivalence),
    ]


def _comparison(name: str) -> str:
    """Two runs as the paper writes their difference; a slope by its own name."""
    treatment, minus, reference = name.partition(" - ")
    return f"{run_label(treatment)} $-$ {run_label(reference)}" if minus else latex_text(name)


def run_label(run: str) -> str:
    """A run as the paper writes it: ``D1``, and ``D1 LoRA`` where the method is not full fine-tuning."""
    arm, method = run_parts(run)
    label = parse_arm(arm).label
    return label if method == METHOD else f"{label} {METHODS[method].label}"


def _effect_row(effect) -> str:
    """F of the ANOVA has no difference and no interval; its numbers stand across these columns."""
    found = {name: value or DASH for name, value in _effect(effect).items()}
    name = {"topology": "topology", "interaction": r"topology $\times$ stage"}[EFFECTS[effect.source]]
    numbers = rf"$F({found['df']},\,{found['df_error']}) = {found['f']}$, $\epsilon = {found['epsilon']}$, $\eta_G^2 = {found['ges']}$"
    cells = [rf"\multicolumn{{4}}{{@{{}}l}}{{{name} (ANOVA): {numbers}, $n = {found['n']}$}}"]
    return " & ".join([*cells, bare_p(effect.p_corrected) or DASH, DASH]) + r" \\"
