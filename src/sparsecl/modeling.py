"""Models and their checkpoints: safetensors with a manifest, whole or not there (paper, section Models)."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from sparsecl.imports import hidden
from sparsecl.masks import Masks, assert_masks
from sparsecl.model_settings import FULL_ATTENTION_EVERY
from sparsecl.records import BrokenFile, read_record, sha256_of, write_record
from sparsecl.settings import Model
from sparsecl.tokenizer import tokenizer_digest

with hidden("sklearn"):  # transformers imports it, where it is installed, for a kind of generation nobody uses here
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging as hf_logging

hf_logging.disable_progress_bar()  # a bar per checkpoint of a few megabytes is noise

WEIGHTS, MANIFEST = "model.safetensors", "checkpoint.json"


def build_model(settings: Model, vocabulary: int, max_length: int, seed: int, special_ids: dict[str, int]) -> nn.Module:
    """A freshly initialised base; the same seed gives the same weights."""
    common = {
        "vocab_size": vocabulary,
        "hidden_size": settings.hidden,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "num_key_value_heads": settings.kv_heads,
        "head_dim": settings.head_dim,
        "max_position_embeddings": max_length,
        "initializer_range": settings.initializer_range,
        "tie_word_embeddings": True,
        "attn_implementation": settings.attention,
        "trained_with": settings.attention,  # kept in config.json, where transformers drops the implementation
        **special_ids,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings.experts:
            return _mixture(settings, common)
        return Qwen3ForCausalLM(Qwen3Config(intermediate_size=settings.ffn, **common))


def _mixture(settings: Model, common: dict) -> nn.Module:
    """A Qwen3.5 with routed experts; transformers' default multiplies all experts in one grouped product, the fastest here."""
    from transformers import Qwen3_5MoeForCausalLM, Qwen3_5MoeTextConfig

    configuration = Qwen3_5MoeTextConfig(
        num_experts=settings.experts,
        num_experts_per_tok=settings.experts_per_token,
        moe_intermediate_size=settings.ffn,
        shared_expert_intermediate_size=settings.shared_ffn,
        linear_num_key_heads=settings.delta_key_heads,
        linear_num_value_heads=settings.delta_value_heads,
        linear_key_head_dim=settings.delta_head_dim,
        linear_value_head_dim=settings.delta_head_dim,
        full_attention_interval=FULL_ATTENTION_EVERY,
        **common,
    )
    return Qwen3_5MoeForCausalLM(configuration)


def save_checkpoint(
    model: nn.Module, directory: Path, masks: Masks | None, tokenizer: PreTrainedTokenizerFast | None = None, **about: str | int | None
) -> None:
    """Save weights (and a tokenizer) atomically after asserting the masks; `about` goes to the manifest."""
    assert_masks(model, masks, f"before saving {directory.name}")
    temporary = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary / "tokenizer")
            about["tokenizer_sha256"] = tokenizer_digest(temporary / "tokenizer")
        write_record(temporary / MANIFEST, {**about, "weights_sha256": sha256_of(temporary / WEIGHTS)})
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise BrokenFile(f"{directory} could not be written ({error}); free space and run the same command again") from error
    if directory.exists():
        shutil.rmtree(directory)
    temporary.rename(directory)


def checkpoint_manifest(directory: Path) -> dict:
    return read_record(directory / MANIFEST)


def checkpoint_is(directory: Path | None, key: str) -> bool:
    """Whether `directory` holds a checkpoint made under exactly this unit key."""
    return directory is not None and (directory / MANIFEST).is_file() and checkpoint_manifest(directory).get("key") == key


def load_checkpoint(directory: Path, masks: Masks | None = None) -> nn.Module:
    """Load a checkpoint, verify its bytes, assert the masks. A broken one is moved aside and named."""
    manifest = checkpoint_manifest(directory)
    weights = directory / WEIGHTS
    if not weights.is_file() or sha256_of(weights) != manifest["weights_sha256"]:
        aside = directory.with_name(directory.name + ".broken")
        shutil.rmtree(aside, ignore_errors=True)
        directory.rename(aside)
        raise BrokenFile(f"{weights} is truncated or changed; it was moved to {aside.name}, run the same command again to remake it")
    model = _load_qwen3(directory) if _model_type(directory) == "qwen3" else _load_any(directory)
    assert_masks(model, masks, f"after loading {directory.name}")
    return model


def _model_type(directory: Path) -> str:
    return json.loads((directory / "config.json").read_text(encoding="utf-8"))["model_type"]


def _load_qwen3(directory: Path) -> nn.Module:
    """The study's own bases, without from_pretrained: for models this small its scaffolding costs more than the load."""
    configuration = Qwen3Config.from_pretrained(directory)
    configuration._attn_implementation = getattr(configuration, "trained_with", "sdpa")
    model = Qwen3ForCausalLM(configuration)
    missing, unexpected = model.load_state_dict(load_file(directory / WEIGHTS), strict=False)
    absent = [name for name in missing if name != "lm_head.weight"]  # tied to the embedding, hence not stored
    if absent or unexpected:
        raise BrokenFile(
            f"{directory / WEIGHTS}: tensors missing {absent[:3]} or unknown {unexpected[:3]}; delete {directory} and run again"
        )
    model.tie_weights()
    return model


def _load_any(directory: Path) -> nn.Module:
    """Any architecture of transformers; it also puts the experts of a mixture together again."""
    from transformers import AutoConfig, AutoModelForCausalLM

    configuration = AutoConfig.from_pretrained(directory, local_files_only=True)
    attention = {"attn_implementation": configuration.trained_with} if hasattr(configuration, "trained_with") else {}
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, **attention)


def parameter_count(model: nn.Module) -> int:
    """Parameters of a model, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
