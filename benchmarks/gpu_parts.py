"""Models in parts: what is too large for one upload is carried in several, and put together again where it arrives.

::

    folder --pack--> folder.tar.part00, folder.tar.part01, ..., SHA256SUMS --carried--> --join--> folder
    file   --pack--> file.part00, file.part01, ..., SHA256SUMS             --carried--> --join--> file

``SHA256SUMS`` (as ``sha256sum`` writes it) names every part, so that half a set is known to be half a set. Parts may
lie in any folder below the one that is joined, beside their list. What is put together appears whole or not at all.
"""

import hashlib
import re
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from real_models import CHUNK, draft

from ilcp.errors import ConfigError
from ilcp.files import replacing, write_whole

__all__ = ["PART_BYTES", "SUMS", "join", "model_at", "pack"]

SUMS = "SHA256SUMS"
PART_BYTES = 60_000_000
TAR = ".tar"
PART = re.compile(r"(.+)\.part(\d+)")
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\\]+)")


def pack(source: Path, out: Path, part_bytes: int = PART_BYTES) -> list[Path]:
    """Splits a folder or file into parts in ``out``, notes their digests there, and returns them.

    Raises:
        ConfigError: there is no such folder or file.
        StorageError: a part cannot be written.
    """
    if not source.exists():
        raise ConfigError(f"expected a model's folder or file to pack, got {source}: no such file")
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out) as scratch:
        whole = source.resolve()
        if source.is_dir():
            whole = Path(scratch) / (whole.name + TAR)
            with tarfile.open(whole, "w") as archive:
                archive.add(source.resolve(), whole.name.removesuffix(TAR))
        digests = {name: digest for name, digest in _listed(out / SUMS).items() if _whole(name) != whole.name}
        for old in out.glob(f"{whole.name}.part*"):
            old.unlink()
        parts: list[Path] = []
        with whole.open("rb") as stream:
            while content := stream.read(part_bytes):
                parts.append(out / f"{whole.name}.part{len(parts):02d}")
                write_whole(parts[-1], content)
                digests[parts[-1].name] = hashlib.sha256(content).hexdigest()
    write_whole(out / SUMS, "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())))
    return parts


def join(folder: Path) -> list[str]:
    """Puts together every set of parts below ``folder`` that is not yet; returns what is wrong with the others.

    Raises:
        StorageError: there is no room for what is put together.
    """
    problems: list[str] = []
    for sums in sorted(folder.rglob(SUMS)):
        try:
            digests = _listed(sums)
        except ConfigError as error:
            problems.append(str(error))
            continue
        for whole in dict.fromkeys(filter(None, map(_whole, digests))):
            try:
                _join(sums.parent, whole, {name: digests[name] for name in digests if _whole(name) == whole})
            except ConfigError as error:
                problems.append(str(error))
    return problems


def model_at(folder: Path, name: str) -> Path | None:
    """Returns where the model of that name is: its folder, or a GGUF file; None where it is not."""
    if (folder / name / "config.json").is_file():
        return folder / name
    files = [folder / f"{name}.gguf", *sorted((folder / name).glob("*.gguf"))]
    return next((file for file in files if file.is_file()), None)


def _listed(sums: Path) -> dict[str, str]:
    """Reads a list of digests, by name; an absent one is empty."""
    found: dict[str, str] = {}
    for line in sums.read_text(encoding="utf-8").splitlines() if sums.exists() else ():
        match = LINE.fullmatch(line)
        if match is None:
            raise ConfigError(f"expected lines of a SHA-256 and a file's name in {sums}, got {line!r}")
        found[match[2]] = match[1]
    return found


def _whole(part: str) -> str | None:
    match = PART.fullmatch(part)
    return match[1] if match else None


def _join(folder: Path, whole: str, digests: Mapping[str, str]) -> None:
    """Puts one set together.

    Raises:
        ConfigError: parts are missing, or are not what the list says.
    """
    target = folder / whole.removesuffix(TAR)
    if target.exists():
        return
    names = sorted(digests, key=lambda name: int(name.rpartition(".part")[2]))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ConfigError(
            f"expected {whole} in {len(names)} parts, got {len(names) - len(missing)} of them in {folder}: carry "
            f"{', '.join(missing)} as well"
        )
    if not whole.endswith(TAR):
        with replacing(target) as file:
            _concatenate([folder / name for name in names], digests, file)
        return
    with draft(target) as (scratch, new):
        _concatenate([folder / name for name in names], digests, scratch / whole)
        try:
            with tarfile.open(scratch / whole) as archive:
                archive.extractall(scratch / "content", filter="data")
        except tarfile.TarError as error:
            raise ConfigError(f"expected a tar archive in the parts of {whole}, got: {error}") from error
        inside = scratch / "content" / target.name
        if not inside.is_dir():
            raise ConfigError(f"expected the folder {target.name} in {whole}, got an archive without it")
        for file in inside.iterdir():
            file.rename(new / file.name)


def _concatenate(parts: Sequence[Path], digests: Mapping[str, str], into: Path) -> None:
    with into.open("wb") as whole:
        for part in parts:
            found = hashlib.sha256()
            with part.open("rb") as stream:
                while chunk := stream.read(CHUNK):
                    found.update(chunk)
                    whole.write(chunk)
            if found.hexdigest() != digests[part.name]:
                raise ConfigError(
                    f"expected {part} with SHA-256 {digests[part.name]}, got {found.hexdigest()}: carry it again"
                )
