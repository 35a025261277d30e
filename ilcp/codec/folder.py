"""A codec's folder, on disk or on a hub: saved, loaded, and given the evidence that was measured of it.

It holds ``config.json`` (which codec, its spec, whom it was trained for, how), ``model.safetensors`` (weights, where it
has any), ``README.md`` (a card for people), ``reference.safetensors`` (of its usual messages, once it was calibrated)
and, where the receiver was adapted to it, ``receiver-adapter``. Nothing in it is code, and nothing in it is a pickle.
Who wrote it may be a stranger: ``ilcp.folders`` says which files are opened.
"""

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from huggingface_hub import ModelHubMixin
from safetensors import SafetensorError

from ilcp.assurance.reference import REFERENCE, forget_others
from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class, codec_names
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, IlcpError, StorageError, UnmeasuredError
from ilcp.evidence import Evidence, digest_of_settings, require_settings
from ilcp.files import move_into, write_whole
from ilcp.folders import fetched, inside, is_hub_id, read_json, read_whole, slip
from ilcp.identity import ANY, ModelIdentity
from ilcp.records import read_record, renamed, shown

__all__ = [
    "ADAPTER",
    "ADAPTER_FILES",
    "HubCodec",
    "attach_evidence",
    "evidence_of",
    "folder_of",
    "load",
    "load_to_measure",
    "measured",
    "save",
    "settings_of",
    "training_of",
]

FORMAT = 1  # of config.json; another number is refused
MEASURED = "## Measured, with its controls"
CONFIG, CARD = "config.json", "README.md"
ADAPTER = "receiver-adapter"  # the folder of the receiver's low-rank weights
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
EXTRAS = ("*.png", "*.jsonl")  # what a card refers to
A_CODEC = "a codec's folder or its id on a hub"


@dataclass(frozen=True, slots=True)
class _Models:
    sender: dict[str, Any]
    receiver: dict[str, Any]
    weights: str


@dataclass(frozen=True, slots=True)
class _Saved:
    """A ``config.json``, but for its evidence, which may be damaged where it is measured anew."""

    spec: CodecSpec
    settings: dict[str, Any]
    trained: _Models
    training: dict[str, Any] | None = None


class HubCodec(ModelHubMixin):
    """A base for codecs that are to be saved, fetched and published as users of huggingface_hub expect.

    ``save_pretrained(folder)``, ``push_to_hub("me/my-codec")`` and ``from_pretrained(folder_or_id)`` hold the same
    files as ``ilcp.save`` and ``ilcp.load``, card, evidence and adapter among them. Weights load whole or not at all.
    """

    folder: Path | None = None

    def save_pretrained(
        self, save_directory: str | Path, *, push_to_hub: bool = False, repo_id: str | None = None, **options: Any
    ) -> str | None:
        """Saves as ``ilcp.save``; with ``push_to_hub`` returns where it was published.

        Raises:
            ConfigError, StorageError: as ``ilcp.save``.
        """
        codec: Any = self
        save(codec, save_directory)
        for name in ("config", "model_card_kwargs"):  # the mixin's own, which a codec's folder has no use for
            options.pop(name, None)
        return str(self.push_to_hub(repo_id or Path(save_directory).name, **options)) if push_to_hub else None

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **hub: Any) -> Self:
        """Returns the codec as ``ilcp.load`` does: the mixin's own would ask a hub for a path that was mistyped.

        Raises:
            ConfigError: it is another codec's; or as ``ilcp.load``, as are StorageError and IdentityError.
        """
        codec: Any = load(pretrained_model_name_or_path, **hub)
        if not isinstance(codec, cls):
            got = f"got {type(codec).__name__}: use ilcp.load"
            raise ConfigError(f"expected a codec of {cls.__name__} in {pretrained_model_name_or_path}, {got}")
        return codec


