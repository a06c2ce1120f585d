"""Figures of the further streams: marks are the tables' means and intervals, n is said, absent rows say what is missing."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from example_streams import (
    CHOSEN_RATES,
    CONTROLS,
    DOMAINS,
    INFERENCE_GAINS,
    LENGTHS,
    MAIN_ARMS,
    METHODS,
    NO_KERNEL,
    PLANTED,
    RATES,
    STAGE_STEPS,
    example_streams,
    planned_runs,
    planted_metrics,
    stage_steps,
)
from example_tables import example_tables
from matplotlib.colors import to_hex
from scipy import stats
from test_figures import shown_texts

from sparsecl import figures
from sparsecl.arms import parse_arm
from sparsecl.crossover import mean_curves, summarise_crossovers
from sparsecl.figure_style import NothingToDraw
from sparsecl.publication import part_figures
from sparsecl.tables import COLUMNS

REPLICATES, FURTHER, MARGIN = 6, 3, 0.05
NAMES = (
    "controls", "efficiency_plane", "forgetting_by_topology", "dose_response", "crossover", "methods_plane", "retention_by_domain",
    "learning_rate_sweep", "learning_rate_methods", "inference_speed", "learned_forgotten_frontier", "forgetting_by_order",
)  # fmt: skip


@pytest.fixture(scope="module")
def tables():
    return example_streams(REPLICATES, FURTHER)


@pytest.fixture(scope="module")
def drawn(tables):
    """The figures as the paper has them drawn."""
    return part_figures(tables, MARGIN, set(NAMES))


@pytest.fixture(scope="module")
def values(tables):
    """Metrics over domains of the main protocol by (arm, metric, seed), selected here by each arm's own stage length."""
    rows = tables["metrics"]
    rows = rows[(rows["method"] == "full") & (rows["order"] == "main") & (rows["domain"] == "") & (rows["kind"] == "all")]
    rows = rows[rows["stage_steps"] == rows["arm"].map(stage_steps)]
    return 100 * rows.set_index(["arm", "metric", "seed"])["value"].sort_index()


def marks(axes) -> list[tuple[float, float]]:
    """Positions of the marks with intervals, in the order in which they were drawn."""
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line, _, _ in axes.containers]


def spans(axes, place: int) -> list[tuple[float, float]]:
    """Ends of the intervals of one mark: to the sides, then up and down, where it has them."""
    ends = [bar.get_segments()[0] for bar in axes.containers[place][2]]
    return [tuple(sorted(end[:, 0])) if np.ptp(end[:, 1]) == 0 else tuple(sorted(end[:, 1])) for end in ends]


def t_interval(sample) -> tuple[float, float]:
    return stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))


def labels(axes) -> list[str]:
    return [text.get_text() for text in axes.get_yticklabels()]


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def line_of(axes, colour: str, points: int | None = None):
    """The first curve of a colour, with so many points."""
    found = [line for line in axes.lines if line.get_color() == colour and points in (None, len(line.get_xdata()))]
    return found[0]


# The example tables


@pytest.mark.parametrize("metric", ["own", "forgetting", "final"])
def test_the_tables_show_what_is_planted(values, metric):
    for arm in PLANTED:
        assert values[arm, metric].mean() == pytest.approx(100 * planted_metrics(arm)[metric], abs=2.5)


def test_further_streams_run_in_the_first_replicates_only(tables):
    runs = tables["metrics"].groupby(["arm", "method", "order", "stage_steps"])["seed"].unique().map(set)
    assert len(runs) == len(planned_runs(1, 1))
    for (arm, method, order, steps), seeds in runs.items():
        is_main = arm in MAIN_ARMS and (method, order, steps) == ("full", "main", stage_steps(arm))
        assert seeds == set(range(REPLICATES if is_main else FURTHER))


def test_the_tables_keep_the_contract(tables):
    for name in set(COLUMNS) & set(tables) - {"conversion", "overlap"}:  # those of `example_tables`
        assert list(tables[name]) == list(COLUMNS[name]), name
    assert not tables["cost"].duplicated(["arm", "method", "seed", "job"]).any()


# Every figure


