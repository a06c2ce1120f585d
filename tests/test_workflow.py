"""The plan of a run: in which order its jobs start."""

from itertools import product

from sparsecl.config import VALIDATION
from sparsecl.study_files import load_study
from sparsecl.workflow import NOTEBOOKS, Plan

STUDY = load_study("smoke")


def order(publishes: bool) -> list[tuple[str, str]]:
    """The jobs, first ones first."""
    plan = Plan(STUDY, "smoke", "runs", None, pdf=False, publishes=publishes)
    jobs = list(product(NOTEBOOKS, map(str, STUDY.replicate_names())))
    return sorted(jobs, key=lambda job: -plan.priority(*job))


def test_every_stream_waits_for_the_validation_replicate():
    for publishes in (True, False):
        leading = order(publishes)[: len(NOTEBOOKS)]
        assert {replicate for _, replicate in leading} == {VALIDATION}


def test_a_run_that_publishes_finishes_replicate_after_replicate_and_another_moves_all_along():
    one_by_one = [replicate for _, replicate in order(True)][len(NOTEBOOKS) :]
    assert one_by_one == ["1"] * len(NOTEBOOKS) + ["0"] * len(NOTEBOOKS)
    together = order(False)[len(NOTEBOOKS) :]
    assert together == list(product(NOTEBOOKS, ("0", "1")))


def test_the_tests_are_computed_again_when_the_registered_analysis_changes():
    pilot = load_study("builtin")
    inputs = Plan(pilot, "builtin", "runs", None, pdf=False).part_inputs("main")
    assert [path for path in inputs if path.endswith("paper/preregistration/builtin.yaml")] and "tables.json" in inputs
    assert Plan(STUDY, "smoke", "runs", None, pdf=False).part_inputs("main") == ["tables.json"], "smoke has none"


def test_without_a_paper_only_the_studys_own_part_is_analysed():
    assert Plan(STUDY, "smoke", "runs", None, pdf=False).targets() == ["tables.json", "05_stats-main.json"]
    paper = Plan(STUDY, "smoke", "runs", None, pdf=True)
    assert paper.targets() == ["paper/paper.json"]
    assert paper.part_records() == [f"05_stats-{part}.json" for part in ("main", "realtext", "implicit", "moe")]
    implicit = Plan(load_study("builtin-implicit"), "builtin-implicit", "runs", None, pdf=False)
    assert implicit.targets() == ["tables.json", "05_stats-implicit.json"]
