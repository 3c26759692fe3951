"""Write prompts.safetensors: what peft computes with virtual tokens on the recipe's models.

    python -P tests/golden/prompts.py

Under ``FAMILY.CASE.``: ``logits`` of the recipe's ids, ``loss`` with them as labels, ``grad.NAME`` of every parameter
of the encoder, whose k-th tensor by name is ten times the recipe's wave k + 100, and ``prompt_embeddings``, all that
peft saves of it.
"""

from __future__ import annotations

import runpy
from pathlib import Path

HERE = Path(__file__).parent
PEFT_TYPES = {"prompt": "PromptTuning", "prefix": "PrefixTuning", "projected": "PrefixTuning"}
CASES = {  # settings of peft's configs
    "prompt": {"num_virtual_tokens": 3},
    "prefix": {"num_virtual_tokens": 2},
    "projected": {"num_virtual_tokens": 2, "prefix_projection": True, "encoder_hidden_size": 3},
    "mlp": {"num_virtual_tokens": 3, "encoder_hidden_size": 4},
    "lstm": {"num_virtual_tokens": 3, "encoder_reparameterization_type": "LSTM", "encoder_hidden_size": 3},
}
CONFIGS = {case: f"{PEFT_TYPES.get(case, 'PromptEncoder')}Config" for case in CASES}


def encoder_weights(recipe, shapes):
    """Name to float32 array, for names to shapes of an encoder's parameters."""
    return {name: 10 * recipe["wave"](100 + k, shapes[name], name) for k, name in enumerate(sorted(shapes))}


def compute(peft, torch, recipe, base, case):
    model = peft.get_peft_model(base, getattr(peft, CONFIGS[case])(task_type="CAUSAL_LM", **CASES[case]))
    encoder = model.prompt_encoder["default"]
    weights = encoder_weights(recipe, {n: tuple(p.shape) for n, p in encoder.named_parameters()})
    encoder.load_state_dict({name: torch.tensor(array) for name, array in weights.items()})
    ids = torch.tensor(recipe["IDS"])
    out = model(ids, labels=ids)
    out.loss.backward()
    values = {"logits": out.logits[:, -ids.shape[1] :], "loss": out.loss}
    values |= {f"grad.{n}": p.grad for n, p in encoder.named_parameters()}
    return values | {"prompt_embeddings": model.get_prompt_embedding_to_save("default")}


if __name__ == "__main__":
    import peft
    import torch
    import transformers
    from safetensors.numpy import save_file

    make = runpy.run_path(str(HERE / "make.py"))
    arrays = {}
    for family in make["recipe"]["CONFIGS"]:
        for case in CASES:
            values = compute(peft, torch, make["recipe"], make["build"](family), case)
            arrays |= {f"{family}.{case}.{n}": v.detach().contiguous().numpy() for n, v in values.items()}
    made_by = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    save_file(arrays, HERE / "prompts.safetensors", made_by)
    (HERE / "prompts.safetensors").chmod(0o644)
    print({name: float(array) for name, array in arrays.items() if name.endswith("loss")})
