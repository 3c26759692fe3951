"""Attention: alignment, masks, rows that see nothing, dropout, and shapes beyond (B, H, T, D)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import minitorch_peft as mp
import minitorch_peft.functional as F


def random(*shapes: tuple[int, ...], dtype: Any = np.float64) -> list[mp.Tensor]:
    rng = np.random.default_rng(0)
    return [mp.Tensor(rng.standard_normal(s).astype(dtype), requires_grad=True) for s in shapes]


@pytest.mark.parity
@pytest.mark.parametrize(
    ("q", "k", "v"),
    [
        ((3, 4), (5, 4), (5, 4)),
        ((2, 3, 4), (2, 5, 4), (2, 5, 4)),
        ((2, 2, 2, 3, 4), (2, 2, 2, 5, 4), (2, 2, 2, 5, 4)),
        ((2, 2, 3, 4), (2, 2, 5, 4), (2, 2, 5, 6)),
    ],
    ids=["matrix", "one-batch-axis", "three-batch-axes", "wider-values"],
)
def test_other_shapes_are_those_of_torch(q, k, v) -> None:
    import torch

    ours = random(q, k, v)
    theirs = [torch.tensor(t.data, requires_grad=True) for t in ours]
    mask = np.random.default_rng(1).random((3, 5)) < 0.7
    mask[:, 0] = True
    got = F.scaled_dot_product_attention(*ours, attn_mask=mask)
    wanted = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=torch.tensor(mask))
    np.testing.assert_allclose(got.data, wanted.detach().numpy(), rtol=1e-10)
    g = np.random.default_rng(2).standard_normal(got.shape)
    got.backward(gradient=g)
    wanted.backward(torch.tensor(g))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a.grad, b.grad.numpy(), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [4, 6], ids=["fused", "composed"])
def test_the_last_query_sees_the_last_key(width: int, dtype: Any) -> None:
    q, k, v = random((1, 2, 2, 4), (1, 2, 5, 4), (1, 2, 5, width), dtype=dtype)
    causal = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    last = F.scaled_dot_product_attention(q[:, :, 1:], k, v)
    first = F.scaled_dot_product_attention(q[:, :, :1], k[:, :, :4], v[:, :, :4])
    np.testing.assert_allclose(causal.data, np.concatenate([first.data, last.data], 2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [4, 6], ids=["fused", "composed"])
@pytest.mark.parametrize("kind", ["bool", "float", "causal"])
def test_a_query_that_sees_no_key_gives_zeros_and_no_gradient(kind: str, width: int, dtype: Any) -> None:
    queries, keys = (3, 2) if kind == "causal" else (2, 2)
    q, k, v = random((1, 1, queries, 4), (1, 1, keys, 4), (1, 1, keys, width), dtype=dtype)
    mask = None if kind == "causal" else np.array([[False, False], [True, False]])
    if kind == "float":
        mask = np.where(mask, 0.5, -np.inf)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=kind == "causal")
    assert not y.data[0, 0, 0].any() and y.data[0, 0, 1].any()
    y.sum().backward()
    assert not q.grad[0, 0, 0].any() and all(np.isfinite(t.grad).all() for t in (q, k, v))


def test_scale_and_grouped_heads_when_composed() -> None:
    q, k, v = random((2, 4, 3, 2), (2, 2, 3, 2), (2, 2, 3, 2))
    fused = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3, enable_gqa=True)
    wide = F.cat([v, v], -1)  # another width takes the composed path
    composed = F.scaled_dot_product_attention(q, k, wide, is_causal=True, scale=0.3, enable_gqa=True)
    np.testing.assert_allclose(composed.data, np.concatenate([fused.data] * 2, -1), rtol=1e-10)


def test_dropout_drops_weights_by_key() -> None:
    q, k = random((1, 1, 3, 2), (1, 1, 64, 2))
    v = mp.tensor(np.eye(64)[None, None])  # the output is the attention weights themselves

    def run(step: int) -> Any:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=0.25, dropout_key=(0, "attn", step))

    plain, dropped = F.scaled_dot_product_attention(q, k, v).data, run(0).data
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], plain[kept] / 0.75)
    assert 0.6 < kept.mean() < 0.9
    assert np.array_equal(run(0).data, dropped) and not np.array_equal(run(1).data, dropped)
    assert mp.gradcheck(lambda q, k: F.scaled_dot_product_attention(
        q, k, v, dropout_p=0.25, dropout_key=(0, "attn", 0)), (q, k))  # fmt: skip
    with pytest.raises(ValueError, match="give key="):
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.25)


@pytest.mark.parity
def test_the_rotation_is_that_of_transformers() -> None:
    import torch
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    (x,) = random((2, 3, 5, 4))
    angle = np.random.default_rng(1).standard_normal((2, 5, 2))
    cos, sin = (torch.tensor(np.concatenate([f(angle)] * 2, -1)) for f in (np.cos, np.sin))
    wanted = apply_rotary_pos_emb(torch.tensor(x.data), torch.tensor(x.data), cos, sin)[0]
    np.testing.assert_allclose(F.apply_rotary(x, np.cos(angle), np.sin(angle)).data, wanted.numpy())


def test_one_table_of_angles_serves_all_rows() -> None:
    (x,) = random((2, 3, 5, 4))
    angle = np.random.default_rng(1).standard_normal((5, 2))
    one = F.apply_rotary(x, np.cos(angle), np.sin(angle))
    assert np.array_equal(one.data, F.apply_rotary(x, np.cos(angle)[None], np.sin(angle)[None]).data)


Q, K = random((1, 2, 3, 4), (1, 1, 5, 4))
ERRORS = [
    (lambda: F.scaled_dot_product_attention(Q, K, K), ValueError, "only with enable_gqa=True"),
    (lambda: F.scaled_dot_product_attention(Q, Q, K), ValueError, "expected query"),
    (lambda: F.scaled_dot_product_attention(Q, Q[0], Q[0]), ValueError, "expected query"),
    (lambda: F.scaled_dot_product_attention(Q, Q, Q, Q[0, 0, :, :3]), ValueError, "cannot require a gradient"),
    (lambda: F.scaled_dot_product_attention(Q, Q, Q, np.ones((3, 4), bool)), ValueError, "does not broadcast"),
    (lambda: F.scaled_dot_product_attention(Q, Q, Q, np.ones((3, 3), int)), TypeError, "must be bool or float"),
    (lambda: F.apply_rotary(Q[0], np.ones((3, 2)), np.ones((3, 2))), ValueError, r"expected input \(B, H, T, D\)"),
    (lambda: F.apply_rotary(Q, np.ones((3, 4)), np.ones((3, 4))), ValueError, "expected cos and sin"),
]


@pytest.mark.parametrize(("call", "error", "message"), ERRORS)
def test_errors_say_what_does_not_fit(call, error, message) -> None:
    with pytest.raises(error, match=message):
        call()
