"""Literals: exact strings that travel beside a latent, because a latent loses codes, numbers and ids.

    >>> auto("Ticket INC-20391 was closed on 2024-05-17 by mara@example.org, after 1,204 calls.")
    ('INC-20391', '2024-05-17', 'mara@example.org', '1,204')
    >>> to_field(("INC-20391", "2024-05-17"))
    b'\\xb4INC-20391\\n2024-05-17'

The field of the wire is specified in ``ilcp.message``. What ``auto`` picks: the text is split at spaces, at ``<>|``,
which spell control tokens, at arrows and at the punctuation of scripts that put no space behind it; where it is no URL,
also at ``=``, quotes, braces, dashes and ``'s``. Letters of scripts without spaces end a word of other letters, as do
characters of no width. A word loses the marks around it, and the first row of ``KINDS`` whose expression matches the
whole word names its kind. Words that match none stay out, as do those longer than the budget, and those that may be
part of a longer one: a wrong string is worse than none. Codes are served first, numbers last (``SERVED``), words of one
kind in the text's order, for as long as each still fits; the picked words keep the text's order, each once.
"""

import re
from collections.abc import Iterable, Iterator
from unicodedata import category

import msgspec
import zstandard

from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.inputs import UNSEEN, hidden, require_text, seen
from ilcp.message.checks import require_bytes

__all__ = [
    "AUTO_BYTES",
    "KINDS",
    "MAX_LITERALS_BYTES",
    "auto",
    "begin",
    "chosen",
    "from_field",
    "line",
    "require_literals",
    "split",
    "to_field",
]

MAX_LITERALS_BYTES = 1024  # 28 UUIDs, ten times the usual message: who needs more wants a text memory, or a file
AUTO_BYTES = 64  # what auto may add to a message: less than the payload itself
MIN_PACKED_BYTES = 32  # a zstd frame costs about 10 bytes of its own: shorter texts never gain
ZSTD_LEVEL = 19  # 60 us for 300 bytes, and 5 to 10 % smaller than level 3
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"  # the same in front of every frame, so it does not travel
LABEL = "Verbatim: "  # how the receiver's line of literals begins
BETWEEN = " | "

_BIN_8, _BIN_16, _STR_8, _STR_16 = 0xC4, 0xC5, 0xD9, 0xDA
_HEADER_BYTES = {_BIN_8: 2, _BIN_16: 3, _STR_8: 2, _STR_16: 3}

# Control characters and line separators would end the line; the private use area holds ``ilcp.MEMORY_HERE``.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ue000-\uf8ff]")

