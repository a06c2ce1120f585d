"""The paper: registered keys, number formats, generated tables, and a build that stops where a number is unknown."""

import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from example_tables import example_tables

from sparsecl import number_formats, paper_tables, paper_values, publication
from sparsecl.paper_values import part_values, registered_keys
from sparsecl.publication import PAPER, PaperError, build_paper, values_tex, write_part
from sparsecl.study_files import load_study

PARTS = ("main", "realtext", "implicit", "moe")
SECTIONS = sorted((PAPER / "sections").glob("*.tex"))
TEXT = "\n".join(path.read_text(encoding="utf-8") for path in SECTIONS)
# Commands whose argument is the front of several keys.
EXPANDED = {"ci": ("/ci_low", "/ci_high")}
needs_tex = pytest.mark.skipif(shutil.which("latexmk") is None, reason="latexmk is not installed")

TESTS = pd.DataFrame(
    [
        ("H1", "S1-2of4 - D1", "forgetting", -0.051, -0.108, 0.006, 0.07, 0.14, -0.9, 3, "pilot"),
        ("H1 equivalence", "S1-2of4 - D1", "forgetting", -0.051, -0.09, -0.01, 0.48, None, None, 3, "pilot"),
        ("H1 bootstrap", "S1-2of4 - D1", "forgetting", -0.05, -0.08, -0.02, None, None, None, 3, "pilot"),
        ("kinds", "S1-2of4 - D1", "forgetting/fact", -0.07, -0.1, -0.04, 0.0002, 0.0004, -2.0, 3, "exploratory"),
    ],
    columns=["hypothesis", "contrast", "metric", "estimate", "ci_low", "ci_high", "p", "p_corrected", "effect", "n", "status"],
)


@pytest.fixture(scope="module")
def study():
    return load_study("builtin")


@pytest.fixture(scope="module")
def tables():
    return {**example_tables(replicates=3), "tests": TESTS}


@pytest.fixture(scope="module")
def verdicts():
    sentence = "undecided (forgetting -5.1 [-10.8, +0.6])"
    nothing = {"contrasts": (), "effects": ()}
    h1 = SimpleNamespace(letter="undecided", sentence=sentence, missing_controls=("Dnz-0.5",), planned_replicates=12, **nothing)
    h2 = SimpleNamespace(letter="C", sentence="refuted", missing_controls=(), planned_replicates=None, **nothing)
    return {"H1": h1, "H2": h2}


@pytest.fixture(scope="module")
def values(study, tables, verdicts):
    return part_values(study, tables, verdicts, {"margin": "5.0", "alpha": "0.05", "status": "pilot"})


def keys_in(text: str) -> set[str]:
    keys = set(re.findall(r"\\(?:val|ifvalue|replicates){([^}#]+)}", text))
    for command, endings in EXPANDED.items():
        keys |= {front + ending for front in re.findall(rf"\\{command}{{([^}}#]+)}}", text) for ending in endings}
    return keys


def test_keys_are_unique_and_begin_with_their_part():
    keys = registered_keys("main")
    assert len(keys) == len(set(keys)) and all(key.startswith("main/") for key in keys)


def test_every_key_of_the_text_is_registered():
    known = {key for part in PARTS for key in registered_keys(part)}
    assert keys_in(TEXT) - known == set()
    assert len(keys_in(TEXT)) > 60


def test_every_registered_key_is_emitted_measured_or_not(values):
    text = values_tex("main", values)
    emitted = re.findall(r"\\define(?:value|absent){([^}]+)}", text)
    assert emitted == registered_keys("main")
    empty = values_tex("main", {})
    assert empty.count(r"\defineabsent") == len(registered_keys("main")) and r"\definevalue" not in empty


def test_values_without_a_registered_key_are_refused():
    with pytest.raises(ValueError, match=r"main/forgeting/D1/mean.*not registered"):
        values_tex("main", {"forgeting/D1/mean": "1.0"})


