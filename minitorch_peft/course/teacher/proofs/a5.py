"""Wrong and right solutions of assignment A5: the mistakes that students and libraries make, and other right ways."""

from minitorch_peft.course.teacher.proof import Proof

# -- 5.1 and 5.2: a bottleneck -----------------------------------------------------------------------------------------
APPLIED = "a = f.forward(Context(f.__name__, (False,)), u)"
ADDED = "if to_z or h is not None:\n    y = y + (z if to_z else h)"


def forward(
    u: str = "linear(z, W_down, b_down)", y: str = "linear(a, factor[:, None] * W_up, factor * b_up)",
    apply: str = APPLIED, add: str = ADDED,
) -> dict[str, str]:  # fmt: skip
    """A solution of 5.1's first region, of these four parts."""
    return {"5.1a": f"u = {u}\n{apply}\ny = {y}\n{add}"}


BOTTLENECK = Proof(
    wrong={
        "h is forgotten": forward(add=""),
        "z is added whatever is asked for": forward(add="y = y + z"),
        "h is added even where there is none": forward(add="y = y + (z if to_z else h)"),
        "to_z is overlooked": forward(add="if h is not None:\n    y = y + h"),
        "h is scaled too": {
            "5.1a": """
            u = linear(z, W_down, b_down)
            a = f.forward(Context(f.__name__, (False,)), u)
            y = linear(a, W_up, b_up)
            if to_z or h is not None:
                y = y + (z if to_z else h)
            y = factor * y
            """
        },
        "the scaling is forgotten": forward(y="linear(a, W_up, b_up)"),
        "the upper bias is not scaled (peft's merge of a lora_bias in four bits)": forward(
            y="linear(a, factor[:, None] * W_up, b_up)"
        ),
        "only the upper bias is scaled": forward(y="linear(a, W_up, factor * b_up)"),
        "the scaling is applied twice": forward(y="factor * linear(a, factor[:, None] * W_up, factor * b_up)"),
        "the scaling acts before f": forward(
            u="linear(z, factor.mean() * W_down, factor.mean() * b_down)", y="linear(a, W_up, b_up)"
        ),
        "one s for all channels, the first": forward(y="linear(a, factor[0] * W_up, factor[0] * b_up)"),
        "s runs along the wrong axis of W_up": forward(y="linear(a, factor * W_up, factor * b_up)"),
        "the lower bias is forgotten": forward(u="linear(z, W_down, None)"),
        "the upper bias is forgotten": forward(y="linear(a, factor[:, None] * W_up, None)"),
        "f is forgotten": forward(apply="a = u"),
        "f is always relu": forward(apply="a = np.maximum(u, 0)"),
        "f after the upper layer": {
            "5.1a": """
            u = linear(z, W_down, b_down)
            y = factor * f.forward(Context(f.__name__, (False,)), linear(u, W_up, b_up))
            if to_z or h is not None:
                y = y + (z if to_z else h)
            """
        },
        "u is overwritten by f": forward(apply=f"{APPLIED}\nu = a"),
        "u in place": forward(apply=f"{APPLIED}\nu[...] = a\na = u"),
        "y is written into h": {
            "5.1a": """
            u = linear(z, W_down, b_down)
            a = f.forward(Context(f.__name__, (False,)), u)
            y = linear(a, factor[:, None] * W_up, factor * b_up)
            if to_z or h is not None:
                to = z if to_z else h
                to += y
                y = to
            """
        },
        "float64 results for float32": forward(y="linear(a.astype(float), factor[:, None] * W_up, factor * b_up)"),
        "a norm in front, as Houlsby's code has none": forward(
            u="linear((z - z.mean(-1, keepdims=True)) / (z.std(-1, keepdims=True) + 1e-5), W_down, b_down)"
        ),
        "reads the input always": {"5.1b": "return x"},
        "reads the output always": {"5.1b": "return y"},
        "parallel and sequential exchanged": {"5.1b": "return y if self.is_parallel else x"},
        "the sequential one reads the residual stream (AdapterHub's default for Pfeiffer's)": {
            "5.1b": "return x if self.is_parallel else y + x"
        },
        "the parallel one reads both": {"5.1b": "return x + y if self.is_parallel else y"},
    },
    right={
        "matrix products by hand": {
            "5.1a": """
            u = z @ W_down.T + b_down
            a = f.forward(Context("f", (False,)), u)
            y = factor * (a @ W_up.T + b_up)
            if to_z:
                y = y + z
            elif h is not None:
                y = y + h
            """,
            "5.1b": """
            if self.is_parallel:
                return x
            return y
            """,
        },
        "einsum": {
            "5.1a": """
            u = np.einsum("...c,wc->...w", z, W_down) + b_down
            a = f.forward(Context("f", (False,)), u)
            y = np.einsum("...w,cw,c->...c", a, W_up, np.broadcast_to(factor, b_up.shape)) + factor * b_up
            y = y + (z if to_z else h) if to_z or h is not None else y
            """
        },
        "the change first, then a copy of h": {
            "5.1a": """
            u = linear(z, W_down, b_down)
            change = factor * linear(f.forward(Context(f.__name__, (False,)), u), W_up, b_up)
            start = z if to_z else h
            if start is None:
                y = change
            else:
                y = start.copy()
                y += change
            """
        },
        "a loop over rows": {
            "5.1a": """
            rows = z.reshape(-1, z.shape[-1])
            flat = np.stack([W_down @ row for row in rows]) + b_down
            u = flat.reshape(*z.shape[:-1], len(W_down))
            a = f.forward(Context(f.__name__, (False,)), flat)
            y = (np.stack([W_up @ row for row in a]) + b_up).reshape(z.shape) * factor
            y = y if h is None and not to_z else y + (z if to_z else h)
            """
        },
    },
)


