"""Peak memory of a conversion: beside the weights it holds one decoder layer's working set, whatever the number of layers.

    ./run_all.sh --bench

Every case runs in a process of its own, whose peak is reset right before the conversion (Linux: /proc/self/clear_refs); a
tiny model is converted before that, so that imports and code are not counted. `over` is the peak minus what was resident
with the dense weights loaded. It is given as a multiple of the weights and of the working set of one decoder layer in closed
form, bytes: 4 for each of its weights (Wanda++ 16: the regional gradient, a step's gradient and RMSprop's moment are as
large); 4 n^2 for the Hessian of each linear layer with n inputs (SparseGPT) or 4 n for its norms (Wanda); 4 x rows x tokens x
width for the hidden states of the calibration rows. The masks come on top of it.
"""

import ctypes
import gc
import multiprocessing
import os
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sparsecl.arms import Arm, parse_arm
from sparsecl.conversion import ConversionData, convert
from sparsecl.masks import save_masks
from sparsecl.modeling import build_model, parameter_count
from sparsecl.settings import Model
from sparsecl.study_files import load_study
from sparsecl.suites import build_suite
from sparsecl.tokenizer import Row, train_tokenizer

ROWS, LENGTH = 8, 64
LAYERS = (2, 8, 16)
CASES = [  # arm, width, layers: first the model grows by layers of one size, then the layer itself grows
    *((arm, 512, layers) for arm in ("S0-2of4-magnitude", "S0-2of4-wanda", "S0-block32-sparsegpt") for layers in LAYERS),
    *(("S0-2of4-wanda++", 256, layers) for layers in LAYERS[:2]),
    *(("S0-2of4-sparsegpt", width, 2) for width in (128, 512, 1024)),
]


def resident(field: str) -> int:
    """Memory of this process, bytes: `VmRSS` now, or `VmHWM`, its peak since the last reset."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def working_set(layer: nn.Module, arm: Arm, width: int) -> int:
    """What one decoder layer needs while it is converted, bytes (the closed form above)."""
    power = {"sparsegpt": 2, "wanda": 1, "wanda++": 1}.get(arm.algorithm)
    inputs = [module.in_features for module in layer.modules() if isinstance(module, nn.Linear)]
    statistics = sum(size**power for size in inputs) + ROWS * LENGTH * width if power else 0
    return 4 * ((4 if arm.algorithm == "wanda++" else 1) * parameter_count(layer) + statistics)


def shape_of(width: int, layers: int) -> Model:
    return Model(family="qwen3", hidden=width, ffn=3 * width, layers=layers, heads=width // 64, kv_heads=width // 64, head_dim=64)


def one_case(name: str, width: int, layers: int) -> dict[str, str | float]:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed leaves the process, as matrices above 32 MB always do
    study, arm, drawn = load_study("builtin"), parse_arm(name), np.random.default_rng(0)
    tokenizer = train_tokenizer(build_suite(study, 0).pretraining, 768)
    specials = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    data = ConversionData([Row(drawn.integers(3, 768, LENGTH), 1) for _ in range(ROWS)], tokenizer, (), lambda steps, batch: (), 0)
    convert(build_model(shape_of(64, 2), len(tokenizer), LENGTH, 0, specials), arm, study.sparsify, data)
    model = build_model(shape_of(width, layers), len(tokenizer), LENGTH, 0, specials)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed memory must not hide what the conversion takes

    before, started = resident("VmRSS"), time.process_time()
    Path("/proc/self/clear_refs").write_text("5")
    masks = convert(model, arm, study.sparsify, data)
    over, seconds = resident("VmHWM") - before, time.process_time() - started

    with tempfile.TemporaryDirectory() as directory:
        save_masks(masks, Path(directory) / "mask")
        bits = 8 * (Path(directory) / "mask.safetensors").stat().st_size / masks.size
    weights, needed = 4 * parameter_count(model), working_set(model.model.layers[0], arm, width)
    return {
        "arm": name, "width": width, "layers": layers, "weights MB": weights / 1e6, "working set MB": needed / 1e6,
        "over MB": over / 1e6, "over / weights": over / weights, "over / working set": over / needed,
        "mask bits a weight": bits, "CPU seconds": seconds,
    }  # fmt: skip


def main() -> None:
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("conversion_memory: no /proc/self/clear_refs; a peak can be reset on Linux only, run the benchmark there")
    os.environ.setdefault("LLM_COMPRESSOR_LOG_LEVEL", "ERROR")  # read when the package is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sparsecl.conversion", "sparsecl.wandaplusplus"])  # imported once, not in every case
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as processes:
        for case in CASES:
            measured = processes.submit(one_case, *case).result()
            shown = {name: value if isinstance(value, str) else round(value, 2) for name, value in measured.items()}
            print(", ".join(f"{name} {value}" for name, value in shown.items()), flush=True)


if __name__ == "__main__":
    main()
