"""The base with routed experts: settings, training, padding, load balancing, checkpoints."""

import numpy as np
import pytest
import torch
from conftest import MAX_LENGTH, TINY
from pydantic import ValidationError
from torch import nn

from sparsecl.costs import shape_of
from sparsecl.load_balancing import imbalance, load_balancing, routers
from sparsecl.masks import prunable_weights
from sparsecl.modeling import build_model, load_checkpoint, parameter_count, save_checkpoint
from sparsecl.settings import Model, Optimisation
from sparsecl.training import pad_rows, plan_batches, token_weights, train, weighted_loss

MIXTURE = {
    "family": "qwen3_5_moe", "hidden": 32, "ffn": 24, "layers": 4, "heads": 2, "kv_heads": 1, "head_dim": 16, "initializer_range": 0.177,
    "experts": 6, "experts_per_token": 2, "shared_ffn": 40, "delta_key_heads": 2, "delta_value_heads": 4, "delta_head_dim": 8,
    "router_aux_coefficient": 0.01,
}  # fmt: skip
SHAPE = Model(**MIXTURE)


@pytest.fixture
def mixture(tokenizer) -> nn.Module:
    torch.set_num_threads(1)
    specials = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    return build_model(SHAPE, len(tokenizer), MAX_LENGTH, seed=0, special_ids=specials)


def trained(model, rows, steps: int, coefficient: float | None = 0.1, batch: int = 16):
    plan = plan_batches([len(row.ids) for row in rows], steps, batch, np.random.default_rng(0))
    settings = Optimisation(steps=steps, batch=batch, learning_rate=3e-3, prompt_weight=0.1)
    with load_balancing(model, coefficient) as penalty:
        return train(model, rows, plan, settings, description="test", penalty=penalty)


