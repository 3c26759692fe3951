"""Write gpt2.safetensors and llama.safetensors: what torch and transformers compute for the recipe's models.

    python -P tests/golden/make.py

(-P: the clone's folder `kernels` must not be on the path.) Each holds, for the recipe's ids as input and as
labels: ``logits``, ``loss``, ``hidden.0`` ... before each layer and at the end, ``grad.NAME`` of every
parameter; ``greedy``, twelve tokens that follow the recipe's prompt; ``losses``, those of ten steps of AdamW.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
import transformers
from safetensors.numpy import save_file

HERE = Path(__file__).parent
recipe = runpy.run_path(str(HERE / "recipe.py"))


def build(family: str) -> torch.nn.Module:
    options = dict(recipe["CONFIGS"][family])
    config = transformers.AutoConfig.for_model(
        options.pop("model_type"), **options, bos_token_id=None, eos_token_id=None
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    parameters = {n.removeprefix("transformer."): p for n, p in model.named_parameters()}
    for name, array in recipe["weights"]({n: tuple(p.shape) for n, p in parameters.items()}).items():
        parameters[name].data = torch.tensor(array)
    return model


def compute(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    ids = torch.tensor(recipe["IDS"])
    out = model(ids, labels=ids, output_hidden_states=True)
    out.loss.backward()
    values = {"logits": out.logits, "loss": out.loss}
    values |= {f"hidden.{i}": h for i, h in enumerate(out.hidden_states)}
    values |= {f"grad.{n}": p.grad.clone() for n, p in model.named_parameters()}
    prompt = torch.tensor(recipe["PROMPT"])
    values["greedy"] = model.generate(prompt, max_new_tokens=12, do_sample=False, pad_token_id=0)
    values["losses"] = torch.stack(train(model))
    return values


def train(model: torch.nn.Module) -> list[torch.Tensor]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe["LEARNING_RATE"], betas=(0.9, 0.95), weight_decay=recipe["WEIGHT_DECAY"]
    )
    losses = []
    for step in range(recipe["STEPS"]):
        ids = torch.tensor(recipe["batch"](step))
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


if __name__ == "__main__":
    for family in recipe["CONFIGS"]:
        values = {name: v.detach().contiguous().numpy() for name, v in compute(build(family)).items()}
        made_by = {"torch": torch.__version__, "transformers": transformers.__version__}
        save_file(values, HERE / f"{family}.safetensors", made_by)
        (HERE / f"{family}.safetensors").chmod(0o644)
        print(family, "loss", values["loss"], "losses", values["losses"], "greedy", values["greedy"][0])
