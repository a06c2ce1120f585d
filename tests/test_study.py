"""The real command end to end on the smoke study: PDF, tables, topology, resuming, reruns."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import yaml

from sparsecl.code_digest import notebook_digest
from sparsecl.masks import load_masks, prunable_weights
from sparsecl.methods import METHODS
from sparsecl.modeling import load_checkpoint
from sparsecl.notebook_runner import check_parameters
from sparsecl.protocol import main_protocol
from sparsecl.study_files import load_study
from sparsecl.tables import COLUMNS, MEASURED_TABLES, file_name, read_tables
from sparsecl.tree import REPOSITORY

STUDY = load_study("smoke")


def command(out: Path, *options: str) -> list[str]:
    return [str(REPOSITORY / "run_all.sh"), "--study", "smoke", "--out", str(out), *options]


def run(out: Path, *options: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(out, *options), capture_output=True, text=True, stdin=subprocess.DEVNULL)


def working_tree() -> str:
    return subprocess.run(["git", "status", "--porcelain"], cwd=REPOSITORY, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """The whole study once; returns the folder given to --out."""
    out = tmp_path_factory.mktemp("smoke")
    before = working_tree()
    finished = run(out)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    assert "jobs done in" in finished.stdout.splitlines()[-1]
    assert working_tree() == before  # a run with --out leaves the repository as it was
    return out


@pytest.fixture(scope="module")
def tables(smoke) -> dict[str, pd.DataFrame]:
    return read_tables(smoke / "smoke" / "results")


def main_rows(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the main protocol: arms that go through the stream in every replicate, none of its further streams."""
    rows = main_protocol(table, stage_steps=STUDY.continual.stage_steps)
    rows = rows[rows["arm"].isin(STUDY.continual.arms)]
    assert set(rows["seed"]) == set(range(STUDY.replicates))
    return rows


