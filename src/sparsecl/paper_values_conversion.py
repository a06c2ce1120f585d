r"""The paper's numbers about compared conversions: their ranges, and the settings of their algorithms (paper, sections Method, Results).

Keys are `<part>/comparison/<comparison>/...` and `<part>/design/...`; the text names no winner, the tables do.
"""

import numpy as np
import pandas as pd

from sparsecl.comparisons import LINEAGES, LOSS, SPREAD, Compared, compare
from sparsecl.config import Study
from sparsecl.figure_style import mean_interval
from sparsecl.number_formats import count, nats, points, rate

WITHOUT_RANDOM = "algorithms-without-random"  # those whose mask depends on the weights
COMPARED = ("topologies", "algorithms", WITHOUT_RANDOM, "densities")
RANGE = ("lowest_name", "lowest_loss", "highest_name", "highest_loss", "span")
AGAINST_DENSE = ("above_dense", "below_dense")
CONVERSION_DESIGN = (
    "wandaplusplus_alpha", "wandaplusplus_rounds", "wandaplusplus_samples", "wandaplusplus_learning_rate",
    "maskllm_steps", "maskllm_batch", "maskllm_learning_rate", "maskllm_prior_strength", "maskllm_regularisation",
    "maskllm_temperature_start", "maskllm_temperature_end", "maskllm_scale_start", "maskllm_scale_end",
)  # fmt: skip


def comparison_names() -> list[str]:
    """The registered keys of every comparison, without their part."""
    ranges = [f"{lineage}/{name}" for lineage in LINEAGES for name in RANGE]
    rest = ["replicates", "arms", *ranges, *(f"S1/{name}" for name in AGAINST_DENSE)]
    return ["comparison/input_spread", *(f"comparison/{comparison}/{name}" for comparison in COMPARED for name in rest)]


def comparison_values(conversion: pd.DataFrame) -> dict[str, str | None]:
    """Every comparison that was made: replicates and arms, range of mean general loss, arms that differ from D1."""
    found = {name: compare(conversion, name) for name in ("topologies", "algorithms", "densities")}
    found[WITHOUT_RANDOM] = found["algorithms"].without("random")
    values: dict[str, str | None] = {}
    for name, compared in found.items():
        if len(compared.choices) > 1 and compared.replicates:
            measured = {"replicates": count(compared.replicates), "arms": count(len(compared.choices))}
            for lineage in LINEAGES:
                measured |= {f"{lineage}/{key}": value for key, value in _range(compared, lineage).items()}
            measured |= {f"S1/{key}": value for key, value in _against_dense(compared).items()}
            values |= {f"comparison/{name}/{key}": value for key, value in measured.items()}
    spread = found["algorithms"].values(SPREAD, "D0")
    return values | ({"comparison/input_spread": points(spread.mean())} if len(spread) else {})


def _range(compared: Compared, lineage: str) -> dict[str, str | None]:
    """The choices of lowest and highest mean general loss, and the distance between them in nats."""
    means = {choice: compared.values(LOSS, lineage, choice).mean() for choice in compared.choices}
    means = {choice: float(mean) for choice, mean in means.items() if np.isfinite(mean)}
    if len(means) < 2:
        return {}
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return {
        "lowest_name": compared.label(lowest), "lowest_loss": nats(means[lowest]),
        "highest_name": compared.label(highest), "highest_loss": nats(means[highest]),
        "span": nats(means[highest] - means[lowest]),
    }  # fmt: skip


def _against_dense(compared: Compared) -> dict[str, str | None]:
    """How many S1 have a 95 % interval of the paired difference in general loss to D1 that lies above, or below, zero.

    Absent where some interval is: a count over the rest would read as if these did not differ.
    """
    dense = compared.values(LOSS, "D1")
    differences = [compared.values(LOSS, "S1", choice) - dense for choice in compared.choices]
    bounds = np.array([mean_interval(difference)[1:] for difference in differences])
    if np.isnan(bounds).any():
        return {}
    return {"above_dense": count(int((bounds[:, 0] > 0).sum())), "below_dense": count(int((bounds[:, 1] < 0).sum()))}


def conversion_facts(study: Study) -> dict[str, str | None]:
    """Settings of Wanda++ and MaskLLM as the text writes them; of an algorithm that no arm uses they are None."""
    used = {arm.algorithm for arm in study.all_arms()}
    facts: dict[str, str | None] = dict.fromkeys(CONVERSION_DESIGN)
    if "wanda++" in used:
        settings = study.sparsify.wandaplusplus
        facts |= {"wandaplusplus_alpha": rate(settings.alpha), "wandaplusplus_learning_rate": rate(settings.learning_rate)}
        facts |= {"wandaplusplus_rounds": count(settings.rounds), "wandaplusplus_samples": count(settings.samples)}
    if "maskllm" in used:
        settings = study.sparsify.maskllm
        training = settings.training
        facts |= {"maskllm_steps": count(training.steps), "maskllm_batch": count(training.batch)}
        facts |= {"maskllm_learning_rate": rate(training.learning_rate), "maskllm_prior_strength": rate(settings.prior_strength)}
        facts |= {"maskllm_regularisation": rate(settings.regularisation)}
        for name, ends in (("temperature", settings.temperature), ("scale", settings.scale)):
            facts |= {f"maskllm_{name}_start": rate(ends[0]), f"maskllm_{name}_end": rate(ends[1])}
    return facts
