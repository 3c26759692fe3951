"""Wrong and right solutions of A2: the first must lose the points, the second get them."""

from minitorch_peft.course.teacher.proof import Proof

ATTENTION = Proof(
    wrong={
        "lets every query see every key": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            return scores
            """
        },
        "aligns the staircase to the left": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                scores = np.where(np.tri(*scores.shape[-2:], dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "hides the query's own key too": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t - 1, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "shifts the staircase the wrong way": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, t - s, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "hides the past instead of the future": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), -np.inf, scores)
            return scores
            """
        },
        "forgets the scale": {
            "2.1a": """
            scores = q @ _repeat(k, q).swapaxes(-1, -2)
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "divides by the root of the width whatever the scale": {
            "2.1a": """
            scores = q @ _repeat(k, q).swapaxes(-1, -2) / np.sqrt(q.shape[-1])
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "scales the mask too": {
            "2.1a": """
            scores = q @ _repeat(k, q).swapaxes(-1, -2)
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            scores = scale * scores
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "adds a bool mask to the scores": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "reads a bool mask the other way round": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, -np.inf, scores) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "takes a float mask for a bool one": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask.astype(bool), scores, -np.inf)
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "ignores the causal flag where there is a mask": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            elif causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "is always causal": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            t, s = scores.shape[-2:]
            return np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            """
        },
        "hides with a large negative number": {
            "2.1a": """
            scores = scale * (q @ _repeat(k, q).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -1e9) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -1e9)
            return scores
            """
        },
        "gives query heads their key heads in turn": {
            "2.1a": """
            scores = scale * (q @ np.tile(k, (1, q.shape[1] // k.shape[1], 1, 1)).swapaxes(-1, -2))
            if mask is not None:
                scores = np.where(mask, scores, -np.inf) if mask.dtype == bool else scores + mask
            if causal:
                t, s = scores.shape[-2:]
                scores = np.where(np.tri(t, s, s - t, dtype=bool), scores, -np.inf)
            return scores
            """
        },
        "forgets that values are grouped": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse = np.where(total == 0, -np.inf, top + np.log(total))
            return e / np.where(total == 0, 1, total) @ np.tile(v, (1, q.shape[1] // v.shape[1], 1, 1)), lse[..., 0]
            """
        },
        "does not subtract the maximum": {
            "2.1b": """
            e = np.exp(_scores(q, k, v, mask, causal, scale))
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse = np.log(total)
            out = e / np.where(total == 0, 1, total) @ _repeat(v, q)
            return out.astype(q.dtype), lse[..., 0].astype(q.dtype)
            """
        },
        "nan where a query sees no key": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True)
            e = np.exp(scores - top)
            total = e.sum(-1, keepdims=True)
            out, lse = e / total @ _repeat(v, q), top + np.log(total)
            return out.astype(q.dtype), lse[..., 0].astype(q.dtype)
            """
        },
        "averages all values where a query sees no key": {
            "2.1b": """
            scores = np.maximum(_scores(q, k, v, mask, causal, scale), -1e30)
            top = scores.max(-1, keepdims=True)
            e = np.exp(scores - top)
            total = e.sum(-1, keepdims=True)
            out, lse = e / total @ _repeat(v, q), top + np.log(total)
            return out.astype(q.dtype), lse[..., 0].astype(q.dtype)
            """
        },
        "softmax over the queries": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-2, keepdims=True)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-2, keepdims=True)
            out = e / np.where(total == 0, 1, total) @ _repeat(v, q)
            lse = np.log(np.exp(scores).sum(-1))
            return out.astype(q.dtype), lse.astype(q.dtype)
            """
        },
        "the log-sum-exp lacks the maximum": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse = np.log(total)
            return (e / np.where(total == 0, 1, total) @ _repeat(v, q)).astype(q.dtype), lse[..., 0].astype(q.dtype)
            """
        },
        "the log-sum-exp is 0 where a query sees no key": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            top = np.where(np.isneginf(top), 0, top)
            e = np.exp(scores - top)
            total = e.sum(-1, keepdims=True)
            total = np.where(total == 0, 1, total)
            return (e / total @ _repeat(v, q)).astype(q.dtype), (top + np.log(total))[..., 0].astype(q.dtype)
            """
        },
        "leaves an axis on the log-sum-exp": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse = np.where(total == 0, -np.inf, top + np.log(total))
            return (e / np.where(total == 0, 1, total) @ _repeat(v, q)).astype(q.dtype), lse.astype(q.dtype)
            """
        },
        "computes in float64 and returns it": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale).astype(np.float64)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-1, keepdims=True)
            with np.errstate(divide="ignore"):
                lse = np.where(total == 0, -np.inf, top + np.log(total))
            return e / np.where(total == 0, 1, total) @ _repeat(v, q), lse[..., 0]
            """
        },
        "returns the probabilities in place of the log-sum-exp": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1, keepdims=True, initial=-np.inf)
            e = np.exp(scores - np.where(np.isneginf(top), 0, top))
            total = e.sum(-1, keepdims=True)
            p = e / np.where(total == 0, 1, total)
            return p @ _repeat(v, q), p
            """
        },
    },
    right={
        "one query at a time": {
            "2.1a": """
                heads, t, s = q.shape[1], q.shape[2], k.shape[2]
                scores = np.empty((*q.shape[:3], s), q.dtype)
                for h in range(heads):
                    shared = h * k.shape[1] // heads
                    for i in range(t):
                        for j in range(s):
                            scores[:, h, i, j] = scale * (q[:, h, i] * k[:, shared, j]).sum(-1)
                if mask is not None and mask.dtype == bool:
                    scores[~np.broadcast_to(mask, scores.shape)] = -np.inf
                elif mask is not None:
                    scores = scores + mask
                for i in range(t if causal else 0):
                    scores[:, :, i, max(0, i + s - t + 1) :] = -np.inf
                return scores
                """,
            "2.1b": """
                scores = _scores(q, k, v, mask, causal, scale)
                out, lse = np.zeros_like(q), np.full(q.shape[:3], -np.inf, q.dtype)
                for b, h, i in np.ndindex(*q.shape[:3]):
                    row = scores[b, h, i]
                    if np.isneginf(row).all():
                        continue
                    lse[b, h, i] = np.logaddexp.reduce(row)
                    out[b, h, i] = np.exp(row - lse[b, h, i]) @ v[b, h * v.shape[1] // q.shape[1]]
                return out, lse
                """,
        },
        "einsum over groups": {
            "2.1a": """
                b, heads, t, d = q.shape
                shared, s = k.shape[1:3]
                grouped = q.reshape(b, shared, heads // shared, t, d)
                scores = np.einsum("bngtd,bnsd->bngts", grouped, k).reshape(b, heads, t, s) * q.dtype.type(scale)
                allowed = np.ones(scores.shape, bool)
                if causal:
                    allowed &= np.arange(s) <= np.arange(t)[:, None] + s - t
                if mask is not None:
                    if mask.dtype == bool:
                        allowed &= mask
                    else:
                        scores = scores + mask
                scores[~allowed] = -np.inf
                return scores
                """,
            "2.1b": """
                scores = _scores(q, k, v, mask, causal, scale)
                with np.errstate(divide="ignore"):
                    lse = np.logaddexp.reduce(scores, axis=-1)
                p = np.exp(scores - np.where(np.isneginf(lse), 0, lse)[..., None])
                b, heads, t, s = p.shape
                p = p.reshape(b, v.shape[1], heads // v.shape[1], t, s)
                return np.einsum("bngts,bnsd->bngtd", p, v).reshape(q.shape).astype(q.dtype), lse.astype(q.dtype)
                """,
        },
        "additive masks throughout": {
            "2.1a": """
            group = q.shape[1] // k.shape[1]
            k = np.stack([k[:, head // group] for head in range(q.shape[1])], axis=1)
            scores = np.matmul(q * q.dtype.type(scale), np.swapaxes(k, 2, 3))
            t, s = scores.shape[2:]
            hidden = np.triu(np.full((t, s), -np.inf), k=s - t + 1) if causal else np.zeros((t, s))
            if mask is not None and mask.dtype == bool:
                hidden = hidden + np.where(mask, 0.0, -np.inf)
            elif mask is not None:
                hidden = hidden + mask
            return (scores + hidden).astype(q.dtype)
            """
        },
        "nan at first, then zeros": {
            "2.1b": """
            scores = _scores(q, k, v, mask, causal, scale)
            top = scores.max(-1)
            with np.errstate(invalid="ignore"):
                weights = np.exp(scores - top[..., None])
            weights = np.nan_to_num(weights, nan=0.0)
            total = weights.sum(-1)
            out = np.zeros_like(q)
            np.divide(weights @ _repeat(v, q), total[..., None], out=out, where=(total > 0)[..., None])
            lse = np.full_like(top, -np.inf)
            lse[total > 0] = top[total > 0] + np.log(total[total > 0])
            return out, lse
            """
        },
    },
)

