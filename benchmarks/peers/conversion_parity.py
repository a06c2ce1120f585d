"""Conversion beside its published originals: same model, same calibration tokens, one run (paper, section Conversion).

    git clone https://github.com/locuslab/wanda PEERS/wanda            && git -C PEERS/wanda checkout 8e8fc87
    git clone https://github.com/IST-DASLab/sparsegpt PEERS/sparsegpt  && git -C PEERS/sparsegpt checkout 147d215
    PYTHONPATH=src python benchmarks/peers/conversion_parity.py PEERS

The originals run as they are, from their own folders. They expect a GPU and an older transformers, so three things are put
around them (`Shims`): a no-op for CUDA's synchronisation, our calibration tokens instead of C4, and the rotary embedding that
decoder layers no longer compute themselves. Nothing of their code is kept here.
Prints and writes conversion_parity.csv: share of equal mask entries, reconstruction error, held-out loss, seconds, peak memory.
"""

import argparse
import copy
import importlib
import json
import multiprocessing
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.masks import prunable_weights
from sparsecl.scoring import score_rows
from sparsecl.settings import Optimisation
from sparsecl.study_files import load_study
from sparsecl.suites import build_suite
from sparsecl.tokenizer import Row, encode, train_tokenizer
from sparsecl.training import plan_batches, train

SAMPLES, LENGTH = 128, 64  # the original keeps room for exactly 128 sequences
REPETITIONS = 3
CASES = [(algorithm, topology) for algorithm in ("wanda", "sparsegpt") for topology in ("2of4", "4of8", "unstructured")]


def trained_llama(steps: int = 600):
    """A small Llama that has learned the built-in suite's pretraining mixture; its held-out rows and its calibration tokens."""
    suite = build_suite(load_study("builtin"), 0)
    tokenizer = train_tokenizer(suite.pretraining, 768)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=LENGTH, initializer_range=0.088, tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    rows = encode(tokenizer, suite.pretraining, LENGTH)
    settings = Optimisation(steps=steps, batch=16, learning_rate=3e-3, prompt_weight=0.1)
    plan = plan_batches([len(row.ids) for row in rows], steps, 16, np.random.default_rng(0))
    train(model, rows, plan, settings, description="train a small Llama")
    stream = np.concatenate([rows[index].ids for index in np.random.default_rng(1).permutation(len(rows))])
    calibration = [Row(stream[start * LENGTH : (start + 1) * LENGTH], 1) for start in range(SAMPLES)]
    return model.eval(), tokenizer, calibration, encode(tokenizer, suite.general, LENGTH)


class Shims:
    """What the originals need around them on a CPU with today's transformers."""

    def __init__(self, peers: Path, calibration: list[Row]) -> None:
        self.peers = peers
        self.loader = [(torch.from_numpy(row.ids.astype(np.int64))[None], None) for row in calibration]

    def _module(self, folder: str, name: str):
        sys.path.insert(0, str(self.peers / folder))
        try:
            return importlib.import_module(name)
        finally:
            sys.path.pop(0)

    def _prepare(self, model) -> None:
        model.seqlen, model.hf_device_map = LENGTH, {}
        for layer in model.model.layers:
            layer.forward = _with_rotary(layer.forward, model.model.rotary_emb)

    @torch.no_grad()
    def run(self, model, algorithm: str, kept: int, group: int) -> None:
        """The original conversion of `model`, in place; group 0 means unstructured at 50 %."""
        self._prepare(model)
        zeros = group - kept
        with patch.object(torch.cuda, "synchronize", lambda *_: None), patch("builtins.print", lambda *_, **__: None):
            if algorithm == "wanda":
                prune = self._module("wanda", "lib.prune")
                options = SimpleNamespace(nsamples=SAMPLES, seed=0, sparsity_ratio=0.5, use_variant=False)
                with patch.object(prune, "get_loaders", lambda *_, **__: (self.loader, None)):
                    prune.prune_wanda(options, model, None, torch.device("cpu"), prune_n=zeros, prune_m=group)
            else:
                llama = self._module("sparsegpt", "llama")
                llama.args = SimpleNamespace(
                    nsamples=SAMPLES, true_sequential=False, minlayer=-1, maxlayer=1000, prune_only="", invert=False, wbits=16,
                    sparsity=0.5, prunen=zeros, prunem=group, percdamp=0.01, blocksize=128,
                )  # fmt: skip
                llama.llama_sequential(model, self.loader, torch.device("cpu"))