def test_every_figure_is_drawn(drawn):
    assert sorted(drawn) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_texts_are_readable_and_lie_apart_on_the_page(drawn, name):
    figure = drawn[name]
    assert figure.get_size_inches()[0] <= 6.3 and figure.get_size_inches()[1] <= 9
    texts = shown_texts(figure)
    assert texts and min(text.get_fontsize() for text in texts) >= 8
    boxes, page = {text: text.get_window_extent() for text in texts}, figure.bbox.padded(2)
    assert not [text for text, box in boxes.items() if not (page.contains(*box.p0) and page.contains(*box.p1))]
    padded = [(text.get_text(), box.padded(-0.5)) for text, box in boxes.items()]
    assert not [(one, other) for (one, box), (other, beside) in combinations(padded, 2) if box.overlaps(beside)]


def test_a_study_without_further_streams_lacks_their_figures_without_an_error():
    found = part_figures(example_tables(replicates=2), MARGIN, set(NAMES))
    assert sorted(found) == ["crossover", "learning_rate_sweep", "retention_by_domain"]


# H1: controls


CONTROL_ROWS = ["D1", "Dnz-0.5", "Df-0.5", "Dg-2of4", "Dcut-0.5", "S1-2of4-random", "Sf-2of4"]


@pytest.mark.parametrize(("column", "measure"), enumerate(["forgetting", "own", "final"]))
def test_controls_stand_at_their_means_with_t_intervals(drawn, values, column, measure):
    axes = drawn["controls"].axes[column]
    for place, arm in enumerate(["S1-2of4", *CONTROL_ROWS]):
        assert marks(axes)[place][0] == pytest.approx(values[arm, measure].mean())
        assert spans(axes, place)[0] == pytest.approx(t_interval(values[arm, measure]))
        assert axes.containers[place][0].get_color() == parse_arm(arm).colour


@pytest.mark.parametrize(("column", "measure"), enumerate(["forgetting", "own", "final"]))
def test_differences_to_the_controls_are_paired_by_replicate(drawn, values, column, measure):
    axes = drawn["controls"].axes[3 + column]
    for place, arm in enumerate(CONTROL_ROWS):
        paired = (values["S1-2of4", measure] - values[arm, measure]).dropna()
        assert len(paired) == (FURTHER if arm in CONTROLS else REPLICATES)
        assert marks(axes)[place][0] == pytest.approx(paired.mean())
        assert spans(axes, place)[0] == pytest.approx(t_interval(paired))


def test_controls_of_fewer_replicates_say_how_many(drawn):
    found = labels(drawn["controls"].axes[3])
    assert found[:4] == ["D1", "Dnz 0.5", "Df 0.5", "Dg 2:4"]
    assert found[4:] == ["Dcut 0.5 ($n=3$)", "S1 2:4 random ($n=3$)", "Sf 2:4 ($n=3$)"]


def test_the_margin_is_drawn_where_one_was_registered(drawn, tables):
    bands = [[patch.get_extents().transformed(axes.transData.inverted()) for patch in axes.patches] for axes in drawn["controls"].axes]
    assert [len(found) for found in bands] == [0, 0, 0, 1, 0, 1]
    assert (bands[3][0].x0, bands[3][0].x1) == pytest.approx((-5, 5))
    assert not any(axes.patches for axes in figures.controls(tables["metrics"]).axes)


def test_an_arm_of_equal_flops_stands_at_its_own_stage_length(drawn, tables):
    """Rows of Df at the study's length, on fewer replicates, are not the control."""
    metrics = tables["metrics"]
    own = metrics[(metrics["arm"] == "Df-0.5") & (metrics["seed"] < FURTHER)]
    assert set(own["stage_steps"]) == {stage_steps("Df-0.5")} != {STAGE_STEPS}
    mixed = pd.concat([metrics, own.assign(stage_steps=STAGE_STEPS, value=0.99)], ignore_index=True)
    assert marks(figures.controls(mixed).axes[0]) == marks(drawn["controls"].axes[0])


def test_controls_need_d1_and_another(tables):
    metrics = tables["metrics"]
    for kept in (["S1-2of4", "D1"], ["S1-2of4", "Dnz-0.5", "Df-0.5"], ["D1", "Dnz-0.5"]):
        with pytest.raises(NothingToDraw, match="add arms to the study and run 03_continual"):
            figures.controls(metrics[metrics["arm"].isin(kept)])
    few = figures.controls(metrics[metrics["arm"].isin(["S1-2of4", "D1", "Sf-2of4"])])
    assert labels(few.axes[0]) == ["S1 2:4", "D1", "Sf 2:4 ($n=3$)"]


