"""Settings that are not of their kind are refused in words, when the config is made."""

from __future__ import annotations

import json

import pytest
from peft_cases import gpt

from minitorch_peft.formats.files import read_json
from minitorch_peft.peft import (
    AdaLoraConfig,
    BitFitConfig,
    DiffPruningConfig,
    GistConfig,
    IA3Config,
    LoraConfig,
    MoEConfig,
    PartialConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    PTuningV2Config,
    RandomMaskConfig,
    VeraConfig,
    get_peft_model,
)

NAMES = "must be a list of names or a regex, got"


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (IA3Config, {"target_modules": None}, f"target_modules {NAMES} None"),
        (AdaLoraConfig, {"target_modules": None}, f"target_modules {NAMES} None"),
        (LoraConfig, {"target_modules": [3]}, rf"target_modules {NAMES} \[3\]"),
        (BitFitConfig, {"target_parameters": None}, f"target_parameters {NAMES} None"),
        (LoraConfig, {"exclude_modules": 3}, "exclude_modules must be a list of names, a regex or None, got 3"),
        (LoraConfig, {"rank_pattern": [1]}, r"rank_pattern must be a dict from names to values, got \[1\]"),
        (LoraConfig, {"lora_dropout": 1.5}, r"lora_dropout must be in \[0, 1\), got 1.5"),
        (AdaLoraConfig, {"lora_dropout": 1.5}, r"lora_dropout must be in \[0, 1\), got 1.5"),
        (VeraConfig, {"vera_dropout": -0.1}, r"vera_dropout must be in \[0, 1\), got -0.1"),
        (VeraConfig, {"projection_prng_key": True}, "projection_prng_key must be a whole number, got True"),
        (PTuningV2Config, {"prefix_dropout": "a"}, "prefix_dropout must be a number, got 'a'"),
        (GistConfig, {"gist_token_ids": 3}, "gist_token_ids must be a list of token ids, got 3"),
        (GistConfig, {"num_gist_tokens": 2, "gist_token_ids": [3, "a"]}, "gist_token_ids must be a list of token ids"),
        (AdaLoraConfig, {"beta1": "a"}, "beta1 must be a number, got 'a'"),
        (AdaLoraConfig, {"total_step": "a"}, "total_step must be a whole number, got 'a'"),
        (AdaLoraConfig, {"rank_pattern": [1]}, "rank_pattern must be a dict from paths to lists"),
        (AdaLoraConfig, {"rank_pattern": {"x": 3}}, "rank_pattern of x must be a list of True and False, got 3"),
        (DiffPruningConfig, {"sparsity": "a"}, "sparsity must be a number, got 'a'"),
        (RandomMaskConfig, {"num_parameters": True}, "num_parameters must be a whole number of at least 1, got True"),
        (PartialConfig, {"top_layers": True}, "top_layers must be a whole number of at least 0, got True"),
        (MoEConfig, {"num_experts": 2.0}, "num_experts must be a whole number of at least 1, got 2.0"),
    ],
)
def test_what_is_not_of_its_kind(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_a_feedforward_layer_of_ia3_that_is_no_target():
    with pytest.raises(
        ValueError, match=r"feedforward_modules: 'down_proj' matches no target; .* \[\] is none of them"
    ):
        get_peft_model(gpt("gpt2"), IA3Config(["q_proj"]))
    get_peft_model(gpt("gpt2"), IA3Config(["q_proj"], feedforward_modules=[]))


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (AdaLoraConfig(), "blocks.0.attn.q_proj.kept"),
        (VeraConfig(r=8), "vera_A"),
        (LoraConfig(init_lora_weights="pissa"), "blocks.0.attn.q_proj.start_A"),
    ],
)
def test_a_checkpoint_s_state_that_is_not_this_method_s(config, missing):
    p = get_peft_model(gpt("gpt2"), config)
    p.load_method_state(p.method_state())
    with pytest.raises(ValueError, match=f"the state of adapter 'default' has no {missing}.*: it is of another method"):
        p.load_method_state({})


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (PromptEncoderConfig, {"encoder_dropout": 0.5}, 'encoder_dropout=0.5 has no effect without enc.*="LSTM"'),
        (PromptEncoderConfig, {"encoder_num_layers": 7}, "encoder_num_layers=7 has no effect"),
        (
            PromptEncoderConfig,
            {"encoder_reparameterization_type": "NONE", "encoder_hidden_size": 8},
            "encoder_hidden_size=8 has no effect without a network",
        ),
        (PrefixTuningConfig, {"encoder_hidden_size": 99}, "encoder_hidden_size=99 has no .* prefix_projection=True"),
        (PTuningV2Config, {"encoder_hidden_size": 99}, "encoder_hidden_size=99 has no effect"),
        (PrefixTuningConfig, {"tokenizer_name_or_path": "x"}, "tokenizer_name_or_path='x' has no .* without init_text"),
        (PromptTuningConfig, {"tokenizer_name_or_path": "x"}, "has no effect without prompt_tuning_init_text"),
    ],
)
def test_what_would_have_no_effect(config, settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_peft_s_files_may_hold_it(tmp_path):
    """They hold all of a method's settings, whatever the encoder."""
    for config, extra in (
        (PromptEncoderConfig(3, encoder_hidden_size=5), {"encoder_dropout": 0.5, "encoder_num_layers": 7}),
        (PrefixTuningConfig(3), {"encoder_hidden_size": 5}),
    ):
        get_peft_model(gpt("llama"), config).save_pretrained(tmp_path)
        path = tmp_path / "adapter_config.json"
        path.write_text(json.dumps(read_json(path) | extra))
        assert PeftModel.from_pretrained(gpt("llama"), tmp_path).adapters["default"].config == config
