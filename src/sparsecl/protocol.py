"""Which rows of a table belong to the main protocol (paper, section Protocol; every figure, table and test of the main result).

A study may run further streams of its first replicates: other methods, orders and stage lengths. The
tables alone must tell them from the main one, so this is the one place that says how. No torch here.
"""

from collections.abc import Iterable

import pandas as pd

METHOD = "full"
ORDER = "main"


def run_parts(run: str) -> tuple[str, str]:
    """Arm and method of a run's name: `D1` went through the stream by the main protocol's method, `D1:lora` by LoRA."""
    arm, _, method = run.partition(":")
    return arm, method or METHOD


def main_protocol(frame: pd.DataFrame, method: str = METHOD, order: str = ORDER, stage_steps: int | None = None) -> pd.DataFrame:
    """The rows of one method and order, for each arm those of its main stage length; index and columns are kept.

    `frame` is any table with `arm`, `method`, `order`, `stage_steps` and `seed`. An arm that ran one length in every replicate
    has no other: arms matched in FLOPs have a length of their own, which may differ by a step between replicates. Else
    the main stage length is the one with the most replicates: other lengths run on fewer.
    Where that leaves a choice, as in the tables of a single replicate, `stage_steps` (the study's own length) makes it;
    without it ValueError names the arm and its lengths.
    """
    rows = frame[(frame["method"] == method) & (frame["order"] == order)]
    runs = rows[["arm", "seed", "stage_steps"]].drop_duplicates()
    several = runs.loc[runs.duplicated(["arm", "seed"]), "arm"].unique()
    lengths = {arm: _main_length(arm, runs[runs["arm"] == arm]["stage_steps"].value_counts(), stage_steps) for arm in several}
    return rows[rows["stage_steps"] == rows["arm"].map(lengths).fillna(rows["stage_steps"])]


def run_names(frame: pd.DataFrame) -> pd.Series:
    """The run of every row: its arm, with the method after a colon where that is not the main protocol's."""
    return frame["arm"].where(frame["method"] == METHOD, frame["arm"] + ":" + frame["method"])


def of_runs(frame: pd.DataFrame, runs: Iterable[str], stage_steps: int | None = None) -> pd.DataFrame:
    """The rows of the named runs in the main order and stage length, with the run's name in the column `arm`.

    `frame` and `stage_steps` as for `main_protocol`; a run that was not run has no rows.
    """
    by_method: dict[str, dict[str, str]] = {}
    for run in runs:
        arm, method = run_parts(run)
        by_method.setdefault(method, {})[arm] = run
    parts = []
    for method, names in by_method.items():
        rows = main_protocol(frame[frame["arm"].isin(list(names))], method, stage_steps=stage_steps)
        parts.append(rows.assign(arm=rows["arm"].map(names)))
    return pd.concat(parts) if parts else frame.head(0)


def one_length_a_run(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the most frequent stage length where an arm's replicates ran one length each, which may differ by a step.

    For tables that group by stage length; the shorter of two equally frequent lengths.
    """
    runs = frame[["arm", "method", "order", "seed", "stage_steps"]].drop_duplicates()
    lengths = runs.groupby(["arm", "method", "order"]).agg(
        usual=("stage_steps", lambda steps: steps.mode().min()), single=("seed", lambda seeds: seeds.is_unique)
    )
    of_row = frame[["arm", "method", "order"]].merge(lengths, left_on=["arm", "method", "order"], right_index=True, how="left")
    return frame.assign(stage_steps=frame["stage_steps"].where(~of_row["single"].to_numpy(dtype=bool), of_row["usual"].to_numpy()))


def _main_length(arm: str, replicates: pd.Series, stage_steps: int | None) -> int:
    """The stage length with the most replicates; `replicates` counts them by length."""
    most = replicates[replicates == replicates.max()].index
    if len(most) == 1:
        return int(most[0])
    if stage_steps in most:
        return int(stage_steps)
    raise ValueError(
        f"{arm} ran {int(replicates.max())} replicate(s) at each of the stage lengths {sorted(map(int, most))}, so the tables do not say "
        f"which is the main one (asked for: {stage_steps}); pass the study's own stage_steps, or run other lengths on fewer replicates"
    )
