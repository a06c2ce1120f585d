"""Every derived number of a study follows from its tables alone: each is computed again by an independent route and compared.

The route is in the modules `recomputation*`: measures, tests and verdicts, streams, scale. They import nothing of the package, which is
imported here for the comparison only. Sources are all committed tables, partial publications too, and the planted ones of
`example_streams`, which hold every kind of stream. Of large tables a sample of runs is taken, another one for each table.
"""

import ast
import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from published_sources import EXAMPLE, LATER, SOURCES, Source, read_number, rounds_to, source_of
from recomputation import main_runs, means_over_items, means_over_kinds, metrics, place, rows, run_of, tidied
from recomputation_scale import is_scale, scale_letter
from recomputation_statistics import anova, bootstrapped_forgetting, by_run, curves_of_forgetting, difference, holm, spread, verdicts
from recomputation_streams import agreement, frontier_distances, last_crossing, order_cells, stream_curves, variance_components
from scipy import stats

from sparsecl.number_formats import count, nats, p_value, points
from sparsecl.preregistration import Preregistration


@pytest.fixture(params=SOURCES)
def source(request) -> Source:
    return source_of(request.param)


@pytest.fixture
def compared(source) -> Source:
    """A source with enough replicates for tests; of a partial publication they do not say yet which stage length is the main one."""
    try:
        main_runs(source.runs)
    except ValueError as error:
        pytest.skip(str(error))
    if len({run.seed for run in source.runs}) < 2:
        pytest.skip("one replicate")
    return source


def agrees(value: float, again: float, tolerance: float = 1e-9) -> bool:
    return (math.isnan(value) and math.isnan(again)) or math.isclose(value, again, rel_tol=tolerance, abs_tol=tolerance)


def disagreements(theirs: Mapping, ours: Mapping, tolerance: float = 1e-9) -> list[str]:
    """Every key whose values differ, in words."""
    return [f"{key}: {value!r}, again {ours[key]!r}" for key, value in theirs.items() if not agrees(value, ours[key], tolerance)]


def test_the_route_is_independent():
    modules = {path.stem: path for path in Path(__file__).parent.glob("recomputation*.py")}
    for path in modules.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {name for name in imported if name.split(".")[0] not in {*OUTSIDE, *modules}}


OUTSIDE = {
    "collections", "dataclasses", "functools", "itertools", "math", "pathlib", "re", "statistics", "types", "typing",
    "numpy", "pandas", "scipy",
}  # fmt: skip


def test_scores_are_means_over_items(source):
    items = means_over_items(source.tables["items"])
    accuracy = {
        (*run_of(row), int(row.stage), row.domain, row.kind): (row.score, row.nll, row.n) for row in rows(source.tables["accuracy"])
    }
    assert items and set(items) <= set(accuracy)
    wrong = []
    for key, (score, loss, number) in items.items():
        again = accuracy[key]
        same_loss = source.name == EXAMPLE or agrees(again[1], loss)  # the example's losses are invented, of tables and items apart
        if (not math.isnan(again[0]) and not agrees(again[0], score)) or not same_loss or again[2] != number:
            wrong.append(f"{key}: {again}, of items {(score, loss, number)}")
    assert not wrong, wrong[:5]


@pytest.mark.parametrize("table", ["accuracy", "curves"])
def test_all_is_the_mean_over_kinds(source, table):
    frame = source.tables[table].merge(source.sampled(table))
    again = means_over_kinds(frame)
    found = {place(row): (row.score, row.nll, row.n) for row in rows(frame[frame["kind"] == "all"])}
    # The example holds the kinds of the main protocol only.
    assert again and (set(again) < set(found) if source.name == EXAMPLE else set(again) == set(found))
    wrong = [f"{key}: {found[key]}, again {value}" for key, value in again.items() if not all(map(agrees, found[key], value))]
    assert not wrong, wrong[:5]


def test_metrics(source):
    chosen, tables = source.sampled("metrics"), source.tables
    written = {(run_of(row), row.domain, row.kind, row.metric): row.value for row in rows(tables["metrics"].merge(chosen))}
    inputs = [tables["accuracy"].merge(chosen), tables["curves"].merge(chosen), tables["chance"], tables["cost"]]
    main = main_runs(source.runs, source.study.continual.stage_steps)
    unmeasured = LATER - set(tables["metrics"]["metric"])
    again = {key: value for key, value in metrics(*inputs, main).items() if key[-1] not in unmeasured}
    assert len(written) > 100 and set(written) == set(again), sorted(set(written) ^ set(again), key=str)[:5]
    wrong = disagreements(written, again)
    assert not wrong, (len(wrong), wrong[:5])


