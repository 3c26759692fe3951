"""Solutions of A1's tasks, wrong and right, that prove its checks."""

from __future__ import annotations

from minitorch_peft.course.teacher.proof import Proof

EXPAND = Proof(
    wrong={
        "sums the new axes in front only": {
            "1.1a": """
            return g.sum(axis=tuple(range(g.ndim - len(shape)))).reshape(shape)
            """
        },
        "forgets the new axes in front": {
            "1.1a": """
            axes = tuple(i for i, n in enumerate(shape) if n == 1)
            return g.sum(axis=axes, keepdims=True)
            """
        },
        "aligns the shapes at the first axis": {
            "1.1a": """
            axes = tuple(i for i in range(g.ndim) if i >= len(shape) or shape[i] == 1)
            return g.sum(axis=axes).reshape(shape)
            """
        },
        "takes the mean": {
            "1.1a": """
            lead = g.ndim - len(shape)
            axes = tuple(i for i in range(g.ndim) if i < lead or shape[i - lead] == 1)
            return g.mean(axis=axes).reshape(shape)
            """
        },
        "takes the first copy": {
            "1.1a": """
            while g.ndim > len(shape):
                g = g[0]
            return g[tuple(slice(n) for n in shape)]
            """
        },
        "drops the axes of size one": {
            "1.1a": """
            lead = g.ndim - len(shape)
            return g.sum(axis=tuple(i for i in range(g.ndim) if i < lead or shape[i - lead] == 1))
            """
        },
        "reshapes without a sum where the sizes fit": {
            "1.1a": """
            return g.sum(axis=0).reshape(shape) if g.ndim > len(shape) else g.reshape(shape)
            """
        },
        "turns to float64": {
            "1.1a": """
            out = np.zeros(shape)
            np.add.at(out, tuple(np.broadcast_to(i, g.shape) for i in np.indices(shape, sparse=True)), g)
            return out
            """
        },
        "broadcasts g without its dropped axes": {
            "1.1b": """
            return broadcast_view(g, ctx.shape)
            """
        },
        "spreads ones": {
            "1.1b": """
            return np.ones(ctx.shape, g.dtype)
            """
        },
        "divides the sum's gradient": {
            "1.1b": """
            return broadcast_view(g.reshape(ctx.kept), ctx.shape) / (math.prod(ctx.shape) / math.prod(ctx.kept))
            """
        },
        "returns g in its reduced shape": {
            "1.1b": """
            return g.reshape(ctx.kept)
            """
        },
        "tiles g over the elements": {
            "1.1b": """
            return np.resize(g, ctx.shape)
            """
        },
        "does not divide the mean's gradient": {
            "1.1c": """
            return broadcast_view(g.reshape(ctx.kept), ctx.shape)
            """
        },
        "divides by all elements": {
            "1.1c": """
            return broadcast_view(g.reshape(ctx.kept), ctx.shape) / math.prod(ctx.shape)
            """
        },
        "divides by the first axis": {
            "1.1c": """
            share = g / (ctx.shape[0] if ctx.shape else 1)
            return broadcast_view(share.reshape(ctx.kept), ctx.shape)
            """
        },
        "divides with a float64 array": {
            "1.1c": """
            return broadcast_view(g.reshape(ctx.kept), ctx.shape) * np.full(ctx.shape, 1 / ctx.count)
            """
        },
    },
    right={
        "axis by axis": {
            "1.1a": """
            while g.ndim > len(shape):
                g = g.sum(0)
            for i, n in enumerate(shape):
                if n == 1:
                    g = g.sum(i, keepdims=True)
            return g
            """,
            "1.1b": """
            return g.reshape(ctx.kept) * np.ones(ctx.shape, g.dtype)
            """,
        },
        "padded with ones in front": {
            "1.1a": """
            padded = (1,) * (g.ndim - len(shape)) + tuple(shape)
            axes = tuple(i for i, n in enumerate(padded) if n == 1)
            return g.sum(axis=axes, keepdims=True).reshape(shape)
            """,
            "1.1b": """
            return np.array(np.broadcast_to(np.reshape(g, ctx.kept), ctx.shape))
            """,
            "1.1c": """
            return np.broadcast_to(g.reshape(ctx.kept), ctx.shape) / g.dtype.type(ctx.count)
            """,
        },
        "with einsum": {
            "1.1a": """
            lead = g.ndim - len(shape)
            letters = "abcdefgh"[: g.ndim]
            kept = "".join(c for i, c in enumerate(letters) if i >= lead and shape[i - lead] != 1)
            return np.einsum(f"{letters}->{kept}", g).reshape(shape)
            """
        },
        "with repeats": {
            "1.1b": """
            out = g.reshape(ctx.kept)
            for i, n in enumerate(ctx.shape):
                if out.shape[i] != n:
                    out = np.repeat(out, n, axis=i)
            return out
            """,
            "1.1c": """
            out = g.reshape(ctx.kept) * g.dtype.type(1 / max(ctx.count, 1))
            for i, n in enumerate(ctx.shape):
                if out.shape[i] != n:
                    out = np.repeat(out, n, axis=i)
            return out
            """,
        },
    },
)

