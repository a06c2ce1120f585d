"""Tables: compiled from records, identical bytes again, published rows stand in, broken inputs named."""

import pandas as pd
import pytest
from example_tables import example_tables

from sparsecl import records, tables, tree
from sparsecl.config import VALIDATION
from sparsecl.study_files import load_study

STUDY = load_study("smoke")
PIECES = {
    "01_sparsify": ["conversion"],
    "02_recover": ["cost"],
    "03_continual": ["accuracy", "curves", "chance", "timings"],
    "04_probe": ["overlap"],
}


def chance_table() -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"seed": seed, "domain": domain, "kind": kind, "value": 0.1}
            for seed in (0, 1)
            for domain in ("code", "math")
            for kind in ("ability", "fact")
        ]
    )


def rows_of(frame: pd.DataFrame) -> list[dict]:
    return frame.astype(object).where(frame.notna(), None).to_dict("records")


@pytest.fixture
def study_tree(tmp_path, monkeypatch) -> tree.Tree:
    """Records of two replicates and the validation replicate, as the notebooks leave them."""
    monkeypatch.setattr(tables, "published", lambda name: tmp_path / "results" / name)
    root = tree.Tree(tmp_path / "smoke")
    frames = {**example_tables(replicates=2), "chance": chance_table()}
    for replicate in STUDY.replicate_names():
        for notebook in tables.notebooks_of(replicate):
            content = {"settings_sha256": STUDY.digest_up_to(notebook), "tables": {}}
            if replicate == VALIDATION and notebook == "03_continual":
                content["tables"] = {"learning_rate": rows_of(frames["learning_rate"].reindex(columns=tables.COLUMNS["learning_rate"]))}
            elif replicate != VALIDATION:
                for name in PIECES[notebook]:
                    frame = frames[name]
                    content["tables"][name] = rows_of(frame[frame["seed"] == replicate].sample(frac=1, random_state=1))
            records.write_record(root.path(f"replicate-{replicate}", f"{notebook}.json"), content)
    return root


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".csv", ".parquet")}


def test_compiling_sorts_and_twice_gives_the_same_bytes(study_tree):
    tables.compile_tables(STUDY, study_tree)
    first = contents(study_tree.path("results"))
    tables.compile_tables(STUDY, study_tree)
    assert contents(study_tree.path("results")) == first
    accuracy = tables.read_tables(study_tree.path("results"))["accuracy"]
    keys = ["arm", "seed", "stage", "domain", "kind"]
    assert not accuracy.duplicated(keys).any()
    assert accuracy["seed"].tolist() == accuracy.sort_values(["arm", "seed"], kind="stable")["seed"].tolist()


def test_absent_values_stay_absent(study_tree, tmp_path):
    frame = example_tables(replicates=2)["accuracy"].assign(score=float("nan"))
    tables.write_table("accuracy", tables.tidy("accuracy", frame), tmp_path)
    read = tables.read_table("accuracy", tmp_path)
    assert read["score"].isna().all() and (read.loc[read["arm"] == "D1", "topology"] == "").all()


def test_published_rows_stand_in_for_replicates_that_were_not_run(study_tree):
    tables.compile_tables(STUDY, study_tree)
    complete = contents(study_tree.path("results"))
    tables.publish(STUDY, study_tree, None)
    assert contents(tables.published("smoke")) == complete
    for notebook in tables.notebooks_of(1):
        study_tree.path("replicate-1", f"{notebook}.json").unlink()
    record = records.read_record(tables.compile_tables(STUDY, study_tree))
    assert record["sources"] == {"validation": "run", "0": "run", "1": "published"}
    assert contents(study_tree.path("results")) == complete


def test_rows_published_under_other_settings_do_not_stand_in(study_tree):
    tables.compile_tables(STUDY, study_tree)
    tables.publish(STUDY, study_tree, None)
    other = STUDY.model_copy(update={"seed": 1})
    assert tables.is_published(STUDY, 0) and not tables.is_published(other, 0)
    assert not tables.is_published(STUDY, 2)


def test_a_record_of_other_settings_is_refused(study_tree):
    with pytest.raises(records.BrokenFile, match="was made with other settings of study smoke"):
        tables.compile_tables(STUDY.model_copy(update={"seed": 1}), study_tree)


def test_a_setting_of_a_later_notebook_leaves_earlier_records_valid():
    other = STUDY.model_copy(update={"probe": STUDY.probe.model_copy(update={"permutations": 7})})
    assert other.digest_up_to("03_continual") == STUDY.digest_up_to("03_continual")
    assert other.digest_up_to("04_probe") != STUDY.digest_up_to("04_probe")
    faster = STUDY.model_copy(update={"recover": STUDY.recover.model_copy(update={"steps": 7})})
    assert faster.digest_up_to("01_sparsify") == STUDY.digest_up_to("01_sparsify")
    assert all(faster.digest_up_to(name) != STUDY.digest_up_to(name) for name in tables.NOTEBOOKS[1:])


def test_a_missing_record_names_the_file(study_tree):
    study_tree.path("replicate-1", "04_probe.json").unlink()
    with pytest.raises(records.BrokenFile, match="replicate-1/04_probe.json does not exist"):
        tables.compile_tables(STUDY, study_tree)


def test_a_missing_column_is_named(study_tree):
    tables.compile_tables(STUDY, study_tree)
    path = study_tree.path("results", "accuracy.csv")
    pd.read_csv(path).drop(columns="nll").to_csv(path, index=False)
    with pytest.raises(records.BrokenFile, match=r"accuracy.csv lacks the column\(s\) \['nll'\]"):
        tables.read_tables(study_tree.path("results"))


def test_rows_with_other_columns_than_the_contract_are_refused():
    with pytest.raises(records.BrokenFile, match="columns .*'note'.* differ from the contract"):
        tables.tidy("chance", chance_table().assign(note="x"))


def test_no_tables_anywhere_names_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "published", lambda name: tmp_path / "none")
    with pytest.raises(records.BrokenFile, match="study smoke has no tables yet.*run ./run_all.sh --study smoke"):
        tables.tables_directory(STUDY, tree.Tree(tmp_path / "smoke"))


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in tree.REPOSITORY.glob("results/*/published.json")))
def test_published_tables_belong_to_the_settings_that_are_shipped(folder):
    """A changed study needs its tables made again; otherwise the paper would show another study's numbers."""
    study = load_study(folder)
    assert all(tables.is_published(study, replicate) for replicate in study.replicate_names())