def test_t_tests(compared):
    """Differences, intervals, p, Holm within the family, Hedges' g, and equivalence with the registered margins."""
    table = compared.tests
    margins = {
        (name, metric["metric"]): metric.get("margin")
        for name, hypothesis in compared.registration["hypotheses"].items()
        for metric in (hypothesis.get(place) for place in ("improved", "not_worse", "forgetting"))
        if metric
    }
    checked, wrong = 0, []
    for statement, family in table.groupby("hypothesis"):
        if statement.endswith((" anova", " bootstrap")) or not is_between_runs(statement, compared.registration):
            continue
        found = {}
        for row in rows(family):
            paired = difference(compared.values, *row.contrast.split(" - "), row.metric, compared.registration["kind"])
            found[row.contrast, row.metric] = (row, paired)
        corrected = dict(zip(found, holm([paired.p for _, paired in found.values()]), strict=True))
        for key, (row, paired) in found.items():
            if statement.endswith(" equivalence"):
                hypothesis = statement.removesuffix(" equivalence").removesuffix(" beside")
                again = (paired.estimate, paired.narrow_low, paired.narrow_high, paired.p_equivalence(margins[hypothesis, row.metric]))
                written = (row.estimate, row.ci_low, row.ci_high, row.p)
            else:
                again = (paired.estimate, paired.low, paired.high, paired.p, corrected[key], paired.g)
                written = (row.estimate, row.ci_low, row.ci_high, row.p, row.p_corrected, row.effect)
            checked += 1
            if row.n != paired.n or not all(agrees(*pair, 1e-7) for pair in zip(written, again, strict=True)):
                wrong.append(f"{statement}, {key}: {written} of {row.n}, again {again} of {paired.n}")
    assert checked > 3 and not wrong, (len(wrong), wrong[:3])


def is_between_runs(statement: str, registration: Mapping) -> bool:
    """Whether a statement of the tests contrasts runs at equal steps; others are recomputed in `test_recomputation_implicit`."""
    scale = [name for name, hypothesis in registration["hypotheses"].items() if is_scale(hypothesis)]
    return statement.split()[0] not in scale and not statement.endswith(" at equal own")


def test_every_registered_test_is_there(compared):
    """Contrasts whose arms were measured, none missing and none beyond what was registered."""
    registration, written = compared.registration, compared.tests
    if set(written["status"]) <= {"exploratory"} and registration["status"] != "exploratory":
        pytest.skip("these tests were made before the registration was written")
    expected = set()
    for name, hypothesis in registration["hypotheses"].items():
        deciding = [hypothesis[place]["metric"] for place in ("improved", "not_worse", "forgetting") if place in hypothesis]
        arms = hypothesis.get("arms", ())
        pairs = [(a, b, "pair") for i, a in enumerate(arms) for b in arms[i + 1 :]]
        pairs += [(c["treatment"], c["control"], c.get("role", "beside")) for c in hypothesis.get("contrasts", ())]
        expected |= {(f"{name} beside" if pair[2] == "beside" else name, pair[:2], metric) for pair in pairs for metric in deciding}
    tested = {(pair, metric) for _, pair, metric in expected}
    leading = next((h for h in registration["hypotheses"].values() if h["test"] == "paired"), {})
    for name, family in registration["families"].items():
        pairs = [(c["treatment"], c["control"]) for c in family.get("contrasts") or leading["contrasts"]]
        expected |= {(name, pair, metric) for pair in pairs for metric in family["metrics"] if (pair, metric) not in tested}
    measured = {
        (statement, f"{pair[0]} - {pair[1]}", label)
        for statement, pair, label in expected
        if difference(compared.values, *pair, label, registration["kind"]) is not None
    }
    plain = written[~written["hypothesis"].str.endswith((" anova", " bootstrap", " equivalence"))]
    plain = plain[[is_between_runs(statement, registration) for statement in plain["hypothesis"]]]
    assert set(plain[["hypothesis", "contrast", "metric"]].itertuples(index=False, name=None)) == measured


