"""``minitorch-peft generate``: continue a text, with or without an adapter."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from minitorch_peft.cli.screen import JsonFlag, Screen

if TYPE_CHECKING:
    import numpy as np

    from minitorch_peft.data.tokenizer import Tokenizer


USUAL = 60  # new tokens


def generate(
    prompt: Annotated[str, typer.Option(help="What to continue; empty: a verse from nothing.")] = "",
    base: Annotated[
        str | None, typer.Option(help="Embedded checkpoint or folder. Default: the adapter's base, else tiny.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of an adapter.")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="tokenizer.json. Default: the base's own.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"At most so many. Default: {USUAL}, or as many as fit.")
    ] = None,
    sample: Annotated[bool, typer.Option("--sample", help="Draw; without it, the likeliest token.")] = False,
    temperature: Annotated[float, typer.Option(help="Below 1 plainer, above 1 wilder. Sampling.")] = 1.0,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest. Sampling.")] = None,
    top_p: Annotated[float | None, typer.Option(help="... from the likeliest that sum to p. Sampling.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed, another text. Sampling.")] = 0,
    stream: Annotated[bool, typer.Option(help="Print each token as it comes.")] = True,
    json: JsonFlag = False,
) -> None:
    """Continue a text, greedily or by drawing, until the text ends or enough tokens are there.

    Examples:

        minitorch-peft generate --prompt "And Jesus said"
        minitorch-peft generate --prompt "And Jesus said" --sample --temperature 0.8 --top-k 40 --seed 7
        minitorch-peft generate --adapter runs/compare/lora-r16/seed-0 --prompt "And Jhesus seide" --sample
    """
    from minitorch_peft.cli.loading import load_adapted, load_tokenizer

    screen = Screen(json)
    model, base = load_adapted(base, adapter)
    tok = load_tokenizer(base, model.base_model if adapter else model, tokenizer)
    ids = [tok.eos_token_id, *tok.encode(prompt)]
    count = new_tokens(max_new_tokens, len(ids), model.config.n_positions)
    printer = Printer(tok, prompt) if stream and not json else None
    out = model.generate(
        [ids], count, do_sample=sample, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
        eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id, stream=printer,
    )[0]  # fmt: skip
    new = [int(i) for i in out[len(ids) :]]
    ended = bool(new) and new[-1] == tok.eos_token_id
    continuation = tok.decode(new)
    if printer is not None:
        printer.close()
    else:
        screen.say(prompt + continuation, markup=False, soft_wrap=True)
    screen.result(
        {
            "prompt": prompt, "continuation": continuation, "tokens": len(new), "ended": ended, "base": base,
            "adapter": None if adapter is None else str(adapter), "seed": seed if sample else None,
        }
    )  # fmt: skip


def new_tokens(asked: int | None, given: int, positions: int) -> int:
    """How many to generate; CommandError where the model has no room for them."""
    from minitorch_peft.cli.errors import USAGE, CommandError

    room = positions - given
    if (asked or 1) > room:
        raise CommandError(
            f"the prompt takes {given} of the model's {positions} positions, which leaves {max(0, room)}: "
            "shorten the prompt, or lower --max-new-tokens",
            USAGE,
        )
    return asked or min(USUAL, room)


class Printer:
    """Prints tokens as they come; bytes of a character that is not complete yet wait for the rest."""

    def __init__(self, tokenizer: Tokenizer, prompt: str) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.shown = ""
        print(prompt, end="", flush=True)

    def __call__(self, new: np.ndarray) -> None:
        self.ids.append(int(new[0]))
        text = self.tokenizer.decode(self.ids)
        if not text.endswith("\ufffd"):
            self.show(text)

    def show(self, text: str) -> None:
        print(text[len(self.shown) :], end="", flush=True)
        self.shown = text

    def close(self) -> None:
        self.show(self.tokenizer.decode(self.ids))
        sys.stdout.write("\n")
