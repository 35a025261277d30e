"""Files appear whole or not at all, whoever else writes and whatever the disk does."""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from safetensors import SafetensorError

from ilcp import files
from ilcp.errors import StorageError
from ilcp.files import file_id, replacing, require_writable, write_whole


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    """Text and bytes are what the file holds afterwards, durable or not, and nothing is left beside it."""
    path = tmp_path / "file"
    for content in ("Ø\n", b"\x00\xff", ""):
        for durable in (False, True):
            write_whole(path, content, durable=durable)
            assert (content.encode() if isinstance(content, str) else content) == path.read_bytes()
    assert [path] == list(tmp_path.iterdir())


def test_writers_at_once_never_leave_a_mixture(tmp_path: Path) -> None:
    """Whoever reads while eight threads write finds one writer's whole content, and no draft stays."""
    path = tmp_path / "file"
    contents = [bytes([number]) * 200_000 for number in range(8)]
    write_whole(path, contents[0])

    def write_and_read(content: bytes) -> bool:
        write_whole(path, content)
        return path.read_bytes() in contents

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write_and_read, contents * 10))
    assert [path] == list(tmp_path.iterdir())


def test_two_writers_that_overlap_have_a_draft_each(tmp_path: Path) -> None:
    """The one that ends last wins whole; neither sees or takes the other's draft."""
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first, and longer")
        second.write_text("second")
    assert "first, and longer" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_a_link_in_a_drafts_place_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses a draft's name and puts a link there does not get another file written, or one of its own."""
    other, path = tmp_path / "other", tmp_path / "file"
    monkeypatch.setattr(files, "token_hex", lambda n: "guessed")
    for target in (other, tmp_path / "nowhere"):
        other.write_text("somebody else's")
        link = tmp_path / ".guessed.draft"
        link.symlink_to(target)
        with pytest.raises(StorageError, match="File exists"):
            write_whole(path, "secret")
        assert "somebody else's" == other.read_text()
        assert not path.exists()
        assert not (tmp_path / "nowhere").exists()
        assert link.is_symlink()  # it is not ours to remove
        link.unlink()


def test_a_full_disk_leaves_the_old_content_and_no_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room, while writing or while syncing, the file stays as it was and the text says what to do."""
    path = tmp_path / "file"
    write_whole(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for name, durable in (("write", False), ("sync", True)):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full) if name == "write" else patched.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match=r"expected room for .*file, got: .*No space left.*; free space"):
                write_whole(path, "new", durable=durable)
        assert "old" == path.read_text()
        assert [path] == list(tmp_path.iterdir())


def test_an_error_of_the_writer_leaves_the_old_content_and_no_draft(tmp_path: Path) -> None:
    """What the caller raises inside the ``with`` passes as it is, Ctrl-C too."""
    path = tmp_path / "file"
    write_whole(path, "old")
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), replacing(path) as draft:  # noqa: PT012 (the block is what is tested)
            draft.write_text("half")
            raise error
    assert "old" == path.read_text()
    assert [path] == list(tmp_path.iterdir())


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    """The draft costs the name nothing."""
    write_whole(tmp_path / ("n" * 255), "x")
    assert ["n" * 255] == [path.name for path in tmp_path.iterdir()]


def test_safetensors_full_disk_is_one_too(tmp_path: Path) -> None:
    """What safetensors raises where there is no room is a StorageError, and no draft stays."""
    with pytest.raises(StorageError, match=r"expected room for .*file, got: I/O error"), replacing(tmp_path / "file"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert [] == list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder, and a folder in the file's place, are each a StorageError with the path."""
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in (tmp_path / "missing" / "file", tmp_path / "folder"):
        with pytest.raises(StorageError, match=f"expected room for {path}, got"):
            write_whole(path, "x")
    assert [tmp_path / "folder"] == list(tmp_path.iterdir())


def test_a_place_is_tried_without_a_trace(tmp_path: Path) -> None:
    """What could be written later is let pass, and nothing is left of the trial but the folder."""
    (tmp_path / "there").write_text("before")
    for file in (tmp_path / "there", tmp_path / "new" / "er"):
        require_writable(file)
    assert ["new", "there"] == sorted(found.name for found in tmp_path.rglob("*"))
    for file, said in ((tmp_path / "there" / "x", "expected to be able to write"), (tmp_path, "got the folder")):
        with pytest.raises(StorageError, match=said):
            require_writable(file)


def test_a_file_is_known_from_another_at_its_place(tmp_path: Path) -> None:
    """A file that was removed and made again is another one; where there is none, there is nothing to know."""
    file = tmp_path / "file"
    assert file_id(file) is None
    with open(file, "w"):
        first = file_id(file)
        file.unlink()
        file.touch()
        assert first != file_id(file) == file_id(file)


def test_a_new_files_mode_is_the_usual_one(tmp_path: Path) -> None:
    """A draft takes the process's umask, as any new file does: a shared folder stays readable to its group."""
    write_whole(tmp_path / "file", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "plain").stat().st_mode == (tmp_path / "file").stat().st_mode