def backward(**parts: str) -> dict[str, str]:
    """A solution of 5.2 where each of these values is computed as given, the others as they should be."""
    known = {
        "v": "(G * s).reshape(-1, G.shape[-1])",  # the gradient of what stands above the scaling
        "g": "G.reshape(-1, G.shape[-1])",
        "rows": "a.reshape(-1, a.shape[-1])",
        "da": "(v @ W_up).reshape(a.shape)",
        "du": "ctx.f.backward(inner, da).reshape(-1, a.shape[-1])",
        "dh": "G",
        "dz": "(du @ W_down).reshape(G.shape) + (G if ctx.to_z else 0)",
        "dW_down": "du.T @ z.reshape(-1, z.shape[-1])",
        "db_down": "du.sum(axis=0)",
        "dW_up": "v.T @ rows",
        "db_up": "v.sum(axis=0)",
        "channels": "(g * (rows @ W_up.T + b_up)).sum(axis=0)",
        "ds": "channels if len(s) > 1 else channels.sum(keepdims=True)",
    } | parts
    first = [f"{name} = {known[name]}" for name in ("v", "g", "rows", "da", "du")]
    needs = {
        "dh": "need_h", "dz": "need_z", "dW_down": "need_down", "db_down": "need_down_bias", "dW_up": "above",
        "db_up": "above", "ds": "above and ctx.learned",
    }  # fmt: skip
    first += [f"channels = {known['channels']}"]
    first += [f"{name} = ({known[name]}) if {need} else None" for name, need in needs.items()]
    return {"5.2": "\n".join([*first, f"return {', '.join(needs)}"])}


BACKWARD = Proof(
    wrong={
        "leaves the gradients to the engine": {
            "5.2": """
            from minitorch_peft.autograd.tensor import Tensor
            import minitorch_peft.functional as F

            inputs = [np.zeros_like(G), z, W_down, np.zeros(len(W_down), G.dtype), W_up, b_up, s]
            tensors = [None if i is None else Tensor(i, requires_grad=True) for i in inputs]
            h_, z_, down, lower, up, upper, scale = tensors
            (h_ + scale * F.linear(ctx.f.apply(F.linear(z_, down, lower)), up, upper)).backward(G)
            return tuple(t.grad for t in tensors)
            """
        },
        "the scaling is missing in du": backward(da="(g @ W_up).reshape(a.shape)"),
        "the scaling is missing in dW_up": backward(dW_up="g.T @ rows"),
        "the scaling is missing in db_up": backward(db_up="g.sum(axis=0)"),
        "the scaling is there twice in du": backward(da="((s * v) @ W_up).reshape(a.shape)"),
        "the scaling acts on dh": backward(dh="s * G"),
        "ds has the factor s too": backward(channels="(v * (rows @ W_up.T + b_up)).sum(axis=0)"),
        "ds forgets the bias": backward(channels="(g * (rows @ W_up.T)).sum(axis=0)"),
        "ds is a mean": backward(channels="(g * (rows @ W_up.T + b_up)).mean(axis=0)"),
        "one s gets a gradient for each channel": backward(ds="channels"),
        "s for each channel gets one gradient": backward(ds="np.full_like(s, channels.sum())"),
        "the derivative of f is forgotten": backward(du="da.reshape(-1, a.shape[-1])"),
        "f in the place of its derivative": backward(du="(da * a).reshape(-1, a.shape[-1])"),
        "always relu's derivative": backward(du="(da * (u > 0)).reshape(-1, a.shape[-1])"),
        "dW_up from u instead of a": backward(rows="u.reshape(-1, u.shape[-1])"),
        "dW_down from G": backward(dW_down="(v @ W_up).T @ z.reshape(-1, z.shape[-1])"),
        "dW_down is transposed": backward(dW_down="z.reshape(-1, z.shape[-1]).T @ du"),
        "db_down is a mean": backward(db_down="du.mean(axis=0)"),
        "db_up is forgotten": backward(db_up="np.zeros_like(b_up)"),
        "z gets G as well": backward(dz="(du @ W_down).reshape(G.shape) + G"),
        "z does not get G with to_z": backward(dz="(du @ W_down).reshape(G.shape)"),
        "z only gets G": backward(dz="G"),
        "the base path takes dz with it": backward(dh="G + (du @ W_down).reshape(G.shape)"),
        "leading axes are not summed": backward(db_down="ctx.f.backward(inner, da).sum(axis=0)"),
        "needs are not looked at": {
            "5.2": """
            v = (G * s).reshape(-1, G.shape[-1])
            rows = a.reshape(-1, a.shape[-1])
            du = ctx.f.backward(inner, (v @ W_up).reshape(a.shape)).reshape(rows.shape)
            dW_down = None if z is None else du.T @ z.reshape(-1, z.shape[-1])
            ds = (G.reshape(-1, G.shape[-1]) * (rows @ W_up.T + b_up)).sum(axis=0)
            ds = ds if len(s) > 1 else ds.sum(keepdims=True)
            dz = (du @ W_down).reshape(G.shape) + (G if ctx.to_z else 0)
            return G, dz, dW_down, du.sum(axis=0), v.T @ rows, v.sum(axis=0), ds
            """
        },
        "z must be there although W_down is frozen": backward(
            du="ctx.f.backward(inner, da).reshape(*z.shape[:-1], -1).reshape(-1, a.shape[-1])"
        ),
        "float64 on the way": backward(v="(G * s.astype(float)).reshape(-1, G.shape[-1])"),
        "a constant s gets a gradient": {
            "5.2": backward()["5.2"].replace("if above and ctx.learned", "if above")
        },
        "nothing comes to z through the adapter": backward(
            dz="np.zeros_like(G) + (G if ctx.to_z else 0)"
        ),
    },
    right={
        "matrix products by hand": backward(),
        "with the kernel of a linear layer": {
            "5.2": """
            scaled = G * s
            da, dW_up, db_up = backward(scaled, a, W_up, (below, above, above))
            ds = None
            if above and ctx.learned:
                ds = (G * (a @ W_up.T + b_up)).reshape(-1, len(b_up)).sum(axis=0)
                ds = ds.sum(keepdims=True) if len(s) == 1 else ds
            dz = dW_down = db_down = None
            if below:
                du = ctx.f.backward(inner, da)
                stand_in = np.zeros_like(G) if z is None else z
                dz, dW_down, db_down = backward(du, stand_in, W_down, (need_z, need_down, need_down_bias))
            if need_z and ctx.to_z:
                dz = dz + G
            return (G if need_h else None), dz, dW_down, db_down, dW_up, db_up, ds
            """
        },
        "einsum": {
            "5.2": """
            C, w = W_up.shape
            g, rows, factor = G.reshape(-1, C), a.reshape(-1, w), np.broadcast_to(s, b_up.shape)
            du = ctx.f.backward(inner, np.einsum("...c,c,cw->...w", G, factor, W_up))
            dz = np.einsum("...w,wc->...c", du, W_down) if need_z else None
            if need_z and ctx.to_z:
                dz = dz + G
            flat = du.reshape(-1, w)
            dW_down = np.einsum("rw,rc->wc", flat, z.reshape(-1, C)) if need_down else None
            db_down = np.einsum("rw->w", flat) if need_down_bias else None
            dW_up = np.einsum("rc,c,rw->cw", g, factor, rows) if above else None
            db_up = np.einsum("rc,c->c", g, factor) if above else None
            ds = None
            if above and ctx.learned:
                ds = np.einsum("rc,cw,rw->c", g, W_up, rows) + np.einsum("rc,c->c", g, b_up)
                if len(s) == 1:
                    ds = ds.sum(keepdims=True)
            return (G if need_h else None), dz, dW_down, db_down, dW_up, db_up, ds
            """
        },
        "row by row": {
            "5.2": """
            C, w = W_up.shape
            g, rows = G.reshape(-1, C), a.reshape(-1, w)
            du = ctx.f.backward(inner, ((g * s) @ W_up).reshape(a.shape)).reshape(-1, w)
            dz, dW_down, db_down = np.zeros_like(g), np.zeros_like(W_down), np.zeros(w, G.dtype)
            dW_up, db_up, ds = np.zeros_like(W_up), np.zeros_like(b_up), np.zeros_like(b_up)
            for i in range(len(g)):
                dz[i] = du[i] @ W_down
                db_down += du[i]
                if need_down:
                    dW_down += np.outer(du[i], z.reshape(-1, C)[i])
                dW_up += np.outer(g[i] * s, rows[i])
                db_up += g[i] * s
                ds += g[i] * (W_up @ rows[i] + b_up)
            dz = dz.reshape(G.shape) + G if ctx.to_z else dz.reshape(G.shape)
            ds = ds.sum(keepdims=True) if len(s) == 1 else ds
            return (
                G if need_h else None, dz if need_z else None, dW_down if need_down else None,
                db_down if need_down_bias else None, dW_up if above else None, db_up if above else None,
                ds if above and ctx.learned else None,
            )
            """
        },
    },
)  # fmt: skip


