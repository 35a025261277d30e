"""Messages as they may be shown: part by part, verified or not."""

from dataclasses import dataclass
from typing import Literal

from ilcp.message.format import BytesLike, Kind, Part, authentic, opened, parse, parts
from ilcp.message.keys import Key, keys_of

__all__ = ["Description", "describe"]

CheckState = Literal["valid", "valid under the key", "not verified: no key given"]


@dataclass(frozen=True, slots=True)
class Description:
    """A message as it may be shown (ids in hex); `parts` accounts for every one of its `total_bytes`."""

    version: int
    kind: Kind
    codec_id: str
    total_bytes: int
    parts: tuple[Part, ...]
    check: CheckState
    handoff_id: str | None
    expires_unix_s: int | None
    blob_bytes: int | None
    blob_digest: str | None


def describe(data: BytesLike, *, key: Key | None = None, audience: str | None = None) -> Description:
    """Describes `data` part by part. An expired message is described, not refused.

    Raises:
        DecodeError: bytes that are not a whole, canonical, undamaged message.
        AuthenticationError: a key and audience that do not verify the message, or a key given for a bare one.
        ConfigError: a key not of 16 to 64 bytes.
    """
    keys = keys_of(key, audience)
    parsed = parse(data)
    found, seal, blob = authentic(parsed, keys), parsed.seal, parsed.blob
    if seal is None or found:
        opened(parsed)
    return Description(
        version=parsed.version,
        kind=parsed.kind,
        codec_id=parsed.codec_id.hex(),
        total_bytes=len(parsed.wire),
        parts=parts(parsed),
        check="valid" if seal is None else "valid under the key" if found else "not verified: no key given",
        handoff_id=None if seal is None else seal.handoff_id.hex(),
        expires_unix_s=None if seal is None else seal.expires_unix_s,
        blob_bytes=None if blob is None else blob.size_bytes,
        blob_digest=None if blob is None else blob.digest.hex(),
    )
