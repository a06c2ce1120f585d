"""How robust results are to domain orders, seeds and topologies (paper, section Orders).

The three robustness measures of the study: the variance over orders within a replicate, the variance over replicates
within an order, and whether the topologies agree in what they change against the dense control. All read metrics.csv.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from sparsecl.domain_orders import REPEAT
from sparsecl.metrics import MissingMeasurement
from sparsecl.protocol import METHOD, ORDER, main_protocol

Cells = Float[np.ndarray, "*draws rows columns"]
MeanSquares = Float[np.ndarray, "*draws"] | float
Arms = Float[np.ndarray, "arms seeds orders"]


def _place(order: str) -> tuple[int, str]:
    """A sorting key: main first, then williams-2 before williams-10."""
    number = re.search(r"\d+$", order)
    return (0 if order == ORDER else int(number[0]) if number else 10**9), order


def _ordered(metrics: pd.DataFrame) -> pd.DataFrame:
    """Runs of the main method in true orders: a repeat has the domains of the main order, only other batches."""
    return metrics[(metrics["method"] == METHOD) & (metrics["order"] != REPEAT)]


def arms_with_orders(metrics: pd.DataFrame) -> list[str]:
    """Arms that ran more than one order with method full, sorted by name."""
    runs = _ordered(metrics).groupby("arm")["order"].nunique()
    return sorted(runs.index[runs > 1])


def order_cells(
    metrics: pd.DataFrame, arm: str, metric: str = "forgetting", kind: str = "all", stage_steps: int | None = None
) -> pd.DataFrame:
    """One arm's values, seeds down and orders across, in the metric's unit, from the replicates that ran further orders.

    Over domains, at the arm's main stage length (`stage_steps` decides where tables do not, see `main_protocol`). Missing
    cells raise MissingMeasurement with their names: a variance over what happens to be there mixes orders and seeds.
    """
    runs = _ordered(metrics[metrics["arm"] == arm])
    if runs["order"].nunique() < 2:
        raise MissingMeasurement(f"{arm} ran the orders {sorted(set(runs['order']))} with method {METHOD}; give it further orders")
    runs = pd.concat([main_protocol(runs, order=order, stage_steps=stage_steps) for order in sorted(set(runs["order"]))])
    rows = runs[(runs["metric"] == metric) & (runs["kind"] == kind) & (runs["domain"].isna() | (runs["domain"] == ""))]
    cells = rows.pivot(index="seed", columns="order", values="value").astype(float)
    seeds = sorted(set(runs.loc[runs["order"] != ORDER, "seed"]))
    cells = cells.reindex(index=pd.Index(seeds, name="seed"), columns=sorted(set(runs["order"]), key=_place))
    gaps = [f"{order} of seed {seed}" for seed, row in cells.iterrows() for order, value in row.items() if np.isnan(value)]
    if gaps:
        raise MissingMeasurement(f"{metric} of {arm} lacks {', '.join(gaps[:5])} ({len(gaps)} cells); run 03_continual for them")
    return cells


def order_differences(
    metrics: pd.DataFrame,
    treatment: str,
    control: str,
    metric: str = "forgetting",
    kind: str = "all",
    stage_steps: int | None = None,
) -> pd.DataFrame:
    """Treatment minus control in every cell (seeds down, orders across); arms with other cells raise MissingMeasurement."""
    ours, theirs = (order_cells(metrics, arm, metric, kind, stage_steps) for arm in (treatment, control))
    _require_same_cells({treatment: ours, control: theirs})
    return ours - theirs


def _require_same_cells(cells: dict[str, pd.DataFrame]) -> None:
    held = {arm: set(frame.stack().index) for arm, frame in cells.items()}
    every = set().union(*held.values())
    gaps = [f"{arm}: {order} of seed {seed}" for arm, have in held.items() for seed, order in sorted(every - have, key=str)]
    if gaps:
        raise MissingMeasurement(f"arms ran different cells; missing are {', '.join(gaps[:5])} ({len(gaps)} cells). Run 03_continual")


def _mean_squares(cells: Cells) -> tuple[MeanSquares, MeanSquares, MeanSquares]:
    """Mean squares of rows, columns and residual of balanced two-way tables without replication."""
    rows, columns = cells.shape[-2:]
    grand = cells.mean(axis=(-2, -1), keepdims=True)
    row, column = cells.mean(axis=-1, keepdims=True), cells.mean(axis=-2, keepdims=True)
    residual = ((cells - row - column + grand) ** 2).sum(axis=(-2, -1)) / ((rows - 1) * (columns - 1))
    return (
        columns * ((row - grand) ** 2).sum(axis=(-2, -1)) / (rows - 1),
        rows * ((column - grand) ** 2).sum(axis=(-2, -1)) / (columns - 1),
        residual,
    )


def variance_components(cells: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Variance over orders, over seeds and of the rest, of a seeds x orders table; squared units of its values.

    Columns: source; observed, the mean within-replicate variance over orders (within-order variance over seeds);
    variance, the component alone; ci_low, ci_high. Model: balanced two-way random effects without replication, whose
    residual holds the interaction and the run's own noise. Estimator: mean squares (analysis of variance), unbiased and
    never clamped, so a component near 0 may come out negative. Interval: Tukey-Williams (Williams 1962, Biometrika
    49:278) for seed and order, chi square for the residual; exact for the residual and near nominal for the others
    under normal effects. A bootstrap over as few seeds as a study can afford covers far below its level (a test shows it).
    """
    values = cells.to_numpy(dtype=float)
    seeds, orders = values.shape
    if min(seeds, orders) < 2 or not np.isfinite(values).all():
        raise ValueError(f"{seeds} seeds x {orders} orders: variance components need at least 2 of each and no absent cell")
    over_seeds, over_orders, residual = _mean_squares(values)
    spare = (seeds - 1) * (orders - 1)
    low, high = (spare * residual / stats.chi2.ppf(side, spare) for side in ((1 + confidence) / 2, (1 - confidence) / 2))
    rows = [
        ("order", values.var(axis=1, ddof=1).mean(), *_component(over_orders, residual, orders - 1, spare, seeds, confidence)),
        ("seed", values.var(axis=0, ddof=1).mean(), *_component(over_seeds, residual, seeds - 1, spare, orders, confidence)),
        ("residual", np.nan, residual, low, high),
    ]
    return pd.DataFrame(rows, columns=["source", "observed", "variance", "ci_low", "ci_high"])


