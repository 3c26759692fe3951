"""The page to read first: what the ledger comes to for a GPT-2, in closed form.

C is the width, L the number of blocks, V the vocabulary, I the width inside the MLP, N = BT tokens in rows of T; an
adapter changes none of these, but k prompt vectors make T + k of T.

**FLOPs.** A block multiplies each token by 4C² + 2CI weights, the head by VC: a multiplication and an addition each.
Attention compares every query with every key and mixes as many values.

    forward                   F = 2N (L (4C² + 2CI) + VC) + L 4NTC
    backward, input           each product once more, for dX: what lies below wants a gradient
    backward, weights         each product once more, for dW: full fine-tuning only
    backward, attention       P again, dP, dV, dQ, dK: five products of the size of one, where forward has two

So with M = 2N (L (4C² + 2CI) + VC), the products with weights:

    full fine-tuning          3M + attention        dX and dW
    frozen base               2M + attention        dX alone: two thirds of it. No method that adapts the lowest block,
                                                    and no prompt, gets below that
    ladder                     M + attention        no gradient passes a block: forward, and of the backward pass
                                 + 2NVC + side      the head's dX, 2NVC; and the side network, which trains whole
    inference, merged LoRA     M + attention        what the base costs

A side network of width w, i wide inside its MLPs, has "side" = 6N L (4w² + 2wi), its blocks' products three times;
2N (2L + 5) Cw, for going up three times and for its L + 1 ways down twice, since what they start from is frozen; and
attention as a block's, w wide. That is not little where it is not much narrower than the base, or the head is wide.

**Bytes** of float32. Each parameter has 4 of weight (8 under the method ``full``, which keeps the original beside the
copy that trains), and where it trains 4 of gradient and 8 of AdamW's state. Between forward and backward a block keeps
for each token, whatever the method (a norm's output and GELU's are made again):

    x before each norm 2C,  q, k, v 3C,  what attention gives C,  what enters the activation I     =>  6C + I numbers

and four for the two norms, one for each head. Behind the blocks stand the last norm with C + 2 and the head with V
logits and 3 (the target, 8 bytes, and a logarithm). A frozen Linear keeps nothing of its own, a trained one only its
input, which is among these already: so freezing the weights saves gradients and optimizer state, and hardly an
activation.
"""

from __future__ import annotations

from minitorch_peft.analysis.ledger.scaling import Batch
from minitorch_peft.models import GPTConfig


def product_flops(config: GPTConfig, batch: Batch) -> int:
    """M, the FLOPs of all products with weights in one forward pass.

    >>> product_flops(GPTConfig(vocab_size=10, n_positions=8, n_embd=4, n_layer=1, n_head=2), (1, 8))
    3712
    """
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    return 2 * batch[0] * batch[1] * (L * (4 * C * C + 2 * C * config.inner) + V * C)


def attention_flops(config: GPTConfig, batch: Batch) -> int:
    """The FLOPs of Q Kᵀ and P V in one forward pass, over all pairs."""
    return config.n_layer * 4 * batch[0] * batch[1] ** 2 * config.n_embd


def training_flops(config: GPTConfig, batch: Batch, frozen: bool) -> int:
    """Forward and backward of a model that trains whole, or of a frozen one that gradients pass through."""
    return (2 if frozen else 3) * product_flops(config, batch) + 7 * attention_flops(config, batch) // 2


def ladder_flops(config: GPTConfig, batch: Batch, side: GPTConfig) -> int:
    """Forward and backward of a frozen model beside which a network of the shape ``side`` climbs."""
    C, L, w, N = config.n_embd, config.n_layer, side.n_embd, batch[0] * batch[1]
    of_head = 2 * N * config.vocab_size * C
    of_side = 6 * N * L * (4 * w * w + 2 * w * side.inner) + 2 * N * (2 * L + 5) * C * w
    of_side += 7 * attention_flops(side, batch) // 2
    return product_flops(config, batch) + attention_flops(config, batch) + of_head + of_side


def activation_bytes(config: GPTConfig, batch: Batch) -> int:
    """What is kept in float32 between forward and backward: 4N (L (6C + I + H + 4) + C + V + 5)."""
    C, L, V = config.n_embd, config.n_layer, config.vocab_size
    return 4 * batch[0] * batch[1] * (L * (6 * C + config.inner + config.n_head + 4) + C + V + 5)
