"""Files: those that appear whole or not at all, those that are one process's or one account's alone, and places that
are tried before the work."""

import errno
import os
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from secrets import token_hex

from safetensors import SafetensorError  # loads no torch

from ilcp.errors import ConfigError, StorageError

try:
    import fcntl
    import grp
    import pwd
except ImportError:  # a system without it has no locks, and no groups, of this kind either
    fcntl = None  # type: ignore[assignment]

__all__ = [
    "NO_FOLLOW",
    "PRIVATE",
    "file_id",
    "held",
    "locked",
    "move_into",
    "own_file",
    "own_folder",
    "replacing",
    "require_readable",
    "require_writable",
    "settle",
    "sync",
    "write_whole",
]

PRIVATE, USUAL = 0o600, 0o666  # modes of a new file, before the umask
NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)
NOT_SYNCED = (errno.EINVAL, errno.ENOTSUP)  # of a folder, on file systems that know no such thing
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
BESIDE = ("", "-wal", "-shm", "-journal")  # a database, and what SQLite puts beside it


def write_whole(path: Path, content: str | bytes | memoryview, *, private: bool = False, new: bool = False) -> None:
    """Replaces the file by ``content``: whoever reads it finds the old content or the new, never a part.

    Raises:
        StorageError: as ``replacing``.
    """
    with replacing(path, private=private, new=new) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: Path, *, private: bool = False, new: bool = False) -> Iterator[Path]:
    """Gives a draft beside ``path`` to be written inside the ``with``, which takes its place afterwards.

    Each draft has a name of its own, so that several writers do not meet in one. Both the content and the name are on
    the disk when the ``with`` ends, whatever happens to the power then or before.

    Args:
        path: where the file is to be. A link there is replaced itself; what it points to stays.
        private: keeps the file to its owner; else it has the mode of any new file.
        new: leaves alone what is there: that is a StorageError, from a FileExistsError.

    Raises:
        StorageError: the disk is full, or not to be written to; nothing is left behind, and what was there stays.
    """
    draft = path.with_name(f".{token_hex(8)}.draft")  # a name of any length has room for it
    try:
        with open(draft, "xb", opener=partial(os.open, mode=PRIVATE if private else USUAL)) as made:  # follows no link
            mode = os.fstat(made.fileno()).st_mode
        try:
            yield draft
            sync(draft, mode)  # safetensors puts a file of its own there, for its owner only
            _link(draft, path) if new else os.replace(draft, path)
            sync(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:  # the second wraps a full disk
        raise StorageError(f"expected room for {path}, got: {error}; free space, or choose another place") from error


def sync(path: Path, mode: int | None = None) -> None:
    """Returns when a file's content, or the names in a folder, are on the disk; a file gets the mode before.

    Raises:
        OSError: they cannot be brought there, or a link is in the file's place.
    """
    folder, posix = mode is None and os.path.isdir(path), os.name == "posix"
    if folder and not posix:
        return  # Windows opens no folders
    handle = os.open(path, (os.O_RDONLY if posix else os.O_RDWR) | (0 if folder else NO_FOLLOW))
    try:
        if mode is not None and posix:
            os.fchmod(handle, stat.S_IMODE(mode))
        os.fsync(handle)
    except OSError as error:
        if not (folder and error.errno in NOT_SYNCED):
            raise
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Gives all files below ``folder`` the mode of a new one, and returns when all is on the disk.

    safetensors writes for its owner only.

    Raises:
        OSError: one of them cannot be changed, or brought there.
    """
    probe = folder / f".{token_hex(8)}.draft"
    probe.touch(exist_ok=False)
    mode = probe.stat().st_mode
    probe.unlink()
    for path in (*folder.rglob("*"), folder):
        if not os.path.islink(path) or path == folder:
            sync(path, mode if os.path.isfile(path) else None)


def move_into(draft: Path, folder: Path) -> None:
    """Moves all that is in ``draft`` into a folder, in place of what has its name there: each file whole, one by one.

    Raises:
        OSError: one of them cannot be moved.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settle(draft)
    for file in sorted(draft.iterdir()):
        target = folder / file.name
        if os.path.isdir(target):
            shutil.rmtree(target)
        file.replace(target)
    sync(folder)
    sync(folder.parent)


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """Holds the file ``lock`` inside the ``with``, for this one alone; it is free when the process ends, however.

    The folder is made where there is none, and goes again where it holds nothing else in the end. On file systems
    without locks nothing is held.

    Raises:
        ConfigError: another one, in this process or another, holds it; the text says which.
        StorageError: the file cannot be made.
    """
    new = not os.path.isdir(lock.parent)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | NO_FOLLOW, PRIVATE)
    except OSError as error:
        raise StorageError(f"expected to be able to lock {lock}, got: {error}; choose another place") from error
    try:
        if fcntl is not None:
            _lock(handle, lock)
            if file_id(handle) != file_id(lock):  # its holder removed it meanwhile: what is held is nobody's lock
                raise ConfigError(f"expected {lock.parent} to stay, got another process that ended there: try again")
        with suppress(OSError):  # a full disk: what holds is the lock, this is for people
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()} on {socket.gethostname()}".encode())
        try:
            yield
        finally:
            if new:
                _forget(lock)
    finally:
        os.close(handle)