MATMUL = Proof(
    wrong={
        "forgets the transposes": {
            "1.2": """
            a, b = ctx.saved
            return None if b is None else g @ b, None if a is None else a @ g
            """
        },
        "swaps the two gradients": {
            "1.2": """
            a, b = ctx.saved
            da = None if b is None else g @ b.swapaxes(-1, -2)
            db = None if a is None else a.swapaxes(-1, -2) @ g
            return db, da
            """
        },
        "reverses all axes": {
            "1.2": """
            a, b = ctx.saved
            return None if b is None else g @ b.T, None if a is None else a.T @ g
            """
        },
        "transposes g": {
            "1.2": """
            a, b = ctx.saved
            da = None if b is None else (b @ g.swapaxes(-1, -2)).swapaxes(-1, -2)
            db = None if a is None else g.swapaxes(-1, -2) @ a
            return da, db
            """
        },
        "multiplies in the wrong order": {
            "1.2": """
            a, b = ctx.saved
            da = None if b is None else b.swapaxes(-1, -2) @ g
            return da, None if a is None else g @ a.swapaxes(-1, -2)
            """
        },
        "takes both inputs for trained": {
            "1.2": """
            a, b = ctx.saved
            return g @ b.swapaxes(-1, -2), a.swapaxes(-1, -2) @ g
            """
        },
        "sums over the batch": {
            "1.2": """
            a, b = ctx.saved
            lead = tuple(range(g.ndim - 2))
            da = None if b is None else (g @ b.swapaxes(-1, -2)).sum(lead)
            return da, None if a is None else (a.swapaxes(-1, -2) @ g).sum(lead)
            """
        },
        "uses the first matrix of the batch": {
            "1.2": """
            a, b = ctx.saved
            while g.ndim > 2:
                g, a, b = g[0], None if a is None else a[0], None if b is None else b[0]
            return None if b is None else g @ b.T, None if a is None else a.T @ g
            """
        },
        "gives zeros to a frozen input": {
            "1.2": """
            a, b = ctx.saved
            da = np.zeros(1) if b is None else g @ b.swapaxes(-1, -2)
            return da, np.zeros(1) if a is None else a.swapaxes(-1, -2) @ g
            """
        },
        "asks about the wrong input": {
            "1.2": """
            a, b = ctx.saved
            da = g @ b.swapaxes(-1, -2) if ctx.needs_input_grad[1] else None
            return da, a.swapaxes(-1, -2) @ g if ctx.needs_input_grad[0] else None
            """
        },
        "returns the first only": {
            "1.2": """
            a, b = ctx.saved
            return None if b is None else g @ b.swapaxes(-1, -2)
            """
        },
        "divides by the batch": {
            "1.2": """
            a, b = ctx.saved
            n = max(1, math.prod(g.shape[:-2]))
            da = None if b is None else g @ b.swapaxes(-1, -2) / n
            return da, None if a is None else a.swapaxes(-1, -2) @ g / n
            """
        },
    },
    right={
        "with needs_input_grad": {
            "1.2": """
            a, b = ctx.saved
            da = db = None
            if ctx.needs_input_grad[0]:
                da = np.matmul(g, np.swapaxes(b, -1, -2))
            if ctx.needs_input_grad[1]:
                db = np.matmul(np.swapaxes(a, -1, -2), g)
            return da, db
            """
        },
        "with einsum": {
            "1.2": """
            a, b = ctx.saved
            da = None if b is None else np.einsum("...mn,...kn->...mk", g, b)
            return da, None if a is None else np.einsum("...mk,...mn->...kn", a, g)
            """
        },
        "transposed twice": {
            "1.2": """
            a, b = ctx.saved
            da = None if b is None else (b @ g.swapaxes(-1, -2)).swapaxes(-1, -2)
            db = None if a is None else (g.swapaxes(-1, -2) @ a).swapaxes(-1, -2)
            return da, db
            """
        },
        "one matrix after the other": {
            "1.2": """
            a, b = ctx.saved
            size = math.prod(g.shape[:-2])
            da = db = None
            flat = g.reshape(size, *g.shape[-2:])
            if b is not None:
                rows = [m @ w.T for m, w in zip(flat, b.reshape(size, *b.shape[-2:]), strict=True)]
                da = np.stack(rows).reshape(*g.shape[:-1], b.shape[-2])
            if a is not None:
                rows = [x.T @ m for m, x in zip(flat, a.reshape(size, *a.shape[-2:]), strict=True)]
                db = np.stack(rows).reshape(*g.shape[:-2], a.shape[-1], g.shape[-1])
            return da, db
            """
        },
    },
)

SOFTMAX = Proof(
    wrong={
        "leaves the gradient to the engine": {
            "1.3b": """
            from minitorch_peft.autograd.tensor import Tensor

            x = Tensor(np.log(np.maximum(y, np.finfo(y.dtype).tiny)), requires_grad=True)
            e = x.exp()
            (e / e.sum(-1, keepdim=True)).backward(grad)
            return x.grad
            """
        },
        "complex steps over every element": {
            "1.3b": """
            x, dx = np.log(np.maximum(y, np.finfo(y.dtype).tiny)), np.empty_like(y)
            for i in np.ndindex(x.shape):
                step = x.astype(complex)
                step[i] += 1e-30j
                e = np.exp(step)
                dx[i] = np.sum(grad * (e / e.sum(-1, keepdims=True)).imag) * 1e30
            return dx
            """
        },
        "does not subtract the maximum": {
            "1.3a": """
            e = np.exp(x)
            return e / e.sum(-1, keepdims=True)
            """
        },
        "subtracts the maximum of all rows": {
            "1.3a": """
            e = np.exp(x - x.max())
            return e / e.sum(-1, keepdims=True)
            """,
            "1.3b": """
            return grad * y - y * (grad * y).sum()
            """,
        },
        "normalizes over all elements": {
            "1.3a": """
            e = np.exp(x - x.max())
            return e / e.sum()
            """
        },
        "normalizes over the first axis": {
            "1.3a": """
            e = np.exp(x - x.max(0, keepdims=True))
            return e / e.sum(0, keepdims=True)
            """
        },
        "adds an eps to the denominator": {
            "1.3a": """
            e = np.exp(x - x.max(-1, keepdims=True))
            return e / (e.sum(-1, keepdims=True) + 1e-6)
            """
        },
        "clips its input": {
            "1.3a": """
            e = np.exp(np.clip(x, -50, 50))
            return e / e.sum(-1, keepdims=True)
            """
        },
        "turns to float64": {
            "1.3a": """
            e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
            return e / e.sum(-1, keepdims=True)
            """
        },
        "works in place": {
            "1.3a": """
            x -= x.max(-1, keepdims=True)
            np.exp(x, out=x)
            x /= x.sum(-1, keepdims=True)
            return x
            """
        },
        "returns zeros": {
            "1.3b": """
            return np.zeros_like(y)
            """
        },
        "keeps the diagonal of the Jacobian": {
            "1.3b": """
            return grad * y * (1 - y)
            """
        },
        "forgets the sum": {
            "1.3b": """
            return grad * y
            """
        },
        "has the wrong sign": {
            "1.3b": """
            return y * ((grad * y).sum(-1, keepdims=True) - grad)
            """
        },
        "forgets y inside the sum": {
            "1.3b": """
            return y * (grad - grad.sum(-1, keepdims=True))
            """
        },
        "forgets y outside": {
            "1.3b": """
            return grad - (grad * y).sum(-1, keepdims=True)
            """
        },
        "sums over the first axis": {
            "1.3b": """
            return y * (grad - (grad * y).sum(0, keepdims=True))
            """
        },
        "sums over all axes": {
            "1.3b": """
            return y * (grad - (grad * y).sum())
            """
        },
        "takes the mean": {
            "1.3b": """
            return y * (grad - (grad * y).mean(-1, keepdims=True))
            """
        },
        "applies the softmax to its output": {
            "1.3b": """
            p = softmax_forward(y)
            return p * (grad - (grad * p).sum(-1, keepdims=True))
            """
        },
        "the rule of log-softmax": {
            "1.3b": """
            return grad - y * grad.sum(-1, keepdims=True)
            """
        },
    },
    right={
        "through the log-sum-exp": {
            "1.3a": """
            top = x.max(axis=-1, keepdims=True)
            return np.exp(x - top - np.log(np.exp(x - top).sum(-1, keepdims=True)))
            """,
            "1.3b": """
            weighted = grad * y
            return weighted - y * weighted.sum(-1, keepdims=True)
            """,
        },
        "with the whole Jacobian": {
            "1.3b": """
            n = y.shape[-1]
            jacobian = y[..., :, None] * (np.eye(n, dtype=y.dtype) - y[..., None, :])
            return np.einsum("...k,...kj->...j", grad, jacobian)
            """
        },
        "row by row": {
            "1.3a": """
            out = np.empty_like(x)
            for row in np.ndindex(x.shape[:-1]):
                shifted = x[row] - max(x[row])
                out[row] = np.exp(shifted) / np.exp(shifted).sum()
            return out
            """,
            "1.3b": """
            out = np.empty_like(y)
            for row in np.ndindex(y.shape[:-1]):
                out[row] = y[row] * (grad[row] - grad[row] @ y[row])
            return out
            """,
        },
        "with a sum over the differences": {
            "1.3b": """
            return y * ((grad[..., :, None] - grad[..., None, :]) * y[..., None, :]).sum(-1)
            """
        },
    },
)

