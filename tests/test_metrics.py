"""The metrics on hand-worked matrices, against an independent loop, and where well-known packages differ."""

import numpy as np
import pandas as pd
import pytest

from sparsecl import metrics
from sparsecl.metrics import MissingMeasurement, metrics_table

HAND = np.array([[0.1, 0.2, 0.1], [0.9, 0.3, 0.1], [0.5, 0.8, 0.2], [0.6, 0.4, 0.7]])
GAIN = np.array([[0.0, 0.0, 0.0], [0.4, 0.9, 0.0], [0.5, 0.6, 0.0], [0.8, 0.7, 0.5]])  # domain 1 rises, domain 2 peaks early
DOMAINS = ["math", "code", "legal"]
RUN = {
    "arm": "D1", "topology": "", "algorithm": "", "density": 1.0, "method": "full", "order": "main", "stage_steps": 100,
    "base": "0", "seed": 0,
}  # fmt: skip


def run_table(scores, losses=None, domains=DOMAINS, kinds=("all",), general=None, **keys):
    """The accuracy rows of one run whose every kind has the same matrix."""
    losses = 1 - np.asarray(scores) if losses is None else losses
    rows = []
    for stage in range(len(scores)):
        head = {**RUN, **keys, "stage": stage, "stage_domain": domains[stage - 1] if stage else ""}
        for kind in kinds:
            rows += [
                {**head, "domain": d, "kind": kind, "score": scores[stage][i], "n": 10, "nll": losses[stage][i]}
                for i, d in enumerate(domains)
            ]
        if general is not None:
            rows.append({**head, "domain": "general", "kind": "all", "score": general[stage], "n": 10, "nll": 2.0 - general[stage]})
    return pd.DataFrame(rows)


def value(table, metric, domain="", kind="all"):
    found = table[(table["metric"] == metric) & (table["domain"] == domain) & (table["kind"] == kind)]["value"]
    assert len(found) == 1, f"{metric} of {domain or 'all domains'}: {len(found)} rows"
    return found.iloc[0]


def test_hand_worked_matrix():
    assert metrics.forgetting_by_domain(HAND) == pytest.approx([0.3, 0.4])
    assert metrics.forgetting(HAND) == pytest.approx(0.35)
    assert metrics.backward_transfer(HAND) == pytest.approx(-0.35)
    assert metrics.own_by_domain(HAND) == pytest.approx([0.9, 0.8])
    assert metrics.final_by_domain(HAND) == pytest.approx([0.6, 0.4])
    assert metrics.retention_by_domain(HAND) == pytest.approx([2 / 3, 0.5])
    assert metrics.forward_transfer(HAND) == pytest.approx(0.1)  # (0.3 - 0.2 + 0.2 - 0.1) / 2
    assert metrics.forward_transfer(HAND, np.array([0.5, 0.25, 0.05])) == pytest.approx(0.1)  # (0.05 + 0.15) / 2
    assert metrics.forgetting_by_stage(HAND) == pytest.approx([0.4, 0.35])  # F_2 = 0.9 - 0.5


def test_forgetting_is_negative_where_a_domain_gains_and_differs_from_the_usual_mistakes():
    last = GAIN[-1, :-1]
    clamped = np.mean(GAIN[1:, :-1].max(axis=0) - last)  # maximum over the last row too
    from_own_stage = np.mean(np.diagonal(GAIN[1:])[:-1] - last)  # initial minus last, no maximum
    dropped = np.mean([GAIN[1:-1, i].max() - GAIN[-1, i] for i in range(GAIN.shape[1] - 2)])  # range(k - 2)
    assert (clamped, from_own_stage, dropped) == pytest.approx((0.1, -0.25, -0.3))
    assert metrics.forgetting_by_domain(GAIN) == pytest.approx([-0.3, 0.2])
    assert metrics.forgetting(GAIN) == pytest.approx(-0.05)


