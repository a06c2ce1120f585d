"""Figures: equal tables give equal bytes, what is drawn is what the tables say, absent rows say what is missing."""

from itertools import combinations
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from example_tables import (
    ALGORITHM_SCORES,
    CONTROLS,
    DOMAINS,
    STAGE_STEPS,
    TOPOLOGY_ARMS,
    TOPOLOGY_SCORES,
    compared_replicates,
    example_tables,
)
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from sparsecl import figures
from sparsecl.arms import parse_arm
from sparsecl.figure_style import NothingToDraw, arm_groups, figure_or_reason, intervals, main_rows, mean_interval, save, streamed_arms_in
from sparsecl.figures_masks import compared_masks, mask_gallery
from sparsecl.figures_matrices import cell_text
from sparsecl.mask_selection import select
from sparsecl.topologies import parse_topology

INPUTS = {
    "forgetting_curves": ("curves", "accuracy"),
    "accuracy_matrices": ("accuracy",),
    "forgetting_own_final": ("metrics",),
    "conversion_and_recovery": ("conversion",),
    "topology_comparison": ("conversion",),
    "algorithm_comparison": ("conversion",),
    "density_scan": ("conversion",),
    "recovery_curves": ("conversion",),
    "layer_overlap": ("overlap",),
    "learning_rate_sweep": ("learning_rate",),
    "loss_forgetting": ("accuracy", "curves"),
}
# Figures of checkpoints before the stream; they choose their arms by comparison.
RECOVERED = ("conversion_and_recovery", "topology_comparison", "algorithm_comparison", "density_scan", "recovery_curves")


@pytest.fixture(scope="module")
def tables():
    return example_tables(replicates=2)


@pytest.fixture(scope="module")
def conversion():
    """Five replicates of the topologies, four of the algorithms and densities."""
    return example_tables(replicates=5)["conversion"]


@pytest.fixture(scope="module")
def drawn(tables):
    return {name: getattr(figures, name)(*(tables[table] for table in needed)) for name, needed in INPUTS.items()}


def shown_texts(figure: Figure) -> list[Text]:
    """Texts that reach the page: not those of hidden panels, nor of ticks outside the view."""
    found = []
    with patch.object(Text, "draw", autospec=True, side_effect=lambda text, renderer: found.append(text)):
        figure.draw_without_rendering()
    return [text for text in found if text.get_visible() and text.get_text()]


@pytest.mark.parametrize("name", INPUTS)
def test_fonts_are_readable_at_column_width(drawn, name):
    assert drawn[name].get_size_inches()[0] <= 6.3
    texts = shown_texts(drawn[name])
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
    assert line.get_xdata()[-1] == len(DOMAINS)
    assert np.all(np.diff(line.get_xdata()) > 0)


STREAM_INPUTS = {name: INPUTS[name] for name in INPUTS if name not in RECOVERED}
MANY = {"seven": TOPOLOGY_ARMS, "fifteen": (*TOPOLOGY_ARMS, *CONTROLS)}


@pytest.fixture(scope="module")
def many_tables():
    return {name: example_tables(replicates=2, arms=arms) for name, arms in MANY.items()}


@pytest.fixture(scope="module")
def drawn_many(many_tables):
    """Figures of a stream of many arms, each drawn once and when it is asked for."""
    made = {}

    def draw(number: str, name: str) -> Figure:
        if (number, name) not in made:
            made[number, name] = getattr(figures, name)(*(many_tables[number][table] for table in STREAM_INPUTS[name]))
        return made[number, name]

    return draw


