"""Who a model is: the record that a codec keeps of its sender and its receiver, and how two are compared.

A soft prompt for the wrong model is silent garbage, so a codec knows its sender and its receiver by their weights:
another checkpoint of the same configuration has another identity. Digests are blake2b-128 in hex.
``ilcp.models.fingerprint`` makes the record of a loaded model; this module loads no torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b

from ilcp.errors import IdentityError

__all__ = ["ANY", "ModelIdentity", "check_same", "digest", "digest_all"]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Who one side of a hand-off is. ``ANY`` (every field empty) fits every model: a text codec has no other needs."""

    weights: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    dtype: str = ""
    adapters: str = ""

    @classmethod
    def from_dict(cls, record: Mapping[str, str]) -> "ModelIdentity":
        """The identity that ``asdict`` wrote.

        Raises:
            IdentityError: a field is missing or unknown.
        """
        expected = {field.name for field in fields(cls)}
        if set(record) != expected:
            raise IdentityError(f"expected identity fields {sorted(expected)}, got {sorted(record)}")
        return cls(**record)

    def digest(self) -> bytes:
        """The digest of all fields, 16 bytes."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode())


ANY = ModelIdentity()


def digest(*parts: bytes) -> bytes:
    """blake2b-128 of the parts, each preceded by its length, so that no two lists of parts collide."""
    return digest_all(parts)


def digest_all(parts: Iterable[bytes]) -> bytes:
    """As ``digest``, one part at a time: a large model is never held twice."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def check_same(side: str, expected: ModelIdentity, actual: ModelIdentity) -> None:
    """Refuses ``actual`` where it is not what the codec was trained for.

    Raises:
        IdentityError: the text names every part that differs.
    """
    if expected == ANY:
        return
    parts = [
        f"{field.name.replace('_', ' ')} (expected {getattr(expected, field.name) or 'none'}, "
        f"got {getattr(actual, field.name) or 'none'})"
        for field in fields(ModelIdentity)
        if getattr(expected, field.name) != getattr(actual, field.name)
    ]
    if parts:
        raise IdentityError(
            f"the codec was not trained for this {side}: it differs in {'; '.join(parts)}. "
            f"Load the {side} that the codec was trained for, or train a codec for this one"
        )
