"""Evidence of what a codec is worth: the result that stands in its folder, and that a receiver asks for.

A codec whose message says no more than another case's message is a codec whose receiver makes its answers up. So
``Receiver`` takes no codec without ``Evidence``, and none whose content gain is not above zero with its interval,
unless its caller says ``allow_unmeasured=True``. ``ilcp measure --attach`` writes it.

It is what the folder says of itself, and who can write there can write any. ``ilcp measure --sign`` therefore signs it
(Ed25519, RFC 8032): the signature binds every figure, the codec's id, its settings, the cases and who measured, and a
receiver that is told whom to ``trust`` takes no other.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite, nan
from typing import Any

from ilcp.errors import ConfigError, UnmeasuredError
from ilcp.identity import digest
from ilcp.records import read_record, renamed
from ilcp.signing import SEED_BYTES, is_signed, public_key, signature

__all__ = [
    "EARLIER_ARMS",
    "Evidence",
    "digest_of_settings",
    "require_evidence",
    "require_settings",
    "require_signed",
    "signed",
    "trusted_keys",
]

SIGNED = b"ilcp evidence 2\0"  # before what is signed: no other signature of the same key passes for one

# What reports and evidence of before call an arm; the name that it has.
EARLIER_ARMS = {"other": "mismatched", "literals-other": "literals-mismatched"}
MOST_TOLD = 400  # characters of evidence in an error: its task and arms may have any names
MOST_ITEMS = 10**9  # more than anybody asks
ROUNDED = 1e-3  # of figures with four places


@dataclass(frozen=True, slots=True)
class Evidence:
    """The controls of one measurement: of which codec, on which task, and how the message fared.

    ``content_gain`` is the message minus another case's message, with its 95 % interval, in ``unit`` (exact match, or
    nats where answers go on); ``arms`` holds the mean of the message, of each control and of the full text. Signed
    evidence also holds digests of the cases and of the codec's settings, the public key of who measured, and the
    signature, all in hex. When it was measured, and with which release of transformers, evidence of before does not
    say (0 and empty): see ``ilcp.assurance.Policy``.
    """

    codec_id: str
    task: str
    n: int
    seed: int
    unit: str
    content_gain: float
    low: float | None
    high: float | None
    arms: Mapping[str, float]
    commit: str
    task_digest: str = ""
    settings_digest: str = ""
    measured_by: str = ""
    signature: str = ""
    measured_unix_s: int = 0
    transformers: str = ""

    def require_sound(self) -> None:
        """Refuses figures that no measurement gives: who wrote them may be anybody.

        Raises:
            UnmeasuredError: with what was expected.
        """
        message, other = (self.arms.get(name, nan) for name in ("message", "mismatched"))
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        figures = (self.content_gain, *bounds, *self.arms.values())
        expected = {
            "the arms message and mismatched": {"message", "mismatched"} <= self.arms.keys(),
            "finite figures": all(map(isfinite, figures)),
            "shares from 0 to 1": self.unit != "exact match" or all(0 <= value <= 1 for value in self.arms.values()),
            "a content gain that is the difference of its arms": abs(message - other - self.content_gain) < ROUNDED,
            "n of at least 2 where there is an interval": self.n >= (2 if bounds else 1),
            f"n of at most {MOST_ITEMS}": self.n <= MOST_ITEMS,
            "an interval around the content gain": not bounds
            or (len(bounds) == 2 and bounds[0] <= self.content_gain <= bounds[1]),
        }
        for what, is_so in expected.items():
            if not is_so:
                raise UnmeasuredError(f"expected {what}, got {str(self)[:MOST_TOLD]}: measure again")

    @property
    def holds(self) -> bool:
        """Says whether the content gain is above zero with its interval."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        known = self.low is not None and self.high is not None
        interval = f"[{self.low:.3f}, {self.high:.3f}]" if known else "without an interval"
        arms = ", ".join(f"{name} {value:.3f}" for name, value in self.arms.items())
        return f"content gain {self.content_gain:.3f} {interval} ({self.unit}: {arms}) on {self.task}, n={self.n}"

    @classmethod
    def from_dict(cls, record: Any) -> "Evidence":
        """Reads the evidence that ``dataclasses.asdict`` wrote.

        Raises:
            UnmeasuredError: a field is missing, unknown or of another type, or no measurement gives such figures.
        """
        try:
            found = read_record(cls, record, "the evidence")
            found = replace(found, arms=renamed(found.arms, EARLIER_ARMS, "the evidence"))
        except ConfigError as error:
            raise UnmeasuredError(f"{error}: measure again") from None
        found.require_sound()
        return found


