"""``minitorch-peft adapt``: one method, one text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.progress import training_progress
from minitorch_peft.cli.screen import JsonFlag, ResumeFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.analysis.texts import Texts
    from minitorch_peft.data.tokenizer import Tokenizer
    from minitorch_peft.models import GPT
    from minitorch_peft.peft import PeftModel


def adapt(
    method: Annotated[str, typer.Option(help="full, lora, qlora, bitfit, partial, ...")] = "lora",
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, or of a 4-bit base: NAME=VALUE.")
    ] = None,
    base: Annotated[str, typer.Option(help="Embedded checkpoint, or folder of a model.")] = "tiny",
    corpus: Annotated[str, typer.Option(help="Translation: wyc (1395), tyn, kjv, ylt, web.")] = "wyc",
    text: Annotated[
        Path | None, typer.Option(help="A text file of your own instead; its last tenth is held out.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json. Default: the base's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: runs/adapt/METHOD-TEXT.")] = None,
    resume: ResumeFlag = False,
    steps: Annotated[int, typer.Option(min=1, help="Updates.")] = 100,
    lr: Annotated[float | None, typer.Option(help="Peak rate. Default: the method's in compare.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd, adamw_bnb_8bit, paged_adamw_32bit or _8bit.")] = "adamw",
    schedule: Annotated[str, typer.Option(help="linear, cosine or constant.")] = "linear",
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the peak rate.")] = 5,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = 128,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between looks at held-out text.")] = 25,
    patience: Annotated[int, typer.Option(min=0, help="Stop after so many looks without a new best; 0: never.")] = 0,
    eval_rows: Annotated[int, typer.Option(min=1, help="Rows that a look takes.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the adapter's start and the order of the text.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Adapt a base model to another English, or to a text of your own, by one method.

    OUT gets the adapter (`adapter_config.json`, `adapter_model.safetensors`) with the weights of the best look,
    result.json, and run/ with checkpoints and a line of metrics for each step. Killed or stopped with Ctrl-C, it
    goes on with `--resume` and the same options. `--set target_modules=q_proj,v_proj` gives a list,
    `--set target_modules=all-linear` every linear layer, anything else with special characters a regex.

    `--method qlora` is LoRA on a base whose linear layers are in four bits (NF4, double quantization); so is any
    method with `--set load_in_4bit=true`, and with a base that was saved in four bits.

    Examples:

        minitorch-peft adapt --method lora --set r=8 --set target_modules=all-linear
        minitorch-peft adapt --method qlora --set r=8 --set bnb_4bit_quant_type=fp4
        minitorch-peft adapt --method bitfit --corpus kjv --steps 300 --patience 3
        minitorch-peft adapt --method partial --set top_layers=2 --text letters.txt --out runs/letters
        minitorch-peft generate --adapter runs/letters --prompt "Dear"
    """
    from minitorch_peft.cli.loading import check_length, load_base_as, load_tokenizer
    from minitorch_peft.cli.settings import config_from, stored_settings
    from minitorch_peft.peft import get_peft_model
    from minitorch_peft.quant import bits_per_parameter, quantized_layers
    from minitorch_peft.training import TrainConfig, train

    screen = Screen(json)
    check_adaptable(method)
    config, quantization = config_from(method, setting or [])
    model, quantization = load_base_as(base, quantization, stored_settings(setting or []))
    check_length(length, model)
    texts = load_texts(corpus, text, load_tokenizer(base, model, tokenizer), batch_size, length)
    name = f"{method}-{text.stem if text else corpus}"
    out = out or Path("runs/adapt") / name
    settings = TrainConfig(
        steps, lr if lr is not None else usual_rate(method), optimizer, schedule=schedule, warmup=warmup, seed=seed,
        eval_every=eval_every, patience=patience, restore_best=True, save_every=eval_every, out=out / "run",
    )  # fmt: skip
    before, base_bytes = measure(model, texts, eval_rows), model.get_memory_footprint()
    adapted = get_peft_model(model, config, seed=seed)
    trainable, total = adapted.get_nb_trainable_parameters()
    if layers := quantized_layers(model):
        screen.note(
            f"{len(layers)} linear layers of {base} are in four bits: {bits_per_parameter(model):.3f} bits a weight"
        )
    screen.note(f"{name}: {trainable:,} of {total:,} parameters train, rate {settings.lr:g}, files in {out}")
    bits = texts.measured["held_out"].bits_per_byte(1.0)
    with training_progress(screen, name, steps, bits) as progress:
        result = train(
            adapted, texts.batches(seed), settings, lambda: texts.windows("held_out", eval_rows), progress, resume
        )
    value = {
        "adapter": str(out), "base": base, "method": method, "config": config.to_dict(),
        "quantization": quantization.to_dict() if quantization.load_in_4bit else None,
        "base_bytes": base_bytes,
        "trainable_parameters": trainable, "lr": settings.lr, "seed": seed, "steps": result.state.step,
        "best_step": result.state.best_step, "stopped_early": result.state.stopped_early,
        "seconds": round(result.state.seconds, 2),
        "bits_per_byte": {"before": before, "after": measure(adapted, texts, eval_rows)},
    }  # fmt: skip
    finish(screen, adapted, value, out)


