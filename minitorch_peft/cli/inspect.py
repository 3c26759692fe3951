"""``minitorch-peft inspect``: what is in a model, an adapter or a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minitorch_peft.cli.errors import FILE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    import numpy as np

    from minitorch_peft.models import GPT
    from minitorch_peft.peft import PeftModel
    from minitorch_peft.peft.saving import Together

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass
class Found:
    """What a path holds: its kind, settings, arrays' shapes by name, the files and what else is known."""

    kind: str
    files: list[Path]
    settings: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    notes: dict[str, Any] = field(default_factory=dict)


def inspect(
    path: Annotated[str, typer.Argument(help="Embedded checkpoint, folder, or .safetensors file.")],
    base: Annotated[
        str | None, typer.Option(help="Of an adapter: count its share of this model. Default: its own base.")
    ] = None,
    depth: Annotated[int, typer.Option(min=1, help="Levels of the tree of modules.")] = 3,
    check: Annotated[
        bool,
        typer.Option("--check", help="Of an adapter: does all of it land in its base, and does it change anything?"),
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Show what a model, an adapter or a training checkpoint holds: settings, parameters by module, files.

    Examples:

        minitorch-peft inspect tiny
        minitorch-peft inspect runs/compare/lora-r16/seed-0 --check
        minitorch-peft inspect runs/adapt/lora-wyc/run/step-00000100.safetensors --depth 5
    """
    screen = Screen(json)
    if check:
        return show_check(screen, Path(path), base)
    found = look(path, base)
    total = sum(map(prod, found.shapes.values()))
    screen.say(f"[bold]{found.kind}[/bold] {path}: {total:,} parameters")
    for file in found.files:
        shown = file.relative_to(path) if Path(path) in file.parents else file.name
        screen.say(f"  {shown}  {file.stat().st_size:,} bytes", markup=False)
    for name, value in found.notes.items():
        screen.say(f"  {name}: {value}", markup=False)
    several = found.settings if found.kind == "adapters" else {"": found.settings}
    for name, settings in several.items() if found.settings else ():
        heading = f"settings of {name}" if name else "settings"
        screen.say(f"  {heading}: " + " ".join(f"{k}={v}" for k, v in settings.items()), markup=False)
    screen.say(tree(found.shapes, depth))
    screen.result(
        {
            "kind": found.kind, "parameters": total, "files": {str(f): f.stat().st_size for f in found.files},
            "settings": found.settings, **found.notes, "shapes": {n: list(s) for n, s in found.shapes.items()},
        }
    )  # fmt: skip


def show_check(screen: Screen, path: Path, base: str | None) -> None:
    """The findings for an adapter's folder; code 3 where there is a failure among them."""
    from minitorch_peft.cli.loading import base_of
    from minitorch_peft.peft import PeftModel
    from minitorch_peft.peft.check import check_file

    model, name = base_of(base, path)
    report = check_file(PeftModel(model), path)
    screen.say(f"{path} on {name}: {report}", markup=False, soft_wrap=True)
    screen.result({"ok": report.ok, "base": name, "findings": [asdict(finding) for finding in report.findings]})
    if not report.ok:
        raise typer.Exit(FILE)


def look(name: str, base: str | None) -> Found:
    """Tell what ``name`` is from the files that are there."""
    from minitorch_peft.models.pretrained import embedded_names
    from minitorch_peft.peft.saving import saved_together

    path = Path(name)
    if name in embedded_names() or (path.is_file() and path.with_suffix(".json").is_file()):
        return embedded(name)
    if path.is_file():
        return checkpoint(path)
    if together := saved_together(path):
        return adapters(path, base, together)
    if (path / "adapter_config.json").is_file():
        return adapter(path, base)
    if (path / "config.json").is_file():
        return model_folder(path)
    raise CommandError(
        f"{name}: nothing to inspect; expected an embedded checkpoint ({', '.join(embedded_names()) or 'none here'}), "
        "a folder with config.json, adapter_config.json or adapters.json, or a .safetensors file",
        FILE,
    )


def embedded(name: str) -> Found:
    from minitorch_peft.formats.files import read_json
    from minitorch_peft.models import GPT
    from minitorch_peft.models.pretrained import EMBEDDED

    path = Path(name) if Path(name).is_file() else EMBEDDED / f"{name}.safetensors"
    model, card = GPT.from_pretrained(name), path.with_suffix(".json")
    notes = {key: value for key, value in read_json(card).items() if key != "config"}
    return Found("embedded checkpoint", [path, card], model.config.to_dict(), shapes_of(model), notes)


def model_folder(path: Path) -> Found:
    from minitorch_peft.models import GPT
    from minitorch_peft.quant import bits_per_parameter, quantized_layers

    model = GPT.from_pretrained(path)
    files = [f for f in sorted(path.iterdir()) if f.is_file()]
    layers, notes = quantized_layers(model), {}
    if layers:
        notes = {"layers_in_four_bits": len(layers), "bits_per_weight": round(bits_per_parameter(model), 3)}
    return Found("model", files, model.config.to_dict(), shapes_of(model), notes)


def adapter(path: Path, base: str | None) -> Found:
    from minitorch_peft.cli.loading import load_adapted
    from minitorch_peft.peft.inject import packed_sizes
    from minitorch_peft.peft.registry import method_of

    model, base = load_adapted(base, path)
    attached = model.adapters["default"]
    own = shapes({name: p.data for name, p in attached.named_parameters().items()})
    method = method_of(attached.config)
    notes = {
        "method": method.name,
        "base": base,
        "percent_of_base": percent(own, model),
        "mergeable": method.mergeable,
        "base_in_four_bits": bool(packed_sizes(model.base_model)),
    }
    return Found("adapter", [path / n for n in ADAPTER_FILES], attached.config.to_dict(), own, notes)


def adapters(path: Path, base: str | None, together: Together) -> Found:
    """Adapters that were saved together, in their order: each stands around those before it."""
    from minitorch_peft.cli.loading import load_adapted
    from minitorch_peft.peft.inject import packed_sizes
    from minitorch_peft.peft.registry import method_of

    model, base = load_adapted(base, path)
    parts = {name: model.adapters[name] for name in together.names}
    own = shapes({f"{name}.{n}": p.data for name, part in parts.items() for n, p in part.named_parameters().items()})
    notes = {
        "methods": {name: method_of(part.config).name for name, part in parts.items()},
        "active": list(together.active),
        "base": base,
        "percent_of_base": percent(own, model),
        "base_in_four_bits": bool(packed_sizes(model.base_model)),
    }
    files = [path / "adapters.json", *(path / name / file for name in parts for file in ADAPTER_FILES)]
    return Found("adapters", files, {name: part.config.to_dict() for name, part in parts.items()}, own, notes)


def percent(own: Mapping[str, tuple[int, ...]], model: PeftModel) -> float:
    """The share of ``own`` numbers of those of the base."""
    from minitorch_peft.peft.inject import parameter_sizes

    return round(100 * sum(map(prod, own.values())) / sum(parameter_sizes(model.base_model).values()), 3)


def checkpoint(path: Path) -> Found:
    """A checkpoint of a training run, or any other safetensors file."""
    from minitorch_peft.formats.files import read_arrays, read_metadata
    from minitorch_peft.training.checkpoint import read_checkpoint

    if "minitorch_peft" not in read_metadata(path):
        return Found("safetensors file", [path], {}, shapes(read_arrays(path)))
    found = read_checkpoint(path)
    state = {f"run {key}": value for key, value in found.info["state"].items()}
    settings = found.info["fingerprint"]["config"]
    return Found("training checkpoint", [path], settings, shapes(found.part("model")), state)


def shapes_of(model: GPT) -> dict[str, tuple[int, ...]]:
    """Name to shape of every parameter, weights in four bits as what they stand for."""
    from minitorch_peft.quant import quantized_layers

    packed = {f"{path}.weight": layer.weight.shape for path, layer in quantized_layers(model).items()}
    return shapes({name: p.data for name, p in model.named_parameters()}) | packed


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in arrays.items()}


def tree(shapes: Mapping[str, tuple[int, ...]], depth: int) -> Any:
    """Parameters by module, ``depth`` levels deep, with the shape of each parameter that is reached."""
    from rich.table import Table

    sums: dict[str, int] = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        for level in range(1, min(depth, len(parts)) + 1):
            key = ".".join(parts[:level])
            sums[key] = sums.get(key, 0) + prod(shape)
    table = Table(box=None, padding=(0, 2))
    for heading, justify in (("module", "left"), ("parameters", "right"), ("shape", "left")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for key, count in sums.items():
        sizes = " x ".join(map(str, shapes[key])) if key in shapes else ""
        table.add_row("  " * key.count(".") + key.rpartition(".")[2], f"{count:,}", sizes)
    return table