def save(
    codec: Codec,
    folder: str | Path,
    *,
    card: str | None = None,
    training: Mapping[str, Any] | None = None,
    adapter: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a codec as a folder: weights, ``config.json``, and ``card`` as its README.

    ``adapter`` are files of low-rank weights that its receiver has (``ilcp.models.adapter.adapter_files``). Of a codec
    that was loaded, what is not given is taken from where it came from, and its receiver's adapter with it.
    Files of the same names are replaced one by one, each whole; another codec's calibration does not stay.

    Raises:
        ConfigError: the folder holds something else already, or the one that the codec came from is gone.
        StorageError: it cannot be written, or the one that the codec came from is damaged.
    """
    folder = Path(folder).absolute()
    before = codec.folder
    draft = _draft_beside(folder)
    try:
        if before is not None:
            _copy(before, draft)
            training = training_of(before) if training is None else training
        for name, content in (adapter or {}).items():
            (draft / ADAPTER).mkdir(exist_ok=True)
            (draft / ADAPTER / name).write_bytes(content)
        record: dict[str, Any] = {
            "format": FORMAT,
            "codec_id": codec.trained.codec_id(codec.spec).hex(),
            "spec": asdict(codec.spec),
            "settings": _settings(codec, draft),
            "trained": asdict(codec.trained),
            "training": dict(training or {}),
            "evidence": None if codec.evidence is None else asdict(codec.evidence),
        }
        (draft / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (draft / CARD).write_text(card, encoding="utf-8")
        move_into(draft, folder)
        forget_others(folder, record["codec_id"])
    except (OSError, SafetensorError) as error:
        raise StorageError(f"expected room for a codec in {folder}, got: {error}; choose another place") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _settings(codec: Codec, draft: Path) -> dict[str, Any]:
    """Writes the codec's files, and returns its settings: those that were signed in the words of the signature, where
    defaults that came later are not spelled out."""
    settings = codec.save_files(draft)
    if codec.folder is None or codec.evidence is None or not codec.evidence.signature:
        return settings
    return _saved(_record(codec.folder, codec.folder / CONFIG), codec.folder / CONFIG).settings


def _draft_beside(folder: Path) -> Path:
    """Makes a folder that takes the codec until it is whole; raises as ``save``."""
    try:
        taken = os.path.exists(folder) and os.listdir(folder) and not os.path.exists(folder / CONFIG)
        if not taken:
            folder.parent.mkdir(parents=True, exist_ok=True)
            return Path(mkdtemp(prefix=".", suffix=".draft", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"expected room for a codec beside {folder}, got: {error}; choose another place") from error
    raise ConfigError(f"expected an empty folder or a codec's, got {folder} with other files in it: choose another")


def _copy(before: Path, folder: Path) -> None:
    """Copies what a codec's folder holds beside weights and configuration; raises as ``inside``."""
    extras = (file.name for kind in EXTRAS for file in before.glob(kind))
    names = [name for name in (CARD, REFERENCE, *extras) if os.path.lexists(before / name)]
    if os.path.lexists(before / ADAPTER):
        (folder / ADAPTER).mkdir()
        names += [f"{ADAPTER}/{name}" for name in ADAPTER_FILES]
    for name in names:
        shutil.copyfile(inside(before, name), folder / name)


def load(source: str | Path, **hub: Any) -> Codec:
    """Returns the codec in a folder or on a hub, ready to encode and decode. Runs no code from there, reads no pickle.

    Weights that are not of the shapes that the configuration says are refused before they take memory, as are settings
    that are not those of signed evidence.

    Args:
        source: a folder, or an id such as ``"me/my-codec"``, which is fetched with huggingface_hub.
        hub: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` for the latter.

    Raises:
        ConfigError: there is no codec's folder of that name, it cannot be fetched, or its codec is not installed.
        StorageError: a file in it is damaged, or of another format.
        IdentityError: the weights are not those that the codec was saved with.
    """
    codec, record = _loaded(source, hub)
    try:
        codec.evidence = _evidence(record, folder_of(codec) / CONFIG)
    except UnmeasuredError as error:
        raise StorageError(f"{folder_of(codec) / CONFIG}: {error}") from None
    return codec


def load_to_measure(source: str | Path, **hub: Any) -> Codec:
    """Returns the codec as ``load`` does, but takes damaged evidence for none: measuring again mends it.

    Raises:
        ConfigError, StorageError, IdentityError: as ``load``.
    """
    codec, record = _loaded(source, hub)
    with suppress(UnmeasuredError):
        codec.evidence = _evidence(record, folder_of(codec) / CONFIG)
    return codec


def _loaded(source: str | Path, hub: Mapping[str, Any]) -> tuple[Codec, dict[str, Any]]:
    """Returns the codec, without evidence as yet, and what its ``config.json`` holds; raises as ``load``."""
    folder = _fetched(source, hub)
    config = folder / CONFIG
    record = _record(source, config)
    saved = _saved(record, config)
    trained = _trained(saved, config)
    try:
        method = codec_class(saved.spec.name)
    except ConfigError as error:
        raise ConfigError(f"{error}: install the package of the codec that {config} names") from error
    if saved.spec.runs_sender and ANY in (trained.sender, trained.receiver):
        raise StorageError(
            f"expected the identities of both models in {config}, because codec {saved.spec.name!r} reads states, got "
            "an empty one, which would fit every model: fetch the codec again"
        )
    codec = _made(method, folder, saved, trained)
    codec.evidence, codec.folder = None, folder
    return codec, record


def _made(method: Any, folder: Path, saved: _Saved, trained: Trained) -> Codec:
    """Returns what the codec's own ``load_files`` makes; whatever a stranger's settings bring out is a StorageError."""
    try:
        codec: Codec = method.load_files(folder, saved.spec, trained, saved.settings)
    except Exception as error:
        if isinstance(error, IlcpError) and not isinstance(error, ConfigError):
            raise
        raise StorageError(
            f"expected settings of codec {saved.spec.name!r} in {folder / CONFIG}, got {type(error).__name__}: {error}"
        ) from error
    return codec


def training_of(folder: Path) -> dict[str, Any]:
    """Returns how the codec in ``folder`` was trained, in the words that ``save`` was given; empty without any.

    Raises:
        ConfigError, StorageError: as ``load``.
    """
    return _saved(_record(folder, folder / CONFIG), folder / CONFIG).training or {}


def evidence_of(folder: Path) -> Evidence | None:
    """Returns what was measured of the codec in ``folder``; None where nothing was.

    Raises:
        ConfigError, StorageError: as ``load``.
        UnmeasuredError: it is damaged.
    """
    return _evidence(_record(folder, folder / CONFIG), folder / CONFIG)


def settings_of(folder: Path) -> str:
    """Returns the digest of the settings of the codec in ``folder``, which signed evidence is bound to.

    Raises:
        ConfigError, StorageError: as ``load``.
    """
    return _digest_of(_record(folder, folder / CONFIG), folder / CONFIG)


def _digest_of(record: Mapping[str, Any], config: Path) -> str:
    saved = _saved(record, config)
    return digest_of_settings(saved.settings, asdict(_trained(saved, config)))


def _trained(saved: _Saved, config: Path) -> Trained:
    sender, receiver = (
        ModelIdentity.from_dict(getattr(saved.trained, side), f"trained.{side} in {config}", error=StorageError)
        for side in ("sender", "receiver")
    )
    return Trained(sender, receiver, saved.trained.weights)


def _saved(record: Mapping[str, Any], config: Path) -> _Saved:
    known = {field.name: record[field.name] for field in fields(_Saved) if field.name in record}
    return read_record(_Saved, known, str(config), error=StorageError)


def _evidence(record: Mapping[str, Any], config: Path) -> Evidence | None:
    try:
        found = renamed(record, {"proof": "evidence"}, CONFIG).get("evidence")
    except ConfigError as error:
        raise UnmeasuredError(str(error)) from None
    if found is None:
        return None
    evidence = Evidence.from_dict(found)
    require_settings(evidence, _digest_of(record, config))
    return evidence


def _record(source: str | Path, config: Path) -> dict[str, Any]:
    """Reads a folder's ``config.json``; raises as ``load``."""
    try:
        record = read_json(inside(config.parent, config.name))
    except OSError as error:
        because = (error.strerror or "unreadable").lower()
        raise ConfigError(
            f"expected a codec's folder with a config.json, got {source}: {because}{slip(source)}"
        ) from error
    except ValueError as error:
        raise StorageError(f"expected JSON in {config}, got something else: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise StorageError(f"expected a codec's config.json of format {FORMAT}, got {shown(found)} in {config}")
    return record


def folder_of(codec: Codec) -> Path:
    """Returns the folder that a codec was loaded from.

    Raises:
        ConfigError: it was not.
    """
    if codec.folder is None:
        raise ConfigError("expected a codec that ilcp.load gave, got one that was never saved: save it first")
    return codec.folder


def _fetched(source: str | Path, hub: Mapping[str, Any]) -> Path:
    """Returns the folder itself, or the local copy of what the hub has under that id.

    Which files that is, the codec's own class says: ``hub_files`` are patterns of what it has beside the usual.
    """
    if not isinstance(source, str | Path):
        raise ConfigError(f"expected {A_CODEC}, got {type(source).__name__}")
    place = Path(os.path.expanduser(source))
    if os.path.exists(place) or not is_hub_id(source):
        return place
    hub_id = str(source)
    first = fetched(hub_id, [CONFIG], A_CODEC, **hub)
    name = _saved(_record(source, first / CONFIG), first / CONFIG).spec.name
    own = getattr(codec_class(name), "hub_files", ()) if name in codec_names() else ()
    adapter = [f"{ADAPTER}/{file}" for file in ADAPTER_FILES]
    return fetched(hub_id, ["config.json", "*.safetensors", CARD, *EXTRAS, *adapter, *own], A_CODEC, **hub)


def measured(evidence: Evidence) -> str:
    """Returns what a card says of the evidence."""
    arms = "\n".join(f"| {name} | {value:.3f} |" for name, value in evidence.arms.items())
    table = f"| arm | {evidence.unit} |\n| --- | ---: |\n{arms}"
    by = f" Signed by `{evidence.measured_by}`." if evidence.signature else ""
    return f"{MEASURED}\n\n{table}\n\nMeasured at {evidence.commit}: {evidence}.{by}\n"


def attach_evidence(folder: str | Path, evidence: Evidence) -> None:
    """Writes what was measured of the codec in ``folder`` into its ``config.json`` and its card.

    Evidence that was there before may be damaged.

    Raises:
        ConfigError, StorageError, IdentityError: as ``load``.
        UnmeasuredError: the evidence is another codec's, or signed for other settings.
    """
    config, card = Path(folder) / CONFIG, Path(folder) / CARD
    found = load_to_measure(folder)
    codec_id = found.trained.codec_id(found.spec).hex()
    if evidence.codec_id != codec_id:
        raise UnmeasuredError(f"expected the evidence of codec {codec_id} in {folder}, got that of {evidence.codec_id}")
    try:
        held = read_whole(inside(Path(folder), CARD)).decode() if os.path.lexists(card) else ""
        before = held.split(MEASURED)[0].rstrip()
    except (OSError, ValueError) as error:
        raise StorageError(f"expected a card as text in {card}, got: {error}") from error
    record = _record(folder, config) | {"evidence": asdict(evidence)}
    record.pop("proof", None)
    require_settings(evidence, _digest_of(record, config))
    write_whole(config, json.dumps(record, indent=2) + "\n")
    write_whole(card, f"{before}\n\n{measured(evidence)}")
