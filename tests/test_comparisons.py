"""Comparisons of conversions: who takes part, in which order, over which replicates."""

import pandas as pd
import pytest
from example_tables import example_tables

from sparsecl.arms import parse_arm
from sparsecl.comparisons import COMPARISONS, compare, replicates_compared, result_rows


@pytest.fixture(scope="module")
def conversion():
    return example_tables(replicates=4)["conversion"]


@pytest.mark.parametrize(
    ("arm", "taking_part"),
    [
        ("S1-2of4", {"topologies": "2of4", "algorithms": "sparsegpt", "densities": "2of4"}),
        ("S0-block16", {"topologies": "block16", "densities": "block16"}),
        ("S0-2of4-wanda++", {"algorithms": "wanda++"}),
        ("S0-block16-wanda", {}),
        ("S1-6of8", {"densities": "6of8"}),
        ("S1-2of4-b2", {}),
        ("S1-2of4-random", {"algorithms": "random"}),
        ("S1-unstructured-d0.75", {"densities": "unstructured-d0.75"}),
        ("S1-unstructured-wanda-d0.75", {}),
    ],
)
def test_an_arm_takes_part_where_nothing_else_differs(arm, taking_part):
    choices = {name: comparison.choice(parse_arm(arm)) for name, comparison in COMPARISONS.items()}
    assert {name: choice for name, choice in choices.items() if choice is not None} == taking_part


def test_the_main_algorithm_is_the_one_of_the_table(conversion):
    wanda = conversion.assign(algorithm=conversion["algorithm"].replace({"sparsegpt": "wanda", "wanda": "sparsegpt"}))
    assert compare(wanda, "algorithms").arms["S0", "wanda"].name == "S0-2of4"


def test_another_recovery_budget_does_not_stand_in_for_the_main_one(conversion):
    doubled = conversion[conversion["arm"] == "S1-2of4"].assign(arm="S1-2of4-b2", value=-1.0)
    for table in (pd.concat([conversion, doubled]), pd.concat([doubled, conversion])):
        for name, choice in (("algorithms", "sparsegpt"), ("topologies", "2of4")):
            assert compare(table, name).values("nll/general", "S1", choice).min() > 0


def test_two_arms_cannot_stand_for_one_choice(conversion):
    renamed = conversion[conversion["arm"] == "S1-2of4"].assign(arm="S1-2of4-sparsegpt")
    with pytest.raises(ValueError, match="both S1-2of4 and S1-2of4-sparsegpt stand for sparsegpt"):
        compare(pd.concat([conversion, renamed]), "algorithms")


def test_densities_run_from_few_zeros_to_many_within_a_family(conversion):
    assert compare(conversion, "densities").choices == [
        "unstructured-d0.8", "unstructured-d0.75", "unstructured-d0.7", "unstructured-d0.6", "unstructured",
        "6of8", "5of8", "4of8", "block16-d0.75", "block16",
    ]  # fmt: skip


def test_replicates_are_those_that_made_all_arms(conversion):
    assert replicates_compared(conversion) == {"topologies": 4, "algorithms": 3, "densities": 3}
    compared = compare(conversion, "algorithms")
    for name, choice in (("S0", "sparsegpt"), ("S1", "random"), ("D0", ""), ("D1", "")):
        assert list(compared.values("nll/general", name, choice).index) == [0, 1, 2]


def test_what_was_not_made_is_empty(conversion):
    only_converted = conversion[conversion["arm"] != "S1-block32"]
    assert compare(only_converted, "topologies").values("nll/general", "S1", "block32").empty
    assert replicates_compared(conversion[conversion["arm"].isin(["D0", "S0-2of4"])]) == {}


def test_the_validation_replicate_enters_no_result(conversion):
    assert "validation" in set(conversion["seed"]) and "validation" not in set(result_rows(conversion)["seed"])
    alone = conversion[conversion["seed"] == "validation"]
    pd.testing.assert_frame_equal(result_rows(alone), alone)  # its own notebooks still show it
