"""The GPT against transformers: random models of both families, forwards, gradients, training, generation, files."""

from __future__ import annotations

import numpy as np
import pytest

import minitorch_peft as mp
from minitorch_peft.formats.files import FileFormatError
from minitorch_peft.formats.hf import to_hf
from minitorch_peft.formats.hf_config import choose_family
from minitorch_peft.models import GPT, GPTConfig
from minitorch_peft.models.generation import probabilities
from minitorch_peft.models.inputs import rotation
from minitorch_peft.optim import AdamW

pytestmark = pytest.mark.parity

GPT2 = {"vocab_size": 64, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
LLAMA = {
    "vocab_size": 64, "max_position_embeddings": 40, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 48,
}  # fmt: skip
VARIANTS = {
    "gpt2": ("gpt2", GPT2),
    "gpt2 untied": ("gpt2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 1e-3}),
    "gpt2 relu": ("gpt2", GPT2 | {"activation_function": "relu"}),
    "gpt2 gelu": ("gpt2", GPT2 | {"activation_function": "gelu"}),
    "llama": ("llama", LLAMA),
    "llama grouped": ("llama", LLAMA | {"num_key_value_heads": 2, "rms_norm_eps": 1e-4}),
    "llama one kv head, tied": ("llama", LLAMA | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama biases": ("llama", LLAMA | {"attention_bias": True, "mlp_bias": True, "rope_theta": 100.0}),
}


@pytest.fixture(scope="module")
def torch():
    import torch

    torch.set_num_threads(1)
    return torch


def randomly_initialised(torch, model_type, options):
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **options, bos_token_id=None, eos_token_id=None)
    peer = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, p in peer.named_parameters():  # larger than the usual start, so that everything matters
        norm = "ln" in name or "norm" in name
        torch.nn.init.normal_(p, 1.0 if norm and "bias" not in name else 0.0, 0.15)
    return peer


@pytest.fixture(params=VARIANTS)
def pair(request, torch, tmp_path):
    """(transformers' model, the same read here)."""
    peer = randomly_initialised(torch, *VARIANTS[request.param])
    peer.save_pretrained(tmp_path / "theirs")
    return peer, GPT.from_pretrained(tmp_path / "theirs")


@pytest.fixture
def ids():
    """int (3, 12)."""
    return np.random.default_rng(2).integers(0, 64, (3, 12))


def close(ours, theirs, rtol=1e-5):
    """Within ``rtol`` of the largest entry."""
    ours, theirs = ours.data if isinstance(ours, mp.Tensor) else ours, theirs.detach().numpy()
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() <= rtol * np.abs(theirs).max()


def our_gradients(model):
    fields = model.config.to_dict()
    return to_hf(choose_family(fields), fields, {n: p.grad for n, p in model.named_parameters()})


def test_logits_loss_and_every_gradient(pair, torch, ids):
    peer, model = pair
    labels = ids.copy()
    labels[0, :5] = labels[2, 9:] = -100
    out = model(ids, labels=labels)
    theirs = peer(torch.tensor(ids), labels=torch.tensor(labels))
    close(out.logits, theirs.logits)
    close(out.loss, theirs.loss)
    out.loss.backward()
    theirs.loss.backward()
    gradients, expected = our_gradients(model), dict(peer.named_parameters())
    assert gradients.keys() == expected.keys()
    for name, p in expected.items():
        close(gradients[name], p.grad)


def test_hidden_states(pair, torch, ids):
    peer, model = pair
    ours = model(ids, output_hidden_states=True).hidden_states
    theirs = peer(torch.tensor(ids), output_hidden_states=True).hidden_states
    for a, b in zip(ours, theirs, strict=True):
        close(a, b)


def test_ten_training_losses(pair, torch):
    peer, model = pair
    options = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    ours = AdamW(dict(model.named_parameters()), **options)
    theirs = torch.optim.AdamW(peer.parameters(), **options)
    rng, losses = np.random.default_rng(0), []
    for _ in range(10):
        batch = rng.integers(0, 64, (4, 16))
        a, b = model(batch, labels=batch).loss, peer(torch.tensor(batch), labels=torch.tensor(batch)).loss
        model.zero_grad()
        theirs.zero_grad()
        a.backward()
        b.backward()
        ours.step()
        theirs.step()
        losses.append((a.item(), b.item()))
    ours_losses, their_losses = np.array(losses).T
    np.testing.assert_allclose(ours_losses, their_losses, rtol=1e-5)
    assert len(set(their_losses)) == 10


def test_rotations_up_to_late_positions(torch):
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64, num_attention_heads=4, rope_parameters={"rope_type": "default", "rope_theta": 5e4}
    )
    positions = np.arange(2048)[None]
    theirs = LlamaRotaryEmbedding(config)(torch.zeros(1), torch.tensor(positions))
    for ours, table in zip(rotation(positions, 16, 5e4, np.float32), theirs, strict=True):
        np.testing.assert_allclose(np.concatenate([ours, ours], axis=-1), table.numpy(), atol=1e-6)


# -- masks ---------------------------------------------------------------------------------------------------
def test_left_padding(pair, torch, ids):
    """As ``generate`` of transformers does it: positions count the tokens that are not padding."""
    peer, model = pair
    mask = (np.arange(12) >= np.array([0, 4, 11])[:, None]).astype(np.int64)
    positions = np.maximum(mask.cumsum(-1) - 1, 0)
    theirs = peer(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.tensor(positions))
    ours = model(ids, attention_mask=mask)
    seen = mask.astype(bool)
    close(ours.logits.data[seen], theirs.logits[torch.tensor(seen)])


def test_right_padding_and_its_gradients(pair, torch, ids):
    peer, model = pair
    mask = (np.arange(12) < np.array([12, 7, 2])[:, None]).astype(np.int64)
    labels = np.where(mask, ids, -100)
    out = model(ids, labels=labels, attention_mask=mask)
    theirs = peer(torch.tensor(ids), labels=torch.tensor(labels), attention_mask=torch.tensor(mask))
    close(out.loss, theirs.loss)
    out.loss.backward()
    theirs.loss.backward()
    gradients = our_gradients(model)
    for name, p in peer.named_parameters():
        close(gradients[name], p.grad)


def test_a_mask_for_each_query(pair, torch, ids):
    peer, model = pair
    mask = np.random.default_rng(3).random((3, 1, 12, 12)) < 0.5
    mask |= np.eye(12, dtype=bool)
    mask &= np.tri(12, dtype=bool)
    theirs = peer(torch.tensor(ids), attention_mask=torch.tensor(mask), position_ids=torch.arange(12)[None])
    close(model(ids, attention_mask=mask).logits, theirs.logits)


def test_embeddings_in_place_of_ids(pair, torch, ids):
    peer, model = pair
    vectors = np.random.default_rng(4).standard_normal((3, 12, 32)).astype(np.float32)
    x, y = mp.tensor(vectors, requires_grad=True), torch.tensor(vectors, requires_grad=True)
    ours, theirs = model(inputs_embeds=x, labels=ids), peer(inputs_embeds=y, labels=torch.tensor(ids))
    ours.loss.backward()
    theirs.loss.backward()
    close(x.grad, y.grad)


# -- generation ----------------------------------------------------------------------------------------------
def test_greedy_generation(pair, torch, ids):
    peer, model = pair
    theirs = peer.generate(torch.tensor(ids), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert model.generate(ids, 20).tolist() == theirs.tolist()


def test_greedy_generation_of_a_padded_batch_with_a_stop_token(pair, torch, ids):
    peer, model = pair
    mask = (np.arange(12) >= np.array([0, 4, 11])[:, None]).astype(np.int64)
    free = model.generate(ids, 20, attention_mask=mask)
    stop = int(free[1, 15])
    theirs = peer.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), max_new_tokens=20, do_sample=False, pad_token_id=7,
        eos_token_id=stop,
    )  # fmt: skip
    ours = model.generate(ids, 20, attention_mask=mask, eos_token_id=stop, pad_token_id=7)
    assert ours.tolist() == theirs.tolist() and (ours[1, 16:] == 7).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(None, None), (5, None), (None, 0.8), (20, 0.6), (100, 0.99)])
