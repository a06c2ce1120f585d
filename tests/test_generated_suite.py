"""The generated suite: reproducible, right, honest about what is held out."""

import io
import re
from collections import defaultdict
from contextlib import redirect_stdout
from itertools import combinations

import numpy as np
import pytest

from sparsecl.items import GENERAL
from sparsecl.settings import GeneratedData
from sparsecl.suites import generated, medical
from sparsecl.tokenizer import encode, train_tokenizer

DOMAINS = ("code", "math", "medical", "legal", "dialogue")
FORMATS = {  # what marks a line of the domain's own format, and where its rule elements stand
    "code": r"^. = \[.*\]; print\((.*)\) >>$",
    "math": r"has \d \w+, (\w+) \d, then (\w+) \d\. how many\?$",
    "medical": r"has (\w+) with (\w+)\. diagnosis:$",
    "legal": r"is charged with (\w+) worth",
    "dialogue": r"^user: (?:please|kindly|now|could you) (\w+) .* for the .*bot:$",
}


def settings(**changes) -> GeneratedData:
    values = dict(
        source="generated", domains=DOMAINS, facts_per_domain=24, fact_share=0.35, train_lines=1600,
        pretraining_lines=8000, test_items=192, validation_items=96, general_items=200,
    )  # fmt: skip
    return GeneratedData(**{**values, **changes})


def build(seed: int = 0, **changes):
    return generated.build(settings(**changes), np.random.default_rng(seed))


@pytest.fixture(scope="module")
def suite():
    return build()


def elements_in_format(items, domain):
    """The rule elements that lines in the domain's format show."""
    shown = set()
    for item in items:
        match = re.search(FORMATS[domain], item.prompt)
        if match:
            groups = match.groups() if domain != "code" else (re.sub(r"\b[abcdxyzw]\b", "v", match.group(1)),)
            shown.update(groups)
    return shown


def abilities(items):
    return [item for item in items if item.kind == "ability"]


def test_same_seed_gives_the_same_bytes_and_another_seed_another_suite(suite):
    assert repr(build(0)).encode() == repr(suite).encode()
    other = build(1)
    facts = [{item.prompt for item in one.test["code"] if item.kind == "fact"} for one in (suite, other)]
    assert len(facts[0] & facts[1]) < len(facts[0]) / 4
    assert any(elements_in_format(suite.pretraining, domain) != elements_in_format(other.pretraining, domain) for domain in DOMAINS)
    combos = [{re.search(FORMATS["medical"], item.prompt).groups() for item in abilities(one.test["medical"])} for one in (suite, other)]
    assert combos[0] != combos[1]


def test_a_domain_does_not_depend_on_which_others_are_in_the_stream(suite):
    alone = build(domains=("code", "legal"))
    assert abilities(alone.test["legal"]) == abilities(suite.test["legal"])


def test_splits_are_pairwise_disjoint(suite):
    splits = {"pretraining": suite.pretraining, "general": [item for item in suite.general if item.kind == "ability"]}
    for domain in DOMAINS:
        splits |= {f"{name} {domain}": abilities(getattr(suite, name)[domain]) for name in ("train", "validation", "test")}
    prompts = {name: [item.prompt for item in items] for name, items in splits.items()}
    for (one, left), (other, right) in combinations(prompts.items(), 2):
        assert not set(left) & set(right), f"{one} and {other} share prompts"
    for name, lines in prompts.items():
        if not name.startswith(("pretraining", "train")):
            assert len(lines) == len(set(lines)), name


def rule_input(item):
    """What the answer depends on: the prompt without names, ages, variables and openers."""
    if item.domain == "code":
        variable, rest = item.prompt.split(" = ", 1)
        return re.sub(rf"\b{variable}\b", "v", rest)
    if item.domain == "math":
        return re.sub(r"^\w+ has (\d) \w+,", r"\1", item.prompt)
    if item.domain == "medical":
        return re.search(FORMATS["medical"], item.prompt).groups()
    return item.prompt.split(" ", 1)[1].removeprefix("please ").removeprefix("kindly ").removeprefix("now ").removeprefix("could you ")


def test_held_out_inputs_never_appear_in_any_training_line_under_another_name(suite):
    for domain in DOMAINS:
        in_format = [item for item in suite.pretraining if item.domain == domain and re.search(FORMATS[domain], item.prompt)]
        seen = {rule_input(item) for item in (*in_format, *abilities(suite.train[domain]))}
        tested = {rule_input(item) for item in (*abilities(suite.test[domain]), *abilities(suite.validation[domain]))}
        assert in_format and tested and not seen & tested


def test_medical_holds_out_sixteen_combinations_two_of_each_sign(suite):
    tested = {rule_input(item) for item in (*abilities(suite.test["medical"]), *abilities(suite.validation["medical"]))}
    trained = {rule_input(item) for item in abilities(suite.train["medical"])}
    assert len(tested) == 16 and len(trained) == 48
    for place in (0, 1):
        signs = [pair[place] for pair in tested]
        assert sorted(signs) == sorted(2 * list(set(signs))) and len(set(signs)) == 8


