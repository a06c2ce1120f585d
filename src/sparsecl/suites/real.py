"""Real data sets as a suite: formats, splits and repeats of the data of `data_manifests/` (paper, section Data).

The pool an item belongs to (base, stage, validation, test) follows from the published split and the
sha256 of its text, never from the generator: no replicate can score what another has trained on. The
generator only draws which items of the validation and test pools are scored, and which passages of the
books are read.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from sparsecl.items import GENERAL, Item, Suite
from sparsecl.manifests import Manifest, load_manifest, locate, read_rows
from sparsecl.settings import ManifestData

PRETRAINING = "pretraining"  # the manifests' name for text that only the base reads

# Characters, chosen so that prompt and answer mostly fit 128 tokens of a vocabulary of 4096: code and
# worked arithmetic take 2.5 to 2.8 characters a token, clauses and books 3.3, WikiText's marks 2.9.
CODE_CHARACTERS, MATH_CHARACTERS, CLAUSE_CHARACTERS = 310, 345, 330
BOOK_PIECE, WIKITEXT_PIECE = 380, 320

MBPP_TEST_IDS = range(11, 511)  # the published test split
CUAD_TEST_SHARE = 0.2  # published without a split by text
GSM8K_VALIDATION_SHARE = 0.1  # of the training file, whose problems are many
T = TypeVar("T")


class Line(NamedTuple):
    """A data set's row in the form the model reads; two lines with equal `text` are repeats."""

    text: str
    prompt: str
    answer: str


@dataclass(frozen=True)
class Pools:
    """The lines of one data set by role; validation is empty where none is published."""

    train: list[Line]
    test: list[Line]
    validation: list[Line]


@dataclass(frozen=True)
class Splits:
    """The items of one domain: what the base reads, what the stage trains on, what is scored."""

    pretraining: tuple[Item, ...]
    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]
    answers: int  # distinct answers in training


def build(settings: ManifestData, generator: np.random.Generator) -> Suite:
    """Read, split and draw the suite; ValueError where a setting asks for more than the data hold, BrokenFile for bad files."""
    manifests = [load_manifest(name) for name in settings.manifests]
    domains = {domain: _only(manifests, domain) for domain in settings.domains}
    streams = dict(zip(sorted(domains), generator.spawn(len(domains)), strict=True))
    splits = {domain: split_domain(manifest, settings, streams[domain]) for domain, manifest in domains.items()}
    book_stream, general_stream, order_stream = generator.spawn(3)
    books = _books(_only(manifests, PRETRAINING), settings.pretraining_characters, book_stream)
    base = [*books, *(item for split in splits.values() for item in split.pretraining)]
    return Suite(
        domains=settings.domains,
        # Mixed, because the tokenizer is trained on the first items only.
        pretraining=tuple(base[index] for index in order_stream.permutation(len(base))),
        train={domain: split.train for domain, split in splits.items()},
        validation={domain: split.validation for domain, split in splits.items()},
        test={domain: split.test for domain, split in splits.items()},
        general=_general(_only(manifests, GENERAL), settings.general_items, general_stream),
        chance=_chance(domains, splits),
        sources={file.path: file.sha256 for manifest in manifests for file in manifest.files},
    )


def _only(manifests: Sequence[Manifest], domain: str) -> Manifest:
    found = [manifest for manifest in manifests if manifest.domain == domain]
    if len(found) != 1:
        names = [manifest.name for manifest in found]
        raise ValueError(f"data.manifests: {domain} is the domain of {names or 'no manifest'}; name exactly one manifest of {domain}")
    return found[0]


def split_domain(manifest: Manifest, settings: ManifestData, generator: np.random.Generator) -> Splits:
    """Split one data set; the pools are fixed, the generator draws the validation and test items from theirs.

    Where no validation split is published, the first `validation_items` held-out lines in hash order are
    the validation pool: held-out data stay held out, and none of it is scored as test in any replicate.
    """
    if manifest.name not in READERS:
        raise ValueError(f"data set {manifest.name!r} has no reader; known: {sorted(READERS)}; add one to sparsecl.suites.real")
    pools = without_repeats(READERS[manifest.name](manifest, locate(manifest)))
    test, validation, train = (_hash_order(lines) for lines in (pools.test, pools.validation, pools.train))
    if not validation:
        validation, test = test[: settings.validation_items], test[settings.validation_items :]
    base = int(settings.pretraining_item_share * len(train))
    return Splits(
        pretraining=_items(manifest, train[:base]),
        train=_items(manifest, train[base:]),
        validation=_items(manifest, _draw(validation, settings.validation_items, f"validation_items: {manifest.name}", generator)),
        test=_items(manifest, _draw(test, settings.test_items, f"test_items: {manifest.name}", generator)),
        answers=len({line.answer for line in train}),
    )