# -- 5.3 prompts -------------------------------------------------------------------------------------------------------
def before(how: str) -> dict[str, str]:
    """A solution of 5.3's second region."""
    return {"5.3b": f"prompt = self.prompt()\n{how}"}


def when(condition: str) -> dict[str, str]:
    """A solution of 5.3's first region: where the layer is transparent."""
    return {"5.3a": f"if {condition}:\n    return self.base_layer(x, context)\nreturn super().forward(x, context)"}


PROMPTS = Proof(
    wrong={
        "in every pass": {"5.3a": "return super().forward(x, context)"},
        "in no pass": {"5.3a": "return self.base_layer(x, context)"},
        "in later passes instead of the first": when("context is not None and context.prompt_length"),
        "never mind what is placed already": when("context is not None and not context.prompt_length"),
        "only what is placed counts": when("context is not None and context.prompts_placed"),
        "never without a context": when(
            "context is None or context.prompts_placed or not context.prompt_length"
        ),
        "a context is taken for granted": when("context.prompts_placed or not context.prompt_length"),
        "in any row and for any adapter": {
            "5.3a": """
            if context is not None and (context.prompts_placed or not context.prompt_length):
                return self.base_layer(x, context)
            return self.base_layer(self.before(x, context), context)
            """
        },
        "skips the wrapped module in later passes": {
            "5.3a": """
            if context is not None and (context.prompts_placed or not context.prompt_length):
                return x
            return super().forward(x, context)
            """
        },
        "a first pass is told by its length": when("x.shape[1] == 1"),
        "behind the text": before("return F.cat([x, prompt.expand(x.shape[0], *prompt.shape)], dim=1)"),
        "over the text": before(
            "k = min(len(prompt), x.shape[1])\n"
            "return F.cat([prompt[:k].expand(x.shape[0], k, x.shape[2]), x[:, k:]], dim=1)"
        ),
        "added to the text": before("return x + prompt.mean(dim=0)"),
        "for the first row only": before(
            "zeros = Tensor(np.zeros((x.shape[0] - 1, *prompt.shape), x.dtype))\n"
            "return F.cat([F.cat([prompt.reshape(1, *prompt.shape), zeros], dim=0), x], dim=1)"
        ),
        "joined along the batch": before("return F.cat([prompt.expand(x.shape[0], *prompt.shape), x], dim=0)"),
        "no gradient: an array": before(
            "rows = np.broadcast_to(prompt.data, (x.shape[0], *prompt.shape))\n"
            "return F.cat([Tensor(rows.copy()), x], dim=1)"
        ),
        "detached": before("return F.cat([prompt.detach().expand(x.shape[0], *prompt.shape), x], dim=1)"),
        "the text is detached": before(
            "return F.cat([prompt.expand(x.shape[0], *prompt.shape), x.detach()], dim=1)"
        ),
        "its mean over the batch": before(
            "return F.cat([prompt.expand(x.shape[0], *prompt.shape) / x.shape[0], x], dim=1)"
        ),
        "in the wrong order": before("return F.cat([prompt.flip(0).expand(x.shape[0], *prompt.shape), x], dim=1)"),
        "only its first vector": before("return F.cat([prompt[:1].expand(x.shape[0], 1, x.shape[2]), x], dim=1)"),
    },
    right={
        "stacked rows": before("return F.cat([F.stack([prompt] * x.shape[0], dim=0), x], dim=1)"),
        "row by row": before(
            "return F.stack([F.cat([prompt, x[b]], dim=0) for b in range(x.shape[0])], dim=0)"
        ),
        "by an index": before("return F.cat([prompt.reshape(1, *prompt.shape)[np.zeros(x.shape[0], int)], x], dim=1)"),
        "the condition the other way round": {
            "5.3a": """
            first = context is None or (context.prompt_length > 0 and not context.prompts_placed)
            return super().forward(x, context) if first else self.base_layer(x, context)
            """
        },
    },
)  # fmt: skip


