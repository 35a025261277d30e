"""Who a model is: the record that a codec keeps of its sender and its receiver, and how two are compared.

A soft prompt for the wrong model is silent garbage, so a codec knows its sender and its receiver by their weights:
another checkpoint of the same configuration has another identity. Digests are blake2b-128 in hex. The same weights
under another configuration are another function, and are known by the states of a sentence, compared up to rounding;
so are those under hooks, other methods and numbers that were put into a model after it was checked.
``ilcp.models.fingerprint`` makes the record of a loaded model; this module loads no torch.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from hashlib import blake2b
from typing import Any

from ilcp.errors import ConfigError, IdentityError, IlcpError
from ilcp.records import read_record

__all__ = ["ANY", "HERE", "LARGEST", "ModelIdentity", "differs", "digest", "digest_all", "require_same"]

MOST_CHARACTERS, LARGEST = 1000, 1e9  # of the states


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """The model on one side of a hand-off. ``ANY`` (every field empty) fits every model, as a text codec does.

    ``states`` holds numbers of ``ilcp.models.probe``; empty where nothing is known, as in a codec of before they were.
    They are rounded otherwise on every machine: no part of what makes two identities equal, nor of a codec's id.
    """

    weights: str = ""
    tokenizer: str = ""
    chat_template: str = ""
    dtype: str = ""
    adapters: str = ""
    states: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if len(self.states) > MOST_CHARACTERS or not all(abs(value) < LARGEST for value in self._numbers()):
            raise ConfigError(f"expected states as numbers with a space between, got {self.states[:40]!r}")

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
        expected = {each.name for each in fields(cls) if each.compare}
        if isinstance(record, Mapping) and not expected <= set(record):
            raise error(f"expected identity fields {sorted(expected)} in {where}, got {sorted(record)}")
        return read_record(cls, record, where, error=error)

    @property
    def exact(self) -> dict[str, str]:
        """The fields that are equal wherever the model is the same."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.compare}

    def _numbers(self) -> list[float]:
        try:
            return [float(value) for value in self.states.split()]
        except ValueError:
            return [math.nan]

    def apart(self, other: "ModelIdentity") -> float:
        """Returns the distance of the states, as a share of the own norm; 0 where they were not kept alike."""
        before, now = self._numbers(), other._numbers()
        if len(before) != len(now) or not before:
            return 0.0
        return math.dist(before, now) / max(math.hypot(*before), 1e-12)

    def digest(self) -> bytes:
        """Returns the digest of the exact fields, 16 bytes."""
        return digest(json.dumps(self.exact, sort_keys=True).encode())


ANY = ModelIdentity()
ROUNDING = {"full": 0.01, "half": 0.1}  # of the states' norm, from machine to machine
HERE = {"full": 0.002, "half": 0.1}  # in one process, between kinds of attention


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


def require_same(
    side: str, expected: ModelIdentity, actual: ModelIdentity, rounding: Mapping[str, float] = ROUNDING
) -> None:
    """Refuses ``actual`` where it is not what the codec was trained for.

    ``rounding`` is that of states, by class of dtype, as a share of their norm.

    Raises:
        IdentityError: the text names every part that differs.
    """
    if expected == ANY:
        return
    parts = differs(expected, actual, rounding)
    if parts:
        raise IdentityError(
            f"the codec was not trained for this {side}: it differs in {'; '.join(parts)}. "
            f"Load the {side} that the codec was trained for, or train a codec for this one"
        )


def differs(expected: ModelIdentity, actual: ModelIdentity, rounding: Mapping[str, float] = ROUNDING) -> list[str]:
    """Says each part that differs, with both values."""
    got = actual.exact
    parts = [
        f"{name.replace('_', ' ')} (expected {value or 'none'}, got {got[name] or 'none'})"
        for name, value in expected.exact.items()
        if value != got[name]
    ]
    apart, most = expected.apart(actual), rounding.get(expected.dtype, rounding["half"])
    if apart > most and not parts:
        parts = [
            f"states, which are {apart:.1%} apart for one sentence (rounding: {most:.1%}) though the weights are "
            "the same: its configuration is another, such as rope_theta, an activation or a norm's epsilon, or a hook "
            "or another method changes what it computes"
        ]
    return parts
