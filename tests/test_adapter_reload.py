"""A saved adapter reloads to the same outputs, its mask put back; and methods follow their model to another device.

No accelerator is needed: `meta` stands for the other device, where tensors have a place and a shape but no values.
"""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_algorithms import expert_model
from test_continual_methods import batch_of, context, sparse, weights_of
from test_orthogonal_lora import run_stage, train_stage
from torch.fx.experimental import _config

from sparsecl.continual_methods import method_of
from sparsecl.continual_methods.lora import ADAPTER
from sparsecl.continual_methods.masked_lora import MaskedLoraLinear, load_masked_adapter
from sparsecl.continual_methods.orthogonal_lora import adapter_layers
from sparsecl.continual_methods.protected_subspace import gradient_moments, input_moments
from sparsecl.continual_methods.unit_selection import _ExpertUse
from sparsecl.masks import prunable_weights
from sparsecl.method_settings import Lora, MethodSettings, OLora, OrthogonalLora
from sparsecl.modeling import load_checkpoint, save_checkpoint
from sparsecl.probing.passes import Batch

ADAPTER_METHODS = ("lora", "orthogonal-lora", "o-lora")
SETTINGS = MethodSettings(
    lora=Lora(rank=4, alpha=8.0, dropout=0.1),
    orthogonal_lora=OrthogonalLora(rank=4, alpha=8.0, energy=0.9, basis_rows=48),
    o_lora=OLora(rank=4, alpha=8.0),
)
META = torch.device("meta")


def save_adapter(model, directory) -> None:
    """Save what a stage is training, as transformers saves a model with an adapter; the flag is what its `add_adapter` sets."""
    model._hf_peft_config_loaded = True
    model.save_pretrained(directory)
    del model._hf_peft_config_loaded


def logits_of(model, rows) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(batch_of(rows[:16])[0]).logits


def second_stage(model, masks, name, rows, directory):
    """Train two stages; return the logits of the second before its merge, its base and adapter saved in `directory`."""
    method = method_of(name, SETTINGS)
    run_stage(model, masks, method, context(rows, 0))
    save_checkpoint(model, directory / "base", masks, arm="D1", key="k")
    with method.stage(model, masks, context(rows, 1)) as stage:
        train_stage(model, stage, 6)
        assert (stage.constrain is not None) == (name == "orthogonal-lora") and (stage.penalty is not None) == (name == "o-lora")
        save_adapter(model, directory / "adapter")
        return logits_of(model, rows)


# --- reloading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("name", ADAPTER_METHODS)
def test_a_saved_adapter_reloads_to_the_outputs_before_the_merge_and_merges_into_the_same_model(model, rows, tmp_path, name, is_sparse):
    masks = sparse(model) if is_sparse else None
    expected = second_stage(model, masks, name, rows, tmp_path)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 28 and all("lora_A" in key or "lora_B" in key for key in saved)
    base = load_checkpoint(tmp_path / "base", masks)
    assert not torch.allclose(logits_of(base, rows), expected, atol=1e-2)
    load = (lambda *given: load_masked_adapter(*given, masks)) if is_sparse else PeftModel.from_pretrained
    reloaded = load(base, tmp_path / "adapter")
    assert sum(isinstance(layer, MaskedLoraLinear) for layer in reloaded.modules()) == (14 if is_sparse else 0)
    torch.testing.assert_close(logits_of(reloaded, rows), expected, rtol=0, atol=0)
    assert torch.equal(weights_of(reloaded.merge_and_unload(safe_merge=True)), weights_of(model))


@pytest.mark.parametrize("name", ADAPTER_METHODS)
def test_a_masked_adapter_computes_something_else_without_its_mask_or_under_another(model, rows, tmp_path, name):
    masks = sparse(model)
    expected = second_stage(model, masks, name, rows, tmp_path)
    unmasked = PeftModel.from_pretrained(load_checkpoint(tmp_path / "base", masks), tmp_path / "adapter")
    assert not torch.allclose(logits_of(unmasked, rows), expected, atol=1e-2)
    for key, mask in masks.weights.items():
        masks.weights[key] = ~mask
    other = load_masked_adapter(load_checkpoint(tmp_path / "base"), tmp_path / "adapter", masks)
    assert not torch.allclose(logits_of(other, rows), expected, atol=1e-2)


