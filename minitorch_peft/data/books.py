"""Which books are trained on, which are held out, and which are of another kind.

The split is by whole book, the same for every translation and for pretraining, tokenizer and adaptation, so
text that a number is measured on has been seen by nobody, in no dialect.

- **held_out**: Ruth, Jonah, John, Philemon. Narrative and letters, as most of the training text is, and
  without parallels in it: in the modern text 0.4 % of John's runs of eight words stand in a training book
  too, but 11 to 20 % of those of Kings and Chronicles and 9 to 10 % of those of Matthew and Mark, so none of
  these could be held out honestly. Tyndale did not translate Ruth; he has the other three.
- **out_of_domain**: Proverbs, Ecclesiastes, Song of Songs, Revelation. Sayings, love poetry and visions:
  another kind of text in every translation. Tyndale has only Revelation of these.

Together they take 9 % of the verses; tokens are scarce, so they are not larger.
"""

from __future__ import annotations

from typing import Final

# The key of a verse is book * 1,000,000 + chapter * 1,000 + verse, as in the wheels.
_NAMES: Final = (
    "Genesis, Exodus, Leviticus, Numbers, Deuteronomy, Joshua, Judges, Ruth, 1 Samuel, "
    "2 Samuel, 1 Kings, 2 Kings, 1 Chronicles, 2 Chronicles, Ezra, Nehemiah, Esther, Job, "
    "Psalms, Proverbs, Ecclesiastes, Song of Songs, Isaiah, Jeremiah, Lamentations, Ezekiel, "
    "Daniel, Hosea, Joel, Amos, Obadiah, Jonah, Micah, Nahum, Habakkuk, Zephaniah, Haggai, "
    "Zechariah, Malachi, Matthew, Mark, Luke, John, Acts, Romans, 1 Corinthians, 2 Corinthians, "
    "Galatians, Ephesians, Philippians, Colossians, 1 Thessalonians, 2 Thessalonians, "
    "1 Timothy, 2 Timothy, Titus, Philemon, Hebrews, James, 1 Peter, 2 Peter, 1 John, 2 John, "
    "3 John, Jude, Revelation"
)
BOOKS: Final[dict[int, str]] = dict(enumerate(_NAMES.split(", "), start=1))
HELD_OUT: Final[frozenset[str]] = frozenset({"Ruth", "Jonah", "John", "Philemon"})
OUT_OF_DOMAIN: Final[frozenset[str]] = frozenset({"Proverbs", "Ecclesiastes", "Song of Songs", "Revelation"})
SPLITS: Final[tuple[str, ...]] = ("train", "held_out", "out_of_domain")


def split_of(verse: int) -> str:
    """The split that a verse belongs to.

    >>> split_of(43_003_016), split_of(20_001_001), split_of(1_001_001)
    ('held_out', 'out_of_domain', 'train')
    """
    book = BOOKS[verse // 1_000_000]
    if book in HELD_OUT:
        return "held_out"
    return "out_of_domain" if book in OUT_OF_DOMAIN else "train"


def reference(verse: int) -> str:
    """A verse key as people write it.

    >>> reference(43_003_016)
    'John 3:16'
    """
    book, rest = divmod(verse, 1_000_000)
    return f"{BOOKS.get(book, f'book {book}')} {rest // 1000}:{rest % 1000}"
