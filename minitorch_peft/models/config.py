"""The shape of a GPT, under Hugging Face's names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

NORMS = ("layer", "rms")
POSITIONS = ("learned", "rotary")


@dataclass(frozen=True)
class GPTConfig:
    """One GPT serves two families; the defaults are GPT-2's, :meth:`llama` sets Llama's.

    >>> GPTConfig(vocab_size=97, n_positions=64, n_embd=64, n_layer=3, n_head=4).head_dim
    16
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    num_key_value_heads: int | None = None  # fewer than n_head: grouped keys and values; None: n_head
    n_inner: int | None = None  # width of the MLP; None: 4 n_embd
    activation_function: str = "gelu_new"
    gated_mlp: bool = False  # down(act(gate(x)) * up(x)) instead of down(act(up(x)))
    norm: str = "layer"
    layer_norm_epsilon: float = 1e-5
    position_embedding: str = "learned"
    rope_theta: float = 10000.0
    attention_bias: bool = True
    mlp_bias: bool = True
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    embd_pdrop: float = 0.0
    resid_pdrop: float = 0.0
    attn_pdrop: float = 0.0

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} is not a multiple of n_head={self.n_head}")
        if self.kv_heads < 1 or self.n_head % self.kv_heads:
            raise ValueError(f"n_head={self.n_head} is not a multiple of num_key_value_heads={self.kv_heads}")
        if self.norm not in NORMS:
            raise ValueError(f"norm={self.norm!r}: expected one of {NORMS}")
        if self.position_embedding not in POSITIONS:
            raise ValueError(f"position_embedding={self.position_embedding!r}: expected one of {POSITIONS}")
        if self.position_embedding == "rotary" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head_dim, got {self.head_dim}")

    @classmethod
    def llama(cls, **fields: Any) -> GPTConfig:
        """Llama's family: RMS norm, rotary positions, a gated SiLU MLP, no biases, a head of its own."""
        family = {
            "activation_function": "silu", "gated_mlp": True, "norm": "rms", "layer_norm_epsilon": 1e-6,
            "position_embedding": "rotary", "attention_bias": False, "mlp_bias": False,
            "tie_word_embeddings": False,
        }  # fmt: skip
        return cls(**{**family, **fields})

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        return self.n_head if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def inner(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