def without_repeats(pools: Pools) -> Pools:
    """Keep the first line of every text; a text in several pools stays in test, else in validation."""
    seen: set[str] = set()

    def fresh(lines: list[Line]) -> list[Line]:
        kept = []
        for line in lines:
            text = " ".join(line.text.lower().split())
            if text not in seen:
                seen.add(text)
                kept.append(line)
        return kept

    test = fresh(pools.test)
    validation = fresh(pools.validation)
    return Pools(train=fresh(pools.train), test=test, validation=validation)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _in_share(text: str, share: float) -> bool:
    """Whether a text belongs to a fixed, pseudo-random share of all texts."""
    return int(_digest(text.lower())[:8], 16) < share * 16**8


def _hash_order(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: _digest(line.prompt))


def _draw(pool: Sequence[T], count: int, what: str, generator: np.random.Generator) -> list[T]:
    if count > len(pool):
        raise ValueError(f"data.{what} holds {len(pool)}, but {count} are wanted; lower the setting to at most {len(pool)}")
    return [pool[index] for index in np.sort(generator.choice(len(pool), count, replace=False))]


def _items(manifest: Manifest, lines: Iterable[Line]) -> tuple[Item, ...]:
    return tuple(Item(manifest.domain, manifest.kind, manifest.name, line.prompt, line.answer) for line in lines)


def _chance(domains: Mapping[str, Manifest], splits: Mapping[str, Splits]) -> dict[tuple[str, str], float]:
    """Score of guessing as each manifest defines it; absent for free text, where guessing means nothing."""
    scores = {}
    for domain, manifest in domains.items():
        if manifest.chance == "majority":
            answers = Counter(item.answer for item in splits[domain].test)
            scores[domain, manifest.kind] = max(answers.values()) / answers.total()
        elif manifest.chance == "uniform":
            scores[domain, manifest.kind] = 1 / splits[domain].answers
    return scores


def _rows(manifest: Manifest, files: Mapping[str, Path]) -> Iterable[tuple[str, dict]]:
    """Rows of all files of a data set, each with its file's path in the manifest."""
    for file in manifest.files:
        for row in read_rows(files[file.path], file):
            yield file.path, row


def read_mbxp(manifest: Manifest, files: Mapping[str, Path]) -> Pools:
    """Python signature and description -> body; ids 11-510 are the test pool."""
    pools = Pools([], [], [])
    for _, row in _rows(manifest, files):
        # The doctest examples would triple the prompt; signature and description stay.
        prompt = re.sub(r"\n[ \t]*>>>.*?(?=\n[ \t]*\"\"\")", "", row["prompt"], flags=re.DOTALL).replace("\r", "").strip()
        body = re.sub(r"[ \t\r]+(?=\n|$)", "", row["canonical_solution"]).strip("\n")
        if len(prompt) + len(body) < CODE_CHARACTERS:
            pool = pools.test if int(row["task_id"].split("/")[1]) in MBPP_TEST_IDS else pools.train
            pool.append(Line(row["description"], prompt, "\n" + body))
    return pools


def read_gsm8k(manifest: Manifest, files: Mapping[str, Path]) -> Pools:
    """Word problem -> worked answer that ends in `#### 72`; published test split, a tenth of the training file to choose on."""
    pools = Pools([], [], [])
    for path, row in _rows(manifest, files):
        prompt = f"problem: {row['question'].strip()}\nsolution:"
        answer = " " + re.sub(r"<<.*?>>", "", row["answer"]).strip()
        if len(prompt) + len(answer) <= MATH_CHARACTERS:
            rest = pools.validation if _in_share(row["question"], GSM8K_VALIDATION_SHARE) else pools.train
            (pools.test if path.endswith("test.jsonl") else rest).append(Line(row["question"], prompt, answer))
    return pools


def read_pubmedqa(manifest: Manifest, files: Mapping[str, Path]) -> Pools:
    """Research question -> yes, no or maybe; the ground-truth file lists the test pool."""
    questions, ground_truth = (list(read_rows(files[file.path], file)) for file in manifest.files)
    held_out = {row["key"] for row in ground_truth}
    pools = Pools([], [], [])
    for row in questions:
        line = Line(row["QUESTION"], f"question: {row['QUESTION'].strip()}\nanswer:", f" {row['final_decision']}")
        (pools.test if row["key"] in held_out else pools.train).append(line)
    return pools


