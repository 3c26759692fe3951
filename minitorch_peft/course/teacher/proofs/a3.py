"""Wrong and right solutions of assignment A3: the mistakes that students make, and other ways to be right."""

from minitorch_peft.course.teacher.proof import Proof

NAMED = """
    self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), A)
    self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), B)
    """


def start(choice: str, rest: str = NAMED) -> dict[str, str]:
    """A solution of 3.1 that differs from the library's in how it chooses A and B."""
    return {"3.1": "\n".join(line.strip() for line in f"{choice}\n{rest}".strip().splitlines())}


STARTS = Proof(
    wrong={
        "both are zero": start("A, B = init.zeros, init.zeros"),
        "both are random": start("A, B = init.kaiming_uniform(), init.normal(0.02)"),
        "A zero and B random, for linear layers too": start("A, B = init.zeros, init.normal(1.0)"),
        "an embedding starts like a linear layer": start("A, B = init.kaiming_uniform(), init.zeros"),
        "A is standard normal": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.normal(1.0), init.zeros)"
        ),
        "A is normal with the deviation of GPT-2's weights": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.normal(0.02), init.zeros)"
        ),
        "Kaiming with a = 0": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(0.0), init.zeros)"
        ),
        "an embedding's B is uniform": start(
            "A, B = (init.zeros, init.kaiming_uniform()) if base.takes_ids else (init.kaiming_uniform(), init.zeros)"
        ),
        "A is constant": start("A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.ones, init.zeros)"),
        "all layers draw under one name": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)",
            """
            self.lora_A = adapter.new_parameter("lora_A", (r, base.in_features), A)
            self.lora_B = adapter.new_parameter("lora_B", (base.out_features, r), B)
            """,
        ),
        "layers are told apart by their last name only": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)",
            """
            name = path.split(".")[-1]
            self.lora_A = adapter.new_parameter(f"{name}.lora_A", (r, base.in_features), A)
            self.lora_B = adapter.new_parameter(f"{name}.lora_B", (base.out_features, r), B)
            """,
        ),
        "in and out are exchanged": start(
            "A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)",
            """
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.out_features), A)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.in_features, r), B)
            """,
        ),
        "A is drawn with the fan-in of its transpose": {
            "3.1": """
            down = lambda rng, shape: init.kaiming_uniform()(rng, shape[::-1]).T
            A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (down, init.zeros)
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), A)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), B)
            """
        },
        "drawn from NumPy's global generator": {
            "3.1": """
            uniform = lambda rng, shape: np.random.uniform(-1, 1, shape) / np.sqrt(shape[-1])
            normal = lambda rng, shape: np.random.standard_normal(shape)
            A, B = (init.zeros, normal) if base.takes_ids else (uniform, init.zeros)
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), A)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), B)
            """
        },
        "the rank of the config, not of the path": {
            "3.1": """
            A, B = (init.zeros, init.normal(1.0)) if base.takes_ids else (init.kaiming_uniform(), init.zeros)
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (config.r, base.in_features), A)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, config.r), B)
            """
        },
    },
    right={
        "an if with four calls": {
            "3.1": """
            if base.takes_ids:
                self.lora_A = adapter.new_parameter(path + ".lora_A", (r, base.in_features), init.zeros)
                self.lora_B = adapter.new_parameter(path + ".lora_B", (base.out_features, r), init.normal(1.0))
            else:
                self.lora_A = adapter.new_parameter(path + ".lora_A", (r, base.in_features), init.kaiming_uniform())
                self.lora_B = adapter.new_parameter(path + ".lora_B", (base.out_features, r), init.zeros)
            """
        },
        "the bound written out": {
            "3.1": """
            bound = base.in_features**-0.5
            A = lambda rng, shape: rng.uniform(-bound, bound, shape)
            B = init.zeros
            if base.takes_ids:
                A, B = B, lambda rng, shape: rng.normal(0.0, 1.0, shape)
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), A)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), B)
            """
        },
        "other names for the draws": {
            "3.1": """
            starts = {True: (init.zeros, init.normal(1)), False: (init.kaiming_uniform(), init.zeros)}
            A, B = starts[base.takes_ids]
            self.lora_B = adapter.new_parameter(f"B of {path}", (base.out_features, r), B)
            self.lora_A = adapter.new_parameter(f"A of {path}", (r, base.in_features), A)
            """
        },
        "made, then filled": {
            "3.1": """
            self.lora_A = adapter.new_parameter(f"{path}.lora_A", (r, base.in_features), init.zeros)
            self.lora_B = adapter.new_parameter(f"{path}.lora_B", (base.out_features, r), init.zeros)
            moved, start = (self.lora_B, init.normal(1.0)) if base.takes_ids else (self.lora_A, init.kaiming_uniform())
            moved.init = start
            init.fill(moved, adapter.seed, path)
            """
        },
    },
)


