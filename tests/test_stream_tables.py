"""The learning-rate sweep: one rate for all arms, not won by noise, nor by one arm or one domain."""

import pytest

from sparsecl.streams import choose_learning_rate

DOMAINS = ("code", "math", "legal", "dialogue")


def sweep(learned: dict[float, dict[str, list[float]]]) -> list[dict]:
    """Rows of a sweep from rate -> arm -> score per domain; kinds other than `all` must not count."""
    return [
        {
            "arm": arm, "method": "full", "learning_rate": rate, "domain": domain, "kind": kind,
            "own": score if kind == "all" else 1 - score, "nll_own": 1 - score if kind == "all" else score,
        }
        for rate, arms in learned.items()
        for arm, scores in arms.items()
        for domain, score in zip(DOMAINS, scores, strict=True)
        for kind in ("ability", "all")
    ]  # fmt: skip


@pytest.mark.parametrize("measure", ["score", "nll"])
@pytest.mark.parametrize(
    ("slow", "fast", "chosen"),
    [
        # shortfalls -.02, .02, .03, .01: mean .01, standard error .011: the lower rate learns as well
        ([0.52, 0.48, 0.47, 0.49], [0.50, 0.50, 0.50, 0.50], 1e-3),
        # shortfalls .01, .02, .03, .02: mean .02, standard error .004: it does not
        ([0.49, 0.48, 0.47, 0.48], [0.50, 0.50, 0.50, 0.50], 2e-3),
        ([0.60, 0.60, 0.60, 0.60], [0.50, 0.50, 0.50, 0.50], 1e-3),
        ([0.50, 0.50, 0.50, 0.50], [0.50, 0.50, 0.50, 0.50], 1e-3),
    ],
)
def test_the_lowest_rate_within_one_standard_error_of_the_best(measure, slow, fast, chosen):
    assert choose_learning_rate(sweep({2e-3: {"D1": fast}, 1e-3: {"D1": slow}}), measure) == chosen


def test_one_rate_serves_the_arms_together():
    """What the dense arm gains with the larger rate, the sparse arm loses: neither arm decides alone."""
    low = {"D1": [0.50, 0.51, 0.49, 0.50], "S1-2of4": [0.70, 0.71, 0.69, 0.70]}
    high = {"D1": [0.70, 0.71, 0.69, 0.70], "S1-2of4": [0.50, 0.51, 0.49, 0.50]}
    assert choose_learning_rate(sweep({1e-3: low, 2e-3: high}), "score") == 1e-3
    higher = high | {"S1-2of4": [0.68, 0.69, 0.67, 0.68]}
    assert choose_learning_rate(sweep({1e-3: {"D1": low["D1"], "S1-2of4": low["D1"]}, 2e-3: higher}), "score") == 2e-3


def test_cells_are_paired_whatever_the_order_of_the_rows():
    rows = sweep({1e-3: {"D1": [0.1, 0.5, 0.9, 0.3]}, 2e-3: {"D1": [0.11, 0.51, 0.91, 0.31]}})
    assert choose_learning_rate(rows[::-1], "score") == 2e-3
    assert choose_learning_rate(rows[:8] + rows[8:][::-1], "score") == 2e-3


def test_a_sweep_with_a_hole_is_refused():
    rows = sweep({1e-3: {"D1": [0.1, 0.5, 0.9, 0.3]}, 2e-3: {"D1": [0.2, 0.6, 1.0, 0.4]}})
    with pytest.raises(ValueError, match=r"other arms or domains under \[0.002\]"):
        choose_learning_rate(rows[:-2], "score")
