"""Peak memory of a conversion against model size, and what its masks weigh at rest.

    ./run_all.sh --bench

Every case runs in a process of its own. `over weights` is what the conversion held beside the dense model: the copy it works
on, one decoder layer's statistics, the calibration rows. The mask file is given in bits per masked weight.
"""

import multiprocessing
import resource
import tempfile
from pathlib import Path

import numpy as np
import torch

from sparsecl.arms import parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.masks import save_masks
from sparsecl.modeling import build_model, parameter_count
from sparsecl.settings import Model
from sparsecl.study_files import load_study
from sparsecl.suites import build_suite
from sparsecl.tokenizer import Row, train_tokenizer

WIDTHS, LAYERS, ROWS, LENGTH = (128, 256, 512), 4, 16, 64
ARMS = ("S0-2of4-magnitude", "S0-2of4-wanda", "S0-2of4-sparsegpt", "S0-block32-sparsegpt")


def resident() -> float:
    """Peak memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one_case(name: str, width: int, answer) -> None:
    torch.set_num_threads(1)
    study = load_study("builtin")
    tokenizer = train_tokenizer(build_suite(study, 0).pretraining, 768)
    heads = width // 64
    shape = Model(family="qwen3", hidden=width, ffn=3 * width, layers=LAYERS, heads=heads, kv_heads=heads, head_dim=64)
    specials = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = build_model(shape, len(tokenizer), LENGTH, 0, specials)
    drawn = np.random.default_rng(0)
    rows = [Row(drawn.integers(3, len(tokenizer), LENGTH), 1) for _ in range(ROWS)]
    import llmcompressor  # noqa: F401  its own size is not the conversion's

    before = resident()
    masks = convert(model, parse_arm(name), study.sparsify, ConversionData(rows, tokenizer, (), lambda steps, batch: (), 0))
    with tempfile.TemporaryDirectory() as directory:
        save_masks(masks, Path(directory) / "mask")
        bits = 8 * (Path(directory) / "mask.safetensors").stat().st_size / masks.size
    weights = 4 * parameter_count(model)
    over = resident() - before
    answer.put({
        "arm": name, "million weights": weights / 4e6, "weights MB": weights / 1e6, "over weights MB": over / 1e6,
        "over / weights": over / weights, "mask bits a weight": bits,
    })  # fmt: skip


def main() -> None:
    context = multiprocessing.get_context("spawn")
    for width in WIDTHS:
        for name in ARMS:
            answer = context.Queue()
            process = context.Process(target=one_case, args=(name, width, answer))
            process.start()
            measured = answer.get(timeout=600)
            process.join()
            shown = {name: value if isinstance(value, str) else round(value, 2) for name, value in measured.items()}
            print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
