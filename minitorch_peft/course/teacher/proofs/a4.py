"""Wrong and right solutions of assignment A4: the mistakes that students make, and other ways to be right."""

from minitorch_peft.course.teacher.proof import Proof


# -- 4.1 the table -----------------------------------------------------------------------------------------------------
def values(
    right: str = "float32_linspace(NF4_OFFSET, 0.5, 9)[:-1]",
    left: str = "float32_linspace(NF4_OFFSET, 0.5, 8)[:-1]",
    end: str = "found = np.sort(found).astype(np.float32)\nreturn found / found.max()",
) -> dict[str, str]:
    """A solution of 4.1 with these quantiles, and with this end."""
    return {
        "4.1a": f"""
quantile = NormalDist().inv_cdf
found = [0.0] + [quantile(float(p)) for p in {right}] + [-quantile(float(p)) for p in {left}]
{end}
"""
    }


PASTED = """
return np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
], np.float32)
"""

TABLE = Proof(
    wrong={
        "the published values, pasted": {"4.1a": PASTED},
        "the offset as a number": values(*(f"float32_linspace(0.9677083, 0.5, {n})[:-1]" for n in (9, 8))),
        "quantiles spaced in float64": values(*(f"np.linspace(NF4_OFFSET, 0.5, {n})[:-1]" for n in (9, 8))),
        "NumPy's float32 spacing": values(
            *(f"np.linspace(NF4_OFFSET, 0.5, {n}, dtype=np.float32)[:-1]" for n in (9, 8))
        ),
        "the offset with all of its digits": values(
            *(f"float32_linspace(1 - (1 / 30 + 1 / 32) / 2, 0.5, {n})[:-1]" for n in (9, 8))
        ),
        "divided before it is rounded": values(end="return (np.sort(found) / max(found)).astype(np.float32)"),
        "the two halves are exchanged": values(*(f"float32_linspace(NF4_OFFSET, 0.5, {n})[:-1]" for n in (8, 9))),
        "in float64": values(end="return np.sort(found) / max(found)"),
        "not scaled to 1": values(end="return np.sort(found).astype(np.float32)"),
        "not sorted": values(end="return np.array(found, np.float32) / np.float32(max(found))"),
        "equally likely middles": {
            "4.1a": """
            found = [NormalDist().inv_cdf((i + 0.5) / 16) for i in range(16)]
            return np.array(found, np.float32) / np.float32(max(found))
            """
        },
        "one quantile for 2**bits pieces": {"4.1b": "return 1 - 1 / (2 * 2**bits)"},
        "one quantile for 2**bits - 1 pieces": {"4.1b": "return 1 - 1 / (2 * (2**bits - 1))"},
        "edges instead of middles": {"4.1b": "return 1 - (1 / 2**bits + 1 / (2**bits - 1)) / 2"},
        "the number that is wanted, pasted": {"4.1b": "return 0.9677083"},
        "the mean of the numbers of pieces": {"4.1b": "return 1 - 1 / (2 * (2**bits - 0.5))"},
    },
    right={
        "SciPy's quantiles": {
            "4.1a": """
            from scipy.special import ndtri

            halves = [ndtri(float32_linspace(NF4_OFFSET, 0.5, n).astype(float)) for n in (9, 8)]
            found = np.concatenate([-halves[1][:-1], [0.0], halves[0][:-1][::-1]]).astype(np.float32)
            return found / found[-1]
            """
        },
        "a loop": {
            "4.1a": """
            normal, found = NormalDist(), {0.0}
            for count, sign in ((9, 1.0), (8, -1.0)):
                for p in float32_linspace(NF4_OFFSET, 0.5, count).tolist()[:-1]:
                    found.add(sign * normal.inv_cdf(p))
            found = np.array(sorted(found), np.float32)
            found /= found.max()
            return found
            """
        },
        "the zero from the halves themselves": values(
            right="float32_linspace(NF4_OFFSET, 0.5, 9)[:-1]",
            left="float32_linspace(NF4_OFFSET, 0.5, 8)[:-1]",
            end="values = np.array(sorted(found), np.float32)\nreturn values / np.abs(values).max()",
        ),
        "the mean of two middles": {
            "4.1b": """
            middles = [(m - 0.5) / m for m in (2**bits, 2**bits - 1)]
            return sum(middles) / len(middles)
            """
        },
    },
)


# -- 4.2 quantize ------------------------------------------------------------------------------------------------------
def blocks(statement: str, after: str = "return scaled.reshape(-1)[: x.size], absmax") -> dict[str, str]:
    """A solution of 4.2a whose ``scaled`` (in rows of blocks) comes from this statement."""
    return {
        "4.2a": f"""
padded = np.zeros(-(-x.size // blocksize) * blocksize, np.float32)
padded[: x.size] = x
rows = padded.reshape(-1, blocksize)
absmax = np.abs(rows).max(axis=1)
safe = np.where(absmax > 0, absmax, np.float32(1))[:, None]
with np.errstate(all="ignore"):
    {statement}
{after}
"""
    }