# H2: efficiency


PLANE_ARMS = ["D1", "Dnz-0.5", "Df-0.5", "S1-4of8", "S1-2of4", "S1-block32"]


def test_the_plane_holds_the_main_arms_and_the_arm_of_the_strict_contrast(drawn):
    found = labels(drawn["efficiency_plane"].axes[1])
    assert found[:6] == [parse_arm(arm).label for arm in PLANE_ARMS]
    assert sorted(found[6:]) == ["Dg 2:4", "Sf 2:4 ($n=3$)"]


def test_marks_of_the_plane_are_learning_speed_and_retention(drawn, values):
    axes = drawn["efficiency_plane"].axes[0]
    for place, arm in enumerate(PLANE_ARMS):
        speed, kept = values[arm, "learning_speed"], values[arm, "retention"]
        assert marks(axes)[place] == pytest.approx((speed.mean(), kept.mean()))
        assert np.allclose(spans(axes, place), [t_interval(speed), t_interval(kept)])


@pytest.mark.parametrize(("arm", "row"), [("D1", 0), ("Df-0.5", 2), ("S1-2of4", 4)])
def test_joint_efficiency_is_the_gain_of_all_domains_per_flop(drawn, tables, arm, row):
    """Recomputed from scores and costs: hollow by executed FLOPs, filled by theoretical ones."""
    scores, cost = tables["accuracy"], tables["cost"]
    scores = scores[(scores["arm"] == arm) & (scores["method"] == "full") & (scores["order"] == "main") & (scores["kind"] == "all")]
    scores = scores[(scores["stage_steps"] == stage_steps(arm)) & (scores["domain"] != "general")]
    before, after = (scores[scores["stage"] == stage].groupby("seed")["score"].sum() for stage in (0, len(DOMAINS)))
    spent = cost[(cost["arm"] == arm) & (cost["method"] == "full") & (cost["job"] == "03_continual")].set_index("seed")
    axes = drawn["efficiency_plane"].axes[1]
    for side, (column, inside) in enumerate({"flops_dense": "white", "flops_sparse": parse_arm(arm).colour}.items()):
        assert marks(axes)[2 * row + side][0] == pytest.approx((100 * (after - before) / (spent[column] / 1e12)).mean())
        assert to_hex(axes.containers[2 * row + side][0].get_markerfacecolor()) == to_hex(inside)


def test_a_plane_without_costs_says_so(tables):
    metrics = tables["metrics"]
    with pytest.raises(NothingToDraw, match="joint_efficiency_executed"):
        figures.efficiency_plane(metrics[~metrics["metric"].str.startswith("joint_efficiency")])


# H3: topologies


def forgotten_after(rows: pd.DataFrame, stage: int) -> float:
    """F_k by its definition, in points: from the scores of one arm and replicate."""
    scores = rows.set_index(["stage", "domain"])["score"]
    falls = [max(scores[t, domain] for t in range(1, stage)) - scores[stage, domain] for domain in DOMAINS[: stage - 1]]
    return 100 * float(np.mean(falls))


@pytest.fixture(scope="module")
def stage_curves(tables):
    rows = tables["accuracy"]
    rows = rows[(rows["method"] == "full") & (rows["order"] == "main") & (rows["kind"] == "all") & (rows["stage_steps"] == STAGE_STEPS)]
    arms = ("D1", "S1-4of8", "S1-2of4", "S1-block32")
    runs = {(arm, seed): rows[(rows["arm"] == arm) & (rows["seed"] == seed)] for arm in arms for seed in range(REPLICATES)}
    return {key: [forgotten_after(run, stage) for stage in range(2, len(DOMAINS) + 1)] for key, run in runs.items()}


@pytest.mark.parametrize("arm", ["D1", "S1-2of4", "S1-block32"])
def test_curves_of_forgetting_and_their_paired_differences(drawn, stage_curves, arm):
    left, right = drawn["forgetting_by_topology"].axes[:2]
    ours, theirs = (np.array([stage_curves[name, seed] for seed in range(REPLICATES)]) for name in (arm, "D1"))
    line = line_of(left, parse_arm(arm).colour)
    assert list(line.get_xdata()) == [2, 3, 4, 5] and np.allclose(line.get_ydata(), ours.mean(axis=0))
    if arm != "D1":
        paired = ours - theirs
        assert np.allclose(line_of(right, parse_arm(arm).colour).get_ydata(), paired.mean(axis=0))
        place = ["S1-4of8", "S1-2of4", "S1-block32"].index(arm)
        outline = right.collections[place].get_paths()[0].vertices
        assert outline[:, 1].min() == pytest.approx(min(t_interval(column)[0] for column in paired.T))


