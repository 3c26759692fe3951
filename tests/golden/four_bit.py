"""Write four_bit.safetensors: two Linear4bit of bitsandbytes, as their state dict, and their values.

    python -P tests/golden/four_bit.py

``nf4.weight`` (12, 64) is doubly quantized, ``fp4.weight`` (3, 64) is not; ``NAME.values`` is what it dequantizes to.
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes
import bitsandbytes.functional
import torch
from safetensors.numpy import save_file

HERE = Path(__file__).parent


def layer(rows: int, quant_type: str, nested: bool) -> bitsandbytes.nn.Linear4bit:
    linear = bitsandbytes.nn.Linear4bit(64, rows, bias=False, quant_type=quant_type, compress_statistics=nested)
    values = torch.sin(0.7310585786 * torch.arange(64 * rows)) * torch.arange(1, rows + 1).repeat_interleave(64)
    linear.load_state_dict({"weight": values.reshape(rows, 64)})
    return linear.to("cpu")


if __name__ == "__main__":
    arrays = {}
    for quant_type, rows, nested in (("nf4", 12, True), ("fp4", 3, False)):
        linear = layer(rows, quant_type, nested)
        for key, tensor in linear.state_dict().items():
            arrays[f"{quant_type}.{key}"] = tensor.numpy().copy()
        weight = linear.weight
        values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        arrays[f"{quant_type}.values"] = values.numpy()
    save_file(arrays, HERE / "four_bit.safetensors", {"bitsandbytes": bitsandbytes.__version__})
    (HERE / "four_bit.safetensors").chmod(0o644)
    print({key: (array.dtype, array.shape) for key, array in arrays.items()})
