"""Shared fixtures: shapes are checked at run time, and a tiny model with its data is made once."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from jaxtyping import install_import_hook  # noqa: E402

install_import_hook(
    [
        "sparsecl.topologies",
        "sparsecl.mask_selection",
        "sparsecl.masks",
        "sparsecl.conversion",
        "sparsecl.block_pruning",
        "sparsecl.wandaplusplus",
        "sparsecl.maskllm",
        "sparsecl.reconstruction",
        "sparsecl.training",
        "sparsecl.scoring",
        "sparsecl.metrics",
        "sparsecl.intervals",
        "sparsecl.bootstrap",
        "sparsecl.crossover",
        "sparsecl.dense_cut",
        "sparsecl.frontier",
        "sparsecl.inference_speed",
        "sparsecl.orders",
        "sparsecl.packed_masks",
        "sparsecl.continual_methods.ewc",
        "sparsecl.continual_methods.masked_lora",
        "sparsecl.continual_methods.protected_subspace",
        "sparsecl.continual_methods.o_lora",
        "sparsecl.continual_methods.unit_selection",
        "sparsecl.continual_methods.selection_history",
        "sparsecl.continual_methods.activation_mask",
        "sparsecl.continual_methods.activation_mask_branch",
        "sparsecl.load_balancing",
        "sparsecl.probing.routing",
        "sparsecl.probing.routing_table",
        "sparsecl.probing.passes",
        "sparsecl.probing.activations",
        "sparsecl.probing.overlap",
        "sparsecl.probing.top_sets",
        "sparsecl.probing.subspaces",
        "sparsecl.probing.hidden_moments",
        "sparsecl.probing.hidden_states",
        "sparsecl.probing.drift",
        "sparsecl.drift_frontier",
        "sparsecl.figures_masks",
    ],
    "beartype.beartype",
)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

from sparsecl.config import Model  # noqa: E402
from sparsecl.items import Item  # noqa: E402
from sparsecl.modeling import build_model  # noqa: E402
from sparsecl.tokenizer import encode, train_tokenizer  # noqa: E402

TINY = Model(family="qwen3", hidden=32, ffn=64, layers=2, heads=2, kv_heads=1, head_dim=16)
MAX_LENGTH = 32


@pytest.fixture(scope="session")
def items() -> tuple[Item, ...]:
    """Sums: enough structure to learn, prompts of several lengths."""
    generator = np.random.default_rng(0)
    pairs = [tuple(int(x) for x in generator.integers(0, 30, 2)) for _ in range(400)]
    return tuple(Item("math", "ability", "sum", f"{'please ' * (a % 3)}add {a} and {b}:", f" {a + b}") for a, b in pairs)


@pytest.fixture(scope="session")
def tokenizer(items):
    return train_tokenizer(items, 320)


@pytest.fixture(scope="session")
def rows(tokenizer, items):
    return encode(tokenizer, items, MAX_LENGTH)


@pytest.fixture
def model(tokenizer):
    torch.set_num_threads(1)
    specials = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return build_model(TINY, len(tokenizer), MAX_LENGTH, seed=0, special_ids=specials)