def test_values_come_from_the_tables(values, tables):
    rows = tables["metrics"].query("metric == 'forgetting' and kind == 'all' and domain == '' and arm == 'D1'")
    assert values["forgetting/D1/mean"] == f"{100 * rows['value'].mean():.1f}"
    assert values["forgetting/D1/n"] == "3"
    assert values["forgetting/S1-2of4-minus-D1/estimate"] == "$-$5.1"
    assert values["forgetting/S1-2of4-minus-D1/p_holm"] == "$= 0.140$"
    assert values["forgetting/S1-2of4-minus-D1/tost_p"] == "$= 0.480$"
    assert values["forgetting/S1-2of4-minus-D1/bootstrap_low"] == "$-$8.0"
    assert values["forgetting-fact/S1-2of4-minus-D1/p"] == "$< 0.001$"
    assert values["learning_rate/D1"] == number_formats.rate(*load_study("builtin").continual.learning_rates)
    assert values["overlap/D1/cells"] == "30"


def test_a_contrast_without_a_test_has_an_interval_and_no_p(values, tables):
    wide = tables["conversion"].query("metric == 'score/general'").pivot(index="seed", columns="arm", values="value").drop("validation")
    assert values["general_score/S0-2of4-minus-D0/estimate"] == number_formats.points((wide["S0-2of4"] - wide["D0"]).mean(), True)
    assert values.get("general_score/S0-2of4-minus-D0/p") is None


def test_unmeasured_is_absent_and_never_zero(study, tables, values):
    fewer = part_values(study, {"metrics": tables["metrics"].query("metric != 'forgetting'")})
    assert fewer.get("forgetting/D1/mean") is None and fewer["own/D1/mean"] == values["own/D1/mean"]
    assert fewer.get("verdict/letter") is None and fewer.get("design/margin") is None
    assert r"\defineabsent{main/forgetting/D1/mean}" in values_tex("main", fewer)


@pytest.mark.parametrize(
    ("form", "value", "signed", "text"),
    [
        ("points", -0.0514, False, "$-$5.1"),
        ("points", 0.0514, True, "$+$5.1"),
        ("points", -0.0001, True, "0.0"),
        ("points", float("nan"), False, None),
        ("nats", -0.237, True, "$-$0.24"),
        ("p_value", 0.0341, False, "$= 0.034$"),
        ("p_value", 0.0004, False, "$< 0.001$"),
        ("p_value", None, False, None),
        ("count", 542000, False, "542{,}000"),
        ("rate", 7e-4, False, r"$7\times10^{-4}$"),
        ("rate", 1e-3, False, "$10^{-3}$"),
        ("rate", 0.01, False, "0.01"),
        ("rate", 1.1e12, False, r"$1.1\times10^{12}$"),
    ],
)
def test_number_formats(form, value, signed, text):
    assert getattr(number_formats, form)(value, signed) == text


def test_a_p_value_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="outside"):
        number_formats.p_value(1.2)


def test_text_is_escaped():
    assert number_formats.latex_text("50% of a_b & {c}") == r"50\% of a\_b \& \{c\}"


def test_minus_signs_of_the_verdict_are_minus_signs(values):
    assert values["verdict/sentence"] == "undecided (forgetting $-$5.1 [$-$10.8, +0.6])"
    assert values["verdict/missing_controls"] == "Dnz-0.5"


def test_verdicts_by_hypothesis_and_without_one_the_first(values):
    for name in ("letter", "sentence", "missing_controls", "planned_replicates"):
        assert values[f"verdict/{name}"] == values[f"verdict/H1/{name}"]
    assert values["verdict/H2/letter"] == "C" and values["verdict/H2/planned_replicates"] is None
    assert "verdict/H3/letter" not in values, "a hypothesis that was not registered prints dashes"
    assert {"main/verdict/letter", "main/verdict/H3/letter"} <= set(registered_keys("main"))


def test_tables_have_equally_many_cells_in_every_row(study, tables):
    made = paper_tables.part_tables(study, tables, {("medical", "ability"): 0.55})
    assert set(made) == {
        "settings", "costs", "efficiency", "fractions", "metrics", "losses", "domains", "conversion", "topologies", "algorithms",
    }  # fmt: skip
    for name, text in made.items():
        rows = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert len({row.count(" & ") for row in rows}) == 1, name
        assert "nan" not in text.lower(), name


def test_the_main_checkpoints_alone_stand_in_their_table(study, tables):
    rows = [line.split(" & ")[0] for line in paper_tables.conversion_table(study, tables).splitlines() if line.endswith(r"\\")]
    assert rows == ["arm", "D0", "S0 2:4", "S1 2:4", "D1"]