def test_topologies_of_fewer_replicates_or_other_densities_are_not_compared(drawn, tables):
    shown = [text.get_text() for text in shown_texts(drawn["forgetting_by_topology"])]
    assert "S1 unstructured" not in shown and "S1 6:8" not in shown
    accuracy = tables["accuracy"]
    first = accuracy[accuracy["seed"] < FURTHER]  # here every arm ran as often as the others
    more = figures.forgetting_by_topology(first[first["stage_steps"].isin([STAGE_STEPS])])
    shown = [text.get_text() for text in shown_texts(more)]
    assert "S1 unstructured" in shown and "S1 6:8" not in shown


@pytest.mark.parametrize("kept", [["D1", "S1-2of4"], ["S1-2of4", "S1-4of8"], []])
def test_topologies_need_d1_and_two(tables, kept):
    accuracy = tables["accuracy"]
    with pytest.raises(NothingToDraw, match="such as S1-4of8"):
        figures.forgetting_by_topology(accuracy[accuracy["arm"].isin(kept)])


# Dose and response


ZEROS = {"S1-unstructured": ["S1-unstructured-d0.75", "S1-unstructured"], "S1-4of8": ["S1-6of8", "S1-4of8"]}


@pytest.mark.parametrize(("row", "measure"), enumerate(["own", "final", "forgetting"]))
def test_responses_to_zeros_start_at_d1_of_the_same_replicates(drawn, values, row, measure):
    axes = drawn["dose_response"].axes[2 * row]
    for like, arms in ZEROS.items():
        line = line_of(axes, parse_arm(like).colour, points=3)
        expected = [values[arm, measure].loc[: FURTHER - 1].mean() for arm in ("D1", *arms)]
        assert line.get_xdata() == pytest.approx([0, 25, 50], abs=1) and np.allclose(line.get_ydata(), expected)
    assert line_of(axes, parse_arm("S1-2of4").colour, points=2).get_xdata() == pytest.approx([0, 50], abs=1)


@pytest.mark.parametrize(("row", "measure"), enumerate(["own", "final", "forgetting"]))
def test_responses_to_budgets_run_from_none_to_twice(drawn, values, row, measure):
    axes = drawn["dose_response"].axes[2 * row + 1]
    budgets = {"D1": ["D0", "D1-b0.5", "D1", "D1-b2"], "S1-2of4": ["S0-2of4", "S1-2of4-b0.5", "S1-2of4", "S1-2of4-b2"]}
    for number, (like, arms) in enumerate(budgets.items()):
        line = line_of(axes, parse_arm(like).colour, points=4)
        samples = [values[arm, measure].loc[: FURTHER - 1] for arm in arms]
        assert line.get_xdata() == pytest.approx([0, 0.5, 1, 2], abs=0.05) and np.allclose(line.get_ydata(), [s.mean() for s in samples])
        fills = [to_hex(axes.containers[4 * number + place][0].get_markerfacecolor()) for place in range(4)]
        assert fills[0] == "#ffffff" and "#ffffff" not in fills[1:]
        assert spans(axes, 4 * number + 1)[0] == pytest.approx(t_interval(samples[1]))


def test_a_sweep_of_two_doses_is_none(tables):
    metrics = tables["metrics"]
    without = metrics[~metrics["arm"].isin(["D1-b0.5", "D1-b2", "S1-2of4-b0.5", "S1-2of4-b2", "D0", "S0-2of4"])]
    figure = figures.dose_response(without)
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_xlabel()] == ["zeros in the pruned layers (%)"]
    with pytest.raises(NothingToDraw, match="a response needs 3 doses"):
        figures.dose_response(without[without["arm"].isin(["D1", "S1-2of4", "S1-4of8"])])


# Crossover


