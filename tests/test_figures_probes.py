"""Figures of the probes and of the methods that use them: marks are the tables' normalised means and intervals."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from example_probes import (
    CHANCE_IOU,
    COSINE_CEILING,
    DOMAINS,
    EXPERT_LAYERS,
    FRACTIONS,
    FULL_ATTENTION,
    LAYERS,
    LENGTHS,
    MASKED,
    MODULES,
    ON_SPARSE,
    PAIRS,
    PLANTED_METHODS,
    ROUTED,
    SELECTIONS,
    SHARED_LABELS,
    SPARSE,
    STAGE_STEPS,
    TREND,
    WIDTHS,
    example_probes,
    planted_cosine,
    planted_divergence,
    planted_overlap,
    seeds_of,
)
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle
from scipy import stats
from test_figures import shown_texts

from sparsecl import figures
from sparsecl.figure_style import NothingToDraw, save
from sparsecl.figures_probes import domains_of, rows_of_main_fraction, shown_layers
from sparsecl.figures_selections import CHANCE, CONTROL
from sparsecl.methods import METHODS
from sparsecl.publication import part_figures
from sparsecl.tables import COLUMNS

REPLICATES = 3
INPUTS = {
    "overlap_heatmaps": ("overlap",),
    "overlap_by_fraction": ("overlap",),
    "gradient_overlap": ("gradients",),
    "scale_trend": ("overlap", "gradients"),
    "sparsity_and_probes": ("overlap", "gradients"),
    "routing_divergence": ("routing",),
    "expert_use": ("routing",),
    "routing_load": ("routing",),
    "drift_by_layer": ("drift",),
    "drift_plane": ("drift", "accuracy"),
    "plasticity_stability": ("metrics",),
    "update_mask_overlap": ("update_masks",),
}


class WithWidths:
    """What the figures ask of a study."""

    def widths(self) -> dict[str, int]:
        return WIDTHS


@pytest.fixture(scope="module")
def tables():
    return example_probes(REPLICATES)


@pytest.fixture(scope="module")
def drawn(tables):
    """The figures as the paper has them drawn."""
    return part_figures(tables, names=set(INPUTS), study=WithWidths())


def marks(axes) -> list[tuple[float, float]]:
    """Positions of the marks with intervals, in the order in which they were drawn."""
    return [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line, _, _ in axes.containers if line is not None]


def interval(axes, place: int) -> tuple[float, float]:
    """Lower and upper end of the last (upright) interval of a mark."""
    (ends,) = axes.containers[place][2][-1].get_segments()
    return float(ends[0, 1]), float(ends[1, 1])


def t_interval(sample) -> tuple[float, float]:
    return stats.t.interval(0.95, len(sample) - 1, np.mean(sample), stats.sem(sample))


def normalised_of(rows: pd.DataFrame) -> pd.Series:
    return (rows["value"] - rows["null"]) / (rows["ceiling"] - rows["null"])


def chosen(table: pd.DataFrame, **keys) -> pd.DataFrame:
    for column, value in keys.items():
        table = table[table[column] == value]
    return table


# The example tables


def test_the_tables_keep_the_contract(tables):
    for name in set(tables) - {"metrics"}:
        assert list(tables[name]) == list(COLUMNS[name]), name
        keys = [column for column in ("arm", "method", "order", "stage_steps", "seed", "stage", "layer") if column in tables[name]]
        assert set(keys) <= set(tables[name].dropna(subset=keys))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_planted_overlaps_are_in_the_table(tables, selection):
    rows = chosen(tables["overlap"], arm="D1", selection=selection)
    for layer in LAYERS:
        assert normalised_of(rows[rows["layer"] == layer]).mean() == pytest.approx(planted_overlap("D1", selection, layer), abs=0.05)


def test_metrics_are_those_of_the_scores(tables):
    accuracy, last = tables["accuracy"], len(DOMAINS)
    forgettable = accuracy[accuracy["domain"] != DOMAINS[-1]]
    keys = ["arm", "method", "stage_steps", "seed"]
    final = forgettable[forgettable["stage"] == last].groupby(keys)["score"].mean()
    stated = tables["metrics"][tables["metrics"]["metric"] == "final"].set_index(keys)["value"]
    assert np.allclose(final.sort_index(), stated.sort_index().astype(float))


# Every figure


def test_every_figure_is_drawn(drawn):
    assert sorted(drawn) == sorted(INPUTS)


def require_readable(figure) -> None:
    """Fonts of 8 points and more at the text's width, nothing beyond the page, and no text on another."""
    assert figure.get_size_inches()[0] <= 6.3 and figure.get_size_inches()[1] <= 9
    texts = shown_texts(figure)
    assert texts and min(text.get_fontsize() for text in texts) >= 8
    boxes, page = {text: text.get_window_extent() for text in texts}, figure.bbox.padded(2)
    assert not [text for text, box in boxes.items() if not (page.contains(*box.p0) and page.contains(*box.p1))]
    # The box of a turned label is larger than its letters.
    level = [(text.get_text(), box.padded(-0.5)) for text, box in boxes.items() if text.get_rotation() in (0, 90)]
    assert not [(one, other) for (one, box), (other, beside) in combinations(level, 2) if box.overlaps(beside)]


