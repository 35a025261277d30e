"""Encrypts what messages hide, and the blobs beside them, as ``ilcp.message`` specifies.

    >>> from ilcp.message.encryption import decrypted, encrypted
    >>> key, nonce = bytes(range(32)), bytes(12)
    >>> decrypted(key, nonce, encrypted(key, nonce, b"latent", b"beside"), b"beside")
    b'latent'

AES-256-GCM-SIV (RFC 8452): under a nonce that comes twice it tells only whether both said the same. The package behind
it is loaded when it is used, so that who neither writes nor reads encrypted messages does without.
"""

from hashlib import blake2b
from typing import Any

from ilcp.errors import ConfigError, DecodeError, MissingExtraError

__all__ = [
    "SEGMENT_BYTES",
    "TAG_BYTES",
    "decrypted",
    "decrypted_blob",
    "encrypted",
    "encrypted_blob",
    "plain_bytes",
    "require_encryption",
]

TAG_BYTES = 16
SEGMENT_BYTES = 2**20  # 16 bytes of tag for each are 0.0015 %; a reader that streams holds one
_MESSAGE, _BLOB = b"ilcp encryption", b"ilcp blob"  # BLAKE2b's personalisation: a key of its own for each purpose


def encrypted(key: bytes, nonce: bytes, plain: bytes, beside: bytes) -> bytes:
    """Returns the ciphertext of ``plain``, and behind it the tag, which covers what stands ``beside`` it too.

    Args:
        key: what seals messages; the key of the cipher is derived from it.
        nonce: 12 bytes.

    Raises:
        MissingExtraError: cryptography is not installed, or too old.
    """
    return bytes(_cipher(key, _MESSAGE).encrypt(nonce, plain, beside))


def decrypted(key: bytes, nonce: bytes, ciphertext: bytes, beside: bytes) -> bytes | None:
    """Returns what was encrypted; None where the key is another, or anything was altered.

    Raises:
        DecodeError: cryptography is not installed, or too old: this reader is as one of an older version.
    """
    return _opened(_reading(key, _MESSAGE), nonce, ciphertext, beside)


def encrypted_blob(key: bytes, nonce: bytes, plain: bytes) -> bytes:
    """Returns the blob to put beside the encrypted message of that key and nonce: in segments, a tag behind each.

    Raises:
        MissingExtraError: as ``encrypted``.
    """
    cipher, view = _cipher(key, _BLOB, nonce), memoryview(plain)
    return b"".join(
        cipher.encrypt(_place(at, SEGMENT_BYTES, len(view)), view[at : at + SEGMENT_BYTES], None)
        for at in range(0, len(view), SEGMENT_BYTES)
    )


def decrypted_blob(key: bytes, nonce: bytes, ciphertext: bytes) -> bytes:
    """Returns what ``encrypted_blob`` was given.

    Raises:
        DecodeError: it is not a blob of that message, whole and in order; or as ``decrypted``.
    """
    cipher, view, step = _reading(key, _BLOB, nonce), memoryview(ciphertext), SEGMENT_BYTES + TAG_BYTES
    found: list[bytes] = []
    for at in range(0, len(view), step):
        plain = _opened(cipher, _place(at, step, len(view)), view[at : at + step], None)
        if not plain:  # nor may a segment be empty: each blob has one encryption
            raise DecodeError(
                f"expected a blob that was encrypted for this message, got other bytes in segment {at // step}: drop it"
            )
        found.append(plain)
    return b"".join(found)


def plain_bytes(ciphertext_bytes: int) -> int:
    """Returns how many bytes an encrypted blob of that size stands for."""
    return ciphertext_bytes - TAG_BYTES * -(-ciphertext_bytes // (SEGMENT_BYTES + TAG_BYTES))


def require_encryption(key: object) -> None:
    """Refuses to go on where nothing can be encrypted.

    Raises:
        ConfigError: there is no key.
        MissingExtraError: as ``encrypted``.
    """
    if key is None:
        raise ConfigError("expected a key to encrypt with, got none: give key= what both ends share")
    _cipher(b"any", _MESSAGE)


def _place(at: int, step: int, size: int) -> bytes:
    """Returns the nonce of the segment that begins ``at``: its number in 11 bytes, and whether it is the last."""
    return (at // step).to_bytes(11, "big") + bytes([at + step >= size])


def _cipher(key: bytes, purpose: bytes, about: bytes = b"") -> Any:
    derived = blake2b(about, key=key, digest_size=32, person=purpose).digest()
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

        return AESGCMSIV(derived)
    except Exception as error:  # it is not there, does not know the cipher yet, or its OpenSSL is older than 3.2
        raise MissingExtraError.of("cryptography>=43", "for encrypted messages", "encrypt") from error


def _reading(key: bytes, purpose: bytes, about: bytes = b"") -> Any:
    try:
        return _cipher(key, purpose, about)
    except MissingExtraError as error:  # anybody can send what looks encrypted: that must not stop a receiver
        raise DecodeError(str(error)) from error


def _opened(cipher: Any, nonce: bytes, ciphertext: bytes | memoryview, beside: bytes | None) -> bytes | None:
    from cryptography.exceptions import InvalidTag

    try:
        return bytes(cipher.decrypt(nonce, ciphertext, beside))
    except InvalidTag:  # what is shorter than a tag has none
        return None
