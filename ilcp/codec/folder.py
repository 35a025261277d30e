"""A codec's folder, on disk or on a hub: saved, loaded, and given the evidence that was measured of it.

It holds ``config.json`` (which codec, its spec, whom it was trained for, how), ``model.safetensors`` (weights, where it
has any), ``README.md`` (a card for people) and, where the receiver was adapted to it, ``receiver-adapter``. Nothing in
it is code, and nothing in it is a pickle.
"""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError

from ilcp.codec.protocols import Codec
from ilcp.codec.registry import codec_class
from ilcp.codec.spec import CodecSpec, Trained
from ilcp.errors import ConfigError, StorageError, UnmeasuredError
from ilcp.evidence import Evidence
from ilcp.files import write_whole
from ilcp.identity import ModelIdentity
from ilcp.records import read_record

__all__ = ["ADAPTER", "HubCodec", "attach_evidence", "folder_of", "load", "measured", "save"]

FORMAT = 1  # of config.json; another number is refused
MEASURED = "## Measured, with its controls"
CONFIG, CARD = "config.json", "README.md"
ADAPTER = "receiver-adapter"  # the folder of the receiver's low-rank weights
EXTRAS = ("*.png", "*.jsonl")  # what a card refers to
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        codec: Any = load(model_id, **{name: value for name, value in options.items() if name in known})
        if not isinstance(codec, cls):
            raise ConfigError(
                f"expected a codec of {cls.__name__} in {model_id}, got {type(codec).__name__}: use ilcp.load"
            )
        return codec


def save(
    codec: Codec, folder: str | Path, *, card: str | None = None, training: Mapping[str, Any] | None = None
) -> None:
    """Writes a codec as a folder: weights, ``config.json``, and ``card`` as its README.

    Of a codec that was loaded, what is not given is taken from where it came from, and its receiver's adapter with it.
    Files of the same names are replaced one by one, each whole.

    Raises:
        ConfigError: the folder holds something else already.
        StorageError: it cannot be written.
    """
    folder = Path(folder).absolute()
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise ConfigError(f"expected an empty folder or a codec's, got {folder} with other files in it: choose another")
    before = codec.folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise StorageError(f"expected room for a codec beside {folder}, got: {error}; choose another place") from error
    try:
        if before is not None:
            _copy(before, draft)
            old = json.loads((before / CONFIG).read_text(encoding="utf-8"))
            training = old.get("training") if training is None else training
        record = {
            "format": FORMAT,
            "codec_id": codec.trained.codec_id(codec.spec).hex(),
            "spec": asdict(codec.spec),
            "settings": codec.save_files(draft),
            "trained": asdict(codec.trained),
            "training": dict(training or {}),
            "evidence": None if codec.evidence is None else asdict(codec.evidence),
        }
        (draft / CONFIG).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if card is not None:
            (draft / CARD).write_text(card, encoding="utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for file in sorted(draft.iterdir()):
            target = folder / file.name
            if target.is_dir():
                shutil.rmtree(target)
            file.replace(target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"expected room for a codec in {folder}, got: {error}; free space or choose another"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _copy(before: Path, folder: Path) -> None:
    """Copies what a codec's folder holds beside weights and configuration."""
    for file in (before / CARD, *(file for kind in EXTRAS for file in before.glob(kind))):
        if file.exists():
            shutil.copyfile(file, folder / file.name)
    if (before / ADAPTER).is_dir():
        shutil.copytree(before / ADAPTER, folder / ADAPTER)


def load(source: str | Path, **hub: Any) -> Codec:
    """Returns the codec in a folder or on a hub, ready to encode and decode. Runs no code from there, reads no pickle.

    Args:
        source: a folder, or an id such as ``"me/my-codec"``, which is fetched with huggingface_hub.
        hub: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only`` for the latter.

    Raises:
        ConfigError: there is no codec's folder of that name, or it cannot be fetched.
        StorageError: a file in it is damaged, or of another format.
        IdentityError: the weights are not those that the codec was saved with.
    """
    folder = _fetched(source, hub)
    record = _record(source, folder / CONFIG)
    try:
        spec = read_record(CodecSpec, record["spec"], f"spec in {folder / CONFIG}", error=StorageError)
        trained = Trained(
            sender=ModelIdentity.from_dict(record["trained"]["sender"]),
            receiver=ModelIdentity.from_dict(record["trained"]["receiver"]),
            weights=record["trained"]["weights"],
        )
        settings = record["settings"]
    except (KeyError, TypeError) as error:
        expected = "expected the fields spec, trained and settings"
        raise StorageError(f"{expected} in {folder / CONFIG}, got {error!r}") from error
    codec: Codec = codec_class(spec.name).load_files(folder, spec, trained, settings)
    found = record.get("evidence", record.get("proof"))  # its name until it was renamed
    codec.evidence = None if found is None else Evidence.from_dict(found)
    codec.folder = folder
    return codec


def _record(source: str | Path, config: Path) -> dict[str, Any]:
    """Reads a folder's ``config.json``; raises as ``load``."""
    try:
        record = json.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        because = (error.strerror or "unreadable").lower()
        raise ConfigError(f"expected a codec's folder with a config.json, got {source}: {because}") from error
    except ValueError as error:
        raise StorageError(f"expected JSON in {config}, got something else: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise StorageError(f"expected a codec's config.json of format {FORMAT}, got {found!r} in {config}")
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
    """Returns the folder itself, or the local copy of what the hub has under that id."""
    if isinstance(source, Path) or Path(source).exists() or not HUB_ID.fullmatch(source):
        return Path(source)
    try:
        kinds = ["*.json", "*.safetensors", CARD, *EXTRAS]
        return Path(snapshot_download(source, allow_patterns=kinds, **hub))
    except Exception as error:  # the hub's client and its transport raise many kinds, all of which mean this
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"expected a codec's folder or its id on a hub, got {source!r}: {first}") from error


def measured(evidence: Evidence) -> str:
    """Returns what a card says of the evidence."""
    arms = "\n".join(f"| {name} | {value:.3f} |" for name, value in evidence.arms.items())
    table = f"| arm | {evidence.unit} |\n| --- | ---: |\n{arms}"
    return f"{MEASURED}\n\n{table}\n\nMeasured at {evidence.commit}: {evidence}.\n"


def attach_evidence(folder: str | Path, evidence: Evidence) -> None:
    """Writes what was measured of the codec in ``folder`` into its ``config.json`` and its card.

    Raises:
        ConfigError, StorageError, IdentityError: as ``load``.
        UnmeasuredError: the evidence is another codec's.
    """
    config, card = Path(folder) / CONFIG, Path(folder) / CARD
    found = load(folder)
    codec_id = found.trained.codec_id(found.spec).hex()
    if evidence.codec_id != codec_id:
        raise UnmeasuredError(f"expected the evidence of codec {codec_id} in {folder}, got that of {evidence.codec_id}")
    record = json.loads(config.read_text(encoding="utf-8")) | {"evidence": asdict(evidence)}
    record.pop("proof", None)
    write_whole(config, json.dumps(record, indent=2) + "\n")
    before = card.read_text(encoding="utf-8").split(MEASURED)[0].rstrip() if card.exists() else ""
    write_whole(card, f"{before}\n\n{measured(evidence)}")