KINDS = {  # the first that matches the whole word counts
    "url": re.compile(r"[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE),
    "e-mail": re.compile(r"[\w.+%'-]+@[\w-]+(?:\.[\w-]+)+"),
    "path": re.compile(r"(?:~|\.{1,2})/\S+|/\S{3,}|[A-Za-z]:\\\S+|[\w.-]+(?:/[\w.-]+)*/[\w-]+\.\w+"),
    "date": re.compile(r"\d{1,4}([-./])\d{1,2}\1\d{1,4}(?:T[\d:.]+(?:Z|[+-]\d\d:?\d\d)?)?"),
    "number": re.compile(r"[-+\u2212$€£#]?(?:\d{3,}|\d+(?:[.,:]\d+)+)%?"),  # a count of one or two digits is not rare
    "code": re.compile(
        r"(?!\d+(?:st|nd|rd|th)$)(?=.*\d)(?=.*[A-Za-z])[A-Za-z0-9_.:/#+-]*[A-Za-z0-9#+]"
        r"|[A-Z][A-Z0-9]*(?:[_-][A-Z0-9]+)+"
    ),
}
SERVED = ("code", "e-mail", "url", "path", "date", "number")
# Inside a character class: Thai to Khmer, Han, kana, Hangul, where words and particles need no space between them; and
# signs that need none beside them: arrows (but no minus), the punctuation of these scripts, pictures.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u2fff\u3041-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
_SIGNS = (
    "\u2190-\u2211\u2213-\u2bff\u3000-\u3040\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f\uff5b-\uff65"
    "\U0001f000-\U0001faff"
)
# A tag's end in HTML is no path; "](" stands in a link of Markdown; a sign of HTML's own ends a word, but for "&amp;".
_ENTITY = r"&(?:lt|gt|quot|apos|nbsp|#\d+|#x[\da-fA-F]+);"
_SPLIT = re.compile(rf"(?:</\w+(?=>)|{_ENTITY}|[\s<>|{_SIGNS}]|\]\(|\]\[|[,;](?=[A-Za-z]+://))+")
# What is one for a reader, written with spaces: thousands, and numbers of telephones. No part of it is picked.
_SPACED = re.compile(r"(?<![\w.,])(?:\d{1,3}(?:[ \u00a0\u2009\u202f]\d{3})+(?!\d)|(?:tel:)?\+\d+(?:[ \u00a0-]\d+)+)\S*")
_HYPHEN = re.compile(r"(?<=[^\W\d_])–(?=\d)")  # what this dash is between letters and digits, like as not
_JOINER = "\u2060"
_SPLIT_WORD = re.compile(r"[=—–\"{}]+|['’]s\b|(?i:mailto:)|[,;:](?=[^\s@,;:]+@)")
_URL = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z][A-Za-z0-9+.-]*://[^\"{}]+")
_BORDER = re.compile(f"([{_UNSPACED}]+|[{UNSEEN}]+)")
_LETTERS = re.compile(r"[^\W\d_]*")
_JOINTS = "/\\@-_~"  # at a border they say that the word goes on beyond it
_INSIDE = re.compile(f"[\u00ad{_JOINER}]")  # a soft hyphen or word joiner stands in a word
_COUNTED = re.compile("[年月日号號년월일]")  # behind a number they say that it is part of a date
_AROUND = ".,;:!?()[]{}<>\"'`*"  # punctuation that stands around a word and is no part of it


def auto(text: str, budget_bytes: int = AUTO_BYTES) -> tuple[str, ...]:
    """Picks what looks like a code, e-mail, URL, path, date or number in `text`, within `budget_bytes` of UTF-8.

    Raises:
        ConfigError: a budget below 0 or above 1024 bytes.
    """
    if not 0 <= budget_bytes <= MAX_LITERALS_BYTES:
        raise ConfigError(f"expected a budget of 0 to {MAX_LITERALS_BYTES} bytes, got {budget_bytes}")
    found: dict[str, str | None] = {}
    for token in _tokens(_HYPHEN.sub(_JOINER, _SPACED.sub(" ", text))):
        word = _bare(token)
        if word and word not in found and len(word) <= budget_bytes and not (_REFUSED.search(word) or hidden(word)):
            found[word] = next((kind for kind, rule in KINDS.items() if rule.fullmatch(word)), None)
    picked: set[str] = set()
    left = budget_bytes + 1  # no separator before the first
    for kind in SERVED:
        for word in (word for word, its in found.items() if its == kind):
            size = 1 + len(word.encode("utf-8"))
            if size <= left:
                picked.add(word)
                left -= size
    return tuple(word for word in found if word in picked)


def _tokens(text: str) -> Iterator[str]:
    for token in _SPLIT.split(text):
        url = _URL.search(token)
        if url is None:
            yield from _words(token)
            continue
        yield from _words(token[: url.start()])
        own, *beyond = _BORDER.split(url[0])
        if not any(map(seen, beyond)):  # else what stands there may be the URL's, or the sentence's
            yield own.replace("&amp;", "&")
        yield from _words(token[url.end() :])


def _words(token: str) -> Iterator[str]:
    """Yields the words of what is no URL, but for those that a border may have cut off."""
    for part in _SPLIT_WORD.split(token):
        words = _BORDER.split(part)  # borders at odd places
        for at in range(0, len(words), 2):
            before, behind = words[max(0, at - 2) : at], words[at + 1 : at + 3]
            if words[at] and not (_cut(words[at][0], *before) or _cut(words[at][-1], *reversed(behind))):
                yield words[at]


