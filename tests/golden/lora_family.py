"""Write lora_family.safetensors: adapters of peft's DoRA, PiSSA and VeRA on the recipe's models, and their logits.

    python -P tests/golden/lora_family.py

For each case ``CASE/TENSOR`` is a tensor of peft's file and ``CASE/logits`` what the model makes of the recipe's ids;
the metadata holds the JSON of the adapter as ``CASE``.
"""

from __future__ import annotations

import json
import runpy
import tempfile
from pathlib import Path

import peft
import torch
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
make = runpy.run_path(str(HERE / "make.py"))
recipe = make["recipe"]
LORA = {"r": 2, "lora_alpha": 4}
CASES = {
    "dora-gpt2": peft.LoraConfig(**LORA, target_modules=["c_attn", "c_fc"], use_dora=True),
    "dora-llama": peft.LoraConfig(**LORA, target_modules=["k_proj", "down_proj"], use_rslora=True, use_dora=True),
    "pissa-gpt2": peft.LoraConfig(**LORA, target_modules=["c_attn", "mlp.c_proj"], init_lora_weights="pissa"),
    "pissa-llama": peft.LoraConfig(**LORA, target_modules=["k_proj", "up_proj"], init_lora_weights="pissa"),
    "vera-gpt2": peft.VeraConfig(r=4, target_modules=["c_attn"], projection_prng_key=3, save_projection=False),
    "vera-llama": peft.VeraConfig(r=5, target_modules=["v_proj", "down_proj"]),
}


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """Every trained tensor, a wave added to it."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for k, name in enumerate(sorted(trained)):
        trained[name].data += torch.tensor(recipe["wave"](100 + k, tuple(trained[name].shape), name))
    return model.eval()


if __name__ == "__main__":
    arrays, settings = {}, {"peft": peft.__version__, "torch": torch.__version__}
    for case, config in CASES.items():
        model = moved(peft.get_peft_model(make["build"](case.split("-")[1]), config))
        with tempfile.TemporaryDirectory() as directory, torch.no_grad():
            model.save_pretrained(directory)
            tensors = load_file(Path(directory) / "adapter_model.safetensors")
            arrays |= {f"{case}/{name}": array for name, array in tensors.items()}
            kept = json.loads((Path(directory) / "adapter_config.json").read_text())
            settings[case] = json.dumps({k: v for k, v in kept.items() if v not in (None, {}, [])})
            arrays[f"{case}/logits"] = model(torch.tensor(recipe["IDS"])).logits.numpy().copy()
    save_file(arrays, HERE / "lora_family.safetensors", settings)
    (HERE / "lora_family.safetensors").chmod(0o644)
    print(len(arrays), "arrays,", (HERE / "lora_family.safetensors").stat().st_size, "bytes")