@pytest.mark.parametrize(("number", "name"), [*(("fifteen", name) for name in STREAM_INPUTS), ("seven", "accuracy_matrices")])
def test_many_arms_fit_a_page_and_no_text_lies_on_another(drawn_many, number, name):
    figure = drawn_many(number, name)
    assert figure.get_size_inches()[0] <= 6.3 and figure.get_size_inches()[1] <= 9
    texts = shown_texts(figure)
    assert min(text.get_fontsize() for text in texts) >= 8
    boxes = {text: text.get_window_extent() for text in texts}
    page = figure.bbox.padded(2)
    assert not [text for text, box in boxes.items() if not (page.contains(*box.p0) and page.contains(*box.p1))]
    level = [(text.get_text(), box.padded(-0.5)) for text, box in boxes.items() if not text.get_rotation()]
    assert not [(one, other) for (one, box), (other, beside) in combinations(level, 2) if box.overlaps(beside)]


@pytest.mark.parametrize("name", STREAM_INPUTS)
def test_every_streamed_arm_is_named(drawn_many, name):
    shown = {text.get_text() for text in shown_texts(drawn_many("fifteen", name))}
    assert {parse_arm(arm).label for arm in MANY["fifteen"]} <= shown


def test_cells_of_a_grid_are_their_arm_s(drawn_many, many_tables):
    panels = {axes.get_title(): axes for axes in drawn_many("seven", "accuracy_matrices").axes if axes.get_title()}
    accuracy = many_tables["seven"]["accuracy"]
    for arm in TOPOLOGY_ARMS:
        rows = accuracy[(accuracy["arm"] == arm) & (accuracy["kind"] == "all") & (accuracy["domain"] != "general")]
        table = rows.pivot_table(index="stage", columns="domain", values="score")[list(DOMAINS)]
        cells = [text.get_text() for text in panels[parse_arm(arm).label].texts[: table.size]]
        assert cells == [f"{100 * value:.0f}" for value in table.to_numpy().ravel()]


def test_arms_stand_by_kind_and_the_freest_topology_first(many_tables):
    arms = [arm.name for arm in streamed_arms_in(many_tables["fifteen"]["accuracy"], "accuracy")]
    assert arms == [
        *("D0", "D1", "Dnz-0.5", "Dcut-0.5", "Df-0.5", "S1-unstructured", "S1-4of8", "S1-2of4", "S1-block16", "S1-block32", "S1-block64"),
        *("S0-2of4", "S1-2of4-random", "Sf-2of4", "Dg-2of4"),
    ]


def test_every_group_has_the_reference_and_controls_their_recovered_arm(many_tables):
    arms = streamed_arms_in(many_tables["fifteen"]["accuracy"], "accuracy")
    groups = [[arm.name for arm in group] for group in arm_groups(arms)]
    assert {name for group in groups for name in group} == {arm.name for arm in arms}
    assert all(group[0] == "D1" for group in groups)
    assert groups[-1][1] == "S1-2of4" and max(len(group) for group in groups) <= 6


def test_differences_are_to_the_control_of_the_same_tokens_not_to_the_base(drawn_many, many_tables):
    metrics = many_tables["fifteen"]["metrics"]
    rows = metrics[(metrics["metric"] == "own") & (metrics["kind"] == "all") & (metrics["domain"] == "")]
    wide = rows.pivot(index="seed", columns="arm", values="value")
    lower = drawn_many("fifteen", "forgetting_own_final").axes[4]  # own, below its values
    expected = 100 * (wide["Dnz-0.5"] - wide["D1"])
    assert any(len(line.get_xdata()) == len(wide) and np.allclose(line.get_xdata(), expected) for line in lower.lines)


def test_an_arm_of_equal_flops_is_drawn_over_the_whole_stream(drawn_many, many_tables):
    assert set(many_tables["fifteen"]["accuracy"].query("arm == 'Df-0.5'")["stage_steps"]) != {STAGE_STEPS}
    lines = [line for line in drawn_many("fifteen", "forgetting_curves").axes[0].lines if line.get_color() == parse_arm("Df-0.5").colour]
    assert lines[0].get_xdata()[[0, -1]].tolist() == [0, len(DOMAINS)]