def _component(effect: float, residual: float, degrees: int, spare: int, size: int, confidence: float) -> tuple[float, float, float]:
    """A component (mean square of the effect less the residual's, over `size` values a level) with its Tukey-Williams interval."""
    bounds = [
        degrees * (effect - stats.f.ppf(side, degrees, spare) * residual) / (size * stats.chi2.ppf(side, degrees))
        for side in ((1 + confidence) / 2, (1 - confidence) / 2)
    ]
    return (effect - residual) / size, *bounds


def robustness_table(
    metrics: pd.DataFrame, contrasts: Sequence[tuple[str, str]] = (), names: Sequence[str] = ("forgetting", "final"), kind: str = "all"
) -> pd.DataFrame:
    """`variance_components` of every arm that ran further orders and of every contrast (treatment, control).

    Columns: arm (`S1-2of4 - D1` for a contrast), metric, those of `variance_components`, seeds, orders. May be empty.
    """
    tables = []
    for metric in names:
        cells = {arm: order_cells(metrics, arm, metric, kind) for arm in arms_with_orders(metrics)}
        cells |= {f"{ours} - {theirs}": order_differences(metrics, ours, theirs, metric, kind) for ours, theirs in contrasts}
        for arm, frame in cells.items():
            seeds, orders = frame.shape
            tables.append(variance_components(frame).assign(arm=arm, metric=metric, seeds=seeds, orders=orders))
    columns = ["arm", "metric", "source", "observed", "variance", "ci_low", "ci_high", "seeds", "orders"]
    return pd.concat(tables, ignore_index=True)[columns] if tables else pd.DataFrame(columns=columns)


@dataclass(frozen=True)
class Agreement:
    """Do the topologies change the same cells in the same way? `value` is an intraclass correlation, at most 1."""

    arms: tuple[str, ...]
    control: str
    metric: str
    value: float
    null: float  # its mean where the sparse arms are no more alike than any arms are
    p: float  # one-sided, from the same permutations
    same_direction: float  # share of cells in which all arms differ from the control in the same direction
    seeds: int
    orders: int


def topology_agreement(
    metrics: pd.DataFrame,
    arms: Sequence[str],
    control: str = "D1",
    metric: str = "forgetting",
    kind: str = "all",
    draws: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Agreement of the arms' differences to the control over the same (seed, order) cells: ICC(C,1) of McGraw and Wong (1996).

    An intraclass correlation rather than Kendall's W: it keeps the sizes of the changes, not only their ranks, and is 0
    where nothing is shared, while W then is 1 / arms. The consistency form, because a different mean change of a topology
    is a result of its own. All differences hold the same noise of the control, which alone makes the correlation about
    one half. So it stands beside its null: the roles of the arms, the control among them, are exchanged at random within
    each seed (as a whole, because orders of a seed share their checkpoints), after each arm's mean is taken out. Raises
    ValueError below 2 arms or seeds, MissingMeasurement where arms ran different cells.
    """
    cells = {arm: order_cells(metrics, arm, metric, kind) for arm in (control, *arms)}
    _require_same_cells(cells)
    values = np.stack([frame.to_numpy() for frame in cells.values()])
    if len(values) < 3 or values.shape[1] < 2:
        raise ValueError(f"{len(values) - 1} arms besides {control}, {values.shape[1]} seeds: agreement needs at least 2 of each")
    null = _consistency(_exchanged(values, draws, seed))
    value, differences = float(_consistency(values)), values[1:] - values[0]
    same = (differences > 0).all(axis=0) | (differences < 0).all(axis=0)
    p = float((1 + (null >= value).sum()) / (1 + draws)) if np.isfinite(value) else np.nan
    return Agreement(tuple(arms), control, metric, value, float(null.mean()), p, float(same.mean()), *values.shape[1:])


def _consistency(values: Float[np.ndarray, "*draws arms seeds orders"]) -> Float[np.ndarray, "*draws"]:
    """ICC(C,1) of the differences to the first arm, cells as targets; NaN where nothing varies."""
    differences = values[..., 1:, :, :] - values[..., :1, :, :]
    raters = differences.shape[-3]
    _, between, residual = _mean_squares(differences.reshape(*differences.shape[:-2], -1))
    with np.errstate(invalid="ignore"):
        return np.asarray((between - residual) / (between + (raters - 1) * residual))


def _exchanged(values: Arms, draws: int, seed: int) -> Float[np.ndarray, "draws arms seeds orders"]:
    """The table with its arms, each centred, in random roles, drawn anew for every seed."""
    centred = values - values.mean(axis=(1, 2), keepdims=True)
    roles = np.random.default_rng(seed).random((draws, *values.shape[:2])).argsort(axis=1)
    return np.take_along_axis(centred[None], roles[..., None], axis=1)
