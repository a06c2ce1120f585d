"""Records -> tidy tables: `runs/<study>/results/*.csv`, and their copy in `results/<study>/` (paper, Data availability).

Tables are UTF-8, sorted by their keys, floats as shortest repr, absent values empty. A replicate without
a record counts as done where it is published under the same settings. Nothing here imports torch.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sparsecl.config import VALIDATION, Study, replicate_name
from sparsecl.efficiency import joint_efficiency_rows
from sparsecl.metrics import metrics_table
from sparsecl.published_replicates import is_published
from sparsecl.records import BrokenFile, read_record, sha256_of, write_json, write_record
from sparsecl.tree import Tree, published

ARM = ("arm", "topology", "algorithm", "density")
RUN = (*ARM, "method", "order", "stage_steps", "base", "seed")
SCORE = ("domain", "kind", "score", "n", "nll")
INFERENCE_VALUES = ("gain_theoretical", "gain_measured", "seconds_dense", "seconds")
COLUMNS: dict[str, tuple[str, ...]] = {
    "accuracy": (*RUN, "stage", "stage_domain", *SCORE),
    "curves": (*RUN, "stage", "stage_domain", "step", "tokens", *SCORE),
    "items": ("arm", "method", "order", "stage_steps", "seed", "stage", "domain", "kind", "item", "correct", "nll"),
    "conversion": (*ARM, "base", "seed", "metric", "value"),
    "cost": ("arm", "method", "seed", "job", "tokens", "flops_dense", "flops_sparse", "trainable", "masked"),
    "timings": ("arm", "method", "seed", "job", "wall_s", "peak_memory_bytes", "device", "dtype"),
    "overlap": (
        "arm",
        "seed",
        "layer",
        "domain_a",
        "domain_b",
        "selection",
        "top_fraction",
        "value",
        "null",
        "null_label",
        "p_label",
        "ceiling",
    ),
    "gradients": (
        *("arm", "seed", "layer", "module", "domain_a", "domain_b", "measure"),
        *("value", "null", "null_label", "p_label", "ceiling", "parameters", "effective_dimension"),
    ),
    "routing": (
        *("arm", "method", "seed", "stage", "layer", "domain_a", "domain_b", "measure"),
        *("value", "null_label", "p_label", "ceiling"),
    ),
    "drift": (
        *("arm", "method", "order", "stage_steps", "seed", "stage", "stage_domain", "layer", "measure"),
        *("value", "null", "floor"),
    ),
    "update_masks": (
        *("arm", "method", "order", "stage_steps", "seed", "stage", "stage_domain", "earlier_domain", "layer"),
        *("value", "null", "collisions"),
    ),
    "stage_measures": (*("arm", "method", "order", "stage_steps", "seed", "stage", "stage_domain", "measure"), "value"),
    "inference": ("arm", "seed", "stack", "rows", "tokens", "kernel", *INFERENCE_VALUES, "device", "dtype"),
    "chance": ("seed", "domain", "kind", "value"),
    "learning_rate": ("arm", "method", "learning_rate", "domain", "kind", "own", "final", "nll_own", "nll_final", "chosen"),
}
NAMES = (
    "arm",
    "topology",
    "algorithm",
    "method",
    "order",
    "base",
    "stage_domain",
    "domain",
    "domain_a",
    "domain_b",
    "earlier_domain",
    "module",
    "measure",
    "kind",
    "metric",
    "selection",
    "job",
    "stack",
    "kernel",
)
VALUES = (
    "score",
    "n",
    "nll",
    "value",
    "own",
    "final",
    "nll_own",
    "nll_final",
    "chosen",
    "correct",
    "null",
    "null_label",
    "p_label",
    "ceiling",
    "parameters",
    "effective_dimension",
    "floor",
    "collisions",
    *INFERENCE_VALUES,
)
WHOLE = ("tokens", "flops_dense", "flops_sparse", "trainable", "masked")  # counts stay whole numbers where some are absent
MEASURED_TABLES = ("timings", "inference")  # differ between two runs of the same study; every other table does not
NOTEBOOKS = ("01_sparsify", "02_recover", "03_continual", "04_probe")
TABLES_RECORD = "tables.json"


def notebooks_of(replicate: int | str) -> tuple[str, ...]:
    """The notebooks a replicate runs: the validation replicate only chooses a learning rate."""
    return NOTEBOOKS[:3] if replicate == VALIDATION else NOTEBOOKS


def file_name(table: str) -> str:
    return f"{table}.parquet" if table == "items" else f"{table}.csv"


def write_table(table: str, frame: pd.DataFrame, directory: Path) -> Path:
    """Write one table sorted by its key columns."""
    path = directory / file_name(table)
    if table == "items":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)
    return path


def read_table(table: str, directory: Path) -> pd.DataFrame:
    """Read one table; BrokenFile names the file and a missing column."""
    path = directory / file_name(table)
    if not path.is_file():
        raise BrokenFile(f"{path} does not exist; run the study, or restore the committed tables with git")
    frame = pd.read_parquet(path) if table == "items" else _read_csv(path)
    missing = [column for column in COLUMNS.get(table, ()) if column not in frame]
    if missing:
        raise BrokenFile(f"{path} lacks the column(s) {missing}; found {list(frame.columns)}; compile the tables again")
    return frame


def _read_csv(path: Path) -> pd.DataFrame:
    """Absent numbers are NaN, absent names empty strings."""
    frame = pd.read_csv(path, dtype={name: str for name in NAMES}, keep_default_na=True)
    return frame.fillna({name: "" for name in NAMES if name in frame})


def tidy(table: str, rows: Sequence[dict] | pd.DataFrame) -> pd.DataFrame:
    """Order columns and rows; a row with other columns than the contract's raises."""
    frame = pd.DataFrame(rows, columns=None if len(rows) else COLUMNS[table])
    if set(frame.columns) != set(COLUMNS[table]):
        raise BrokenFile(
            f"table {table}: columns {sorted(set(frame.columns) ^ set(COLUMNS[table]))} differ from the contract; "
            "delete the record and run again"
        )
    if table == "cost":
        frame = frame.astype({name: "Int64" for name in WHOLE})
    frame = frame[list(COLUMNS[table])].assign(**{column: _replicates(frame[column]) for column in ("seed", "base") if column in frame})
    keys = [column for column in frame.columns if column not in VALUES]
    # Seeds are numbers except the validation replicate's, and stages sort as numbers.
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def _replicates(names: pd.Series) -> pd.Series:
    """Replicates as numbers, whether they come from a record or were read from a column that also names `validation`.

    One order and one type of rows, wherever they come from.
    """
    return names.astype(object).map({name: replicate_name(name) for name in names.unique()}).infer_objects()


