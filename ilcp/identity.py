"""Who a model is: the record that a codec keeps of its sender and its receiver, and how two are compared.

A soft prompt for the wrong model is silent garbage, so a codec knows its sender and its receiver by their weights:
another checkpoint of the same configuration has another identity. Digests are blake2b-128 in hex.
``ilcp.models.fingerprint`` makes the record of a loaded model; this module loads no torch.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from ilcp.errors import IdentityError, IlcpError
from ilcp.records import read_record

__all__ = ["ANY", "ModelIdentity", "digest", "digest_all", "require_same"]


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model on one side of a hand-off. ``ANY`` (every field empty) fits every model, as a text codec does."""

    weights: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    dtype: str = ""
    adapters: str = ""

    @classmethod
    def from_dict(
        cls, record: Any, where: str = "the model's identity", *, error: type[IlcpError] = IdentityError
    ) -> "ModelIdentity":
        """Reads the identity that ``asdict`` wrote.

        Args:
            where: the record's place, for people.
            error: what is raised.

        Raises:
            IlcpError: ``error``: a field is missing, unknown or no text.
        """
        expected = {field.name for field in fields(cls)}
        if isinstance(record, Mapping) and not expected <= set(record):
            raise error(f"expected identity fields {sorted(expected)} in {where}, got {sorted(record)}")
        return read_record(cls, record, where, error=error)

    def digest(self) -> bytes:
        """Returns the digest of all fields, 16 bytes."""
        return digest(json.dumps(asdict(self), sort_keys=True).encode())


ANY = ModelIdentity()


def digest(*parts: bytes) -> bytes:
    """Returns the blake2b-128 of the parts, each preceded by its length, so that no two lists of parts collide."""
    return digest_all(parts)


def digest_all(parts: Iterable[bytes | memoryview]) -> bytes:
    """Returns the same as ``digest``, taking one part at a time: a large model is never held twice."""
    hasher = blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.digest()


def require_same(side: str, expected: ModelIdentity, actual: ModelIdentity) -> None:
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
