"""Prompt tuning, prefix tuning and P-tuning against ``peft``: logits, loss, gradients of encoders, files both ways.

At the end, what ``peft`` cannot do with such files: each test shows it there and its presence here.
"""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from peft_cases import BASES, logits, stir

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import read_arrays
from minitorch_peft.models import GPT
from minitorch_peft.optim import AdamW
from minitorch_peft.peft import METHODS, PeftModel, get_peft_model
from minitorch_peft.peft.registry import method_named

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings(
        "ignore:.*torch.jit", "ignore:.*is_gradient_checkpointing", "ignore:.*past_key_values", "ignore:Could not find"
    ),
]

IDS = np.random.default_rng(4).integers(0, 64, (3, 9))
MASK = np.arange(9) >= np.array([0, 2, 5])[:, None]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
CASES = {  # name: (our method, settings that both libraries have)
    "prompt": ("prompt_tuning", {"num_virtual_tokens": 4}),
    "prefix": ("prefix_tuning", {"num_virtual_tokens": 3}),
    "projected prefix": (
        "prefix_tuning", {"num_virtual_tokens": 3, "prefix_projection": True, "encoder_hidden_size": 10},
    ),
    "mlp": ("p_tuning", {"num_virtual_tokens": 4, "encoder_hidden_size": 12}),
    "lstm": (
        "p_tuning",
        {
            "num_virtual_tokens": 4, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 6,
            "encoder_num_layers": 2,
        },
    ),
    "one layer": (
        "p_tuning",
        {
            "num_virtual_tokens": 2, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 5,
            "encoder_num_layers": 1,
        },
    ),
}  # fmt: skip
WITH_ENCODER = [name for name in CASES if name not in ("prompt", "prefix")]
cases = pytest.mark.parametrize("case", CASES)
families = pytest.mark.parametrize("family", BASES)


def ours_of(case, family, bases):
    """Our adapter, moved from its start."""
    method, settings = CASES[case]
    p = get_peft_model(GPT.from_pretrained(bases[family]), METHODS[method].make(settings))
    stir(p.adapters["default"].named_parameters())
    return p