def _rows_of_replicate(study: Study, tree: Tree, replicate: int | str) -> dict[str, list[pd.DataFrame]]:
    frames: dict[str, list[pd.DataFrame]] = {}
    for notebook in notebooks_of(replicate):
        path = tree.path(tree.replicate(replicate), f"{notebook}.json")
        record = read_record(path)
        if record["settings_sha256"] != study.digest_up_to(notebook):
            raise BrokenFile(f"{path} was made with other settings of study {study.name}; run ./run_all.sh --study {study.name} again")
        for table, rows in record["tables"].items():
            if rows:
                frames.setdefault(table, []).append(pd.DataFrame(rows))
    return frames


def _published_rows(study: Study, replicate: int | str) -> dict[str, list[pd.DataFrame]]:
    directory = published(study.name)
    frames = {table: read_table(table, directory) for table in COLUMNS if (directory / file_name(table)).is_file()}
    swept = frames.pop("learning_rate", None)  # has no seed: it is the validation replicate's own
    rows = {table: [frame[frame["seed"].astype(str) == str(replicate)]] for table, frame in frames.items()}
    return rows | ({"learning_rate": [swept]} if replicate == VALIDATION and swept is not None else {})


def is_finished(study: Study, tree: Tree, replicate: int | str) -> bool:
    """Whether this tree holds all records of a replicate, under these settings."""
    for notebook in notebooks_of(replicate):
        path = tree.path(tree.replicate(replicate), f"{notebook}.json")
        if not path.is_file() or read_record(path)["settings_sha256"] != study.digest_up_to(notebook):
            return False
    return True


