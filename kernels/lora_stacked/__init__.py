"""LoRA layers that share their input (q, k, v; gate, up): one pass over x serves all of them."""
