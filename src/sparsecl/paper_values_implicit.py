r"""The paper's second question: every key of the parts `implicit` and `moe`, and their values (paper, sections on implicit sparsity).

The modules it calls hold the numbers of one section each; here stand the settings that these sections name.
"""

from collections.abc import Mapping

import pandas as pd

from sparsecl.config import Study
from sparsecl.number_formats import count, points, rate
from sparsecl.paper_values_design import DESIGN, FURTHER, design_facts
from sparsecl.paper_values_drift import drift_names, drift_values
from sparsecl.paper_values_probes import probe_names, probe_values
from sparsecl.paper_values_protection import protection_names, protection_values
from sparsecl.paper_values_routing import PART as MOE
from sparsecl.paper_values_routing import routing_names, routing_values
from sparsecl.paper_values_runs import run_names, run_values
from sparsecl.paper_values_scale import scale_names, scale_values
from sparsecl.paper_verdicts import verdict_names

IMPLICIT = "implicit"
PARTS = (IMPLICIT, MOE)
MAIN_CONTRASTS = {"H5A": "D1:activation-mask - D1", "H5B": "D1:orthogonal-lora - D1"}  # as tests.csv names them
PROBE_DESIGN = (
    "top_fractions", "gradient_batches", "gradient_rows", "gradient_rank", "drift_energy", "drift_rows", "drift_tokens", "ladder_widths",
    "ladder_replicates", "mask_fraction", "mask_rows", "branch_fraction", "orthogonal_energy", "orthogonal_rows", "o_lora_l1",
    "osf_frozen", "experts", "experts_per_token", "top_p",
)  # fmt: skip


METHOD_DESIGN = ("lora_rank", "lora_alpha", "replay_lines", "replay_share")
FURTHER_SETS = ("methods", "frontier")


def implicit_names(part: str) -> list[str]:
    """The registered keys of one of the two parts, without the part."""
    names = [f"design/{name}" for name in _design_names()]
    names += [*run_names(part), *drift_names(part), *verdict_names(part)]
    return names + (routing_names() if part == MOE else [*probe_names(), *scale_names(), *protection_names()])


def _design_names() -> list[str]:
    further = [f"further/{name}/{fact}" for name in FURTHER_SETS for fact in FURTHER]
    return [*DESIGN, *METHOD_DESIGN, *PROBE_DESIGN, *further]


def implicit_values(part: str, study: Study, tables: Mapping[str, pd.DataFrame]) -> dict[str, str | None]:
    """All values of one of the two parts but its verdicts."""
    facts = design_facts(study, tables) | probe_design(study)
    values = {f"design/{name}": facts.get(name) for name in _design_names()}
    values |= run_values(part, study, tables) | drift_values(part, tables, study.continual.stage_steps)
    if part == MOE:
        return values | routing_values(tables)
    values |= probe_values(tables, study.probe.top_fraction)
    values |= protection_values(tables.get("stage_measures", pd.DataFrame()), study.continual.stage_steps)
    return values | scale_values(tables.get("tests", pd.DataFrame()), MAIN_CONTRASTS)


def probe_design(study: Study) -> dict[str, str | None]:
    """Settings of probes and methods by the names of PROBE_DESIGN; what the study does not run is None."""
    facts: dict[str, str | None] = dict.fromkeys(PROBE_DESIGN)
    facts |= {"top_fractions": ", ".join(points(share) for share in sorted({*study.probe.top_fractions, study.probe.top_fraction}))}
    return facts | _probe_facts(study) | _method_facts(study) | _model_facts(study)


def _probe_facts(study: Study) -> dict[str, str | None]:
    facts, probe = {}, study.probe
    if probe.gradients:
        facts |= {f"gradient_{name}": count(getattr(probe.gradients, name)) for name in ("batches", "rows", "rank")}
    if probe.drift:
        facts |= {
            "drift_energy": rate(100 * probe.drift.energy),
            "drift_rows": count(probe.drift.rows),
            "drift_tokens": count(probe.drift.tokens),
        }
    if probe.routing:
        facts["top_p"] = rate(100 * probe.routing.top_p)
    return facts


def _method_facts(study: Study) -> dict[str, str | None]:
    """Settings of the methods that the study runs."""
    used, settings, facts = study.streamed(), study.continual.method_settings, {}
    if "activation-mask" in used:
        mask = settings.activation_mask
        facts |= {"mask_fraction": rate(100 * mask.fraction), "mask_rows": count(mask.probe_rows)}
    if "activation-mask-branch" in used:
        facts["branch_fraction"] = rate(100 * settings.activation_mask_branch.fraction)
    if "orthogonal-lora" in used:
        own = settings.orthogonal_lora
        facts |= {"orthogonal_energy": rate(own.energy), "orthogonal_rows": count(own.basis_rows)}
    if "o-lora" in used:
        facts["o_lora_l1"] = rate(settings.o_lora.l1)
    if "osf" in used:
        facts["osf_frozen"] = rate(100 * settings.osf.frozen)
    return facts


def _model_facts(study: Study) -> dict[str, str | None]:
    model, facts = study.model, {}
    if study.ladder:
        facts |= {
            "ladder_widths": ", ".join(map(count, sorted(study.widths().values()))),
            "ladder_replicates": count(study.ladder.replicates),
        }
    if getattr(model, "experts", None):
        facts |= {name: count(getattr(model, name)) for name in ("experts", "experts_per_token")}
    return facts
