"""H4, and H5A and H5B at equal own, are computed again by an independent route: planted tables, and those of published studies.

What `test_recomputation` does for contrasts at equal steps; the route is in `recomputation_scale` and `recomputation_statistics`.
"""

import itertools
import math

import numpy as np
import pytest
import yaml
from example_ladder import probes
from example_runs import STAGE_STEPS, metrics_of
from published_sources import SOURCES, Source, source_of
from recomputation import rows, tidied
from recomputation_scale import cosines, deciding, is_scale, means_by_rung, overlaps, scale_letter, slopes
from recomputation_statistics import at_equal_own, single, verdicts

from sparsecl import verdict
from sparsecl.preregistration import FOLDER, Preregistration

PLAN = yaml.safe_load((FOLDER / "builtin-implicit.yaml").read_text(encoding="utf-8"))
H4 = PLAN["hypotheses"]["H4"]


def agrees(value, again, tolerance=1e-7):
    return (math.isnan(value) and math.isnan(again)) or math.isclose(value, again, rel_tol=tolerance, abs_tol=tolerance)


def same(row, again, tolerance=1e-7):
    """A row of the tests and what was computed again."""
    written = (row.estimate, row.ci_low, row.ci_high, row.p)
    return row.n == again.n and all(
        agrees(*pair, tolerance) for pair in zip(written, (again.estimate, again.low, again.high, again.p), strict=True)
    )


def check_scale(tests, overlap, gradients, hypothesis, name="H4"):
    """Deciding slopes, their equivalence, means on the rungs and slopes of other selections; how many were compared."""
    ladder, checked = hypothesis["ladder"], 0
    again = {metric: single(slopes(means, ladder)) for metric, means in deciding(overlap, gradients, hypothesis).items()}
    margins = dict(zip(again, (hypothesis["activation"]["margin"], hypothesis["gradient"]["margin"]), strict=True))
    for row in rows(tests[tests["hypothesis"] == name]):
        assert same(row, again[row.metric]), row
        checked += 1
    for row in rows(tests[tests["hypothesis"] == f"{name} equivalence"]):
        found = again[row.metric]
        expected = (found.estimate, found.narrow_low, found.narrow_high, found.p_equivalence(margins[row.metric]))
        assert all(agrees(*pair) for pair in zip((row.estimate, row.ci_low, row.ci_high, row.p), expected, strict=True)), row
        checked += 1
    means = deciding(overlap, gradients, hypothesis)
    for row in rows(
        tests[(tests["hypothesis"] == f"{name} beside") & tests["metric"].isin(list(means)) & tests["contrast"].isin(list(ladder))]
    ):
        assert same(row, single([rung[row.contrast] for rung in means[row.metric].values()])), row
        checked += 1
    for row in rows(tests[tests["hypothesis"] == f"{name} selections"]):
        selection, _, fraction = row.metric.removeprefix("normalised_overlap/").rpartition("/")
        cells = overlaps(overlap, hypothesis["activation"], selection, float(fraction))
        assert same(row, single(slopes(means_by_rung(cells, ladder), ladder))), row
        checked += 1
    return checked


@pytest.mark.parametrize(
    ("overlap_slope", "gradient_slope", "noise"), itertools.product((-0.04, 0.0, 0.04), (-0.04, 0.0, 0.04), (0.01, 0.1))
)
def test_letters_of_planted_trends(overlap_slope, gradient_slope, noise):
    tables = probes(overlap_slope, gradient_slope, noise=noise, seed=3)
    registration = {**PLAN, "hypotheses": {"H4": H4, "H5A": PLAN["hypotheses"]["H5A"]}}
    found = verdict.compute_verdicts(metrics_of(), Preregistration.model_validate(registration), probes=tables, stage_steps=STAGE_STEPS)[
        "H4"
    ]
    assert scale_letter(*(tidied(tables[name]) for name in ("overlap", "gradients")), H4) == found.letter


def test_tests_of_planted_trends():
    tables = probes(-0.03, 0.02)
    tables["overlap"].loc[lambda rows: (rows["arm"] == "Dw-32") & (rows["layer"] == 0) & (rows["seed"] == 1), "ceiling"] = 0.05
    registration = {**PLAN, "hypotheses": {"H4": H4, "H5A": PLAN["hypotheses"]["H5A"]}}
    tests = verdict.tests_table(metrics_of(), Preregistration.model_validate(registration), probes=tables, stage_steps=STAGE_STEPS)
    assert check_scale(tidied(tests), tidied(tables["overlap"]), tidied(tables["gradients"]), H4) == 12


@pytest.mark.parametrize(("slowness", "kept"), itertools.product((0.8, 1.3, 2.6), (-0.15, 0.0, 0.04, 0.15)))
def test_letters_of_planted_methods(slowness, kept):
    """The rules of H5A, whose A also needs the comparison at equal own."""
    metrics = metrics_of({"D1": (1.0, 0.0), "D1:lora": (1.6, 0.0), "D1:activation-mask": (slowness, kept)})
    registration = {**PLAN, "hypotheses": {"H5A": PLAN["hypotheses"]["H5A"]}}
    found = verdict.compute_verdicts(metrics, Preregistration.model_validate(registration))
    assert {name: result.letter for name, result in found.items()} == verdicts(tidied(metrics), None, registration)
    check_equal_own(tidied(verdict.tests_table(metrics, Preregistration.model_validate(registration))), tidied(metrics))


def check_equal_own(tests, metrics):
    """Vertical differences of the frontiers by numerical integration, hence the tolerance; how many were compared."""
    rows_at_equal_own = tests[tests["hypothesis"].str.endswith(" at equal own")]
    for row in rows(rows_at_equal_own):
        again = single(at_equal_own(metrics, *row.contrast.split(" - "), row.metric))
        assert row.n == again.n and all(
            agrees(*pair, 1e-4)
            for pair in zip((row.estimate, row.ci_low, row.ci_high), (again.estimate, again.low, again.high), strict=True)
        ), (row, again)
    assert len(rows_at_equal_own)
    return len(rows_at_equal_own)


@pytest.fixture(params=SOURCES)
def source(request) -> Source:
    return source_of(request.param)


def test_published_trends(source):
    scale = {name: hypothesis for name, hypothesis in source.registration["hypotheses"].items() if is_scale(hypothesis)}
    if not scale or len({run.seed for run in source.runs}) < 2:
        pytest.skip("no hypothesis about scale, or one replicate")
    for name, hypothesis in scale.items():
        assert check_scale(source.tests, source.tables["overlap"], source.tables["gradients"], hypothesis, name) >= 12
        assert cosines(source.tables["gradients"], hypothesis["gradient"])


def test_published_comparisons_at_equal_own(source):
    asked = [h for h in source.registration["hypotheses"].values() if h.get("at_equal_own")]
    if not asked or not source.tests["hypothesis"].str.endswith(" at equal own").any():
        pytest.skip("no comparison at equal own")
    assert check_equal_own(source.tests, source.tables["metrics"]) >= 2 * len(asked)


def test_a_replicate_without_a_common_cell_has_no_slope():
    tables = {name: tidied(table) for name, table in probes(-0.04, -0.04).items()}
    few = tables["gradients"].assign(
        ceiling=np.where(tables["gradients"]["seed"] == "2", 0.01, tables["gradients"]["ceiling"].astype(float))
    )
    assert set(means_by_rung(cosines(few, H4["gradient"]), H4["ladder"])) == {"0", "1", "3", "4"}
