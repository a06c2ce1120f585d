"""Figures: equal tables give equal bytes, what is drawn is what the tables say, absent rows say what is missing."""

import numpy as np
import pandas as pd
import pytest
from example_tables import DOMAINS, STAGE_STEPS, example_tables
from matplotlib.figure import Figure

from sparsecl import figures
from sparsecl.arms import parse_arm
from sparsecl.figure_style import NothingToDraw, intervals, mean_interval, save

INPUTS = {
    "forgetting_curves": ("curves", "accuracy"),
    "accuracy_matrices": ("accuracy",),
    "forgetting_own_final": ("metrics",),
    "conversion_and_recovery": ("conversion",),
    "layer_overlap": ("overlap",),
    "learning_rate_sweep": ("learning_rate",),
    "loss_forgetting": ("accuracy", "curves"),
}


@pytest.fixture(scope="module")
def tables():
    return example_tables(replicates=2)


@pytest.fixture(scope="module")
def drawn(tables):
    return {name: getattr(figures, name)(*(tables[table] for table in needed)) for name, needed in INPUTS.items()}


@pytest.mark.parametrize("name", INPUTS)
def test_fonts_are_readable_at_column_width(drawn, name):
    figure = drawn[name]
    assert isinstance(figure, Figure)
    assert figure.get_size_inches()[0] <= 6.3
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_visible() and text.get_text()]
    assert texts and min(text.get_fontsize() for text in texts) >= 8


@pytest.mark.parametrize("name", ["learning_rate_sweep", "forgetting_own_final"])
def test_equal_tables_give_equal_bytes(tables, drawn, name, tmp_path):
    again = getattr(figures, name)(*(tables[table] for table in INPUTS[name]))
    first, second = save(drawn[name], tmp_path / "a.pdf"), save(again, tmp_path / "b.pdf")
    assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in first.read_bytes()


def test_rows_of_other_methods_orders_and_lengths_are_not_drawn(tables, drawn):
    accuracy = tables["accuracy"]
    foreign = [
        accuracy[accuracy["seed"] == 0].assign(**{key: value})
        for key, value in (("method", "lora"), ("order", "reversed"), ("stage_steps", 50))
    ]
    mixed = pd.concat([accuracy, *(rows.assign(score=1.0) for rows in foreign)], ignore_index=True)
    before, after = (figure.axes[0].texts for figure in (drawn["accuracy_matrices"], figures.accuracy_matrices(mixed)))
    assert [text.get_text() for text in before] == [text.get_text() for text in after]


def test_matrix_cells_are_means_over_replicates(tables, drawn):
    accuracy = tables["accuracy"]
    cell = accuracy[(accuracy["arm"] == "D1") & (accuracy["stage"] == 2) & (accuracy["domain"] == "code") & (accuracy["kind"] == "all")]
    shown = drawn["accuracy_matrices"].axes[0].texts[2 * len(DOMAINS)].get_text()
    assert shown == f"{100 * cell['score'].mean():.0f}"


def test_curves_start_before_the_stream_and_end_with_it(drawn):
    line = drawn["forgetting_curves"].axes[0].lines[0]
    assert line.get_xdata()[0] == 0
    assert line.get_xdata()[-1] == len(DOMAINS) * STAGE_STEPS
    assert np.all(np.diff(line.get_xdata()) > 0)


def test_arms_keep_the_registry_colours(drawn):
    colours = {line.get_color() for line in drawn["forgetting_curves"].axes[0].lines}
    assert {parse_arm("D1").colour, parse_arm("S1-2of4").colour} <= colours


def test_paired_differences_are_by_replicate(tables, drawn):
    metrics = tables["metrics"]
    rows = metrics[(metrics["metric"] == "forgetting") & (metrics["kind"] == "all") & (metrics["domain"] == "")]
    wide = rows.pivot(index="seed", columns="arm", values="value")
    expected = sorted(100 * (wide["S1-2of4"] - wide["D1"]))
    points = [
        line for line in drawn["forgetting_own_final"].axes[1].lines if len(line.get_ydata()) == len(wide) and line.get_marker() == "s"
    ]
    assert np.allclose(sorted(points[0].get_ydata()), expected)


def test_learning_rates_that_were_chosen_are_ringed(drawn):
    rings = [line for line in drawn["learning_rate_sweep"].axes[0].lines if line.get_markersize() == 10]
    assert [list(ring.get_xdata()) for ring in rings] == [[1e-3], [1e-3]]


@pytest.mark.parametrize(
    ("name", "words"), [("layer_overlap", "04_probe"), ("conversion_and_recovery", "01_sparsify"), ("learning_rate_sweep", "no rows")]
)
def test_missing_rows_are_named(tables, name, words):
    empty = [tables[table].iloc[:0] for table in INPUTS[name]]
    with pytest.raises(NothingToDraw, match=words):
        getattr(figures, name)(*empty)


def test_overlap_of_an_unknown_selection_names_the_known(tables):
    with pytest.raises(NothingToDraw, match=r"'entropy' is not there, only \['magnitude'\]"):
        figures.layer_overlap(tables["overlap"], selection="entropy")


def test_intervals_match_students_t():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and np.isclose(high - mean, 4.302652729911275 / np.sqrt(3)) and np.isclose(mean - low, high - mean)
    assert mean_interval([5.0])[0] == 5 and np.isnan(mean_interval([5.0])[1])
    assert all(np.isnan(mean_interval([])))


def test_intervals_are_by_group(tables):
    band = intervals(tables["accuracy"], "stage", "score")
    assert list(band.columns) == ["stage", "mean", "low", "high"] and (band["low"] <= band["mean"]).all()


def test_figures_are_saved_as_vector_pdf(drawn, tmp_path):
    with pytest.raises(ValueError, match="saved as .pdf, not .png"):
        save(drawn["learning_rate_sweep"], tmp_path / "figure.png")


@pytest.mark.parametrize(
    ("value", "number", "text"), [(-0.3, "+.0f", "0"), (-4.6, "+.0f", "−5"), (2.2, "+.0f", "+2"), (0.0, ".0f", "0"), (np.nan, ".0f", "")]
)
def test_cells_that_round_to_nothing_have_no_sign(value, number, text):
    assert figures._cell_text(value, number) == text