def theirs_of(case, family, peft, load):
    """peft's adapter of the same settings, at its own start."""
    method, settings = CASES[case]
    config = getattr(peft, METHODS[method].config.__name__)(task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(load(family), config)


def pair(case, family, torch, peft, load, bases):
    """Both with the same encoder, in training mode there (it has no dropout)."""
    p, theirs = ours_of(case, family, bases), theirs_of(case, family, peft, load)
    own = p.adapters["default"].encoder.state_dict()
    theirs.prompt_encoder["default"].load_state_dict({name: torch.tensor(array) for name, array in own.items()})
    return p, theirs


def their_output(torch, model, **options):
    """Logits of the last T positions, and the loss."""
    with torch.no_grad():
        out = model(torch.tensor(IDS), labels=torch.tensor(IDS), **options)
    return out.logits.numpy()[:, -IDS.shape[1] :], out.loss.item()


def our_output(p, **options):
    with no_grad():
        out = p.eval()(IDS, labels=IDS, **options)
    return out.logits.data, out.loss.item()


def same_output(ours, theirs):
    np.testing.assert_allclose(ours[0], theirs[0], **CLOSE)
    assert ours[1] == pytest.approx(theirs[1], rel=1e-5)


# -- numbers -----------------------------------------------------------------------------------------------------
@families
@cases
def test_logits_and_loss_with_the_position_before_the_first_token(case, family, torch, peft, load, bases):
    p, theirs = pair(case, family, torch, peft, load, bases)
    same_output(our_output(p), their_output(torch, theirs))
    assert np.abs(our_output(p)[0] - logits(GPT.from_pretrained(bases[family]), IDS)).max() > 1e-2


@families
@cases
def test_every_gradient(case, family, torch, peft, load, bases):
    p, theirs = pair(case, family, torch, peft, load, bases)
    theirs(torch.tensor(IDS), labels=torch.tensor(IDS)).loss.backward()
    p(IDS, labels=IDS).loss.backward()
    expected = {name: q.grad.numpy() for name, q in theirs.named_parameters() if q.grad is not None}
    ours = {name: q.grad for name, q in p.adapters["default"].encoder.named_parameters()}
    assert {f"prompt_encoder.default.{name}" for name in ours} == expected.keys()
    for name, g in ours.items():
        theirs_g = expected[f"prompt_encoder.default.{name}"]
        np.testing.assert_allclose(g, theirs_g, rtol=1e-4, atol=1e-5 * np.abs(theirs_g).max(), err_msg=name)


@pytest.mark.parametrize("case, family", [("prompt", "llama"), ("projected prefix", "gpt2"), ("lstm", "llama")])
def test_ten_steps_of_training(case, family, torch, peft, load, bases):
    p, theirs = pair(case, family, torch, peft, load, bases)
    their_optimizer = torch.optim.AdamW([q for q in theirs.parameters() if q.requires_grad], lr=1e-2)
    optimizer = AdamW(p.trainable_parameters(), lr=1e-2)
    losses = []
    for step in range(10):
        ids = np.random.default_rng(step).integers(0, 64, (3, 9))
        their_loss = theirs(torch.tensor(ids), labels=torch.tensor(ids)).loss
        their_loss.backward()
        their_optimizer.step()
        their_optimizer.zero_grad()
        loss = p(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append((loss.item(), their_loss.item()))
    ours, expected = np.array(losses).T
    np.testing.assert_allclose(ours, expected, rtol=5e-5)


def their_greedy(torch, model, steps):
    """Each token from a whole forward pass."""
    ids = torch.tensor(IDS)
    for _ in range(steps):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids.numpy()


@families
@pytest.mark.parametrize("case", ["prompt", "prefix", "mlp"])
def test_greedy_tokens(case, family, torch, peft, load, bases):
    p, theirs = pair(case, family, torch, peft, load, bases)
    assert np.array_equal(p.eval().generate(IDS, max_new_tokens=6), their_greedy(torch, theirs.eval(), 6))


@families
@cases
def test_the_number_of_parameters(case, family, peft, load, bases, capsys):
    method, settings = CASES[case]
    expected, _ = theirs_of(case, family, peft, load).get_nb_trainable_parameters()
    base = GPT.from_pretrained(bases[family])
    assert METHODS[method].count(base, METHODS[method].make(settings)) == expected


@families
def test_words_of_the_vocabulary_are_theirs_too(family, torch, peft, load, bases):
    """Both start at rows of the embedding (which ones, each library draws for itself)."""
    settings = {"num_virtual_tokens": 5, "prompt_tuning_init": "SAMPLE_VOCAB"}
    theirs = peft.get_peft_model(load(family), peft.PromptTuningConfig(task_type="CAUSAL_LM", **settings))
    p = get_peft_model(GPT.from_pretrained(bases[family]), METHODS["prompt_tuning"].make(settings))
    words = {row.tobytes() for row in p.base_model.embed.tokens.weight.data}
    for table in (
        theirs.prompt_encoder["default"].embedding.weight.detach().numpy(),
        p.adapters["default"].encoder.embedding.weight.data,
    ):
        assert {row.tobytes() for row in table} <= words


# -- files ---------------------------------------------------------------------------------------------------------
@families
@cases
def test_peft_loads_our_files_without_a_warning(case, family, torch, peft, load, bases, tmp_path):
    p = ours_of(case, family, bases)
    assert p.save_pretrained(tmp_path) == "peft"
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        theirs = peft.PeftModel.from_pretrained(load(family), tmp_path)
    same_output(our_output(p), their_output(torch, theirs))


@families
@cases
def test_we_load_their_files_and_they_ours_again(case, family, torch, peft, load, bases, tmp_path):
    _, theirs = pair(case, family, torch, peft, load, bases)
    theirs.save_pretrained(tmp_path / "theirs")
    expected = their_output(torch, theirs)
    p = PeftModel.from_pretrained(GPT.from_pretrained(bases[family]), tmp_path / "theirs", is_trainable=True)
    assert p.trainable_parameters().keys() == {"prompt_encoder.embedding.weight.default"}
    same_output(our_output(p), expected)
    p.save_pretrained(tmp_path / "back")
    same_output(expected, their_output(torch, peft.PeftModel.from_pretrained(load(family), tmp_path / "back")))
    theirs, back = (read_arrays(tmp_path / d / "adapter_model.safetensors") for d in ("theirs", "back"))
    assert theirs.keys() == back.keys() == {"prompt_embeddings"}
    assert np.array_equal(theirs["prompt_embeddings"], back["prompt_embeddings"])


@families
@pytest.mark.parametrize("case", WITH_ENCODER)
def test_the_encoder_in_our_file_is_what_their_module_takes(case, family, torch, peft, load, bases, tmp_path):
    """So a person who has our file can go on training there too."""
    p = ours_of(case, family, bases)
    p.save_pretrained(tmp_path)
    arrays = read_arrays(tmp_path / "adapter_model.safetensors")
    theirs = theirs_of(case, family, peft, load)
    prefix = "prompt_encoder."
    state = {n.removeprefix(prefix): torch.tensor(a) for n, a in arrays.items() if n.startswith(prefix)}
    theirs.prompt_encoder["default"].load_state_dict(state)
    same_output(our_output(p), their_output(torch, theirs))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_words_and_where_they_came_from_are_settings_of_the_start_only(torch, peft, load, bases, tmp_path):
    """A file of theirs that names a tokenizer which is not here is read all the same."""
    _, theirs = pair("prompt", "gpt2", torch, peft, load, bases)
    config = theirs.peft_config["default"]
    config.prompt_tuning_init, config.prompt_tuning_init_text = "TEXT", "good or bad"
    config.tokenizer_name_or_path = "no/such/tokenizer"
    theirs.save_pretrained(tmp_path)
    p = PeftModel.from_pretrained(GPT.from_pretrained(bases["gpt2"]), tmp_path)
    same_output(our_output(p), their_output(torch, theirs))


# -- what is not possible there --------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", CASES)
def test_theirs_cannot_train_a_loaded_prompt(case, torch, peft, load, bases, tmp_path):
    p = ours_of(case, "gpt2", bases)
    p.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Cannot set a prompt learning adapter to trainable"):
        peft.PeftModel.from_pretrained(load("gpt2"), tmp_path, is_trainable=True)
    again = PeftModel.from_pretrained(GPT.from_pretrained(bases["gpt2"]), tmp_path, is_trainable=True)
    assert again.trainable_parameters().keys() == p.trainable_parameters().keys()


@pytest.mark.parametrize("case", WITH_ENCODER)
def test_theirs_loses_the_encoder_of_what_it_saves(case, torch, peft, load, bases, tmp_path):
    p, theirs = pair(case, "gpt2", torch, peft, load, bases)
    theirs.save_pretrained(tmp_path / "theirs")
    p.save_pretrained(tmp_path / "ours")
    names = [set(read_arrays(tmp_path / d / "adapter_model.safetensors")) for d in ("theirs", "ours")]
    assert names[0] == {"prompt_embeddings"}
    assert names[1] - names[0] == set(p.adapters["default"].named_parameters())


@pytest.mark.parametrize("case, family", [("prompt", "gpt2"), ("prefix", "gpt2"), ("prefix", "llama")])
@pytest.mark.filterwarnings("ignore:Position ids are not supported")
def test_theirs_generates_with_its_cache_what_its_own_forward_does_not(case, family, torch, peft, load, bases):
    p, theirs = pair(case, family, torch, peft, load, bases)
    generated = theirs.eval().generate(input_ids=torch.tensor(IDS), max_new_tokens=6, do_sample=False)
    assert not np.array_equal(generated.numpy(), their_greedy(torch, theirs, 6))
    ours = p.eval().generate(IDS, max_new_tokens=6)
    assert np.array_equal(ours, p.generate(IDS, max_new_tokens=6, use_cache=False))


def test_theirs_ignores_the_names_of_rows_under_a_prompt(torch, peft, load, bases):
    p, theirs = pair("prompt", "llama", torch, peft, load, bases)
    names = ["default", "__base__", "default"]
    with torch.no_grad():
        named, plain = (theirs.eval()(torch.tensor(IDS), **o).logits for o in ({"adapter_names": names}, {}))
    assert torch.equal(named, plain)
    mixed = our_output(p, adapter_names=names)[0]
    np.testing.assert_allclose(mixed[::2], our_output(p)[0][::2], **CLOSE)
    np.testing.assert_allclose(mixed[1], logits(GPT.from_pretrained(bases["llama"]), IDS)[1], **CLOSE)


@families
def test_theirs_counts_the_positions_of_padding_under_a_prefix(family, torch, peft, load, bases):
    """With left-padding peft's rows get positions that they would not have alone; here they keep them."""
    p, theirs = pair("prefix", family, torch, peft, load, bases)
    ours = our_output(p, attention_mask=MASK)[0]
    for row, start in enumerate((~MASK).sum(axis=1)):
        with no_grad():
            alone = p(IDS[row : row + 1, start:]).logits.data[0]
        np.testing.assert_allclose(ours[row, start:], alone, **CLOSE)
    expected = their_output(torch, theirs, attention_mask=torch.tensor(MASK.astype(int)))[0]
    np.testing.assert_allclose(ours[0], expected[0], **CLOSE)  # a row without padding
    if family == "gpt2":
        assert np.abs(ours[2, 5:] - expected[2, 5:]).max() > 1e-3


def test_the_names_are_those_of_peft(peft):
    for method in ("prompt_tuning", "prefix_tuning", "p_tuning"):
        config = METHODS[method].config
        theirs = getattr(peft, config.__name__)(task_type="CAUSAL_LM", num_virtual_tokens=2)
        assert method_named(theirs.peft_type.value) is METHODS[method]
        names = set(config.from_dict({}).to_dict()) - {"prompt_tuning_init_ids", "init_ids", "init_text", "peft_type"}
        assert {n for n in names if not hasattr(theirs, n)} <= {"tokenizer_name_or_path"}