@pytest.mark.parametrize(("further", "kept"), [([0], STAGE_STEPS), ([0, 1], STAGE_STEPS), ([0, 1, 2], 50)])
def test_the_main_length_of_an_arm_is_that_of_most_replicates(tables, further, kept):
    """Equally many replicates: the first rows are the main ones, as a replicate writes them."""
    own = tables["accuracy"][tables["accuracy"]["arm"] == "D1"]
    shorter = pd.concat([own[own["seed"] == 0].assign(seed=seed, stage_steps=50) for seed in further])
    other = own.assign(arm="Df-0.5", stage_steps=70)
    rows = main_rows(pd.concat([own, shorter, other], ignore_index=True))
    assert rows.groupby("arm")["stage_steps"].unique().map(list).to_dict() == {"D1": [kept], "Df-0.5": [70]}


def test_the_chosen_rate_of_many_arms_is_framed(drawn_many):
    axes = drawn_many("fifteen", "learning_rate_sweep").axes[0]
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.0005", "0.001", "0.002"]
    assert [int(frame.get_x()) for frame in frames] == [1] and frames[0].get_height() > len(MANY["fifteen"]) - 1
    assert axes.texts[1].get_text() == "79.0"  # D0, own score at the chosen rate


def test_a_sweep_without_right_answers_names_the_other_measure(tables):
    losses = tables["learning_rate"].assign(own=np.nan, final=np.nan, nll_own=0.3, nll_final=0.5)
    with pytest.raises(NothingToDraw, match="no value of 'own'"):
        figures.learning_rate_sweep(losses)
    assert figures.learning_rate_sweep(losses, "nll").axes[0].lines[0].get_ydata().tolist() == [0.3] * 3


def test_overlaps_of_many_arms_are_coloured_by_their_own_null(many_tables):
    overlap = many_tables["seven"]["overlap"]
    raised = overlap.assign(null_label=overlap["null_label"].where(overlap["arm"] != "D1", overlap["value"]))
    axes = figures.layer_overlap(raised).axes[0]
    cells = axes.collections[0].get_array().reshape(-1, 1 + len(TOPOLOGY_ARMS))
    assert np.allclose(cells[:, 1], 0) and np.all(cells[:, 0] < 0)  # D1 is second, after D0
    pair = overlap.query("layer == 0 and arm == 'D0' and domain_a == 'code' and domain_b == 'math'")
    assert axes.texts[0].get_text() == f"{100 * pair['value'].mean():.0f}"


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
    ("name", "words"),
    [
        ("layer_overlap", "04_probe"),
        ("conversion_and_recovery", "01_sparsify"),
        ("learning_rate_sweep", "no rows"),
        ("topology_comparison", "S0-block16 in the study and run 01_sparsify"),
        ("algorithm_comparison", "S0-2of4-magnitude in the study and run 01_sparsify"),
        ("density_scan", "S0-unstructured-d0.75 in the study and run 01_sparsify"),
        ("recovery_curves", "run 02_recover"),
    ],
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
    assert cell_text(value, number) == text


@pytest.fixture(scope="module")
def compared(conversion):
    """The figures of five replicates."""
    names = ("conversion_and_recovery", "topology_comparison", "algorithm_comparison", "recovery_curves")
    return {name: getattr(figures, name)(conversion) for name in names}


def values_of(conversion: pd.DataFrame, arm: str, replicates: int, metric: str = "nll/general") -> list[float]:
    rows = conversion[(conversion["arm"] == arm) & (conversion["metric"] == metric) & conversion["seed"].isin(range(replicates))]
    return rows.sort_values("seed")["value"].tolist()


def drawn_points(axes, count: int, marker: str) -> list[list[float]]:
    """Positions of `count` marks of one kind along the axis of the measure."""
    return [list(line.get_xdata()) for line in axes.lines if line.get_marker() == marker and len(line.get_xdata()) == count]