def packing(
    codes: str, packed: str = "codes[::2] << 4 | codes[1::2]", fill: str = "ZERO_CODE[quant_type]"
) -> dict[str, str]:
    return {
        "4.2b": f"""
codes = np.full(scaled.size + scaled.size % 2, {fill}, np.uint8)
codes[: scaled.size] = {codes}
q = Quantized({packed}, absmax, x.shape, blocksize, quant_type, None)
"""
    }


RIGHT_CODES = "order(quant_type)[np.searchsorted(boundaries(quant_type), scaled)]"

QUANTIZE = Proof(
    wrong={
        "divided by absmax": blocks("scaled = rows / safe"),
        "0 times infinity": blocks("scaled = rows * (1 / absmax)[:, None]"),
        "tiny blocks become infinite": blocks("scaled = rows * (1 / safe)"),
        "computed in float64": blocks("scaled = rows.astype(float) / safe.astype(float)"),
        "the largest number instead of the largest magnitude": {
            "4.2a": """
            padded = np.append(x, np.zeros(-x.size % blocksize, np.float32))
            rows = padded.reshape(-1, blocksize)
            absmax = rows.max(axis=1) if rows.size else np.zeros(0, np.float32)
            safe = np.where(absmax != 0, absmax, np.float32(1))[:, None]
            return (rows * (1 / safe)).reshape(-1)[: x.size], absmax
            """
        },
        "one absmax for all": {
            "4.2a": """
            top = np.abs(x).max(initial=0).astype(np.float32)
            absmax = np.full(-(-x.size // blocksize), top)
            return x * (1 / top if top > 0 else np.float32(0)), absmax
            """
        },
        "the partial block is dropped": {
            "4.2a": """
            rows = x[: x.size // blocksize * blocksize].reshape(-1, blocksize)
            absmax = np.abs(rows).max(axis=1) if rows.size else np.zeros(0, np.float32)
            safe = np.where(absmax > 0, absmax, np.float32(1))[:, None]
            return (rows * (1 / safe)).reshape(-1), absmax
            """
        },
        "blocks of zeros get absmax 1": blocks(
            "scaled = np.where(np.isfinite(1 / safe), rows * (1 / safe), rows / safe)",
            "return scaled.reshape(-1)[: x.size], safe[:, 0]",
        ),
        "the halves of a byte are exchanged": packing(RIGHT_CODES, "codes[1::2] << 4 | codes[::2]"),
        "a tie goes to the upper code": packing(
            "order(quant_type)[np.searchsorted(boundaries(quant_type), scaled, side='right')]"
        ),
        "filled up with code 0": packing(RIGHT_CODES, fill="0"),
        "filled up with code 7, whatever the type": packing(RIGHT_CODES, fill="7"),
        "nearest by distance": packing(
            "np.abs(scaled.astype(float)[:, None] - code_table(quant_type).astype(float)).argmin(1)"
        ),
        "the first half beside the second": packing(
            RIGHT_CODES, "codes[: codes.size // 2] << 4 | codes[codes.size // 2 :]"
        ),
        "one code in a byte": packing(RIGHT_CODES, "codes"),
        "added instead of shifted": packing(RIGHT_CODES, "codes[::2] * 15 + codes[1::2]"),
        "wider than a byte": packing(RIGHT_CODES, "codes[::2].astype(int) << 4 | codes[1::2]"),
    },
    right={
        "a loop over blocks": {
            "4.2a": """
            scaled, absmax = np.zeros_like(x), np.zeros(-(-x.size // blocksize), np.float32)
            for i in range(absmax.size):
                block = x[i * blocksize : (i + 1) * blocksize]
                top = absmax[i] = np.abs(block).max()
                if top > 0:
                    with np.errstate(over="ignore"):
                        reciprocal = np.float32(1) / top
                    scaled[i * blocksize : (i + 1) * blocksize] = (
                        block * reciprocal if np.isfinite(reciprocal) else block / top
                    )
            return scaled, absmax
            """
        },
        "np.maximum.reduceat": {
            "4.2a": """
            starts = np.arange(0, x.size, blocksize)
            absmax = np.maximum.reduceat(np.abs(x), starts) if x.size else np.zeros(0, np.float32)
            top = np.repeat(absmax, blocksize)[: x.size]
            with np.errstate(all="ignore"):
                reciprocal = np.float32(1) / top
                scaled = np.where(np.isinf(reciprocal), x / np.where(top > 0, top, np.float32(1)), x * reciprocal)
            return scaled, absmax
            """
        },
        "all comparisons at once": packing(
            "order(quant_type)[(scaled[:, None] > boundaries(quant_type)).sum(1)]", "codes[1::2] + 16 * codes[::2]"
        ),
        "a padded array of pairs": {
            "4.2b": """
            codes = order(quant_type)[np.digitize(scaled, boundaries(quant_type), right=True)].astype(np.uint8)
            if codes.size % 2:
                codes = np.append(codes, np.uint8(ZERO_CODE[quant_type]))
            high, low = codes.reshape(-1, 2).T
            q = Quantized((high << 4) + low, absmax, x.shape, blocksize, quant_type, None)
            """
        },
    },
)