def read_cuad(manifest: Manifest, files: Mapping[str, Path]) -> Pools:
    """Clause -> its type; texts of several types are dropped, and a fifth of the texts is the test pool."""
    types: dict[str, set[str]] = {}
    for path, row in _rows(manifest, files):
        if row["label"] == "Yes":
            clause_type = Path(path).name.removeprefix("CUAD_").removesuffix(".test.tsv").replace("_", " ")
            types.setdefault(_clause(row["text"]), set()).add(clause_type)
    pools = Pools([], [], [])
    for text, found in types.items():
        if len(found) == 1:
            pool = pools.test if _in_share(text, CUAD_TEST_SHARE) else pools.train
            pool.append(Line(text, f"clause: {text}\ntype:", f" {min(found)}"))
    return pools


def _clause(text: str) -> str:
    """The clause on one line, cut at a word: cut before repeats are sought, so that prompts cannot collide later."""
    text = " ".join(text.split())
    return text if len(text) <= CLAUSE_CHARACTERS else text[: text.rindex(" ", 0, CLAUSE_CHARACTERS)]


def read_clinc150(manifest: Manifest, files: Mapping[str, Path]) -> Pools:
    """Utterance -> intent; published splits, in-scope only."""
    splits = {row["key"]: row["value"] for _, row in _rows(manifest, files)}
    lines = {
        name: [Line(text, f"user: {text.strip()}\nintent:", f" {intent}") for text, intent in splits[name]]
        for name in ("train", "val", "test")
    }
    return Pools(lines["train"], lines["test"], lines["val"])


READERS: dict[str, Callable[[Manifest, Mapping[str, Path]], Pools]] = {
    "mbxp-python": read_mbxp,
    "gsm8k": read_gsm8k,
    "pubmedqa": read_pubmedqa,
    "cuad": read_cuad,
    "clinc150": read_clinc150,
}


def pieces(text: str, length: int) -> list[str]:
    """Cut running text into pieces of at most `length` characters, at a line or sentence end where one is in the second half."""
    text = text.strip()
    found = []
    start = 0
    while start < len(text):
        end = start + length
        if end < len(text):
            half = start + length // 2
            sentence = max(text.rfind("\n", half, end + 1), text.rfind(". ", half, end + 1) + 1)
            word = max(text.rfind(" ", start + 1, end + 1), text.rfind("\n", start + 1, end + 1))
            end = next((place for place in (sentence, word) if place > 0), end)
        found.append(text[start:end].strip())
        start = end
        while start < len(text) and text[start].isspace():
            start += 1
    return [piece for piece in found if piece]


def _text_items(manifest: Manifest, found: Iterable[str], task: str) -> tuple[Item, ...]:
    return tuple(Item(GENERAL, manifest.kind, task, "", piece) for piece in found)


def _books(manifest: Manifest, characters: int, generator: np.random.Generator) -> tuple[Item, ...]:
    """About `characters` of text: from every book one passage at a random place, as long as its share of all books."""
    file = manifest.files[0]
    texts = [row["text"] for row in read_rows(locate(manifest)[file.path], file)]
    share = characters / sum(map(len, texts))
    if share > 1:
        raise ValueError(f"data.pretraining_characters: {characters} is more than the {sum(map(len, texts))} of {manifest.name}; lower it")
    found: dict[str, None] = {}
    for text in texts:
        length = round(share * len(text))
        start = int(generator.integers(len(text) - length + 1))
        passage = re.sub(r"\n[ \n]+", "\n", text[start : start + length])
        found.update(dict.fromkeys(pieces(passage, BOOK_PIECE)))
    return _text_items(manifest, found, "books")


def _general(manifest: Manifest, count: int, generator: np.random.Generator) -> tuple[Item, ...]:
    """Pieces of the probe's paragraphs, headings left out."""
    file = manifest.files[0]
    lines = (row["text"].strip() for row in read_rows(locate(manifest)[file.path], file))
    paragraphs = [line for line in lines if line and not line.startswith("=")]
    found = list(dict.fromkeys(piece for line in paragraphs for piece in pieces(line, WIKITEXT_PIECE) if len(piece) > WIKITEXT_PIECE // 2))
    return _text_items(manifest, _draw(found, count, f"general_items: {manifest.name}", generator), manifest.name)
