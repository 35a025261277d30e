"""Blobs by content address: what is put and got, and the places where a store keeps them.

A put reads its source twice: once for the digest, which is the address, and once for the bytes. In a spool they lie in
the folder ``blobs`` beside the database, each in a file that its digest names in hex, and until they are whole in a
``.part``, which is locked while somebody writes it; the next put of the same goes on from there.
"""

import errno
import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ilcp.errors import EncodeError, StorageError, TransportError
from ilcp.files import NO_FOLLOW, PRIVATE, file_id, locked, own_folder, sync
from ilcp.message.blob import Blob, blob_hash
from ilcp.message.format import BytesLike
from ilcp.transport.errors import BlobError, DiskFullError, FullError, NotWritableError

__all__ = ["BeingPutError", "BlobSource", "FolderBlobs", "MemoryBlobs", "Part", "Shelf", "Source", "chunks_of"]

CHUNK_BYTES = 1 << 20
BlobSource = BytesLike | str | os.PathLike[str] | BinaryIO
_OPEN = os.O_RDONLY | NO_FOLLOW | getattr(os, "O_NONBLOCK", 0)  # a pipe in a file's place keeps nobody waiting
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class BeingPutError(FullError):
    """Another put of the same blob is under way."""


class Source:
    """The bytes of a blob that is put: bytes, a file's path, or a binary file from where it stands to its end.

    Raises:
        EncodeError: something else, or a file that cannot go back to where it stood.
    """

    def __init__(self, data: object) -> None:
        self._data, self._start = data, 0
        if isinstance(data, BytesLike | str | os.PathLike):
            return
        try:
            self._start = data.tell() if data.seekable() else -1  # type: ignore[attr-defined]
        except (AttributeError, ValueError, OSError):
            self._start = -1
        if self._start < 0 or isinstance(data, io.TextIOBase):
            got = type(data).__name__
            raise EncodeError(f"expected a blob as bytes, a path or a binary file that can seek, got {got}")

    def named(self) -> Blob:
        """Reads all of it, and names the blob.

        Raises:
            EncodeError: there are no bytes, or too many.
            StorageError: the file cannot be read.
        """
        digest, size = blob_hash(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            size += len(chunk)
        return Blob(size, digest.digest())

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yields the bytes from ``offset`` on.

        Raises:
            StorageError: the file cannot be read.
        """
        with self.opened(offset) as file:
            yield from chunks_of(file)

    @contextmanager
    def opened(self, offset: int = 0) -> Iterator[BinaryIO]:
        """Gives a file that stands at ``offset`` of the blob; one of the caller's stays open.

        Raises:
            StorageError: it cannot be read.
        """
        data = self._data
        try:
            with ExitStack() as stack:
                if isinstance(data, BytesLike):
                    file: Any = io.BytesIO(data)
                else:
                    file = stack.enter_context(open(data, "rb")) if isinstance(data, str | os.PathLike) else data
                file.seek(self._start + offset)
                yield file
        except OSError as error:
            if isinstance(error, TransportError):
                raise
            raise StorageError(f"expected a file that can be read, got: {error}; mend its permissions") from error


class Part:
    """A blob on its way into ``file``: what is written is counted and hashed, and kept only if it is the blob.

    What the file holds already, from an earlier try, is read first; ``offset`` says where to go on. ``put_s`` is when
    a store reserved its room.
    """

    def __init__(self, blob: Blob, file: BinaryIO) -> None:
        self.blob, self.file, self.offset, self.put_s = blob, file, 0, 0.0
        self._hash = blob_hash()
        for chunk in chunks_of(file):
            self._count(chunk)

    def write(self, chunk: bytes) -> None:
        """Adds bytes.

        Raises:
            BlobError: there are more than the blob has.
            DiskFullError, NotWritableError: the disk does not take them.
        """
        if self.offset + len(chunk) > self.blob.size_bytes:
            raise self.wrong("more bytes")
        with named_disk_errors():
            self.file.write(chunk)
        self._count(chunk)

    def end(self) -> None:
        """Compares what was written with the blob's name.

        Raises:
            BlobError: it is something else.
        """
        if self.offset != self.blob.size_bytes:
            raise self.wrong(f"{self.offset}")
        if self._hash.digest() != self.blob.digest:
            raise self.wrong(f"as many with the digest {self._hash.hexdigest()}")

    def close(self) -> None:
        """Lets go of it; what a spool has of it so far stays for the next try."""
        with suppress(OSError):
            self.file.close()

    def wrong(self, got: str) -> BlobError:
        """Makes the error of other bytes."""
        return BlobError(f"expected {self.blob.size_bytes} bytes of blob {self.blob.digest.hex()}, got {got}: {AGAIN}")

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.offset += len(chunk)


AGAIN = "altered, or not all of it; put it again"


class Shelf(Protocol):
    """Where a store keeps blobs."""

    def size(self, digest: bytes) -> int | None:
        """Returns how many bytes lie under a digest; None: there is no such blob."""

    def offset(self, digest: bytes) -> int:
        """Returns how many bytes of a blob there are that is being put."""

    def part(self, blob: Blob) -> Part | None:
        """Begins to write, or goes on; None: the blob is there."""

    def keep(self, part: Part) -> None:
        """Makes a written part the blob."""

    def drop(self, part: Part) -> None:
        """Removes a part that is not the blob, and that is still open."""

    def opened(self, blob: Blob) -> BinaryIO:
        """Opens a blob, if what lies there has its size."""

    def remove(self, digest: bytes) -> None:
        """Removes it, and what there is of it."""


class MemoryBlobs:
    """Blobs of a store in memory; a put that was interrupted begins again."""

    def __init__(self) -> None:
        self._kept: dict[bytes, bytes] = {}

    def size(self, digest: bytes) -> int | None:
        """See ``Shelf``."""
        return len(self._kept[digest]) if digest in self._kept else None

    def offset(self, digest: bytes) -> int:
        """See ``Shelf``."""
        return 0

    def part(self, blob: Blob) -> Part | None:
        """See ``Shelf``."""
        return None if self.size(blob.digest) == blob.size_bytes else Part(blob, io.BytesIO())

    def keep(self, part: Part) -> None:
        """See ``Shelf``.

        Raises:
            BlobError: it is not the blob.
        """
        part.end()
        part.file.seek(0)
        self._kept[part.blob.digest] = part.file.read()

    def drop(self, part: Part) -> None:
        """See ``Shelf``: a part lies nowhere else."""

    def opened(self, blob: Blob) -> BinaryIO:
        """See ``Shelf``.

        Raises:
            BlobError: it is not there, or of another size.
        """
        if (size := self.size(blob.digest)) != blob.size_bytes:
            raise missing(blob, sized(size))
        return io.BytesIO(self._kept[blob.digest])

    def remove(self, digest: bytes) -> None:
        """See ``Shelf``."""
        self._kept.pop(digest, None)


class FolderBlobs:
    """Blobs in a folder of this account's own, which is made with the first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def size(self, digest: bytes) -> int | None:
        """See ``Shelf``. What is no file counts as none."""
        return _file_bytes(self._path(digest))

    def offset(self, digest: bytes) -> int:
        """See ``Shelf``."""
        return _file_bytes(self._path(digest, ".part")) or 0

    def part(self, blob: Blob) -> Part | None:
        """See ``Shelf``.

        Raises:
            BeingPutError: another one is just writing it.
            NotWritableError: the folder or the file is not this account's own, or cannot be written.
        """
        path = self._path(blob.digest, ".part")
        with named_disk_errors():
            own_folder(self._folder)
            file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | NO_FOLLOW, PRIVATE), "r+b")
            with ExitStack() as stack:
                stack.callback(file.close)
                found = os.fstat(file.fileno())
                if not locked(file.fileno()) or file_id(path) != (found.st_dev, found.st_ino):
                    raise BeingPutError(f"expected blob {blob.digest.hex()} to be put once at a time, got two: wait")
                if self.size(blob.digest) == blob.size_bytes:
                    path.unlink()
                    return None
                if found.st_size >= blob.size_bytes:  # a put that goes on has something to write
                    file.truncate(0)
                part = Part(blob, file)
                stack.pop_all()
                return part

    def keep(self, part: Part) -> None:
        """See ``Shelf``. The bytes are on the disk before the name is.

        Raises:
            BlobError: it is not the blob.
            DiskFullError, NotWritableError: the disk does not take it.
        """
        part.end()
        with named_disk_errors():
            part.file.flush()
            os.fsync(part.file.fileno())
            os.replace(self._path(part.blob.digest, ".part"), self._path(part.blob.digest))
            sync(self._folder)

    def drop(self, part: Part) -> None:
        """See ``Shelf``. What cannot be removed stays."""
        with suppress(OSError):
            self._path(part.blob.digest, ".part").unlink()

    def opened(self, blob: Blob) -> BinaryIO:
        """See ``Shelf``.

        Raises:
            BlobError: it is not there, or of another size, or a link or something else is.
        """
        try:
            own_folder(self._folder)
            handle = os.open(self._path(blob.digest), _OPEN)
        except (OSError, StorageError) as error:
            raise missing(blob, str(error)) from error
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_size != blob.size_bytes:
            os.close(handle)
            raise missing(blob, sized(found.st_size) if stat.S_ISREG(found.st_mode) else "no file")
        return os.fdopen(handle, "rb")

    def remove(self, digest: bytes) -> None:
        """See ``Shelf``. What cannot be removed stays."""
        for end in ("", ".part"):
            with suppress(OSError):
                self._path(digest, end).unlink()

    def _path(self, digest: bytes, end: str = "") -> Path:
        return self._folder / (digest.hex() + end)