def row_of(table: str, name: str) -> list[str]:
    return [line.removesuffix(r" \\").split(" & ") for line in table.splitlines() if line.startswith(f"{name} & ")][0]


def mean_of(tables: dict, arm: str, metric: str, replicates: int) -> float:
    rows = tables["conversion"].query("arm == @arm and metric == @metric")
    return rows[rows["seed"].isin(range(replicates))]["value"].mean()


def test_compared_arms_are_summarised_over_their_common_replicates(tables):
    topologies, algorithms = paper_tables.topologies_table(tables), paper_tables.algorithms_table(tables)
    assert row_of(topologies, "block 16")[2].startswith(number_formats.nats(mean_of(tables, "S0-block16", "nll/general", 3)))
    assert row_of(topologies, "dense")[3].startswith(number_formats.nats(mean_of(tables, "D1", "nll/general", 3)))
    assert row_of(topologies, "2:4")[2].startswith(number_formats.nats(mean_of(tables, "S0-2of4", "nll/general", 3)))
    assert row_of(algorithms, "SparseGPT")[1].startswith(number_formats.nats(mean_of(tables, "S0-2of4", "nll/general", 2)))
    assert row_of(algorithms, "MaskLLM")[4].startswith(number_formats.points(mean_of(tables, "S1-2of4-maskllm", "score/general", 2)))


def test_conversions_without_a_measured_cost_have_dashes(tables):
    table = paper_tables.algorithms_table(tables)
    assert row_of(table, "MaskLLM")[-2:] == ["260{,}000", "26.1"]
    assert row_of(table, "magnitude")[-2] == "0"
    assert row_of(table, "Wanda++")[-2:] == ["--", "--"]
    without = {name: frame for name, frame in tables.items() if name not in ("cost", "timings")}
    assert row_of(paper_tables.algorithms_table(without), "MaskLLM")[-2:] == ["--", "--"]


def test_ranges_of_comparisons_come_from_the_tables(values, tables):
    assert values["comparison/topologies/replicates"] == "3" and values["comparison/algorithms/replicates"] == "2"
    assert values["comparison/topologies/arms"] == "6" and values["comparison/algorithms-without-random/arms"] == "5"
    assert values["comparison/topologies/S0/highest_name"] == "block 64"
    assert values["comparison/topologies/S0/highest_loss"] == number_formats.nats(mean_of(tables, "S0-block64", "nll/general", 3))
    span = mean_of(tables, "S0-2of4-magnitude", "nll/general", 2) - mean_of(tables, "S0-2of4-maskllm", "nll/general", 2)
    assert values["comparison/algorithms-without-random/S0/span"] == number_formats.nats(span)


def test_a_difference_to_dense_is_counted_only_by_its_interval(study, tables):
    conversion = tables["conversion"].copy()
    s1 = conversion["arm"].str.startswith("S1-") & (conversion["metric"] == "nll/general")
    dense = conversion.query("arm == 'D1' and metric == 'nll/general'").set_index("seed")["value"]
    shift = {"S1-block16": 0.1, "S1-block32": 0.2, "S1-4of8": -0.1}
    conversion.loc[s1, "value"] = [
        dense[row.seed] + shift.get(row.arm, 0) + 0.001 * row.seed * (-1) ** row.seed for row in conversion[s1].itertuples()
    ]
    found = part_values(study, {"conversion": conversion})
    assert (found["comparison/topologies/S1/above_dense"], found["comparison/topologies/S1/below_dense"]) == ("2", "1")


def test_a_study_that_compares_nothing_has_dashes_and_no_tables(study, tables):
    main = tables["conversion"][tables["conversion"]["arm"].isin(paper_values.CHECKPOINT_ARMS)]
    assert {"topologies", "algorithms"} & set(paper_tables.part_tables(study, {"conversion": main})) == set()
    text = values_tex("main", part_values(study, {"conversion": main}))
    assert r"\defineabsent{main/comparison/topologies/replicates}" in text and r"\definevalue{main/general_loss/D0/mean}" in text


def test_the_validation_replicate_enters_no_value(values, tables):
    assert "validation" in set(tables["conversion"]["seed"])
    assert values["general_score/D0/n"] == "3"
    assert values["general_loss/D0/mean"] == number_formats.nats(mean_of(tables, "D0", "nll/general", 3))