def _cut(end: str, other: str = "", border: str = "") -> bool:
    """Says whether a word may go on beyond its ``end``, where ``border`` parts it from the ``other`` one."""
    inside = bool(other) and bool(_INSIDE.search(border))
    joined = inside or end in _JOINTS or (end.isdigit() and bool(_COUNTED.match(border)))
    return bool(border) and (joined or not (seen(border) or _LETTERS.fullmatch(other)))


def _bare(word: str) -> str:
    """Returns a word without the marks around it; a bracket that it opens itself stays, and a path's full stop."""
    start, end = 0, len(word)
    while start < end and word[start] != "." and _is_mark(word[start]):
        start += 1
    own = word[start:]
    unopened = {closing: own.count(closing) - own.count(opening) for opening, closing in ("()", "[]")}
    while start < end and _is_mark(word[end - 1]) and unopened.get(word[end - 1], 1) > 0:
        end -= 1
        if word[end] in unopened:
            unopened[word[end]] -= 1
    word = word[start:end]
    return word.strip("_") if word[:1] == word[-1:] == "_" else word


def _is_mark(character: str) -> bool:
    if character.isascii():
        return character in _AROUND
    return character != "\u2212" and category(character) != "Sc" and category(character)[0] not in "LMN"


def require_literals(literals: object) -> tuple[str, ...]:
    """Returns the literals, if a message can carry them.

    Raises:
        EncodeError: not a tuple of different, non-empty strings of one line each, or more than 1024 bytes of UTF-8, the
            line feeds between them included. The text quotes their places, not their words.
    """
    if not isinstance(literals, tuple):
        raise EncodeError(f"expected literals as a tuple of str, got {type(literals).__name__}")
    for place, literal in enumerate(literals):
        if not isinstance(literal, str):
            raise EncodeError(f"expected literal {place} as a str, got {type(literal).__name__}")
        if not literal or literal[0] == " " or literal[-1] == " ":
            got = "one that begins or ends with one" if literal else "an empty one"
            raise EncodeError(f"expected literal {place} without spaces around it, got {got}")
        bad = _REFUSED.search(literal)
        if bad:
            raise EncodeError(
                f"expected literal {place} as one line of text, got U+{ord(bad[0]):04X} at character {bad.start()}: "
                "no control, surrogate or private use characters"
            )
    if len(set(literals)) < len(literals):
        raise EncodeError("expected each literal once, got one twice: leave the second out")
    size = len("\n".join(literals).encode("utf-8"))
    if size > MAX_LITERALS_BYTES:
        raise EncodeError(f"expected literals of at most {MAX_LITERALS_BYTES} bytes together, got {size}: send fewer")
    return literals


def chosen(literals: Iterable[str] | str, text: str | None) -> tuple[str, ...]:
    """Returns a list's literals, each once, or for "auto" what ``auto`` picks from `text`.

    A list need not occur in the text: a ticket's number may come from elsewhere.

    Raises:
        EncodeError: a str other than "auto", "auto" without a text, or literals that no message can carry.
    """
    if not isinstance(literals, str):
        try:
            some = tuple(dict.fromkeys(literals))
        except TypeError:
            got = type(literals).__name__
            raise EncodeError(f"expected literals as 'auto' or a list of str, got {got}") from None
        texts = [require_text(each, f"literal {place}", may_be_empty=not each) for place, each in enumerate(some)]
        for place, unseen in enumerate(map(hidden, texts)):
            if unseen:  # every receiver would refuse the message
                raise EncodeError(f"expected literal {place} of characters that are seen, got {unseen}: leave it out")
        return require_literals(tuple(dict.fromkeys(texts)))
    if literals != "auto":
        got = f"a str of {len(literals)} characters"  # never its words
        raise EncodeError(f"expected literals as 'auto' or a list of str, got {got}: put it in a list")
    if text is None:
        raise EncodeError("expected a text for literals='auto', got ids or states alone: give the literals as a list")
    return auto(text)


def line(literals: Iterable[str]) -> str:
    """Writes the literals as the one line of text that a receiver reads; one that holds " | " looks like two in it."""
    return LABEL + BETWEEN.join(literals)