def loads(model, rows) -> torch.Tensor:
    """Share of the assignments that each expert of each layer gets, (layers, experts)."""
    ids, _, _ = pad_rows(rows)
    counts, real = [], (ids != 0).flatten()
    handles = [
        router.register_forward_hook(lambda _m, _i, output: counts.append(output[2][real].flatten().bincount(minlength=SHAPE.experts)))
        for router in routers(model)
    ]
    with torch.no_grad():
        model.model(ids, use_cache=False)
    for handle in handles:
        handle.remove()
    counts = torch.stack(counts).float()
    return counts / counts.sum(-1, keepdim=True)


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 1}, "greater than or equal to 2"),
        ({"experts_per_token": 6}, "experts_per_token: 6 of 6 experts; choose 1 to 5"),
        ({"experts_per_token": 0}, "greater than or equal to 1"),
        ({"shared_ffn": None}, "shared_ffn: absent, but family qwen3_5_moe needs all of"),
        ({"layers": 3}, "layers: 3 leaves no full-attention layer"),
        ({"delta_value_heads": 3}, "delta_value_heads: 3 is not a multiple of delta_key_heads 2"),
        ({"family": "qwen3"}, "experts: 6, but a qwen3 model has no experts"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_with_what_to_change(changes, message):
    with pytest.raises(ValidationError, match=message):
        Model(**{**MIXTURE, **changes})


def test_a_dense_shape_is_dumped_as_before_there_were_experts():
    """Digests of finished studies are made of what is dumped."""
    dumped = TINY.model_dump(mode="json", exclude_defaults=True)
    assert dumped == {"family": "qwen3", "hidden": 32, "ffn": 64, "layers": 2, "heads": 2, "kv_heads": 1, "head_dim": 16}


def test_the_shape_names_every_prunable_matrix_of_the_model(mixture):
    found: dict[str, set] = {}
    for name, weight in prunable_weights(mixture).items():
        kind = name.split(".", 3)[3].removesuffix(".weight")
        if kind == "mlp.experts.gate_up_proj":
            half = (weight.shape[1] // 2, weight.shape[2])
            found["mlp.experts.gate_proj"] = found["mlp.experts.up_proj"] = {half}
        else:
            found.setdefault(kind, set()).add(tuple(weight.shape[-2:]))
    assert found == {name: {shape} for name, shape in SHAPE.linear_shapes().items()}
    assert mixture.config.layer_types == ["linear_attention"] * 3 + ["full_attention"]
    assert shape_of(mixture, SHAPE) == SHAPE
    assert mixture.lm_head.weight is mixture.model.embed_tokens.weight


# Training


def test_the_loss_of_a_mixture_falls_and_every_weight_moves(mixture, rows):
    before = {name: parameter.detach().clone() for name, parameter in mixture.named_parameters()}
    log = trained(mixture, rows, steps=40)
    assert sum(log.losses[-5:]) < 0.7 * sum(log.losses[:5])
    assert all((parameter != before[name]).any() for name, parameter in mixture.named_parameters())


def test_balancing_evens_the_load_out(tokenizer, rows):
    """Routers that start out sending nearly everything to two experts are brought back by the loss, and not without it."""
    worst = {}
    for coefficient in (None, 0.1):
        model = build_model(SHAPE, len(tokenizer), MAX_LENGTH, seed=0, special_ids={"pad_token_id": tokenizer.pad_token_id})
        with torch.no_grad():
            for router in routers(model):
                router.weight[2:] *= 0.1
        trained(model, rows, steps=40, coefficient=coefficient)
        worst[coefficient] = float(loads(model, rows[:64]).min())
    assert worst[0.1] > 2 * worst[None]


def test_padding_changes_neither_the_loss_of_a_row_nor_its_balance(mixture, rows):
    """A row gives the same loss and penalty alone and beside a longer one: DeltaNet and its convolution are causal."""
    short, long = sorted(rows[:50], key=lambda row: len(row.ids))[0], max(rows[:50], key=lambda row: len(row.ids))
    assert len(short.ids) < len(long.ids)

    def loss_of(chosen, only_first: bool):
        ids, lengths, starts = pad_rows(chosen)
        weights = token_weights(lengths, starts, ids.shape[1], 0.1)
        if only_first:
            weights[1:] = 0
        return weighted_loss(mixture, ids, weights)

    torch.testing.assert_close(loss_of([short, long], True), loss_of([short], False), rtol=1e-5, atol=1e-6)
    padded = torch.nn.functional.pad(torch.tensor(short.ids)[None], (0, 7), value=mixture.config.pad_token_id)
    with load_balancing(mixture, 1.0) as penalty:
        mixture.model(padded, use_cache=False)
        with_padding = penalty(mixture)
        mixture.model(torch.tensor(short.ids)[None], use_cache=False)
        torch.testing.assert_close(with_padding, penalty(mixture), rtol=1e-5, atol=1e-6)


def test_imbalance_is_1_where_uniform_and_experts_over_k_where_collapsed():
    even = torch.zeros(12, 6)
    assert float(imbalance(even, torch.arange(24).reshape(12, 2) % 6)) == pytest.approx(1.0)
    same = torch.full((12, 6), -50.0).index_fill(1, torch.tensor([0, 1]), 50.0)
    assert float(imbalance(same, torch.tensor([[0, 1]] * 12))) == pytest.approx(6 / 2)


def test_no_coefficient_means_no_hooks(mixture):
    for coefficient in (None, 0.0):
        with load_balancing(mixture, coefficient) as penalty:
            assert penalty is None and not mixture.get_input_embeddings()._forward_pre_hooks
    with load_balancing(mixture, 1.0):
        assert mixture.get_input_embeddings()._forward_pre_hooks
    assert not mixture.get_input_embeddings()._forward_pre_hooks and not any(router._forward_hooks for router in routers(mixture))


def test_a_dense_model_has_no_routers(model):
    with pytest.raises(ValueError, match="Qwen3ForCausalLM has no module named"):
        routers(model)


# Checkpoints


def test_a_mixture_is_saved_and_loaded_bit_by_bit(mixture, rows, tmp_path):
    trained(mixture, rows, steps=2)
    save_checkpoint(mixture, tmp_path / "D0", None)
    loaded = load_checkpoint(tmp_path / "D0")
    expected = mixture.state_dict()
    assert type(loaded) is type(mixture) and loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.config._attn_implementation == mixture.config._attn_implementation == SHAPE.attention
    assert parameter_count(loaded) == parameter_count(mixture)
    ids, _, _ = pad_rows(rows[:4])
    assert torch.equal(loaded.eval()(ids).logits, mixture.eval()(ids).logits)


def test_the_same_seed_gives_the_same_mixture():
    first, second, other = (build_model(SHAPE, 320, MAX_LENGTH, seed=seed, special_ids={}) for seed in (3, 3, 4))
    weights = [torch.cat([tensor.flatten() for tensor in model.state_dict().values()]) for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
