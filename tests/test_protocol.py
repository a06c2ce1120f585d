"""The main protocol is told from the tables alone."""

import pandas as pd
import pytest

from sparsecl.protocol import main_protocol, one_length_a_run


def streams(*rows):
    """One row a stream: arm, method, order, stage_steps, seeds."""
    columns = ["arm", "method", "order", "stage_steps", "seed"]
    return pd.DataFrame([(*row[:4], seed) for row in rows for seed in row[4]], columns=columns)


FRAME = streams(
    ("D1", "full", "main", 100, range(5)),
    ("D1", "full", "main", 50, range(3)),
    ("D1", "full", "main", 200, range(3)),
    ("D1", "full", "williams-2", 100, range(3)),
    ("D1", "lora", "main", 100, range(3)),
    ("Df-0.5", "full", "main", 63, range(5)),
)


def test_each_arm_keeps_the_stage_length_with_the_most_replicates():
    kept = main_protocol(FRAME)
    assert kept.groupby("arm")["stage_steps"].unique().map(list).to_dict() == {"D1": [100], "Df-0.5": [63]}
    assert set(kept["method"]) == {"full"} and set(kept["order"]) == {"main"} and len(kept) == 10
    assert kept.equals(FRAME.loc[kept.index]), "rows keep their index, so that two selections can be joined"


def test_replicates_count_not_rows():
    many_rows = pd.concat([FRAME, *[FRAME[FRAME["stage_steps"] == 50]] * 9])
    assert set(main_protocol(many_rows)["stage_steps"]) == {100, 63}


def test_arms_of_equal_flops_may_differ_by_a_step_between_replicates():
    matched = streams(("Sf-2of4", "full", "main", 176, (0, 1, 2)), ("Sf-2of4", "full", "main", 177, (3, 4)))
    assert main_protocol(pd.concat([FRAME, matched])).value_counts("arm")["Sf-2of4"] == 5
    assert len(main_protocol(matched[matched["seed"].isin([2, 3])])) == 2
    named = one_length_a_run(pd.concat([FRAME, matched], ignore_index=True))
    assert named.value_counts("arm")["Sf-2of4"] == 5 and set(named[named["arm"] == "Sf-2of4"]["stage_steps"]) == {176}
    rest = named[named["arm"] != "Sf-2of4"]
    pd.testing.assert_frame_equal(rest, FRAME.loc[rest.index], check_dtype=True)


def test_another_method_or_order_has_a_main_stage_length_too():
    assert len(main_protocol(FRAME, method="lora")) == 3
    assert len(main_protocol(FRAME, order="williams-2")) == 3
    assert main_protocol(FRAME, method="ewc").empty and main_protocol(FRAME.iloc[:0]).empty


def test_of_one_replicate_only_the_study_can_say_which_length_is_its_own():
    one = FRAME[FRAME["seed"] == 0]
    with pytest.raises(ValueError, match=r"D1 ran 1 replicate\(s\) at each of the stage lengths \[50, 100, 200\]"):
        main_protocol(one)
    with pytest.raises(ValueError, match="asked for: 70"):
        main_protocol(one, stage_steps=70)
    kept = main_protocol(one, stage_steps=100)
    assert kept.set_index("arm")["stage_steps"].to_dict() == {"D1": 100, "Df-0.5": 63}, "an arm of one length needs no choice"
    assert set(main_protocol(FRAME, stage_steps=50)["stage_steps"]) == {100, 63}, "replicates come first"
