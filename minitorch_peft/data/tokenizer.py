"""A byte-level BPE tokenizer of 1,024 entries, and how it was trained.

Byte-level: the first entries are all 256 bytes, so any string survives the round trip, thorns and emoji
alike. Small: at this model size every entry of the vocabulary costs a row of the embedding.

Trained on the *training* books of all five translations. All, because an adapted model must spell 1395's
English with the same pieces that its base learnt from today's; the training books only, because merges are
learnt from text too, and one that fits a held-out book would flatter its bits per byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from minitorch_peft.formats.files import FileFormatError, atomic_write, read_json, write_json

if TYPE_CHECKING:
    import tokenizers

VOCAB_SIZE: Final = 1024
END, PAD, SEP = "<|endoftext|>", "<|pad|>", "<|sep|>"
# Reserved, in the order of their ids (0, 1, 2, 3 ... 18): the spare ones are for later tasks.
RESERVED: Final[tuple[str, ...]] = (END, PAD, SEP, *(f"<|spare_{i}|>" for i in range(16)))


class Tokenizer:
    """Text to ids and back; a thin wrapper around a Hugging Face ``tokenizer.json``.

    Args:
        backend: a tokenizer of the library.
        end, pad: the tokens that end a text and fill a short row, where they aren't the shipped one's.
            One without a pad of its own (GPT-2's, Llama's) pads with its end: masks and labels leave pads out.

    >>> tok = Tokenizer.shipped()
    >>> tok.vocab_size, tok.eos_token_id, tok.pad_token_id, tok.sep_token_id
    (1024, 0, 1, 2)
    >>> tok.decode(tok.encode("In þe bigynnyng 🙂"))
    'In þe bigynnyng 🙂'
    """

    def __init__(self, backend: tokenizers.Tokenizer, end: str = END, pad: str = PAD) -> None:
        self.backend = backend
        self.end = end
        self.pad = pad if backend.token_to_id(pad) is not None else end
        # A text that says "<|endoftext|>" is a text: only ids end one, so no input can smuggle in an end.
        backend.encode_special_tokens = True
        # Some files ask for these (BERT's do); batches would be ragged and long texts cut without a word.
        backend.no_padding()
        backend.no_truncation()

    @classmethod
    def shipped(cls) -> Tokenizer:
        """The tokenizer inside this package, which every embedded checkpoint uses."""
        file = resources.files("minitorch_peft.data").joinpath("tokenizer.json")
        return cls.from_json(file.read_text(encoding="utf-8"), str(file))

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Tokenizer:
        """The tokenizer of a model: a directory's own, or the shipped one for an embedded checkpoint's name.

        In a directory, ``tokenizer_config.json`` (if there) names the end and the pad.

        Raises:
            FileFormatError: there is none, or it is not a tokenizer.
        """
        folder = Path(source)
        if folder.is_dir():
            config = folder / "tokenizer_config.json"
            return cls.from_file(folder / "tokenizer.json", **(_special(config) if config.is_file() else {}))
        embedded = resources.files("minitorch_peft.models").joinpath("checkpoints", f"{source}.safetensors")
        if embedded.is_file():
            return cls.shipped()
        advice = "give a directory that holds tokenizer.json, or an embedded checkpoint, such as 'tiny'"
        raise FileFormatError(source, "no such model", advice)

    @classmethod
    def from_file(cls, path: str | Path, end: str = END, pad: str = PAD) -> Tokenizer:
        """Read a ``tokenizer.json``.

        Raises:
            FileFormatError: there is no such file, or it is not a tokenizer.
        """
        if not Path(path).is_file():
            raise FileFormatError(path, "no such file", "expected a Hugging Face tokenizer.json")
        return cls.from_json(Path(path).read_text(encoding="utf-8", errors="replace"), str(path), end, pad)

    @classmethod
    def from_json(cls, text: str, source: str = "the given text", end: str = END, pad: str = PAD) -> Tokenizer:
        """Read the contents of a ``tokenizer.json``; ``source`` is named in the error."""
        import tokenizers

        try:
            backend = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises a bare Exception
            advice = "expected a Hugging Face tokenizer.json: copy or write it again"
            raise FileFormatError(source, f"is not a tokenizer ({error})", advice) from None
        return cls(backend, end, pad)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write ``tokenizer.json`` and the ``tokenizer_config.json`` that lets transformers load it."""
        Path(directory).mkdir(parents=True, exist_ok=True)
        self.save(Path(directory) / "tokenizer.json")
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.end,
            "pad_token": self.pad,
            "clean_up_tokenization_spaces": False,
        }
        write_json(Path(directory) / "tokenizer_config.json", config)

    def save(self, path: str | Path) -> None:
        """Write one ``tokenizer.json``, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.backend.to_str(pretty=True), encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """How many ids there are, reserved ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    def token_id(self, token: str) -> int:
        """The id of one token.

        Raises:
            KeyError: the tokenizer has no such token.
        """
        found = self.backend.token_to_id(token)
        if found is None:
            raise KeyError(f"this tokenizer has no token {token!r}")
        return found

    @property
    def eos_token_id(self) -> int:
        """The end of a text, which also stands before the first one."""
        return self.token_id(self.end)

    @property
    def pad_token_id(self) -> int:
        """What fills a short row."""
        return self.token_id(self.pad)

    @property
    def sep_token_id(self) -> int:
        """What stands between a source and its target (the shipped tokenizer's own)."""
        return self.token_id(SEP)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added around it."""
        return self.backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, in parallel."""
        return [e.ids for e in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """The text of a row of ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)


def _special(config: Path) -> dict[str, str]:
    """The end and the pad that a tokenizer_config.json names, each as text or as {"content": text}."""
    settings = read_json(config)
    named = {"end": settings.get("eos_token"), "pad": settings.get("pad_token")}
    return {role: t["content"] if isinstance(t, dict) else t for role, t in named.items() if t is not None}


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A new tokenizer from texts; the same texts give the same tokenizer.

    Raises:
        ValueError: the texts are too few for that many entries.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(RESERVED),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise ValueError(
            f"the texts gave {backend.get_vocab_size()} entries, expected {vocab_size}: "
            "give more text, or ask for fewer entries"
        )
    return Tokenizer(backend)