# -- 4.3 dequantize ----------------------------------------------------------------------------------------------------
def unpacked(codes: str, found: str = "code_table(q.quant_type)[codes] * scales[: out.size]") -> dict[str, str]:
    return {"4.3": f"codes = {codes}\nscales = np.repeat(dequantized_absmax(q), q.blocksize)\nvalues = {found}"}


NIBBLES = "np.stack([q.packed >> 4, q.packed & 15], axis=1).reshape(-1)[: out.size]"

DEQUANTIZE = Proof(
    wrong={
        "the halves of a byte are exchanged": unpacked(
            "np.stack([q.packed & 15, q.packed >> 4], 1).reshape(-1)[: out.size]"
        ),
        "all high halves, then all low ones": unpacked("np.concatenate([q.packed >> 4, q.packed & 15])[: out.size]"),
        "the low half is not cut off": unpacked("np.stack([q.packed >> 4, q.packed], 1).reshape(-1)[: out.size] % 15"),
        "the half byte that fills up stays": unpacked("np.stack([q.packed >> 4, q.packed & 15], 1).reshape(-1)"),
        "absmax in turns": unpacked(
            NIBBLES, "code_table(q.quant_type)[codes] * np.resize(dequantized_absmax(q), out.size)"
        ),
        "blocks of 64, whatever the size": unpacked(
            NIBBLES, "code_table(q.quant_type)[codes] * np.repeat(dequantized_absmax(q), 64)[: out.size]"
        ),
        "always NF4": unpacked(NIBBLES, "code_table('nf4')[codes] * scales[: out.size]"),
        "the codes as numbers": unpacked(NIBBLES, "(codes.astype(np.float32) - 8) / 7 * scales[: out.size]"),
        "divided by absmax": unpacked(
            NIBBLES, "code_table(q.quant_type)[codes] / np.maximum(scales[: out.size], np.float32(1e-30))"
        ),
        "float64 on the way": unpacked(NIBBLES, "code_table(q.quant_type)[codes].astype(float) * scales[: out.size]"),
        "float16 on the way": unpacked(
            NIBBLES, "(code_table(q.quant_type)[codes] * scales[: out.size]).astype(np.float16).astype(np.float32)"
        ),
        "a block short": unpacked(NIBBLES, "code_table(q.quant_type)[codes[: out.size - 1]] * scales[: out.size - 1]"),
    },
    right={
        "written into every second place": {
            "4.3": """
            codes = np.empty(2 * q.packed.size, np.uint8)
            codes[0::2], codes[1::2] = q.packed // 16, q.packed % 16
            values = code_table(q.quant_type)[codes[: out.size]]
            values = values * dequantized_absmax(q)[np.arange(out.size) // q.blocksize]
            """
        },
        "a table of pairs": {
            "4.3": """
            table = code_table(q.quant_type)
            pairs = np.stack([np.repeat(table, 16), np.tile(table, 16)], 1)
            scales = np.repeat(dequantized_absmax(q), q.blocksize)
            values = pairs[q.packed].reshape(-1)[: out.size] * scales[: out.size]
            """
        },
        "block by block": {
            "4.3": """
            absmax, table = dequantized_absmax(q), code_table(q.quant_type)
            values = np.zeros(out.size, np.float32)
            for i, scale in enumerate(absmax):
                start, stop = i * q.blocksize, min((i + 1) * q.blocksize, out.size)
                part = q.packed[start // 2 : (stop + 1) // 2]
                codes = np.column_stack([part >> 4, part & 0x0F]).ravel()[: stop - start]
                values[start:stop] = table.take(codes) * scale
            """
        },
    },
)


# -- 4.4 double quantization -------------------------------------------------------------------------------------------
def second(
    offset: str = "np.float32(q.absmax.mean(dtype=np.float64)) if q.absmax.size else np.float32(0)",
    rest: str = "q.absmax - offset",
    code: str = "create_dynamic_map()",
    blocksize: str = "NESTED_BLOCKSIZE",
    nested: str = "Nested(code, absmax, float(offset), NESTED_BLOCKSIZE)",
) -> dict[str, str]:
    """A solution of 4.4c."""
    return {
        "4.4c": f"""
offset = {offset}
code = {code}
codes, absmax = quantize_blockwise({rest}, code, {blocksize})
return q._replace(absmax=codes, nested={nested})
"""
    }


