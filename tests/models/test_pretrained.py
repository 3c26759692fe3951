"""Models by name and by path; the checkpoints that ship with the package."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minitorch_peft.formats.files import FileFormatError, read_arrays, read_json
from minitorch_peft.models import GPT
from minitorch_peft.models import pretrained as module
from minitorch_peft.models.pretrained import embedded_names, save_embedded


@pytest.fixture
def embedded(tmp_path, monkeypatch, model):
    """A folder of embedded checkpoints with one in it, "small-0.1m"."""
    monkeypatch.setattr(module, "EMBEDDED", tmp_path / "checkpoints")
    save_embedded(model, tmp_path / "checkpoints" / "small-0.1m.safetensors", {"steps": 3})
    return tmp_path / "checkpoints"


def test_an_embedded_checkpoint_loads_by_name(embedded, model, ids):
    assert embedded_names() == ["small-0.1m"]
    assert {f.name for f in embedded.iterdir()} == {"small-0.1m.safetensors", "small-0.1m.json"}
    again = GPT.from_pretrained("small-0.1m")
    assert again.config == model.config and not again.training
    for name, array in model.state_dict().items():
        loaded = again.state_dict()[name]
        assert loaded.dtype == np.float32 and np.array_equal(loaded, array.astype(np.float16))
    np.testing.assert_allclose(again(ids).logits.data, model(ids).logits.data, rtol=0.05, atol=0.05)


def test_its_file_is_half_precision_with_a_card(embedded):
    assert {a.dtype for a in read_arrays(embedded / "small-0.1m.safetensors").values()} == {np.dtype(np.float16)}
    card = read_json(embedded / "small-0.1m.json")
    assert card["steps"] == 3 and card["config"]["vocab_size"] == 31


def test_its_file_loads_by_path(embedded, model):
    assert GPT.from_pretrained(embedded / "small-0.1m.safetensors").config == model.config


def test_a_directory_of_the_same_name(embedded, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.save_pretrained("small-0.1m")
    assert GPT.from_pretrained("./small-0.1m").state_dict()["ln_f.weight"].tolist() == model.ln_f.weight.tolist()
    assert GPT.from_pretrained("small-0.1m").state_dict()["ln_f.weight"].tolist() != model.ln_f.weight.tolist()


def test_an_unknown_name_lists_the_known_ones(embedded, tmp_path):
    with pytest.raises(FileFormatError, match=r"gpt5: no such model; expected an embedded .*\(small-0.1m\) or a dir"):
        GPT.from_pretrained("gpt5")
    with pytest.raises(FileFormatError, match="no such model"):
        GPT.from_pretrained(tmp_path / "none")


def test_a_damaged_checkpoint_is_refused(embedded):
    weights, card = embedded / "small-0.1m.safetensors", embedded / "small-0.1m.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(FileFormatError, match=r"small-0.1m\.safetensors: cannot be read"):
        GPT.from_pretrained("small-0.1m")
    weights.write_bytes(whole)
    card.write_text("{}")
    with pytest.raises(FileFormatError, match="has no 'config'"):
        GPT.from_pretrained("small-0.1m")
    card.write_text(json.dumps({"config": {"vocab_size": 3, "wings": 2}}))
    with pytest.raises(FileFormatError, match=r"small-0.1m\.json: describes no GPT .*wings"):
        GPT.from_pretrained("small-0.1m")
    card.unlink()
    with pytest.raises(FileFormatError, match=r"small-0.1m\.json: no such file"):
        GPT.from_pretrained("small-0.1m")


def test_what_float16_cannot_hold_is_not_saved(model, tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors"):
        save_embedded(model, tmp_path / "model", {})
    for value in (1e6, np.nan):
        model.ln_f.weight.data[0] = value
        with pytest.raises(ValueError, match=r"ln_f.weight holds .*float16"):
            save_embedded(model, tmp_path / "model.safetensors", {})
    assert not list(tmp_path.iterdir())


def test_a_loaded_model_does_not_drop_out(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = GPT.from_pretrained(tmp_path)
    assert not any(m.training for _, m in loaded.named_modules())


# -- those of this installation ------------------------------------------------------------------------------
def test_every_shipped_checkpoint_loads():
    for name in embedded_names():
        model = GPT.from_pretrained(name)
        assert model.config.to_dict() == read_json(module.EMBEDDED / f"{name}.json")["config"]
        ids = np.arange(20).reshape(2, 10) + 40
        assert np.isfinite(model(ids, labels=ids).loss.item())


def test_the_shipped_checkpoints_are_small():
    assert sum(f.stat().st_size for f in module.EMBEDDED.glob("*")) <= 8 * 2**20