H = """
            h = (x - mean[..., None]) * rstd[..., None]
            d = grad if weight is None else grad * weight
            """
SUMS = """
            dw, db = _sum_rows(grad * h), _sum_rows(grad)
            return dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None
            """


def layer(dx: str, tail: str = SUMS) -> dict[str, str]:
    """layer_norm_backward with another dx."""
    return {"1.4b": H.rstrip(" ") + f"            dx = {dx}" + tail}


NORM = Proof(
    wrong={
        "divides the variance by n - 1": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            n = max(x.shape[-1] - 1, 1)
            rstd = 1 / np.sqrt(((x - mean) ** 2).sum(-1, keepdims=True) / n + x.dtype.type(eps))
            return _affine((x - mean) * rstd, weight, bias), mean[..., 0], rstd[..., 0]
            """
        },
        "adds eps to the deviation": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            rstd = 1 / (x.std(-1, keepdims=True) + x.dtype.type(eps))
            return _affine((x - mean) * rstd, weight, bias), mean[..., 0], rstd[..., 0]
            """
        },
        "mean of squares minus square of mean": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            variance = (x * x).mean(-1, keepdims=True) - mean * mean
            with np.errstate(all="ignore"):
                rstd = 1 / np.sqrt(np.abs(variance) + x.dtype.type(eps))
                return _affine((x - mean) * rstd, weight, bias), mean[..., 0], rstd[..., 0]
            """
        },
        "forgets eps": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            with np.errstate(all="ignore"):
                rstd = 1 / np.sqrt(x.var(-1, keepdims=True))
            return _affine((x - mean) * rstd, weight, bias), mean[..., 0], rstd[..., 0]
            """
        },
        "normalizes over all axes": {
            "1.4a": """
            mean = x.mean(keepdims=True)
            rstd = 1 / np.sqrt(x.var(keepdims=True) + x.dtype.type(eps))
            rows = np.zeros(x.shape[:-1], x.dtype)
            return _affine((x - mean) * rstd, weight, bias), rows + mean.flat[0], rows + rstd.flat[0]
            """
        },
        "returns the variance for rstd": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            variance = x.var(-1, keepdims=True)
            h = (x - mean) / np.sqrt(variance + x.dtype.type(eps))
            return _affine(h, weight, bias), mean[..., 0], variance[..., 0]
            """
        },
        "adds the bias before the weight": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
            h = (x - mean) * rstd
            h = h if bias is None else h + bias
            return h if weight is None else h * weight, mean[..., 0], rstd[..., 0]
            """
        },
        "keeps the last axis of the statistics": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + x.dtype.type(eps))
            return _affine((x - mean) * rstd, weight, bias), mean, rstd
            """
        },
        "turns to float64": {
            "1.4a": """
            mean = x.mean(-1, keepdims=True)
            rstd = 1 / np.sqrt(x.var(-1, keepdims=True) + np.float64(eps))
            return _affine((x - mean) * rstd, weight, bias), mean[..., 0], rstd[..., 0]
            """
        },
        "takes the statistics for constants": layer("rstd[..., None] * d"),
        "takes the variance for constant": layer("rstd[..., None] * (d - d.mean(-1, keepdims=True))"),
        "takes the mean for constant": layer("rstd[..., None] * (d - h * (d * h).mean(-1, keepdims=True))"),
        "forgets the weight": layer(
            "rstd[..., None] * (grad - grad.mean(-1, keepdims=True) - h * (grad * h).mean(-1, keepdims=True))"
        ),
        "sums where means are due": layer(
            "rstd[..., None] * (d - d.sum(-1, keepdims=True) - h * (d * h).sum(-1, keepdims=True))"
        ),
        "forgets rstd": layer("d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True)"),
        "has a wrong sign inside": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) + h * (d * h).mean(-1, keepdims=True))"
        ),
        "takes x for h": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) - x * (d * x).mean(-1, keepdims=True))"
        ),
        "forgets needs": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))",
            """
            return dx, _sum_rows(grad * h), _sum_rows(grad)
            """,
        ),
        "gives the weight the gradient of raw x": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))",
            """
            return dx if needs[0] else None, _sum_rows(grad * x) if needs[1] else None, \\
                _sum_rows(grad) if needs[2] else None
            """,
        ),
        "sums the weight's gradient over the last axis": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))",
            """
            return dx if needs[0] else None, (grad * h).sum(-1) if needs[1] else None, \\
                grad.sum(-1) if needs[2] else None
            """,
        ),
        "sums the weight's gradient over the first axis only": layer(
            "rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))",
            """
            return dx if needs[0] else None, (grad * h).sum(0) if needs[1] else None, \\
                grad.sum(0) if needs[2] else None
            """,
        ),
        "computes the statistics anew, without eps": {
            "1.4b": """
            with np.errstate(all="ignore"):
                r = 1 / x.std(-1, keepdims=True)
            h = (x - x.mean(-1, keepdims=True)) * r
            d = grad if weight is None else grad * weight
            dx = r * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))
            dw, db = _sum_rows(grad * h), _sum_rows(grad)
            return dx if needs[0] else None, dw if needs[1] else None, db if needs[2] else None
            """
        },
        "subtracts the mean in RMS norm": {
            "1.4c": """
            centred = x - x.mean(-1, keepdims=True)
            rstd = 1 / np.sqrt((centred * centred).mean(-1, keepdims=True) + x.dtype.type(eps))
            return _affine(centred * rstd, weight, None), rstd[..., 0]
            """
        },
        "divides by the length, not by the root mean square": {
            "1.4c": """
            rstd = 1 / np.sqrt((x * x).sum(-1, keepdims=True) + x.dtype.type(eps))
            return _affine(x * rstd, weight, None), rstd[..., 0]
            """
        },
        "puts eps outside the root": {
            "1.4c": """
            rstd = 1 / (np.sqrt((x * x).mean(-1, keepdims=True)) + x.dtype.type(eps))
            return _affine(x * rstd, weight, None), rstd[..., 0]
            """
        },
        "takes out the mean in RMS norm's gradient": {
            "1.4d": """
            h = x * rstd[..., None]
            d = grad if weight is None else grad * weight
            dx = rstd[..., None] * (d - d.mean(-1, keepdims=True) - h * (d * h).mean(-1, keepdims=True))
            return dx if needs[0] else None, _sum_rows(grad * h) if needs[1] else None
            """
        },
        "takes RMS norm's scale for constant": {
            "1.4d": """
            h = x * rstd[..., None]
            d = grad if weight is None else grad * weight
            return rstd[..., None] * d if needs[0] else None, _sum_rows(grad * h) if needs[1] else None
            """
        },
        "multiplies by rstd twice": {
            "1.4d": """
            h = x * rstd[..., None]
            d = grad if weight is None else grad * weight
            dx = rstd[..., None] ** 2 * (d - h * (d * h).mean(-1, keepdims=True))
            return dx if needs[0] else None, _sum_rows(grad * h) if needs[1] else None
            """
        },
    },
    right={
        "with NumPy's var, in powers": {
            "1.4a": """
            mean, var = x.mean(axis=-1), x.var(axis=-1)
            rstd = (var + x.dtype.type(eps)) ** x.dtype.type(-0.5)
            y = (x - mean[..., np.newaxis]) * rstd[..., np.newaxis]
            if weight is not None:
                y = y * weight
            if bias is not None:
                y = y + bias
            return y, mean, rstd
            """,
            "1.4c": """
            rstd = (np.square(x).mean(-1) + x.dtype.type(eps)) ** x.dtype.type(-0.5)
            y = x * rstd[..., None]
            return (y if weight is None else y * weight), rstd
            """,
        },
        "through every path of the graph": {
            "1.4b": """
            n = x.shape[-1]
            r, centred = rstd[..., None], x - mean[..., None]
            d = grad if weight is None else grad * weight
            dvar = (d * centred).sum(-1, keepdims=True) * r**3 * -0.5
            dmean = -(d * r).sum(-1, keepdims=True)
            dx = d * r + dvar * 2 * centred / n + dmean / n if needs[0] else None
            lead = tuple(range(x.ndim - 1))
            dweight = (grad * centred * r).sum(lead) if needs[1] else None
            return dx, dweight, grad.sum(lead) if needs[2] else None
            """,
            "1.4d": """
            n, r = x.shape[-1], rstd[..., None]
            d = grad if weight is None else grad * weight
            dx = d * r - x * r**3 * (d * x).sum(-1, keepdims=True) / n
            return dx if needs[0] else None, _sum_rows(grad * x * r) if needs[1] else None
            """,
        },
        "with the Jacobian of each row": {
            "1.4b": """
            n = x.shape[-1]
            h = ((x.T - mean.T) * rstd.T).T
            d = grad if weight is None else grad * weight
            one = np.eye(n, dtype=x.dtype)
            jacobian = (one - 1 / x.dtype.type(n) - h[..., :, None] * h[..., None, :] / n) * rstd[..., None, None]
            dx = np.einsum("...k,...kj->...j", d, jacobian)
            return (
                dx if needs[0] else None,
                (grad * h).reshape(-1, n).sum(0) if needs[1] else None,
                grad.reshape(-1, n).sum(0) if needs[2] else None,
            )
            """
        },
        "rows one after the other": {
            "1.4d": """
            dx, dweight = np.zeros_like(x), np.zeros(x.shape[-1], x.dtype)
            for i in np.ndindex(x.shape[:-1]):
                h = x[i] * rstd[i]
                d = grad[i] if weight is None else grad[i] * weight
                dx[i] = rstd[i] * (d - h * (d @ h) / len(h))
                dweight += grad[i] * h
            return dx if needs[0] else None, dweight if needs[1] else None
            """
        },
    },
)

CROSS_ENTROPY = Proof(
    wrong={
        "overflows": {
            "1.5a": """
            with np.errstate(all="ignore"):
                lse = np.log(np.exp(logits).sum(-1))
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            loss = lse - (1 - s) * chosen - s * logits.mean(-1)
            return np.where(kept, loss, 0).astype(logits.dtype), lse
            """
        },
        "forgets to add the maximum again": {
            "1.5a": """
            top = logits.max(-1)
            lse = np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            loss = lse + top - (1 - s) * chosen - s * logits.mean(-1)
            return np.where(kept, loss, 0).astype(logits.dtype), lse
            """
        },
        "has the wrong sign": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept = target != ignore_index
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, chosen - lse, 0).astype(logits.dtype), lse
            """
        },
        "ignores label smoothing": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept = target != ignore_index
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, lse - chosen, 0).astype(logits.dtype), lse
            """
        },
        "smooths over the other classes only": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            others = (logits.sum(-1) - chosen) / max(logits.shape[-1] - 1, 1)
            return np.where(kept, lse - (1 - s) * chosen - s * others, 0).astype(logits.dtype), lse
            """
        },
        "sums where the mean is due": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, lse - (1 - s) * chosen - s * logits.sum(-1), 0).astype(logits.dtype), lse
            """
        },
        "counts ignored rows": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            s = logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(target < 0, 0, target)]
            return (lse - (1 - s) * chosen - s * logits.mean(-1)).astype(logits.dtype), lse
            """
        },
        "knows -100 only": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target != -100, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, lse - (1 - s) * chosen - s * logits.mean(-1), 0).astype(logits.dtype), lse
            """
        },
        "takes every negative target for ignored": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target >= 0, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, lse - (1 - s) * chosen - s * logits.mean(-1), 0).astype(logits.dtype), lse
            """
        },
        "returns the mean": {
            "1.5a": """
            top = logits.max(-1)
            lse = top + np.log(np.exp(logits - top[:, None]).sum(-1))
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logits[np.arange(len(target)), np.where(kept, target, 0)]
            loss = np.where(kept, lse - (1 - s) * chosen - s * logits.mean(-1), 0)
            return np.asarray(loss.sum() / max(kept.sum(), 1), logits.dtype), lse
            """
        },
        "adds an eps inside the logarithm": {
            "1.5a": """
            e = np.exp(logits - logits.max(-1, keepdims=True))
            logp = np.log(e / e.sum(-1, keepdims=True) + 1e-9)
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            chosen = logp[np.arange(len(target)), np.where(kept, target, 0)]
            lse = logits.max(-1) + np.log(e.sum(-1))
            return np.where(kept, -(1 - s) * chosen - s * logp.mean(-1), 0).astype(logits.dtype), lse
            """
        },
        "turns to float64": {
            "1.5a": """
            x = logits.astype(np.float64)
            top = x.max(-1)
            lse = top + np.log(np.exp(x - top[:, None]).sum(-1))
            kept, s = target != ignore_index, label_smoothing
            chosen = x[np.arange(len(target)), np.where(kept, target, 0)]
            return np.where(kept, lse - (1 - s) * chosen - s * x.mean(-1), 0), lse
            """
        },
        "forgets the target": {
            "1.5b": """
            kept = target != ignore_index
            p = np.exp(logits - lse[:, None])
            return np.where(kept[:, None], p * grad[:, None], 0).astype(logits.dtype)
            """
        },
        "has the wrong sign in backward": {
            "1.5b": """
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            d = s / logits.shape[-1] - np.exp(logits - lse[:, None])
            d[np.arange(len(target)), np.where(kept, target, 0)] += 1 - s
            return np.where(kept[:, None], d * grad[:, None], 0).astype(logits.dtype)
            """
        },
        "ignores grad": {
            "1.5b": """
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            d = np.exp(logits - lse[:, None]) - s / logits.shape[-1]
            d[np.arange(len(target)), np.where(kept, target, 0)] -= 1 - s
            return np.where(kept[:, None], d, 0).astype(logits.dtype)
            """
        },
        "forgets to ignore in backward": {
            "1.5b": """
            s = logits.dtype.type(label_smoothing)
            d = np.exp(logits - lse[:, None]) - s / logits.shape[-1]
            d[np.arange(len(target)), np.where(target == ignore_index, 0, target)] -= 1 - s
            return (d * grad[:, None]).astype(logits.dtype)
            """
        },
        "forgets the smoothing in backward": {
            "1.5b": """
            kept = target != ignore_index
            d = np.exp(logits - lse[:, None])
            d[np.arange(len(target)), np.where(kept, target, 0)] -= 1
            return np.where(kept[:, None], d * grad[:, None], 0).astype(logits.dtype)
            """
        },
        "gives the target no share of the smoothing": {
            "1.5b": """
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            p = np.exp(logits - lse[:, None])
            d = p - s / logits.shape[-1]
            rows, ids = np.arange(len(target)), np.where(kept, target, 0)
            d[rows, ids] = p[rows, ids] - (1 - s)
            return np.where(kept[:, None], d * grad[:, None], 0).astype(logits.dtype)
            """
        },
        "divides by the number of rows": {
            "1.5b": """
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            d = np.exp(logits - lse[:, None]) - s / logits.shape[-1]
            d[np.arange(len(target)), np.where(kept, target, 0)] -= 1 - s
            return np.where(kept[:, None], d * grad[:, None] / len(target), 0).astype(logits.dtype)
            """
        },
        "overflows in backward": {
            "1.5b": """
            kept, s = target != ignore_index, logits.dtype.type(label_smoothing)
            with np.errstate(all="ignore"):
                e = np.exp(logits)
                d = e / e.sum(-1, keepdims=True) - s / logits.shape[-1]
            d[np.arange(len(target)), np.where(kept, target, 0)] -= 1 - s
            return np.where(kept[:, None], d * grad[:, None], 0).astype(logits.dtype)
            """
        },
        "indexes with an ignored target": {
            "1.5b": """
            s = logits.dtype.type(label_smoothing)
            d = np.exp(logits - lse[:, None]) - s / logits.shape[-1]
            d[np.arange(len(target)), target] -= 1 - s
            return np.where((target != ignore_index)[:, None], d * grad[:, None], 0).astype(logits.dtype)
            """
        },
    },
    right={
        "with the whole target distribution": {
            "1.5a": """
            rows, classes = logits.shape
            kept = target != ignore_index
            q = np.full((rows, classes), label_smoothing / classes)
            q[np.flatnonzero(kept), target[kept]] += 1 - label_smoothing
            shifted = logits - logits.max(-1, keepdims=True)
            logp = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            lse = (logits - logp)[:, 0] if classes else logits.sum(-1)
            lse = np.log(np.exp(shifted).sum(-1)) + logits.max(-1)
            return (-(q * logp).sum(-1) * kept).astype(logits.dtype), lse
            """,
            "1.5b": """
            rows, classes = logits.shape
            kept = target != ignore_index
            q = np.full((rows, classes), label_smoothing / classes)
            q[np.flatnonzero(kept), target[kept]] += 1 - label_smoothing
            return ((np.exp(logits - lse[:, None]) - q) * (grad * kept)[:, None]).astype(logits.dtype)
            """,
        },
        "row by row": {
            "1.5a": """
            loss, lse = np.zeros(len(target), logits.dtype), np.zeros(len(target), logits.dtype)
            for i, row in enumerate(logits):
                top = row.max()
                lse[i] = top + np.log(np.exp(row - top).sum())
                if target[i] != ignore_index:
                    logp = row - lse[i]
                    loss[i] = -(1 - label_smoothing) * logp[target[i]] - label_smoothing * logp.mean()
            return loss, lse
            """,
            "1.5b": """
            out = np.zeros_like(logits)
            for i, row in enumerate(logits):
                if target[i] != ignore_index:
                    out[i] = np.exp(row - lse[i]) - label_smoothing / len(row)
                    out[i, target[i]] -= 1 - label_smoothing
                    out[i] *= grad[i]
            return out
            """,
        },
        "kept rows only, with logaddexp": {
            "1.5a": """
            lse = np.logaddexp.reduce(logits, axis=-1)
            loss = np.zeros_like(lse)
            rows = np.flatnonzero(target != ignore_index)
            s = logits.dtype.type(label_smoothing)
            loss[rows] = lse[rows] - (1 - s) * logits[rows, target[rows]] - s * logits[rows].mean(-1)
            return loss, lse
            """,
            "1.5b": """
            out = np.zeros_like(logits)
            rows = np.flatnonzero(target != ignore_index)
            s = logits.dtype.type(label_smoothing)
            d = np.exp(logits[rows] - lse[rows, None])
            d[np.arange(len(rows)), target[rows]] -= 1 - s
            out[rows] = (d - s / logits.dtype.type(logits.shape[-1])) * grad[rows, None]
            return out
            """,
        },
    },
)