def test_settings_of_an_algorithm_that_no_arm_uses_are_dashes():
    from sparsecl.paper_values_conversion import conversion_facts

    assert set(conversion_facts(load_study("realtext")).values()) == {None}
    assert conversion_facts(load_study("builtin"))["wandaplusplus_rounds"] == "5"


def test_the_last_domain_has_no_forgetting(study, tables):
    last = [line for line in paper_tables.domains_table(tables).splitlines() if line.startswith("dialogue")][0]
    cells = last.removesuffix(r" \\").split(" & ")
    assert cells[-2:] == ["--", "--"] and cells[1] != "--"


def test_no_result_is_typed_in_the_text():
    """Digits stand only in keys, labels, references, layout, names of hypotheses, patterns and files, and levels of statements."""
    one, two = "(?:val|ci|replicates|paperfigure|papertable|studyof|ref|label|texttt|cite[tp]?)", "(?:ifvalue|ifverdict|setlength)"
    allowed = [
        r"(?<!\\)%.*", rf"\\{one}{{[^}}]*}}", rf"\\{two}{{[^}}]*}}(?:{{[\w.]*}})?", r"\d:\d", r"9[05]\\,\\%", r"\$[^$]*\$",
        r"\\begin{(align|equation)}.*?\\end{\1}", r"MBPP|GSM8K|CLINC150|WikiText-2|Qwen3(?:\.5)?",
        r"\bH\d[AB]?\b", r"[Bb]lock \d+", r"\d+(?:\.\d+)?(?:pt|ex|in|\\linewidth)",
    ]  # fmt: skip
    for path in SECTIONS:
        text = path.read_text(encoding="utf-8")
        for pattern in allowed:
            text = re.sub(pattern, "", text, flags=re.DOTALL if "align" in pattern else 0)
        assert re.findall(r".*\d.*", text) == [], path.name


def test_every_verdict_has_its_words_wherever_one_has():
    for path in SECTIONS:
        letters = set(re.findall(r"\\ifverdict{main}{(\w+)}", path.read_text(encoding="utf-8")))
        assert letters in (set(), {"A", "B", "C", "undecided", "none"}), path.name


@pytest.mark.parametrize("hypothesis", ["H4", "H5A", "H5B"])
def test_every_outcome_of_the_second_question_has_its_words(hypothesis):
    for path in SECTIONS:
        letters = set(re.findall(rf"\\ifhypothesis{{implicit}}{{{hypothesis}}}{{(\w+)}}", path.read_text(encoding="utf-8")))
        assert not letters or letters >= {"A", "B", "C", "undecided"}, path.name


def test_every_citation_resolves_and_every_reference_is_cited():
    entries = re.findall(r"^@\w+{([^,]+),", (PAPER / "references.bib").read_text(encoding="utf-8"), flags=re.MULTILINE)
    cited = {key.strip() for group in re.findall(r"\\cite[tp]?{([^}]+)}", TEXT) for key in group.split(",")}
    assert len(entries) == len(set(entries)) and cited == set(entries)


def test_every_figure_of_the_text_is_known():
    figures = set(re.findall(r"\\paperfigure{\w+/(\w+)}", TEXT))
    assert figures <= {name for name in dir(publication.figures) if not name.startswith("_")}


def test_every_table_of_the_text_is_written():
    """Those of the second question; the others have tests of their own."""
    from test_paper_implicit import TABLES

    for part, names in TABLES.items():
        assert set(re.findall(rf"\\papertable{{{part}/(\w+)}}", TEXT)) == names


def small_paper(folder: Path, body: str) -> Path:
    """A paper of one line, with the real preamble: what stops it stops the real one."""
    (folder / "sections").mkdir(parents=True)
    shutil.copy(PAPER / "preamble.tex", folder)
    (folder / "paper.yaml").write_text("parts: {main: builtin}\n")
    (folder / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{graphicx,amsmath,etoolbox,eso-pic,xcolor}\n\\input{preamble}\\input{build.tex}\\input{main/values.tex}\\stampdraft\n"
        f"\\begin{{document}}{body}\\end{{document}}\n"
    )
    return folder


def text_of(pdf: Path) -> str:
    return subprocess.run(["pdftotext", "-layout", str(pdf), "-"], capture_output=True, text=True, check=True).stdout


