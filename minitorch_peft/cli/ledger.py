"""``minitorch-peft ledger``: what a training step costs, before it is run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.peft import PeftConfig
    from minitorch_peft.quant import BitsAndBytesConfig

USUAL = ("full", "lora", "bitfit", "prompt_tuning", "prefix_tuning", "ladder")


def ledger(
    method: Annotated[
        list[str] | None, typer.Option(help=f"full, lora, ...; again for each, or all. Default: {', '.join(USUAL)}.")
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the one method, or of a 4-bit base: NAME=VALUE.")
    ] = None,
    base: Annotated[str, typer.Option(help="Embedded checkpoint, or folder of a model.")] = "tiny",
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 16,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a row.")] = 128,
    optimizer: Annotated[str, typer.Option(help="adamw, sgd or adamw_bnb_8bit.")] = "adamw",
    inference: Annotated[bool, typer.Option("--inference", help="A forward pass without a graph instead.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Run a real step too, and show the ratio.")] = False,
    rows: Annotated[int, typer.Option(min=1, help="Activations and operations to show of a single method.")] = 12,
    json: JsonFlag = False,
) -> None:
    """Say what a step costs: bytes of weights, gradients, optimizer state and activations, and operations.

    Nothing of that size is run: five steps of a few tokens are looked at, and every array's size is carried over to
    the batch that you ask for. One method is shown in detail, several are compared. A method that has no defaults
    (which layers? how many numbers?) is shown with those of an example, unless you set some.

    Examples:

        minitorch-peft ledger
        minitorch-peft ledger --method lora --set r=16 --batch-size 64
        minitorch-peft ledger --method all --optimizer adamw_bnb_8bit
        minitorch-peft ledger --method lora --method ladder --measure
    """
    from minitorch_peft.analysis.ledger import ledger as predict
    from minitorch_peft.analysis.ledger import measure as count
    from minitorch_peft.analysis.ledger.prediction import check
    from minitorch_peft.analysis.ledger.tables import NOTE, held_against, totals
    from minitorch_peft.cli.loading import check_length, load_base_as
    from minitorch_peft.cli.settings import stored_settings
    from minitorch_peft.peft import METHODS

    screen = Screen(json)
    names = list(METHODS) if method == ["all"] else list(method or USUAL)
    if setting and len(names) > 1:
        raise CommandError("--set is for one method: give one --method", USAGE)
    predicted, measured, unfit, batch = {}, {}, dict[str, str](), (batch_size, length)
    check(batch, optimizer)
    for name in names:
        config, quantization = config_and_storage(name, setting or [])
        model, _ = load_base_as(base, quantization, stored_settings(setting or []))
        check_length(length, model)
        try:
            predicted[name] = predict(model, config, batch, optimizer, training=not inference)
        except ValueError as error:
            if len(names) == 1:
                raise
            unfit[name] = str(error)
            continue
        if measure:
            measured[name] = count(model, config, batch, optimizer, training=not inference)
    screen.say(f"{base}, {batch_size} x {length} tokens, {'a forward pass' if inference else optimizer}")
    screen.say(totals(predicted) if len(names) > 1 else predicted[names[0]].table(rows))
    for name, why in unfit.items():
        screen.say(f"{name} does not apply: {why}", markup=False)
    screen.say(NOTE)
    for name in measured:
        screen.say(f"[bold]{name}[/bold]")
        screen.say(held_against(predicted[name], measured[name]))
    screen.result(
        {
            "base": base, "batch": list(batch), "optimizer": optimizer, "training": not inference,
            "predicted": {name: found.to_dict() for name, found in predicted.items()},
            "measured": {name: found.to_dict() for name, found in measured.items()}, "does_not_apply": unfit,
        }
    )  # fmt: skip


def config_and_storage(name: str, setting: list[str]) -> tuple[PeftConfig, BitsAndBytesConfig]:
    """What ``--method`` and ``--set`` ask for; of a method with nothing set, what it is by default."""
    from minitorch_peft.analysis.ledger import default_config
    from minitorch_peft.cli.settings import config_from, contender, registered
    from minitorch_peft.peft import METHODS

    start = contender(name)
    if setting or start.settings:
        return config_from(name, setting)
    return default_config(METHODS[registered(name)]), start.quantization