def test_pretraining_shows_half_of_the_rule_elements_in_format_and_all_in_the_textbook(suite):
    for domain in DOMAINS:
        shown, trained = elements_in_format(suite.pretraining, domain), elements_in_format(suite.train[domain], domain)
        assert shown < trained and len(shown) == len(trained) / 2
        textbook = [item for item in suite.pretraining if item.domain == domain and item.task == "textbook"]
        assert not elements_in_format(textbook, domain)
        if domain != "code":
            assert trained <= set(re.findall(r"\w+", " ".join(item.prompt for item in textbook)))


def test_a_stage_trains_public_and_private_elements_alike(suite):
    public = elements_in_format(suite.pretraining, "code")
    lines = abilities(suite.train["code"])
    share = sum(bool(elements_in_format([item], "code") & public) for item in lines) / len(lines)
    assert share == pytest.approx(0.5, abs=0.06)


def test_mixture_has_its_shares(suite):
    tasks = [item.task if item.task in generated.MIXTURE else "format" for item in suite.pretraining]
    assert len(tasks) == 8000
    for part, share in generated.MIXTURE.items():
        assert tasks.count(part) / len(tasks) == pytest.approx(share, abs=0.001)
    asked = [item.task for item in suite.general]
    assert {task: asked.count(task) for task in generated.MIXTURE} == dict.fromkeys(generated.MIXTURE, 40)
    assert all(item.domain == GENERAL and (item.kind == "fact") == (item.task == "fact") for item in suite.general)


def test_facts_have_their_share_and_every_phrasing_is_trained_and_scored(suite):
    names = []
    for domain in DOMAINS:
        train = [item for item in suite.train[domain] if item.kind == "fact"]
        assert len(train) == round(0.35 * 1600) and len(suite.train[domain]) == 1600
        scored = [item for item in suite.test[domain] if item.kind == "fact"]
        assert len(scored) == 72 == len(set(scored)) and set(scored) == set(train)
        assert [item for item in suite.validation[domain] if item.kind == "fact"] == scored
        assert len(abilities(suite.test[domain])) == 192 and len(abilities(suite.validation[domain])) == 96
        words = [set(re.findall(r"[a-z]+", item.prompt)) for item in scored]
        everywhere = set.intersection(*words[0::3]) | set.intersection(*words[1::3]) | set.intersection(*words[2::3])
        names += [word for start in range(0, 72, 3) for word in set.intersection(*words[start : start + 3]) - everywhere]
        for start in range(0, 72, 3):
            assert len({item.answer for item in scored[start : start + 3]}) == 1
    assert len(set(names)) == len(names) == 5 * 24


def test_code_answers_are_what_python_prints(suite):
    for item in abilities(suite.train["code"]) + abilities(suite.test["code"]):
        output = io.StringIO()
        with redirect_stdout(output):
            exec(item.prompt.removesuffix(" >>"), {})
        assert item.answer == " " + output.getvalue().strip()


def test_math_answers_are_right_arithmetic(suite):
    adds = {"buys": 1, "finds": 1, "wins": 1, "gets": 1, "sells": -1, "loses": -1, "eats": -1, "drops": -1}
    for item in abilities(suite.train["math"]) + abilities(suite.test["math"]):
        start, first, change, second, then = re.search(r"has (\d) \w+, (\w+) (\d), then (\w+) (\d)\.", item.prompt).groups()
        middle = int(start) + adds[first] * int(change)
        end = middle + adds[second] * int(then)
        sign = {1: "+", -1: "-"}
        assert item.answer == f" {start} {sign[adds[first]]} {change} = {middle}; {middle} {sign[adds[second]]} {then} = {end}"
        assert 0 <= middle <= 9 and 0 <= end <= 9


def test_medical_answers_follow_from_the_textbook(suite):
    rules = medical.make(np.random.default_rng(0)).textbook
    says = {item.prompt: item.answer.strip() for rule in rules for item in rule}
    for item in abilities(suite.train["medical"]) + abilities(suite.test["medical"]):
        first, second = re.search(FORMATS["medical"], item.prompt).groups()
        site, process = says[f"{first} is a sign of the"], says[f"{second} is a sign of"]
        drug, route = says[f"treat {process} with"], says[f"treat the {site} by"]
        assert item.answer == f" {site} {process}; give {drug} by {route}"


def test_legal_answers_follow_from_amount_limit_and_one_title_per_crime(suite):
    titles = defaultdict(set)
    for item in abilities(suite.train["legal"]) + abilities(suite.test["legal"]):
        crime, amount, limit = re.search(r"charged with (\w+) worth (\d+); the limit is (\d+)\. ruling:$", item.prompt).groups()
        degree, title = re.fullmatch(r" (felony|misdemeanor) under title (\d)", item.answer).groups()
        assert degree == ("felony" if int(amount) > int(limit) else "misdemeanor")
        titles[crime].add(title)
    assert len(titles) == 8 and sorted(title for (title,) in titles.values()) == list("12345678")
    for item in suite.pretraining:
        if item.prompt.endswith("falls under title"):
            assert titles[item.prompt.split()[0]] == {item.answer.strip()}