def require_evidence(evidence: Evidence | None, codec_id: str) -> None:
    """Refuses a codec that was not measured, or that was and says nothing.

    Raises:
        UnmeasuredError: the text says what was measured, and what to do.
    """
    way_out = "measure it with 'ilcp measure --attach', or pass allow_unmeasured=True if you know why"
    if evidence is None:
        raise UnmeasuredError(
            f"expected a codec that was measured against its controls, got one that was not: {way_out}"
        )
    if evidence.codec_id != codec_id:
        raise UnmeasuredError(
            f"expected the evidence of codec {codec_id}, got that of {evidence.codec_id}: weights or models "
            f"differ; {way_out}"
        )
    evidence.require_sound()
    if not evidence.holds:
        raise UnmeasuredError(
            f"expected a content gain above zero with its interval, got {evidence}: the message says no more than "
            "another case's message; train it further, or pass allow_unmeasured=True if you know why"
        )


def digest_of_settings(settings: Mapping[str, Any], trained: Mapping[str, Any]) -> str:
    """Returns the digest, in hex, of what a codec's id leaves open: its settings and what is known of its models."""
    return digest(json.dumps([settings, trained], sort_keys=True).encode()).hex()


def require_settings(evidence: Evidence, settings: str) -> None:
    """Refuses signed evidence of other settings than a codec's, whose digest is given; what is not signed says nothing.

    Raises:
        UnmeasuredError: with what was expected.
    """
    if evidence.signature and evidence.settings_digest != settings:
        got = "others" if evidence.settings_digest else "a signature of before settings were signed"
        raise UnmeasuredError(f"expected the settings that {evidence.measured_by} measured, got {got}: measure again")


def signed(evidence: Evidence, seed: bytes, task_digest: str, settings: str) -> Evidence:
    """Returns the evidence with a signature.

    Args:
        seed: the signing key, 32 bytes that nobody else has.
        task_digest: of the cases that were measured, as ``ilcp.tasks.cases_digest`` gives it.
        settings: the digest of the codec's, as ``ilcp.codec.folder.settings_of`` gives it.

    Raises:
        MissingExtraError: cryptography is not installed.
        ConfigError: the key has another length.
    """
    known = replace(evidence, task_digest=task_digest, settings_digest=settings, measured_by=public_key(seed))
    return replace(known, signature=signature(seed, _content(known)))


def require_signed(evidence: Evidence | None, trust: Iterable[str], codec_id: str) -> None:
    """Refuses evidence that none of those trusted signed (public keys in hex), or that is another codec's.

    Raises:
        MissingExtraError: cryptography is not installed.
        UnmeasuredError: there is no evidence, no signature, one of somebody else, or one of something else.
    """
    by = "" if evidence is None else evidence.measured_by
    if evidence is None or not evidence.signature or by not in trust:
        got = f"some signed by {by}" if evidence is not None and evidence.signature else "none that is signed"
        raise UnmeasuredError(f"expected evidence that somebody trusted signed, got {got}: see 'ilcp measure --sign'")
    if not is_signed(by, _content(evidence), evidence.signature):
        raise UnmeasuredError(
            f"expected evidence as {by} signed it, got figures or a codec that it did not sign: measure again"
        )
    if evidence.codec_id != codec_id:
        raise UnmeasuredError(
            f"expected the evidence of codec {codec_id}, got that of {evidence.codec_id} by {by}: measure again"
        )
    if not evidence.settings_digest:
        require_settings(evidence, "the codec's")


def trusted_keys(keys: Iterable[str | bytes]) -> tuple[str, ...]:
    """Returns public keys in hex.

    Raises:
        ConfigError: one of them is no public key, or there is none.
    """
    some: Iterable[Any] = () if isinstance(keys, str | bytes) else keys
    found = tuple(key.hex() if isinstance(key, bytes) else key.lower() if isinstance(key, str) else key for key in some)
    for key in found:
        if not isinstance(key, str) or len(key) != 2 * SEED_BYTES or set(key) - set("0123456789abcdef"):
            raise ConfigError(f"expected public keys of {SEED_BYTES} bytes, as bytes or in hex, got {key!r}")
    if not found:
        raise ConfigError("expected a list of public keys to trust, got none: leave trust out to trust every folder")
    return found


def _content(evidence: Evidence) -> bytes:
    """Returns what is signed; a field that came later and says nothing is left out, as it was."""
    held = asdict(replace(evidence, signature=""))
    later = {"measured_unix_s", "transformers"}
    return SIGNED + json.dumps({k: v for k, v in held.items() if v or k not in later}, sort_keys=True).encode()