# -- 5.4 a prefix's table ----------------------------------------------------------------------------------------------
def layout(parts: str, pairs: str = "[(parts[2 * l], parts[2 * l + 1]) for l in range(c.n_layer)]") -> dict[str, str]:
    """A solution of 5.4."""
    return {"5.4": f"k, L, H, D = len(table), c.n_layer, c.kv_heads, c.head_dim\nparts = {parts}\nreturn {pairs}"}


GOOD = "table.reshape(k, 2 * L, H, D).permute(1, 2, 0, 3)"

TABLES = Proof(
    wrong={
        "keys and values are exchanged": layout(GOOD, "[(parts[2 * l + 1], parts[2 * l]) for l in range(L)]"),
        "all keys first, then all values": layout(GOOD, "[(parts[l], parts[L + l]) for l in range(L)]"),
        "keys and values of neighbouring layers": layout(GOOD, "[(parts[l], parts[l + 1]) for l in range(L)]"),
        "the layers in reverse": layout(GOOD, "[(parts[2 * l], parts[2 * l + 1]) for l in reversed(range(L))]"),
        "the first layer everywhere": layout(GOOD, "[(parts[0], parts[1])] * L"),
        "rows are not moved, only split": layout("table.reshape(2 * L, H, k, D)"),
        "rows are split among the layers": layout("table.reshape(2 * L, k, H, D).permute(0, 2, 1, 3)"),
        "heads and channels are exchanged": layout("table.reshape(k, 2 * L, D, H).permute(1, 3, 0, 2)"),
        "heads stand before the layers": layout("table.reshape(k, H, 2 * L, D).permute(2, 1, 0, 3)"),
        "the axes of layers and heads are exchanged after the split": layout(
            "table.reshape(k, 2 * L, H, D).permute(2, 1, 0, 3).reshape(2 * L, H, k, D)"
        ),
        "(k, heads) instead of (heads, k)": layout("table.reshape(k, 2 * L, H, D).permute(1, 0, 2, 3)"),
        "channels before k": layout("table.reshape(k, 2 * L, H, D).permute(1, 2, 3, 0)"),
        "as many heads as there are queries": layout(
            "table.reshape(k, 2 * L, c.n_head, -1).permute(1, 2, 0, 3)"
        ),
        "one head": layout("table.reshape(k, 2 * L, 1, H * D).permute(1, 2, 0, 3)"),
        "a batch axis": layout(GOOD, "[(parts[2 * l : 2 * l + 1], parts[2 * l + 1 : 2 * l + 2]) for l in range(L)]"),
        "one pair too few": layout(GOOD, "[(parts[2 * l], parts[2 * l + 1]) for l in range(L - 1)]"),
        "copies without a gradient": layout(
            "Tensor(table.data.reshape(k, 2 * L, H, D).transpose(1, 2, 0, 3).copy())"
        ),
        "values without a gradient": layout(GOOD, "[(parts[2 * l], parts[2 * l + 1].detach()) for l in range(L)]"),
        "the encoder's inner table, not what it makes": {
            "5.4": """
            table = self.encoder.embedding.weight
            parts = table.reshape(len(table), 2 * c.n_layer, c.kv_heads, c.head_dim).permute(1, 2, 0, 3)
            return [(parts[2 * l], parts[2 * l + 1]) for l in range(c.n_layer)]
            """
        },
        "the rows in reverse": layout(GOOD, "[(parts[2 * l].flip(1), parts[2 * l + 1]) for l in range(L)]"),
    },
    right={
        "key and value as an axis of their own": {
            "5.4": """
            parts = table.reshape(len(table), c.n_layer, 2, c.kv_heads, c.head_dim).permute(1, 2, 3, 0, 4)
            return [(layer[0], layer[1]) for layer in (parts[i] for i in range(c.n_layer))]
            """
        },
        "slices of columns": {
            "5.4": """
            width, pairs = c.kv_heads * c.head_dim, []
            for layer in range(c.n_layer):
                pair = []
                for part in range(2):
                    start = (2 * layer + part) * width
                    columns = table[:, start : start + width]
                    pair.append(columns.reshape(len(table), c.kv_heads, c.head_dim).transpose(0, 1))
                pairs.append(tuple(pair))
            return pairs
            """
        },
        "head by head": {
            "5.4": """
            import minitorch_peft.functional as F

            def heads(start):
                d = c.head_dim
                return F.stack([table[:, start + h * d : start + (h + 1) * d] for h in range(c.kv_heads)], dim=0)

            width = c.kv_heads * c.head_dim
            return [(heads(2 * i * width), heads((2 * i + 1) * width)) for i in range(c.n_layer)]
            """
        },
        "two transposes": layout("table.reshape(k, 2 * L, H, D).transpose(0, 1).transpose(1, 2)"),
    },
)  # fmt: skip


