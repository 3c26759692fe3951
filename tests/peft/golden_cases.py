"""The recipe's models and ``peft``'s adapters on them, from tests/golden, without ``peft``."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

from minitorch_peft.formats.families import FAMILIES, expand, sizes, stored_shape
from minitorch_peft.formats.files import read_arrays, read_metadata, write_arrays
from minitorch_peft.formats.hf import from_hf
from minitorch_peft.formats.hf_config import read_config
from minitorch_peft.models import GPT, GPTConfig

FOLDER = Path(__file__).parents[1] / "golden"
RECIPE = runpy.run_path(str(FOLDER / "recipe.py"))


def golden_model(family: str) -> GPT:
    """The recipe's model of a family, in evaluation."""
    found, fields = read_config(RECIPE["CONFIGS"][family])
    rows = {row.theirs.removeprefix("transformer."): row for row in expand(FAMILIES[family], fields)}
    arrays = RECIPE["weights"]({name: stored_shape(row, sizes(fields)) for name, row in rows.items()})
    model = GPT(GPTConfig(**fields), seed=None).eval()
    model.load_state_dict(from_hf(found, fields, arrays))
    return model


def golden_values(method: str, family: str) -> dict:
    """Of a method's golden file, what is a family's."""
    arrays = read_arrays(FOLDER / f"{method}.safetensors")
    return {name.removeprefix(f"{family}/"): a for name, a in arrays.items() if name.startswith(f"{family}/")}


def golden_adapter(method: str, family: str, directory: Path) -> dict:
    """Write the adapter as ``peft`` did; its tensors."""
    path = FOLDER / f"{method}.safetensors"
    arrays = {n.removeprefix("adapter/"): a for n, a in golden_values(method, family).items() if "adapter/" in n}
    directory.mkdir(exist_ok=True)
    (directory / "adapter_config.json").write_text(json.dumps(json.loads(read_metadata(path)[family])))
    write_arrays(directory / "adapter_model.safetensors", arrays)
    return arrays