@pytest.mark.parametrize(
    ("name", "arms", "replicates"),
    [
        ("topology_comparison", [f"S1-{topology}" for topology in TOPOLOGY_SCORES], 5),
        ("algorithm_comparison", ["S1-2of4", *(f"S1-2of4-{algorithm}" for algorithm in ALGORITHM_SCORES)], compared_replicates(5)),
    ],
)
def test_every_compared_arm_is_drawn_over_the_replicates_that_made_all(compared, conversion, name, arms, replicates):
    axes = compared[name].axes[0]
    expected = sorted(values_of(conversion, arm, replicates) for arm in arms)
    assert np.allclose(sorted(drawn_points(axes, replicates, "s")), expected)
    assert np.allclose(sorted(drawn_points(axes, 1, "s")), sorted([np.mean(values)] for values in expected))


def test_algorithms_stand_in_the_order_of_what_they_look_at(compared):
    labels = [text.get_text() for text in compared["algorithm_comparison"].axes[0].get_yticklabels()]
    assert labels == ["random", "magnitude", "Wanda", "SparseGPT", "Wanda++", "MaskLLM"]


def test_topologies_stand_from_the_freest_to_the_coarsest(compared):
    labels = [text.get_text() for text in compared["topology_comparison"].axes[0].get_yticklabels()]
    assert labels == ["unstructured", "4:8", "2:4", "block 16", "block 32", "block 64"]


def test_what_had_no_training_is_hollow(compared):
    axes = compared["topology_comparison"].axes[0]
    fills = {marker: {to_hex(line.get_markerfacecolor()) for line in axes.lines if line.get_marker() == marker} for marker in "Xs"}
    assert fills["X"] == {"#ffffff"} and "#ffffff" not in fills["s"]


def test_the_validation_replicate_is_not_drawn(compared, conversion):
    planted = conversion[(conversion["seed"] == "validation") & (conversion["metric"] == "nll/general")]["value"]
    assert (planted == 2.2).all()  # far from every other loss
    for name in ("conversion_and_recovery", "topology_comparison", "algorithm_comparison"):
        drawn = [np.append(line.get_xdata(), line.get_ydata()) for axes in compared[name].axes for line in axes.lines]
        assert not np.isclose(np.concatenate(drawn).astype(float), 2.2).any()


def test_only_the_main_arms_stand_beside_their_recovery(compared):
    axes = compared["conversion_and_recovery"].axes[0]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["D0", "S0 2:4", "S1 2:4", "D1"]


def test_two_replicates_have_no_interval(drawn, compared):
    def bars(figure):
        return sum(len(container[2]) for container in figure.axes[0].containers)

    assert bars(drawn["topology_comparison"]) == 0 and bars(compared["topology_comparison"]) == 2 * len(TOPOLOGY_SCORES)


def test_an_axis_is_logarithmic_only_where_losses_span_much(compared, conversion):
    assert compared["algorithm_comparison"].axes[0].get_xscale() == "log"
    near = conversion.assign(value=conversion["value"].where(conversion["metric"] != "nll/general", 1 + conversion["value"]))
    assert figures.algorithm_comparison(near).axes[0].get_xscale() == "linear"


def test_densities_stand_at_the_zeros_that_were_measured(conversion):
    attained = (conversion["metric"] == "density/attained") & conversion["arm"].isin(["S0-block16-d0.75", "S1-block16-d0.75"])
    axes = figures.density_scan(conversion.assign(value=conversion["value"].mask(attained, 0.71))).axes[0]
    lines = [line for line in axes.lines if line.get_color() == parse_arm("S1-block16").colour and len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()) for line in lines] == [pytest.approx([29, 50])] * 2
    assert {line.get_linestyle() for line in lines} == {"--", "-"}


def test_a_density_scan_needs_two_densities_of_one_family(conversion):
    halves = conversion[conversion["arm"].isin(["D0", "D1", "S0-2of4", "S0-4of8", "S0-block16", "S0-unstructured"])]
    with pytest.raises(NothingToDraw, match="comparing densities needs two, found none"):
        figures.density_scan(halves)


