"""The paper's tables as LaTeX, drawn from the tidy tables alone (paper, all tables).

Each function returns the `tabular` of one table (booktabs), or None where its numbers were not measured;
captions and labels stand in the text. Absent cells are dashes.
"""

from collections.abc import Iterable, Mapping

import pandas as pd

from sparsecl.arms import parse_arm
from sparsecl.comparisons import result_rows
from sparsecl.config import Study
from sparsecl.figure_style import main_rows
from sparsecl.latex_tables import bare_p, contrast_label, mean_cell, tabular
from sparsecl.number_formats import DASH, count, interval, is_absent, latex_text, nats, points, rate
from sparsecl.paper_arms import REFERENCE, TREATMENT
from sparsecl.paper_parts import MAIN
from sparsecl.paper_samples import METRIC_NAMES, STREAM_METRICS, Sample, contrast_test, main_metrics, stream_sample
from sparsecl.paper_tables_conversion import algorithms_table, conversion_table, topologies_table
from sparsecl.paper_tables_efficiency import efficiency_table, fractions_table, kernels_table
from sparsecl.paper_tables_implicit import implicit_tables
from sparsecl.paper_tables_streams import (
    controls_table,
    doses_table,
    frontier_table,
    methods_table,
    orders_table,
    stream_topologies_table,
)
from sparsecl.paper_values import STREAM_ARMS
from sparsecl.paper_values_design import chosen_learning_rates, design_facts
from sparsecl.paper_values_implicit import PARTS
from sparsecl.paper_verdicts import verdicts_table

STREAM_CONTRAST = (TREATMENT, REFERENCE)


def _contrast_cells(sample: Sample, tests: pd.DataFrame, metric: str, form) -> list[str | None]:
    """Difference, interval, corrected p and effect size of the stream's main contrast."""
    found = sample.paired(*STREAM_CONTRAST) | contrast_test(tests, *STREAM_CONTRAST, metric)
    return [
        form(found.get("estimate"), True),
        interval(found.get("ci_low"), found.get("ci_high"), form, True),
        bare_p(found.get("p_holm")),
        nats(found.get("g")),
    ]


def _metric_rows(metrics: pd.DataFrame, tests: pd.DataFrame, names: Iterable[str], kind: str = "all") -> list[list[str | None]]:
    rows = []
    for name in names:
        sample, form = stream_sample(metrics, name, kind), STREAM_METRICS[name]
        if sample.wide.empty:
            continue
        tested = name if kind == "all" else f"{name}/{kind}"
        label = METRIC_NAMES[name] + ("" if kind == "all" else f", {kind}")
        rows.append([label, *(mean_cell(sample.summary(arm), form) for arm in STREAM_ARMS), *_contrast_cells(sample, tests, tested, form)])
    return rows


def _metric_heading() -> list[str]:
    labels = [parse_arm(arm).label for arm in STREAM_ARMS]
    return ["measure", *labels, contrast_label(*STREAM_CONTRAST), r"95\,\% interval", "$p$ (Holm)", "$g$"]