def _forget(lock: Path) -> None:
    """Removes a lock that is alone in its folder, and the folder; whatever stands in the way may."""
    with suppress(OSError):
        if [lock.name] == os.listdir(lock.parent):
            lock.unlink()
            lock.parent.rmdir()


def _lock(handle: int, lock: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = ascii(os.read(handle, 80).decode("utf-8", "replace"))[1:-1]
        raise ConfigError(
            f"expected {lock.parent} for one process at a time, got process {owner}, which is working there: wait for "
            "its end, end it, or choose another place"
        ) from error
    except OSError:  # a file system without locks; work goes on there as it did
        pass


def locked(handle: int) -> bool:
    """Locks an open file for this handle, and says whether it could; where a file system has no locks, it can."""
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def own_folder(path: Path) -> None:
    """Sees to it that ``path`` is a folder of this account's own, which is made where there is none, and no link.

    Raises:
        StorageError: with what to do.
    """
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise StorageError(f"expected a folder at {path}, got a link: remove it, or name another place")
        if hasattr(os, "geteuid"):
            _require_own(path, found)
            if found.st_mode & 0o077:
                path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"expected a folder of this account's own at {path}, got: {error}") from error


def own_file(path: Path) -> None:
    """Sees to it that ``path`` is a file of this account's own, which nobody else can read, write or exchange.

    It is made, empty, where there is none; where others could read it, they no longer can, and so it is with what
    SQLite puts beside it. The folder above has to be this account's own and closed to what others would write: they
    could put a link, or a journal of their own, where the file is looked for.

    Raises:
        StorageError: with what to do.
    """
    if not hasattr(os, "geteuid"):  # a system without such owners and modes
        return
    try:
        _require_own(path.parent, path.parent.stat())
        if not os.path.lexists(path):
            _made(path)
        for file in (path.with_name(path.name + end) for end in BESIDE):
            with suppress(FileNotFoundError):
                found = file.lstat()
                if not stat.S_ISREG(found.st_mode):
                    raise StorageError(
                        f"expected a file at {file}, got a link or something else: remove it, or name another place"
                    )
                _require_own(file, found)
                if found.st_mode & 0o777 & ~PRIVATE:
                    file.chmod(PRIVATE)
    except OSError as error:
        raise StorageError(f"expected a file of this account's own at {path}, got: {error}") from error


def _made(path: Path) -> None:
    """Makes an empty file, never by opening ``path``: closing it would end the locks that SQLite has there."""
    try:
        write_whole(path, b"", private=True, new=True)
    except StorageError as error:
        if not isinstance(error.__cause__, FileExistsError):  # another process was sooner
            raise


def _require_own(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise StorageError(
            f"expected {path} of this account's own, got user {found.st_uid}'s, who could read or exchange what is "
            "kept there: name another place, or a new folder in it"
        )
    # Many systems give each account a group of its own, of the same number, and let it write: that is nobody else.
    alone = found.st_gid == found.st_uid and not _others_in(found.st_gid, found.st_uid)
    others = stat.S_IWOTH | (0 if alone else stat.S_IWGRP)
    if stat.S_ISDIR(found.st_mode) and found.st_mode & others:
        raise StorageError(
            f"expected a folder in which nobody else may write, got {path} of mode {stat.S_IMODE(found.st_mode):o}: "
            f"chmod go-w {path}, or name a new folder in it"
        )


def _others_in(group: int, user: int) -> bool:
    """Says whether a group lists other members than the user; one that nobody has named lists none."""
    members: set[str] = set()
    with suppress(KeyError):
        members.update(grp.getgrgid(group).gr_mem)
        members.discard(pwd.getpwuid(user).pw_name)
    return bool(members)


def _link(draft: Path, path: Path) -> None:
    """Gives the draft the name ``path`` too, unless something has it."""
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.replace(draft, path)


def require_writable(path: Path) -> None:
    """Tries, before the work, what will be done after it: makes the file's folder, and a draft beside the file.

    Raises:
        StorageError: the file could not be written.
    """
    if os.path.isdir(path):
        raise StorageError(f"expected a file to write to, got the folder {path}: name a file in it")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.lstat()  # says of a name whether a file may have it, which a draft's does not
        draft = path.with_name(f".{token_hex(8)}.draft")
        draft.touch(exist_ok=False)
        draft.unlink()
    except OSError as error:
        raise StorageError(f"expected to be able to write {path}, got: {error}; choose another place") from error


def require_readable(path: Path) -> None:
    """Opens a file that another library will read, because some call everything that they cannot open missing.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb"):
        pass


def file_id(path: str | Path | int) -> tuple[int, int] | None:
    """Returns what tells the file at ``path`` from every other one; None where there is none.

    Who keeps a file open compares it: a file that was removed takes what is written, and nobody finds it again.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