def test_bootstrap(compared):
    """The estimate exactly, the interval as far as two random draws agree."""
    bootstraps = compared.tests[compared.tests["hypothesis"].str.endswith(" bootstrap")]
    if bootstraps.empty:
        pytest.skip("this study forgets by loss, which is not resampled")
    for row in rows(bootstraps.head(1)):
        again = bootstrapped_forgetting(
            by_run(compared.tables["items"]), compared.values, *row.contrast.split(" - "), draws=400, generator=np.random.default_rng(1)
        )
        assert agrees(row.estimate, again[0])
        assert max(abs(row.ci_low - again[1]), abs(row.ci_high - again[2])) < 0.2 * (row.ci_high - row.ci_low)


def test_anova(compared):
    written = compared.tests[compared.tests["hypothesis"].str.endswith(" anova")]
    if written.empty:
        pytest.skip("no hypothesis about topologies")
    hypothesis = compared.registration["hypotheses"][written["hypothesis"].iloc[0].removesuffix(" anova")]
    again = anova(curves_of_forgetting(compared.tables["accuracy"], hypothesis["arms"], compared.registration["kind"]))
    table = written.set_index("contrast")
    for index, effect in enumerate(("topology", "topology * stage")):
        row = table.loc[effect]
        pairs = [(row["estimate"], again.f[index]), (row["p"], again.p[index]), (row["effect"], again.eta[index])]
        assert all(agrees(*pair, 1e-7) for pair in pairs) and agrees(row["p_corrected"], again.corrected[index], 1e-7), (effect, pairs)
        assert row["n"] == again.n


def letters_of(metrics: pd.DataFrame, accuracy: pd.DataFrame, registration: dict, probes: Mapping | None = None) -> dict[str, str]:
    from sparsecl.verdict import compute_verdicts

    found = compute_verdicts(metrics, Preregistration.model_validate(registration), accuracy, probes=probes)
    return {name: verdict.letter for name, verdict in found.items()}


def test_letters(compared):
    tables, registration = compared.tables, compared.registration
    again = verdicts(tables["metrics"], tables["accuracy"], registration)
    scale = {name: hypothesis for name, hypothesis in registration["hypotheses"].items() if is_scale(hypothesis)}
    again |= {name: scale_letter(tables["overlap"], tables["gradients"], hypothesis) for name, hypothesis in scale.items()}
    assert again and letters_of(compared.theirs["metrics"], compared.theirs["accuracy"], registration, compared.theirs) == again


# Two metrics of the leading hypothesis on three contrasts, by (mean difference of forgetting, of final) and their spread.
PLANTED = [*product((-0.12, -0.06, 0.0, 0.12), (-0.12, 0.0, 0.12), (0.01, 0.04))]
SHARES = (0.0, 0.3, 1.0)  # of the effect that the controls have too: at 1 they are level with the sparse arm


def planted_metrics(
    generator: np.random.Generator, effects: tuple[float, float], sd: float, replicates: int, share: float = 0.0
) -> pd.DataFrame:
    """Values over domains of all arms of H1; the strict controls have a share of the sparse arm's effects."""
    parts, own = [], {"method": "full", "order": "main", "stage_steps": 100, "domain": "", "kind": "all"}
    for metric, base, effect in (("forgetting", 0.5, effects[0]), ("final", 0.4, effects[1])):
        common = generator.normal(base, 0.05, replicates)
        for arm in ("S1-2of4", "D1", "Dnz-0.5", "Df-0.5"):
            part = {"D1": 0.0, "S1-2of4": 1.0}.get(arm, share)
            values = common + part * effect + generator.normal(0, sd, replicates)
            parts.append(pd.DataFrame({"arm": arm, "seed": range(replicates), "metric": metric, "value": values} | own))
    return pd.concat(parts, ignore_index=True)


def test_letters_of_planted_effects():
    """The rules of H1 on effects of every size and direction; every outcome occurs."""
    generator, example = np.random.default_rng(4), source_of(EXAMPLE)
    leading = dict(list(example.registration["hypotheses"].items())[:1])
    registration = example.registration | {"hypotheses": leading}
    found = []
    for case, (*effects, sd) in enumerate(PLANTED):
        table = planted_metrics(generator, effects, sd, replicates=6, share=SHARES[case % len(SHARES)])
        again = verdicts(tidied(table), pd.DataFrame(), registration)
        assert letters_of(table, None, registration) == again, (effects, sd)
        found += again.values()
    assert set(found) == {"A", "B", "C", "undecided"}


