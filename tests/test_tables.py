"""Tables: compiled from records, identical bytes again, published rows stand in, broken inputs named."""

import pandas as pd
import pytest
from example_tables import example_tables

from sparsecl import published_replicates, records, tables, tree, workflow
from sparsecl.config import VALIDATION
from sparsecl.published_replicates import is_published, published_learning_rates
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
    for module in (tables, published_replicates):
        monkeypatch.setattr(module, "published", lambda name: tmp_path / "results" / name)
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


def test_replicates_are_numbers_wherever_their_rows_come_from():
    """Read from a file in which a column also names the validation replicate, all its replicates are text."""
    replicates = [VALIDATION, *range(12)]
    frame = pd.DataFrame({"seed": replicates, "domain": "code", "kind": "ability", "value": 0.5})
    as_run, as_read = tables.tidy("chance", frame), tables.tidy("chance", frame.assign(seed=frame["seed"].astype(str)))
    pd.testing.assert_frame_equal(as_run, as_read)
    assert as_read["seed"].tolist() == [*range(12), VALIDATION]
    numbers = frame[1:]
    assert tables.tidy("chance", numbers.assign(seed=numbers["seed"].astype(str)))["seed"].dtype == "int64"


def test_finished_replicates_are_published_while_others_are_not(study_tree):
    """A long run publishes what it has; the rows of a replicate are the same as in the complete tables."""
    tables.compile_tables(STUDY, study_tree)
    complete = tables.read_tables(study_tree.path("results"))
    unfinished = study_tree.path("replicate-1", "04_probe.json")
    content = unfinished.read_bytes()
    unfinished.unlink()
    assert tables.publish_finished(STUDY, study_tree) == [VALIDATION, 0]
    assert is_published(STUDY, 0) and not is_published(STUDY, 1)
    partial = tables.read_tables(tables.published("smoke"))
    for name, frame in complete.items():
        expected = frame if name == "learning_rate" else frame[frame["seed"].astype(str) == "0"].reset_index(drop=True)
        pd.testing.assert_frame_equal(partial[name], expected, check_dtype=False, obj=name)
    unfinished.write_bytes(content)
    for notebook in tables.notebooks_of(0):
        study_tree.path("replicate-0", f"{notebook}.json").unlink()  # lost with another machine
    assert tables.publish_finished(STUDY, study_tree) == [VALIDATION, 0, 1]
    again = tables.read_tables(tables.published("smoke"))
    for name, frame in complete.items():
        pd.testing.assert_frame_equal(again[name], frame, obj=name)


def test_what_is_published_is_run_again_unless_the_run_publishes(study_tree, monkeypatch):
    """A lost run goes on from what it published; a plain run runs everything, as on a fresh clone."""
    monkeypatch.setattr(workflow, "is_published", is_published)
    study_tree.path("replicate-1", "04_probe.json").unlink()
    tables.publish_finished(STUDY, study_tree)
    elsewhere = str(study_tree.root.parent / "empty")
    plain = workflow.Plan(STUDY, "smoke", elsewhere, None, pdf=False)
    assert plain.reused() == [] and len(plain.records()) == 3 + 4 * STUDY.replicates
    going_on = workflow.Plan(STUDY, "smoke", elsewhere, None, pdf=False, publishes=True)
    assert going_on.reused() == [VALIDATION, 0]
    assert going_on.records() == [f"replicate-1/{notebook}.json" for notebook in tables.NOTEBOOKS]
    assert going_on.upstream("03_continual", "1") == ["replicate-1/02_recover.json"]  # not the validation replicate


def test_a_publication_that_fails_does_not_stop_the_run(study_tree, monkeypatch, capsys):
    watch = workflow.Publication(workflow.Plan(STUDY, "smoke", str(study_tree.root.parent), None, pdf=False, publishes=True))
    watch._known = set()  # as before the first replicate was finished

    def fail(*_):
        raise ValueError("two rows of one key")

    monkeypatch.setattr(tables, "publish_finished", fail)
    watch()
    assert capsys.readouterr().err == "not published now, the run goes on: two rows of one key\n"
    monkeypatch.undo()
    watch()
    assert capsys.readouterr().err == "", "it is tried again when one more replicate is finished"


def test_nothing_is_published_before_the_first_replicate_of_the_results(study_tree):
    for replicate in (0, 1):
        study_tree.path(f"replicate-{replicate}", "04_probe.json").unlink()
    assert tables.publish_finished(STUDY, study_tree) == []
    assert not tables.published("smoke").exists()


def test_published_learning_rates_are_those_that_were_chosen(study_tree):
    assert published_learning_rates(STUDY) is None
    tables.compile_tables(STUDY, study_tree)
    tables.publish(STUDY, study_tree, None)
    swept = tables.read_tables(study_tree.path("results"))["learning_rate"]
    assert published_learning_rates(STUDY) == {"full": swept.loc[swept["chosen"], "learning_rate"].iloc[0]}


def test_rows_published_under_other_settings_do_not_stand_in(study_tree):
    tables.compile_tables(STUDY, study_tree)
    tables.publish(STUDY, study_tree, None)
    other = STUDY.model_copy(update={"seed": 1})
    assert is_published(STUDY, 0) and not is_published(other, 0)
    assert not is_published(STUDY, 2)


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
    with pytest.raises(
        records.BrokenFile, match="study smoke has no tables of its settings yet: none in .*; run ./run_all.sh --study smoke"
    ):
        tables.tables_directory(STUDY, tree.Tree(tmp_path / "smoke"))


def test_compiled_tables_of_other_settings_do_not_pass_for_the_studys(study_tree, tmp_path, monkeypatch):
    """An earlier run's tables must not stand in for the committed ones after the study's file has changed."""
    monkeypatch.setattr(tables, "published", lambda name: tmp_path / "none")
    tables.compile_tables(STUDY, study_tree)
    assert tables.tables_directory(STUDY, study_tree) == study_tree.path("results")
    changed = STUDY.model_copy(update={"seed": STUDY.seed + 1})
    with pytest.raises(records.BrokenFile, match="results are of other settings"):
        tables.tables_directory(changed, study_tree)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "published.json").write_text("{}")
    assert tables.tables_directory(changed, study_tree) == tmp_path / "none"


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in tree.REPOSITORY.glob("results/*/published.json")))
def test_published_tables_belong_to_the_settings_that_are_shipped(folder):
    """A changed study needs its tables made again; otherwise the paper would show another study's numbers."""
    assert records.read_json(tables.published(folder) / "published.json")["settings_sha256"] == load_study(folder).digest()
