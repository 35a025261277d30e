"""A payload in its envelope, and out of it: a message, beside it a blob where the payload is larger than one holds.

Of an encrypted message the blob is encrypted as well, under a key that is that message's alone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ilcp.codec.protocols import Codec
from ilcp.errors import ConfigError, DecodeError, EncodeError
from ilcp.message import MAX_PAYLOAD_BYTES, Blob, Message, Seal, verified
from ilcp.message.encryption import decrypted_blob, encrypted_blob, plain_bytes
from ilcp.message.format import fitted
from ilcp.message.keys import sealing_key

if TYPE_CHECKING:
    from ilcp.handoff.receiver import Receiver
    from ilcp.handoff.sender import Sender

__all__ = ["Opened", "packed"]


def packed(sender: "Sender", payload: bytes, literals: tuple[str, ...] = ()) -> bytes:
    """Returns the message of ``Sender.pack``, which says what it raises; nobody is told of it."""
    key = sealing_key(sender.key, sender.audience)
    if sender.encrypt and key is None:
        raise ConfigError("expected a key to encrypt with, got none: the sender's was taken away")
    seal = None if key is None else Seal.fresh(ttl_s=sender.ttl_s)

    def put(large: bytes) -> Blob:
        if sender.blobs is None:
            raise EncodeError(
                f"expected a payload of at most {MAX_PAYLOAD_BYTES} bytes, got {len(large)}: give Sender or "
                "load_pair an open connection that takes it (blobs=), or choose a codec of fewer bytes"
            )
        if sender.encrypt and key is not None and seal is not None:
            large = encrypted_blob(key, seal.nonce, large)
        return sender.blobs.put_blob(large)

    payload, blob = fitted(payload, put)
    message = Message(sender.codec_id, payload, seal, literals=literals, blob=blob, encrypted=sender.encrypt)
    return message.to_bytes(sender.key, audience=sender.audience)


@dataclass(frozen=True, slots=True)
class Opened:
    """A message that a receiver verified, the key that did so (None for a bare one), and its whole payload."""

    wire: bytes
    parsed: Message
    key: bytes | None
    codec: Codec
    payload: bytes
    now_unix_s: int

    @classmethod
    def of(cls, receiver: "Receiver", message: bytes) -> "Opened":
        """Verifies a message and fetches its blob; ``Receiver.decode`` says what it raises. Its id is not used up."""
        now = int(receiver.clock())
        if receiver.replay is not None and receiver.key is None:
            raise ConfigError("expected a key beside the replay cache, got none: without it nothing is authenticated")
        parsed, key = verified(message, key=receiver.key, now_unix_s=now, audience=receiver.audience)
        codec, payload = receiver.codec_of(parsed.codec_id), parsed.payload
        if parsed.blob is not None:
            if receiver.blobs is None:
                raise ConfigError("expected blobs=, got none: this message names a blob; give an open connection to it")
            size = plain_bytes(parsed.blob.size_bytes) if parsed.encrypted else parsed.blob.size_bytes
            if len(payload) + size > codec.spec.payload_bytes:
                got = f"{len(payload)} and a blob of {size}"
                raise DecodeError(f"expected a payload of at most {codec.spec.payload_bytes} bytes, got {got}: drop it")
            fetched = receiver.blobs.get_blob(parsed.blob)
            if Blob.of(fetched) != parsed.blob:
                raise DecodeError("expected the blob that the message names, got other bytes: mend what keeps them")
            if parsed.encrypted and key is not None and parsed.seal is not None:
                fetched = decrypted_blob(key, parsed.seal.nonce, fetched)
            payload += fetched
        return cls(bytes(message), parsed, key, codec, payload, now)

    def admit(self, receiver: "Receiver") -> None:
        """Uses up the message's id; ``Receiver.decode`` says what it raises."""
        if receiver.replay is not None and self.key is not None and self.parsed.seal is not None:
            receiver.replay.admit(self.key, self.parsed.seal, now_unix_s=self.now_unix_s)

    def forget(self, receiver: "Receiver") -> None:
        """Lets the message in once more; raises as ``Receiver.forget``."""
        if receiver.replay is not None and self.key is not None and self.parsed.seal is not None:
            receiver.replay.forget(self.key, self.parsed.seal)
