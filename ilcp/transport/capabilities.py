"""The capabilities that a receiver announces, and a sender's choice by them.

Nothing is ever sent in a lesser way than was asked for.

>>> planner = Capabilities(codec_ids=("00112233445566aa",), text=True)
>>> choose(["00112233445566aa"], planner)
Choice(codec_id='00112233445566aa', sealed=False, why='the receiver reads it')
>>> choose(["ffffffffffffffff"], planner, text=True).codec_id is None  # text: asked for, and told
True
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Self

from ilcp.errors import DecodeError
from ilcp.message import CODEC_ID_BYTES
from ilcp.message.format import VERSION
from ilcp.transport.backend import MAX_CAPABILITIES_BYTES
from ilcp.transport.errors import AddressError, CapabilityError

__all__ = ["Capabilities", "Choice", "choose"]

_CODEC_ID = re.compile(rf"[0-9a-f]{{{2 * CODEC_ID_BYTES}}}")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """A receiver's needs: the codec ids (hex) and message versions it reads, whether it wants seals or takes text.

    Raises:
        AddressError: a field of the wrong type, or an id that is none.
    """

    codec_ids: tuple[str, ...]
    versions: tuple[int, ...] = (VERSION,)
    sealed: bool = False
    text: bool = False

    def __post_init__(self) -> None:
        ids: tuple[object, ...] = tuple(self.codec_ids)
        versions, flags = tuple(self.versions), {type(self.sealed), type(self.text)}
        object.__setattr__(self, "codec_ids", ids)
        object.__setattr__(self, "versions", versions)
        for one in ids:
            if not isinstance(one, str) or not _CODEC_ID.fullmatch(one):
                raise AddressError(f"expected codec_ids of 16 hex digits each, got {one!r}")
        if not all(type(v) is int and 0 < v < 256 for v in versions):
            raise AddressError(f"expected versions of 1 to 255, got {versions!r}")
        if flags != {bool}:
            raise AddressError(f"expected sealed and text as booleans, got {self.sealed!r} and {self.text!r}")

    def to_bytes(self) -> bytes:
        """Writes them as JSON.

        Raises:
            CapabilityError: more codecs than one receiver can have.
        """
        body = json.dumps(asdict(self), separators=(",", ":")).encode()
        if len(body) > MAX_CAPABILITIES_BYTES:
            raise CapabilityError(f"expected at most {MAX_CAPABILITIES_BYTES} bytes of capabilities, got {len(body)}")
        return body

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Reads what a receiver published. Fields that this release does not know are left aside.

        Raises:
            DecodeError: it is no JSON of these fields.
        """
        try:
            if len(body) > MAX_CAPABILITIES_BYTES:
                raise ValueError(f"{len(body)} bytes")
            read = json.loads(body)
            known = {name: read[name] for name in ("codec_ids", "versions", "sealed", "text")}
            if not isinstance(known["codec_ids"], list) or not isinstance(known["versions"], list):
                raise TypeError("codec_ids and versions are lists")
            return cls(**known)
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            said = f"{type(error).__name__}: {error}"
            raise DecodeError(f"expected a receiver's capabilities as JSON, got something else: {said}") from error


@dataclass(frozen=True, slots=True)
class Choice:
    """A way of sending: with the codec of that id, or as text where ``codec_id`` is None; ``why`` says it in words.

    Text goes as the message of a text codec (`text-plain`), whose own codec id shows what it is; a receiver that takes
    text holds that codec beside the others.
    """

    codec_id: str | None
    sealed: bool
    why: str


def choose(
    codec_ids: Sequence[str],
    theirs: Capabilities,
    *,
    sealed: bool = False,
    text: bool = False,
    version: int = VERSION,
) -> Choice:
    """Picks the first of the sender's codecs that the receiver reads; text only where ``text`` asks for it and they do.

    ``sealed`` says whether the sender seals: a receiver that wants seals takes nothing else, and one that holds no key
    cannot read them.

    Raises:
        CapabilityError: they have no codec, version or seal in common, and text was not asked for or is not taken.
    """
    if version not in theirs.versions:
        raise CapabilityError(
            f"expected a receiver of message version {version}, got {theirs.versions}: update one end"
        )
    if sealed != theirs.sealed:
        wants, does = ("sealed" if on else "bare" for on in (theirs.sealed, sealed))
        raise CapabilityError(f"expected {wants} messages, as the receiver wants, got {does}: give both ends the key")
    for codec_id in codec_ids:
        if codec_id in theirs.codec_ids:
            return Choice(codec_id, sealed, "the receiver reads it")
    ours = ", ".join(codec_ids) or "none"
    missing = f"expected a codec that the receiver reads ({', '.join(theirs.codec_ids) or 'none'}), got {ours}"
    if not text:
        raise CapabilityError(f"{missing}: give both ends the same codec, or ask for text=True")
    if not theirs.text:
        raise CapabilityError(f"{missing}, and it takes no text: give both ends the same codec")
    return Choice(None, sealed, "text, as asked: the receiver reads none of the sender's codecs")