def test_the_crossover_is_that_of_the_mean_curves(drawn, tables):
    points = mean_curves(tables["curves"], tables["accuracy"], ["S1-2of4", "D1"])
    step = summarise_crossovers(points, "S1-2of4", "D1").on_mean_curve
    axes = drawn["crossover"].axes[0]
    assert 4 * STAGE_STEPS < step < 5 * STAGE_STEPS  # planted: the sparse arm ends higher by what it does not forget
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == "--"] == [pytest.approx(step)]
    assert f"crossover at step {step:.0f}" in words(axes)
    expected = 100 * points[points["arm"] == "D1"].groupby("step")["score"].mean()
    assert np.allclose(line_of(axes, parse_arm("D1").colour).get_ydata(), expected)


def test_an_arm_of_equal_flops_ends_before_the_others(drawn):
    axes = drawn["crossover"].axes[0]
    ends = {arm: line_of(axes, parse_arm(arm).colour).get_xdata()[[0, -1]].tolist() for arm in ("D1", "S1-2of4", "Df-0.5")}
    assert ends == {"D1": [0, 500], "S1-2of4": [0, 500], "Df-0.5": [0, 5 * stage_steps("Df-0.5")]}
    assert words(axes)[: len(DOMAINS)] == list(DOMAINS)


def test_differences_are_read_at_equal_measured_time(drawn, tables):
    timings = tables["timings"]
    seconds = timings[(timings["job"] == "03_continual") & (timings["method"] == "full")].groupby("arm")["wall_s"].median()
    line = line_of(drawn["crossover"].axes[1], parse_arm("S1-2of4").colour)
    assert line.get_xdata()[-1] == pytest.approx(seconds["D1"]) and seconds["D1"] < seconds["S1-2of4"]
    # At D1's end the sparse arm, 2 % slower, is just before its own.
    own = mean_curves(tables["curves"], tables["accuracy"], ["S1-2of4", "D1"]).groupby(["arm", "step"])["score"].mean()
    reached = np.interp(500 * seconds["D1"] / seconds["S1-2of4"], own["S1-2of4"].index, own["S1-2of4"])
    assert line.get_ydata()[-1] == pytest.approx(100 * (reached - own["D1"].iloc[-1]))


@pytest.mark.parametrize(("added", "sentence"), [(-0.1, "no crossover"), (0.1, "S1 2:4 above from the start")])
def test_curves_that_do_not_cross_say_so(tables, added, sentence):
    changed = {name: tables[name][tables[name]["arm"].isin(["D1", "S1-2of4"])].copy() for name in ("curves", "accuracy")}
    for table in changed.values():
        table.loc[table["arm"] == "S1-2of4", "score"] += added
    axes = figures.crossover(changed["curves"], changed["accuracy"], tables["timings"]).axes[0]
    assert sentence in words(axes) and not [line for line in axes.lines if line.get_linestyle() == "--"]


def test_a_crossover_needs_scores_and_times(tables):
    curves, accuracy, timings = (tables[name] for name in ("curves", "accuracy", "timings"))
    with pytest.raises(NothingToDraw, match=r"\['D1'\] lack scores inside the stages, or times"):
        figures.crossover(curves, accuracy, timings[timings["arm"] != "D1"])
    with pytest.raises(NothingToDraw, match=r"\['D1', 'S1-2of4'\] lack"):
        figures.crossover(curves.assign(score=np.nan), accuracy, timings)


# Methods


@pytest.fixture(scope="module")
def method_values(tables):
    rows = tables["metrics"]
    rows = rows[(rows["order"] == "main") & (rows["domain"] == "") & (rows["kind"] == "all") & (rows["stage_steps"] == STAGE_STEPS)]
    return 100 * rows[rows["seed"] < FURTHER].set_index(["arm", "method", "metric", "seed"])["value"].sort_index()


@pytest.mark.parametrize(("panel", "outcome"), enumerate(["final", "forgetting"]))
def test_methods_are_compared_on_the_replicates_that_ran_them_all(drawn, method_values, panel, outcome):
    axes, found = drawn["methods_plane"].axes[panel], []
    for arm in ("D1", "S1-2of4"):
        for method in ("full", *METHODS):
            own, reached = method_values[arm, method, "own"], method_values[arm, method, outcome]
            assert marks(axes)[len(found)] == pytest.approx((own.mean(), reached.mean()))
            assert np.allclose(spans(axes, len(found)), [t_interval(own), t_interval(reached)])
            assert axes.containers[len(found)][0].get_color() == parse_arm(arm).colour
            found.append(axes.containers[len(found)][0].get_marker())
    assert len(set(found)) == 4 and found[:4] == found[4:]