def planted_streams(generator: np.random.Generator, falls: Mapping[str, float], noise: float, replicates: int) -> pd.DataFrame:
    """Scores of five domains, each of which falls by its arm's share of what it learned in every stage after its own."""
    domains, found = "abcde", []
    for arm, fall in falls.items():
        keys = {"arm": arm, "topology": arm[3:], "algorithm": "", "density": 0.5, "method": "full", "order": "main", "stage_steps": 100}
        for seed, stage, own in product(range(replicates), range(6), range(5)):
            score = 0.1 if stage <= own else 0.8 - fall * (stage - own - 1)
            here = {
                "seed": seed,
                "base": seed,
                "stage": stage,
                "stage_domain": "".join(domains[stage - 1 : stage]),
                "domain": domains[own],
            }
            found.append(keys | here | {"kind": "all", "score": score + noise * generator.normal(), "n": 100, "nll": 1.0})
    return pd.DataFrame(found)


def test_letters_of_planted_topologies():
    """The rules of H3: topologies that differ, that differ within the margin, that do not, and that are not measured well enough."""
    generator, example = np.random.default_rng(5), source_of(EXAMPLE)
    registration = example.registration | {"hypotheses": dict(example.registration["hypotheses"])}
    registration["hypotheses"] = {"H1": registration["hypotheses"]["H1"], "H3": registration["hypotheses"]["H3"]}
    arms, found = registration["hypotheses"]["H3"]["arms"], []
    for effect, noise in ((0.05, 0.01), (0.008, 0.005), (0.0, 0.01), (0.03, 0.2)):
        accuracy = planted_streams(generator, {arm: 0.1 + place * effect for place, arm in enumerate(arms)}, noise, replicates=6)
        tables = tidied(accuracy), tidied(accuracy).head(0)
        again = metrics(*tables, tidied(accuracy.head(0)[["domain", "kind"]].assign(value=[])), pd.DataFrame(), set())
        table = [{**run._asdict(), "domain": d, "kind": kind, "metric": name, "value": v} for (run, d, kind, name), v in again.items()]
        table = pd.concat([pd.DataFrame(table), planted_metrics(generator, (0.0, 0.0), 0.01, replicates=6)])
        table = table.assign(seed=table["seed"].astype(int)).drop_duplicates(["arm", "seed", "domain", "metric"])
        letters = verdicts(tidied(table), tables[0], registration)
        assert letters_of(table, accuracy, registration) == letters, (effect, noise)
        found.append(letters["H3"])
    assert set(found) == {"A", "B", "undecided"}


def test_printed_measures(compared):
    """Means, spreads, intervals and contrasts of the stream as the paper's text prints them."""
    values, forms, checked, wrong = compared.printed, {"loss_forgetting": nats, "loss_own": nats, "loss_final": nats}, 0, []

    def compare(key: str, value: float, form, signed: bool = False) -> None:
        nonlocal checked
        if values.get(key) is not None:  # the paper names fewer arms and contrasts than a study may run
            checked += 1
            if not rounds_to(values[key], value, form, signed):
                wrong.append(f"{key}: {values[key]}, again {value}")

    for metric, kind in product(("forgetting", "own", "final", "bwt", "acc", *forms), ("all", "ability", "fact")):
        form, name = forms.get(metric, points), metric + ("" if kind == "all" else f"-{kind}")
        arms = {arm: list(found.values()) for (arm, *rest), found in compared.values.items() if rest == [metric, kind]}
        for arm, found in arms.items():
            centre, n = float(np.mean(found)), len(found)
            compare(f"{name}/{arm}/mean", centre, form)
            compare(f"{name}/{arm}/n", n, count)
            if n < 2:  # one replicate has no spread, and none is printed
                wrong += [key for key in (f"{name}/{arm}/{statistic}" for statistic in ("sd", "ci_low", "ci_high")) if values.get(key)]
                continue
            sd = spread(found)
            half = stats.t.ppf(0.975, n - 1) * sd / math.sqrt(n)
            for statistic, value in {"sd": sd, "ci_low": centre - half, "ci_high": centre + half}.items():
                compare(f"{name}/{arm}/{statistic}", value, form)
        for treatment, control in product(arms, arms):
            if values.get(f"{name}/{treatment}-minus-{control}/estimate") is None:
                continue
            paired = difference(compared.values, treatment, control, f"{metric}/{kind}")
            prefix = f"{name}/{treatment}-minus-{control}"
            for statistic, value in {"estimate": paired.estimate, "ci_low": paired.low, "ci_high": paired.high}.items():
                compare(f"{prefix}/{statistic}", value, form, signed=True)
            compare(f"{prefix}/p", paired.p, p_value)
            compare(f"{prefix}/g", paired.g, nats)
    assert checked > 20 and not wrong, (len(wrong), wrong[:5])