def test_functions_leave_their_matrix_alone():
    before = GAIN.copy()
    metrics.own_by_domain(GAIN)[:] = 9
    metrics.final_by_domain(GAIN)[:] = 9
    metrics.retention_by_domain(GAIN), metrics.forgetting(GAIN)
    assert (before == GAIN).all()


def test_retention_of_nothing_learned_is_undefined_not_zero():
    matrix = HAND.copy()
    matrix[1, 0] = 0.0
    assert np.isnan(metrics.retention_by_domain(matrix)[0])
    table = metrics_table(run_table(matrix))
    assert np.isnan(value(table, "retention")) and np.isnan(value(table, "retention", "math"))
    assert value(table, "retention", "code") == pytest.approx(0.5)


def test_loss_forgetting_is_the_rise_above_the_lowest_earlier_loss():
    loss = np.array([[3.0, 3.0, 3.0], [1.0, 2.0, 4.0], [0.5, 1.5, 5.0], [2.5, 1.25, 1.0]])
    assert metrics.loss_forgetting_by_domain(loss) == pytest.approx([2.0, -0.25])


@pytest.mark.parametrize("shape", [(4, 2), (3, 3), (2, 1)])
def test_a_matrix_that_is_no_stream_raises(shape):
    with pytest.raises(ValueError, match="stage"):
        metrics.forgetting(np.zeros(shape))


def test_learning_speed_is_the_mean_gain():
    assert metrics.learning_speed(np.array([5.0, 10.0]), np.array([0.5, 0.5]), 0.1) == pytest.approx((0.2 * 5 + 0.4 * 5) / 10)
    assert metrics.learning_speed(np.array([0.0, 10.0]), np.array([0.2, 0.6]), 0.2) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="must ascend"):
        metrics.learning_speed(np.array([5.0, 5.0]), np.array([0.5, 0.5]), 0.1)


def test_table_of_one_run():
    table = metrics_table(run_table(HAND, general=[0.8, 0.7, 0.6, 0.4]))
    assert list(table) == metrics.METRIC_COLUMNS
    expected = {"forgetting": 0.35, "bwt": -0.35, "own": 0.85, "final": 0.5, "retention": 7 / 12, "acc": 1.7 / 3, "fwt": 0.1}
    for metric, wanted in expected.items():
        assert value(table, metric) == pytest.approx(wanted), metric
    assert value(table, "forgetting", "code") == pytest.approx(0.4)
    assert value(table, "general_retention") == pytest.approx(0.5)
    assert value(table, "general_loss_rise") == pytest.approx(0.4)
    assert not table["metric"].isin(["learning_speed", "fwt_over_chance"]).any()
    assert "legal" not in set(table["domain"]), "the last domain cannot be forgotten"


def test_general_mixture_is_never_averaged_in():
    without = metrics_table(run_table(HAND))
    with_general = metrics_table(run_table(HAND, general=[0.0, 1.0, 0.0, 1.0]))
    shared = with_general[~with_general["metric"].str.startswith("general")].reset_index(drop=True)
    pd.testing.assert_frame_equal(shared, without)


def brute_force(accuracy, domains, kind):
    """Straight from the rows, by loops."""

    def at(stage, domain, column="score"):
        cell = accuracy[(accuracy.stage == stage) & (accuracy.domain == domain) & (accuracy.kind == kind)]
        return cell[column].item()

    last, result = len(domains), {}
    falls, rises, own, final, ratio, transfer = [], [], [], [], [], []
    for position, domain in enumerate(domains, start=1):
        if position > 1:
            transfer.append(at(position - 1, domain) - at(0, domain))
        if position == last:
            continue
        best, lowest = -np.inf, np.inf
        for stage in range(1, last):
            best, lowest = max(best, at(stage, domain)), min(lowest, at(stage, domain, "nll"))
        falls.append(best - at(last, domain))
        rises.append(at(last, domain, "nll") - lowest)
        own.append(at(position, domain))
        final.append(at(last, domain))
        ratio.append(at(last, domain) / at(position, domain))
    pairs = {"forgetting": falls, "loss_forgetting": rises, "own": own, "final": final, "retention": ratio, "fwt": transfer}
    result = {metric: sum(values) / len(values) for metric, values in pairs.items()}
    result["bwt"] = sum(end - start for start, end in zip(own, final, strict=True)) / len(own)
    result["acc"] = sum(at(last, domain) for domain in domains) / last
    result["loss_own"] = sum(at(i, d, "nll") for i, d in enumerate(domains[:-1], start=1)) / (last - 1)
    result["loss_final"] = sum(at(last, d, "nll") for d in domains[:-1]) / (last - 1)
    return result