@pytest.mark.parametrize("name", INPUTS)
def test_texts_are_readable_and_lie_apart_on_the_page(drawn, name):
    require_readable(drawn[name])


def deeper(table: pd.DataFrame, copies: int) -> pd.DataFrame:
    """The same table with so many times the layers."""
    layers = table["layer"].nunique()
    return pd.concat([table.assign(layer=table["layer"] + layers * copy) for copy in range(copies)], ignore_index=True)


@pytest.mark.parametrize("name", [name for name in INPUTS if name != "plasticity_stability"])
def test_models_of_many_layers_are_readable_too(tables, name):
    """8 layers, or 16 of the one that has routing."""
    many = {table: tables[table] if table == "accuracy" else deeper(tables[table], 4) for table in INPUTS[name]}
    require_readable(part_figures(many, names={name}, study=WithWidths())[name])


@pytest.mark.parametrize("name", INPUTS)
def test_a_single_replicate_has_marks_and_no_intervals(tables, name):
    first = {table: tables[table][tables[table]["seed"] == 0] for table in INPUTS[name]}
    figure = part_figures(first, names={name}, study=WithWidths())[name]
    bars = [container for axes in figure.axes for container in axes.containers if container[0] is not None and not is_band(container)]
    assert not any(len(container[2]) for container in bars)


def is_band(container) -> bool:
    return isinstance(container[0], Rectangle)


@pytest.mark.parametrize("name", ["overlap_heatmaps", "plasticity_stability"])
def test_equal_tables_give_equal_bytes(tables, drawn, name, tmp_path):
    again = part_figures(tables, names={name}, study=WithWidths())[name]
    assert save(drawn[name], tmp_path / "a.pdf").read_bytes() == save(again, tmp_path / "b.pdf").read_bytes()


@pytest.mark.parametrize("name", INPUTS)
def test_empty_tables_say_so(tables, name):
    for empty in ([tables[table].iloc[:0] for table in INPUTS[name]], [pd.DataFrame()] * len(INPUTS[name])):
        if name == "plasticity_stability" and not len(empty[0].columns):
            continue  # metrics are computed for every study
        with pytest.raises(NothingToDraw):
            getattr(figures, name)(*empty)


# Overlap


def heat_cells(axes) -> dict[tuple[str, str], str]:
    """Numbers of a matrix by (later domain, earlier domain)."""
    rows, columns = DOMAINS[1:], DOMAINS[:-1]
    found = {(row, column): text.get_text() for text in axes.texts for row, column in [cell_of(text, rows, columns)] if text.get_text()}
    return found