# -- 5.5 the cache -----------------------------------------------------------------------------------------------------
FIRST = """
if {condition}:
    context.prompt_length, context.prompt_keep = places(context, {{a.name: a.prompt_length for a in acting}})
    cache = with_prefixes(context, acting, {batch}, cache)
"""


def first(condition: str = "cache is None or not cache.length", batch: str = "len(ids)") -> dict[str, str]:
    """A solution of 5.5's second region: what is done in which pass."""
    return {"5.5b": FIRST.format(condition=condition, batch=batch)}


CACHE = Proof(
    wrong={
        "positions begin at 0, as if there were no prefix": {"5.5a": "cache.entries = dict(enumerate(pairs))"},
        "positions begin one too late": {
            "5.5a": "cache.entries = dict(enumerate(pairs))\ncache.next_position = cache.length + 1"
        },
        "the length is that of the heads": {
            "5.5a": "cache.entries = dict(enumerate(pairs))\ncache.next_position = pairs[0][0].shape[1]"
        },
        "layers count from 1": {
            "5.5a": "cache.entries = dict(enumerate(pairs, 1))\ncache.next_position = cache.length"
        },
        "values first": {
            "5.5a": "cache.entries = {i: (v, k) for i, (k, v) in enumerate(pairs)}\ncache.next_position = cache.length"
        },
        "keys without a gradient": {
            "5.5a": """
            cache.entries = {i: (k.detach(), v) for i, (k, v) in enumerate(pairs)}
            cache.next_position = cache.length
            """
        },
        "the prefix again in every pass": first("True"),
        "the prefix only where the caller gave no cache": first("cache is None"),
        "the prefix only where the caller gave a cache": first("cache is not None and not cache.length"),
        "prompts again in every pass": {
            "5.5b": """
            context.prompt_length, context.prompt_keep = places(context, {a.name: a.prompt_length for a in acting})
            if cache is None or not cache.length:
                cache = with_prefixes(context, acting, len(ids), cache)
            """
        },
        "prompts are never announced": {
            "5.5b": """
            if cache is None or not cache.length:
                cache = with_prefixes(context, acting, len(ids), cache)
            """
        },
        "prompts of adapters that do not act": {
            "5.5b": """
            if cache is None or not cache.length:
                lengths = {a.name: a.prompt_length for a in adapters.values()}
                context.prompt_length, context.prompt_keep = places(context, lengths)
                cache = with_prefixes(context, acting, len(ids), cache)
            """
        },
        "prefixes of adapters that do not act": {
            "5.5b": """
            if cache is None or not cache.length:
                context.prompt_length, context.prompt_keep = places(context, {a.name: a.prompt_length for a in acting})
                cache = with_prefixes(context, list(adapters.values()), len(ids), cache)
            """
        },
        "one row": first(batch="1"),
        "as many rows as tokens": first(batch="ids.shape[1]"),
        "another cache than the caller's": {
            "5.5c": "start = Cache.from_prefix(layers)\nstart.real = real\nreturn start"
        },
        "only a cache that was given": {
            "5.5c": """
            start = Cache.from_prefix(layers)
            cache.entries, cache.next_position, cache.real = start.entries, start.next_position, real
            return cache
            """
        },
        "the caller's cache gets the keys, but no position": {
            "5.5c": """
            start = Cache.from_prefix(layers)
            cache = start if cache is None else cache
            cache.entries, cache.real = start.entries, real
            return cache
            """
        },
        "what fills rows up counts as real": {
            "5.5c": """
            start = Cache.from_prefix(layers)
            cache = start if cache is None else cache
            cache.entries, cache.next_position = start.entries, start.next_position
            return cache
            """
        },
        "a row's own prefix alone is counted for the positions": {
            "5.5c": """
            start = Cache.from_prefix(layers)
            cache = start if cache is None else cache
            cache.entries, cache.real = start.entries, real
            cache.next_position = start.next_position if real is None else int(real.sum(axis=1).min())
            return cache
            """
        },
        "the first prefix only": {"5.5d": "return parts[0].expand(batch, *parts[0].shape)"},
        "the last prefix in front": {
            "5.5d": "whole = F.cat(list(parts)[::-1], dim=1)\nreturn whole.expand(batch, *whole.shape)"
        },
        "prefixes are added": {
            "5.5d": "whole = sum(parts[1:], start=parts[0])\nreturn whole.expand(batch, *whole.shape)"
        },
        "joined along the heads": {
            "5.5d": "whole = F.cat(list(parts), dim=0)\nreturn whole.expand(batch, *whole.shape)"
        },
        "without a batch axis": {"5.5d": "return F.cat(list(parts), dim=1)"},
        "a batch of one": {"5.5d": "whole = F.cat(list(parts), dim=1)\nreturn whole.reshape(1, *whole.shape)"},
        "only the first row": {
            "5.5d": """
            whole = F.cat(list(parts), dim=1)
            rest = Tensor(np.zeros((batch - 1, *whole.shape), whole.dtype))
            return F.cat([whole.reshape(1, *whole.shape), rest], dim=0)
            """
        },
        "no gradient: an array": {
            "5.5d": """
            whole = np.concatenate([part.data for part in parts], axis=1)
            return Tensor(np.repeat(whole[None], batch, axis=0))
            """
        },
    },
    right={
        "a loop over layers": {
            "5.5a": """
            for layer, (key, value) in enumerate(pairs):
                cache.entries[layer] = (key, value)
                cache.next_position = key.shape[2]
            """
        },
        "a comprehension": {
            "5.5a": """
            cache.next_position = pairs[0][0].shape[-2]
            cache.entries = {i: pair for i, pair in enumerate(pairs)}
            """
        },
        "an early way out": {
            "5.5b": """
            later = cache is not None and cache.length > 0
            if not later:
                lengths = {adapter.name: adapter.prompt_length for adapter in acting}
                context.prompt_length, context.prompt_keep = places(context, lengths)
                cache = with_prefixes(context, acting, ids.shape[0], cache)
            """
        },
        "a cache is made where there is none": {
            "5.5c": """
            if cache is None:
                cache = Cache()
            cache.entries = dict(enumerate(layers))
            cache.next_position = layers[0][0].shape[2]
            cache.real = real
            return cache
            """
        },
        "stacked": {
            "5.5d": "return F.stack([F.cat(list(parts), dim=1)] * batch, dim=0)"
        },
    },
)  # fmt: skip


