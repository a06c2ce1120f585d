"""The suite as lm-eval tasks, scored at the ends of stages (paper, section Measures).

Each domain and kind becomes a local ``loglikelihood`` task: a YAML file and a JSONL file. Targets end in
the EOS string and follow the prompt without a delimiter, so lm-eval's accuracy is exactly "every answer
token is the most likely one". Tasks are built once per replicate and reused for every model.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager, get_task_dict
from torch import nn
from transformers import PreTrainedTokenizerFast

from sparsecl.items import Item
from sparsecl.records import write_text
from sparsecl.scoring import ItemScores
from sparsecl.tokenizer import EOS, Row

logging.getLogger("lm_eval").setLevel(logging.ERROR)


class EvaluationTasks:
    """lm-eval tasks over groups of items, e.g. one group per (domain, kind)."""

    def __init__(self, groups: Mapping[tuple[str, str], Sequence[Item]], directory: Path) -> None:
        self.names = {group: "sparsecl_" + "_".join(group) for group in groups}
        for group, items in groups.items():
            _write_task(self.names[group], items, directory)
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        self._tasks = get_task_dict(list(self.names.values()), task_manager=manager)

    def evaluate(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerFast, rows: Mapping[tuple[str, str], Sequence[Row]], max_length: int, batch: int
    ) -> dict[tuple[str, str], ItemScores]:
        """Score `model` on every group; `rows` are the same items tokenised and give the answers' lengths."""
        was_training = model.training
        # lm-eval keeps one token more than its max_length, because the last one is only predicted.
        language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=max_length - 1, add_bos_token=True)
        model.eval()
        # `evaluate` leaves the random states alone, unlike `simple_evaluate`, which reseeds them all.
        result = evaluate(lm=language_model, task_dict=self._tasks, bootstrap_iters=0, log_samples=True, verbosity="ERROR")
        model.train(was_training)
        return {group: _item_scores(result["samples"][name], rows[group]) for group, name in self.names.items()}


def _write_task(name: str, items: Sequence[Item], directory: Path) -> None:
    lines = [json.dumps({"prompt": item.prompt, "target": item.answer + EOS}) for item in items]
    data = directory / f"{name}.jsonl"
    write_text(data, "\n".join(lines) + "\n")
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.resolve())}},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{target}}",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    write_text(directory / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))


def _item_scores(samples: Sequence[Mapping], rows: Sequence[Row]) -> ItemScores:
    if len(samples) != len(rows):
        raise RuntimeError(f"lm-eval returned {len(samples)} samples for {len(rows)} items; the tasks are not those of these rows")
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    replies = [sample["filtered_resps"][0] for sample in ordered]
    tokens = np.array([len(row.ids) - row.answer_start for row in rows])
    return ItemScores(
        np.array([bool(greedy) for _, greedy in replies]),
        np.array([-float(loglikelihood) for loglikelihood, _ in replies]) / tokens,
    )
