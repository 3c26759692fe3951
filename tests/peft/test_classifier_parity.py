"""Classifiers against ``peft`` with ``task_type="SEQ_CLS"``: the same logits, and each other's files.

``peft`` 0.21 cannot run prefix tuning on the classifiers of today's ``transformers`` (their forward names no
``past_key_values``), though it writes and reads its files: of these only what lands is compared.
"""

from __future__ import annotations

import numpy as np
import pytest
from peft_cases import BASES

from minitorch_peft.autograd.tensor import no_grad
from minitorch_peft.formats.files import read_arrays
from minitorch_peft.models import GPT, SequenceClassifier
from minitorch_peft.peft import (
    LoraConfig,
    PromptTuningConfig,
    PTuningV2Config,
    get_peft_model,
    load_classifier,
    save_classifier,
)

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*is_gradient_checkpointing", "ignore:fan_in_fan_out"),
]

PAD = 63  # transformers looks for the last token that is none
IDS = np.random.default_rng(4).integers(0, PAD, (3, 9))
MASK = np.arange(9) < np.array([9, 6, 3])[:, None]
FAMILIES = pytest.mark.parametrize("family", BASES)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
OURS = {
    "lora": LoraConfig(r=2, target_modules="all-linear"),
    "prompt": PromptTuningConfig(3),
    "v2": PTuningV2Config(3),
    "v2 network": PTuningV2Config(3, prefix_projection=True, encoder_hidden_size=5),
}


@pytest.fixture
def theirs_of(bases):
    """Family to transformers' classifier of the base."""
    from transformers import AutoModelForSequenceClassification

    def load(family):
        model = AutoModelForSequenceClassification.from_pretrained(bases[family], num_labels=4)
        model.config.pad_token_id = PAD
        return model.eval()

    return load


def our_logits(classifier):
    with no_grad():
        return classifier(np.where(MASK, IDS, PAD), attention_mask=MASK).logits.data


def their_logits(torch, model):
    mask = torch.tensor(MASK).long()
    with torch.no_grad():
        return model(torch.tensor(np.where(MASK, IDS, PAD)), attention_mask=mask).logits.numpy()


@FAMILIES
@pytest.mark.parametrize("kind", OURS)
def test_peft_loads_what_we_save(kind, family, torch, peft, bases, theirs_of, tmp_path):
    p = get_peft_model(GPT.from_pretrained(bases[family]), OURS[kind])
    rng = np.random.default_rng(7)
    for q in p.trainable_parameters().values():
        q.data += 0.1 * rng.standard_normal(q.shape).astype(np.float32)
    classifier = SequenceClassifier(p, 4).eval()
    classifier.score.weight.data *= 20
    assert save_classifier(classifier, tmp_path) == "peft"
    theirs = peft.PeftModel.from_pretrained(theirs_of(family), tmp_path)
    assert type(theirs).__name__ == "PeftModelForSequenceClassification"
    score = next(q for n, q in theirs.named_parameters() if "score.modules_to_save.default" in n)
    np.testing.assert_array_equal(score.detach().numpy(), classifier.score.weight.data)
    if kind.startswith("v2"):
        table = theirs.prompt_encoder["default"].embedding.weight.detach().numpy()
        np.testing.assert_allclose(table, p.adapters["default"].table().data, rtol=1e-6)
        return
    rows = range(3) if kind == "lora" else [0]
    np.testing.assert_allclose(their_logits(torch, theirs)[rows], our_logits(classifier)[rows], **CLOSE)


@FAMILIES
def test_peft_reads_a_padded_row_s_class_off_its_padding(family, torch, peft, bases, theirs_of, tmp_path):
    """Prompts reach ``transformers`` as vectors, in which it sees no padding; here a padded row is the row alone."""
    p = get_peft_model(GPT.from_pretrained(bases[family]), PromptTuningConfig(3))
    classifier = SequenceClassifier(p, 4).eval()
    classifier.score.weight.data *= 20
    save_classifier(classifier, tmp_path)
    theirs = peft.PeftModel.from_pretrained(theirs_of(family), tmp_path)
    for row, length in enumerate(MASK.sum(axis=1)):
        with torch.no_grad():
            alone = theirs(torch.tensor(IDS[row : row + 1, :length])).logits.numpy()[0]
        np.testing.assert_allclose(our_logits(classifier)[row], alone, **CLOSE)
        assert (np.abs(their_logits(torch, theirs)[row] - alone).max() > 1e-2) == (length < 9)


@FAMILIES
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_we_load_what_peft_saves(kind, family, torch, peft, bases, theirs_of, tmp_path):
    settings = {
        "lora": peft.LoraConfig(task_type="SEQ_CLS", r=3, init_lora_weights=False),
        "prefix": peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    }
    torch.manual_seed(1)
    theirs = peft.get_peft_model(theirs_of(family), settings[kind])
    theirs.save_pretrained(tmp_path)
    classifier = load_classifier(GPT.from_pretrained(bases[family]), tmp_path).eval()
    assert classifier.num_labels == 4
    if kind == "prefix":
        table = read_arrays(tmp_path / "adapter_model.safetensors")["prompt_embeddings"]
        np.testing.assert_array_equal(classifier.model.adapters["default"].table().data, table)
        return
    np.testing.assert_allclose(our_logits(classifier), their_logits(torch, theirs.eval()), **CLOSE)
