"""``minitorch-peft merge``: an adapter's effect written into the base's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.screen import JsonFlag, Screen


def merge(
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    out: Annotated[Path, typer.Option(help="New folder: config.json, model.safetensors, tokenizer.json.")],
    base: Annotated[
        str | None, typer.Option(help="Embedded checkpoint or folder. Default: the adapter's base, else tiny.")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json. Default: the base's own.")] = None,
    layout: Annotated[str | None, typer.Option("--format", help="gpt2 or llama. Default: the one that fits.")] = None,
    requantize: Annotated[
        bool, typer.Option("--requantize", help="Of a base in four bits: round the sum back into four bits, with loss.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Write the adapted model as a plain one, in a folder that transformers loads, with a certificate.

    The certificate says how exact the merge is: the largest rounding of a weight, the largest difference of a
    logit and the KL divergence between merged and unmerged model on drawn text, and whether unmerging gave the
    base back bit for bit. A base in four bits is written in float32, since the sum does not fit into four bits;
    `--requantize` rounds it back into them, and the certificate says what that loses.

    Examples:

        minitorch-peft merge runs/compare/lora-r16/seed-0 --out runs/merged
        minitorch-peft generate --base runs/merged --prompt "And Jhesus seide"
    """
    from minitorch_peft.cli.loading import load_adapted, load_tokenizer
    from minitorch_peft.peft import PeftModel
    from minitorch_peft.quant import dequantize_model

    screen = Screen(json)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommandError(f"{out} is there already and not empty: choose another --out", USAGE)
    model, base = load_adapted(base, adapter)
    assert isinstance(model, PeftModel)
    tok = load_tokenizer(base, model.base_model, tokenizer)
    certificate = model.merge_adapter(requantize=requantize)
    plain = model.merge_and_unload()
    if not requantize:
        dequantize_model(plain)  # layers that the adapter leaves alone
    plain.save_pretrained(out, layout)
    tok.save_pretrained(out)
    c = certificate
    screen.say(f"merged {adapter} into {base}: {c.layers} parameters changed, written to {out}")
    screen.say(f"  largest rounding of a weight     {c.weight_difference:.2g}")
    screen.say(f"  largest difference of a logit    {c.logit_difference:.2g}")
    screen.say(f"  difference of all logits         {100 * c.relative_logit_difference:.2g} %")
    screen.say(f"  KL divergence, nats a token      {c.kl_divergence:.2g}")
    screen.say(f"  unmerging restores the base      {'bit for bit' if c.restores_base else 'NOT exactly'}")
    if c.requantized:
        screen.say(f"  put back into four bits          {c.requantized} weights: the differences are what that lost")
    if c.untied:
        screen.say("  the head was tied to the embedding; it has weights of its own now")
    screen.result({"model": str(out), "base": base, "adapter": str(adapter), "certificate": c.to_dict()})