def formed(before: str, after: str) -> dict[str, str]:
    """A solution of 3.2 that forms the effective weight, with something done to the measuring of memory."""
    lines = [
        "import tracemalloc",
        before,
        "y = x @ (weight + x.dtype.type(scaling) * (lora_b @ lora_a)).T",
        after,
        "return y if bias is None else y + bias, x @ lora_a.T",
    ]
    return {"3.2": "\n".join(line for line in lines if line)}


FORWARD = Proof(
    wrong={
        "B A is formed behind a stopped trace": formed("tracemalloc.stop()", ""),
        "B A is formed, and the trace restarted": formed("tracemalloc.stop()", "tracemalloc.start()"),
        "B A is formed, and the trace cleared": formed("", "tracemalloc.clear_traces()"),
        "B A is formed, and the peak reset": formed("", "tracemalloc.reset_peak()"),
        "the scaling is forgotten": {
            "3.2": """
            xa = x @ lora_a.T
            y = x @ weight.T + xa @ lora_b.T
            return (y if bias is None else y + bias), xa
            """
        },
        "the base is scaled too": {
            "3.2": """
            xa = x @ lora_a.T
            y = x.dtype.type(scaling) * (x @ weight.T + xa @ lora_b.T)
            return (y if bias is None else y + bias), xa
            """
        },
        "the bias is scaled too": {
            "3.2": """
            xa = x @ lora_a.T
            low = xa @ lora_b.T
            if bias is not None:
                low += bias
            return x @ weight.T + low * x.dtype.type(scaling), xa
            """
        },
        "the bias is forgotten": {
            "3.2": """
            xa = x @ lora_a.T
            return x @ weight.T + (xa @ lora_b.T) * x.dtype.type(scaling), xa
            """
        },
        "None is added as a bias": {
            "3.2": """
            xa = x @ lora_a.T
            return x @ weight.T + bias + (xa @ lora_b.T) * x.dtype.type(scaling), xa
            """
        },
        "B A is formed": {
            "3.2": """
            y = x @ (weight + x.dtype.type(scaling) * (lora_b @ lora_a)).T
            if bias is not None:
                y += bias
            return y, x @ lora_a.T
            """
        },
        "A and B are multiplied with each other first": {
            "3.2": """
            y = x @ weight.T + x @ (lora_a.T @ lora_b.T) * x.dtype.type(scaling)
            if bias is not None:
                y += bias
            return y, x @ lora_a.T
            """
        },
        "xa is returned scaled": {
            "3.2": """
            xa = (x @ lora_a.T) * x.dtype.type(scaling)
            y = x @ weight.T + xa @ lora_b.T
            if bias is not None:
                y += bias
            return y, xa
            """
        },
        "xa is not returned": {
            "3.2": """
            y = x @ weight.T + (x @ lora_a.T @ lora_b.T) * x.dtype.type(scaling)
            return y if bias is None else y + bias
            """
        },
        "float64 results for float32": {
            "3.2": """
            xa = x @ lora_a.T
            y = x @ weight.T + (xa @ lora_b.T) * np.float64(scaling)
            return (y if bias is None else y + bias), xa
            """
        },
        "only two-dimensional x": {
            "3.2": """
            xa = np.einsum("bk,rk->br", x, lora_a)
            y = np.einsum("bk,nk->bn", x, weight) + np.einsum("br,nr->bn", xa, lora_b) * x.dtype.type(scaling)
            return (y if bias is None else y + bias), xa
            """
        },
        "the weights are scaled in place": {
            "3.2": """
            xa = x @ lora_a.T
            lora_b *= x.dtype.type(scaling)
            y = x @ weight.T + xa @ lora_b.T
            return (y if bias is None else y + bias), xa
            """
        },
        "the base product is forgotten": {
            "3.2": """
            xa = x @ lora_a.T
            y = (xa @ lora_b.T) * x.dtype.type(scaling)
            return (y if bias is None else y + bias), xa
            """
        },
        "weights are not transposed": {
            "3.2": """
            xa = x @ lora_a.T
            y = x @ weight + (xa @ lora_b.T) * x.dtype.type(scaling)
            return (y if bias is None else y + bias), xa
            """
        },
        "the leading axes are lost": {
            "3.2": """
            rows = rows_of(x)
            xa = rows @ lora_a.T
            y = rows @ weight.T + (xa @ lora_b.T) * x.dtype.type(scaling)
            return (y if bias is None else y + bias), xa
            """
        },
    },
    right={
        "einsum": {
            "3.2": """
            xa = np.einsum("...k,rk->...r", x, lora_a)
            y = np.einsum("...k,nk->...n", x, weight)
            y = y + np.asarray(scaling, x.dtype) * np.einsum("...r,nr->...n", xa, lora_b)
            return (y if bias is None else y + bias), xa
            """
        },
        "a loop over rows": {
            "3.2": """
            rows = rows_of(x)
            y = np.empty((len(rows), len(weight)), x.dtype)
            xa = np.empty((len(rows), len(lora_a)), x.dtype)
            for i, row in enumerate(rows):
                xa[i] = lora_a @ row
                y[i] = weight @ row + scaling * (lora_b @ xa[i])
                if bias is not None:
                    y[i] += bias
            return y.reshape(*x.shape[:-1], -1), xa.reshape(*x.shape[:-1], -1)
            """
        },
        "B scaled instead of its product": {
            "3.2": """
            xa = np.matmul(x, lora_a.T)
            scaled = (lora_b * scaling).astype(x.dtype)
            y = np.matmul(x, weight.T) + np.matmul(xa, scaled.T)
            if bias is not None:
                y = y + bias
            return y, xa
            """
        },
        "tensordot, cast at the end": {
            "3.2": """
            xa = np.tensordot(x, lora_a, axes=(-1, 1))
            y = np.tensordot(x, weight, axes=(-1, 1)) + np.tensordot(xa, lora_b, axes=(-1, 1)) * scaling
            y += 0 if bias is None else bias
            return y.astype(x.dtype), xa
            """
        },
    },
)