def _with_rotary(forward, rotary):
    def call(hidden, position_ids=None, position_embeddings=None, **named):
        if position_embeddings is None:
            position_ids = torch.arange(hidden.shape[1])[None] if position_ids is None else position_ids
            position_embeddings = rotary(hidden, position_ids)
        return forward(hidden, position_ids=position_ids, position_embeddings=position_embeddings, **named)

    return call


@torch.no_grad()
def reconstruction_error(dense, sparse, calibration: list[Row]) -> float:
    """Squared error of the last decoder layer's output on the calibration tokens, relative to the dense output."""
    ids = torch.from_numpy(np.stack([row.ids for row in calibration]).astype(np.int64))
    wanted, got = (model.model(ids, use_cache=False).last_hidden_state for model in (dense, sparse))
    return float(((wanted - got) ** 2).sum() / (wanted**2).sum())


def measure(dense, make) -> tuple[dict, torch.nn.Module]:
    """Median seconds and peak memory over the start of `make` on fresh copies, in a process of its own, and the converted model."""
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        process = multiprocessing.get_context("fork").Process(target=_measured, args=(dense, make, place))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the conversion stopped with exit status {process.exitcode}; its message stands above")
        model = copy.deepcopy(dense)
        model.load_state_dict(load_file(place / "model.safetensors"), strict=False)
        return json.loads((place / "cost.json").read_text()), model


def _measured(dense, make, place: Path) -> None:
    before, seconds = _resident(), []
    for _ in range(REPETITIONS):
        model = copy.deepcopy(dense)
        started = time.perf_counter()
        make(model)
        seconds.append(time.perf_counter() - started)
    save_file({name: weight.detach().clone() for name, weight in model.named_parameters()}, place / "model.safetensors")
    (place / "cost.json").write_text(json.dumps({"seconds": statistics.median(seconds), "peak_memory_mb": (_resident() - before) / 1e6}))


def _resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(dense, tokenizer, calibration, held_out, shims: Shims, algorithm: str, topology: str) -> list[dict]:
    arm = parse_arm(f"S0-{topology}-{algorithm}")
    settings = load_study("builtin").sparsify
    data = ConversionData(calibration, tokenizer, (), lambda steps, batch: (), 0)
    kept, group = (int(number) for number in topology.split("of")) if "of" in topology else (0, 0)
    ours_cost, ours = measure(dense, lambda model: convert(model, arm, settings, data))
    original_cost, original = measure(dense, lambda model: shims.run(model, algorithm, kept, group))
    pairs = [((a != 0), (b != 0)) for a, b in zip(prunable_weights(ours).values(), prunable_weights(original).values(), strict=True)]
    agreement = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
    rows = []
    for code, model, cost in (("ours", ours, ours_cost), ("original", original, original_cost)):
        rows.append(
            {
                "algorithm": algorithm, "topology": topology, "code": code, "mask_agreement": agreement,
                "kept": float(np.mean([float((weight != 0).float().mean()) for weight in prunable_weights(model).values()])),
                "reconstruction_error": reconstruction_error(dense, model, calibration),
                "held_out_nll": score_rows(model, held_out, 128).loss, **cost,
            }
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peers", type=Path, help="folder with the clones wanda/ and sparsegpt/")
    peers = parser.parse_args().peers
    for name in ("wanda/lib/prune.py", "sparsegpt/llama.py"):
        if not (peers / name).is_file():
            parser.error(f"{peers / name} is not there; clone the originals as the text above says")
    torch.set_num_threads(1)
    dense, tokenizer, calibration, held_out = trained_llama()
    shims = Shims(peers, calibration)
    import llmcompressor  # noqa: F401  importing is no part of a conversion

    print(f"dense held-out loss {score_rows(dense, held_out, 128).loss:.4f}")
    rows = [row for case in CASES for row in compare(dense, tokenizer, calibration, held_out, shims, *case)]
    frame = pd.DataFrame(rows)
    print(frame.round(4).to_string(index=False))
    frame.to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
