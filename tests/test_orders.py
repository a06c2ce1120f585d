"""Domain orders: the design by brute force, variance components and agreement against planted truth and pingouin."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pingouin
import pytest

from sparsecl.domain_orders import williams_design
from sparsecl.figure_style import NothingToDraw
from sparsecl.figures_orders import forgetting_by_order
from sparsecl.metrics import MissingMeasurement
from sparsecl.orders import (
    arms_with_orders,
    order_cells,
    order_differences,
    robustness_table,
    topology_agreement,
    variance_components,
)

ORDERS = tuple(williams_design("abcde"))
SPARSE = ("S1-2of4", "S1-4of8", "S1-block32")


def table(cells, metric="forgetting", **other):
    """Rows of metrics.csv from {arm: array of seeds x orders}."""
    keys = {"method": "full", "stage_steps": 100, "domain": "", "kind": "all", "metric": metric} | other
    parts = []
    for arm, values in cells.items():
        seed, order = np.indices(values.shape)
        run = {"arm": arm, "seed": seed.ravel(), "order": np.array(ORDERS, dtype=object)[order.ravel()], "value": values.ravel()}
        parts.append(pd.DataFrame(run | keys))
    return pd.concat(parts, ignore_index=True)


def planted(generator, arms=("D1", *SPARSE), seeds=5, orders=10, cell=0.04, shared=0.0, own=0.01, noise=0.02):
    """Cell effects of all arms, a `shared` cell effect of the sparse ones, a seed effect of each arm, and noise."""
    common, sparse = generator.normal(0, cell, (seeds, orders)), generator.normal(0, shared, (seeds, orders))
    return {
        arm: 0.6
        + common
        + (sparse if arm != "D1" else 0)
        + generator.normal(0, own, (seeds, 1))
        + generator.normal(0, noise, (seeds, orders))
        for arm in arms
    }


@pytest.mark.parametrize("n", range(2, 8))
def test_every_position_and_every_pair_of_neighbours_is_equally_often(n):
    domains = tuple("uvwxyzt"[:n])
    design = williams_design(domains)
    rows = list(design.values())
    count = n if n % 2 == 0 else 2 * n
    assert list(design) == ["main", *(f"williams-{number}" for number in range(2, count + 1))]
    assert rows[0] == domains and len(set(rows)) == count
    assert all(sorted(row) == sorted(domains) for row in rows)
    places = Counter((place, domain) for row in rows for place, domain in enumerate(row))
    assert set(places) == set(itertools.product(range(n), domains)) and set(places.values()) == {count // n}
    neighbours = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert set(neighbours) == set(itertools.permutations(domains, 2)) and set(neighbours.values()) == {count // n}


@pytest.mark.parametrize("domains", [["code"], [], ["code", "math", "code"]])
def test_a_design_needs_different_domains(domains):
    with pytest.raises(ValueError, match="at least 2 different domains"):
        williams_design(domains)


def components(tables):
    """The components of many studies x seeds x orders tables, by variances of means: another route than mean squares."""
    rows, columns = tables.mean(axis=2), tables.mean(axis=1)
    rest = tables - rows[:, :, None] - columns[:, None, :] + tables.mean(axis=(1, 2))[:, None, None]
    residual = (rest**2).sum(axis=(1, 2)) / ((tables.shape[1] - 1) * (tables.shape[2] - 1))
    order = columns.var(axis=1, ddof=1) - residual / tables.shape[1]
    return np.stack([order, rows.var(axis=1, ddof=1) - residual / tables.shape[2], residual], axis=1)


def test_components_agree_with_an_analysis_of_variance():
    cells = pd.DataFrame(planted(np.random.default_rng(0))["D1"])
    long = cells.stack().rename_axis(["seed", "order"]).rename("value").reset_index()
    square = {
        within: pingouin.rm_anova(long, dv="value", within=within, subject=subject, detailed=True).set_index("Source")["MS"]
        for within, subject in (("order", "seed"), ("seed", "order"))
    }
    residual = square["order"]["Error"]
    wanted = {"order": (square["order"]["order"] - residual) / 5, "seed": (square["seed"]["seed"] - residual) / 10, "residual": residual}
    found = variance_components(cells).set_index("source")
    for source, value in wanted.items():
        assert found.loc[source, "variance"] == pytest.approx(value, rel=1e-6)
        assert found.loc[source, "ci_low"] < value < found.loc[source, "ci_high"]
    assert found.loc["order", "observed"] == pytest.approx(np.mean([np.var(row, ddof=1) for row in cells.to_numpy()]))
    assert found.loc["seed", "observed"] == pytest.approx(np.mean([np.var(column, ddof=1) for column in cells.to_numpy().T]))
    # What varies over orders within a seed is the order's component and the rest.
    assert found.loc["order", "observed"] == pytest.approx(found.loc["order", "variance"] + found.loc["residual", "variance"])


def test_components_are_unbiased_and_their_intervals_cover():
    """Planted studies; beside it what a bootstrap over five seeds would have covered."""
    generator, truth = np.random.default_rng(1), np.array([3.0, 0.5, 1.0])
    tables = generator.normal(0, 3**0.5, (300, 1, 10)) + generator.normal(0, 0.5**0.5, (300, 5, 1)) + generator.normal(0, 1, (300, 5, 10))
    found = [variance_components(pd.DataFrame(cells)) for cells in tables]
    estimates = np.array([frame["variance"] for frame in found])
    np.testing.assert_allclose(estimates, components(tables))
    assert (np.abs(estimates.mean(axis=0) - truth) < 4 * estimates.std(axis=0) / np.sqrt(300)).all()
    covered = np.mean([(frame["ci_low"] <= truth) & (truth <= frame["ci_high"]) for frame in found], axis=0)
    assert (covered > 0.9).all() and (covered < 0.99).all()
    draws = [components(cells[generator.integers(5, size=(400, 5))]) for cells in tables]
    low, high = np.quantile(draws, [0.025, 0.975], axis=1)
    assert ((low <= truth) & (truth <= high)).mean(axis=0).max() < 0.85


def test_cells_are_those_of_the_main_length_and_of_replicates_with_further_orders():
    values = planted(np.random.default_rng(2), arms=("D1",))
    metrics = table(values)
    more = table({"D1": np.full((9, 1), 7.0)}).query("seed >= 5")  # main order only
    foreign = [
        table(values, **{key: value}) for key, value in (("method", "lora"), ("kind", "fact"), ("domain", "code"), ("metric", "own"))
    ]
    short = table({"D1": np.full((2, 1), 9.0)}, stage_steps=25)
    cells = order_cells(pd.concat([metrics, more, short, *(rows.assign(value=8.0) for rows in foreign)]), "D1")
    assert list(cells.columns) == list(ORDERS) and list(cells.index) == [0, 1, 2, 3, 4]
    assert cells.to_numpy() == pytest.approx(values["D1"])
    as_often = pd.concat([metrics, table({"D1": np.full((5, 1), 9.0)}, stage_steps=25)])
    with pytest.raises(ValueError, match=r"D1 ran 5 replicate\(s\) at each of the stage lengths \[25, 100\]"):
        order_cells(as_often, "D1")
    assert order_cells(as_often, "D1", stage_steps=100).to_numpy() == pytest.approx(values["D1"])


def test_missing_cells_are_named():
    metrics = table(planted(np.random.default_rng(3)))
    gap = (metrics["arm"] == "D1") & (metrics["seed"] == 3) & (metrics["order"] == "williams-10")
    with pytest.raises(MissingMeasurement, match=r"forgetting of D1 lacks williams-10 of seed 3 \(1 cells\)"):
        robustness_table(metrics[~gap], names=["forgetting"])
    with pytest.raises(MissingMeasurement, match=r"final of D1 lacks main of seed 0.*\(50 cells\)"):
        order_cells(metrics, "D1", "final")
    fewer = metrics[~((metrics["arm"] == "D1") & (metrics["seed"] == 4))]
    with pytest.raises(MissingMeasurement, match="D1: main of seed 4"):
        order_differences(fewer, "S1-2of4", "D1")
    with pytest.raises(MissingMeasurement, match=r"D0 ran the orders \['main'\]"):
        order_cells(pd.concat([metrics, table({"D0": np.ones((5, 1))})]), "D0")
    with pytest.raises(ValueError, match="1 seeds x 10 orders"):
        variance_components(order_cells(metrics[metrics["seed"] == 0], "D1"))


def test_a_contrast_that_depends_on_nothing_has_no_components():
    """Arms that share all cell effects and differ by a constant: orders matter to both, and not to their difference."""
    values = planted(np.random.default_rng(4), arms=("D1",))
    metrics = table(values | {"S1-2of4": values["D1"] - 0.05})
    found = robustness_table(metrics, [("S1-2of4", "D1")], names=["forgetting"]).set_index(["arm", "source"])
    assert set(found.index.get_level_values("arm")) == {"D1", "S1-2of4", "S1-2of4 - D1"}
    assert found.loc[("D1", "order"), "variance"] == pytest.approx(found.loc[("S1-2of4", "order"), "variance"])
    assert found.loc["S1-2of4 - D1", "variance"].to_numpy() == pytest.approx(0, abs=1e-20)
    assert (found["seeds"] == 5).all() and (found["orders"] == 10).all()
    assert robustness_table(metrics[metrics["order"] == "main"]).empty


def test_agreement_is_the_intraclass_correlation_of_the_differences():
    values = planted(np.random.default_rng(5), shared=0.03)
    found = topology_agreement(table(values), SPARSE, draws=50)
    long = pd.concat(
        pd.DataFrame({"cell": range(50), "arm": arm, "value": (values[arm] - values["D1"]).ravel()}) for arm in SPARSE
    )  # fmt: skip
    wanted = pingouin.intraclass_corr(long, targets="cell", raters="arm", ratings="value").set_index("Type")["ICC"]["ICC(C,1)"]
    assert found.value == pytest.approx(wanted, abs=1e-6)
    assert (found.arms, found.control, found.seeds, found.orders) == (SPARSE, "D1", 5, 10)
    moved = table({arm: cells + (0.1 if arm == "S1-4of8" else 0) for arm, cells in values.items()})
    assert topology_agreement(moved, SPARSE, draws=50).value == pytest.approx(wanted, abs=1e-6)


def test_the_control_that_all_differences_share_is_not_taken_for_agreement():
    """Nothing shared but the control: the correlation is near one half and the null says so, at its nominal rate."""
    generator = np.random.default_rng(6)
    found = [topology_agreement(table(planted(generator)), SPARSE, draws=99, seed=study) for study in range(30)]
    assert 0.4 < np.mean([agreement.value for agreement in found]) < 0.6
    assert np.mean([agreement.value - agreement.null for agreement in found]) == pytest.approx(0, abs=0.05)
    assert np.mean([agreement.p <= 0.1 for agreement in found]) < 0.2


def test_planted_agreement_is_found_and_so_is_the_direction():
    values = planted(np.random.default_rng(7), shared=0.05, own=0.003)
    found = topology_agreement(table(values), SPARSE)
    assert found.value > found.null + 0.2 and found.p < 0.01
    less = {arm: cells - (0.5 if arm != "D1" else 0) for arm, cells in values.items()}
    assert topology_agreement(table(less), SPARSE, draws=10).same_direction == 1
    less["S1-4of8"] = less["S1-4of8"] + 1
    assert topology_agreement(table(less), SPARSE, draws=10).same_direction == 0


def test_agreement_needs_two_arms_and_names_missing_cells():
    metrics = table(planted(np.random.default_rng(8)))
    with pytest.raises(ValueError, match="1 arms besides D1"):
        topology_agreement(metrics, SPARSE[:1])
    with pytest.raises(MissingMeasurement, match="S1-4of8: main of seed 2"):
        topology_agreement(metrics[~((metrics["arm"] == "S1-4of8") & (metrics["seed"] == 2))], SPARSE)
    constant = topology_agreement(table({arm: np.full((5, 10), 0.5) for arm in ("D1", *SPARSE)}), SPARSE, draws=5)
    assert np.isnan(constant.value) and np.isnan(constant.p)


def test_figure_shows_every_seed_of_every_order_and_the_paired_differences():
    values = planted(np.random.default_rng(9), arms=("D1", "S1-2of4"))
    metrics = table(values)
    assert arms_with_orders(metrics) == ["D1", "S1-2of4"]
    figure = forgetting_by_order(metrics, margin=0.02)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == list(ORDERS)
    dots = [np.asarray(line.get_xdata()) for line in right.get_lines() if line.get_linestyle() == "None" and len(line.get_xdata()) == 5]
    np.testing.assert_allclose(np.array(dots).T, 100 * (values["S1-2of4"] - values["D1"]))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["D1", "S1 2:4", "margin"]
    with pytest.raises(NothingToDraw, match=r"only \['D1'\] ran further orders"):
        forgetting_by_order(metrics[metrics["arm"] == "D1"])
