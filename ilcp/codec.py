"""The codec seam: what every method of handing context over looks like from outside.

::

    Context --encode--> payload (bytes) --decode--> Memory

A codec is a folder on disk: ``config.json`` (which codec, its spec, whom it was trained for, how),
``model.safetensors`` (weights, where it has any) and ``README.md`` (a card for people). Codecs are found through the
entry-point group ``ilcp.codecs``; the built-in ones use that same door.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from ilcp.context import Context
from ilcp.errors import EncodeError, UnprovenError
from ilcp.identity import ModelIdentity, digest
from ilcp.memory import Memory
from ilcp.message import CODEC_ID_BYTES, MAX_PAYLOAD_BYTES
from ilcp.proof import Proof

__all__ = ["Codec", "CodecSpec", "Trained", "codec_class", "codec_names", "load", "prove", "save"]

ENTRY_POINTS = "ilcp.codecs"
FORMAT = 1  # of config.json; another number is refused
MEASURED = "## Measured, with its controls"


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """The outside of a codec: its name, what it reads, and how long its payloads are.

    ``payload_bytes`` is the largest payload; ``prefixes`` are the lengths at which a learned payload may be cut
    (ascending, the last one is ``payload_bytes``), empty where payloads are as long as they come out.
    """

    name: str
    payload_bytes: int
    reads: Literal["states", "text"]
    prefixes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.payload_bytes <= MAX_PAYLOAD_BYTES:
            raise EncodeError(f"expected payload_bytes from 1 to {MAX_PAYLOAD_BYTES}, got {self.payload_bytes}")
        if self.reads not in ("states", "text"):
            raise EncodeError(f"expected a codec to read 'states' or 'text', got {self.reads!r}")
        if self.prefixes and (sorted(set(self.prefixes)) != list(self.prefixes) or self.prefixes[0] < 1):
            raise EncodeError(f"expected prefixes in ascending order from 1 byte, got {self.prefixes}")
        if self.prefixes and self.prefixes[-1] != self.payload_bytes:
            raise EncodeError(f"expected the last prefix to be payload_bytes={self.payload_bytes}, got {self.prefixes}")

    def length(self, payload_bytes: int | None) -> int:
        """The payload length that a caller's ``payload_bytes`` means; None is the longest.

        Raises:
            EncodeError: the codec has no payload of that length.
        """
        if payload_bytes is None:
            return self.payload_bytes
        allowed = self.prefixes or range(1, self.payload_bytes + 1)
        if payload_bytes not in allowed:
            shown = ", ".join(map(str, self.prefixes)) or f"1 to {self.payload_bytes}"
            raise EncodeError(
                f"expected payload_bytes to be one of {shown} for codec {self.name!r}, got {payload_bytes}"
            )
        return payload_bytes


@dataclass(frozen=True, slots=True)
class Trained:
    """Whom a codec was trained for, and the digest of what training left in it."""

    sender: ModelIdentity
    receiver: ModelIdentity
    weights: str = ""

    def codec_id(self, spec: CodecSpec) -> bytes:
        """The eight bytes that a message carries: spec, codec weights, sender and receiver in one digest."""
        outside = json.dumps(asdict(spec), sort_keys=True).encode()
        return digest(outside, self.weights.encode(), self.sender.digest(), self.receiver.digest())[:CODEC_ID_BYTES]


@runtime_checkable
class Codec(Protocol):
    """The seam. Encoding is deterministic, decoding needs nothing but the payload, and neither changes the codec.

    ``proof`` is what was measured of it, as found in its folder. A codec that can also say its latent before rounding
    has ``decode_unrounded(context) -> Memory``, for measuring only.
    """

    spec: CodecSpec
    trained: Trained
    proof: Proof | None

    @property
    def layers(self) -> tuple[int, ...]:
        """The sender's layers whose states ``encode`` reads, 0 being the embedding; empty where it reads text."""
        ...

    def encode(self, context: Context, payload_bytes: int | None = None) -> bytes:
        """The payload, at most ``payload_bytes`` long (None: the codec's own length).

        Raises:
            EncodeError: the context has nothing that this codec reads, or there is no payload of that length.
        """
        ...

    def decode(self, payload: bytes) -> Memory:
        """The memory that a payload stands for.

        Raises:
            DecodeError: the payload has another length, or does not decode.
        """
        ...

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes weights into ``folder``; returns what ``load_files`` needs beside them, as JSON."""
        ...

    @classmethod
    def load_files(cls, folder: Path, spec: CodecSpec, trained: Trained, settings: Mapping[str, Any]) -> "Codec":
        """The codec that ``save_files`` wrote."""
        ...


def codec_names() -> tuple[str, ...]:
    """The names of all installed codecs."""
    return tuple(sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINTS)}))


def codec_class(name: str) -> Any:
    """The class of an installed codec.

    Raises:
        EncodeError: no such codec is installed.
    """
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        if entry.name == name:
            return entry.load()
    raise EncodeError(f"expected one of the installed codecs ({', '.join(codec_names()) or 'none'}), got {name!r}")


def save(codec: Codec, folder: str | Path, *, card: str, training: Mapping[str, Any] | None = None) -> None:
    """Writes a codec as a folder: weights, ``config.json``, and ``card`` as its README.

    Raises:
        EncodeError: the folder holds something else already.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()) and not (folder / "config.json").exists():
        raise EncodeError(f"expected an empty folder or a codec's, got {folder} with other files in it: choose another")
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "format": FORMAT,
        "codec_id": codec.trained.codec_id(codec.spec).hex(),
        "spec": asdict(codec.spec),
        "settings": codec.save_files(folder),
        "trained": asdict(codec.trained),
        "training": dict(training or {}),
        "proof": None if codec.proof is None else asdict(codec.proof),
    }
    (folder / "README.md").write_text(card, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def load(folder: str | Path) -> Codec:
    """The codec saved in ``folder``, ready to encode and decode. Runs no code from the folder.

    Raises:
        EncodeError: the folder is no codec's, or a file in it is damaged or of another format.
    """
    config = Path(folder) / "config.json"
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        because = (error.strerror or "unreadable").lower()
        raise EncodeError(f"expected a codec's folder with a config.json, got {folder}: {because}") from error
    except ValueError as error:
        raise EncodeError(f"expected JSON in {config}, got something else: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise EncodeError(f"expected a codec's config.json of format {FORMAT}, got {found!r} in {config}")
    try:
        spec_record = record["spec"] | {"prefixes": tuple(record["spec"]["prefixes"])}
        spec = CodecSpec(**{field.name: spec_record[field.name] for field in fields(CodecSpec)})
        trained = Trained(
            sender=ModelIdentity.from_dict(record["trained"]["sender"]),
            receiver=ModelIdentity.from_dict(record["trained"]["receiver"]),
            weights=record["trained"]["weights"],
        )
        settings = record["settings"]
    except (KeyError, TypeError) as error:
        raise EncodeError(f"expected the fields spec, trained and settings in {config}, got {error!r}") from error
    codec: Codec = codec_class(spec.name).load_files(Path(folder), spec, trained, settings)
    codec.proof = None if record.get("proof") is None else Proof.from_dict(record["proof"])
    return codec


def prove(folder: str | Path, proof: Proof) -> None:
    """Writes what was measured of the codec in ``folder`` into its ``config.json`` and its card.

    Raises:
        EncodeError: the folder is no codec's.
        UnprovenError: the proof is another codec's.
    """
    config, card = Path(folder) / "config.json", Path(folder) / "README.md"
    found = load(folder)
    codec_id = found.trained.codec_id(found.spec).hex()
    if proof.codec_id != codec_id:
        raise UnprovenError(f"expected the proof of codec {codec_id} in {folder}, got that of {proof.codec_id}")
    record = json.loads(config.read_text(encoding="utf-8")) | {"proof": asdict(proof)}
    config.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    before = card.read_text(encoding="utf-8").split(MEASURED)[0].rstrip() if card.exists() else ""
    arms = "\n".join(f"| {name} | {value:.3f} |" for name, value in proof.arms.items())
    table = f"| arm | {proof.unit} |\n| --- | ---: |\n{arms}"
    card.write_text(f"{before}\n\n{MEASURED}\n\n{table}\n\nMeasured at {proof.commit}: {proof}.\n", encoding="utf-8")
