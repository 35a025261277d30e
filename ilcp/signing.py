"""Ed25519 (RFC 8032): who measured a codec, and who keeps a ledger, signs with a seed of 32 bytes that is theirs alone.

Public keys and signatures are hex wherever they are written down. The package behind it is loaded when it is used.
"""

import os
from pathlib import Path
from secrets import token_hex
from typing import Any

from ilcp.errors import ConfigError, MissingExtraError, StorageError
from ilcp.files import write_whole
from ilcp.folders import read_whole

__all__ = ["SEED_BYTES", "is_signed", "public_key", "seed_in", "signature"]

SEED_BYTES = 32  # of a signing key, and of its public half


def public_key(seed: bytes) -> str:
    """Returns the public half of a signing key, in hex.

    Raises:
        MissingExtraError: cryptography is not installed.
        ConfigError: the key has another length.
    """
    return str(_private(seed).public_key().public_bytes_raw().hex())


def signature(seed: bytes, content: bytes) -> str:
    """Returns the signature of a content, in hex.

    Raises:
        MissingExtraError, ConfigError: as ``public_key``.
    """
    return str(_private(seed).sign(content).hex())


def is_signed(public: str, content: bytes, by: str) -> bool:
    """Says whether ``by`` (hex) is the signature of a content under a public key (hex); what is no hex is none.

    Raises:
        MissingExtraError: cryptography is not installed.
    """
    ed25519 = _ed25519()
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(by), content)
    except Exception:  # a hexadecimal that is none, another length, or InvalidSignature: all mean this
        return False
    return True


def seed_in(file: Path) -> bytes:
    """Returns the signing key that a file holds in hex; where there is no file, one is made, for its owner only.

    Raises:
        MissingExtraError: cryptography is not installed.
        ConfigError: the file cannot be read or made, or holds no such key.
    """
    _ed25519()
    try:
        if not os.path.lexists(file):
            write_whole(file, token_hex(SEED_BYTES) + "\n", private=True, new=True)
        seed = bytes.fromhex(read_whole(file).decode("ascii"))
    except (OSError, ValueError, StorageError) as error:
        raise ConfigError(f"expected a signing key in hex in {file}, got: {error}") from error
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"expected a signing key of {SEED_BYTES} bytes in {file}, got {len(seed)}")
    return seed


def _private(seed: bytes) -> Any:
    if len(seed) != SEED_BYTES:
        raise ConfigError(f"expected a signing key of {SEED_BYTES} bytes, got {len(seed)}")
    return _ed25519().Ed25519PrivateKey.from_private_bytes(seed)


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError.of("cryptography", "for signatures", "sign") from error
    return ed25519
