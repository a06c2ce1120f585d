"""The real suite: formats and traps on planted rows, splits and repeats on the real files where they are."""

import json
import lzma
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from sparsecl.items import GENERAL, Suite
from sparsecl.manifests import DataFile, Manifest, count_rows, data_folder, load_manifest, read_rows
from sparsecl.settings import ManifestData
from sparsecl.study_files import load_study
from sparsecl.suites import real
from sparsecl.suites.real import Line, Pools, pieces, without_repeats

STUDY = load_study("realtext")
DOMAINS = STUDY.data.domains
FILES = [file.path for name in STUDY.data.manifests for file in load_manifest(name).files]
needs_data = pytest.mark.skipif(
    not all((data_folder() / path).is_file() for path in FILES), reason=f"the real data sets are not in {data_folder()}"
)


def planted(folder: Path, name: str, contents: dict[str, str | bytes]) -> tuple[Manifest, dict[str, Path]]:
    """The manifest of a data set with small files of the same names, and where they lie."""
    manifest = load_manifest(name)
    files = []
    for file in manifest.files:
        if file.path in contents:
            content = contents[file.path]
            path = folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            rows = len(lzma.decompress(content).splitlines()) if isinstance(content, bytes) else count_rows(path)
            files.append(DataFile(**{**file.model_dump(), "rows": rows, "sha256": "0" * 64}))
    return manifest.model_copy(update={"files": tuple(files)}), {file.path: folder / file.path for file in files}


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_code_keeps_the_published_test_ids_out_of_training(tmp_path: Path) -> None:
    def problem(number: int, body: str = "  return a") -> dict:
        prompt = f'\n\ndef f{number}(a):\r\n  """\n  Do {number}.\n  >>> f(1)\n  1\n  >>> f(2)\n  2\n  """\n'
        return {"task_id": f"MBPP/{number}", "prompt": prompt, "canonical_solution": body, "description": f"Do {number}."}

    rows = [problem(10), problem(11), problem(510), problem(511), problem(600, "  \n" + "  x = 1\n" * 60)]
    pools = real.read_mbxp(*planted(tmp_path, "mbxp-python", {"code/mbxp_mbpp_release_v1.jsonl": lines(*rows)}))
    assert [line.text for line in pools.train] == ["Do 10.", "Do 511."]  # 600 does not fit a row
    assert [line.text for line in pools.test] == ["Do 11.", "Do 510."]
    assert pools.train[0] == Line("Do 10.", 'def f10(a):\n  """\n  Do 10.\n  """', "\n  return a")


def test_math_answers_lose_their_calculator_marks(tmp_path: Path) -> None:
    row = {"question": "How many?", "answer": "48/2 = <<48/2=24>>24 each.\n#### 1,024"}
    contents = {"math/gsm8k_train.jsonl": lines(row | {"question": "Few?"}), "math/gsm8k_test.jsonl": lines(row)}
    pools = real.read_gsm8k(*planted(tmp_path, "gsm8k", contents))
    assert pools.test == [Line("How many?", "problem: How many?\nsolution:", " 48/2 = 24 each.\n#### 1,024")]
    assert [line.text for line in pools.train + pools.validation] == ["Few?"]


def test_medical_split_is_the_ground_truth_files_and_no_answer_leaks(tmp_path: Path) -> None:
    entry = {"final_decision": "maybe", "LONG_ANSWER": "Leak.", "CONTEXTS": ["Long."]}
    questions = {"1": entry | {"QUESTION": "Does a?"}, "2": entry | {"QUESTION": "Does b?"}}
    contents = {"medical/pubmedqa_ori_pqal.json": json.dumps(questions), "medical/pubmedqa_test_ground_truth.json": '{"2": "maybe"}'}
    pools = real.read_pubmedqa(*planted(tmp_path, "pubmedqa", contents))
    assert pools.train == [Line("Does a?", "question: Does a?\nanswer:", " maybe")]
    assert pools.test == [Line("Does b?", "question: Does b?\nanswer:", " maybe")]


def test_legal_drops_texts_of_several_types_and_no_rows(tmp_path: Path) -> None:
    head = "label\ttext\n"
    folder = "legal/cuad_legalbench"
    contents = {
        f"{folder}/CUAD_Audit_Rights.test.tsv": head + "Yes\tOnly audit.\nYes\tBoth  here.\nNo\tNot audit.\nYes\tOnly audit.\n",
        f"{folder}/CUAD_Insurance.test.tsv": head + "Yes\tBoth here.\nNo\tOnly audit.\n",
    }
    pools = real.read_cuad(*planted(tmp_path, "cuad", contents))
    assert pools.train + pools.test == [Line("Only audit.", "clause: Only audit.\ntype:", " Audit Rights")]