def cell_of(text, rows, columns) -> tuple[str, str]:
    x, y = text.get_position()
    return rows[int(y)], columns[int(x)]


@pytest.mark.parametrize(("line", "selection"), enumerate(SELECTIONS))
def test_cells_are_normalised_before_replicates_are_averaged(drawn, tables, line, selection):
    rows = chosen(tables["overlap"], arm="D1", selection=selection, top_fraction=0.1, layer=1)
    expected = {(b, a): f"{100 * normalised_of(chosen(rows, domain_a=a, domain_b=b)).mean():.0f}" for a, b in PAIRS}
    assert heat_cells(drawn["overlap_heatmaps"].axes[2 * line + 1]) == expected


def test_the_mean_of_ratios_is_not_the_ratio_of_means(tables):
    """Replicates whose room between chance and ceiling differs: the figure averages ratios."""
    overlap = chosen(tables["overlap"], arm="D1", selection="magnitude", top_fraction=0.1).copy()
    overlap[["null", "null_label"]] = 0.0
    overlap["value"] = np.where(overlap["seed"] == 0, 0.1, 0.4)
    overlap["ceiling"] = np.where(overlap["seed"] == 0, 0.1, 0.8)
    assert set(heat_cells(figures.overlap_heatmaps(overlap).axes[0]).values()) == {"67"}  # (1 + 0.5 + 0.5) / 3


def test_pairs_below_the_label_null_in_every_replicate_are_framed(drawn, tables):
    frames = [patch for patch in drawn["overlap_heatmaps"].axes[0].patches if isinstance(patch, Rectangle)]
    places = {(DOMAINS[1:][int(frame.get_y())], DOMAINS[:-1][int(frame.get_x())]) for frame in frames}
    assert places == {(b, a) for a, b in PAIRS if (a, b) != SHARED_LABELS}
    overlap = tables["overlap"].copy()
    overlap.loc[(overlap["seed"] == 2) & (overlap["domain_a"] == "code"), "p_label"] = 0.051
    assert len(figures.overlap_heatmaps(overlap).axes[0].patches) == len(PAIRS) - 4


def test_a_domain_that_does_not_agree_with_itself_has_a_dash(tables):
    overlap = tables["overlap"].copy()
    unstable = (overlap["domain_a"] == "code") & (overlap["domain_b"] == "math")
    overlap.loc[unstable, "ceiling"] = overlap.loc[unstable, "null"] + 0.04
    assert heat_cells(figures.overlap_heatmaps(overlap).axes[0])["math", "code"] == "–"


def test_the_arm_and_the_fraction_can_be_named(tables):
    with pytest.raises(NothingToDraw, match="no rows of arm S1-4of8"):
        figures.overlap_heatmaps(tables["overlap"], arm="S1-4of8")
    with pytest.raises(NothingToDraw, match=r"no rows of top fraction 0.2, only of \[0.01, 0.05, 0.1\]"):
        figures.overlap_heatmaps(tables["overlap"], top_fraction=0.2)
    assert set(rows_of_main_fraction(tables["overlap"])["top_fraction"]) == {0.1}  # of equally frequent ones the largest
    fewer = tables["overlap"].query("top_fraction == 0.05 or seed == 0")
    assert set(rows_of_main_fraction(fewer)["top_fraction"]) == {0.05}


def test_domains_stand_in_the_order_of_the_stream_and_layers_are_spread(tables):
    assert domains_of(tables["overlap"].sample(frac=1, random_state=0)) == list(DOMAINS)
    assert shown_layers(pd.DataFrame({"layer": range(32)}), 4) == [0, 10, 21, 31]