def test_the_saved_adapters_of_o_lora_stacked_on_the_first_base_are_the_last_model(model, rows, tmp_path):
    """Inference as published, with the sum of all adapters; tolerance: float32 rounding of merged weights."""
    method = method_of("o-lora", SETTINGS)
    save_checkpoint(model, tmp_path / "base", None, arm="D1", key="k")
    for number in range(3):
        with method.stage(model, None, context(rows, number)) as stage:
            train_stage(model, stage, 6)
            save_adapter(model, tmp_path / str(number))
            expected = logits_of(model, rows)
    stacked = PeftModel.from_pretrained(load_checkpoint(tmp_path / "base"), tmp_path / "0", "0")
    for number in ("1", "2"):
        stacked.load_adapter(tmp_path / number, number)
        assert not torch.allclose(logits_of(stacked, rows), expected, atol=1e-2)
        stacked.base_model.set_adapter(["0", "1", "2"][: int(number) + 1])
    torch.testing.assert_close(logits_of(stacked, rows), expected, rtol=1e-4, atol=1e-4)


# --- devices --------------------------------------------------------------------------------------------------------


def test_routing_weights_are_summed_on_the_device_they_are_on(tokenizer):
    """The default device is another than that of the values: what names no device would be made there."""
    reader = _ExpertUse(expert_model(len(tokenizer)), "magnitude", 0.5)
    counted = torch.tensor([[True, True, False]])
    reader.begin(Batch([0], torch.zeros(1, 3, dtype=torch.long), counted, counted))
    weights, experts = torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0, 2], [2, 3], [1, 0]])
    with META:
        reader.receive(1, (weights, weights, experts))
    assert reader.total[1].tolist() == [0.75, 0.0, 0.75, 0.5] and not reader.total[0].any()


@pytest.mark.parametrize("kind", ["inputs", "gradients"])
def test_moments_are_formed_where_the_model_is(model, rows, monkeypatch, kind):
    masks, seen = sparse(model), []
    monkeypatch.setattr("transformers.models.qwen3.modeling_qwen3.create_causal_mask", lambda **_: None)  # it asks for values
    model.to(META).model.embed_tokens.register_forward_pre_hook(lambda _module, given: seen.append(given[0].device))
    with _config.patch(meta_nonzero_assume_all_nonzero=True):  # how many tokens are chosen would need values
        moments = input_moments(model, rows[:70], "test") if kind == "inputs" else gradient_moments(model, rows[:16], masks, "test")
    assert moments.keys() == prunable_weights(model).keys() and {moment.device for moment in moments.values()} == {META}
    assert seen == [META] * 2


@pytest.mark.parametrize("name", ["orthogonal-lora", "o-lora"])
def test_a_state_from_a_file_goes_to_the_device_of_the_model(model, rows, tmp_path, name):
    class Enough(Exception):
        """Leaves a stage before its merge, which needs values."""

    first, method = method_of(name, SETTINGS), method_of(name, SETTINGS)
    run_stage(model, None, first, context(rows, 0))
    first.save_state(tmp_path / "state.safetensors")
    method.load_state(tmp_path / "state.safetensors")
    with pytest.raises(Enough), method.stage(model.to(META), None, context(rows, 1)) as stage:
        state = method._bases if name == "orthogonal-lora" else method._earlier
        assert {layer.lora_A[ADAPTER].weight.device for layer in adapter_layers(model).values()} == {META}
        assert len(state) == 14 and {values.device for values in state.values()} == {META}
        assert stage.penalty is None or stage.penalty(model).device == META
        raise Enough
