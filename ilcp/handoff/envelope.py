"""A payload in its envelope: a message, beside it a blob where the payload is larger than a message holds."""

from typing import TYPE_CHECKING

from ilcp.errors import EncodeError
from ilcp.message import MAX_PAYLOAD_BYTES, Blob, Message, Seal
from ilcp.message.format import fitted

if TYPE_CHECKING:
    from ilcp.handoff.sender import Sender

__all__ = ["packed"]


def packed(sender: "Sender", payload: bytes, literals: tuple[str, ...] = ()) -> bytes:
    """Returns the message of ``Sender.pack``, which says what it raises; nobody is told of it."""

    def put(large: bytes) -> Blob:
        if sender.blobs is None:
            raise EncodeError(
                f"expected a payload of at most {MAX_PAYLOAD_BYTES} bytes, got {len(large)}: give Sender or "
                "load_pair an open connection that takes it (blobs=), or choose a codec of fewer bytes"
            )
        return sender.blobs.put_blob(large)

    payload, blob = fitted(payload, put)
    seal = None if sender.key is None else Seal.fresh(ttl_s=sender.ttl_s)
    message = Message(sender.codec_id, payload, seal, literals=literals, blob=blob)
    return message.to_bytes(sender.key, audience=sender.audience)