def _collect(study: Study, tree: Tree, replicates: Sequence[int | str]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """All tables of the replicates but the derived ones, and where each replicate's rows come from: `run` or `published`."""
    collected: dict[str, list[pd.DataFrame]] = {}
    sources: dict[str, str] = {}
    for replicate in replicates:
        last = tree.path(tree.replicate(replicate), f"{notebooks_of(replicate)[-1]}.json")
        sources[str(replicate)] = "run" if last.is_file() or not is_published(study, replicate) else "published"
        rows = _rows_of_replicate(study, tree, replicate) if sources[str(replicate)] == "run" else _published_rows(study, replicate)
        for table, frames in rows.items():
            collected.setdefault(table, []).extend(frames)
    return {table: tidy(table, pd.concat(parts, ignore_index=True)) for table, parts in collected.items()}, sources


def _write_all(frames: dict[str, pd.DataFrame], directory: Path) -> None:
    """Write the tables, and metrics.csv, to an empty directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for table, frame in frames.items():
        write_table(table, frame, directory)
    # Metrics are computed from the tables as written, so that anyone can recompute them from the files.
    written = {table: read_table(table, directory) for table in ("accuracy", "curves", "chance", "cost")}
    metrics = metrics_table(written["accuracy"], written["curves"], chance_scores(written["chance"]))
    metrics = pd.concat([metrics, joint_efficiency_rows(metrics, written["cost"])], ignore_index=True)
    metrics.to_csv(directory / "metrics.csv", index=False)


def _put_in_place(partial: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)


def compile_tables(study: Study, tree: Tree) -> Path:
    """Compile all replicates' records (or published rows) into `<tree>/results/`; return the record of that."""
    frames, sources = _collect(study, tree, study.replicate_names())
    results, partial = tree.path("results"), tree.path(".results.partial")
    _write_all(frames, partial)
    _put_in_place(partial, results)
    path = tree.path(TABLES_RECORD)
    files = {file.name: sha256_of(file) for file in sorted(results.iterdir())}
    write_record(path, {"study": study.name, "settings_sha256": study.digest(), "sources": sources, "files": files})
    return path


def chance_scores(chance: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Score of guessing by (domain, kind), the mean over replicates; absent where guessing has no score."""
    return chance.groupby(["domain", "kind"])["value"].mean().to_dict()


def tables_directory(study: Study, tree: Tree) -> Path:
    """Where a study's tables are: compiled in this tree, else compiled in the default one, else committed.

    Compiled tables of other settings, left by an earlier run, do not count.
    """
    found = tree.find(TABLES_RECORD)
    if found is not None and read_record(found)["settings_sha256"] == study.digest():
        return found.parent / "results"
    if (published(study.name) / "published.json").is_file():
        return published(study.name)
    seen = f"none in {tree.path('results')}" if found is None else f"those in {found.parent / 'results'} are of other settings"
    raise BrokenFile(
        f"study {study.name} has no tables of its settings yet: {seen}, none in results/{study.name}; run ./run_all.sh --study {study.name}"
    )


def read_tables(directory: Path) -> dict[str, pd.DataFrame]:
    """Every table present in a results folder, by name."""
    tables = {table: read_table(table, directory) for table in COLUMNS if (directory / file_name(table)).is_file()}
    return tables | {"metrics": _read_csv(directory / "metrics.csv")}


def publish(study: Study, tree: Tree, tests: Path | None) -> Path:
    """Copy the compiled tables (and the tests) to `results/<study>/` in one rename; refuse those of other settings."""
    record = read_record(tree.path(TABLES_RECORD))
    if record["settings_sha256"] != study.digest():
        raise BrokenFile(f"the tables of {study.name} were compiled under other settings; run the study again before --publish")
    partial = _partial_publication(study)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(tree.path("results"), partial)
    if tests is not None:
        shutil.copy(tests, partial / "tests.csv")
    return _publish(study, partial, study.replicate_names())


def publish_finished(study: Study, tree: Tree) -> list[int | str]:
    """Publish every replicate that is finished in this tree or was published before; return them.

    Without the tests, which need all replicates. Nothing is written before the first replicate that enters results.
    """
    replicates = [name for name in study.replicate_names() if is_finished(study, tree, name) or is_published(study, name)]
    if all(name == VALIDATION for name in replicates):
        return []
    partial = _partial_publication(study)
    frames, _ = _collect(study, tree, replicates)
    _write_all(frames, partial)
    _publish(study, partial, replicates)
    return replicates


def _partial_publication(study: Study) -> Path:
    target = published(study.name)
    return target.with_name(f".{study.name}.partial")


def _publish(study: Study, partial: Path, replicates: Sequence[int | str]) -> Path:
    write_json(partial / "published.json", {"settings_sha256": study.digest(), "replicates": list(replicates)})
    target = published(study.name)
    _put_in_place(partial, target)
    return target
