"""Loads two models and the codec between them, by default the embedded pair.

The embedded pair is a small sender, a small receiver and a trained codec, loaded offline from package data.

``benchmarks/train_pair.py`` and ``benchmarks/train_codec.py`` made the files; each folder records seed, time and score.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ilcp.assurance.policy import WARNING, Policy
from ilcp.codec.folder import CONFIG, folder_of, load, load_to_measure, training_of
from ilcp.codec.protocols import Codec
from ilcp.embedded.domain import DossierSender
from ilcp.errors import ConfigError, StorageError
from ilcp.handoff import Receiver, Sender
from ilcp.message.blob import Blobs
from ilcp.message.keys import Key
from ilcp.message.replay import ReplayCache
from ilcp.models.adapter import adapt
from ilcp.models.loading import DTYPES, load_model
from ilcp.nn.device import usable_device
from ilcp.records import read_record

__all__ = ["HERE", "Pair", "load_pair", "load_receiver", "load_sender"]

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Pair:
    """A sender, a receiver, and the folder of the codec between them."""

    sender: Sender
    receiver: Receiver
    path: Path


@dataclass(frozen=True, slots=True)
class _Plan:
    """The models that a codec was trained with by ``ilcp train``."""

    sender: str | None = None
    receiver: str | None = None
    dtype: str = "float32"


def load_pair(
    codec: str | Path | None = None,
    *,
    sender: str | Path | None = None,
    receiver: str | Path | None = None,
    key: Key | None = None,
    audience: str | None = None,
    encrypt: bool = False,
    replay: ReplayCache | None = None,
    allow_unmeasured: bool = False,
    trust: Iterable[str | bytes] | None = None,
    allow_download: bool = False,
    device: str = "cpu",
    blobs: Blobs | None = None,
    assurance: Policy | None = WARNING,
) -> Pair:
    """Loads the embedded pair; or a codec of your own with the two models that it names, or with those given.

    Args:
        codec: a folder written by ``ilcp.save``, or a hub id; None for the embedded codec.
        sender, receiver: folders, hub ids or GGUF files of the models; None for those that the codec was trained with
            by ``ilcp train``, or else for the embedded ones. A receiver that was adapted gets its adapter.
        key: 16 to 64 bytes, or an ``ilcp.KeyRing``; messages are then sealed (127 bytes) and bare ones refused.
        audience: the receiver's name, for which alone messages are then sealed; needs a key.
        encrypt: encrypts messages and their blobs (126 bytes) under the key; see ``ilcp.Sender``.
        replay: lets the receiver decode each sealed message once; needs a key.
        allow_unmeasured: takes a codec whose content gain was not measured, or is not above zero, or is damaged.
        trust: public keys of those whose signed evidence counts; see ``ilcp.Receiver``.
        allow_download: fetches models that the codec names and you do not; otherwise they have to be here already.
        device: of both models; the codec stays on the CPU.
        blobs, assurance: where large payloads are kept, and what is done in doubt; see ``ilcp.Receiver``.

    Raises:
        ConfigError: the folder holds no codec, a model cannot be loaded, or what takes a key has none.
        IdentityError: the codec was trained for another pair.
        MissingExtraError: the receiver was adapted, and peft is not installed; or to encrypt, cryptography is not.
        StorageError: a file of the codec's folder is damaged.
        UnmeasuredError: the codec's content gain was not measured, or is not above zero.
    """
    method = (load_to_measure if allow_unmeasured else load)(HERE / "codec" if codec is None else codec)
    if method.spec.reads == "cache" and method.trained.sender == method.trained.receiver:  # whichever is named is both
        sender, receiver = sender or receiver, receiver or sender
    model, tokenizer = _model(method, "receiver", receiver, device, allow_download)
    both: dict[str, Any] = dict(key=key, audience=audience, blobs=blobs)
    own: dict[str, Any] = dict(replay=replay, trust=trust, allow_unmeasured=allow_unmeasured, assurance=assurance)
    return Pair(
        _sender(method, sender, device, allow_download, encrypt=encrypt, **both),
        Receiver(adapt(model, method), tokenizer, method, **both, **own),
        folder_of(method),
    )


def load_sender(
    codec: str | Path | None = None,
    *,
    sender: str | Path | None = None,
    key: Key | None = None,
    audience: str | None = None,
    encrypt: bool = False,
    allow_download: bool = False,
    device: str = "cpu",
) -> Sender:
    """Loads the sending end alone; see ``load_pair``.

    Raises:
        ConfigError, IdentityError, MissingExtraError, StorageError: as ``load_pair``.
    """
    method = load(HERE / "codec" if codec is None else codec)
    return _sender(method, sender, device, allow_download, key=key, audience=audience, encrypt=encrypt)


def load_receiver(
    codec: str | Path | None = None,
    *,
    receiver: str | Path | None = None,
    beside: Iterable[Codec] = (),
    blobs: Blobs | None = None,
    dtype: str | None = None,
    allow_unmeasured: bool = False,
    allow_download: bool = False,
    device: str = "cpu",
) -> Receiver:
    """Loads the receiving end alone, which takes bare messages; see ``load_pair``.

    Args:
        beside: codecs that it takes messages of, too.
        dtype: of the model: float32, bfloat16 or float16; None for that of the codec's training.

    Raises:
        ConfigError, IdentityError, MissingExtraError, StorageError, UnmeasuredError: as ``load_pair``.
    """
    method = (load_to_measure if allow_unmeasured else load)(HERE / "codec" if codec is None else codec)
    model, tokenizer = _model(method, "receiver", receiver, device, allow_download, dtype)
    codecs = [method, *beside]
    return Receiver(adapt(model, method), tokenizer, codecs, blobs=blobs, allow_unmeasured=allow_unmeasured)


def _sender(codec: Codec, given: str | Path | None, device: str, download: bool, **options: Any) -> Sender:
    """Makes the sending end; that of the embedded codec says when a text is outside what it knows."""
    embedded = json.loads((HERE / "codec" / CONFIG).read_text(encoding="utf-8"))["codec_id"]
    kind = DossierSender if codec.trained.codec_id(codec.spec).hex() == embedded else Sender
    return kind(*_model(codec, "sender", given, device, download), codec, **options)


def _model(
    codec: Codec, side: str, given: str | Path | None, device: str, download: bool, dtype: str | None = None
) -> tuple[Any, Any]:
    """Loads the model of one side: the one given, the one that the codec's training names, or the embedded one."""
    plan = _plan(folder_of(codec))
    named = getattr(plan, side)
    usable_device(device)  # before what another place of the model might mend
    wanted: dict[str, Any] = dict(dtype=dtype or plan.dtype, device=device, encoder=True)
    try:
        return load_model(given or named or HERE / side, **wanted, download=bool(given) or download)
    except ConfigError as error:
        if given or not named:
            raise
        raise ConfigError(
            f"{error}; the codec names it as its {side}: say where it is with {side}=, or let what a codec names be "
            "fetched from a hub with allow_download=True"
        ) from error


def _plan(folder: Path) -> _Plan:
    """Reads the models that a codec's training names; none where it names none."""
    where = f"training.plan in {folder / CONFIG}"
    record = training_of(folder).get("plan")
    if isinstance(record, dict):  # the plan holds the rest of the recipe too
        record = {field.name: record[field.name] for field in fields(_Plan) if field.name in record}
    plan = read_record(_Plan, {} if record is None else record, where, error=StorageError)
    if plan.dtype not in DTYPES:
        raise StorageError(f"expected a dtype of {', '.join(DTYPES)} in {where}, got {plan.dtype!r}")
    return plan