def gradients(dx: str, dweight: str, dbias: str, da: str, db: str, before: str = "") -> dict[str, str]:
    """A solution of 3.3 with these five expressions (of g, rows, u, s)."""
    head = f"s = grad.dtype.type(scaling)\ng, rows, u = rows_of(grad), rows_of(x), rows_of(xa)\n{before}\n"
    values = "\n".join(
        f"    ({value}) if needs[{i}] else None," for i, value in enumerate((dx, dweight, dbias, da, db))
    )
    return {"3.3": f"{head}return (\n{values}\n)"}


DX, DW, DBIAS = "(g @ weight + s * (g @ lora_b) @ lora_a).reshape(x.shape)", "g.T @ rows", "g.sum(0)"
DA, DB = "s * (g @ lora_b).T @ rows", "s * (g.T @ u)"

BACKWARD = Proof(
    wrong={
        "leaves the gradients to the engine": {
            "3.3": """
            from minitorch_peft.autograd.tensor import Tensor

            inputs = (x, weight, np.zeros(len(weight), x.dtype), lora_a, lora_b)
            tensors = [Tensor(a, requires_grad=need) for a, need in zip(inputs, needs)]
            if any(needs):
                X, W, b, A, B = tensors
                (X @ W.mT + b + (X @ A.mT) @ B.mT * float(scaling)).backward(grad)
            return tuple(t.grad for t in tensors)
            """
        },
        "complex steps over every element": {
            "3.3": """
            inputs = [x, weight, np.zeros(len(weight), x.dtype), lora_a, lora_b]
            results = [np.empty_like(a) if need else None for a, need in zip(inputs, needs)]
            for n, result in enumerate(results):
                for i in np.ndindex(inputs[n].shape) if needs[n] else ():
                    x_, w_, b_, a_, B_ = (a.astype(complex) if m == n else a for m, a in enumerate(inputs))
                    (x_, w_, b_, a_, B_)[n][i] += 1e-30j
                    y = x_ @ w_.T + b_ + scaling * ((x_ @ a_.T) @ B_.T)
                    result[i] = np.sum(grad * y.imag) * 1e30
            return tuple(results)
            """
        },
        "the scaling is missing in dA": gradients(DX, DW, DBIAS, "(g @ lora_b).T @ rows", DB),
        "the scaling is missing in dB": gradients(DX, DW, DBIAS, DA, "g.T @ u"),
        "the scaling is missing in dx": gradients(
            "(g @ weight + (g @ lora_b) @ lora_a).reshape(x.shape)", DW, DBIAS, DA, DB
        ),
        "the scaling is there twice in dA": gradients(DX, DW, DBIAS, "s * s * (g @ lora_b).T @ rows", DB),
        "the scaling acts on the base's part of dx": gradients(
            "(s * (g @ weight + (g @ lora_b) @ lora_a)).reshape(x.shape)", DW, DBIAS, DA, DB
        ),
        "dx without the low-rank branch": gradients("(g @ weight).reshape(x.shape)", DW, DBIAS, DA, DB),
        "dx without the base": gradients("(s * (g @ lora_b) @ lora_a).reshape(x.shape)", DW, DBIAS, DA, DB),
        "dB from x instead of x A": gradients(DX, DW, DBIAS, DA, "s * (g.T @ rows) @ lora_a.T @ lora_a @ lora_a.T"),
        "dA and dB are exchanged": gradients(DX, DW, DBIAS, DB, DA),
        "dA is transposed": gradients(DX, DW, DBIAS, "s * rows.T @ (g @ lora_b)", DB),
        "dx keeps the flattened shape": gradients("g @ weight + s * (g @ lora_b) @ lora_a", DW, DBIAS, DA, DB),
        "means over rows instead of sums": gradients(DX, DW, DBIAS, f"{DA} / len(rows)", f"{DB} / len(rows)"),
        "only the first of several rows": gradients(DX, DW, DBIAS, "s * (g[:1] @ lora_b).T @ rows[:1]", DB),
        "needs is ignored": {
            "3.3": """
            s = grad.dtype.type(scaling)
            g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
            dxa = s * (g @ lora_b)
            return (g @ weight + dxa @ lora_a).reshape(x.shape), g.T @ rows, g.sum(0), dxa.T @ rows, s * (g.T @ u)
            """
        },
        "the frozen weight's gradient is computed, then thrown away": {
            "3.3": """
            s = grad.dtype.type(scaling)
            g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
            dxa = s * (g @ lora_b)
            all_of_them = (
                (g @ weight + dxa @ lora_a).reshape(x.shape), g.T @ rows, g.sum(0), dxa.T @ rows, s * (g.T @ u)
            )
            return tuple(d if need else None for d, need in zip(all_of_them, needs))
            """
        },
        "dx through the formed effective weight": gradients(
            "(g @ (weight + s * (lora_b @ lora_a))).reshape(x.shape)", DW, DBIAS, DA, DB
        ),
        "zeros instead of None": {
            "3.3": """
            s = grad.dtype.type(scaling)
            g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
            dxa = s * (g @ lora_b)
            dx = (g @ weight + dxa @ lora_a).reshape(x.shape)
            dw = g.T @ rows if needs[1] else np.zeros_like(weight)
            return dx, dw, g.sum(0), dxa.T @ rows, s * (g.T @ u)
            """
        },
        "leading axes are not flattened": {
            "3.3": """
            s = grad.dtype.type(scaling)
            dxa = s * (grad @ lora_b)
            return (
                grad @ weight + dxa @ lora_a if needs[0] else None,
                grad.T @ x if needs[1] else None,
                grad.sum(0) if needs[2] else None,
                dxa.T @ x if needs[3] else None,
                s * (grad.T @ xa) if needs[4] else None,
            )
            """
        },
        "the bias's gradient is not summed over rows": gradients(DX, DW, "g[0]", DA, DB),
        "float64 results for float32": gradients(DX, DW, DBIAS, DA, DB, before="s = np.float64(scaling)"),
        "the gradient is scaled in place": gradients(
            "((g / s) @ weight + g @ lora_b @ lora_a).reshape(x.shape)",
            "(g / s).T @ rows",
            "g.sum(0) / s",
            "(g @ lora_b).T @ rows",
            "g.T @ u",
            before="g *= s",
        ),
    },
    right={
        "einsum": {
            "3.3": """
            g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
            s = np.asarray(scaling, grad.dtype)
            low = np.einsum("bn,nr->br", g, lora_b) * s
            dx = dw = db = da = dB = None
            if needs[0]:
                dx = (np.einsum("bn,nk->bk", g, weight) + np.einsum("br,rk->bk", low, lora_a)).reshape(x.shape)
            if needs[1]:
                dw = np.einsum("bn,bk->nk", g, rows)
            if needs[2]:
                db = np.einsum("bn->n", g)
            if needs[3]:
                da = np.einsum("br,bk->rk", low, rows)
            if needs[4]:
                dB = s * np.einsum("bn,br->nr", g, u)
            return dx, dw, db, da, dB
            """
        },
        "added up row by row": {
            "3.3": """
            s, g, rows, u = grad.dtype.type(scaling), rows_of(grad), rows_of(x), rows_of(xa)
            wanted = (rows, weight, weight[:, 0], lora_a, lora_b)
            out = [np.zeros_like(like) if need else None for like, need in zip(wanted, needs)]
            for i in range(len(g)):
                back = s * (lora_b.T @ g[i])
                if needs[0]:
                    out[0][i] = weight.T @ g[i] + lora_a.T @ back
                if needs[1]:
                    out[1] += np.outer(g[i], rows[i])
                if needs[2]:
                    out[2] += g[i]
                if needs[3]:
                    out[3] += np.outer(back, rows[i])
                if needs[4]:
                    out[4] += s * np.outer(g[i], u[i])
            if needs[0]:
                out[0] = out[0].reshape(x.shape)
            return tuple(out)
            """
        },
        "x A computed again": gradients(DX, DW, DBIAS, "lora_b.T @ (s * g).T @ rows", "s * (g.T @ (rows @ lora_a.T))"),
        "the low-rank terms from scaled factors": gradients(
            "(g @ weight + (g @ scaled) @ lora_a).reshape(x.shape)",
            "(rows.T @ g).T",
            "np.ones(len(g), g.dtype) @ g",
            "(rows.T @ (g @ scaled)).T",
            "(u.T @ g).T * s",
            before="scaled = lora_b * s",
        ),
    },
)