def metrics_table(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """Scores of the stream: each metric by arm, the paired difference with its interval, corrected p and effect size."""
    metrics, tests = main_rows(tables["metrics"]), tables.get("tests", pd.DataFrame())
    first = _metric_rows(metrics, tests, ("own", "final", "forgetting"))
    beside = _metric_rows(metrics, tests, ("bwt", "retention", "acc", "fwt", "learning_speed", "general_retention"))
    kinds = [row for kind in ("ability", "fact") for row in _metric_rows(metrics, tests, ("own", "final", "forgetting"), kind)]
    groups = [group for group in (first, beside, kinds) if group]
    rows = [row for group in groups for row in (*group, r"\addlinespace")][:-1]
    return tabular("lcccccc", _metric_heading(), rows) if rows else None


def losses_table(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """Answer-token losses of the stream by arm, with the paired difference (nats)."""
    names = ("loss_own", "loss_final", "loss_forgetting", "general_loss_rise")
    rows = _metric_rows(main_rows(tables["metrics"]), tables.get("tests", pd.DataFrame()), names)
    return tabular("lcccccc", _metric_heading(), rows) if rows else None


def domains_table(tables: Mapping[str, pd.DataFrame], chance: Mapping[tuple[str, str], float] | None = None) -> str | None:
    """Own score, final score and forgetting by domain and arm; the level of guessing beside them where it is known."""
    accuracy, metrics = main_rows(tables["accuracy"]), main_rows(tables["metrics"])
    if accuracy["score"].isna().all():
        return None
    stages = accuracy[accuracy["stage"] > 0].drop_duplicates("stage").sort_values("stage")
    labels = [parse_arm(arm).label for arm in STREAM_ARMS]
    guessing = ["chance"] if chance else []
    above = [rf"\multicolumn{{2}}{{c}}{{{name}}}" for name in ("own", "final", "forgetting")]
    rules = "".join(rf"\cmidrule(lr){{{start}-{start + 1}}}" for start in range(2 + len(guessing), 8 + len(guessing), 2))
    heading = (
        " & ".join(["", *([""] if chance else []), *above])
        + r" \\"
        + rules
        + "\n"
        + " & ".join(["domain", *guessing, *labels * 3])
        + r" \\"
    )
    rows = []
    for domain in stages["stage_domain"]:
        cells = [
            mean_cell(stream_sample(metrics, name, domain=domain).summary(arm), points)
            for name in ("own", "final", "forgetting")
            for arm in STREAM_ARMS
        ]
        level = [value for (name, _), value in (chance or {}).items() if name == domain and not is_absent(value)]
        rows.append([latex_text(domain), *([points(sum(level) / len(level)) if level else None] if chance else []), *cells])
    last = accuracy[accuracy["stage"] == accuracy["stage"].max()]
    own_of_last = last[(last["domain"] == last["stage_domain"]) & (last["kind"] == "all")]
    wide = Sample(own_of_last.pivot_table(index="seed", columns="arm", values="score"))
    rows[-1][1 + len(guessing) : 3 + len(guessing)] = [mean_cell(wide.summary(arm), points) for arm in STREAM_ARMS]
    return tabular("l" + "c" * (6 + len(guessing)), heading, rows)


def settings_table(study: Study, tables: Mapping[str, pd.DataFrame]) -> str:
    """Model, data and training of the study."""
    known = design_facts(study, tables)
    facts, grid = {name: DASH if value is None else value for name, value in known.items()}, known["learning_rate_grid"]
    chosen = chosen_learning_rates(tables.get("learning_rate"), study, STREAM_ARMS)
    stages = ", ".join(dict.fromkeys(chosen[f"learning_rate/{arm}"] or DASH for arm in STREAM_ARMS))
    pruning = f"{latex_text(study.sparsify.algorithm)}, {facts['calibration_rows']} calibration rows, damping {facts['dampening']}"
    decay = f"weight decay {facts['weight_decay']}, gradient norm at most {facts['clip']}"
    layers = f"{facts['layers']} layers, hidden {facts['hidden']}, FFN {facts['ffn']}"
    rows = [
        ["architecture", f"Qwen3, {layers}, {facts['heads']} heads, {facts['kv_heads']} key-value heads of width {facts['head_dim']}"],
        ["parameters", f"{facts.get('parameters') or DASH}, of which {facts.get('masked') or DASH} are removed in the sparse arm"],
        ["tokenizer", f"byte-level BPE, {facts['vocabulary']} tokens, rows of at most {facts['max_length']} tokens"],
        ["pretraining", _training(study.pretrain)],
        ["conversion", pruning],
        ["extra training of S1 and D1", _training(study.recover)],
        ["a stage", f"{facts['stage_steps']} steps of {facts['stage_batch']} rows, answer tokens only"],
        ["stage learning rate", f"{stages}, " + (f"chosen for both arms from {grid}" if grid else "given for both arms")],
        ["optimizer", f"AdamW, cosine schedule, {decay}, {facts['dtype']}"],
        ["scored items", f"{facts['test_items']} a domain, {facts['general_items']} of the general mixture"],
    ]  # fmt: skip
    return tabular("lp{0.71\\linewidth}", ["setting", "value"], rows)


def _training(stage) -> str:
    return f"{count(stage.steps)} steps of {count(stage.batch)} rows, peak learning rate {rate(stage.learning_rate)}"


COSTS = {  # by job and method
    ("01_sparsify", "conversion"): "conversion",
    ("02_recover", "calibration"): "calibration rows",
    ("02_recover", "recovery"): "extra training",
    ("03_continual", "full"): "stream",
}


def costs_table(tables: Mapping[str, pd.DataFrame]) -> str | None:
    """Training effort per replicate by arm and job: tokens, FLOPs counted dense and counted sparse, seconds."""
    cost, timings = tables.get("cost"), tables.get("timings")
    if cost is None or cost.empty:
        return None
    cost, timings = result_rows(cost), None if timings is None else result_rows(timings)
    rows = []
    for (job, method), name in COSTS.items():
        for arm in (*STREAM_ARMS, "S0-2of4"):
            here, timed = (
                table[(table["job"] == job) & (table["method"] == method) & (table["arm"] == arm)]
                for table in (cost, cost.assign(wall_s=float("nan")) if timings is None else timings)
            )
            seconds = timed["wall_s"].dropna()
            if here.empty:
                continue
            flops = [rate(float(f"{here[column].mean():.2e}")) for column in ("flops_dense", "flops_sparse")]
            rows.append(
                [name, parse_arm(arm).label, count(here["tokens"].mean()), *flops, f"{seconds.mean():.1f}" if len(seconds) else None]
            )
    heading = ["", "arm", "tokens", "FLOPs, all weights", "FLOPs, kept weights", "seconds"]
    return tabular("llcccc", heading, rows) if rows else None


def part_tables(
    study: Study,
    tables: Mapping[str, pd.DataFrame],
    chance: Mapping[tuple[str, str], float] | None = None,
    verdicts: Mapping | None = None,
    statements: Mapping[str, str] | None = None,
    part: str = MAIN,
) -> dict[str, str]:
    """Every LaTeX table of one part that this study measured, by file name without suffix.

    `verdicts` and `statements` are those of `sparsecl.paper_values.part_values`.
    """
    found: dict[str, str | None] = {"verdicts": verdicts_table(verdicts or {}, statements or {})}
    found |= implicit_tables(part, study, tables) if part in PARTS else _stream_part_tables(study, tables, chance)
    return {name: text for name, text in found.items() if text is not None}


def _stream_part_tables(
    study: Study, tables: Mapping[str, pd.DataFrame], chance: Mapping[tuple[str, str], float] | None
) -> dict[str, str | None]:
    """The tables of a part about arms in a stream, without its verdicts."""
    found: dict[str, str | None] = {"settings": settings_table(study, tables), "costs": costs_table(tables)}
    found |= {"efficiency": efficiency_table(study, tables), "fractions": fractions_table(study, tables)}
    found |= {"kernels": kernels_table(study, tables)}
    if len(tables.get("metrics", ())):
        found |= _metrics_tables(study, tables, chance)
    if len(tables.get("conversion", ())):
        found |= {"conversion": conversion_table(study, tables)}
        found |= {"topologies": topologies_table(tables), "algorithms": algorithms_table(tables)}
    return found


def _metrics_tables(
    study: Study, tables: Mapping[str, pd.DataFrame], chance: Mapping[tuple[str, str], float] | None
) -> dict[str, str | None]:
    """The tables that are drawn from the metrics: of the main protocol, and of further streams."""
    steps, tests = study.continual.stage_steps, tables.get("tests", pd.DataFrame())
    main = main_metrics(tables["metrics"], steps)
    of_main = {**tables, "metrics": main}
    return {
        "metrics": metrics_table(of_main),
        "losses": losses_table(of_main),
        "domains": domains_table(of_main, chance) if len(tables.get("accuracy", ())) else None,
        "controls": controls_table(main, tests),
        "stream_topologies": stream_topologies_table(main, tests),
        "doses": doses_table(main),
        "frontier": frontier_table(tables["metrics"], steps),
        "orders": orders_table(tables["metrics"], steps),
        "methods": methods_table(study, tables["metrics"]),
    }