def test_the_distribution_that_is_drawn_from(torch, temperature, top_k, top_p):
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = (np.random.default_rng(0).standard_normal((6, 50)) * 2).astype(np.float32)
    scores = TemperatureLogitsWarper(temperature)(None, torch.tensor(logits).double())
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    ours = probabilities(logits, temperature, top_k, top_p)
    np.testing.assert_allclose(ours, scores.softmax(-1).numpy(), rtol=1e-6, atol=1e-12)


# -- files ---------------------------------------------------------------------------------------------------
def test_a_saved_model_loads_in_transformers_and_comes_back(pair, torch, ids, tmp_path):
    import transformers

    peer, model = pair
    model.save_pretrained(tmp_path / "ours")
    loaded, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert type(loaded) is type(peer) and not any(report[k] for k in ("missing_keys", "unexpected_keys"))
    theirs, before = dict(loaded.named_parameters()), dict(peer.named_parameters())
    assert theirs.keys() == before.keys() and all(torch.equal(theirs[n], before[n]) for n in theirs)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(torch.tensor(ids)).logits, peer(torch.tensor(ids)).logits)
    loaded.save_pretrained(tmp_path / "again")
    again, state = GPT.from_pretrained(tmp_path / "again"), model.state_dict()
    assert again.config == model.config
    assert all(np.array_equal(array, state[name]) for name, array in again.state_dict().items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_model_born_here_loads_in_transformers(family, torch, ids, tmp_path):
    import transformers

    sizes = {"vocab_size": 64, "n_positions": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}
    config = GPTConfig(**sizes) if family == "gpt2" else GPTConfig.llama(**sizes, rope_theta=300.0)
    model = GPT(config, seed=1)
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert loaded.config.eos_token_id is None
    close(model(ids).logits, loaded(torch.tensor(ids)).logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_directories(dtype, torch, ids, tmp_path):
    peer = randomly_initialised(torch, *VARIANTS["gpt2"]).to(getattr(torch, dtype))
    peer.save_pretrained(tmp_path)
    model = GPT.from_pretrained(tmp_path)
    wide = peer.float()
    close(model.embed.tokens.weight, wide.transformer.wte.weight, rtol=0)
    close(model(ids).logits, wide(torch.tensor(ids)).logits)


def test_the_base_model_alone(torch, ids, tmp_path):
    peer = randomly_initialised(torch, *VARIANTS["gpt2"])
    peer.transformer.save_pretrained(tmp_path)
    close(GPT.from_pretrained(tmp_path)(ids).logits, peer(torch.tensor(ids)).logits)


def test_shards_are_refused(torch, tmp_path):
    randomly_initialised(torch, *VARIANTS["gpt2"]).save_pretrained(tmp_path, max_shard_size="50KB")
    with pytest.raises(FileFormatError, match="is in several shards"):
        GPT.from_pretrained(tmp_path)


def test_scaled_rotary_positions_are_refused(torch, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    randomly_initialised(torch, "llama", LLAMA | {"rope_parameters": rope}).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="rope_type 'linear'"):
        GPT.from_pretrained(tmp_path)
