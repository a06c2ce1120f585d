"""The tokenizer of a replicate and the rows it makes (paper, section Data).

Byte-level BPE with split digits, trained on the pretraining items. A row is ``BOS prompt answer EOS``,
cut on the left to `max_length`, exactly as lm-eval cuts it, so that both scorers see the same tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sparsecl.imports import hidden
from sparsecl.items import Item
from sparsecl.records import sha256_of

with hidden("scipy", before="transformers"):  # transformers would import it for losses of object detection, which nobody uses here
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
TRAINING_ITEMS = 20_000  # more lines change no merge of a vocabulary this small, but cost seconds


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of one item; those from `answer_start` on are the answer, EOS included."""

    ids: np.ndarray  # (tokens,) int64
    answer_start: int


def train_tokenizer(items: Sequence[Item], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer of `vocabulary` tokens on the items; the same items give the same tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((item.prompt + item.answer for item in items[:TRAINING_ITEMS]), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(directory)


def tokenizer_digest(directory: Path) -> str:
    """sha256 of the merges and specials: a changed tokenizer silently ruins every checkpoint made with another."""
    return sha256_of(directory / "tokenizer.json")


def encode(tokenizer: PreTrainedTokenizerFast, items: Iterable[Item], max_length: int) -> list[Row]:
    """Tokenise items as ``BOS prompt answer EOS``; raise ValueError where a prompt ends in white space."""
    items = list(items)
    if not items:
        return []
    for item in items:
        if item.prompt != item.prompt.rstrip():
            raise ValueError(f"prompt {item.prompt[-40:]!r} ends in white space; move it to the start of the answer")
    whole = tokenizer([item.prompt + item.answer + EOS for item in items])["input_ids"]
    prompts = tokenizer([item.prompt for item in items])["input_ids"]
    return [_cut(np.asarray(ids), len(prompt), max_length) for ids, prompt in zip(whole, prompts, strict=True)]


def _cut(ids: np.ndarray, answer_start: int, max_length: int) -> Row:
    surplus = max(len(ids) - max_length, 0)
    # The first token of a row is never predicted, so an answer that fills the row starts at 1.
    return Row(ids[surplus:], max(answer_start - surplus, 1))
