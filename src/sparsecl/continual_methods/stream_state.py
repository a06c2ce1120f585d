"""The tensors that a method carries along a stream, and the finished domains behind them (paper, section Methods).

One safetensors file holds both, so that a stream taken up again knows at which stage its state was left.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sparsecl.continual_methods.method import StageContext
from sparsecl.records import BrokenFile, write_atomically


def check_follows(method: str, context: StageContext, domains: tuple[str, ...]) -> None:
    """ValueError where the stage's earlier domains are not those behind the state of `method`."""
    if context.earlier != domains:
        raise ValueError(
            f"{method}: stage {context.domain} follows {context.earlier}, but the state knows {domains}; "
            "load the state saved at the end of the stage before"
        )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], domains: tuple[str, ...]) -> None:
    """Write `tensors` and the finished `domains` to the safetensors file `path`, atomically."""
    whole = {name: values.contiguous() for name, values in tensors.items()}
    write_atomically(path, lambda temporary: save_file(whole, temporary, metadata={"domains": "\n".join(domains)}))


def load_tensors(path: Path, method: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors and finished domains that `save_tensors` wrote; BrokenFile where `path` is missing or not whole."""
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
            return tensors, tuple(name for name in file.metadata()["domains"].split("\n") if name)
    except (SafetensorError, OSError, KeyError, TypeError) as error:  # TypeError: a file without metadata
        raise BrokenFile(f"{path} is no state of {method} ({error}); delete the stage's folder and run the same command again") from error