# -- 5.6 BitFit --------------------------------------------------------------------------------------------------------
def biases(condition: str, size: str = "p.data.size", source: str = "base_parameters(model)") -> dict[str, str]:
    """A solution of 5.6's first region."""
    return {"5.6a": f"biases = {{path: {size} for path, p in {source} if {condition}}}"}


BIASES = Proof(
    wrong={
        "everything with one axis, scales of norms too": biases("p.data.ndim == 1"),
        "everything that is no weight of a linear layer": biases("not path.endswith('proj.weight')"),
        "all parameters": biases("True"),
        "biases of linear layers only": biases("path.endswith('proj.bias')"),
        "without the last norm": biases("path.endswith('.bias') and path.startswith('blocks')"),
        "without the norms": biases("path.endswith('.bias') and '.ln_' not in path and 'ln_f' not in path"),
        "norms only": biases("path.endswith('.bias') and 'ln_' in path"),
        "attention only": biases("path.endswith('.bias') and '.attn.' in path"),
        "the first block only": biases("path.endswith('.bias') and 'blocks.1' not in path and 'blocks.2' not in path"),
        "adapters' biases as well (peft's bias='all' takes every name with a bias in it)": biases(
            "'bias' in path", source="model.named_parameters()"
        ),
        "one for each bias": biases("path.endswith('.bias')", size="1"),
        "the first axis of a weight": biases("path.endswith('.bias')", size="model.config.n_embd"),
        "the shape instead of the size": biases("path.endswith('.bias')", size="p.data.shape"),
        "the biases' own arrays": biases("path.endswith('.bias')", size="p.data"),
        "kinds by their first letters": {
            "5.6b": "return [path for path in paths if any(kind[path].startswith(name[:2]) for name in kinds)]"
        },
        "all but the kinds": {"5.6b": "return [path for path in paths if kind[path] not in kinds]"},
        "the first kind only": {"5.6b": "return [path for path in paths if kind[path] == kinds[0]]"},
        "one bias of each kind": {
            "5.6b": "return [next(p for p in paths if kind[p] == name) for name in kinds]"
        },
        "the kinds are not looked at": {"5.6b": "return paths"},
        "the number of tensors": {"5.6c": "return len(bitfit_targets(model, config))"},
        "weights are counted with them": {
            "5.6c": """
            chosen = {path.removesuffix(".bias") for path in bitfit_targets(model, config)}
            return sum(p.data.size for path, p in base_parameters(model) if path.rpartition(".")[0] in chosen)
            """
        },
        "all biases, whatever was chosen": {
            "5.6c": "return sum(p.data.size for path, p in base_parameters(model) if path.endswith('.bias'))"
        },
        "a formula for GPT-2 with one head for each query": {
            "5.6c": "C, L = model.config.n_embd, model.config.n_layer\nreturn L * 11 * C + C"
        },
        "bytes": {"5.6c": "return 4 * sum(bitfit_targets(model, config).values())"},
    },
    right={
        "by the last part of the path": {
            "5.6a": """
            biases = {}
            for path, parameter in base_parameters(model):
                if path.split(".")[-1] == "bias":
                    biases[path] = parameter.data.size
            """
        },
        "by shape": {
            "5.6a": """
            everything = dict(base_parameters(model))
            biases = {p: t.shape[0] for p, t in everything.items() if p.rpartition(".")[2] == "bias"}
            """,
            "5.6c": """
            total = 0
            for size in bitfit_targets(model, config).values():
                total += size
            return total
            """,
        },
        "with filter": {
            "5.6b": "return list(filter(lambda path: kind[path] in set(kinds), paths))",
        },
        "counted on the model": {
            "5.6c": """
            chosen = bitfit_targets(model, config)
            return sum(p.data.size for path, p in base_parameters(model) if path in chosen)
            """
        },
    },
)  # fmt: skip


# -- 5.7 the gate ------------------------------------------------------------------------------------------------------
SIGMOID = "s = 0.5 + 0.5 * np.tanh((alpha + noise) / 2)"


def gate(z: str, s: str = SIGMOID) -> dict[str, str]:
    """A solution of 5.7's first region."""
    return {"5.7a": f"{s}\nreturn {z}"}


def slope(value: str, s: str = "s = (z - LEFT) / (RIGHT - LEFT)", inside: str = "(z > 0) & (z < 1)") -> dict[str, str]:
    """A solution of 5.7's second region."""
    return {"5.7b": f"{s}\nreturn (G * np.where({inside}, {value}, 0)).astype(z.dtype)"}


def share(value: str) -> dict[str, str]:
    """A solution of 5.7's third region."""
    return {"5.7c": f"return {value}"}


STRETCH = "np.clip(s * (RIGHT - LEFT) + LEFT, 0, 1)"
SLOPE = "(RIGHT - LEFT) * s * (1 - s)"

