"""The suite as lm-eval tasks, scored at the ends of stages (paper, section Measures).

Each domain and kind becomes a local ``loglikelihood`` task: a YAML file and a JSONL file. Targets end in
the EOS string and follow the prompt without a delimiter, so lm-eval's accuracy is exactly "every answer
token is the most likely one". Tasks are built once per replicate and reused for every model.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from io import StringIO
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch import nn
from transformers import PreTrainedTokenizerFast

from sparsecl.items import Item
from sparsecl.records import write_text
from sparsecl.scoring import ItemScores
from sparsecl.tokenizer import EOS, Row

logging.getLogger("lm_eval").setLevel(logging.ERROR)
datasets.disable_progress_bars()


class _Scorer(HFLM):
    """lm-eval's own scorer; the same strings go to every model of a replicate, so they are tokenised once."""

    def __init__(self, encoded: dict[tuple, list[int]], **settings) -> None:
        self._encoded = encoded
        super().__init__(**settings)

    def tok_encode(self, string: str, *positional, **named) -> list[int]:
        key = (string, positional, tuple(sorted(named.items())))
        if key not in self._encoded:
            self._encoded[key] = super().tok_encode(string, *positional, **named)
        return self._encoded[key]


class EvaluationTasks:
    """lm-eval tasks over groups of items, e.g. one group per (domain, kind)."""

    def __init__(self, groups: Mapping[tuple[str, str], Sequence[Item]], directory: Path) -> None:
        self._encoded: dict[tuple, list[int]] = {}
        self.names = {group: "sparsecl_" + "_".join(group) for group in groups}
        for group, items in groups.items():
            _write_task(self.names[group], items, directory)
        manager = TaskManager(include_path=str(directory), include_defaults=False)
        self.tasks = manager.load(list(self.names.values()))["tasks"]
        with redirect_stderr(StringIO()):  # its progress bars obey no setting
            for task in self.tasks.values():
                task.build_all_requests()

    def evaluate(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerFast,
        rows: Mapping[tuple[str, str], Sequence[Row]],
        max_length: int,
        batch: int,
    ) -> dict[tuple[str, str], ItemScores]:
        """Score `model` on every group; `rows` are the same items tokenised and give the answers' lengths."""
        was_training = model.training
        # lm-eval keeps one token more than its max_length, because the last one is only predicted.
        language_model = _Scorer(
            self._encoded, pretrained=model, tokenizer=tokenizer, batch_size=batch, max_length=max_length - 1, add_bos_token=True
        )
        model.eval()
        requests = [request for name in self.names.values() for request in self.tasks[name].instances]
        # Not `evaluate`, which builds all requests anew for every model: the same requests go to the same scorer.
        replies = iter(language_model.loglikelihood(requests, disable_tqdm=True))
        model.train(was_training)
        return {group: self._item_scores(name, list(islice(replies, len(rows[group]))), rows[group]) for group, name in self.names.items()}

    def _item_scores(self, name: str, replies: Sequence[tuple[float, bool]], rows: Sequence[Row]) -> ItemScores:
        documents = [request.doc for request in self.tasks[name].instances]
        if len(documents) != len(rows):
            raise RuntimeError(f"task {name} has {len(documents)} documents for {len(rows)} rows; the tasks are not those of these rows")
        correct = [self.tasks[name].process_results(document, [reply])["acc"] for document, reply in zip(documents, replies, strict=True)]
        tokens = np.array([len(row.ids) - row.answer_start for row in rows])
        return ItemScores(np.array(correct, bool), np.array([-float(loglikelihood) for loglikelihood, _ in replies]) / tokens)


def answers_that_fit(tokenizer: PreTrainedTokenizerFast, items: Sequence[Item], max_length: int) -> list[Item]:
    """Items whose whole answer fits behind one token of context: lm-eval refuses longer ones, and so do we.

    Raises ValueError where none fits.
    """
    lengths = [len(ids) for ids in tokenizer([item.answer + EOS for item in items], add_special_tokens=False)["input_ids"]]
    fitting = [item for item, length in zip(items, lengths, strict=True) if length < max_length]
    if not fitting:
        raise ValueError(
            f"no answer of {items[0].domain} fits a row of {max_length} tokens (shortest: {min(lengths)}); raise tokenizer.max_length"
        )
    return fitting


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