def test_dialogue_answers_copy_the_slots_and_name_one_service_per_verb(suite):
    services = defaultdict(set)
    for item in abilities(suite.train["dialogue"]) + abilities(suite.test["dialogue"]):
        verb, thing, room, hour = re.search(r"(\w+) (\w+) for the (\w+) at (\d)\. bot:$", item.prompt).groups()
        service, *slots = re.fullmatch(r" (\w+)\((\w+), (\w+), (\d)\)", item.answer).groups()
        assert slots == [thing, room, hour]
        services[verb].add(service)
    assert len(services) == 8 and all(len(names) == 1 for names in services.values())


def test_general_and_textbook_answers_are_right(suite):
    place = {"first": 0, "second": 1, "third": 2}
    rules = [
        (r"(\d+) (?:\+|plus) (\d+) (?:=|is)", lambda a, b: int(a) + int(b)),
        (r"sum of (\d+) and (\d+) is", lambda a, b: int(a) + int(b)),
        (r"(\d+) more than (\d+) is", lambda a, b: int(a) + int(b)),
        (r"(\d+) (?:-|minus|less) (\d+) (?:=|is)", lambda a, b: int(a) - int(b)),
        (r"(\d+) less than (\d+) is", lambda a, b: int(b) - int(a)),
        (r"(first|second|third) of ([a-z]+ [a-z]+ [a-z]+) is", lambda ordinal, row: row.split()[place[ordinal]]),
        (r"largest of ([\d, ]+) is", lambda row: max(row.split(", "))),
        (r"smallest of ([\d, ]+) is", lambda row: min(row.split(", "))),
        (
            r"(first|last) of ([\d, ]+) is",
            lambda which, row: row.split(", ")[{"first": 0, "last": -1}[which]],
        ),
        (r"(?:from )?(\d) (?:then )?add (\d) :", lambda a, b: f"{a} + {b} = {int(a) + int(b)}"),
        (r"subtract (\d) from (\d) :", lambda b, a: f"{a} - {b} = {int(a) - int(b)}"),
        (r"(\d+) against (\d+) is", lambda amount, limit: "above" if int(amount) > int(limit) else "below"),
    ]
    met = set()
    for item in (*suite.pretraining, *suite.general):
        for pattern, right in rules:
            if match := re.fullmatch(pattern, item.prompt):
                assert item.answer == f" {right(*match.groups())}", item
                met.add(pattern)
    assert met == {pattern for pattern, _ in rules}


def test_chance_is_the_best_constant_answer(suite):
    for domain, items in (*suite.test.items(), (GENERAL, suite.general)):
        for kind in ("ability", "fact"):
            answers = [item.answer for item in items if item.kind == kind]
            assert suite.chance[domain, kind] == max(answers.count(answer) for answer in set(answers)) / len(answers)
    assert all(0 < value < 0.35 for value in suite.chance.values())


def test_lines_are_short_and_prompts_tokenise_to_a_prefix_of_their_line(suite):
    tokenizer = train_tokenizer(suite.pretraining, 768)
    for domain in DOMAINS:
        items = [*suite.train[domain], *suite.test[domain]]
        rows = encode(tokenizer, items, 1000)
        assert max(len(row.ids) for row in rows) <= 48
        for item, row in zip(items, rows, strict=True):
            assert item.answer.startswith(" ") and "\n" not in item.prompt
            assert tokenizer.decode(row.ids[row.answer_start : -1]) == item.answer


def test_train_lines_repeat_where_they_exceed_the_distinct_inputs():
    suite = build(train_lines=24_000, fact_share=0.01, domains=("code",), general_items=100)
    lines = abilities(suite.train["code"])
    assert len(lines) == 23_760 and len(set(lines)) < len(lines)
    assert not {item.prompt for item in lines} & {item.prompt for item in (*abilities(suite.test["code"]), *suite.pretraining)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_items": 100_000}, r"data\.test_items: 100000 needs 100000 distinct held-out ability items of code, but only \d+ are left"),
        ({"validation_items": 100_000}, r"data\.validation_items: 100000 needs 100000 .* only \d+ are left; lower data\.validation_items"),
        ({"general_items": 1000}, r"data\.general_items: 1000 needs \d+ .* only \d+ are left"),
        ({"train_lines": 100}, r"data\.fact_share: 0\.35 of data\.train_lines 100 is 35 lines, .* 72 and all are trained"),
        ({"facts_per_domain": 100_000}, r"facts_per_domain asks for 500040 names in all, but only 88200 distinct names exist"),
        ({"domains": ("code", "poetry")}, r"data\.domains: \('code', 'poetry'\) must be distinct names out of \('code', 'math'"),
    ],
)
def test_impossible_requests_name_the_field_the_value_and_what_there_is(changes, message):
    with pytest.raises(ValueError, match=message):
        build(**changes)