def test_references_are_over_the_domains_that_own_and_final_are_over(drawn, tables):
    accuracy = tables["accuracy"]
    rows = accuracy[(accuracy["arm"] == "D1") & (accuracy["stage"] == 1) & (accuracy["kind"] == "all")]
    alone = rows[(rows["method"] == "single") & (rows["stage_domain"] == rows["domain"]) & (rows["domain"] != DOMAINS[-1])]
    mixed = rows[(rows["method"] == "joint") & rows["domain"].isin(DOMAINS[:-1])]
    lines = {line.get_linestyle(): line for line in drawn["methods_plane"].axes[0].lines if line.get_color() == parse_arm("D1").colour}
    assert lines["--"].get_xdata()[0] == pytest.approx(100 * alone["score"].mean())
    assert lines[":"].get_ydata()[0] == pytest.approx(100 * mixed["score"].mean())


def test_one_method_is_no_comparison(tables):
    metrics = tables["metrics"]
    with pytest.raises(NothingToDraw, match="no arm ran a second method such as lora"):
        figures.methods_plane(metrics[metrics["method"].isin(["full", "single"])])
    with pytest.raises(NothingToDraw, match="run 05_stats"):
        figures.methods_plane(metrics.iloc[:0])


# Retention


@pytest.mark.parametrize(("panel", "kind"), enumerate(["ability", "fact"]))
def test_retention_is_by_domain_and_kind(drawn, tables, panel, kind):
    axes, accuracy = drawn["retention_by_domain"].axes[panel], tables["accuracy"]
    assert [text.get_text() for text in axes.get_xticklabels()] == list(DOMAINS[:-1])
    number = 0
    for stage, domain in enumerate(DOMAINS[:-1], start=1):
        for arm in ("D1", "S1-2of4", "Dnz-0.5", "Df-0.5"):
            rows = accuracy[(accuracy["arm"] == arm) & (accuracy["stage_steps"] == stage_steps(arm)) & (accuracy["order"] == "main")]
            rows = rows[(rows["method"] == "full") & (rows["domain"] == domain) & (rows["kind"] == kind)]
            scores = rows.set_index(["stage", "seed"])["score"]
            kept = 100 * scores[len(DOMAINS)] / scores[stage]
            place, shown = marks(axes)[number]
            assert round(place) == stage - 1 and shown == pytest.approx(kept.mean())
            assert spans(axes, number)[0] == pytest.approx(t_interval(kept))
            number += 1


def test_the_general_mixture_has_a_panel_of_its_own(drawn, values):
    axes = drawn["retention_by_domain"].axes[2]
    shown = [y for _, y in marks(axes)]
    assert shown == pytest.approx([values[arm, "general_retention"].mean() for arm in ("D1", "S1-2of4", "Dnz-0.5", "Df-0.5")])


def test_undefined_retention_is_not_drawn(tables):
    metrics = tables["metrics"].copy()
    hit = (metrics["metric"] == "retention") & (metrics["domain"] == "code") & (metrics["kind"] == "fact")
    metrics.loc[hit & (metrics["arm"] == "D1") & (metrics["seed"] == 0), "value"] = np.nan
    figure = figures.retention_by_domain(metrics, tables["accuracy"])
    assert [len(axes.containers) for axes in figure.axes] == [16, 15, 4]
    metrics.loc[hit, "value"] = np.nan
    axes = figures.retention_by_domain(metrics, tables["accuracy"]).axes[1]
    assert len(axes.containers) == 12 and words(axes) == ["undefined"]


def test_retention_without_kinds_is_missing(tables):
    metrics = tables["metrics"]
    with pytest.raises(NothingToDraw, match="no retention by domain and kind"):
        figures.retention_by_domain(metrics[metrics["kind"] == "all"], tables["accuracy"])


# Learning rates


def test_the_sweep_shows_full_fine_tuning_unless_told(tables):
    sweep = tables["learning_rate"]
    sweep = sweep[sweep["arm"].isin(["D1", "S1-2of4"])]
    for method in ("full", "lora"):
        figure = figures.learning_rate_sweep(sweep) if method == "full" else figures.learning_rate_sweep(sweep, method=method)
        rows = sweep[(sweep["arm"] == "D1") & (sweep["method"] == method) & (sweep["kind"] == "all")]
        line = line_of(figure.axes[0], parse_arm("D1").colour)
        assert list(line.get_xdata()) == list(RATES) and np.allclose(line.get_ydata(), 100 * rows.groupby("learning_rate")["own"].mean())
        rings = [list(ring.get_xdata()) for ring in figure.axes[0].lines if ring.get_markersize() == 10]
        assert rings == [[CHOSEN_RATES[method]]] * 2


