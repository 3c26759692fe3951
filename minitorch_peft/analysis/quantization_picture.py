"""Four bits in one picture: the error of a weight, what a model loses by it, and what adapters give back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from minitorch_peft.analysis.picture import COLOURS, INK
from minitorch_peft.analysis.quantization import QUANT_TYPES

NAMES = {"nf4": "NF4", "fp4": "FP4", "int4": "int4", "float32": "float32"}
COLOUR = dict(zip(QUANT_TYPES, COLOURS, strict=False)) | {"float32": INK}


def draw(
    errors: Sequence[Mapping[str, Any]], models: Sequence[Mapping[str, Any]], adapted: Sequence[Any], path: Path
) -> None:
    """Save the picture of ``rounding_errors``, ``quantized_models`` and a comparison's ``summary.rows``."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}):
        figure = Figure(figsize=(13, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        error_by_bits(left, errors)
        lost(middle, models)
        given_back(right, adapted)
        for axes in figure.axes:
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, dpi=150)


def error_by_bits(axes: Any, errors: Sequence[Mapping[str, Any]]) -> None:
    """Lines: normal weights, by blocksize. Dots: the model's."""
    for quant_type in QUANT_TYPES:
        for weights, style in (("normal", "-"), ("model", "o")):
            chosen = [r for r in errors if (r["weights"], r["quant_type"], r["double"]) == (weights, quant_type, False)]
            bits, relative = [r["bits"] for r in chosen], [100 * r["relative_error"] for r in chosen]
            label = NAMES[quant_type] if style == "-" else None
            axes.plot(bits, relative, style, color=COLOUR[quant_type], label=label, markersize=4)
    nested = next(
        r for r in errors if (r["weights"], r["quant_type"], r["blocksize"], r["double"]) == ("normal", "nf4", 64, True)
    )
    axes.plot(nested["bits"], 100 * nested["relative_error"], "*", color=COLOUR["nf4"], markersize=12, zorder=3)
    text = f"QLoRA: blocks of 64,\ndouble quantization\n({nested['bits']:.3f} bits)"
    at = (nested["bits"], 100 * nested["relative_error"])
    axes.annotate(text, at, xytext=(10, -34), textcoords="offset points", fontsize="small")
    axes.set_ylim(bottom=7)
    axes.set_title("error of a weight", loc="left", fontweight="bold")
    axes.set_xlabel("bits stored for a weight (blocks of 4096 to 32)")
    axes.set_ylabel("rounding, % of the weights (root mean square)")
    axes.legend(title="lines: normal weights\ndots: the tiny GPT's", frameon=False)


def lost(axes: Any, models: Sequence[Mapping[str, Any]]) -> None:
    """Bits per byte of the quantized model on the text that it was trained for."""
    shown = [m for m in models if not m["double"]]
    values = [m["bits_per_byte"]["modern"] for m in shown]
    bars = axes.bar([NAMES[m["quant_type"]] for m in shown], values, color=[COLOUR[m["quant_type"]] for m in shown])
    axes.bar_label(bars, fmt="%.3f", padding=2)
    axes.set_ylim(0.95 * min(values), 1.02 * max(values))
    axes.set_title("the model, quantized", loc="left", fontweight="bold")
    axes.set_ylabel("bits per byte, modern English (axis cut)")


def given_back(axes: Any, adapted: Sequence[Any]) -> None:
    """Bits per byte on held-out books of the other English, after adapting."""
    values = [row.bits["held_out"] for row in adapted]
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(adapted))]
    spread = [value.std or 0.0 for value in values]
    axes.bar([r.contender.title for r in adapted], [v.mean for v in values], yerr=spread, color=colours, capsize=4)
    for i, value in enumerate(values):
        axes.annotate(value.text(2), (i, 0.05), ha="center", color="white", fontsize="small")
    axes.tick_params("x", labelrotation=20)
    axes.set_title("after adapting to 1395", loc="left", fontweight="bold")
    axes.set_ylabel("bits per byte on held-out books")