EMBEDDING = Proof(
    wrong={
        "overwrites repeated ids": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            dweight[ids] = grad
            return dweight
            """
        },
        "adds with a buffered +=": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            dweight[ids] += grad
            return dweight
            """
        },
        "sizes the table by the largest id": {
            "1.6": """
            dweight = np.zeros((int(ids.max(initial=0)) + 1, grad.shape[-1]), grad.dtype)
            np.add.at(dweight, ids, grad)
            return dweight
            """
        },
        "takes the mean over the uses": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            np.add.at(dweight, ids, grad)
            count = np.maximum(np.bincount(ids.reshape(-1).astype(int), minlength=num_embeddings), 1)
            return dweight / count[:, None].astype(grad.dtype)
            """
        },
        "turns to float64": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]))
            np.add.at(dweight, ids, grad)
            return dweight
            """
        },
        "looks rows up again": {
            "1.6": """
            return grad[ids.reshape(-1)]
            """
        },
        "keeps the first use only": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            found, first = np.unique(ids, return_index=True)
            dweight[found] = grad.reshape(-1, grad.shape[-1])[first]
            return dweight
            """
        },
        "is one row off": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            np.add.at(dweight, (ids.astype(int) + 1) % num_embeddings, grad)
            return dweight
            """
        },
        "takes ids for a flat list": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            for i, row in zip(ids, grad):
                dweight[i] += row
            return dweight
            """
        },
        "starts from ones": {
            "1.6": """
            dweight = np.ones((num_embeddings, grad.shape[-1]), grad.dtype)
            np.add.at(dweight, ids, grad)
            return dweight
            """
        },
        "sums over the whole batch": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            dweight[np.unique(ids)] = grad.reshape(-1, grad.shape[-1]).sum(0)
            return dweight
            """
        },
    },
    right={
        "a loop over the uses": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
            for i, row in zip(ids.reshape(-1), grad.reshape(ids.size, -1), strict=True):
                dweight[i] += row
            return dweight
            """
        },
        "a product with one-hot rows": {
            "1.6": """
            onehot = (ids.reshape(-1, 1) == np.arange(num_embeddings)).astype(grad.dtype)
            return onehot.T @ grad.reshape(ids.size, grad.shape[-1])
            """
        },
        "add.at without flattening": {
            "1.6": """
            dweight = np.zeros((num_embeddings, grad.shape[-1]), dtype=grad.dtype)
            np.add.at(dweight, ids, grad)
            return dweight
            """
        },
        "row by row of the table": {
            "1.6": """
            rows = [grad[ids == i].sum(0) for i in range(num_embeddings)]
            return np.stack(rows)
            """
        },
        "with bincount for each column": {
            "1.6": """
            flat = grad.reshape(ids.size, grad.shape[-1])
            columns = [np.bincount(ids.reshape(-1), flat[:, c], num_embeddings) for c in range(grad.shape[-1])]
            return np.stack(columns, 1).astype(grad.dtype)
            """
        },
    },
)

LOOP = """
            gradients = {id(root): _initial_gradient(root, gradient)}
            for tensor in reversed(topological_order(root)):
                g = gradients.pop(id(tensor), None)
                if g is None:
                    continue
                node = tensor.grad_fn
                if node is None:
                    LEAF
                    continue
                for t, gi in zip(node.inputs, _input_gradients(node, g), strict=True):
                    if t is not None and gi is not None:
                        SUM
                node.release()
            """
ADD = "gradients[id(t)] = gi if id(t) not in gradients else gradients[id(t)] + gi"
KEEP = "tensor.grad = g if tensor.grad is None else tensor.grad + g"


def loop(*changes: tuple[str, str], leaf: str = KEEP, add: str = ADD) -> dict[str, str]:
    """The loop with some text changed."""
    text = LOOP.replace("LEAF", leaf).replace("SUM", add)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return {"1.7a": text}


ENGINE = Proof(
    wrong={
        "overwrites where a tensor is used twice": loop(add="gradients[id(t)] = gi"),
        "overwrites the leaf's gradient": loop(leaf="tensor.grad = g"),
        "adds in place to what a rule returned": loop(
            add="""if id(t) in gradients:
                            gradients[id(t)] += gi
                        else:
                            gradients[id(t)] = gi"""
        ),
        "ignores gradient=": loop(("_initial_gradient(root, gradient)", "np.ones_like(root.data)")),
        "needs gradient=": loop(("_initial_gradient(root, gradient)", "np.asarray(gradient)")),
        "walks from the leaves": loop(("reversed(topological_order(root))", "topological_order(root)")),
        "does not release": loop(("node.release()", "pass")),
        "gives every tensor a grad": loop(("node = tensor.grad_fn", "node, tensor.grad = tensor.grad_fn, g")),
        "stores the sums on the tensors": {
            "1.7a": """
            root.grad = _initial_gradient(root, gradient)
            for tensor in reversed(topological_order(root)):
                node = tensor.grad_fn
                if node is None or tensor.grad is None:
                    continue
                for t, gi in zip(node.inputs, _input_gradients(node, tensor.grad), strict=True):
                    if t is not None and gi is not None:
                        t.grad = gi if t.grad is None else t.grad + gi
                node.release()
            """
        },
        "takes every input for trained": loop(("if t is not None and gi is not None", "if True")),
        "takes every gradient for an array": loop((" and gi is not None", "")),
        "calls the rule with the gradient of one use": {
            "1.7a": """
            topological_order(root)
            nodes = []
            waiting = [(root, _initial_gradient(root, gradient))]
            while waiting:
                tensor, g = waiting.pop()
                node = tensor.grad_fn
                if node is None:
                    tensor.grad = g if tensor.grad is None else tensor.grad + g
                    continue
                nodes.append(node)
                for t, gi in zip(node.inputs, _input_gradients(node, g), strict=True):
                    if t is not None and gi is not None:
                        waiting.append((t, gi))
            for node in nodes:
                node.release()
            """
        },
        "the root alone": {
            "1.7a": """
            g = _initial_gradient(root, gradient)
            if root.grad_fn is None:
                root.grad = g
                return
            for t, gi in zip(root.grad_fn.inputs, _input_gradients(root.grad_fn, g), strict=True):
                if t is not None and gi is not None and t.is_leaf:
                    t.grad = gi if t.grad is None else t.grad + gi
            root.grad_fn.release()
            """
        },
        "recursion": {
            "1.7b": """
            order, seen = [], set()

            def visit(tensor):
                if id(tensor) in seen:
                    return
                seen.add(id(tensor))
                if tensor.grad_fn is not None:
                    _check_alive(tensor.grad_fn)
                    for t in tensor.grad_fn.inputs:
                        if t is not None:
                            visit(t)
                order.append(tensor)

            visit(root)
            return order
            """
        },
        "breadth first": {
            "1.7b": """
            order, seen, at = [root], {id(root)}, 0
            while at < len(order):
                node = order[at].grad_fn
                at += 1
                if node is not None:
                    _check_alive(node)
                    for t in node.inputs:
                        if t is not None and id(t) not in seen:
                            seen.add(id(t))
                            order.append(t)
            return order[::-1]
            """
        },
        "a tensor joins before its inputs": {
            "1.7b": """
            order, seen, stack = [], set(), [root]
            while stack:
                tensor = stack.pop()
                if id(tensor) in seen:
                    continue
                seen.add(id(tensor))
                order.append(tensor)
                if tensor.grad_fn is not None:
                    _check_alive(tensor.grad_fn)
                    stack.extend(t for t in tensor.grad_fn.inputs if t is not None)
            return order[::-1]
            """
        },
        "the order is reversed": {
            "1.7b": """
            order, seen, stack = [], set(), [(root, False)]
            while stack:
                tensor, done = stack.pop()
                if done:
                    order.append(tensor)
                elif id(tensor) not in seen:
                    seen.add(id(tensor))
                    stack.append((tensor, True))
                    if tensor.grad_fn is not None:
                        _check_alive(tensor.grad_fn)
                        stack.extend((t, False) for t in tensor.grad_fn.inputs if t is not None)
            return order[::-1]
            """
        },
        "visits a shared tensor again": {
            "1.7b": """
            order, stack = [], [(root, False)]
            while stack and len(order) < 10_000:
                tensor, done = stack.pop()
                if done:
                    order.append(tensor)
                    continue
                stack.append((tensor, True))
                if tensor.grad_fn is not None:
                    _check_alive(tensor.grad_fn)
                    stack.extend((t, False) for t in tensor.grad_fn.inputs if t is not None)
            return order
            """
        },
        "leaves are left out": {
            "1.7b": """
            order, seen, stack = [], set(), [(root, False)]
            while stack:
                tensor, done = stack.pop()
                if done:
                    order.append(tensor)
                elif id(tensor) not in seen and tensor.grad_fn is not None:
                    seen.add(id(tensor))
                    stack.append((tensor, True))
                    _check_alive(tensor.grad_fn)
                    stack.extend((t, False) for t in tensor.grad_fn.inputs if t is not None)
            return order
            """
        },
        "does not look for freed nodes": {
            "1.7b": """
            order, seen, stack = [], set(), [(root, False)]
            while stack:
                tensor, done = stack.pop()
                if done:
                    order.append(tensor)
                elif id(tensor) not in seen:
                    seen.add(id(tensor))
                    stack.append((tensor, True))
                    if tensor.grad_fn is not None:
                        stack.extend((t, False) for t in tensor.grad_fn.inputs if t is not None)
            return order
            """
        },
        "marks as seen too early": {
            "1.7b": """
            order, seen, stack = [], {id(root)}, [(root, False)]
            while stack:
                tensor, done = stack.pop()
                if done:
                    order.append(tensor)
                    continue
                stack.append((tensor, True))
                if tensor.grad_fn is not None:
                    _check_alive(tensor.grad_fn)
                    for t in tensor.grad_fn.inputs:
                        if t is not None and id(t) not in seen:
                            seen.add(id(t))
                            stack.append((t, False))
            return order
            """
        },
    },
    right={
        "a for loop, sums without += in place": loop(),
        "gradients in lists, summed when their turn comes": {
            "1.7a": """
            parts = {id(root): [_initial_gradient(root, gradient)]}
            for tensor in topological_order(root)[::-1]:
                mine = parts.pop(id(tensor), [])
                if not mine:
                    continue
                g = np.asarray(sum(mine[1:], mine[0]))
                if tensor.is_leaf:
                    tensor.grad = g if tensor.grad is None else np.add(tensor.grad, g)
                else:
                    node = tensor.grad_fn
                    for t, gi in zip(node.inputs, _input_gradients(node, g)):
                        if t is not None and gi is not None:
                            parts.setdefault(id(t), []).append(gi)
                    node.release()
            """
        },
        "nodes released at the end, leaves added to in place": {
            "1.7a": """
            order = list(reversed(topological_order(root)))
            gradients = {id(root): _initial_gradient(root, gradient)}
            for tensor in order:
                if id(tensor) not in gradients or tensor.grad_fn is None:
                    continue
                for t, gi in zip(tensor.grad_fn.inputs, _input_gradients(tensor.grad_fn, gradients[id(tensor)])):
                    if t is None or gi is None:
                        continue
                    if id(t) not in gradients:
                        gradients[id(t)] = gi.copy()
                    else:
                        gradients[id(t)] += gi
            for tensor in order:
                if tensor.grad_fn is not None:
                    tensor.grad_fn.release()
                elif id(tensor) in gradients:
                    if tensor.grad is None:
                        tensor.grad = np.zeros_like(tensor.data)
                    tensor.grad += gradients[id(tensor)]
            """
        },
        "by counting consumers (Kahn)": {
            "1.7b": """
            uses, found, waiting = {}, {id(root): root}, [root]
            while waiting:
                tensor = waiting.pop()
                if tensor.grad_fn is None:
                    continue
                _check_alive(tensor.grad_fn)
                for t in tensor.grad_fn.inputs:
                    if t is not None:
                        uses[id(t)] = uses.get(id(t), 0) + 1
                        if id(t) not in found:
                            found[id(t)] = t
                            waiting.append(t)
            order, ready = [], [root]
            while ready:
                tensor = ready.pop()
                order.append(tensor)
                for t in tensor.grad_fn.inputs if tensor.grad_fn is not None else ():
                    if t is not None:
                        uses[id(t)] -= 1
                        if uses[id(t)] == 0:
                            ready.append(t)
            return order[::-1]
            """
        },
        "a stack of iterators": {
            "1.7b": """
            def inputs(tensor):
                if tensor.grad_fn is None:
                    return iter(())
                _check_alive(tensor.grad_fn)
                return iter([t for t in tensor.grad_fn.inputs if t is not None])

            order, seen, stack = [], {root}, [(root, inputs(root))]
            while stack:
                tensor, rest = stack[-1]
                following = next((t for t in rest if t not in seen), None)
                if following is None:
                    order.append(tensor)
                    stack.pop()
                else:
                    seen.add(following)
                    stack.append((following, inputs(following)))
            return order
            """
        },
    },
)

DIFFERENCE = """
            plus = [x if d is None else x + h * d for x, d in zip(problem.arrays, directions, strict=True)]
            minus = [x if d is None else x - h * d for x, d in zip(problem.arrays, directions, strict=True)]
            with np.errstate(all="ignore"):
                high, low = problem.value(plus), problem.value(minus)
                rise = float(np.vdot(u, change(high, low)))
                claimed = 0.0
                for g, d in zip(gradients, directions, strict=True):
                    if g is not None and d is not None:
                        claimed += float(np.vdot(g, np.where(np.isfinite(d), d, 0)))
            return rise / (2 * h), claimed, _norm(u * high)
            """
EXTRAPOLATED = """
            numeric = near[0] + (near[0] - far[0]) / 3
            analytic = near[1] + (near[1] - far[1]) / 3
            residual = numeric - analytic
            scale = max(abs(numeric), size)
            rounding = ROUNDINGS * EPSILON * (near[2] + reach) / step
            allowed = tol.rtol * scale + tol.atol + rounding
            """


def altered(region: str, text: str, *changes: tuple[str, str]) -> dict[str, str]:
    """A region's right text with some of it changed."""
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return {region: text}


CHECKER = Proof(
    wrong={
        "a cotangent of ones": {
            "1.8a": """
            return np.ones(shape)
            """
        },
        "positive cotangents": {
            "1.8a": """
            return np.asarray(rng.uniform(0.5, 1.0, shape))
            """
        },
        "normal cotangents, some of them near zero": {
            "1.8a": """
            return np.asarray(rng.standard_normal(shape))
            """
        },
        "uniform cotangents from -1 to 1": {
            "1.8a": """
            return np.asarray(rng.uniform(-1.0, 1.0, shape))
            """
        },
        "one sign for all elements": {
            "1.8a": """
            return np.asarray(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0, shape))
            """
        },
        "signs only": {
            "1.8a": """
            return np.asarray(rng.choice([-1.0, 1.0], shape))
            """
        },
        "a generator of its own": {
            "1.8a": """
            rng = np.random.default_rng(0)
            return np.asarray(rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.0, shape))
            """
        },
        "numbers that nobody can repeat": {
            "1.8a": """
            return np.random.choice([-1.0, 1.0], shape) * np.random.uniform(0.5, 1.0, shape)
            """
        },
        "a forward difference": altered("1.8b", DIFFERENCE, ("x - h * d", "x - 0 * d"), ("rise / (2 * h)", "rise / h")),
        "divides by h": altered("1.8b", DIFFERENCE, ("rise / (2 * h)", "rise / h")),
        "divides by h on both sides": altered("1.8b", DIFFERENCE, ("rise / (2 * h), claimed", "rise / h, 2 * claimed")),
        "ignores the cotangent": altered(
            "1.8b", DIFFERENCE, ("np.vdot(u, change(high, low))", "change(high, low).sum()")
        ),
        "the size of the difference": altered(
            "1.8b", DIFFERENCE, ("rise / (2 * h), claimed", "abs(rise) / (2 * h), abs(claimed)")
        ),
        "inf minus inf": altered("1.8b", DIFFERENCE, ("change(high, low)", "high - low")),
        "leaves the directions out": altered("1.8b", DIFFERENCE, ("x + h * d", "x + h"), ("x - h * d", "x - h")),
        "holds the gradient against a sum": altered(
            "1.8b", DIFFERENCE, ("np.vdot(g, np.where(np.isfinite(d), d, 0))", "np.sum(g)")
        ),
        "counts inputs that stay": altered(
            "1.8b",
            DIFFERENCE,
            ("if g is not None and d is not None", "if g is not None"),
            ("np.where(np.isfinite(d), d, 0)", "np.ones_like(g) if d is None else d"),
        ),
        "the first input only": altered(
            "1.8b",
            DIFFERENCE,
            (
                "claimed += float(np.vdot(g, np.where(np.isfinite(d), d, 0)))",
                "claimed = claimed or float(np.vdot(g, np.where(np.isfinite(d), d, 0)))",
            ),
        ),
        "expects a gradient for every input": altered(
            "1.8b", DIFFERENCE, ("if g is not None and d is not None", "if d is not None")
        ),
        "forgets u in the size of the rounding": altered("1.8b", DIFFERENCE, ("_norm(u * high)", "0.0")),
        "does not extrapolate": altered(
            "1.8c",
            EXTRAPOLATED,
            ("near[0] + (near[0] - far[0]) / 3", "near[0]"),
            ("near[1] + (near[1] - far[1]) / 3", "near[1]"),
        ),
        "extrapolates the wrong way": altered(
            "1.8c",
            EXTRAPOLATED,
            ("near[0] + (near[0] - far[0]) / 3", "(4 * far[0] - near[0]) / 3"),
            ("near[1] + (near[1] - far[1]) / 3", "(4 * far[1] - near[1]) / 3"),
        ),
        "takes the error for linear in h": altered(
            "1.8c",
            EXTRAPOLATED,
            ("near[0] + (near[0] - far[0]) / 3", "2 * near[0] - far[0]"),
            ("near[1] + (near[1] - far[1]) / 3", "2 * near[1] - far[1]"),
        ),
        "averages the two steps": altered(
            "1.8c",
            EXTRAPOLATED,
            ("near[0] + (near[0] - far[0]) / 3", "(near[0] + far[0]) / 2"),
            ("near[1] + (near[1] - far[1]) / 3", "(near[1] + far[1]) / 2"),
        ),
        "forgets the 3": altered(
            "1.8c",
            EXTRAPOLATED,
            ("near[0] + (near[0] - far[0]) / 3", "4 * near[0] - far[0]"),
            ("near[1] + (near[1] - far[1]) / 3", "4 * near[1] - far[1]"),
        ),
        "compares sizes": altered("1.8c", EXTRAPOLATED, ("numeric - analytic", "abs(numeric) - abs(analytic)")),
        "claimed minus measured": altered("1.8c", EXTRAPOLATED, ("numeric - analytic", "analytic - numeric")),
        "an absolute tolerance": altered("1.8c", EXTRAPOLATED, ("tol.rtol * scale", "tol.rtol")),
        "a generous tolerance": altered("1.8c", EXTRAPOLATED, ("tol.rtol * scale", "1e-3 * scale")),
        "no room for rounding": altered("1.8c", EXTRAPOLATED, (" + tol.atol + rounding", " + tol.atol")),
        "rounding without the step": altered("1.8c", EXTRAPOLATED, (" / step", "")),
        "forgets atol": altered("1.8c", EXTRAPOLATED, (" + tol.atol", "")),
        "scales by the claim alone": altered("1.8c", EXTRAPOLATED, ("max(abs(numeric), size)", "size")),
        "scales by the measured alone": altered("1.8c", EXTRAPOLATED, ("max(abs(numeric), size)", "abs(numeric)")),
        "rejects whatever comes": altered(
            "1.8c", EXTRAPOLATED, ("numeric - analytic", "numeric - analytic + 1 + abs(numeric)")
        ),
        "accepts whatever comes": altered("1.8c", EXTRAPOLATED, ("numeric - analytic", "0.0")),
    },
    right={
        "signs from random numbers, the claim without a step": {
            "1.8a": """
            sizes = 0.5 + 0.5 * rng.random(shape)
            return np.where(rng.random(shape) < 0.5, -sizes, sizes)
            """,
            "1.8b": DIFFERENCE,
        },
        "Richardson as a correction": {"1.8c": EXTRAPOLATED},
        "the claim is not extrapolated": altered("1.8c", EXTRAPOLATED, ("near[1] + (near[1] - far[1]) / 3", "near[1]")),
        "loops": {
            "1.8a": """
            out = np.empty(shape)
            for i in np.ndindex(*shape):
                out[i] = (1 if rng.integers(2) else -1) * rng.uniform(0.5, 1)
            return out
            """,
            "1.8b": """
            def moved(sign):
                return [x.copy() if d is None else x + sign * h * d for x, d in zip(problem.arrays, directions)]

            up, down = moved(1.0), moved(-1.0)
            with np.errstate(all="ignore"):
                a, b = problem.value(up), problem.value(down)
                slope = np.sum(np.asarray(u) * change(a, b)) / (2 * h)
                promised = 0.0
                for i, g in enumerate(gradients):
                    if g is None or directions[i] is None:
                        continue
                    promised += np.sum(g * change(up[i], down[i])) / (2 * h)
                return float(slope), float(promised), _norm(np.asarray(u) * a)
            """,
        },
    },
)

PROOFS = {
    "1.1": EXPAND,
    "1.2": MATMUL,
    "1.3": SOFTMAX,
    "1.4": NORM,
    "1.5": CROSS_ENTROPY,
    "1.6": EMBEDDING,
    "1.7": ENGINE,
    "1.8": CHECKER,
}