def test_clauses_that_agree_up_to_the_cut_are_one(tmp_path: Path) -> None:
    shared = "word " * 100
    head = "label\ttext\n"
    contents = {"legal/cuad_legalbench/CUAD_Insurance.test.tsv": f"{head}Yes\t{shared}one\nYes\t{shared}two\n"}
    pools = real.read_cuad(*planted(tmp_path, "cuad", contents))
    (only,) = pools.train + pools.test
    assert len(only.text) <= real.CLAUSE_CHARACTERS and only.text.endswith("word")


def test_dialogue_uses_the_published_in_scope_splits(tmp_path: Path) -> None:
    splits = {"train": [["play jazz", "play_music"]], "val": [["stop", "cancel"]], "test": [["go", "yes"]], "oos_train": [["eh", "oos"]]}
    pools = real.read_clinc150(*planted(tmp_path, "clinc150", {"dialogue/clinc150_data_full.json": json.dumps(splits)}))
    assert pools.train == [Line("play jazz", "user: play jazz\nintent:", " play_music")]
    assert [pools.validation[0].text, pools.test[0].text] == ["stop", "go"]


def test_repeats_stay_in_test_first_then_validation() -> None:
    def line(text: str) -> Line:
        return Line(text, text, " a")

    pools = Pools(
        train=[line("A  b"), line("c"), line("c"), line("d")], validation=[line("c"), line("a B")], test=[line("a b"), line("e"), line("E")]
    )
    kept = without_repeats(pools)
    assert [[one.text for one in pool] for pool in (kept.train, kept.validation, kept.test)] == [["d"], ["c"], ["a b", "e"]]


@pytest.mark.parametrize("length", [20, 50, 400])
def test_pieces_lose_no_word_and_stay_short(length: int) -> None:
    generator = np.random.default_rng(0)
    words = ["".join(generator.choice(list("abc"), generator.integers(1, 12))) for _ in range(2000)]
    marks = generator.choice([" ", " ", " ", ". ", "\n"], len(words))
    text = "".join(word + mark for word, mark in zip(words, marks, strict=True))
    found = pieces(text, length)
    assert " ".join(found).split() == text.split()
    assert max(map(len, found)) <= length and all(piece == piece.strip() != "" for piece in found)