def test_every_recovered_arm_has_its_curve_in_its_panel(compared, conversion):
    figure = compared["recovery_curves"]
    assert [axes.get_title() for axes in figure.axes] == ["topologies", "algorithms", "densities"]
    assert [len(axes.lines) for axes in figure.axes] == [1 + 6, 1 + 6, 1 + 10]
    curve = figure.axes[1].lines[-1]
    measured = values_of(conversion, "S1-2of4-maskllm", compared_replicates(5), "recovery/nll/0")
    assert curve.get_ydata()[0] == pytest.approx(np.mean(measured))


def test_a_comparison_without_a_common_replicate_says_so(conversion):
    foreign = conversion[(conversion["arm"] != "S0-block16") | (conversion["seed"] == 0)]
    foreign = foreign[(foreign["arm"] != "S0-block32") | (foreign["seed"] == 1)]
    with pytest.raises(NothingToDraw, match="no replicate made all"):
        figures.topology_comparison(foreign)


def test_a_missing_figure_becomes_its_reason(conversion):
    assert isinstance(figure_or_reason(figures.topology_comparison, conversion), Figure)
    assert "run 01_sparsify" in figure_or_reason(figures.topology_comparison, conversion[conversion["arm"] == "D0"])


class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(128, 128, bias=False), torch.nn.Linear(128, 128, bias=False)


@pytest.fixture(scope="module")
def converted():
    """A model of two layers and checkpoints of it with masks by magnitude."""
    torch.manual_seed(0)
    model, checkpoints = Layers(), []
    for name in ("S0-block64", "S0-2of4", "S0-unstructured", "S0-2of4-random", "S0-unstructured-d0.75"):
        arm = parse_arm(name)
        masks = {
            f"{layer}.weight": select(parse_topology(arm.topology), getattr(model, layer).weight.abs(), arm.density)
            for layer in ("first", "second")
        }
        checkpoints.append(SimpleNamespace(arm=arm, masks=SimpleNamespace(weights=masks)))
    return model, checkpoints


def test_a_mask_picture_shows_the_weights_that_stay(converted):
    model, checkpoints = converted
    weight, mask = model.first.weight, checkpoints[1].masks.weights["first.weight"]
    dense, kept = (axes.images[0].get_array() for axes in mask_gallery(weight, {"2:4": mask}, corner=32).axes[:2])
    assert np.allclose(dense, weight[:32, :32].detach().abs())
    assert np.array_equal(np.isfinite(np.ma.filled(kept, np.nan)), mask[:32, :32].numpy())


def test_the_gallery_shows_the_masks_of_one_comparison(converted):
    panels = {name: [axes for axes in compared_masks(*converted, name).axes if axes.get_title()] for name in ("topologies", "algorithms")}
    titles = {name: [axes.get_title() for axes in shown] for name, shown in panels.items()}
    assert titles["topologies"] == ["dense weights", "unstructured (50 %)", "2:4 (50 %)", "block 64 (50 %)"]
    assert titles["algorithms"] == ["dense weights", "random (50 %)", "SparseGPT (50 %)"]
    assert panels["topologies"][0].images[0].get_array().shape == (128, 128)  # twice the largest block
    assert panels["algorithms"][0].images[0].get_array().shape == (64, 64)


def test_a_gallery_of_no_masks_says_what_to_run(converted):
    with pytest.raises(NothingToDraw, match="01_sparsify"):
        compared_masks(converted[0], [], "algorithms")


def test_the_gallery_is_readable(converted):
    figure = compared_masks(*converted, "topologies")
    texts = [text for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize")) if text.get_visible() and text.get_text()]
    assert figure.get_size_inches()[0] <= 6.3 and min(text.get_fontsize() for text in texts) >= 8
