"""Write adalora.safetensors and ia3.safetensors: adapters of ``peft`` on the recipe's models, and what they compute.

    python -P tests/golden/make_adalora_ia3.py

For each family ``FAMILY/adapter/NAME`` are the tensors of the adapter's file, its JSON is metadata under ``FAMILY``,
and ``FAMILY/logits`` are those of the recipe's ids. AdaLoRA's are trained: ten steps on the recipe's batches, from
sines (``FAMILY/start/NAME``), with ``FAMILY/losses`` (the penalty included) and, after each step, ``FAMILY/kept``: the
ranks left of each target, in the order of their names. IA3's vectors are one and a sine.
"""

from __future__ import annotations

import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
make = runpy.run_path(str(HERE / "make.py"))
recipe = make["recipe"]
ADALORA = {"init_r": 4, "target_r": 2, "tinit": 1, "tfinal": 3, "total_step": 10, "lora_alpha": 16, "deltaT": 2}
TARGETS = {"gpt2": ["attn.c_proj", "c_fc"], "llama": ["q_proj", "v_proj"], "gpt2-fused": ["c_attn", "mlp.c_proj"]}
IA3_TARGETS = {  # all, and the feedforward ones
    "gpt2": (["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),
    "llama": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
}


def wave(k: int, shape: tuple[int, ...]) -> np.ndarray:
    return recipe["wave"](k, shape, "adapter")


def start(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """Sines in A and B; E stays at zero."""
    arrays = {}
    for k, (name, p) in enumerate((n, p) for n, p in model.named_parameters() if "lora_A" in n or "lora_B" in n):
        arrays[name.replace(".default", "")] = p.data.numpy()[...] = wave(k, tuple(p.shape))
    return arrays


def adalora(family: str) -> dict[str, np.ndarray]:
    config = peft.AdaLoraConfig(task_type="CAUSAL_LM", target_modules=TARGETS[family], **ADALORA)
    model = peft.get_peft_model(make["build"](family.removesuffix("-fused")), config)
    values = {f"start/{name}": array for name, array in start(model).items()}
    optimizer = torch.optim.AdamW([p for n, p in model.named_parameters() if "lora_" in n], lr=0.01)
    losses, kept = [], []
    for step in range(ADALORA["total_step"]):
        ids = torch.tensor(recipe["batch"](step))
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        model.base_model.update_and_allocate(step)
        optimizer.zero_grad()
        losses.append(loss.item())
        pattern = model.peft_config["default"].rank_pattern or {}
        names = sorted(n for n, _ in model.named_parameters() if "lora_E" in n)
        kept.append([pattern.get(n.removeprefix("base_model.model."), [True] * ADALORA["init_r"]) for n in names])
    return values | {"losses": np.array(losses), "kept": np.array(kept)} | saved(model)


def ia3(family: str) -> dict[str, np.ndarray]:
    targets, feedforward = IA3_TARGETS[family]
    config = peft.IA3Config(task_type="CAUSAL_LM", target_modules=targets, feedforward_modules=feedforward)
    model = peft.get_peft_model(make["build"](family), config)
    for k, p in enumerate(p for n, p in model.named_parameters() if "ia3_l" in n):
        p.data += torch.tensor(5 * wave(k, tuple(p.shape)))
    return saved(model)


def saved(model: torch.nn.Module) -> dict[str, Any]:
    """The adapter's file, its JSON and its logits."""
    with tempfile.TemporaryDirectory() as directory:
        model.save_pretrained(directory)
        arrays = load_file(f"{directory}/adapter_model.safetensors")
        settings = json.loads(Path(directory, "adapter_config.json").read_text())
    with torch.no_grad():
        logits = model.eval()(torch.tensor(recipe["IDS"])).logits.numpy()
    settings |= {"base_model_name_or_path": None, "target_modules": sorted(settings["target_modules"])}
    return {f"adapter/{n}": a for n, a in arrays.items()} | {"logits": logits, "settings": json.dumps(settings)}


if __name__ == "__main__":
    for method, families in ((adalora, TARGETS), (ia3, IA3_TARGETS)):
        values: dict[str, Any] = {}
        for family in families:
            values |= {f"{family}/{name}": value for name, value in method(family).items()}
        metadata = {family: values.pop(f"{family}/settings") for family in families}
        metadata |= {"torch": torch.__version__, "peft": peft.__version__}
        path = HERE / f"{method.__name__}.safetensors"
        save_file({n: np.ascontiguousarray(v) for n, v in values.items()}, path, metadata)
        path.chmod(0o644)
        print(method.__name__, {n: v for n, v in values.items() if n.endswith("losses")}, path.stat().st_size)