def load_texts(corpus: str, text: Path | None, tokenizer: Tokenizer, batch_size: int, length: int) -> Texts:
    """What is learned and what is measured: a translation's books, or a file's first and last lines."""
    from minitorch_peft.analysis.texts import Texts, pack_file, pack_split

    if text is not None:
        train, held_out = pack_file(text, tokenizer)
        measured = {"held_out": held_out}
    else:
        train = pack_split(corpus, "train", tokenizer)
        measured = {split: pack_split(corpus, split, tokenizer) for split in ("held_out", "out_of_domain")}
        measured["modern"] = pack_split("web", "held_out", tokenizer)
    return Texts(train, measured, batch_size, length)


NOT_HERE = ("gist", "fusion", "p_tuning_v2")


def check_adaptable(method: str) -> None:
    """CommandError for a method of which modelling a text would train nothing that is its own."""
    from minitorch_peft.analysis.field import NOT_COMPARED
    from minitorch_peft.cli.settings import registered

    if (name := registered(method)) in NOT_HERE:
        raise CommandError(f"{method} is for Python only, adapt cannot train it: {NOT_COMPARED[name]}", USAGE)


def usual_rate(method: str) -> float:
    """The rate that ``compare`` found for the method, or the comparison of the whole field."""
    from minitorch_peft.analysis import contenders, field
    from minitorch_peft.cli.settings import registered

    name = registered(method)
    for contender in sorted(contenders.CONTENDERS, key=lambda c: c.name != method):  # of that name, then of that method
        if contender.name == method or contender.method == name:
            return contender.lr
    if name in field.RATES:
        return field.RATES[name]
    raise CommandError(
        f"--lr is needed: no rate is known for {method!r} (try 0.01; prompts and prefixes need 0.1 to 0.3)", USAGE
    )


def measure(model: GPT | PeftModel, texts: Texts, eval_rows: int) -> dict[str, float]:
    return {name: texts.bits_per_byte(model, name, eval_rows) for name in texts.measured}


def finish(screen: Screen, adapted: PeftModel, value: dict[str, Any], out: Path) -> None:
    """Save the adapter and what is known of it; show what was gained and lost."""
    from rich.table import Table

    from minitorch_peft.formats.files import write_json

    value["format"] = adapted.save_pretrained(out)
    write_json(out / "result.json", value)
    table = Table(title="bits per byte, lower is better", title_justify="left")
    for name in ("text", "before", "after"):
        table.add_column(name, justify="left" if name == "text" else "right")
    before, after = value["bits_per_byte"]["before"], value["bits_per_byte"]["after"]
    for name in before:
        table.add_row(name.replace("_", " "), f"{before[name]:.3f}", f"{after[name]:.3f}")
    screen.say(table)
    early = ", stopped early" if value["stopped_early"] else ""
    screen.say(f"best look: step {value['best_step']} of {value['steps']}{early} · adapter: {out}")
    screen.result(value)