def bits(second: str, first: str = "-(-size // 2) * 8 + -(-size // blocksize) * 32") -> dict[str, str]:
    """A solution of 4.4e, by what is stored without and with double quantization; ``n`` is the number of blocks."""
    return {"4.4e": f"n = -(-size // blocksize)\nreturn {second} if compress_statistics else {first}"}


DOUBLE = Proof(
    wrong={
        "the mean is not taken away": second(rest="q.absmax"),
        "the mean is not kept": second(nested="Nested(code, absmax, 0.0, NESTED_BLOCKSIZE)"),
        "the middle of the range instead of the mean": second(
            "np.float32((q.absmax.max() + q.absmax.min()) / 2) if q.absmax.size else np.float32(0)"
        ),
        "the median": second("np.float32(np.median(q.absmax)) if q.absmax.size else np.float32(0)"),
        "the mean of nothing": second("np.float32(q.absmax.sum() / q.absmax.size)"),
        "blocks of the first size": second(
            blocksize="q.blocksize", nested="Nested(code, absmax, float(offset), q.blocksize)"
        ),
        "the table without a sign": second(code="create_dynamic_map(signed=False)"),
        "a table of equal steps": second(code="np.linspace(-1, 1, 256, dtype=np.float32)"),
        "the first absmax stays": {"4.4c": second()["4.4c"].replace("absmax=codes, ", "")},
        "a tie goes to the lower number": {
            "4.4a": "return np.searchsorted((code[:-1] + code[1:]) * np.float32(0.5), scaled).astype(np.uint8), absmax"
        },
        "rounded down": {"4.4a": "return (np.searchsorted(code, scaled, 'right') - 1).astype(np.uint8), absmax"},
        "codes as int64": {"4.4a": "return np.searchsorted(boundaries(code), scaled), absmax"},
        "codes may be looked up without absmax": {"4.4b": "return code[codes].reshape(shape)"},
        "absmax in turns": {
            "4.4b": "return (code[codes] * np.resize(absmax, codes.size).astype(np.float32)).reshape(shape)"
        },
        "the mean is not added": {
            "4.4d": "return dequantize_blockwise(q.absmax, q.nested.absmax, q.nested.code, q.absmax.shape, 256)"
        },
        "the mean is added before scaling": {
            "4.4d": """
            code, absmax, offset, blocksize = q.nested
            return (code[q.absmax] + np.float32(offset)) * np.repeat(absmax, blocksize)[: q.absmax.size]
            """
        },
        "no bits for the second absmax": bits("-(-size // 2) * 8 + n * 8 + 32"),
        "no bits for the offset": bits("-(-size // 2) * 8 + n * 8 + -(-n // 256) * 32"),
        "half a byte at the end": bits("4 * size + n * 8 + -(-n // 256) * 32 + 32", "4 * size + n * 32"),
        "the part of a block that is there": bits(
            "-(-size // 2) * 8 + n * 8 + -(-n // 256) * 32 + 32", "-(-size // 2) * 8 + size * 32 // blocksize"
        ),
        "a float": bits("4.127 * size", "4.5 * size"),
    },
    right={
        "nearest by two neighbours": {
            "4.4a": """
            edges = boundaries(code)
            return (scaled[:, None] > edges[None, :]).sum(axis=1).astype("uint8"), absmax
            """
        },
        "block by block": {
            "4.4b": """
            out = np.empty(codes.size, np.float32)
            for i, scale in enumerate(absmax):
                out[i * blocksize : (i + 1) * blocksize] = code[codes[i * blocksize : (i + 1) * blocksize]] * scale
            return out.reshape(shape)
            """
        },
        "the mean in float32": {
            "4.4c": """
            count = max(1, q.absmax.size)
            offset = np.float32(np.sum(q.absmax, dtype=float) / count)
            table = create_dynamic_map()
            small, top = quantize_blockwise(q.absmax - offset, table, 256)
            nested = Nested(table, top, float(offset), 256)
            return Quantized(q.packed, small, q.shape, q.blocksize, q.quant_type, nested)
            """
        },
        "the way back by hand": {
            "4.4d": """
            n = q.nested
            scales = np.repeat(n.absmax, n.blocksize)[: q.absmax.size]
            return n.code[q.absmax] * scales + np.float32(n.offset)
            """
        },
        "bits by math.ceil": {
            "4.4e": """
            def up(a, b):
                return (a + b - 1) // b

            blocks = up(size, blocksize)
            statistics = 8 * blocks + 32 * (up(blocks, 256) + 1) if compress_statistics else 32 * blocks
            return 8 * up(size, 2) + statistics
            """
        },
    },
)