MERGING = Proof(
    wrong={
        "the scaling is forgotten": {
            "3.4a": """
            return weight + self.lora_B.data.astype(weight.dtype) @ self.lora_A.data.astype(weight.dtype)
            """
        },
        "the change alone": {
            "3.4a": """
            return self.scaling * (self.lora_B.data.astype(weight.dtype) @ self.lora_A.data.astype(weight.dtype))
            """
        },
        "the product in float32, the sum in float64": {
            "3.4a": """
            return weight + self.scaling * (self.lora_B.data @ self.lora_A.data)
            """
        },
        "the result in the dtype of the factors": {
            "3.4a": """
            change = self.scaling * (self.lora_B.data @ self.lora_A.data)
            return weight.astype(change.dtype) + change
            """
        },
        "the factors in the wrong order": {
            "3.4a": """
            B, A = (p.data.astype(weight.dtype) for p in (self.lora_B, self.lora_A))
            return weight + self.scaling * (A.T @ B.T)
            """
        },
        "the weight is changed in place": {
            "3.4a": """
            weight += (self.scaling * (self.lora_B.data.astype(np.float64) @ self.lora_A.data)).astype(weight.dtype)
            return weight
            """
        },
        "kept after it was overwritten": {
            "3.4b": """
            leaf.set_dense_weight(stored)
            self.before[path] = leaf.dense_weight()
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
            """
        },
        "written into the array that is kept": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.dense_weight()[...] = stored
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
            """
        },
        "the difference is kept and subtracted again": {
            "3.4b": """
            self.before[path] = stored - leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
            """,
            "3.4c": """
            for path, change in self.before.items():
                leaf = base_module(self.model, path)
                leaf.set_dense_weight(leaf.dense_weight() - change)
            if self.tied is not None:
                head, self.model.config = self.tied
                replace_base_module(self.model, "lm_head", head)
            self._forget()
            """,
        },
        "unmerging subtracts B A, in float64": {
            "3.4c": """
            for adapter in self.adapters:
                for path, layer in adapter.weights().items():
                    leaf = base_module(self.model, path)
                    W = leaf.dense_weight().astype(np.float64)
                    leaf.set_dense_weight((W - (layer.effective(W) - W)).astype(leaf.dense_weight().dtype))
            if self.tied is not None:
                head, self.model.config = self.tied
                replace_base_module(self.model, "lm_head", head)
            self._forget()
            """
        },
        "the float64 weight is stored": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(weight)
            self.rounding = max(self.rounding, float(np.abs(stored - weight).max(initial=0)))
            """
        },
        "rounding of the last path only": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = float(np.abs(stored - weight).max(initial=0))
            """
        },
        "rounding without abs": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float((stored - weight).min(initial=0)))
            """
        },
        "rounding measured in float32": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float(np.abs(stored - weight.astype(stored.dtype)).max(initial=0)))
            """
        },
        "the change's size instead of the rounding": {
            "3.4b": """
            self.before[path] = leaf.dense_weight()
            leaf.set_dense_weight(stored)
            self.rounding = max(self.rounding, float(np.abs(stored - self.before[path]).max(initial=0)))
            """
        },
        "the tied head stays untied": {
            "3.4c": """
            for path, array in self.before.items():
                base_module(self.model, path).set_dense_weight(array)
            self._forget()
            """
        },
        "the config still says untied": {
            "3.4c": """
            for path, array in self.before.items():
                base_module(self.model, path).set_dense_weight(array)
            if self.tied is not None:
                replace_base_module(self.model, "lm_head", self.tied[0])
            self._forget()
            """
        },
        "the head is put over its wrapper": {
            "3.4c": """
            for path, array in self.before.items():
                base_module(self.model, path).set_dense_weight(array)
            if self.tied is not None:
                self.model.lm_head, self.model.config = self.tied
            self._forget()
            """
        },
        "adapters still count as merged": {
            "3.4c": """
            for path, array in self.before.items():
                base_module(self.model, path).set_dense_weight(array)
            if self.tied is not None:
                head, self.model.config = self.tied
                replace_base_module(self.model, "lm_head", head)
            self.before, self.tied = {}, None
            """
        },
        "the tied head is restored before the arrays": {
            "3.4c": """
            if self.tied is not None:
                head, self.model.config = self.tied
                replace_base_module(self.model, "lm_head", head)
            for path, array in self.before.items():
                base_module(self.model, path).set_dense_weight(array)
            self._forget()
            """
        },
        "only what the last adapter changed is restored": {
            "3.4c": """
            for path in self.adapters[-1].weights():
                base_module(self.model, path).set_dense_weight(self.before[path])
            if self.tied is not None:
                head, self.model.config = self.tied
                replace_base_module(self.model, "lm_head", head)
            self._forget()
            """
        },
    },
    right={
        "a copy is kept, and the old array written into": {
            "3.4b": """
            old = leaf.dense_weight()
            self.before[path] = old.copy()
            old[...] = stored
            self.rounding = max(self.rounding, float(np.abs(stored.astype(np.float64) - weight).max(initial=0)))
            """,
        },
        "restored into the array that is there": {
            "3.4b": """
            kept = leaf.dense_weight()
            self.before.setdefault(path, np.array(kept))
            leaf.set_dense_weight(stored)
            off = np.abs(weight - stored)
            if off.size and off.max() > self.rounding:
                self.rounding = float(off.max())
            """,
            "3.4c": """
            while self.before:
                path, array = self.before.popitem()
                base_module(self.model, path).dense_weight()[...] = array
            if self.tied is not None:
                replace_base_module(self.model, "lm_head", self.tied[0])
                self.model.config = self.tied[1]
            self._forget()
            """,
        },
        "the change as a sum over the rank": {
            "3.4a": """
            out = weight.copy()
            for column, row in zip(self.lora_B.data.T, self.lora_A.data):
                out += self.scaling * np.outer(column.astype(weight.dtype), row.astype(weight.dtype))
            return out
            """
        },
        "einsum in float64, rounded once": {
            "3.4a": """
            A, B = (np.asarray(p.data, np.float64) for p in (self.lora_A, self.lora_B))
            return (weight + self.scaling * np.einsum("or,ri->oi", B, A)).astype(weight.dtype)
            """
        },
        "without helpers": {
            "3.4c": """
            if self.tied is not None:
                self.before.pop("lm_head", None)
                head, config = self.tied
                replace_base_module(self.model, "lm_head", head)
                self.model.config = config
            for path in self.before:
                leaf = base_module(self.model, path)
                leaf.set_dense_weight(self.before[path])
            self.before = {}
            self.tied = None
            for adapter in self.adapters:
                adapter.merged = False
            """
        },
    },
)


def counted(body: str) -> dict[str, str]:
    return {"3.5": body}


COUNT = Proof(
    wrong={
        "the product of in and out": counted(
            "return sum(config.rank(p) * t.in_features * t.out_features for p, t in config.targets(model).items())"
        ),
        "one rank for all": counted(
            "return sum(config.r * (t.in_features + t.out_features) for t in config.targets(model).values())"
        ),
        "A only": counted("return sum(config.rank(p) * t.in_features for p, t in config.targets(model).items())"),
        "twice the input": counted(
            "return sum(2 * config.rank(p) * t.in_features for p, t in config.targets(model).items())"
        ),
        "the first target times their number": counted("""
            targets = config.targets(model)
            path, t = next(iter(targets.items()))
            return len(targets) * config.rank(path) * (t.in_features + t.out_features)
            """),
        "one block times the number of blocks": counted("""
            first = {p: t for p, t in config.targets(model).items() if p.startswith("blocks.0.")}
            per_block = sum(config.rank(p) * (t.in_features + t.out_features) for p, t in first.items())
            return per_block * model.config.n_layer
            """),
        "embeddings are left out": counted("""
            targets = config.targets(model).items()
            return sum(config.rank(p) * (t.in_features + t.out_features) for p, t in targets if not t.takes_ids)
            """),
        "biases are counted": counted("""
            targets = config.targets(model).items()
            return sum(
                config.rank(p) * (t.in_features + t.out_features)
                + (t.out_features if getattr(t, "bias", None) is not None else 0)
                for p, t in targets
            )
            """),
        "the head belongs to all-linear": counted("""
            targets = dict(config.targets(model))
            if config.target_modules == "all-linear":
                targets["lm_head"] = model.lm_head
            return sum(config.rank(p) * (t.in_features + t.out_features) for p, t in targets.items())
            """),
        "the width of the model for every layer": counted(
            "return sum(2 * config.rank(p) * model.config.n_embd for p in config.targets(model))"
        ),
        "layers_to_transform is ignored": counted("""
            from minitorch_peft.peft.patterns import target_leaves
            targets = target_leaves(model, config.target_modules)
            return sum(config.rank(p) * (t.in_features + t.out_features) for p, t in targets.items())
            """),
        "ranks looked up by the last name": counted("""
            ranks = config.rank_pattern
            return sum(
                ranks.get(p.split(".")[-1], config.r) * (t.in_features + t.out_features)
                for p, t in config.targets(model).items()
            )
            """),
        "the parameters of the layers themselves": counted(
            "return sum(t.in_features * t.out_features for t in config.targets(model).values())"
        ),
    },
    right={
        "a loop": counted("""
            total = 0
            for path, target in config.targets(model).items():
                r = config.rank(path)
                total += r * target.in_features
                total += target.out_features * r
            return total
            """),
        "from the shape of the weight": counted("""
            targets = config.targets(model)
            return int(sum(config.rank(path) * sum(t.dense_weight().shape) for path, t in targets.items()))
            """),
        "the parameters of an adapter": counted("""
            from minitorch_peft.peft import get_peft_model
            return get_peft_model(model, config).get_nb_trainable_parameters()[0]
            """),
        "a product of vectors": counted("""
            paths = config.targets(model)
            ranks = np.array([config.rank(path) for path in paths])
            widths = np.array([t.in_features + t.out_features for t in paths.values()])
            return ranks @ widths
            """),
    },
)


SCALING = Proof(
    wrong={
        "always alpha / r": {
            "3.6": """
            return by_path(self.alpha_pattern, path, self.lora_alpha) / self.rank(path)
            """
        },
        "always alpha / sqrt(r)": {
            "3.6": """
            return by_path(self.alpha_pattern, path, self.lora_alpha) / math.sqrt(self.rank(path))
            """
        },
        "the two rules are exchanged": {
            "3.6": """
            r = self.rank(path)
            return by_path(self.alpha_pattern, path, self.lora_alpha) / (r if self.use_rslora else math.sqrt(r))
            """
        },
        "the root of the whole quotient": {
            "3.6": """
            s = by_path(self.alpha_pattern, path, self.lora_alpha) / self.rank(path)
            return math.sqrt(s) if self.use_rslora else s
            """
        },
        "r squared": {
            "3.6": """
            r = self.rank(path)
            return by_path(self.alpha_pattern, path, self.lora_alpha) / (r**2 if self.use_rslora else r)
            """
        },
        "times sqrt(r)": {
            "3.6": """
            r = self.rank(path)
            alpha = by_path(self.alpha_pattern, path, self.lora_alpha)
            return alpha * math.sqrt(r) if self.use_rslora else alpha / r
            """
        },
        "whole division": {
            "3.6": """
            r = self.rank(path)
            alpha = by_path(self.alpha_pattern, path, self.lora_alpha)
            return alpha / math.sqrt(r) if self.use_rslora else alpha // r
            """
        },
        "one rank for all": {
            "3.6": """
            alpha = by_path(self.alpha_pattern, path, self.lora_alpha)
            return alpha / (math.sqrt(self.r) if self.use_rslora else self.r)
            """
        },
        "one alpha for all": {
            "3.6": """
            r = self.rank(path)
            return self.lora_alpha / (math.sqrt(r) if self.use_rslora else r)
            """
        },
        "alpha looked up by the whole path": {
            "3.6": """
            r = self.rank(path)
            return self.alpha_pattern.get(path, self.lora_alpha) / (math.sqrt(r) if self.use_rslora else r)
            """
        },
        "alpha looked up by the last name": {
            "3.6": """
            r = self.rank(path)
            alpha = self.alpha_pattern.get(path.split(".")[-1], self.lora_alpha)
            return alpha / (math.sqrt(r) if self.use_rslora else r)
            """
        },
        "the last pattern that matches": {
            "3.6": """
            r = self.rank(path)
            patterns = dict(reversed(self.alpha_pattern.items()))
            return by_path(patterns, path, self.lora_alpha) / (math.sqrt(r) if self.use_rslora else r)
            """
        },
        "alpha alone": {
            "3.6": """
            return by_path(self.alpha_pattern, path, self.lora_alpha)
            """
        },
        "r over alpha": {
            "3.6": """
            r = self.rank(path)
            return (math.sqrt(r) if self.use_rslora else r) / by_path(self.alpha_pattern, path, self.lora_alpha)
            """
        },
    },
    right={
        "a power of the rank": {
            "3.6": """
            power = 0.5 if self.use_rslora else 1.0
            return by_path(self.alpha_pattern, path, self.lora_alpha) * self.rank(path) ** -power
            """
        },
        "two returns": {
            "3.6": """
            alpha = by_path(self.alpha_pattern, path, self.lora_alpha)
            rank = by_path(self.rank_pattern, path, self.r)
            if not self.use_rslora:
                return alpha / rank
            return alpha / rank**0.5
            """
        },
        "a loop over the patterns": {
            "3.6": """
            import re

            alpha = self.lora_alpha
            for key, value in self.alpha_pattern.items():
                if re.fullmatch(rf"(.*\\.)?({key})", path):
                    alpha = value
                    break
            r = self.rank(path)
            return alpha * math.sqrt(r) / r if self.use_rslora else alpha / r
            """
        },
        "through logarithms": {
            "3.6": """
            alpha, r = float(by_path(self.alpha_pattern, path, self.lora_alpha)), self.rank(path)
            return math.exp(math.log(alpha) - math.log(r) * (0.5 if self.use_rslora else 1))
            """
        },
    },
)


def chosen(**settings: object) -> dict[str, str]:
    return {"3.7": f"return {settings!r}"}


ALL = "all-linear"

CHOICE = Proof(
    wrong={
        "over the budget": chosen(r=8, lora_alpha=16, target_modules=ALL, lr=1e-2),
        "just over the budget": chosen(r=3, lora_alpha=6, target_modules=ALL, lr=1e-2),
        "the paper's targets at the usual rate": chosen(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lr=2e-4
        ),
        "the paper's targets at a good rate": chosen(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], lr=2e-2),
        "all the rank on the queries": chosen(r=16, lora_alpha=32, target_modules=["q_proj"], lr=2e-2),
        "all the rank on one layer": chosen(r=30, lora_alpha=60, target_modules=["blocks.3.mlp.down_proj"], lr=2e-2),
        "all the rank in the last block": chosen(
            r=8, lora_alpha=16, target_modules=ALL, layers_to_transform=[3], lr=2e-2
        ),
        "only the embedding": chosen(r=8, lora_alpha=16, target_modules=["embed.tokens"], lr=2e-2),
        "a rate far too low": chosen(r=2, lora_alpha=4, target_modules=ALL, lr=3e-4),
        "a rate three times too low": chosen(r=2, lora_alpha=4, target_modules=ALL, lr=3e-3),
        "a rate far too high": chosen(r=2, lora_alpha=4, target_modules=ALL, lr=0.3),
        "alpha far too small": chosen(r=2, lora_alpha=0.05, target_modules=ALL, lr=1e-2),
        "alpha far too large": chosen(r=2, lora_alpha=400, target_modules=ALL, lr=1e-2),
        "a layer that is not there": chosen(r=2, lora_alpha=4, target_modules=["query_key_value"], lr=1e-2),
        "a setting that is not there": chosen(rank=2, alpha=4, target_modules=ALL, lr=1e-2),
        "no rate": chosen(r=2, lora_alpha=4, target_modules=ALL),
        "a regex": chosen(r=2, lora_alpha=4, target_modules=r".*_proj", lr=1e-2),
        "a config instead of settings": {
            "3.7": """
            from minitorch_peft.peft import LoraConfig

            return LoraConfig(r=2, lora_alpha=4, target_modules="all-linear")
            """
        },
    },
    right={
        "every linear layer, rank 2": chosen(r=2, lora_alpha=4, target_modules=ALL, lr=2e-2),
        "rsLoRA": chosen(r=2, lora_alpha=8, target_modules=ALL, use_rslora=True, lr=1e-2),
        "the MLP": chosen(r=3, lora_alpha=6, target_modules=["up_proj", "down_proj"], lr=1.5e-2),
        "the head alone": chosen(r=8, lora_alpha=16, target_modules=["lm_head"], lr=3e-2),
        "values, outputs and down": chosen(
            r=4, lora_alpha=8, target_modules=["v_proj", "o_proj", "down_proj"], lr=1.5e-2
        ),
    },
)

PROOFS = {
    "3.1": STARTS,
    "3.2": FORWARD,
    "3.3": BACKWARD,
    "3.4": MERGING,
    "3.5": COUNT,
    "3.6": SCALING,
    "3.7": CHOICE,
}