# what all of the wrong gradients share
P = """
    scores = _scores(q, k, v, mask, causal, scale)
    p = np.exp(scores - np.where(np.isneginf(lse), 0, lse)[..., None])
    """
RETURNED = """
    dq = ds @ _repeat(k, q) if needs[0] else None
    dk = _sum_groups(ds.swapaxes(-1, -2) @ q, k) if needs[1] else None
    dv = _sum_groups(p.swapaxes(-1, -2) @ grad, v) if needs[2] else None
    return dq, dk, dv
    """


def gradient(ds: str, returned: str = RETURNED, p: str = P) -> dict[str, str]:
    """Region 2.2a from its three steps."""
    parts = [p.strip("\n").rstrip(), *(f"    {line}" for line in ds.strip().splitlines()), returned.strip("\n")]
    return {"2.2a": "\n".join(parts)}


DS = "ds = scale * p * (grad @ _repeat(v, q).swapaxes(-1, -2) - (grad * out).sum(-1, keepdims=True))"
DS = DS.replace("scale * p", "q.dtype.type(scale) * p")

ATTENTION_GRADIENT = Proof(
    wrong={
        "forgets the scale": gradient(DS.replace("q.dtype.type(scale) * p", "p")),
        "applies the scale twice to dk": gradient(DS, RETURNED.replace("dk = ", "dk = scale * ")),
        "scales dq but not dk": gradient(
            DS.replace("q.dtype.type(scale) * p", "p"), RETURNED.replace("dq = ds @", "dq = scale * ds @")
        ),
        "scales dv too": gradient(DS, RETURNED.replace("p.swapaxes", "scale * p.swapaxes")),
        "takes the softmax's gradient for p times dp": gradient(
            DS.replace(" - (grad * out).sum(-1, keepdims=True)", "")
        ),
        "uses p (1 - p), the derivative of a sigmoid": gradient(
            "ds = q.dtype.type(scale) * (grad @ _repeat(v, q).swapaxes(-1, -2)) * p * (1 - p)"
        ),
        "subtracts the mean over the keys instead of the weighted sum": gradient(
            "dp = grad @ _repeat(v, q).swapaxes(-1, -2)\n"
            "ds = q.dtype.type(scale) * p * (dp - dp.mean(-1, keepdims=True))"
        ),
        "sums over the queries instead of the keys": gradient(
            "dp = grad @ _repeat(v, q).swapaxes(-1, -2)\n"
            "ds = q.dtype.type(scale) * p * (dp - (p * dp).sum(-2, keepdims=True))"
        ),
        "the sign of the sum": gradient(DS.replace("- (grad", "+ (grad")),
        "multiplies dv by p instead of its transpose": gradient(
            DS,
            RETURNED.replace(
                "p.swapaxes(-1, -2) @ grad", "(p @ grad if p.shape[-1] == p.shape[-2] else p.swapaxes(-1, -2) @ grad)"
            ),
        ),
        "swaps dq and dk": gradient(DS, RETURNED.replace("return dq, dk, dv", "return dk, dq, dv")),
        "gives back arrays that nobody needs": gradient(
            DS, RETURNED.replace(" if needs[0] else None", "").replace(" if needs[1] else None", "")
        ),
        "gives zeros instead of None": gradient(
            DS, RETURNED.replace("if needs[0] else None", "if needs[0] else np.zeros_like(q)")
        ),
        "mixes up which flag belongs to which gradient": gradient(
            DS, RETURNED.replace("needs[0]", "needs[9]").replace("needs[2]", "needs[0]").replace("needs[9]", "needs[2]")
        ),
        "nan where a query sees no key": gradient(
            DS, p=P.replace("np.where(np.isneginf(lse), 0, lse)[..., None]", "lse[..., None]")
        ),
        "builds p without the mask": gradient(DS, p=P.replace("q, k, v, mask, causal", "q, k, v, None, causal")),
        "builds p without causality": gradient(DS, p=P.replace("mask, causal, scale", "mask, False, scale")),
        "does not normalise p": gradient(
            DS, p="    scores = _scores(q, k, v, mask, causal, scale)\n    p = np.exp(scores)"
        ),
        "returns float64": gradient(DS.replace("q.dtype.type(scale)", "np.float64(scale)")),
        "averages over a group": {
            "2.2b": """
            b, heads, s, d = kv.shape
            return gradient.reshape(b, heads, gradient.shape[1] // heads, s, d).mean(2)
            """
        },
        "sums over the wrong heads": {
            "2.2b": """
            b, heads, s, d = kv.shape
            return gradient.reshape(b, gradient.shape[1] // heads, heads, s, d).sum(1)
            """
        },
        "keeps the first head of a group": {
            "2.2b": """
            return gradient[:, :: gradient.shape[1] // kv.shape[1]]
            """
        },
        "keeps an axis of length one": {
            "2.2b": """
            b, heads, s, d = kv.shape
            return gradient.reshape(b, heads, gradient.shape[1] // heads, s, d).sum(2, keepdims=True)
            """
        },
        "does not sum over a group at all": {"2.2b": "return gradient"},
    },
    right={
        "the sum over the keys, not grad times out": {
            "2.2a": """
            finite = np.isfinite(lse)[..., None]
            scores = _scores(q, k, v, mask, causal, scale)
            p = np.where(finite, np.exp(scores - np.where(finite, lse[..., None], 0)), 0)
            dp = np.matmul(grad, np.swapaxes(_repeat(v, q), 2, 3))
            ds = (p * dp - p * (p * dp).sum(-1, keepdims=True)) * q.dtype.type(scale)
            dq = dk = dv = None
            if needs[0]:
                dq = np.matmul(ds, _repeat(k, q))
            if needs[1]:
                dk = _sum_groups(np.matmul(np.swapaxes(ds, 2, 3), q), k)
            if needs[2]:
                dv = _sum_groups(np.matmul(np.swapaxes(p, 2, 3), grad), v)
            return dq, dk, dv
            """
        },
        "the softmax's own kernel": {
            "2.2a": """
            from ..softmax.reference import softmax_backward

            scores = _scores(q, k, v, mask, causal, scale)
            p = np.exp(scores - np.where(lse > -np.inf, lse, 0)[..., None])
            keys, values = _repeat(k, q), _repeat(v, q)
            dp = np.einsum("bhtd,bhsd->bhts", grad, values)
            ds = softmax_backward(dp, p)
            s = q.dtype.type(scale)
            dq = s * np.einsum("bhts,bhsd->bhtd", ds, keys)
            dk = s * _sum_groups(np.einsum("bhts,bhtd->bhsd", ds, q), k)
            dv = _sum_groups(np.einsum("bhts,bhtd->bhsd", p, grad), v)
            return tuple(x if need else None for x, need in zip((dq, dk, dv), needs))
            """
        },
        "one query at a time": {
            "2.2a": """
                scores = _scores(q, k, v, mask, causal, scale)
                dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
                for b, h, i in np.ndindex(*q.shape[:3]):
                    if np.isneginf(lse[b, h, i]):
                        continue
                    n = h * k.shape[1] // q.shape[1]
                    row, g = np.exp(scores[b, h, i] - lse[b, h, i]), grad[b, h, i]
                    dp = v[b, n] @ g
                    ds = (np.diag(row) - np.outer(row, row)) @ dp * q.dtype.type(scale)
                    dq[b, h, i] = ds @ k[b, n]
                    dk[b, n] += np.outer(ds, q[b, h, i])
                    dv[b, n] += np.outer(row, g)
                return dq if needs[0] else None, dk if needs[1] else None, dv if needs[2] else None
                """,
            "2.2b": "raise RuntimeError('not used')",
        },
        "group after group": {
            "2.2b": """
            total = np.zeros_like(kv)
            group = gradient.shape[1] // kv.shape[1]
            for head in range(gradient.shape[1]):
                total[:, head // group] += gradient[:, head]
            return total
            """
        },
    },
)