def with_several(source: Source, column: str) -> list[str]:
    """Arms that ran full fine-tuning with several orders or stage lengths of one order; `repeat` is the main order once more."""
    found: dict[tuple[str, str], set] = {}
    for run in source.runs:
        if run.method == "full" and run.order != "repeat" and (run.order == "main" or column == "order"):
            found.setdefault((run.arm, run.seed), set()).add(getattr(run, column))
    return sorted({arm for (arm, _), values in found.items() if len(values) > 1})


def test_frontier(compared):
    """Mean vertical distances by numerical integration, in the package's table and as printed."""
    from sparsecl.frontier import compare_frontiers, frontier_points

    arms = with_several(compared, "stage_steps")
    if "S1-2of4" not in arms:
        pytest.skip("one stage length only")
    table, checked = frontier_points(compared.theirs["metrics"]), 0
    for control, outcome in product(sorted({"D1", "Dnz-0.5"} & set(arms)), ("forgetting", "final")):
        again = frontier_distances(compared.tables["metrics"], "S1-2of4", control, outcome)
        found = compare_frontiers(table, "S1-2of4", control, outcome)
        differences = {str(row.seed): row.difference for row in found.replicates.itertuples()}
        assert set(differences) == set(again) and not disagreements(differences, again, tolerance=1e-5)
        centre, n = float(np.mean(list(again.values()))), len(again)
        half = stats.t.ppf(0.975, n - 1) * spread(list(again.values())) / math.sqrt(n)
        prefix = f"frontier/S1-2of4-minus-{control}/{outcome}"
        for statistic, value in {"estimate": centre, "ci_low": centre - half, "ci_high": centre + half}.items():
            assert abs(read_number(compared.printed[f"{prefix}/{statistic}"]) - 100 * value) < 0.051
            checked += 1
    assert checked >= 6


def test_orders(compared):
    """Variance components with intervals, and the agreement of topologies."""
    from sparsecl.orders import order_cells as their_cells
    from sparsecl.orders import topology_agreement
    from sparsecl.orders import variance_components as their_components

    arms = with_several(compared, "order")
    if not arms:
        pytest.skip("one order only")
    for arm, metric in product(arms, ("forgetting", "final")):
        again = variance_components(order_cells(compared.tables["metrics"], arm, metric))
        found = their_components(their_cells(compared.theirs["metrics"], arm, metric)).set_index("source")
        for name, values in again.items():
            assert all(map(agrees, found.loc[name, ["variance", "ci_low", "ci_high"]], values)), (arm, metric, name)
    sparse = [arm for arm in arms if arm != "D1"]
    found = topology_agreement(compared.theirs["metrics"], sparse, draws=2)
    assert all(map(agrees, (found.value, found.same_direction), agreement(compared.tables["metrics"], sparse, "D1", "forgetting")))


def test_crossover(compared):
    from sparsecl.crossover import crossovers, mean_curves

    if compared.tables["curves"]["score"].isna().all():
        pytest.skip("no scores along the stages")
    arms = ("S1-2of4", "D1")
    if not {(arm, "full", "main") for arm in arms} <= {(run.arm, run.method, run.order) for run in compared.runs}:
        pytest.skip("no pair of a sparse and a dense arm")
    steps = compared.study.continual.stage_steps
    found = crossovers(mean_curves(compared.theirs["curves"], compared.theirs["accuracy"], arms, stage_steps=steps), *arms)
    ours, theirs = (stream_curves(compared.tables["curves"], compared.tables["accuracy"], arm) for arm in arms)
    assert set(found["seed"].astype(str)) == set(ours) == set(theirs)
    for row in found.itertuples():
        again = last_crossing(ours[str(row.seed)], theirs[str(row.seed)])
        assert (row.censored and math.isinf(again)) or agrees(row.step, again), (row, again)