# -- 4.5 the compiled loops --------------------------------------------------------------------------------------------
HEAD = """
for block in range(absmax.size):
    start, stop = block * blocksize, min((block + 1) * blocksize, x.size)
    top = largest(x, start, stop)
    absmax[block] = top
"""
LAST = """
    if stop % 2:
        code = 0
        for k in range(15):
            code += scaled(x[stop - 1], top) > middles[k]
        packed[stop // 2] = code << 4 | 7
"""
ONE_BY_ONE = """
    for i in range(start, stop):
        v = scaled(x[i], top)
        {search}
        if i % 2 == 0:
            packed[i // 2] = code << 4 | 7
        else:
            packed[i // 2] = packed[i // 2] & 0xF0 | code
"""
SLICES = """
    values, pairs = x[start:stop], packed[start // 2 : stop // 2]
    usual = f32(1) / top < f32(np.inf)
    scale, divisor = (f32(1) / top, f32(1)) if usual else (f32(1), max(top, f32(1e-45)))
    for j in range(pairs.size):
        even, odd = values[2 * j] * scale / divisor, values[2 * j + 1] * scale / divisor
        codes = np.int32(0)
        for k in range(15):
            codes += (np.int32(16) if even > middles[k] else np.int32(0)) + np.int32(odd > middles[k])
        pairs[j] = codes
"""


def changed(old: str, new: str) -> dict[str, str]:
    """The vectorised solution with something else in one place."""
    source = HEAD + SLICES + LAST
    assert old in source, old
    return {"4.5": source.replace(old, new)}


def one_by_one(search: str) -> dict[str, str]:
    """The largest magnitude once a block, but still one element at a time."""
    return {"4.5": HEAD + ONE_BY_ONE.format(search=search.replace("\n", "\n        "))}


COMPILED = Proof(
    wrong={
        "the slow loop again": {"4.5": "quantize_slowly(x, middles, blocksize, packed, absmax)"},
        "only the largest magnitude is hoisted": one_by_one(
            "code = 0\nfor k in range(15):\n    code += v > middles[k]"
        ),
        "a search that stops early": one_by_one("code = 0\nwhile code < 15 and v > middles[code]:\n    code += 1"),
        "a binary search": one_by_one("code = np.searchsorted(middles, v)"),
        "pairs, but on indices of the whole array": {
            "4.5": HEAD
            + """
    for j in range(start // 2, stop // 2):
        a, b = scaled(x[2 * j], top), scaled(x[2 * j + 1], top)
        high, low = 0, 0
        for k in range(15):
            high += a > middles[k]
            low += b > middles[k]
        packed[j] = high << 4 | low
"""
            + LAST
        },
        "expressions of whole arrays": {
            "4.5": """
            for block in range(absmax.size):
                values = x[block * blocksize : (block + 1) * blocksize]
                top = np.abs(values).max()
                absmax[block] = top
                codes = np.full(values.size + values.size % 2, 7, np.uint8)
                for i in range(values.size):
                    codes[i] = (scaled(values[i], top) > middles).sum()
                start = block * blocksize // 2
                packed[start : start + codes.size // 2] = codes[::2] << 4 | codes[1::2]
            """
        },
        "a buffer for the scaled numbers": {
            "4.5": """
            buffer = np.empty(x.size, np.float32)
            quantize_slowly(x, middles, blocksize, packed, absmax)
            for i in range(x.size):
                buffer[i] = x[i]
            """
        },
        "x >= middle": changed("odd > middles[k]", "odd >= middles[k]"),
        "the halves of a byte are exchanged": {
            "4.5": (HEAD + SLICES + LAST)
            .replace("np.int32(16) if even >", "np.int32(16) if odd >")
            .replace("np.int32(odd >", "np.int32(even >")
        },
        "the last half byte is forgotten": {"4.5": HEAD + SLICES},
        "filled up with 0": changed("code << 4 | 7", "code << 4"),
        "always the reciprocal": changed("f32(1) / top < f32(np.inf)", "True"),
        "always divided": changed("f32(1) / top < f32(np.inf)", "False"),
        "writes beyond the last block": changed("min((block + 1) * blocksize, x.size)", "(block + 1) * blocksize"),
        "absmax without abs": {"4.5": (HEAD + SLICES + LAST).replace("largest(x, start, stop)", "x[start:stop].max()")},
        "no code 15": changed("range(15):\n            codes", "range(14):\n            codes"),
        "is not compiled": {"4.5": "import numpy\nabsmax[:] = numpy.maximum.reduceat(numpy.abs(x), [0])"},
    },
    right={
        "a fast path and a slow one": {
            "4.5": HEAD
            + """
    scale = f32(1) / top
    if scale < f32(np.inf) and stop % 2 == 0:
        values, pairs = x[start:stop], packed[start // 2 : stop // 2]
        for j in range(len(pairs)):
            a, b = values[2 * j] * scale, values[2 * j + 1] * scale
            high, low = np.int32(0), np.int32(0)
            for k in range(15):
                high += np.int32(a > middles[k])
                low += np.int32(b > middles[k])
            pairs[j] = high << np.int32(4) | low
    else:
        bytes_ = packed[start // 2 : (stop + 1) // 2]
        quantize_slowly(x[start:stop], middles, blocksize, bytes_, absmax[block : block + 1])
"""
        },
        "a function for one code": {
            "4.5": """
            def code_of(value):
                code = np.int32(0)
                for k in range(15):
                    code += np.int32(1) if value > middles[k] else np.int32(0)
                return code

            for block in range(absmax.size):
                first, end = block * blocksize, min(x.size, block * blocksize + blocksize)
                part, out = x[first:end], packed[first // 2 : end // 2]
                absmax[block] = largest(x, first, end)
                scale, divisor = f32(1) / absmax[block], f32(1)
                if not scale < f32(np.inf):
                    scale, divisor = f32(1), absmax[block] if absmax[block] > f32(0) else f32(1)
                for j in range(out.size):
                    high, low = part[2 * j] * scale / divisor, part[2 * j + 1] * scale / divisor
                    out[j] = code_of(high) * np.int32(16) + code_of(low)
                if end & 1:
                    packed[end // 2] = code_of(part[part.size - 1] * scale / divisor) << 4 | 7
            """
        },
        "the rest byte by the slow loop": {
            "4.5": HEAD
            + SLICES
            + """
    if stop & 1:
        bytes_ = packed[start // 2 : (stop + 1) // 2]
        quantize_slowly(x[start:stop], middles, blocksize, bytes_, absmax[block : block + 1])
"""
        },
    },
)