CACHE = Proof(
    wrong={
        "always appends": {
            "2.3a": """
            if layer in self.entries:
                past_key, past_value = self.entries[layer]
                key, value = F.cat([past_key, key], dim=2), F.cat([past_value, value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "appends a recomputed block": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key, value = F.cat([past_key, key], dim=2), F.cat([past_value, value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "forgets what was there": {
            "2.3a": """
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "returns all but holds the new ones only": {
            "2.3a": """
            self_key, self_value = key, value
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (self_key, self_value)
            return key, value
            """
        },
        "holds all but returns the new ones only": {
            "2.3a": """
            new = key, value
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (key, value)
            return new
            """
        },
        "puts the new ones first": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([key, past_key[:, :, :past_length]], dim=2)
                value = F.cat([value, past_value[:, :, :past_length]], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "joins along the heads": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=1)
                value = F.cat([past_value[:, :, :past_length], value], dim=1)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "joins along the last axis": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=-1)
                value = F.cat([past_value[:, :, :past_length], value], dim=-1)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "keeps the last of the past, not the first": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, -past_length:], key], dim=2)
                value = F.cat([past_value[:, :, -past_length:], value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "cuts the keys but not the values": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value, value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "takes the values for the keys": {
            "2.3a": """
            if past_length:
                past_value, past_key = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "all layers share one entry": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[0]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "joins arrays and cuts the graph": {
            "2.3a": """
            import numpy as np

            if past_length:
                past_key, past_value = self.entries[layer]
                key = Tensor(np.concatenate([past_key.data[:, :, :past_length], key.data], axis=2))
                value = Tensor(np.concatenate([past_value.data[:, :, :past_length], value.data], axis=2))
            self.entries[layer] = (key, value)
            return key, value
            """
        },
        "holds detached copies": {
            "2.3a": """
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (key.detach(), value.detach())
            return key, value
            """
        },
        "counts the positions a second time": {
            "2.3a": """
            new = key.shape[2]
            if past_length:
                past_key, past_value = self.entries[layer]
                key = F.cat([past_key[:, :, :past_length], key], dim=2)
                value = F.cat([past_value[:, :, :past_length], value], dim=2)
            self.entries[layer] = (key, value)
            self.next_position += new
            return key, value
            """
        },
        "select also resets the position": {
            "2.3b": """
            index = list(keep)
            self.entries = {i: (k[:, :, index], v[:, :, index]) for i, (k, v) in self.entries.items()}
            self.next_position = len(index)
            """
        },
        "select drops what is to be kept": {
            "2.3b": """
            index = [i for i in range(self.length) if i not in set(keep)]
            self.entries = {i: (k[:, :, index], v[:, :, index]) for i, (k, v) in self.entries.items()}
            """
        },
        "select sorts the places": {
            "2.3b": """
            index = sorted(keep)
            self.entries = {i: (k[:, :, index], v[:, :, index]) for i, (k, v) in self.entries.items()}
            """
        },
        "select leaves the values": {
            "2.3b": """
            index = list(keep)
            self.entries = {i: (k[:, :, index], v) for i, (k, v) in self.entries.items()}
            """
        },
        "select acts on the first layer only": {
            "2.3b": """
            index = list(keep)
            k, v = self.entries[0]
            self.entries[0] = (k[:, :, index], v[:, :, index])
            """
        },
        "select keeps as many, from the start": {
            "2.3b": """
            n = len(list(keep))
            self.entries = {i: (k[:, :, :n], v[:, :, :n]) for i, (k, v) in self.entries.items()}
            """
        },
        "select cuts the graph": {
            "2.3b": """
            index = list(keep)
            pairs = self.entries.items()
            self.entries = {i: (Tensor(k.data[:, :, index]), Tensor(v.data[:, :, index])) for i, (k, v) in pairs}
            """
        },
        "select picks along the heads": {
            "2.3b": """
            index = list(keep)
            self.entries = {i: (k[:, index], v[:, index]) for i, (k, v) in self.entries.items()}
            """
        },
    },
    right={
        "cuts whether or not it must": {
            "2.3a": """
            if past_length > 0:
                before = self.entries[layer]
                pair = tuple(
                    F.cat([old[:, :, 0:past_length, :], new], dim=-2) for old, new in zip(before, (key, value))
                )
            else:
                pair = (key, value)
            self.entries[layer] = pair
            return pair
            """
        },
        "narrow and an early return": {
            "2.3a": """
            if past_length == 0:
                self.entries[layer] = (key, value)
                return key, value
            old_key, old_value = self.entries.pop(layer)
            if old_key.shape[2] != past_length:
                old_key, old_value = old_key[..., :past_length, :], old_value[..., :past_length, :]
            joined = F.cat((old_key, key), 2), F.cat((old_value, value), 2)
            self.entries.update({layer: joined})
            return self.entries[layer]
            """
        },
        "gathers, one place at a time": {
            "2.3b": """
            for layer, (key, value) in list(self.entries.items()):
                keys = [key[:, :, i : i + 1] for i in keep]
                values = [value[:, :, i : i + 1] for i in keep]
                self.entries[layer] = (F.cat(keys, dim=2), F.cat(values, dim=2))
            """
        },
        "index_select": {
            "2.3b": """
            import numpy as np

            index = np.array(list(keep))
            kept = {}
            for layer in self.entries:
                key, value = self.entries[layer]
                kept[layer] = F.index_select(key, 2, Tensor(index)), F.index_select(value, 2, Tensor(index))
            self.entries = kept
            """
        },
    },
)

LOSS = Proof(
    wrong={
        "does not shift": {
            "2.4a": """
            return np.pad(y, ((0, 0), (0, 1)), constant_values=-100) if one_before else y
            """
        },
        "shifts the other way": {
            "2.4a": """
            return np.pad(y if one_before else y[:, :-1], ((0, 0), (1, 0)), constant_values=-100)
            """
        },
        "shifts twice": {
            "2.4a": """
            return np.pad(y[:, 1:] if one_before else y[:, 2:], ((0, 0), (0, y.shape[1] + one_before -
                max(0, y.shape[1] - (1 if one_before else 2)))), constant_values=-100)
            """
        },
        "shifts in a circle: the last predicts the first": {
            "2.4a": """
            return np.pad(y, ((0, 0), (0, 1)), constant_values=-100) if one_before else np.roll(y, -1, axis=1)
            """
        },
        "returns one column too few": {"2.4a": "return y if one_before else y[:, 1:]"},
        "forgets the position before the input": {
            "2.4a": """
            return np.pad(y[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
            """
        },
        "puts the position before the input at the front": {
            "2.4a": """
            shifted = np.pad(y[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
            return np.pad(shifted, ((0, 0), (1, 0)), constant_values=-100) if one_before else shifted
            """
        },
        "fills up with 0": {
            "2.4a": """
            return np.pad(y if one_before else y[:, 1:], ((0, 0), (0, 1)))
            """
        },
        "shifts over the rows": {
            "2.4a": """
            flat = np.append(y.reshape(-1), -100)
            if one_before:
                return np.pad(y, ((0, 0), (0, 1)), constant_values=-100)
            return flat[1:].reshape(y.shape)
            """
        },
        "makes floats": {
            "2.4a": """
            out = np.full((y.shape[0], y.shape[1] + one_before), -100.0)
            out[:, : y.shape[1] - (not one_before)] = y if one_before else y[:, 1:]
            return out
            """
        },
        "the prompt counts": {
            "2.4b": """
            rows = [self.prompts[i] + self.answers[i] for i in indices]
            return {
                "input_ids": pad_rows(rows, self.pad, side),
                "labels": pad_rows(rows, IGNORE, side),
                "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side),
            }
            """
        },
        "the pads count": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], self.pad, side),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """
        },
        "finds pads by their id in the labels": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            labels = pad_rows([[IGNORE] * len(x) + y for x, y in parts], self.pad, side)
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": np_where(labels, self.pad),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """.replace("np_where(labels, self.pad)", "__import__('numpy').where(labels == self.pad, IGNORE, labels)")
        },
        "finds pads by their id in the mask": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            ids = pad_rows([x + y for x, y in parts], self.pad, side)
            return {
                "input_ids": ids,
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, side),
                "attention_mask": (ids != self.pad).astype(int),
            }
            """
        },
        "the mask leaves the prompt out": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, side),
                "attention_mask": pad_rows([[0] * len(x) + [1] * len(y) for x, y in parts], 0, side),
            }
            """
        },
        "the mask is 1 on pads": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, side),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 1, side),
            }
            """
        },
        "always pads on the right": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, "right"),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, "right"),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, "right"),
            }
            """
        },
        "pads ids and labels on different sides": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, "right"),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """
        },
        "ignores which pairs are asked for": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in range(len(indices))]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * len(x) + y for x, y in parts], IGNORE, side),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """
        },
        "shifts the labels a first time": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * (len(x) - 1) + y + [IGNORE] for x, y in parts], IGNORE, side),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """
        },
        "leaves the first token of the answer out": {
            "2.4b": """
            parts = [(self.prompts[i], self.answers[i]) for i in indices]
            return {
                "input_ids": pad_rows([x + y for x, y in parts], self.pad, side),
                "labels": pad_rows([[IGNORE] * (len(x) + 1) + y[1:] for x, y in parts], IGNORE, side),
                "attention_mask": pad_rows([[1] * (len(x) + len(y)) for x, y in parts], 0, side),
            }
            """
        },
        "joins in place, so that a second batch is longer": {
            "2.4b": """
            rows, labels = [], []
            for i in indices:
                row = self.prompts[i]
                labels.append([IGNORE] * len(row) + self.answers[i])
                row += self.answers[i]
                rows.append(row)
            return {
                "input_ids": pad_rows(rows, self.pad, side),
                "labels": pad_rows(labels, IGNORE, side),
                "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side),
            }
            """
        },
        "answers only, without their prompts": {
            "2.4b": """
            rows = [self.answers[i] for i in indices]
            return {
                "input_ids": pad_rows(rows, self.pad, side),
                "labels": pad_rows(rows, IGNORE, side),
                "attention_mask": pad_rows([[1] * len(row) for row in rows], 0, side),
            }
            """
        },
    },
    right={
        "filled by hand": {
            "2.4a": """
                shifted = np.full((len(y), y.shape[1] + (1 if one_before else 0)), -100, dtype=y.dtype)
                if one_before:
                    shifted[:, :-1] = y
                else:
                    shifted[:, :-1] = y[:, 1:]
                return shifted
                """,
            "2.4b": """
                import numpy as np

                longest = max(len(self.prompts[i]) + len(self.answers[i]) for i in indices)
                ids = np.full((len(indices), longest), self.pad)
                labels = np.full_like(ids, IGNORE)
                mask = np.zeros_like(ids)
                for row, i in enumerate(indices):
                    n, m = len(self.prompts[i]), len(self.answers[i])
                    at = longest - n - m if side == "left" else 0
                    ids[row, at : at + n], ids[row, at + n : at + n + m] = self.prompts[i], self.answers[i]
                    labels[row, at + n : at + n + m] = self.answers[i]
                    mask[row, at : at + n + m] = 1
                return {"input_ids": ids, "labels": labels, "attention_mask": mask}
                """,
        },
        "joined columns": {
            "2.4a": """
            last = np.full((y.shape[0], 1), -100)
            parts = (y, last) if one_before else (y[:, 1:], last)
            return np.concatenate(parts, axis=1)
            """
        },
        "rolled, and the end overwritten": {
            "2.4a": """
            y = np.hstack([np.zeros((len(y), 1), y.dtype), y]) if one_before else y
            rolled = np.roll(y, -1, axis=1)
            rolled[:, -1] = -100
            return rolled
            """
        },
        "labels from the ids": {
            "2.4b": """
            rows, labels, mask = [], [], []
            for i in indices:
                prompt, answer = self.prompts[i], self.answers[i]
                rows.append([*prompt, *answer])
                labels.append([token if at >= len(prompt) else IGNORE for at, token in enumerate(rows[-1])])
                mask.append([1 for _ in rows[-1]])
            fill = {"input_ids": (rows, self.pad), "labels": (labels, IGNORE), "attention_mask": (mask, 0)}
            return {name: pad_rows(values, value, side) for name, (values, value) in fill.items()}
            """
        },
    },
)


def adamw(
    decay: str = "param *= 1 - lr * weight_decay",
    m: str = "exp_avg *= beta1\nexp_avg += (1 - beta1) * grad",
    v: str = "exp_avg_sq *= beta2\nexp_avg_sq += (1 - beta2) * grad * grad",
    step: str = "param -= lr * (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)",
) -> dict[str, str]:
    """Region 2.5 from its four steps."""
    return {"2.5": "\n".join((decay, m, v, step))}


ADAMW = Proof(
    wrong={
        "no bias correction": adamw(step="param -= lr * exp_avg / (np.sqrt(exp_avg_sq) + eps)"),
        "corrects the first mean only": adamw(
            step="param -= lr * (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq) + eps)"
        ),
        "corrects the second mean only": adamw(
            step="param -= lr * exp_avg / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)"
        ),
        "corrects the second mean after the root": adamw(
            step="param -= lr * (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq) / (1 - beta2**step) + eps)"
        ),
        "swaps the two corrections": adamw(
            step="param -= lr * (exp_avg / (1 - beta2**step)) / (np.sqrt(exp_avg_sq / (1 - beta1**step)) + eps)"
        ),
        "counts the steps from zero": adamw(
            step="s = max(step - 1, 1)\n"
            "param -= lr * (exp_avg / (1 - beta1**s)) / (np.sqrt(exp_avg_sq / (1 - beta2**s)) + eps)"
        ),
        "eps inside the root": adamw(
            step="param -= lr * (exp_avg / (1 - beta1**step)) / np.sqrt(exp_avg_sq / (1 - beta2**step) + eps)"
        ),
        "adds eps before the correction": adamw(
            step="root = (np.sqrt(exp_avg_sq) + eps) / math.sqrt(1 - beta2**step)\n"
            "param -= lr * (exp_avg / (1 - beta1**step)) / root"
        ),
        "no eps": adamw(step="param -= lr * (exp_avg / (1 - beta1**step)) / np.sqrt(exp_avg_sq / (1 - beta2**step))"),
        "no root": adamw(step="param -= lr * (exp_avg / (1 - beta1**step)) / (exp_avg_sq / (1 - beta2**step) + eps)"),
        "the decay in the gradient, as in Adam with L2": adamw(decay="grad = grad + weight_decay * param"),
        "the decay is not multiplied by the rate": adamw(decay="param *= 1 - weight_decay"),
        "no decay": adamw(decay=""),
        "decays what the step has changed already": {
            "2.5": adamw(decay="")["2.5"] + "\nparam *= 1 - lr * weight_decay"
        },
        "grows instead of decaying": adamw(decay="param *= 1 + lr * weight_decay"),
        "climbs": adamw(
            step="param += lr * (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)"
        ),
        "swaps beta1 and beta2": adamw(
            m="exp_avg *= beta2\nexp_avg += (1 - beta2) * grad",
            v="exp_avg_sq *= beta1\nexp_avg_sq += (1 - beta1) * grad * grad",
        ),
        "the weight on the wrong side of the mean": adamw(m="exp_avg *= 1 - beta1\nexp_avg += beta1 * grad"),
        "adds the whole gradient to the mean": adamw(m="exp_avg *= beta1\nexp_avg += grad"),
        "the second mean of the gradient, not of its square": adamw(
            v="exp_avg_sq *= beta2\nexp_avg_sq += (1 - beta2) * np.abs(grad)"
        ),
        "a new array for the parameter": adamw(
            step="param = param - lr * (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)"
        ),
        "a new array for the first mean": adamw(m="exp_avg = beta1 * exp_avg + (1 - beta1) * grad"),
        "everything in new arrays, returned": {
            "2.5": """
            m = beta1 * exp_avg + (1 - beta1) * grad
            v = beta2 * exp_avg_sq + (1 - beta2) * grad**2
            step_size = lr / (1 - beta1**step)
            p = param * (1 - lr * weight_decay) - step_size * m / (np.sqrt(v / (1 - beta2**step)) + eps)
            return p, m, v
            """
        },
        "changes the gradient": adamw(
            m="exp_avg *= beta1\ngrad *= 1 - beta1\nexp_avg += grad\ngrad /= 1 - beta1 + 1e-9"
        ),
        "the corrected means are kept": adamw(
            step="exp_avg /= 1 - beta1**step\nexp_avg_sq /= 1 - beta2**step\n"
            "param -= lr * exp_avg / (np.sqrt(exp_avg_sq) + eps)"
        ),
    },
    right={
        "Kingma and Ba's order": adamw(),
        "the efficient order of section 2": {
            "2.5": """
            exp_avg[...] = beta1 * exp_avg + (1 - beta1) * grad
            exp_avg_sq[...] = beta2 * exp_avg_sq + (1 - beta2) * np.square(grad)
            root = math.sqrt(1 - beta2**step)
            rate = lr * root / (1 - beta1**step)
            param[...] = param - lr * weight_decay * param - rate * exp_avg / (np.sqrt(exp_avg_sq) + eps * root)
            """
        },
        "element by element": {
            "2.5": """
            for i in np.ndindex(*param.shape):
                exp_avg[i] = beta1 * exp_avg[i] + (1 - beta1) * grad[i]
                exp_avg_sq[i] = beta2 * exp_avg_sq[i] + (1 - beta2) * grad[i] ** 2
                m, v = exp_avg[i] / (1 - beta1**step), exp_avg_sq[i] / (1 - beta2**step)
                param[i] -= lr * weight_decay * param[i] + lr * m / (np.sqrt(v) + eps)
            """
        },
        "out= everywhere": {
            "2.5": """
            np.multiply(exp_avg, beta1, out=exp_avg)
            np.add(exp_avg, (1 - beta1) * grad, out=exp_avg)
            np.multiply(exp_avg_sq, beta2, out=exp_avg_sq)
            np.add(exp_avg_sq, (1 - beta2) * grad * grad, out=exp_avg_sq)
            update = (exp_avg / (1 - beta1**step)) / (np.sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
            np.subtract(param, lr * (update + weight_decay * param), out=param)
            """
        },
    },
)

TOP_K = """
    if top_k is not None and top_k < z.shape[-1]:
        kth = np.sort(z, axis=-1)[:, -top_k, None]
        z = np.where(z < kth, -np.inf, z)
    """
SOFTMAX = """
    p = np.exp(z - z.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    """
TOP_P = """
    if top_p is not None and top_p < 1:
        order = np.argsort(-p, axis=-1)
        ranked = np.take_along_axis(p, order, axis=-1)
        outside = np.cumsum(ranked, axis=-1) - ranked >= top_p
        np.put_along_axis(p, order, np.where(outside, 0, ranked), axis=-1)
        p /= p.sum(axis=-1, keepdims=True)
    """
SCALED = "\n    z = logits.astype(np.float64) / temperature"


def chosen(*parts: str) -> dict[str, str]:
    """Region 2.6a from its parts."""
    return {"2.6a": "\n".join(part.strip("\n").rstrip() for part in (*parts, "    return p"))}


SAMPLING = Proof(
    wrong={
        "multiplies by the temperature": chosen(SCALED.replace("/ temp", "* temp"), TOP_K, SOFTMAX, TOP_P),
        "applies the temperature to probabilities": chosen(
            "    z = logits.astype(np.float64)",
            TOP_K,
            SOFTMAX,
            TOP_P,
            "    p = p / temperature\n    p /= p.sum(axis=-1, keepdims=True)",
        ),
        "applies the temperature last": chosen(
            "    z = logits.astype(np.float64)",
            TOP_K,
            SOFTMAX,
            TOP_P,
            "    p = p ** (1 / temperature)\n    p /= p.sum(axis=-1, keepdims=True)",
        ),
        "ignores top-k": chosen(SCALED, SOFTMAX, TOP_P),
        "ignores top-p": chosen(SCALED, TOP_K, SOFTMAX),
        "keeps the k smallest": chosen(
            SCALED,
            TOP_K.replace("[:, -top_k, None]", "[:, top_k - 1, None]").replace("z < kth", "z > kth"),
            SOFTMAX,
            TOP_P,
        ),
        "keeps k - 1": chosen(SCALED, TOP_K.replace("z < kth", "z <= kth"), SOFTMAX, TOP_P),
        "keeps k + 1": chosen(
            SCALED, TOP_K.replace("[:, -top_k, None]", "[:, -min(top_k + 1, z.shape[-1]), None]"), SOFTMAX, TOP_P
        ),
        "does not normalise again after top-k": chosen(
            SCALED,
            SOFTMAX,
            TOP_K.replace("z", "p").replace("np.sort(p", "np.sort(p").replace("-np.inf", "0"),
            TOP_P,
        ),
        "does not normalise again after top-p": chosen(
            SCALED, TOP_K, SOFTMAX, TOP_P.replace("        p /= p.sum(axis=-1, keepdims=True)\n", "")
        ),
        "top-p before top-k": chosen(
            SCALED,
            SOFTMAX,
            TOP_P,
            """
    if top_k is not None and top_k < p.shape[-1]:
        p = np.where(p < np.sort(p, axis=-1)[:, -top_k, None], 0, p)
        p /= p.sum(axis=-1, keepdims=True)
    """,
        ),
        "drops the token that crosses p": chosen(
            SCALED,
            TOP_K,
            SOFTMAX,
            TOP_P.replace("np.cumsum(ranked, axis=-1) - ranked >= top_p", "np.cumsum(ranked, axis=-1) > top_p"),
        ),
        "drops the token that crosses p, but keeps one": chosen(
            SCALED,
            TOP_K,
            SOFTMAX,
            TOP_P.replace(
                "np.cumsum(ranked, axis=-1) - ranked >= top_p",
                "np.cumsum(ranked, axis=-1) > top_p\n        outside[:, 0] = False",
            ),
        ),
        "keeps the least likely tokens": chosen(SCALED, TOP_K, SOFTMAX, TOP_P.replace("argsort(-p", "argsort(p")),
        "keeps the tokens more likely than p": chosen(
            SCALED,
            TOP_K,
            SOFTMAX,
            """
    if top_p is not None and top_p < 1:
        p = np.where(p >= np.minimum(1 - top_p, p.max(axis=-1, keepdims=True)), p, 0)
        p /= p.sum(axis=-1, keepdims=True)
    """,
        ),
        "leaves the probabilities in sorted order": chosen(
            SCALED,
            TOP_K,
            SOFTMAX,
            TOP_P.replace(
                "np.put_along_axis(p, order, np.where(outside, 0, ranked), axis=-1)", "p = np.where(outside, 0, ranked)"
            ),
        ),
        "puts them back by the wrong permutation": chosen(
            SCALED,
            TOP_K,
            SOFTMAX,
            TOP_P.replace(
                "np.put_along_axis(p, order, np.where(outside, 0, ranked), axis=-1)",
                "p = np.take_along_axis(np.where(outside, 0, ranked), order, axis=-1)",
            ),
        ),
        "does not subtract the maximum": chosen(
            SCALED, TOP_K, "    p = np.exp(z)\n    p /= p.sum(axis=-1, keepdims=True)", TOP_P
        ),
        "normalises over the whole batch": chosen(
            SCALED, TOP_K, "    p = np.exp(z - z.max())\n    p /= p.sum()", TOP_P
        ),
        "one threshold for all rows": chosen(
            SCALED, TOP_K.replace("np.sort(z, axis=-1)[:, -top_k, None]", "np.sort(z[0])[-top_k]"), SOFTMAX, TOP_P
        ),
        "works in place on the logits": chosen("    z = logits\n    z /= temperature", TOP_K, SOFTMAX, TOP_P),
        "the most likely token, always": {"2.6b": "return int(p.argmax())"},
        "draws from all tokens alike": {"2.6b": "return int(u * len(p))"},
        "may draw a token of probability 0 at u = 0": {
            "2.6b": """
            return int(min(np.searchsorted(np.cumsum(p), u, side="left"), np.flatnonzero(p)[-1]))
            """
        },
        "may draw beyond the last token": {"2.6b": 'return int(np.searchsorted(np.cumsum(p), u, side="right"))'},
        "may draw a last token of probability 0": {
            "2.6b": """
            return int(min(np.searchsorted(np.cumsum(p), u, side="right"), len(p) - 1))
            """
        },
        "one token too early": {
            "2.6b": """
            return int(max(np.searchsorted(np.cumsum(p), u, side="right") - 1, np.flatnonzero(p)[0]))
            """
        },
        "compares with p instead of its cumulative sum": {
            "2.6b": """
            return int(min(np.searchsorted(np.sort(p), u, side="right"), np.flatnonzero(p)[-1]))
            """
        },
        "gives the probability, not the index": {
            "2.6b": """
            return p[int(min(np.searchsorted(np.cumsum(p), u, side="right"), np.flatnonzero(p)[-1]))]
            """
        },
        "gives an array": {"2.6b": "return np.flatnonzero(np.cumsum(p) > u)"},
    },
    right={
        "row by row": {
            "2.6a": """
            result = np.zeros(logits.shape)
            for row, given in enumerate(logits):
                z = np.array(given, dtype=np.float64) / temperature
                order = list(np.argsort(z)[::-1])
                if top_k is not None:
                    order = order[:top_k]
                weights = np.exp(z[order] - z[order[0]])
                weights = weights / weights.sum()
                if top_p is not None:
                    total, kept = 0.0, 0
                    while kept < len(order) and total < top_p:
                        total += weights[kept]
                        kept += 1
                    order, weights = order[:kept], weights[:kept] / weights[:kept].sum()
                result[row, order] = weights
            return result
            """
        },
        "with ranks": {
            "2.6a": """
            z = logits / temperature
            ranks = np.argsort(np.argsort(-z, axis=-1), axis=-1)
            keep = ranks < (top_k or z.shape[-1])
            p = np.where(keep, np.exp(z - z.max(-1, keepdims=True)), 0.0)
            p = p / p.sum(-1, keepdims=True)
            if top_p is not None:
                before = np.array([[row[row > x].sum() for x in row] for row in p])
                p = np.where(before < top_p, p, 0.0)
                p = p / p.sum(-1, keepdims=True)
            return p
            """
        },
        "a loop that counts down": {
            "2.6b": """
            total, last = 0.0, 0
            for index, share in enumerate(np.cumsum(p)):
                if p[index] == 0:
                    continue
                last = index
                if u < share:
                    return index
            return last
            """
        },
        "argmax of a comparison": {
            "2.6b": """
            cumulative = np.cumsum(p)
            above = (cumulative > u) & (p > 0)
            return int(above.argmax()) if above.any() else int(np.nonzero(p)[0].max())
            """
        },
    },
)


FREEZING = Proof(
    wrong={
        "counts the blocks from the bottom": {
            "2.7a": """
            return {path: size for path, size in sizes.items() if is_above(path, config.top_layers)}
            """
        },
        "one block too many": {
            "2.7a": """
            lowest = layers - config.top_layers - 1
            return {path: size for path, size in sizes.items() if is_above(path, lowest)}
            """
        },
        "one block too few": {
            "2.7a": """
            lowest = layers - config.top_layers + 1
            return {path: size for path, size in sizes.items() if is_above(path, lowest)}
            """
        },
        "chooses the frozen ones": {
            "2.7a": """
            lowest = layers - config.top_layers
            return {path: size for path, size in sizes.items() if not is_above(path, lowest)}
            """
        },
        "chooses everything": {"2.7a": "return sizes"},
        "gives names without sizes": {
            "2.7a": """
            return [path for path in sizes if is_above(path, layers - config.top_layers)]
            """
        },
        "gives shapes for sizes": {
            "2.7a": """
            lowest = layers - config.top_layers
            return {path: p.shape[0] for path, p in base_parameters(model) if is_above(path, lowest)}
            """
        },
        "weights only, no biases": {
            "2.7a": """
            lowest = layers - config.top_layers
            return {p: n for p, n in sizes.items() if is_above(p, lowest) and p.endswith("weight")}
            """
        },
        "forgets the final norm": {
            "2.7b": """
            layer = layer_index(path)
            return layer >= lowest if layer is not None else path.startswith("lm_head.")
            """
        },
        "forgets the head": {
            "2.7b": """
            layer = layer_index(path)
            return layer >= lowest if layer is not None else path.startswith("ln_f.")
            """
        },
        "trains the embedding": {
            "2.7b": """
            layer = layer_index(path)
            return layer is None or layer >= lowest
            """
        },
        "trains the embedding's positions": {
            "2.7b": """
            layer = layer_index(path)
            if layer is None:
                return not path.startswith("embed.tokens")
            return layer >= lowest
            """
        },
        "blocks only": {
            "2.7b": """
            layer = layer_index(path)
            return layer is not None and layer >= lowest
            """
        },
        "strictly above": {
            "2.7b": """
            layer = layer_index(path)
            return layer > lowest if layer is not None else path.startswith(("ln_f.", "lm_head."))
            """
        },
        "below": {
            "2.7b": """
            layer = layer_index(path)
            return layer < lowest if layer is not None else path.startswith(("ln_f.", "lm_head."))
            """
        },
        "takes block 0 for no block": {
            "2.7b": """
            layer = layer_index(path)
            return layer >= lowest if layer else path.startswith(("ln_f.", "lm_head."))
            """
        },
        "compares block numbers as text": {
            "2.7b": """
            parts = path.split(".")
            return parts[1] >= str(lowest) if parts[0] == "blocks" else parts[0] in ("ln_f", "lm_head")
            """
        },
        "reads one digit of the block's number": {
            "2.7b": """
            if path.startswith("blocks."):
                return int(path[7]) >= lowest
            return path.startswith(("ln_f.", "lm_head."))
            """
        },
        "takes every norm for the final one": {
            "2.7b": """
            layer = layer_index(path)
            return "ln_" in path or "lm_head" in path or (layer is not None and layer >= lowest)
            """
        },
        "all three gradients, always": {
            "2.7c": """
            return dispatch.get("linear_backward", g.dtype)(g, x, w, (True, True, True))
            """
        },
        "zeros for a frozen weight": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            rows = g.reshape(-1, len(w))
            return (
                g @ w if ctx.needs_input_grad[0] else None,
                np.zeros_like(w),
                rows.sum(0) if ctx.needs_input_grad[2] else None,
            )
            """
        },
        "nothing passes through a frozen layer": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return None, None, None
            """
        },
        "forgets the bias of a frozen weight": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return g @ w if ctx.needs_input_grad[0] else None, None, None
            """
        },
        "does not ask whether the input needs a gradient": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return g @ w, None, g.reshape(-1, len(w)).sum(0) if ctx.needs_input_grad[2] else None
            """
        },
        "does not ask whether the bias needs a gradient": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return g @ w if ctx.needs_input_grad[0] else None, None, g.reshape(-1, len(w)).sum(0)
            """
        },
        "multiplies by the transpose": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            square = w.shape[0] == w.shape[1]
            return (
                (g @ (w.T if square else w)) if ctx.needs_input_grad[0] else None,
                None,
                g.reshape(-1, len(w)).sum(0) if ctx.needs_input_grad[2] else None,
            )
            """
        },
        "sums the bias over the first axis only": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return g @ w if ctx.needs_input_grad[0] else None, None, g.sum(0) if ctx.needs_input_grad[2] else None
            """
        },
        "leaves the input's gradient as rows": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            rows = g.reshape(-1, len(w))
            return (
                rows @ w if ctx.needs_input_grad[0] else None,
                None,
                rows.sum(0) if ctx.needs_input_grad[2] else None,
            )
            """
        },
        "ignores the flags where the weight trains": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w)
            return (
                g @ w if ctx.needs_input_grad[0] else None,
                None,
                g.reshape(-1, len(w)).sum(0) if ctx.needs_input_grad[2] else None,
            )
            """
        },
        "turns float32 into float64": {
            "2.7c": """
            if x is not None:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, ctx.needs_input_grad)
            return (
                g @ w.astype(np.float64) if ctx.needs_input_grad[0] else None,
                None,
                g.reshape(-1, len(w)).sum(0, dtype=np.float64) if ctx.needs_input_grad[2] else None,
            )
            """
        },
    },
    right={
        "a loop over the names": {
            "2.7a": """
            chosen = {}
            for path in sizes:
                if is_above(path, layers - config.top_layers):
                    chosen[path] = sizes[path]
            return chosen
            """
        },
        "names of the blocks, written out": {
            "2.7a": """
                wanted = tuple(f"blocks.{i}." for i in range(layers - config.top_layers, layers))
                return {p: n for p, n in sizes.items() if p.startswith((*wanted, "ln_f.", "lm_head."))}
                """,
            "2.7b": """
                if path.startswith("blocks."):
                    return int(path.split(".")[1]) >= lowest
                return path.split(".")[0] in {"ln_f", "lm_head"}
                """,
        },
        "what is not below": {
            "2.7b": """
            layer = layer_index(path)
            if layer is None:
                return not path.startswith("embed.")
            return not layer < lowest
            """
        },
        "each gradient by itself": {
            "2.7c": """
            dx = dw = db = None
            if ctx.needs_input_grad[0]:
                dx = np.tensordot(g, w, axes=(-1, 0))
            if ctx.needs_input_grad[1]:
                dw = np.einsum("no,ni->oi", g.reshape(-1, w.shape[0]), x.reshape(-1, w.shape[1]))
            if ctx.needs_input_grad[2]:
                db = g.sum(axis=tuple(range(g.ndim - 1)))
            return dx, dw, db
            """
        },
        "two cases": {
            "2.7c": """
            if ctx.needs_input_grad[1]:
                return dispatch.get("linear_backward", g.dtype)(g, x, w, tuple(ctx.needs_input_grad))
            dx = None if not ctx.needs_input_grad[0] else g @ w
            db = None if not ctx.needs_input_grad[2] else np.add.reduce(g.reshape(-1, len(w)), axis=0)
            return dx, None, db
            """
        },
    },
)

PROOFS = {
    "2.1": ATTENTION,
    "2.2": ATTENTION_GRADIENT,
    "2.3": CACHE,
    "2.4": LOSS,
    "2.5": ADAMW,
    "2.6": SAMPLING,
    "2.7": FREEZING,
}