@pytest.mark.parametrize(("column", "selection"), enumerate(["magnitude", "frequency", "contrast"]))
def test_overlaps_by_fraction_lie_between_their_references(drawn, tables, column, selection):
    axes = drawn["overlap_by_fraction"].axes[3 + column]  # the second layer
    rows = chosen(tables["overlap"], arm="D1", selection=selection, layer=1)
    values = rows.groupby(["top_fraction", "seed"])["value"].mean().unstack()
    assert np.allclose(axes.containers[0][0].get_ydata(), values.mean(axis=1))
    low, high = axes.containers[0][2][0].get_segments()[1][:, 1]
    assert (low, high) == pytest.approx(t_interval(values.loc[0.05]))
    assert len(axes.containers) == (2 if selection == "magnitude" else 1)  # the control on the same tokens
    chance, label, ceiling = (line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 3 and line.get_marker() == "None")
    assert np.allclose(chance, list(FRACTIONS.values())) and np.all(chance < label) and np.all(label < ceiling)


def test_one_fraction_is_no_course(tables):
    with pytest.raises(NothingToDraw, match=r"only the top fraction\(s\) \[0.1\]"):
        figures.overlap_by_fraction(tables["overlap"].query("top_fraction == 0.1"))


# Gradients


@pytest.mark.parametrize(("column", "module"), enumerate(MODULES))
def test_gradient_cosines_stand_with_their_bands(drawn, tables, column, module):
    axes = drawn["gradient_overlap"].axes[column]
    rows = chosen(tables["gradients"], arm="D1", module=module, measure="cosine")
    crosses = [place for place, container in enumerate(axes.containers) if not is_band(container)]
    assert len(crosses) == len(LAYERS)
    for layer, place in zip(LAYERS, crosses, strict=True):
        means = rows[rows["layer"] == layer].groupby("seed")["value"].mean()
        line = axes.containers[place][0]
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((layer, means.mean()))
        assert interval(axes, place) == pytest.approx(t_interval(means))
    heights = [container[0].get_height() / 2 for container in axes.containers if is_band(container)]
    parameters = rows["parameters"].iloc[0]
    assert heights == pytest.approx([parameters**-0.25, parameters**-0.5])  # planted: the root is the effective dimension


def test_absent_chance_is_not_drawn(drawn):
    """The angle has no chance value in the table: only the label null and the ceiling are lines."""
    figure = drawn["gradient_overlap"]
    assert [len(axes.collections) - bars(axes) for axes in figure.axes[::2]] == [2, 3, 3, 2]


def bars(axes) -> int:
    """Collections that are intervals of marks."""
    return sum(len(container[2]) for container in axes.containers if not is_band(container))


# Scale


def test_widths_are_those_of_the_ladder(drawn, tables):
    axes = drawn["scale_trend"].axes[0]
    series = [container[0] for container in axes.containers]
    assert len(series) == len(SELECTIONS)
    for line, selection in zip(series, SELECTIONS, strict=True):
        assert list(line.get_xdata()) == sorted(WIDTHS.values())
        slope = np.polyfit(np.log2(np.asarray(line.get_xdata(), dtype=float)), line.get_ydata(), 1)[0]
        assert slope == pytest.approx(TREND, abs=0.02)
        rows = chosen(tables["overlap"], selection=selection, top_fraction=0.1, layer=0, arm="Dw-64")
        assert line.get_ydata()[1] == pytest.approx(normalised_of(rows).groupby(rows["seed"]).mean().mean())
    assert sum(len(line.get_xdata()) == len(WIDTHS) and line.get_linewidth() < 1 for line in axes.lines) == len(SELECTIONS) * REPLICATES


def test_a_cosine_over_its_ceiling_has_no_trend_where_none_is_planted(drawn):
    for axes, layer in ((drawn["scale_trend"].axes[1], 0), (drawn["scale_trend"].axes[4], 1)):
        for container, module in zip(axes.containers, MODULES, strict=True):
            assert container[0].get_ydata() == pytest.approx([planted_cosine("D0", module, layer)] * len(WIDTHS), abs=0.06)