# -- 4.6 the backward pass ---------------------------------------------------------------------------------------------
def rows(start: str, stop: str, cut: str = "first * k - before : last * k - before") -> dict[str, str]:
    """A solution of 4.6a, by its first block, the end of its blocks and what is cut out of them."""
    return {
        "4.6a": f"""
n, k = q.shape
start, stop = {start}, {stop}
before, size = start * q.blocksize, min(stop * q.blocksize, n * k) - start * q.blocksize
packed = q.packed[before // 2 : (before + size + 1) // 2]
part = q._replace(packed=packed, absmax=q.absmax[start:stop], shape=(size,))
return dequantize_4bit(part)[{cut}].reshape(last - first, k)
"""
    }


FIRST, END = "first * k // q.blocksize", "-(-last * k // q.blocksize)"
WHOLE = "dequantize_4bit(q).astype(grad.dtype, copy=False)"


def passes(
    dx: str, da: str = "dxa.T @ rows", db: str = "s * (g.T @ rows_of(xa))", loop: str = "TILE"
) -> dict[str, str]:
    """A solution of 4.6b: ``dx`` is what each tile of rows W adds to."""
    return {
        "4.6b": f"""
s = grad.dtype.type(scaling)
g, rows = rows_of(grad), rows_of(x)
dxa = s * (g @ lora_b)
dx = np.zeros(rows.shape, g.dtype) if needs[0] else None
for first in range(0, q.shape[0] if needs[0] else 0, {loop}):
    last = min(first + {loop}, q.shape[0])
    W = weight_rows(q, first, last).astype(g.dtype, copy=False)
    {dx}
return (
    (dx + dxa @ lora_a).reshape(x.shape) if needs[0] else None,
    {da} if needs[1] else None,
    {db} if needs[2] else None,
)
"""
    }


ADDED = "dx += g[:, first:last] @ W"

