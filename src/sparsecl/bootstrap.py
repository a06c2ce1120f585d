"""Hierarchical bootstrap of forgetting over replicates and items (paper, section Replicates and statistics)."""

import numpy as np
import pandas as pd
from jaxtyping import Float

from sparsecl.statistics import metric_by_seed

Draws = Float[np.ndarray, "draws replicates"]


def bootstrap_forgetting(
    items: pd.DataFrame, metrics: pd.DataFrame, treatment: str, control: str, kind: str = "all", draws: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Hierarchical bootstrap of the difference in forgetting: (estimate, low, high), percentile interval of 95 %.

    Draws replicates, then items within each domain and kind of each drawn replicate, the same items for
    both arms (Davison and Hinkley 1997, section 3.8). Items are known at stages i and T, so the fall from
    R[i, i] is resampled; what an earlier or later peak adds (forgetting + BWT, from `metrics`) is kept as
    measured in the replicate. `items` and `metrics` hold one method, order and stage length per arm. With
    few replicates a percentile interval is too narrow: it stands beside the t-interval, not in its place.
    """
    falls = _item_differences(items, treatment, control, kind)
    peaks = _peak_gain(metrics, treatment, kind) - _peak_gain(metrics, control, kind)
    if len(falls) < 2 or set(falls.index) != set(peaks.index) or falls.isna().any(axis=None):
        raise ValueError(
            f"{treatment} - {control}: items hold seeds {list(falls.index)}, metrics {list(peaks.index)}; both need the same seeds, "
            "at least 2, each with the same domains and kinds. Compile the tables again"
        )
    generator = np.random.default_rng(seed)
    chosen = generator.integers(len(falls), size=(draws, len(falls)))
    estimates, resampled = peaks.loc[falls.index].to_numpy(), peaks.loc[falls.index].to_numpy()[chosen]
    kinds = falls.columns.get_level_values("domain").value_counts()
    for domain, item_kind in falls.columns:
        weight, cell = 1 / (len(kinds) * kinds[domain]), falls[domain, item_kind].tolist()
        estimates = estimates + weight * np.array([np.mean(values) for values in cell])
        resampled = resampled + weight * _resampled_means(cell, chosen, generator)
    low, high = np.quantile(resampled.mean(axis=1), [0.025, 0.975])
    return float(estimates.mean()), float(low), float(high)


def _item_differences(items: pd.DataFrame, treatment: str, control: str, kind: str) -> pd.DataFrame:
    """Each item's fall from its own to the last stage, treatment minus control: arrays of -2..2 per seed (rows), domain and kind."""
    items = items[items["arm"].isin([treatment, control])]
    items = items if kind == "all" else items[items["kind"] == kind]
    keys = ["seed", "domain", "kind", "item"]
    ends = items.groupby(["arm", *keys])["stage"].agg(["min", "max"])
    first_and_last = items.merge(ends.reset_index(), on=["arm", *keys])
    first_and_last = first_and_last[first_and_last["min"] < first_and_last["max"]]  # the last domain cannot be forgotten
    sign = np.where(first_and_last["stage"] == first_and_last["min"], 1, -1) * np.where(first_and_last["arm"] == treatment, 1, -1)
    fall = first_and_last.assign(fall=sign * first_and_last["correct"].astype(int)).groupby(keys)["fall"].agg(["sum", "size"])
    if fall.empty or (fall["size"] != 4).any():
        bad = "all" if fall.empty else fall.index[fall["size"] != 4][0]
        raise ValueError(
            f"items of {treatment} and {control}: {bad} is not there at own and last stage in both arms; score both arms on the same items"
        )
    cells = {key: values.to_numpy() for key, values in fall["sum"].groupby(["seed", "domain", "kind"])}
    return pd.Series(cells, dtype=object).rename_axis(["seed", "domain", "kind"]).unstack(["domain", "kind"])


def _resampled_means(parts: list[np.ndarray], chosen: np.ndarray, generator: np.random.Generator) -> Draws:
    """Means of items redrawn within each chosen replicate; multinomial counts of the five values a difference can take."""
    support = np.arange(-2, 3)
    shares = np.array([[np.mean(part == value) for value in support] for part in parts])
    sizes = np.array([len(part) for part in parts])
    return generator.multinomial(sizes[chosen], shares[chosen]) @ support / sizes[chosen]


def _peak_gain(metrics: pd.DataFrame, arm: str, kind: str) -> pd.Series:
    """Forgetting + BWT by seed: how far the highest earlier score stands above the own score."""
    return metric_by_seed(metrics, arm, "forgetting", kind) + metric_by_seed(metrics, arm, "bwt", kind)