def pdf_text(pdf: Path) -> str:
    return subprocess.run(["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True).stdout


def test_the_paper_names_its_study_and_prints_the_tables_numbers(smoke, tables):
    text = pdf_text(smoke / "main.pdf")
    assert text.count("not the paper of record") == text.count("\f")  # on every page
    assert "References" in text and "??" not in text
    metrics = main_rows(tables["metrics"])
    for arm in STUDY.continual.arms:
        own = metrics[(metrics["arm"] == arm) & (metrics["metric"] == "own") & (metrics["kind"] == "all") & (metrics["domain"] == "")]
        assert f"{100 * own['value'].mean():.1f}" in text


def test_tables_keep_the_contract(smoke, tables):
    for table, columns in COLUMNS.items():
        if table == "routing":  # of models with experts
            assert table not in tables
            continue
        assert tuple(tables[table].columns) == columns, table
        assert (smoke / "smoke" / "results" / file_name(table)).is_file()
    accuracy = main_rows(tables["accuracy"])
    domains = [*STUDY.continual.orders["main"], "general"]
    cells = accuracy.groupby(["arm", "seed", "stage", "domain", "kind"]).size()
    assert (cells == 1).all()
    assert len(cells) == len(STUDY.continual.arms) * STUDY.replicates * (len(domains)) * len(domains) * 3
    assert accuracy["score"].between(0, 1).all() and (accuracy["nll"] > 0).all()


def test_metrics_follow_from_accuracy_by_another_route(tables):
    accuracy, metrics = main_rows(tables["accuracy"]), main_rows(tables["metrics"])
    order = STUDY.continual.orders["main"]
    for arm in STUDY.continual.arms:
        for seed in range(STUDY.replicates):
            cells = accuracy[(accuracy["arm"] == arm) & (accuracy["seed"] == seed) & (accuracy["kind"] == "all")]
            score = {(row.stage, row.domain): row.score for row in cells.itertuples()}
            last = len(order)
            losses = [max(score[stage, domain] for stage in range(1, last)) - score[last, domain] for domain in order[:-1]]
            chosen = (metrics["arm"] == arm) & (metrics["seed"] == seed) & (metrics["kind"] == "all") & (metrics["domain"] == "")
            assert metrics[chosen & (metrics["metric"] == "forgetting")]["value"].item() == pytest.approx(np.mean(losses))


def test_items_add_up_to_the_accuracy_table(tables):
    items, accuracy = tables["items"], tables["accuracy"]
    keys = ["arm", "method", "order", "stage_steps", "seed", "stage", "domain", "kind"]
    means = items.groupby(keys).agg(score=("correct", "mean"), nll=("nll", "mean"), n=("item", "size")).reset_index()
    joined = means.merge(accuracy, on=keys, suffixes=("_items", ""))
    assert len(joined) == len(means) > 0
    for column in ("score", "nll", "n"):
        assert joined[f"{column}_items"].to_numpy() == pytest.approx(joined[column].to_numpy())


def test_both_arms_saw_the_same_tokens(tables):
    """Beyond the calibration rows, which D1 trains on and a conversion reads."""
    cost = tables["cost"]
    for job, method in (("02_recover", "recovery"), ("03_continual", "full")):
        tokens = cost[(cost["job"] == job) & (cost["method"] == method)].pivot(index="seed", columns="arm", values="tokens")
        assert (tokens["D1"] == tokens["S1-2of4"]).all() and len(tokens) == STUDY.replicates + (job == "02_recover")
    assert (cost[cost["arm"] == "S1-2of4"]["flops_sparse"] < cost[cost["arm"] == "S1-2of4"]["flops_dense"]).all()


def test_every_probe_and_method_ran_with_its_null(tables):
    drift, gradients, overlap, accuracy = (tables[name] for name in ("drift", "gradients", "overlap", "accuracy"))
    assert set(accuracy["method"]) == set(METHODS)
    rungs = {"Dw-32", "Dw-48"}
    assert rungs < set(overlap["arm"]) == set(gradients["arm"]) and rungs < set(tables["conversion"]["arm"])
    assert set(overlap["selection"]) == set(STUDY.probe.selections) and set(overlap["top_fraction"]) == {0.05, 0.1}
    assert overlap[["value", "null", "null_label", "p_label", "ceiling"]].notna().all(axis=None)
    main = drift[(drift["arm"] == "D1") & (drift["stage_steps"] == STUDY.continual.stage_steps)]
    assert set(main["method"]) == set(METHODS) - {"single", "joint"}
    displaced = main[main["measure"] == "displacement"]
    assert (displaced["value"] > 0).all() and (displaced["null"] > 0).all()
    # Two runs of one fine-tuning end nearer to each other than to where they started.
    full = displaced[(displaced["method"] == "full") & (displaced["stage"] == 5)]
    assert (full["null"] < full["value"]).all()


def test_the_repeat_of_a_stream_saw_other_batches_of_the_same_rows(tables):
    accuracy = tables["accuracy"]
    runs = accuracy[(accuracy["arm"] == "D1") & (accuracy["method"] == "full") & (accuracy["stage_steps"] == STUDY.continual.stage_steps)]
    ends = runs[runs["stage"] == 5].pivot(index=["seed", "domain", "kind"], columns="order", values="nll").dropna()
    assert len(ends) and (ends["main"] != ends["repeat"]).any()


def test_masks_of_updates_are_recorded_against_chance(tables):
    masks = tables["update_masks"]
    pairs = masks[masks["earlier_domain"] != ""]
    drawn = pairs[pairs["method"] == "activation-mask-random"]
    assert drawn["value"].mean() == pytest.approx(drawn["null"].mean(), abs=0.05)
    assert masks.loc[masks["earlier_domain"] == "", "collisions"].between(0, 1).all()


def test_every_sparse_checkpoint_on_disk_keeps_its_zeros(smoke):
    replicate = smoke / "smoke" / "replicate-0"
    masks = load_masks(replicate / "masks" / STUDY.arm("S1-2of4").conversion)
    streams = sorted((replicate / "streams" / "S1-2of4").glob("*-*"))
    assert [folder.name.split("-")[0] for folder in streams] == ["ewc", "full", "full", "full", "lora", "replay"]
    stages = [folder / f"stage-{number}" for folder in streams for number in range(1, len(STUDY.continual.orders["main"]) + 1)]
    for folder in (replicate / "S0-2of4", replicate / "S1-2of4", *stages):
        for name, weight in prunable_weights(load_checkpoint(folder)).items():
            assert (weight[~masks.weights[name]] == 0).all(), f"{folder.name}: {name}"
            assert ((weight != 0).view(-1, 4).sum(1) <= 2).all()


def test_the_readmes_few_lines_apply_a_mask_with_transformers_alone(smoke):
    """Wanda changes no weight, so the dense checkpoint under its mask is the converted one."""
    code = re.search(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.S)[1]
    assert "runs/builtin" in code and "sparsecl" not in code
    namespace: dict = {}
    exec(code.replace("runs/builtin", str(smoke / "smoke")), namespace)
    converted = dict(load_checkpoint(smoke / "smoke" / "replicate-0" / "S0-2of4-wanda").named_parameters())
    for name, weight in namespace["model"].named_parameters():
        assert (weight == converted[name]).all(), name


def test_records_say_where_they_come_from(smoke):
    record = json.loads((smoke / "smoke" / "replicate-1" / "03_continual.json").read_text())
    upstream = json.loads((smoke / "smoke" / "replicate-1" / "02_recover.json").read_text())
    assert record["upstream"]["02_recover"] == upstream["sha256"]
    assert record["settings_sha256"] == STUDY.digest_up_to("03_continual") and record["provenance"]["versions"]["torch"]
    assert record["peak_memory_bytes"] < 3e9
    rates = record["learning_rates"]
    assert set(rates) == set(STUDY.streamed()) and {rates[method] for method in STUDY.swept()} <= set(STUDY.continual.learning_rates)
    assert STUDY.continual.method_learning_rates.items() <= rates.items()


def test_executed_notebooks_are_kept_and_whole(smoke):
    notebooks = sorted((smoke / "smoke" / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 3 + 4 * STUDY.replicates + len(list((smoke / "smoke").glob("05_stats-*.json")))
    for path in notebooks:
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["execution_count"] for cell in cells), path
        assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]


def test_a_second_run_does_nothing(smoke):
    tables_before = (smoke / "smoke" / "tables.json").stat().st_mtime_ns
    finished = run(smoke)
    assert finished.returncode == 0 and "nothing to do" in finished.stdout
    assert (smoke / "smoke" / "tables.json").stat().st_mtime_ns == tables_before


def test_a_changed_seed_is_not_answered_with_old_results(smoke, tmp_path):
    """Same tree, other settings: every job is out of date (a dry run tells)."""
    study = tmp_path / "smoke.yaml"
    study.write_text((REPOSITORY / "configs" / "smoke.yaml").read_text().replace(f"seed: {STUDY.seed}", "seed: 1"))
    finished = subprocess.run(
        [str(REPOSITORY / "run_all.sh"), "--study", str(study), "--out", str(smoke), "--", "-n"], capture_output=True, text=True
    )
    assert finished.returncode == 0
    jobs = 3 + 4 * STUDY.replicates
    assert re.search(rf"replicate_notebook\s+{jobs}\n", (smoke / "smoke" / "snakemake.log").read_text())
    run(smoke, "--", "-n")  # the tree's own settings again, for the tests after this one


def lean(folder: Path) -> Path:
    """The smoke study without the arms and streams beside its main protocol but for the null of drift, as a file of its own."""
    settings = yaml.safe_load((REPOSITORY / "configs" / "smoke.yaml").read_text())
    further = settings["continual"]["further"]
    settings.pop("comparison"), settings["continual"].pop("method_learning_rates")
    settings["continual"].update(further={"repeat": further["repeat"]})
    path = folder / "smoke.yaml"
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def test_a_run_killed_in_the_middle_ends_in_the_same_tables(tables, tmp_path):
    """Here with fewer arms, whose rows must not depend on which others ran."""
    options = ["--study", str(lean(tmp_path)), "--out", str(tmp_path), "--no-pdf"]
    start = [str(REPOSITORY / "run_all.sh"), *options]
    process = subprocess.Popen(start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    stage = tmp_path / "smoke" / "replicate-validation" / "streams" / "D1"
    deadline = time.monotonic() + 600
    while not list(stage.glob("*/stage-2")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)  # the driver alone: its jobs go on, and the next run has to deal with them
    finished = subprocess.run(start, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    assert re.search(r"^stopped what a killed run had left running: .*03_continual replicate-validation", finished.stdout, re.M)
    assert not [process for process in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(process.info["cmdline"] or ())]
    found = read_tables(tmp_path / "smoke" / "results")
    assert set(COLUMNS) - set(found) == {"routing", "update_masks", "stage_measures"}  # of models with experts, and of other methods
    for table in COLUMNS:
        if table in found and table not in MEASURED_TABLES:
            rows = found[table]
            kept = rows[[name for name in ("arm", "method", "order", "stage_steps", "job") if name in rows]].drop_duplicates()
            expected = tables[table].merge(kept) if len(kept.columns) else tables[table]
            assert len(rows) > 0
            # Counts are read as floats where a method of the whole study has none.
            pd.testing.assert_frame_equal(rows, expected, obj=table, check_exact=True, check_dtype=table != "cost")


def test_only_reruns_one_notebook_and_nothing_downstream(smoke):
    before = {path: path.stat().st_mtime_ns for path in (smoke / "smoke").glob("**/0*.json")}
    finished = run(smoke, "--only", "05_stats")
    assert finished.returncode == 0, finished.stderr
    changed = {path.name for path, time_ns in before.items() if path.stat().st_mtime_ns != time_ns}
    assert changed == {"05_stats-main.json"}


def test_a_hand_edited_record_stops_with_its_name_and_costs_no_finished_work(smoke):
    record = smoke / "smoke" / "replicate-0" / "04_probe.json"
    content, times = record.read_bytes(), (record.stat().st_atime_ns, record.stat().st_mtime_ns)
    record.write_bytes(content.replace(b'"value": 0.', b'"value": 1.', 1))
    finished = run(smoke, "--no-pdf")
    assert finished.returncode != 0
    assert "04_probe.json was changed after it was written; delete it and run the same command again" in finished.stderr
    record.write_bytes(content)
    os.utime(record, ns=times)
    notebooks = {path: path.stat().st_mtime_ns for path in (smoke / "smoke").glob("replicate-*/0*.json")}
    assert run(smoke).returncode == 0
    assert all(path.stat().st_mtime_ns == before for path, before in notebooks.items())  # only tables, 05 and the paper ran again


def test_unknown_notebook_parameters_are_refused_before_a_kernel_starts():
    with pytest.raises(ValueError, match=r"unknown parameter\(s\) \['replicat'\]; known: .*'replicate'"):
        check_parameters(REPOSITORY / "notebooks" / "03_continual.ipynb", {"replicat": 1})


def test_a_failing_job_is_named_and_finished_work_stays(tmp_path):
    study = (REPOSITORY / "configs" / "smoke.yaml").read_text().replace("name: smoke", "name: too-fast")
    study = study.replace("learning_rate: 3.0e-3", "learning_rate: 1.0e+30").replace("replicates: 2", "replicates: 2")
    (tmp_path / "too-fast.yaml").write_text(study)
    options = ["--study", str(tmp_path / "too-fast.yaml"), "--out", str(tmp_path), "--no-pdf"]
    finished = subprocess.run([str(REPOSITORY / "run_all.sh"), *options], capture_output=True, text=True)
    assert finished.returncode != 0
    assert "failed: 01_sparsify replicate-0" in finished.stderr
    assert "pretrain width 64: loss is nan" in finished.stderr and "lower learning_rate (now 1e+30)" in finished.stderr
    assert "run the same command again" in finished.stderr


def test_code_digests_of_notebooks_differ():
    digests = {notebook_digest(path) for path in (REPOSITORY / "notebooks").glob("*.ipynb")}
    assert len(digests) == 5


def test_a_model_with_experts_takes_the_same_path(tmp_path):
    study = load_study("smoke-moe")
    call = [str(REPOSITORY / "run_all.sh"), "--study", "smoke-moe", "--out", str(tmp_path), "--no-pdf"]
    finished = subprocess.run(call, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert finished.returncode == 0, finished.stdout[-2000:] + finished.stderr[-4000:]
    tables = read_tables(tmp_path / "smoke-moe" / "results")
    routing = tables["routing"]
    assert {"jsd", "jsd/same-tokens", "top_p_jaccard", "coactivation", "specialisation_max", "load_maxvio", "shared_gate"} <= set(
        routing["measure"]
    )
    assert set(routing.loc[routing["stage"] == 0, "method"]) == {""} and set(routing["layer"]) == set(range(study.model.layers))
    assert set(routing["method"]) - {""} == set(tables["accuracy"]["method"])
    pairs = routing[routing["measure"] == "jsd"]
    assert pairs["value"].between(0, 1).all() and pairs[["null_label", "p_label", "ceiling"]].notna().all(axis=None)