BACKWARD = Proof(
    wrong={
        "blocks begin with rows": rows("first * -(-k // q.blocksize)", "last * -(-k // q.blocksize)"),
        "the first block is not whole": rows(FIRST, END, cut="0 : (last - first) * k"),
        "the last block is missing": rows(FIRST, "last * k // q.blocksize"),
        "rounded up at the front": rows("-(-first * k // q.blocksize)", END),
        "bytes cut in the middle": {
            "4.6a": """
            k = q.shape[1]
            part = q._replace(
                packed=q.packed[first * k // 2 : (last * k + 1) // 2],
                absmax=q.absmax[first * k // q.blocksize : -(-last * k // q.blocksize)],
                shape=(last - first, k),
            )
            return dequantize_4bit(part)
            """
        },
        "the whole weight is dequantized": {"4.6a": "return dequantize_4bit(q)[first:last]"},
        "the weight is held in full": {
            "4.6b": f"""
            s = grad.dtype.type(scaling)
            g, rows = rows_of(grad), rows_of(x)
            dxa = s * (g @ lora_b)
            dx = (g @ {WHOLE} + dxa @ lora_a).reshape(x.shape) if needs[0] else None
            return dx, dxa.T @ rows if needs[1] else None, s * (g.T @ rows_of(xa)) if needs[2] else None
            """
        },
        "one tile of all rows": passes(ADDED, loop="q.shape[0]"),
        "tiles are collected first": {
            "4.6b": """
            s = grad.dtype.type(scaling)
            g, rows = rows_of(grad), rows_of(x)
            dxa = s * (g @ lora_b)
            dx = None
            if needs[0]:
                N = q.shape[0]
                W = np.concatenate([weight_rows(q, i, min(i + TILE, N)) for i in range(0, N, TILE)])
                dx = (g @ W.astype(g.dtype, copy=False) + dxa @ lora_a).reshape(x.shape)
            return dx, dxa.T @ rows if needs[1] else None, s * (g.T @ rows_of(xa)) if needs[2] else None
            """
        },
        "the last tile only": passes("dx = g[:, first:last] @ W"),
        "the low-rank part once a tile": passes("dx += g[:, first:last] @ W + dxa @ lora_a"),
        "the last rows are left out": passes(f"if last % TILE == 0: {ADDED}"),
        "dx without the base": passes("pass"),
        "the scaling is missing in dB": passes(ADDED, db="g.T @ rows_of(xa)"),
        "the scaling is there twice in dA": passes(ADDED, da="s * dxa.T @ rows"),
        "dA and dB are exchanged": passes(ADDED, da="s * (g.T @ rows_of(xa))", db="dxa.T @ rows"),
        "float64 for float32": passes(ADDED, da="float(scaling) * (g.astype(float) @ lora_b).T @ rows"),
        "needs is ignored": {
            "4.6b": """
            s = grad.dtype.type(scaling)
            g, rows = rows_of(grad), rows_of(x)
            dxa = s * (g @ lora_b)
            dx = dxa @ lora_a
            for first in range(0, q.shape[0], TILE):
                last = min(first + TILE, q.shape[0])
                dx += g[:, first:last] @ weight_rows(q, first, last).astype(g.dtype)
            return dx.reshape(x.shape), dxa.T @ rows, s * (g.T @ rows_of(xa))
            """
        },
    },
    right={
        "row by row": {
            "4.6a": """
            n, k = q.shape
            out = np.empty((last - first, k), np.float32)
            for row in range(first, last):
                a, b = row * k // q.blocksize, -(-(row + 1) * k // q.blocksize)
                size = min(b * q.blocksize, n * k) - a * q.blocksize
                packed = q.packed[a * q.blocksize // 2 :][: (size + 1) // 2]
                part = dequantize_4bit(q._replace(packed=packed, absmax=q.absmax[a:b], shape=(size,)))
                out[row - first] = part[row * k - a * q.blocksize :][:k]
            return out
            """
        },
        "the whole number of blocks, then sliced": rows(
            FIRST, END, cut="first * k % q.blocksize :][: (last - first) * k"
        ),
        "the low-rank part at the end": passes(ADDED),
        "half a tile, einsum": passes("dx += np.einsum('rn,nk->rk', g[:, first:last], W)", loop="(TILE // 2)"),
        "columns of dx from a generator": {
            "4.6b": """
            g, rows, u = rows_of(grad), rows_of(x), rows_of(xa)
            below = (g @ lora_b) * np.asarray(scaling, g.dtype)
            parts = ((i, min(i + TILE, q.shape[0])) for i in range(0, q.shape[0], TILE))
            dx = da = db = None
            if needs[0]:
                dx = sum((g[:, i:j] @ weight_rows(q, i, j).astype(g.dtype) for i, j in parts), below @ lora_a)
                dx = dx.reshape(x.shape)
            if needs[1]:
                da = below.T @ rows
            if needs[2]:
                db = np.asarray(scaling, g.dtype) * (g.T @ u)
            return dx, da, db
            """
        },
    },
)


# -- 4.7 the kernel for the GPU ----------------------------------------------------------------------------------------
TILE = """
rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)[:, None]
columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
i = tl.arange(0, BLOCK_RANK)
low = tl.load(xa + rows * r + i[None, :], mask=(rows < R) & (i[None, :] < r), other=0.0)
up = tl.load(b + columns * r + i[:, None], mask=(columns < N) & (i[:, None] < r), other=0.0)
total = tl.dot(low, up, out_dtype=tl.float32) * scaling
for start in range(0, K, BLOCK_K):
    k = start + tl.arange(0, BLOCK_K)
    left = tl.load(x + rows * K + k[None, :], mask=(rows < R) & (k[None, :] < K), other=0.0)
    right = tl.load(w + columns * K + k[:, None], mask=(columns < N) & (k[:, None] < K), other=0.0)
    total = tl.dot(left, right, total)
tl.store(y + rows * N + columns, total.to(y.dtype.element_ty), mask=(rows < R) & (columns < N))
"""