GATES = Proof(
    wrong={
        "not held between 0 and 1": gate("s * (RIGHT - LEFT) + LEFT"),
        "not stretched": gate("np.clip(s, 0, 1)"),
        "held before it is stretched": gate("np.clip(s, 0, 1) * (RIGHT - LEFT) + LEFT"),
        "held between l and r": gate("np.clip(s * (RIGHT - LEFT) + LEFT, LEFT, RIGHT)"),
        "held at 0 only": gate("np.maximum(s * (RIGHT - LEFT) + LEFT, 0)"),
        "stretched by r alone": gate("np.clip(s * RIGHT + LEFT, 0, 1)"),
        "l is subtracted": gate("np.clip(s * (RIGHT - LEFT) - LEFT, 0, 1)"),
        "a hard gate": gate("(s > 0.5).astype(alpha.dtype)"),
        "the noise is forgotten": gate(STRETCH, "s = 0.5 + 0.5 * np.tanh(alpha / 2)"),
        "the noise is added after the sigmoid": gate(STRETCH, "s = 0.5 + 0.5 * np.tanh(alpha / 2) + noise"),
        "the noise is multiplied": gate(STRETCH, "s = 0.5 + 0.5 * np.tanh(alpha * (1 + noise) / 2)"),
        "the sign of the noise": gate(STRETCH, "s = 0.5 + 0.5 * np.tanh((alpha - noise) / 2)"),
        "tanh without the half": gate(STRETCH, "s = 0.5 + 0.5 * np.tanh(alpha + noise)"),
        "exp that overflows to nan": gate(STRETCH, "e = np.exp(alpha + noise)\ns = e / (1 + e)"),
        "the ends of diff pruning, written out": gate("np.clip(s * 3.0 - 1.5, 0, 1)"),
        "float64 results for float32": gate("np.clip(s.astype(float) * (RIGHT - LEFT) + LEFT, 0, 1)"),
        "straight through: a gradient at the ends too": slope(SLOPE, inside="z == z"),
        "straight through: the gradient as it is": {"5.7b": "return G.copy()"},
        "a gradient where z is 0": slope(SLOPE, inside="z < 1"),
        "a gradient where z is 1": slope(SLOPE, inside="z > 0"),
        "the stretch is forgotten": slope("s * (1 - s)"),
        "z in the place of s": slope("(RIGHT - LEFT) * z * (1 - z)", s="s = z"),
        "s without l": slope(SLOPE, s="s = z / (RIGHT - LEFT)"),
        "the slope of tanh": slope("(RIGHT - LEFT) * (1 - s * s)"),
        "divided by the stretch": slope("s * (1 - s) / (RIGHT - LEFT)"),
        "the slope without G": {
            "5.7b": """
            s = (z - LEFT) / (RIGHT - LEFT)
            return np.where((z > 0) & (z < 1), (RIGHT - LEFT) * s * (1 - s), 0).astype(z.dtype)
            """
        },
        "float64 gradients": {
            "5.7b": """
            s = (z.astype(float) - LEFT) / (RIGHT - LEFT)
            return G * np.where((z > 0) & (z < 1), (RIGHT - LEFT) * s * (1 - s), 0)
            """
        },
        "the ends of diff pruning in the slope": slope("3.0 * s * (1 - s)", s="s = (z + 1.5) / 3.0"),
        "P(z > 0) without its ends: right only where l = -r": share("F.sigmoid(alpha)"),
        "the other sign of the log": share("F.sigmoid(alpha + math.log(-LEFT / RIGHT))"),
        "P(z = 0)": share("F.sigmoid(math.log(-LEFT / RIGHT) - alpha)"),
        "the log of the other quotient": share("F.sigmoid(alpha - math.log(-RIGHT / LEFT))"),
        "P(z = 1)": share("F.sigmoid(alpha - math.log((1 - LEFT) / (RIGHT - 1)))"),
        "P(0 < z < 1)": share(
            "F.sigmoid(alpha - math.log(-LEFT / RIGHT)) - F.sigmoid(alpha - math.log((1 - LEFT) / (RIGHT - 1)))"
        ),
        "s against the share of the interval": share("F.sigmoid(alpha) + LEFT / (RIGHT - LEFT)"),
        "the gate itself": share("HardConcrete.apply(alpha)"),
        "cut off from alpha": share("F.sigmoid(alpha.detach() - math.log(-LEFT / RIGHT))"),
        "the sum already": share("F.sigmoid(alpha - math.log(-LEFT / RIGHT)).sum()"),
    },
    right={
        "minimum and maximum, and a sigmoid without overflow": {
            "5.7a": """
            t = np.asarray(alpha + noise)
            e = np.exp(-np.abs(t))
            s = np.where(t >= 0, 1, e) / (1 + e)
            return np.minimum(1, np.maximum(0, s * (RIGHT - LEFT) + LEFT)).astype(t.dtype)
            """
        },
        "scipy's expit": {
            "5.7a": """
            from scipy.special import expit

            return np.clip(LEFT + (RIGHT - LEFT) * expit(alpha + noise), 0, 1)
            """
        },
        "the slope in terms of z": {
            "5.7b": """
            between = ((z > 0) & (z < 1)).astype(z.dtype)
            return (between * G * (z - LEFT) * (RIGHT - z) / (RIGHT - LEFT)).astype(z.dtype)
            """
        },
        "zeros, filled in": {
            "5.7b": """
            dalpha = np.zeros_like(z)
            inside = (0 < z) & (z < 1)
            s = (z[inside] - LEFT) / (RIGHT - LEFT)
            dalpha[inside] = G[inside] * s * (1 - s) * (RIGHT - LEFT)
            return dalpha
            """
        },
        "the complement": share("1 - F.sigmoid(math.log(-LEFT / RIGHT) - alpha)"),
        "as a fraction": share("1 / (1 + F.exp(-alpha) * (-LEFT / RIGHT))"),
        "from the quantile": {
            "5.7c": """
            start = -LEFT / (RIGHT - LEFT)
            return F.sigmoid(alpha - (math.log(start) - math.log1p(-start)))
            """
        },
    },
)  # fmt: skip


