"""The forgetting curves of several topologies, and their repeated-measures ANOVA (H3; paper, section Topologies)."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
import pingouin

from sparsecl.metrics import MissingMeasurement, forgetting_by_stage, score_matrix
from sparsecl.protocol import main_protocol
from sparsecl.statistics import holm

TOPOLOGY, STAGE = "topology", "stage"
INTERACTION = f"{TOPOLOGY} * {STAGE}"


@dataclass(frozen=True)
class Effect:
    """One effect of the ANOVA."""

    source: str  # TOPOLOGY or INTERACTION
    f: float
    df: float  # uncorrected degrees of freedom of the effect
    df_error: float
    epsilon: float  # Greenhouse and Geisser's (1959) correction of both
    p: float  # with that correction
    eta_squared: float  # generalised (Olejnik and Algina 2003)
    n: int  # replicates
    p_corrected: float = float("nan")  # Holm over the effects

    @property
    def numbers(self) -> str:
        return f"{self.source.replace('*', 'x')}: F({self.df:g}, {self.df_error:g}) = {self.f:.2f}, corrected p = {self.p_corrected:.2g}"


def forgetting_curves(accuracy: pd.DataFrame, arms: Sequence[str], kind: str = "all") -> pd.DataFrame:
    """F_k after stages k = 2..T of the main protocol: columns `seed`, `topology`, `stage`, `value`; score units.

    `accuracy` is accuracy.csv; `arms` are sparse arms of different topologies. Only replicates that every arm ran are
    there, so that each has every cell. An arm without rows raises MissingMeasurement.
    """
    rows = main_protocol(accuracy)
    seeds = {arm: set(rows.loc[rows["arm"] == arm, "seed"]) for arm in arms}
    if absent := [arm for arm, found in seeds.items() if not found]:
        raise MissingMeasurement(f"{absent} went through no stream of the main protocol; run them, or leave them out of the registration")
    rows = rows[rows["arm"].isin(arms) & rows["seed"].isin(set.intersection(*seeds.values()))]
    cells = [
        (seed, topology, stage, value)
        for (topology, seed), run in rows.groupby([TOPOLOGY, "seed"])
        for stage, value in enumerate(forgetting_by_stage(score_matrix(run, kind).to_numpy()), start=2)
    ]
    return pd.DataFrame(cells, columns=["seed", TOPOLOGY, STAGE, "value"])


def anova_effects(curves: pd.DataFrame) -> tuple[Effect, Effect]:
    """Main effect of the topology and its interaction with the stage, Holm-corrected over the two; `curves` as `forgetting_curves`."""
    table = topology_by_stage_anova(curves).set_index("Source")
    effects = [_effect(source, table.loc[source], curves["seed"].nunique()) for source in (TOPOLOGY, INTERACTION)]
    corrected = holm([effect.p for effect in effects])
    return tuple(replace(effect, p_corrected=p) for effect, p in zip(effects, corrected, strict=True))


def _effect(source: str, row: pd.Series, n: int) -> Effect:
    numbers = (row[name] for name in ("F", "ddof1", "ddof2", "eps", "p_GG_corr", "ng2"))
    return Effect(source, *map(float, numbers), n)


def topology_by_stage_anova(curves: pd.DataFrame, value: str = "value") -> pd.DataFrame:
    """Repeated-measures ANOVA of topology x stage over replicates (H3); columns seed, topology, stage and `value`.

    Greenhouse-Geisser corrected p in `p_GG_corr`, generalised eta squared in `ng2`. Missing or repeated
    cells raise ValueError: pingouin would drop the whole replicate without a word.
    """
    cells = curves.dropna(subset=[value]).groupby(["seed", TOPOLOGY, STAGE]).size()
    levels = [sorted(set(curves[key]), key=str) for key in ("seed", TOPOLOGY, STAGE)]
    cells = cells.reindex(pd.MultiIndex.from_product(levels), fill_value=0)
    if (cells != 1).any():
        wrong = [f"seed {s}, {t}, stage {k}: {count}" for (s, t, k), count in cells[cells != 1].items()]
        raise ValueError(
            f"every replicate needs one value a topology and stage; not so in {wrong[:5]} ({len(wrong)} cells). Run what is missing"
        )
    if any(len(level) < 2 for level in levels):
        raise ValueError(f"{[len(level) for level in levels]} seeds, topologies, stages: an ANOVA needs at least 2 of each")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pingouin.rm_anova(curves, dv=value, within=[TOPOLOGY, STAGE], subject="seed", detailed=True)