def test_the_raw_cosine_stands_with_what_shrinks_for_no_reason(drawn, tables):
    axes = drawn["scale_trend"].axes[2]
    raw = axes.containers[0][0].get_ydata()
    rows = chosen(tables["gradients"], measure="cosine", module="attention", layer=0, arm="Dw-32")
    assert raw[0] == pytest.approx(rows["value"].abs().mean()) and raw[0] == pytest.approx(COSINE_CEILING * MODULES["attention"], abs=0.03)
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert np.allclose(dashed[0].get_ydata(), [1 / (3**0.5 * width) for width in sorted(WIDTHS.values())])


def test_a_ladder_leaves_out_replicates_that_lack_a_width(tables):
    overlap = tables["overlap"].query("not (arm == 'Dw-256' and seed == 2)")
    figure = figures.scale_trend(overlap, tables["gradients"], WIDTHS)
    faint = [line for line in figure.axes[0].lines if line.get_linewidth() < 1]
    assert len(faint) == len(SELECTIONS) * (REPLICATES - 1)


def test_two_widths_are_no_trend(tables):
    with pytest.raises(NothingToDraw, match="a trend needs 3 widths"):
        figures.scale_trend(tables["overlap"].query("arm in ('D0', 'Dw-64')"), tables["gradients"], WIDTHS)
    ladder = figures.scale_trend(tables["overlap"], tables["gradients"])  # without D0, whose width no name tells
    assert list(ladder.axes[0].containers[0][0].get_xdata()) == [32, 64, 256]


# Sparsity


def test_differences_between_arms_are_paired_by_replicate_and_domains(drawn, tables):
    rows = chosen(tables["overlap"], selection="magnitude", top_fraction=0.1, layer=1)
    wide = rows.assign(value=normalised_of(rows)).pivot(index=["seed", "domain_a", "domain_b"], columns="arm", values="value")
    paired = (wide["S1-2of4"] - wide["D1"]).groupby("seed").mean()
    axes = drawn["sparsity_and_probes"].axes[6]  # below the first of six quantities
    assert marks(axes)[1] == pytest.approx((1, paired.mean())) and interval(axes, 1) == pytest.approx(t_interval(paired))
    assert paired.mean() == pytest.approx(SPARSE, abs=0.04)


def test_sparsity_needs_both_arms(tables):
    with pytest.raises(NothingToDraw, match="not both probed"):
        figures.sparsity_and_probes(tables["overlap"].query("arm != 'D1'"), tables["gradients"].query("arm != 'D1'"))


# Routing


def test_divergences_before_and_after_stand_beside_each_other(drawn, tables):
    figure = drawn["routing_divergence"]
    titles = [axes.get_title().replace("\n", " ") for axes in figure.axes[:4]]
    assert titles == ["before fine-tuning", *(f"after {METHODS[name].label}" for name in ROUTED)]
    for axes, method in zip(figure.axes[:4], ("", *ROUTED), strict=True):
        rows = chosen(tables["routing"], arm="D1", method=method, measure="jsd")
        for layer, (x, y) in enumerate(marks(axes)):
            assert (x, y) == pytest.approx((layer, rows[rows["layer"] == layer]["value"].mean()))
            assert y == pytest.approx(planted_divergence(layer, method), abs=0.01)


def test_layers_of_full_attention_are_shaded(drawn):
    for axes in drawn["routing_divergence"].axes:
        assert [patch.get_x() + 0.5 for patch in axes.patches] == list(FULL_ATTENTION)
    assert "full attention" in [text.get_text() for text in shown_texts(drawn["routing_load"])]


def test_expert_use_is_that_of_one_replicate(drawn):
    """A mean over replicates, whose experts stand in other places, would level every row."""
    panels = [axes for axes in drawn["expert_use"].axes if axes.get_title()]
    assert [axes.get_title().split(",")[0] for axes in panels] == [f"layer {layer}" for layer in EXPERT_LAYERS]
    for axes in panels:
        numbers = [int(text.get_text()) for text in axes.texts]
        count = len(DOMAINS)
        assert numbers == [70 if row == column else 10 for row in range(count) for column in range(count)]