@pytest.mark.parametrize("seed", range(5))
def test_random_tables_agree_with_an_independent_loop(seed):
    generator = np.random.default_rng(seed)
    domains = list(generator.permutation(["code", "math", "medical", "legal", "dialogue"])[: generator.integers(2, 6)])
    shape = (len(domains) + 1, len(domains))
    accuracy = run_table(generator.uniform(0.01, 1, shape), generator.uniform(0, 5, shape), domains, ("ability", "fact", "all"))
    accuracy["score"] = generator.uniform(0.01, 1, len(accuracy))  # kinds differ
    table = metrics_table(accuracy.sample(frac=1, random_state=seed))
    for kind in ("ability", "fact", "all"):
        for metric, wanted in brute_force(accuracy, domains, kind).items():
            assert value(table, metric, kind=kind) == pytest.approx(wanted, abs=1e-12), (metric, kind)


def test_mean_of_the_domain_rows_is_the_row_over_domains():
    table = metrics_table(run_table(HAND))
    by_domain = table[table["domain"] != ""].groupby("metric")["value"].mean()
    assert set(by_domain.index) == {"forgetting", "own", "final", "retention", "loss_forgetting", "loss_own", "loss_final"}
    for metric, mean in by_domain.items():
        assert value(table, metric) == pytest.approx(mean)


def test_domain_order_is_the_order_of_the_stages():
    """The same cells under another stream order are another matrix."""
    table = metrics_table(run_table(HAND, domains=["legal", "code", "math"]))
    assert value(table, "own", "legal") == pytest.approx(0.9)
    assert value(table, "own", "code") == pytest.approx(0.8)


def test_runs_are_kept_apart_and_empty_equals_absent_in_a_csv(tmp_path):
    sparse = {"arm": "S1-2of4", "topology": "2of4", "algorithm": "sparsegpt", "density": 0.5}
    accuracy = pd.concat([run_table(HAND), run_table(GAIN, **sparse), run_table(GAIN, seed=1)])
    curves = accuracy[(accuracy["stage"] > 0)].assign(step=100, tokens=1000)
    accuracy.to_csv(tmp_path / "accuracy.csv", index=False)
    reread = pd.read_csv(tmp_path / "accuracy.csv", dtype={"base": str})
    for source in (accuracy, reread):
        table = metrics_table(source, curves)
        forgetting = table[(table["metric"] == "forgetting") & (table["domain"] == "")]
        assert list(zip(forgetting["arm"], forgetting["seed"], strict=True)) == [("D1", 0), ("D1", 1), ("S1-2of4", 0)]
        assert forgetting["value"].tolist() == pytest.approx([0.35, -0.05, -0.05])
        assert (table["metric"] == "learning_speed").sum() == 3


