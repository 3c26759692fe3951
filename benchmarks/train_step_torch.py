"""The contender of benchmarks.train_step that is PyTorch: a lean GPT-2 in eager mode, with peft's LoRA.

The weights are those of our model, the separate q, k, v fused into one matrix as PyTorch users have it. For LoRA,
peft wraps separate q, k and v, as our adapters do, and starts from our A.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.contest import resident_bytes, serve
from benchmarks.train_step import ALPHA, RANK, RATE, SHAPES, VOCABULARY, WARM_UP


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads = heads
        if fused:
            self.qkv_proj = nn.Linear(width, 3 * width)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.o_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        qkv = (
            self.qkv_proj(x).split(C, 2)
            if hasattr(self, "qkv_proj")
            else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in qkv)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up_proj, self.down_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, fused)
        self.ln_2, self.mlp = nn.LayerNorm(width), MLP(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self, n_layer: int, n_embd: int, n_head: int, n_positions: int, fused: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, n_embd), nn.Embedding(n_positions, n_embd)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, fused) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.tokens.weight)
        targets = F.pad(labels[:, 1:], (0, 1), value=-100)
        return F.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))


def with_our_weights(model: GPT, state: dict[str, torch.Tensor], fused: bool) -> GPT:
    state = {name.removeprefix("embed."): value for name, value in state.items()}
    if fused:
        for i in range(len(model.blocks)):
            for kind in ("weight", "bias"):
                parts = [state.pop(f"blocks.{i}.attn.{n}_proj.{kind}") for n in "qkv"]
                state[f"blocks.{i}.attn.qkv_proj.{kind}"] = torch.cat(parts)
    model.load_state_dict(state)
    return model


def make_step(size: str, method: str, fused_adamw: bool) -> Callable[[], float]:
    from benchmarks.train_step_ours import TARGETS, make_batch, make_model

    shape = {k: v for k, v in SHAPES[size].items() if k != "batch"}
    ours = make_model(size)
    state = {name: torch.from_numpy(p.data.copy()) for name, p in ours.named_parameters()}
    model: nn.Module = with_our_weights(GPT(**shape, fused=method == "full"), state, fused=method == "full")
    if method == "lora":
        model = with_lora(model, ours, TARGETS)
    ids, labels = (torch.from_numpy(a) for a in make_batch(size))
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.01, fused=fused_adamw or None)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def with_lora(model: GPT, ours: object, targets: list[str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    from minitorch_peft.peft import LoraConfig as OurConfig
    from minitorch_peft.peft import get_peft_model as our_peft_model

    adapted = our_peft_model(ours, OurConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets), seed=0)
    start = {name: p.data for name, p in adapted.named_parameters() if name.endswith(".default")}
    peft_model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets))
    with torch.no_grad():
        for name, p in peft_model.named_parameters():
            if "lora_" in name:
                path = name.removeprefix("base_model.model.").removesuffix(".weight")
                p.copy_(torch.from_numpy(start[path]))
    return peft_model.base_model.model


if __name__ == "__main__":
    torch.set_num_threads(int(__import__("os").environ["OMP_NUM_THREADS"]))
    size, method, *tuned = sys.argv[1:]
    make_step(WARM_UP, method, bool(tuned))()
    before = resident_bytes()
    serve(make_step(size, method, bool(tuned)), before)