def test_loads_are_means_over_domains(drawn, tables):
    place = len(EXPERT_LAYERS) + 2  # of layer 2, after the marks from before fine-tuning
    for axes, measure in zip(drawn["routing_load"].axes, ("specialisation_max", "load_maxvio", "entropy", "shared_gate"), strict=True):
        rows = chosen(tables["routing"], arm="D1", method="full", measure=measure, layer=2).groupby("seed")["value"].mean()
        assert marks(axes)[place][1] == pytest.approx(rows.mean()) and interval(axes, place) == pytest.approx(t_interval(rows))


# Drift


def test_drift_is_that_of_the_last_stage_and_the_main_length(drawn, tables):
    axes = drawn["drift_by_layer"].axes[0]
    rows = chosen(tables["drift"], arm="D1", measure="displacement", stage=len(DOMAINS), stage_steps=STAGE_STEPS, layer=0)
    heights = [y for x, y in marks_of(axes) if x < 0.5]
    assert len(heights) == len(PLANTED_METHODS)
    for method, height in zip([name for name in METHODS if name in PLANTED_METHODS], heights, strict=True):
        assert height == pytest.approx(rows[rows["method"] == method]["value"].mean())


def marks_of(axes) -> list[tuple[float, float]]:
    return sorted(
        (float(container[0].get_xdata()[0]), float(container[0].get_ydata()[0])) for container in axes.containers if not is_band(container)
    )


def test_the_null_of_drift_is_a_grey_reach(drawn):
    (null,) = [container for container in drawn["drift_by_layer"].axes[0].containers if is_band(container)]
    assert [patch.get_height() for patch in null] == pytest.approx([0.15] * len(LAYERS)) and null[0].get_y() == 0


def test_methods_are_joined_over_their_stage_lengths(drawn, tables):
    axes = drawn["drift_plane"].axes[0]
    paths = [line for line in axes.lines if len(line.get_xdata()) == 1 + len(LENGTHS)]
    assert len(paths) == len(PLANTED_METHODS) and all(np.all(np.diff(path.get_xdata()) > 0) for path in paths)
    accuracy, drift = (chosen(tables[name], arm="D1", method="full", stage_steps=STAGE_STEPS) for name in ("accuracy", "drift"))
    accuracy, drift = (rows[rows["seed"].isin(seeds_of(LENGTHS[0], REPLICATES))] for rows in (accuracy, drift))  # that ran all lengths
    own = accuracy[accuracy["domain"] == accuracy["stage_domain"]]["score"].mean()
    drift = chosen(drift, measure="displacement", layer=0)
    moved = np.exp(np.log(drift["value"]).groupby(drift["seed"]).mean()).mean()
    assert (paths[0].get_xdata()[2], paths[0].get_ydata()[2]) == pytest.approx((100 * own, moved))


def test_one_stage_length_is_no_plane(tables):
    with pytest.raises(NothingToDraw, match="at two stage lengths"):
        figures.drift_plane(tables["drift"].query(f"stage_steps == {STAGE_STEPS}"), tables["accuracy"])
    with pytest.raises(NothingToDraw, match="lacks score"):
        figures.drift_plane(tables["drift"], tables["accuracy"].query("method != 'lora'"))


# Methods


@pytest.mark.parametrize(("panel", "outcome"), enumerate(["retention", "forgetting"]))
def test_every_method_has_a_cross_on_both_arms(drawn, tables, panel, outcome):
    axes, found = drawn["plasticity_stability"].axes[panel], []
    for arm, methods in (("D1", PLANTED_METHODS), ("S1-2of4", ON_SPARSE)):
        for method in [name for name in METHODS if name in methods]:
            rows = chosen(tables["metrics"], arm=arm, method=method, stage_steps=STAGE_STEPS)
            own, kept = (100 * rows[rows["metric"] == name].set_index("seed")["value"].astype(float) for name in ("own", outcome))
            assert marks(axes)[len(found)] == pytest.approx((own.mean(), kept.mean()))
            assert interval(axes, len(found)) == pytest.approx(t_interval(kept))
            mark = axes.containers[len(found)][0]
            assert mark.get_color() == METHODS[method].colour and (to_hex(mark.get_markerfacecolor()) == "#ffffff") == (arm != "D1")
            found.append(mark.get_marker())
    assert len(set(found)) == len(PLANTED_METHODS)


