"""Scoring: greedy decoding by hand, batch independence, and lm-eval measuring the same."""

import numpy as np
import pytest
import torch
from conftest import MAX_LENGTH
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM

from sparsecl.evaluation import EvaluationTasks, answers_that_fit
from sparsecl.items import Item
from sparsecl.scoring import score_rows
from sparsecl.settings import Optimisation
from sparsecl.tokenizer import EOS, encode
from sparsecl.training import plan_batches, train


@pytest.fixture(scope="module")
def trained(rows, tokenizer):
    from conftest import TINY

    from sparsecl.modeling import build_model

    model = build_model(TINY, len(tokenizer), MAX_LENGTH, seed=0, special_ids={"pad_token_id": tokenizer.pad_token_id})
    plan = plan_batches([len(row.ids) for row in rows], 300, 32, np.random.default_rng(0))
    train(model, rows, plan, Optimisation(steps=300, batch=32, learning_rate=5e-3), description="test")
    return model


def test_right_means_that_greedy_decoding_gives_the_answer(trained, rows):
    scores = score_rows(trained, rows[:60], batch=16)
    assert 0.05 < scores.score < 1.0  # the comparison below sees both right and wrong items
    for row, right in zip(rows[:60], scores.correct, strict=True):
        ids = list(row.ids[: row.answer_start])
        while len(ids) < len(row.ids):
            ids.append(int(trained(torch.tensor([ids])).logits[0, -1].argmax()))
        assert (ids == row.ids.tolist()) == right


def test_scores_do_not_depend_on_the_batch(trained, rows):
    one, many = score_rows(trained, rows[:50], batch=1), score_rows(trained, rows[:50], batch=50)
    assert (one.correct == many.correct).all()
    assert one.nll == pytest.approx(many.nll, abs=1e-5)


def test_lm_eval_measures_the_same_as_the_batched_scorer(trained, tokenizer, items, tmp_path):
    text = [Item("general", "ability", "text", "", "add 3 and 4: please add 5") for _ in range(3)]
    # The long prompt is cut on the left by both scorers.
    long = [Item("legal", "ability", "sum", "please " * 40 + f"add {n} and 2:", f" {n + 2}") for n in range(9)]
    groups = {("math", "ability"): list(items[:40]), ("legal", "ability"): long, ("general", "ability"): text}
    rows = {group: encode(tokenizer, members, MAX_LENGTH) for group, members in groups.items()}
    tasks = EvaluationTasks(groups, tmp_path)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    by_lm_eval = tasks.evaluate(trained, tokenizer, rows, MAX_LENGTH, batch=16)
    assert torch.equal(before[0], torch.random.get_rng_state()) and (before[1] == np.random.get_state()[1]).all()
    whole = evaluate(lm=HFLM(pretrained=trained, tokenizer=tokenizer, max_length=MAX_LENGTH - 1, add_bos_token=True), task_dict=tasks.tasks)
    for group in groups:
        assert whole["results"][tasks.names[group]]["acc,none"] == by_lm_eval[group].score  # lm-eval's own loop says so too
        own = score_rows(trained, rows[group], batch=16)
        assert (own.correct == by_lm_eval[group].correct).all()
        assert own.nll == pytest.approx(by_lm_eval[group].nll, abs=1e-4)


def test_rows_end_in_eos_and_know_where_their_answer_starts(tokenizer, items, rows):
    for item, row in zip(items[:30], rows[:30], strict=True):
        assert row.ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(row.ids[1 : row.answer_start]) == item.prompt
        assert tokenizer.decode(row.ids[row.answer_start :]) == item.answer + EOS


def test_a_prompt_that_ends_in_white_space_is_refused(tokenizer):
    with pytest.raises(ValueError, match="ends in white space; move it to the start of the answer"):
        encode(tokenizer, [Item("math", "ability", "sum", "add 1 and 2: ", "3")], MAX_LENGTH)


def test_scoring_nothing_is_an_error(trained):
    with pytest.raises(ValueError, match="no rows to score"):
        score_rows(trained, [], batch=4)


def test_answers_longer_than_a_row_are_left_out_and_exact_fits_kept(trained, tokenizer, tmp_path):
    text = "please add " * 40
    lengths = {size: len(tokenizer(text[:size] + EOS, add_special_tokens=False)["input_ids"]) for size in range(20, len(text))}
    longest = max(size for size, length in lengths.items() if length == MAX_LENGTH - 1)
    pieces = [Item("general", "ability", "text", "", text[:size]) for size in (20, longest, longest + 12)]
    kept = answers_that_fit(tokenizer, pieces, MAX_LENGTH)
    assert kept == pieces[:2]
    rows = {("general", "ability"): encode(tokenizer, kept, MAX_LENGTH)}
    by_lm_eval = EvaluationTasks({("general", "ability"): kept}, tmp_path).evaluate(trained, tokenizer, rows, MAX_LENGTH, batch=2)
    assert by_lm_eval["general", "ability"].nll == pytest.approx(score_rows(trained, rows["general", "ability"], 2).nll, abs=1e-4)
    with pytest.raises(ValueError, match="no answer of general fits a row of 8 tokens"):
        answers_that_fit(tokenizer, pieces[1:], 8)