def tile(old: str, new: str) -> dict[str, str]:
    """A solution of 4.7 with something else in one place."""
    assert old in TILE, old
    return {"4.7": TILE.replace(old, new)}


TRITON = Proof(
    wrong={
        "no mask for K in x": tile("mask=(rows < R) & (k[None, :] < K)", "mask=(rows < R) & (k[None, :] >= 0)"),
        "no mask for K in w": tile("mask=(columns < N) & (k[:, None] < K)", "mask=(columns < N) & (k[:, None] >= 0)"),
        "no mask for rows in x": tile("mask=(rows < R) & (k[None, :] < K)", "mask=(rows >= 0) & (k[None, :] < K)"),
        "no mask for the rank": tile("mask=(rows < R) & (i[None, :] < r)", "mask=(rows < R) & (i[None, :] >= 0)"),
        "no mask for the store": tile(", mask=(rows < R) & (columns < N))", ")"),
        "a mask for the rows of the store only": tile(
            "mask=(rows < R) & (columns < N))", "mask=(rows < R) & (columns >= 0))"
        ),
        "rows and columns are exchanged": tile("tl.program_id(0)", "tl.program_id(1)"),
        "the first tile only": tile("tl.program_id(1) * BLOCK_N + ", ""),
        "blocks of 16, whatever the size": tile("range(0, K, BLOCK_K)", "range(0, K, 16)"),
        "the rest of K is left out": tile("range(0, K, BLOCK_K)", "range(0, K // BLOCK_K * BLOCK_K, BLOCK_K)"),
        "one step over K": tile("range(0, K, BLOCK_K)", "range(0, 1)"),
        "the scaling is forgotten": tile(" * scaling", ""),
        "the base is scaled too": tile("total.to(y.dtype.element_ty)", "(total * scaling).to(y.dtype.element_ty)"),
        "the low-rank part is overwritten": tile("total = tl.dot(left, right, total)", "total = tl.dot(left, right)"),
        "the low-rank part once a step": tile(
            "total = tl.dot(left, right, total)", "total = tl.dot(left, right, total) + tl.dot(low, up) * scaling"
        ),
        "b is not transposed": tile("b + columns * r + i[:, None]", "b + i[:, None] * N + columns"),
        "x with the stride of w": tile("x + rows * K", "x + rows * N"),
        "sums in the type of x": tile(
            "total = tl.dot(left, right, total)", "total = (total + tl.dot(left, right)).to(y.dtype.element_ty)"
        ),
    },
    right={
        "pointers that move": {
            "4.7": """
            row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
            column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
            k = tl.arange(0, BLOCK_K)
            xs = x + row[:, None] * K + k[None, :]
            ws = w + column[None, :] * K + k[:, None]
            total = tl.zeros((BLOCK_R, BLOCK_N), tl.float32)
            for start in range(0, K, BLOCK_K):
                inside = k < K - start
                left = tl.load(xs, mask=(row[:, None] < R) & inside[None, :], other=0.0)
                right = tl.load(ws, mask=(column[None, :] < N) & inside[:, None], other=0.0)
                total += tl.dot(left, right)
                xs += BLOCK_K
                ws += BLOCK_K
            i = tl.arange(0, BLOCK_RANK)
            low = tl.load(xa + row[:, None] * r + i[None, :], mask=(row[:, None] < R) & (i[None, :] < r), other=0.0)
            up = tl.load(b + column[None, :] * r + i[:, None], mask=(column[None, :] < N) & (i[:, None] < r), other=0.0)
            total += tl.dot(low, up) * scaling
            inside = (row[:, None] < R) & (column[None, :] < N)
            tl.store(y + row[:, None] * N + column[None, :], total, mask=inside)
            """
        },
        "w as it lies, transposed in registers": tile(
            "right = tl.load(w + columns * K + k[:, None], mask=(columns < N) & (k[:, None] < K), other=0.0)",
            """across = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
    right = tl.trans(tl.load(w + across * K + k[None, :], mask=(across < N) & (k[None, :] < K), other=0.0))""",
        ),
        "a while loop, float32 from the start": {
            "4.7": TILE.replace("for start in range(0, K, BLOCK_K):", "start = 0\nwhile start < K:").replace(
                "    total = tl.dot(left, right, total)",
                "    total += tl.dot(left.to(tl.float32), right.to(tl.float32))\n    start += BLOCK_K",
            )
        },
        "one program's rows wrap around": {
            "4.7": TILE.replace("x + rows * K", "x + (rows % R) * K").replace(
                "w + columns * K", "w + (columns % N) * K"
            )
        },
    },
)

PROOFS = {
    "4.1": TABLE,
    "4.2": QUANTIZE,
    "4.3": DEQUANTIZE,
    "4.4": DOUBLE,
    "4.5": COMPILED,
    "4.6": BACKWARD,
    "4.7": TRITON,
}