def test_stage_lengths_of_full_fine_tuning_are_a_line_an_arm(drawn):
    lines = [line for line in drawn["plasticity_stability"].axes[0].lines if len(line.get_xdata()) == 1 + len(LENGTHS)]
    assert [line.get_linestyle() for line in lines] == ["-", "--"]
    assert np.all(np.diff(lines[0].get_xdata()) > 0)


def test_a_plane_needs_a_second_method(tables):
    with pytest.raises(NothingToDraw, match=r"D1 ran only \['full'\]"):
        figures.plasticity_stability(tables["metrics"].query("method == 'full'"))


def test_equally_many_replicates_of_every_length_leave_the_main_one_to_full_fine_tuning(tables):
    """A replicate alone: each method's length is the one that most runs of full fine-tuning have."""
    metrics = tables["metrics"].query("seed == 0 and (stage_steps in (50, 100))")
    doubled = pd.concat([metrics, metrics.query("method == 'full' and stage_steps == 100").assign(seed=1)])
    axes = figures.plasticity_stability(doubled).axes[0]
    lora = chosen(doubled, arm="D1", method="lora", stage_steps=100, metric="own")["value"].iloc[0]
    assert marks(axes)[1][0] == pytest.approx(100 * lora)


def test_selected_units_overlap_against_chance(drawn, tables):
    figure = drawn["update_mask_overlap"]
    assert [axes.get_title() for axes in figure.axes[::2]] == [METHODS[name].label for name in MASKED]
    for axes, method in zip(figure.axes[::2], MASKED, strict=True):
        rows = chosen(tables["update_masks"], method=method, layer=1).dropna(subset=["value"])
        means = rows.groupby("seed")["value"].mean()
        assert marks(axes)[1] == pytest.approx((1, means.mean())) and interval(axes, 1) == pytest.approx(t_interval(means))
        assert {float(y) for segment in axes.collections[0].get_segments() for y in segment[:, 1]} == {CHANCE_IOU}


def test_collisions_grow_along_the_stream(drawn):
    for axes, share in zip(drawn["update_mask_overlap"].axes[1::2], MASKED.values(), strict=True):
        line = next(line for line in axes.lines if len(line.get_xdata()) == len(DOMAINS) - 1)
        assert np.allclose(line.get_ydata(), [100 * (1 - (1 - share) ** earlier) for earlier in range(1, len(DOMAINS))])


def test_collisions_stand_over_those_of_the_random_control(drawn, tables):
    expected = [100 * (1 - (1 - MASKED[CONTROL]) ** earlier) for earlier in range(1, len(DOMAINS))]
    for axes in drawn["update_mask_overlap"].axes[1::2]:
        (chance,) = [line for line in axes.lines if line.get_color() == CHANCE["color"]]
        assert np.allclose(chance.get_ydata(), expected) and list(chance.get_xdata()) == list(range(2, 1 + len(DOMAINS)))
    without = figures.update_mask_overlap(tables["update_masks"].query(f"method != '{CONTROL}'"))
    assert not [line for axes in without.axes for line in axes.lines if line.get_color() == CHANCE["color"]]


def test_the_plane_of_methods_has_a_mark_for_every_method(tables):
    """The older figure, which the study without the new methods shows."""
    axes = figures.methods_plane(tables["metrics"]).axes[0]
    found = {container[0].get_marker() for container in axes.containers}
    assert len(found) == len(PLANTED_METHODS)
