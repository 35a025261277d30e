"""What callers give: the one door through which every text comes in, and every list.

A text is a str of whole characters, of which one at least can be seen unless it may be empty. A byte-order mark in
front of it belongs to the file that it was saved in and is no part of it: a text is the same however it was saved.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from errno import EFBIG
from os import PathLike
from pathlib import Path
from typing import Any

from ilcp.errors import ConfigError, DecodeError, DoubtError, EncodeError, IlcpError
from ilcp.folders import MOST_BYTES, read_whole

__all__ = ["STEERING", "UNSEEN", "hidden", "listed", "mending", "named", "read_text", "require_text", "seen", "tuples"]

Refusal = Callable[[str], IlcpError]  # mostly an error's class

BYTE_ORDER_MARK = "\ufeff"
# Each is for the inside of a character class. What chooses how the character before it is drawn, and what joins it.
_SELECTING, _JOINING = "\u180b-\u180d\u180f\ufe00-\ufe0f", "\xad\u034f\u200c\u200d"
# Controls of a line, which a text has, and those that it has not.
_LINES, _CONTROLS = "\t\n\r", "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"
# What turns the direction, has no width or no shape, or is a tag: it hides words from a person that a model reads.
_HIDING = (
    "\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    "\U00016fe4\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
# What no two readers see alike: private use, and numbers that are no characters.
_NOBODYS = "\ue000-\uf8ff\ufdd0-\ufdef\ufffe\uffff\U000f0000-\U0010ffff"
UNSEEN = f"{_LINES}{_CONTROLS}{_SELECTING}{_JOINING}{_HIDING}\u2800"
_SEEN = re.compile(f"[^\\s{UNSEEN}]")
# What steers a terminal, or turns the direction of a line on it, with what is written in its place: str.translate.
STEERING = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for code in (*range(32), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\t\n"
}
# What a selector may stand behind: pictures, and what is drawn as one; ideographs, their punctuation, Myanmar, Phags-pa
# and signs of mathematics; Mongolian. A joiner, behind anything that is seen, selector included; a blank, in braille.
_HIDDEN = re.compile(
    f"[{_CONTROLS}{_HIDING}{_NOBODYS}\ufe03-\ufe0d]"
    "|(?<![#*0-9\xa9\xae\u203c-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff])[\ufe0e\ufe0f]"
    "|(?<![0\u1000-\u109f\uaa60-\uaa7f\ua840-\ua877\u2190-\u2bff\u3000-\u303f\u3400-\u9fff\uf900-\ufaff\uff01-\uff65"
    "\U00020000-\U0003ffff])[\ufe00-\ufe02]"
    "|(?<![\u1800-\u180a\u1820-\u18aa])[\u180b-\u180d\u180f]"
    f"|(?<![^\\s{_CONTROLS}{_JOINING}{_HIDING}\u2800])[{_JOINING}]"
    "|(?<![\u2800-\u28ff])\u2800"
)


def seen(text: str) -> bool:
    """Says whether a text has a character that can be seen: neither a space, nor a control, nor of no width."""
    return _SEEN.search(text) is not None


def hidden(text: str) -> str | None:
    """Returns what a text hides from who reads it, as "U+202E at character 7"; None where it hides nothing.

    This is the one rule for all text that a message brings in. Tabs and ends of lines are text. What joins letters (in
    Persian, in Hindi) or pictures, or chooses how one is drawn, counts where it follows nothing that it could change.
    Any beginning of a text that hides nothing hides nothing either.
    """
    found = _HIDDEN.search(text)
    return None if found is None else f"U+{ord(found[0]):04X} at character {found.start()}"


def require_text(text: Any, what: str = "a text", *, error: Refusal = EncodeError, may_be_empty: bool = False) -> str:
    """Returns a text as it is read: without a byte-order mark in front of it.

    Args:
        text: what a caller gave; anything else than a text is refused.
        what: it is, in words, with its place, such as ``"literal 3"``.
        error: makes what is raised of what to say.
        may_be_empty: also takes a text of which nothing can be seen.

    Raises:
        IlcpError: ``error``, with what came in its place; never with its words.
    """
    if not isinstance(text, str):
        raise error(f"expected {what} as a str, got {type(text).__name__}{mending(text)}")
    try:
        text.encode("utf-8")  # the quickest way to look at every character
    except UnicodeEncodeError as half:
        raise error(
            f"expected {what} of whole characters, got half of a surrogate pair, U+{ord(text[half.start]):04X}, at "
            f"character {half.start}: write the character whole"
        ) from None
    read: str = text.lstrip(BYTE_ORDER_MARK)
    if not may_be_empty and not seen(read):
        got = f"{len(read)} characters of which none can be seen" if read.strip() else "an empty one"
        raise error(f"expected {what}, got {got}: it says nothing")
    return read


def mending(value: Any) -> str:
    """Says what to do with something that is no text, where that is known; else nothing."""
    if isinstance(value, bytes | bytearray | memoryview):
        return ": decode it first, as in data.decode('utf-8')"
    if isinstance(value, PathLike):
        return ": read it first, as in path.read_text(encoding='utf-8')"
    if isinstance(value, Iterator):
        return ": put what it yields into a list"
    return ""


def listed(values: Any, expected: str, one: str, *, error: Refusal = EncodeError) -> list[Any]:
    """Returns as a list what is meant as one: a list, a tuple, a generator, a dict's keys.

    Args:
        values: what a caller gave; a text, bytes, an array, a path or a mapping is one thing and no list.
        expected: what should have come, in words, such as ``"a list of sources"``.
        one: what a single one is called.
        error: makes what is raised of what to say.

    Raises:
        IlcpError: ``error``, with what came.
    """
    single = isinstance(values, str | bytes | bytearray | memoryview | Mapping | PathLike) or hasattr(
        values, "__array__"
    )
    if single or not isinstance(values, Iterable):
        way_out = mending(values) or f": put one {one} into a list"
        raise error(f"expected {expected}, got {type(values).__name__}{way_out}")
    return list(values)


@contextmanager
def named(what: str, number: int) -> Iterator[None]:
    """Names the item of a batch in whatever refuses it."""
    try:
        yield
    except (DecodeError, DoubtError, EncodeError) as error:
        made = type(error)(f"{what} {number}: {error}")
        vars(made).update(vars(error))  # what was found of a message in doubt
        raise made from error


def tuples(items: Iterable[Any], names: tuple[str, ...]) -> list[Any]:
    """Returns the items of a batch.

    Raises:
        ConfigError: they are no list of tuples with such parts.
    """
    wanted = f"items ({', '.join(names)}) in a list"
    found = listed(items, wanted, "item", error=ConfigError)
    for index, item in enumerate(found):
        if not isinstance(item, tuple | list) or len(item) != len(names):
            got = f"{len(item)} parts" if isinstance(item, tuple | list) else type(item).__name__
            raise ConfigError(f"expected {wanted}, got {got} as item {index}: put {' and '.join(names)} into a tuple")
    return found


def read_text(path: str | Path, what: str = "a readable text file") -> str:
    """Reads the text of a regular file in UTF-8, or of standard input where the path is ``-``.

    Raises:
        ConfigError: it cannot be read, or is no UTF-8.
    """
    try:
        content = _piped() if str(path) == "-" else read_whole(path)
        return content.decode("utf-8").lstrip(BYTE_ORDER_MARK)
    except OSError as error:
        raise ConfigError(f"expected {what}, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x} at {error.start}: "
            "save it as UTF-8"
        ) from error
    except ValueError as error:  # a path with a null in it
        raise ConfigError(f"expected {what}, got {str(path)!r}: {error}") from error


def _piped() -> bytes:
    content = sys.stdin.buffer.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(EFBIG, f"more than the {MOST_BYTES:,} bytes that are read")
    return content