@needs_tex
def test_an_unknown_value_stops_latex_and_is_named(tmp_path):
    paper = small_paper(tmp_path / "paper", r"\val{main/forgeting/D1/mean}")
    with pytest.raises(PaperError, match=r"unknown value `main/forgeting/D1/mean'.*(?s:.)*key main/forgeting/D1/mean: register"):
        build_paper(tmp_path / "build", {"main": "smoke"}, paper=paper)
    assert not (tmp_path / "build" / "main.pdf").exists()


@needs_tex
def test_a_dash_prints_in_a_draft_and_stops_the_paper_of_record(tmp_path):
    paper = small_paper(
        tmp_path / "paper",
        r"forgets \val{main/forgetting/D1/mean} points\ifvalue{main/own/D1/mean}{ never shown}\ifverdict{main}{A}{ nor this}",
    )
    draft = text_of(build_paper(tmp_path / "draft", {"main": "smoke"}, paper=paper))
    assert "forgets – points" in draft and "study: smoke — not the paper of record" in draft
    assert "never shown" not in draft and "nor this" not in draft
    with pytest.raises(PaperError, match=r"value `main/forgetting/D1/mean' was not measured"):
        build_paper(tmp_path / "record", {"main": "builtin"}, paper=paper)


@needs_tex
def test_the_paper_builds_from_tables_and_says_what_they_say(study, tables, verdicts, values, tmp_path, monkeypatch):
    monkeypatch.setattr(publication, "figures_of", lambda part: {"learning_rate_sweep"})  # the others cost seconds each
    registration = SimpleNamespace(margin=0.05, alpha=0.05, status="pilot")
    write_part(tmp_path, study, "main", tables, verdicts, registration)
    pdf = build_paper(tmp_path, {"main": "smoke", "realtext": "realtext", "implicit": "builtin-implicit", "moe": "builtin-moe"})
    text = re.sub(r"\s+", " ", text_of(pdf)).replace("−", "-")
    assert "the question stays undecided" in text and "The registered rule reaches none of A, B and C" in text
    assert "the hypothesis does not hold" not in text
    assert f"D1 forgets {values['forgetting/D1/mean']} points" in text
    assert "[?]" not in text and "??" not in text and "not the paper of record" in text
    assert "Overfull" not in (tmp_path / "main.log").read_text(errors="replace")


@needs_tex
def test_equal_inputs_give_an_equal_pdf(study, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(publication, "figures_of", lambda part: {"learning_rate_sweep"})
    paper = small_paper(tmp_path / "paper", r"\val{main/learning_rate/D1} \paperfigure{main/learning_rate_sweep}")
    built = []
    for name in ("first", "second"):
        write_part(tmp_path / name, study, "main", {"learning_rate": tables["learning_rate"]})
        built.append(build_paper(tmp_path / name, {"main": "smoke"}, paper=paper).read_bytes())
    assert built[0] == built[1] and str(tmp_path).encode() not in built[0]


def test_figures_of_a_part_are_those_the_text_shows():
    assert "forgetting_curves" in publication.figures_of("main") and publication.figures_of("realtext") == {"loss_forgetting"}
    assert publication.figures_of("appendix") == set()


@needs_tex
def test_a_part_without_tables_leaves_dashes(tmp_path):
    paper = small_paper(tmp_path / "paper", r"\paperfigure{main/forgetting_curves}\par\papertable{main/metrics}")
    text = text_of(build_paper(tmp_path / "build", {"main": "smoke"}, paper=paper))
    assert text.count("not measured in this study") == 2


def test_an_earlier_runs_figures_do_not_stay(study, tables, tmp_path, monkeypatch):
    monkeypatch.setattr(publication, "figures_of", lambda part: set())
    stale = tmp_path / "main" / "figures" / "layer_overlap.pdf"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    write_part(tmp_path, study, "main", {"metrics": tables["metrics"], "accuracy": tables["accuracy"]})
    assert not stale.exists() and (tmp_path / "main" / "values.tex").is_file()


def test_registries_name_arms_that_exist():
    from sparsecl.arms import parse_arm

    for name in {*paper_values.STREAM_ARMS, *paper_values.CHECKPOINT_ARMS, *paper_values.OVERLAP_ARMS}:
        assert parse_arm(name).name == name