def test_pieces_end_at_sentences_and_survive_text_without_spaces() -> None:
    assert pieces("One two three. Four five six seven.", 20) == ["One two three.", "Four five six seven."]
    assert pieces("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]


def test_books_give_about_the_text_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    books = [{"title": str(n), "year": 1900, "text": " ".join(f"word{n}x{i}" for i in range(4000))} for n in range(5)]
    manifest, files = planted(tmp_path, "classic-books", {"pretrain/classic_books.jsonl.xz": lzma.compress(lines(*books).encode())})
    monkeypatch.setattr(real, "locate", lambda _: files)
    items = real._books(manifest, 50_000, np.random.default_rng(1))
    assert 0.97 * 50_000 < sum(len(item.answer) for item in items) <= 50_000
    assert {item.answer[:5] for item in items} >= {f"word{n}" for n in range(5)}
    assert items == real._books(manifest, 50_000, np.random.default_rng(1)) != real._books(manifest, 50_000, np.random.default_rng(2))
    with pytest.raises(ValueError, match=r"data.pretraining_characters: 9000000 is more than the \d+ of classic-books"):
        real._books(manifest, 9_000_000, np.random.default_rng(1))


def test_a_domain_needs_exactly_one_manifest() -> None:
    settings = STUDY.data.model_copy(update={"manifests": ("gsm8k", "gsm8k")})
    with pytest.raises(ValueError, match="code is the domain of no manifest; name exactly one manifest of code"):
        real.build(settings, np.random.default_rng(0))
    with pytest.raises(ValueError, match=r"math is the domain of \['gsm8k', 'gsm8k'\]"):
        real.build(settings.model_copy(update={"domains": ("math",)}), np.random.default_rng(0))


def test_a_data_set_without_reader_says_where_to_add_one() -> None:
    with pytest.raises(ValueError, match=r"'wikitext2' has no reader; known: \['clinc150'.*add one to sparsecl.suites.real"):
        real.split_domain(load_manifest("wikitext2"), STUDY.data, np.random.default_rng(0))


def test_study_fits_every_planned_topology() -> None:
    """All rows and columns divide by 64, so every topology up to block64 stays possible; 3 to 5 million parameters."""
    shapes = STUDY.model.linear_shapes().values()
    assert all(size % 64 == 0 for shape in shapes for size in shape)
    parameters = STUDY.model.layers * sum(rows * columns for rows, columns in shapes) + STUDY.tokenizer.vocabulary * STUDY.model.hidden
    assert 3e6 < parameters < 5e6


@pytest.fixture(scope="module")
def suite() -> Suite:
    settings = STUDY.data.model_copy(update={"pretraining_characters": 1_000_000})
    return real.build(settings, np.random.default_rng(0))


def by_domain(suite: Suite, domain: str) -> dict[str, tuple]:
    base = tuple(item for item in suite.pretraining if item.domain == domain)
    return {"pretraining": base, "train": suite.train[domain], "validation": suite.validation[domain], "test": suite.test[domain]}


@needs_data
@pytest.mark.parametrize("domain", DOMAINS)
def test_no_prompt_is_in_two_splits(suite: Suite, domain: str) -> None:
    splits = by_domain(suite, domain)
    prompts = {name: {" ".join(item.prompt.lower().split()) for item in items} for name, items in splits.items()}
    assert all(len(prompts[name]) == len(items) for name, items in splits.items())
    for one, other in combinations(prompts, 2):
        assert not prompts[one] & prompts[other], (one, other)


@needs_data
@pytest.mark.parametrize("domain", DOMAINS)
def test_splits_have_the_sizes_asked_for(suite: Suite, domain: str) -> None:
    splits = by_domain(suite, domain)
    assert (len(splits["validation"]), len(splits["test"])) == (STUDY.data.validation_items, STUDY.data.test_items)
    assert 0 <= len(splits["train"]) - len(splits["pretraining"]) <= 1  # a share of one half
    assert len(splits["train"]) >= 150


@needs_data
def test_every_item_can_be_tokenised_with_its_answer_apart(suite: Suite) -> None:
    items = [item for domain in DOMAINS for split in by_domain(suite, domain).values() for item in split]
    assert all(item.prompt == item.prompt.strip() != "" for item in items)
    assert all(item.answer[0] in " \n" and item.answer.strip() and "\r" not in item.prompt + item.answer for item in items)
    assert {(item.domain, item.kind, item.task) for item in items} == {
        ("code", "ability", "mbxp-python"), ("math", "ability", "gsm8k"), ("medical", "ability", "pubmedqa"),
        ("legal", "ability", "cuad"), ("dialogue", "ability", "clinc150"),
    }  # fmt: skip


@needs_data
def test_general_text_is_held_out(suite: Suite) -> None:
    general = {item.answer for item in suite.general}
    books = [item for item in suite.pretraining if item.domain == GENERAL]
    assert len(suite.general) == len(general) == STUDY.data.general_items
    assert {item.task for item in books} == {"books"} and not general & {item.answer for item in books}
    assert 0.95e6 < sum(len(item.answer) for item in books) < 1.05e6
    assert not any(item.prompt for item in books + list(suite.general))


@needs_data
def test_the_base_reads_the_formats_and_the_books_mixed(suite: Suite) -> None:
    first, second = (suite.pretraining[:half] for half in (len(suite.pretraining) // 2, None))
    assert (
        abs(sum(item.domain == GENERAL for item in first) / len(first) - sum(item.domain == GENERAL for item in second) / len(second))
        < 0.03
    )


@needs_data
def test_no_published_code_test_problem_is_trained_on(suite: Suite) -> None:
    (file,) = load_manifest("mbxp-python").files
    descriptions = {int(row["task_id"].split("/")[1]): row["description"] for row in read_rows(data_folder() / file.path, file)}
    trained = "\n".join(item.prompt for item in (*suite.train["code"], *by_domain(suite, "code")["pretraining"]))
    leaked = [
        number for number, text in descriptions.items() if (number in range(11, 511) or number in (602, 704, 872)) and text in trained
    ]
    assert leaked == []
    assert sum(text in trained for text in descriptions.values()) > 300


@needs_data
def test_chance_is_guessing(suite: Suite) -> None:
    answers = [item.answer for item in suite.test["legal"]]
    assert suite.chance["legal", "ability"] == max(map(answers.count, answers)) / len(answers)
    assert suite.chance["medical", "ability"] == pytest.approx(0.55, abs=0.1)
    assert suite.chance["dialogue", "ability"] == pytest.approx(1 / 150)
    assert set(suite.chance) == {(domain, "ability") for domain in ("medical", "legal", "dialogue")}


@needs_data
def test_sources_are_every_file_with_its_hash(suite: Suite) -> None:
    assert set(suite.sources) == set(FILES) and all(len(digest) == 64 for digest in suite.sources.values())


@needs_data
@pytest.mark.parametrize("name", ["mbxp-python", "pubmedqa", "clinc150"])
def test_no_draw_scores_what_another_draw_trained_on(name: str) -> None:
    manifest = load_manifest(name)
    one, again, other = (real.split_domain(manifest, STUDY.data, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == again
    assert (one.train, one.pretraining) == (other.train, other.pretraining)
    assert one.test != other.test
    assert not set(one.test) & set(other.validation)


@needs_data
def test_asking_for_too_much_says_how_much_there_is() -> None:
    settings: ManifestData = STUDY.data.model_copy(update={"test_items": 5000})
    most = 500 - STUDY.data.validation_items  # PubMedQA's test half, less what validation takes
    with pytest.raises(
        ValueError, match=f"data.test_items: pubmedqa holds {most}, but 5000 are wanted; lower the setting to at most {most}"
    ):
        real.split_domain(load_manifest("pubmedqa"), settings, np.random.default_rng(0))