def test_learning_speed_uses_the_domain_of_the_running_stage_and_its_own_start():
    accuracy = run_table(HAND)
    curves = accuracy[accuracy["stage"] > 0].assign(step=10, tokens=10)
    gains = [0.9 - 0.1, 0.8 - 0.3, 0.7 - 0.2]
    assert value(metrics_table(accuracy, curves), "learning_speed") == pytest.approx(np.mean(gains) / 2)
    start = curves.assign(step=0, score=0.0)
    table = metrics_table(accuracy, pd.concat([curves, start]))
    assert value(table, "learning_speed") == pytest.approx(np.mean([0.9, 0.8, 0.7]) / 2)
    with pytest.raises(MissingMeasurement, match="domain code within its own stage 2"):
        metrics_table(accuracy, curves[curves["stage"] != 2])


def test_loss_only_has_no_score_metrics():
    accuracy = run_table(HAND).assign(score=None)
    table = metrics_table(accuracy, curves=accuracy[accuracy["stage"] > 0].assign(step=1, tokens=1))
    assert set(table["metric"]) == {"loss_forgetting", "loss_own", "loss_final"}


def test_a_kind_that_some_domains_lack_has_no_mean_over_domains():
    accuracy = run_table(HAND, kinds=("ability", "all"))
    accuracy = accuracy[~((accuracy["kind"] == "ability") & (accuracy["domain"] == "code"))]
    table = metrics_table(accuracy)
    ability = table[table["kind"] == "ability"]
    assert set(ability["domain"]) == {"math"}
    assert value(table, "forgetting", "math", "ability") == pytest.approx(0.3)
    assert value(table, "forgetting") == pytest.approx(0.35)


def test_transfer_over_chance_needs_every_chance_and_averages_the_kinds_of_all():
    accuracy = run_table(HAND, kinds=("ability", "fact", "all"))
    chance = {(domain, kind): 0.1 if kind == "ability" else 0.0 for domain in DOMAINS for kind in ("ability", "fact")}
    table = metrics_table(accuracy, chance=chance)
    assert value(table, "fwt_over_chance", kind="ability") == pytest.approx((0.3 + 0.2) / 2 - 0.1)
    assert value(table, "fwt_over_chance") == pytest.approx((0.3 + 0.2) / 2 - 0.05)
    del chance["code", "fact"]
    assert set(metrics_table(accuracy, chance=chance).query("metric == 'fwt_over_chance'")["kind"]) == {"ability"}


def test_a_single_stage_has_nothing_to_forget():
    table = metrics_table(run_table([[0.1], [0.7]], domains=["math"]))
    assert set(table["metric"]) == {"acc", "gain"}
    assert value(table, "acc") == pytest.approx(0.7) and value(table, "gain") == pytest.approx(0.6)


def test_an_empty_table_is_an_empty_table():
    assert metrics_table(run_table(HAND).iloc[:0]).empty


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda table: table.drop(columns="nll"), r"accuracy lacks the columns \['nll'\]"),
        (lambda table: table[table["stage"] != 2], r"stages \[0, 1, 3\] are not 0..3.*missing \[2\]"),
        (lambda table: table[table["stage"] != 0], r"missing \[0\]"),
        (
            lambda table: table[~((table["stage"] == 2) & (table["domain"] == "math"))],
            "arm D1.*score of kind all is missing for math after stage 2",
        ),
        (lambda table: table[table["domain"] != "legal"], r"domains \['legal'\] of the stream"),
        (lambda table: table.assign(stage_domain="math"), "every stage needs its own domain"),
        (lambda table: pd.concat([table, table]), "stands twice"),
        (
            lambda table: table.assign(nll=table["nll"].where(table["stage"] != 3)),
            "nll of kind all is missing for math after stage 3, code",
        ),
    ],
)
def test_what_is_missing_is_named(damage, message):
    with pytest.raises(ValueError, match=message):
        metrics_table(damage(run_table(HAND)))


def test_general_mixture_needs_both_ends():
    accuracy = run_table(HAND, general=[0.8, 0.7, 0.6, 0.4])
    with pytest.raises(MissingMeasurement, match="score of general is missing after stage 3"):
        metrics_table(accuracy[~((accuracy["stage"] == 3) & (accuracy["domain"] == "general"))])