def shelf_beside(path: str) -> Shelf:
    """Makes the place for the blobs of the store in ``path``."""
    return MemoryBlobs() if path == ":memory:" else FolderBlobs(Path(path).with_name("blobs"))


def missing(blob: Blob, got: str) -> BlobError:
    """Makes the error of a blob that is not there."""
    return BlobError(f"expected blob {blob.digest.hex()} of {blob.size_bytes} bytes, got: {got}; put it again")


def sized(size: int | None) -> str:
    """Says what lies in a blob's place."""
    return "none" if size is None else f"{size} bytes"


def chunks_of(file: BinaryIO) -> Iterator[bytes]:
    """Yields a file's bytes from where it stands.

    Raises:
        StorageError: it cannot be read.
    """
    try:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
    except OSError as error:
        raise StorageError(f"expected a file that can be read, got: {error}; mend its permissions") from error


@contextmanager
def named_disk_errors() -> Iterator[None]:
    """Raises a disk's errors under our names.

    Raises:
        DiskFullError, NotWritableError: there is no room, or no permission.
    """
    try:
        yield
    except (OSError, StorageError) as error:
        if isinstance(error, DiskFullError | NotWritableError):
            raise
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise DiskFullError(f"expected room on the disk for a blob, got: {error}; free some") from error
        raise NotWritableError(f"expected a place for blobs that can be written, got: {error}") from error


def _file_bytes(path: Path) -> int | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None
