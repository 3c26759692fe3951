"""What each Triton kernel must at least take on an H100 and an A100, beside what its peers launch for the same.

    python -m benchmarks.roofline [--shape N K] [--rank R] [--results FOLDER]

Counted, not measured: bytes, operations and instructions of every launch, and the time of the slowest of the three
(``minitorch_peft.kernels.device.roofline``). What a launch itself costs, a few microseconds, is in no figure: those of
small shapes say little. The table and the picture, results/roofline.png, show one weight (N, K) and rank;
results/roofline.json has all of them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from minitorch_peft.kernels.device.peers import PEERS
from minitorch_peft.kernels.device.roofline import A100, H100, Total, total
from minitorch_peft.kernels.device.traffic import OURS

GPUS = (H100, A100)
ROWS, RANKS = (1, 16, 64, 256, 1024, 4096), (8, 16, 64)
WEIGHTS = {
    "Llama 3 8B": [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)],
    "SmolLM2 135M": [(576, 576), (192, 576), (1536, 576), (576, 1536)],
    "GPT 6 x 384": [(384, 384), (1536, 384), (384, 1536)],
}
"""Model -> outputs and inputs (N, K) of its linear layers."""
US = "this package"
COLORS = {US: "#1b4f8f", "peft": "#d1603d", "unsloth": "#3c8a5d", "LoRAFusion": "#8458a5", "bitsandbytes": "#c28317"}


def ways(kernel: str, m: int, n: int, k: int, r: int, gpu: Any) -> dict[str, Total]:
    """What ``kernel`` takes here, and what the same takes by the peers."""
    counts = {US: OURS[kernel], **PEERS.get(kernel, {})}
    return {name: total(count(m, n, k, r), gpu) for name, count in counts.items()}


COLUMNS = ("kernel", "n", "k", "m", "r", "megabytes", "flop/byte",
           *(f"{gpu.name} {what}" for gpu in GPUS for what in ("bound", "us", "peers us")))  # fmt: skip


def row(kernel: str, m: int, n: int, k: int, r: int) -> list[Any]:
    """The figures under COLUMNS: of one kernel, m rows and rank r (0 where it has none)."""
    each = [ways(kernel, m, n, k, r, gpu) for gpu in GPUS]
    ours = each[0][US]
    times = []
    for found in each:
        us = {name: round(1e6 * way.seconds, 2) for name, way in found.items()}
        times += [found[US].bound, us.pop(US), us]
    return [kernel, n, k, m, r, round(ours.nbytes / 1e6, 3), round(ours.intensity, 1), *times]


def rows(n: int, k: int, ranks: tuple[int, ...] = RANKS) -> list[list[Any]]:
    """All kernels on the weight (n, k): those with a rank for each of ``ranks``, those that read x for each of ROWS."""
    return [
        row(kernel, m, n, k, r)
        for kernel in OURS
        for r in (ranks if kernel.startswith("lora") else (0,))
        for m in (ROWS if kernel != "dequantize_4bit" else (0,))
    ]


def show(table: list[list[Any]]) -> None:
    """Print rows; a peer's figure is how many times longer its launches take on the H100 than ours."""
    print(f"{'kernel':32s}{'rows':>6s}{'rank':>5s}{'MB':>8s}{'flop/B':>8s}", end="")
    print("".join(f"{gpu.name + ' us':>10s} {'bound':8s}" for gpu in GPUS), "peer's time / ours, H100")
    for kernel, _, _, m, r, megabytes, intensity, bound, us, peers, a100_bound, a100_us, _ in table:
        print(f"{kernel:32s}{m or '':>6}{r or '':>5}{megabytes:8.1f}{intensity:8.1f}{us:10.1f} {bound:8s}", end="")
        print(
            f"{a100_us:10.1f} {a100_bound:8s}", "  ".join(f"{name} {theirs / us:.2f}" for name, theirs in peers.items())
        )


def picture(n: int, k: int, r: int, path: Path) -> None:
    """The roof with what stands under it, the time by the number of rows, the time of all kernels at the most rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 5), layout="constrained")
    figure.suptitle(f"Weight {n} x {k}, rank {r}, bfloat16, H100: counted bounds; nothing here has run on a GPU")
    left, middle, right = figure.subplots(1, 3)
    kernel = "lora_linear_4bit_forward"
    series = [ways(kernel, m, n, k, r, H100) for m in ROWS]
    draw_roof(left, series)
    for name in series[0]:
        middle.loglog(ROWS, [1e6 * found[name].seconds for found in series], "o-", color=COLORS[name], label=name)
    middle.set_xticks(ROWS, map(str, ROWS))
    middle.set(title="Time by the number of rows", xlabel="rows", ylabel="microseconds")
    draw_times(right, {kernel: ways(kernel, max(ROWS), n, k, r, H100) for kernel in PEERS})
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (left, middle):
        axes.set_title(f"{axes.get_title()}\n{kernel}", fontsize=10)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def draw_roof(axes: Any, series: list[dict[str, Total]]) -> None:
    """Operations a second over operations a byte: one launch that does it all stands at the roof, several under it."""
    x = [0.1, H100.tensor / H100.bandwidth, 5000]
    axes.loglog(x, [min(H100.tensor, H100.bandwidth * i) / 1e12 for i in x], color="0.3", label="roof")
    for name in series[0]:
        points = [(found[name].intensity, found[name].flops / found[name].seconds / 1e12) for found in series]
        axes.plot(*zip(*points, strict=True), "o:", color=COLORS[name], lw=0.8, label=name)
    axes.set(title=f"Roofline, {min(ROWS)} to {max(ROWS)} rows", xlabel="operations a byte",
             ylabel="10¹² operations a second")  # fmt: skip


def draw_times(axes: Any, kernels: dict[str, dict[str, Total]]) -> None:
    """Bars of microseconds, a group for each kernel."""
    ticks, place = [], 0.0
    for kernel, found in kernels.items():
        ticks.append(
            (place + (len(found) - 1) / 2, kernel.replace("_4bit", "_4bit\n").replace("linear_f", "linear\n_f"))
        )
        for name, way in found.items():
            axes.barh(place, 1e6 * way.seconds, color=COLORS[name])
            axes.text(1e6 * way.seconds, place, f" {name} {1e6 * way.seconds:.0f}", va="center", fontsize=8)
            place += 1
        place += 0.8
    axes.set_yticks(*zip(*ticks, strict=True), fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set(title=f"Time, {max(ROWS)} rows", xlabel="microseconds")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=2, default=(4096, 4096), metavar=("N", "K"))
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args(argv)
    n, k = options.shape
    show(rows(n, k, (options.rank,)))
    models = {model: [each for shape in shapes for each in rows(*shape)] for model, shapes in WEIGHTS.items()}
    (options.results / "roofline.json").write_text(as_json(models))
    picture(n, k, options.rank, options.results / "roofline.png")


def as_json(models: dict[str, list[list[Any]]]) -> str:
    """A line for each row."""
    tables = (f"{json.dumps(model)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for model, rows in models.items())
    return f'{{"columns": {json.dumps(COLUMNS)},\n' + ",\n".join(tables) + "}\n"


if __name__ == "__main__":
    main()