# -- 5.8 a prefix, without one -----------------------------------------------------------------------------------------
def gated(
    gate: str = "F.sigmoid(F.logsumexp(on_prefix, dim=-1, keepdim=True) - F.logsumexp(scores, dim=-1, keepdim=True))",
    y: str = "(1 - gate) * h + gate * change", h: str = "F.softmax(scores, dim=-1) @ v[:, kv_head]",
    change: str = "F.softmax(on_prefix, dim=-1) @ self.values[kv_head]",
) -> dict[str, str]:  # fmt: skip
    """A solution of 5.8."""
    return {"5.8": f"h = {h}\nchange = {change}\ngate = {gate}\ny = {y}"}


TOTAL = "F.logsumexp({}, dim=-1, keepdim=True)"

GATED = Proof(
    wrong={
        "the change is added": gated(y="h + change"),
        "added with its gate: (1 - λ) is forgotten": gated(y="h + gate * change"),
        "the gate is on the wrong side": gated(y="gate * h + (1 - gate) * change"),
        "the prefix is ignored": gated(y="h"),
        "only the prefix": gated(y="change"),
        "half and half": gated(gate="0.5"),
        "a gate by numbers: k / (k + T)": gated(gate="on_prefix.shape[-1] / (on_prefix.shape[-1] + T)"),
        "the sign of the gate": gated(
            gate="F.sigmoid(F.logsumexp(scores, dim=-1, keepdim=True) - F.logsumexp(on_prefix, dim=-1, keepdim=True))"
        ),
        "the keys are not looked at in the gate": gated(gate=f"F.sigmoid({TOTAL.format('on_prefix')})"),
        "the quotient is not a share": gated(
            gate=f"F.exp({TOTAL.format('on_prefix')} - {TOTAL.format('scores')})"
        ),
        "exponentials that overflow": gated(
            gate="F.exp(on_prefix).sum(dim=-1, keepdim=True) / "
            "(F.exp(on_prefix).sum(dim=-1, keepdim=True) + F.exp(scores).sum(dim=-1, keepdim=True))"
        ),
        "the largest scores instead of all": gated(
            gate="F.sigmoid(on_prefix.amax(dim=-1, keepdim=True) - scores.amax(dim=-1, keepdim=True))"
        ),
        "means of the scores": gated(
            gate="F.sigmoid(on_prefix.mean(dim=-1, keepdim=True) - scores.mean(dim=-1, keepdim=True))"
        ),
        "sums over the queries": gated(
            gate="F.sigmoid(F.logsumexp(on_prefix, dim=-1, keepdim=True) - F.logsumexp(scores, dim=-2, keepdim=True)"
            ".transpose(2, 3))"
        ),
        "the prefix's weights are not a softmax": gated(change="on_prefix @ self.values[kv_head]"),
        "no softmax over the keys": gated(h="scores @ v[:, kv_head]"),
        "the prefix is a plain average": gated(
            change="self.values[kv_head].mean(dim=1, keepdim=True).expand(B, H, 1, D)"
        ),
        "the keys are read instead of the values": gated(change="F.softmax(on_prefix, dim=-1) @ self.keys[kv_head]"),
        "heads that share keys get the wrong ones": gated(
            change="F.softmax(on_prefix, dim=-1) @ self.values[np.arange(H) % self.values.shape[0]]"
        ),
        "the text's values get the wrong heads": gated(
            h="F.softmax(scores, dim=-1) @ v[:, np.arange(H) % v.shape[1]]"
        ),
        "the prefix is scaled twice": gated(
            change="F.softmax(on_prefix / math.sqrt(D), dim=-1) @ self.values[kv_head]"
        ),
        "the gate lets no gradient through": gated(
            gate="F.sigmoid(F.logsumexp(on_prefix, dim=-1, keepdim=True) - F.logsumexp(scores, dim=-1, keepdim=True))"
            ".detach()"
        ),
        "the values get no gradient": gated(change="F.softmax(on_prefix, dim=-1) @ self.values.detach()[kv_head]"),
    },
    right={
        "one softmax over both, and the share of the prefix": {
            "5.8": """
            k = on_prefix.shape[-1]
            weights = F.softmax(F.cat([on_prefix, scores], dim=-1), dim=-1)
            gate = weights[:, :, :, :k].sum(dim=-1, keepdim=True)
            h = F.softmax(scores, dim=-1) @ v[:, kv_head]
            change = F.softmax(on_prefix, dim=-1) @ self.values[kv_head]
            y = h + gate * (change - h)
            """
        },
        "attention to both": {
            "5.8": """
            k = on_prefix.shape[-1]
            weights = F.softmax(F.cat([on_prefix, scores], dim=-1), dim=-1)
            y = weights[:, :, :, :k] @ self.values[kv_head] + weights[:, :, :, k:] @ v[:, kv_head]
            """
        },
        "the gate as a quotient, with a common maximum": {
            "5.8": """
            top = F.cat([on_prefix, scores], dim=-1).data.max(axis=-1, keepdims=True)
            a, b = F.exp(on_prefix - Tensor(top)), F.exp(scores - Tensor(top))
            below = a.sum(dim=-1, keepdim=True) + b.sum(dim=-1, keepdim=True)
            y = (a @ self.values[kv_head] + b @ v[:, kv_head]) / below
            """
        },
        "1 - λ from the other side": gated(
            gate="1 - F.sigmoid(F.logsumexp(scores, dim=-1, keepdim=True) "
            "- F.logsumexp(on_prefix, dim=-1, keepdim=True))"
        ),
    },
)  # fmt: skip

PROOFS = {
    "5.1": BOTTLENECK, "5.2": BACKWARD, "5.3": PROMPTS, "5.4": TABLES, "5.5": CACHE, "5.6": BIASES, "5.7": GATES,
    "5.8": GATED,
}  # fmt: skip