def to_field(literals: tuple[str, ...]) -> bytes:
    """Returns the field as it stands in a message: a msgpack str, or a bin if a zstd frame makes it shorter.

    Nothing for no literals.
    """
    if not literals:
        return b""
    text = "\n".join(literals)
    plain, content = msgspec.msgpack.encode(text), text.encode("utf-8")
    if len(content) < MIN_PACKED_BYTES:
        return plain
    parameters = zstandard.ZstdCompressionParameters.from_level(
        ZSTD_LEVEL, source_size=len(content), write_content_size=True, write_checksum=False, write_dict_id=False
    )
    frame = zstandard.ZstdCompressor(compression_params=parameters).compress(content)[len(ZSTD_MAGIC) :]
    packed = msgspec.msgpack.encode(frame)
    return packed if len(packed) < len(plain) and _declared(frame) == len(content) else plain


def split(field: bytes) -> tuple[bool, bytes]:
    """Tells whether a field, which is one value in msgpack, is packed, and returns its content, unopened.

    Raises:
        EncodeError: the content has not 1 to 1024 bytes.
        DecodeError: it is no str or bin with the shortest header.
    """
    first = field[0]
    packed, header_bytes = first in (_BIN_8, _BIN_16), 1 if first & 0xE0 == 0xA0 else _HEADER_BYTES.get(first, 0)
    content = require_bytes("literals", field[header_bytes:], 1, MAX_LITERALS_BYTES)
    if len(field) != _field_bytes(packed, len(content)):
        expected = f"expected literals as the shortest str or bin for {len(content)} bytes"
        raise DecodeError(f"{expected}, got 0x{first:02x}: damaged, or not canonical msgpack")
    return packed, content


def begin(data: bytes) -> int:
    """Returns how many bytes the field takes that ``data`` begins with, be it of no literals.

    Raises:
        DecodeError: it begins with no whole field.
    """
    first = data[0]
    header_bytes = 1 if first & 0xE0 == 0xA0 else _HEADER_BYTES.get(first, 0)
    size = header_bytes + (first & 0x1F if header_bytes == 1 else int.from_bytes(data[1:header_bytes], "big"))
    if not 1 <= header_bytes <= size <= len(data):
        raise DecodeError(f"expected literals as a str or bin before the payload, got 0x{first:02x} and no such field")
    return size


def from_field(field: bytes) -> tuple[str, ...]:
    """Returns the strings that a field holds, decompressed to at most 1024 bytes; ``require_literals`` judges them.

    Raises:
        DecodeError: as ``split``; no UTF-8, a frame of another kind, size or length than the specification allows, or
            one that is no shorter than its text.
    """
    packed, content = split(field)
    text = _unpacked(content) if packed else content
    if packed and _field_bytes(True, len(content)) >= _field_bytes(False, len(text)):
        raise DecodeError(f"expected a zstd frame shorter than its {len(text)} bytes of text, got {len(content)}")
    try:
        return tuple(text.decode("utf-8").split("\n"))
    except UnicodeDecodeError as error:
        raise DecodeError(f"expected literals as UTF-8, got {error.reason} at byte {error.start}") from None


def _field_bytes(packed: bool, n: int) -> int:
    """Returns the length of a field with the shortest header for `n` bytes of content."""
    return n + (1 if n < 32 and not packed else 2 if n < 256 else 3)


def _unpacked(frame: bytes) -> bytes:
    declared = _declared(frame)
    if declared is None or not 1 <= declared <= MAX_LITERALS_BYTES:
        got = "another kind of frame" if declared is None else str(declared)
        raise DecodeError(f"expected a zstd frame that declares 1 to {MAX_LITERALS_BYTES} bytes, got {got}")
    try:
        return zstandard.ZstdDecompressor().decompress(
            ZSTD_MAGIC + frame, max_output_size=MAX_LITERALS_BYTES, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise DecodeError(f"expected one whole zstd frame as literals, got: {error}") from None


def _declared(frame: bytes) -> int | None:
    """Reads the size that a frame declares, where its header is one of the two that are allowed."""
    if frame[:1] == b"\x20" and len(frame) >= 2:
        return frame[1]
    if frame[:1] == b"\x60" and len(frame) >= 3:
        return 256 + int.from_bytes(frame[1:3], "little")
    return None