def test_methods_have_a_panel_and_a_chosen_rate_each(drawn, tables):
    panels = drawn["learning_rate_methods"].axes
    assert [axes.get_title() for axes in panels] == ["full fine-tuning", "LoRA", "replay", "EWC"]
    sweep = tables["learning_rate"]
    for axes, method in zip(panels, ("full", *METHODS), strict=True):
        rings = {float(ring.get_xdata()[0]) for ring in axes.lines if ring.get_markersize() == 10}
        assert rings == {CHOSEN_RATES[method]}
        rows = sweep[(sweep["arm"] == "S1-2of4") & (sweep["method"] == method) & (sweep["kind"] == "all")]
        for column, dashes in (("own", "-"), ("final", "--")):
            curves = [line for line in axes.lines if line.get_linestyle() == dashes and line.get_color() == parse_arm("S1-2of4").colour]
            assert np.allclose(curves[0].get_ydata(), 100 * rows.groupby("learning_rate")[column].mean())


def test_rates_of_one_method_make_no_panels(tables):
    sweep = tables["learning_rate"]
    with pytest.raises(NothingToDraw, match=r"only \['full'\] were swept"):
        figures.learning_rate_methods(sweep[sweep["method"] == "full"])


# Inference


INFERENCE_ROWS = ["unstructured, csr", "6:8, csr", "4:8, csr", "2:4, csr", "2:4, semi-structured", "block 32, csr", "block 32, bsr"]


def test_measured_and_theoretical_gains_stand_beside_each_other(drawn, tables):
    inference = tables["inference"]
    for axes, tokens in zip(drawn["inference_speed"].axes[:2], (1, 32), strict=True):
        timed = [label for label in INFERENCE_ROWS if label != "2:4, semi-structured"]
        for place, label in enumerate(timed):
            topology, stack = label.split(", ")
            arm = "S1-" + topology.replace(":", "of").replace("block ", "block")
            rows = inference[(inference["arm"] == arm) & (inference["stack"] == stack) & (inference["tokens"] == tokens)]
            assert marks(axes)[place][0] == pytest.approx(rows["gain_measured"].astype(float).mean())
            assert round(marks(axes)[place][1]) == INFERENCE_ROWS.index(label)
        theory = [float(line.get_xdata()[0]) for line in axes.lines if line.get_marker() == "|" and line.get_markersize() == 11]
        assert len(theory) == len(INFERENCE_ROWS) and theory[1] == pytest.approx(1 / (1 - 0.76 * 0.25))
    assert labels(drawn["inference_speed"].axes[0]) == INFERENCE_ROWS


def test_a_stack_without_a_kernel_says_so_in_its_row(drawn, tables):
    without = tables["inference"][tables["inference"]["kernel"] == NO_KERNEL]
    assert set(without["stack"]) == {"semi-structured"} and INFERENCE_GAINS["S1-2of4", "semi-structured"] is None
    for axes in drawn["inference_speed"].axes[:2]:
        assert [(text.get_text(), text.xy) for text in axes.texts] == [("no kernel", (1, 4))]


def test_devices_stand_apart(tables):
    inference = tables["inference"]
    both = pd.concat([inference, inference.assign(device="cuda (H200)", gain_measured=1.2)], ignore_index=True)
    figure = figures.inference_speed(both)
    assert [axes.get_title() for axes in figure.axes[2:4]] == ["one token, cuda (H200)", "8 rows of 32 tokens, cuda (H200)"]
    assert [x for x, _ in marks(figure.axes[2])] == pytest.approx([1.2] * len(INFERENCE_ROWS))


def test_no_inference_names_the_notebook(tables):
    with pytest.raises(NothingToDraw, match="run 02_recover"):
        figures.inference_speed(tables["inference"].iloc[:0])


def test_lengths_of_the_frontier_are_in_the_tables(drawn):
    named = {text.get_text() for text in drawn["learned_forgotten_frontier"].axes[0].texts}
    assert named == {str(steps) for steps in (*LENGTHS, STAGE_STEPS)}
