"""Cost of a pass with probes beside a plain forward pass of the same model over the same rows, measured side by side.

    ./run_all.sh --bench

A Qwen3 of realistic proportions (width 512, feed-forward 1536, 4 layers, random weights) and, for routing, a Qwen3.5 with 16
experts of the same width; rows of 64 to 128 tokens in batches of 16, one thread. Every batch is read plainly and with each set
of readers, in turns whose order is drawn anew for every batch; reported is the median of the ratios to the plain pass over that
batch, with its interval. The plain pass is `run_pass` without readers: it forms the logits of the last position alone. Seconds
are CPU seconds of the thread. After the passes:

- `once`: an activation reader of all statistics is made, and gives its profile, without a pass between; beside a plain pass over
  96 documents.
- `overlap table`: `overlap_table` of 4 domains (6 pairs) in all 4 layers, from profiles of 96 documents each: every selection at
  every fraction, 100 exchanges of labels in 5 splits. Beside the plain passes over the texts that it follows, 96 documents
  of each domain and of general text.
- `routing table`: `routing_table` of the mixture, likewise, beside plain passes of the mixture.
- `a comparison`: what drift makes of the hidden states of two models, of at most as many tokens as a study compares
  (`DriftProbe.tokens`), so that it costs the same for any length of text; told as the documents a plain pass reads in that time.

Ends with status 1 where all readers of a model together miss their limit. `plain again` has the same cost by construction: what it
shows beside 1 is the error of the measurement.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import nn

from sparsecl.config import Model
from sparsecl.items import GENERAL
from sparsecl.modeling import build_model
from sparsecl.probing.activations import GROUPS, ActivationReader, activation_profile
from sparsecl.probing.drift import drift_between, key_subspaces_of
from sparsecl.probing.hidden_states import HiddenStateReader, HiddenStates
from sparsecl.probing.overlap import SELECTIONS, overlap_table
from sparsecl.probing.passes import Reader, run_pass
from sparsecl.probing.routing import RouterReader, SharedGateReader, routing_profile
from sparsecl.probing.routing_table import routing_table
from sparsecl.settings import DriftProbe, RoutingProbe

MOST = 1.10  # of a plain pass
DENSE = Model(family="qwen3", hidden=512, ffn=1536, layers=4, heads=8, kv_heads=4, head_dim=64)
MIXTURE = Model(
    family="qwen3_5_moe", hidden=512, ffn=384, layers=4, heads=8, kv_heads=4, head_dim=64, experts=16, experts_per_token=4,
    shared_ffn=384, delta_key_heads=8, delta_value_heads=8, delta_head_dim=64, router_aux_coefficient=0.01,
)  # fmt: skip
VOCABULARY, SHORTEST, LONGEST, BATCH = 4096, 64, 128, 16
EXCLUDED = (0, 1, 2)
DOCUMENTS = 96  # read per domain
TEXTS = ("a", "b", "c", "d", GENERAL)
FRACTIONS = (0.01, 0.05, 0.10)
PERMUTATIONS = 100
BATCHES, WARM = 60, 3
PLAIN, AGAIN, ALL = "plain", "plain again", "all readers"

Rows = list[list[int]]
ReaderSets = dict[str, list[Reader]]


def random_model(shape: Model) -> nn.Module:
    return build_model(shape, VOCABULARY, LONGEST, 0, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0})


def random_rows(generator: np.random.Generator) -> Rows:
    """A batch of documents: BOS, then any words."""
    return [[1, *generator.integers(3, VOCABULARY, generator.integers(SHORTEST, LONGEST) - 1).tolist()] for _ in range(BATCH)]


def activations(model: nn.Module, fractions: Sequence[float] = (), words: bool = False) -> ActivationReader:
    return ActivationReader(model, DOCUMENTS, fractions, torch.ones(VOCABULARY) if words else None)


def dense_readers(model: nn.Module) -> ReaderSets:
    """By name the readers of a pass. A reader keeps its tables over all batches, as in a study."""
    return {
        PLAIN: [],
        AGAIN: [],
        "magnitude, contrast": [activations(model)],
        "and same tokens": [activations(model, words=True)],
        "and frequency": [activations(model, FRACTIONS, words=True)],
        "hidden states": [hidden_states()],
        ALL: [activations(model, FRACTIONS, words=True), hidden_states()],
    }


def mixture_readers(model: nn.Module) -> ReaderSets:
    return {PLAIN: [], AGAIN: [], "routing": routing(model), ALL: [*routing(model), hidden_states()]}


def hidden_states() -> HiddenStateReader:
    """Collects the states of as many tokens of a batch as a study compares of 96 documents, at places that every document has."""
    tokens, generator = DriftProbe().tokens // DOCUMENTS, np.random.default_rng(2)
    places = [sorted(generator.choice(np.arange(1, SHORTEST - 1), tokens, replace=False).tolist()) for _ in range(BATCH)]
    return HiddenStateReader(lambda _states: None, places)


def routing(model: nn.Module) -> list[Reader]:
    return [RouterReader(model, DOCUMENTS, torch.ones(VOCABULARY), GROUPS), SharedGateReader(model, DOCUMENTS, GROUPS)]


def comparison_of_two_models() -> float:
    """CPU seconds of all measures of drift between two sets of states of as many tokens as a study compares at most."""
    generator = torch.Generator().manual_seed(0)
    tokens = DriftProbe().tokens
    before = torch.randn(DENSE.layers, tokens, DENSE.hidden, generator=generator)
    after = before + 0.3 * torch.randn(before.shape, generator=generator)
    documents = torch.arange(tokens) // LONGEST
    first, second = ([HiddenStates(states, documents)] for states in (before, after))
    key = key_subspaces_of(first, DriftProbe().energy)
    return float(np.median([seconds_of(lambda: drift_between(first, second, key)) for _ in range(3)]))


def random_texts() -> dict[str, Rows]:
    """The documents of four domains and of general text, which differ by chance alone: the tables cost the same."""
    generator = np.random.default_rng(1)
    return {name: [row for _ in range(DOCUMENTS // BATCH) for row in random_rows(generator)] for name in TEXTS}


def seconds_of_overlap_table(model: nn.Module) -> float:
    """CPU seconds of the table of overlaps in all selections and fractions."""
    choices = {"excluded_tokens": EXCLUDED, "top_fractions": FRACTIONS, "token_weights": torch.ones(VOCABULARY)}
    profiles = {name: activation_profile(model, rows, BATCH, **choices) for name, rows in random_texts().items()}
    general = profiles.pop(GENERAL)

    def table() -> None:
        overlap_table(profiles, general, FRACTIONS, PERMUTATIONS, np.random.default_rng(0), selections=SELECTIONS)

    return float(np.median([seconds_of(table) for _ in range(3)]))


def seconds_of_routing_table(model: nn.Module) -> float:
    """CPU seconds of the table of routing."""
    choices = {"excluded_tokens": EXCLUDED, "token_weights": torch.ones(VOCABULARY)}
    profiles = {name: routing_profile(model, rows, BATCH, **choices) for name, rows in random_texts().items()}
    general = profiles.pop(GENERAL)

    def table() -> None:
        routing_table(profiles, general, RoutingProbe().top_p, PERMUTATIONS, np.random.default_rng(0))

    return float(np.median([seconds_of(table) for _ in range(3)]))


def seconds_of(action: Callable[[], object]) -> float:
    started = time.thread_time()
    action()
    return time.thread_time() - started


def seconds_of_batches(model: nn.Module, sets: ReaderSets) -> dict[str, np.ndarray]:
    """CPU seconds of every batch under every set of readers."""
    generator = np.random.default_rng(0)
    seconds = {name: [] for name in sets}
    for _ in range(WARM + BATCHES):
        rows = random_rows(generator)
        for name in generator.permutation(list(sets)):
            seconds[name].append(seconds_of(partial(run_pass, model, rows, BATCH, sets[name], excluded_tokens=EXCLUDED)))
    return {name: np.array(found[WARM:]) for name, found in seconds.items()}


def median_ratio(ratios: np.ndarray) -> tuple[float, float, float]:
    """Median of paired ratios with its 95 % interval, without an assumption on their distribution."""
    interval = stats.quantile_test(ratios, q=1, p=0.5).confidence_interval(0.95)  # of the median; q is the tested value, not used
    return float(np.median(ratios)), interval.low, interval.high


def once_a_pass(model: nn.Module) -> float:
    """CPU seconds of making a reader of all statistics and its profile."""
    return float(np.median([seconds_of(lambda: activations(model, FRACTIONS, words=True).profile()) for _ in range(5)]))


def measured(name: str, seconds: dict[str, np.ndarray]) -> bool:
    """Print the table of a model; whether it keeps the limit."""
    rows = [(readers, 1000 * np.median(found), *median_ratio(found / seconds[PLAIN])) for readers, found in seconds.items()]
    table = pd.DataFrame(rows, columns=[name, "median ms", "ratio", "low", "high"]).set_index(name)
    print(table.round(3).to_string())
    if (ratio := table["ratio"][ALL]) > MOST:
        print(f"limit missed: {ALL} of the {name} cost {ratio:.3f} plain passes, at most {MOST} were promised")
    return ratio <= MOST


def told(name: str, seconds: float, documents: int, plain: np.ndarray) -> None:
    """Print what something costs beside the plain passes over so many documents; `plain` are the seconds of batches."""
    share = seconds / (np.median(plain) * documents / BATCH)
    print(f"{name}: {seconds:.4f} s, {100 * share:.1f} % of plain passes over {documents} documents")


def main() -> int:
    torch.set_num_threads(1)
    dense, mixture = random_model(DENSE), random_model(MIXTURE)
    seconds, of_mixture = seconds_of_batches(dense, dense_readers(dense)), seconds_of_batches(mixture, mixture_readers(mixture))
    kept = [measured("dense model", seconds), measured("mixture", of_mixture)]
    told("once", once_a_pass(dense), DOCUMENTS, seconds[PLAIN])
    told("overlap table", seconds_of_overlap_table(dense), len(TEXTS) * DOCUMENTS, seconds[PLAIN])
    told("routing table", seconds_of_routing_table(mixture), len(TEXTS) * DOCUMENTS, of_mixture[PLAIN])
    compared = comparison_of_two_models()
    documents = compared / np.median(seconds[PLAIN]) * BATCH
    print(f"a comparison: {compared:.2f} s for {DriftProbe().tokens} tokens, a plain pass over {documents:.0f} documents")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
