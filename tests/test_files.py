"""Files appear whole or not at all, whoever else writes and whatever the disk does."""

import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import SafetensorError

from ilcp import files
from ilcp.errors import StorageError
from ilcp.files import file_id, move_into, own_file, replacing, require_writable, settle, sync, write_whole
from tests.helpers import noting


def test_what_is_written_replaces_what_was_there(tmp_path: Path) -> None:
    """Text and bytes are what the file holds afterwards, whoever may read it, and nothing is left beside it."""
    path = tmp_path / "file"
    for content in ("Ø\n", b"\x00\xff", ""):
        for private in (False, True):
            write_whole(path, content, private=private)
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

    for name in ("write", "sync"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full) if name == "write" else patched.setattr(os, "fsync", full)
            with pytest.raises(StorageError, match=r"expected room for .*file, got: .*No space left.*; free space"):
                write_whole(path, "new")
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


def test_what_is_private_is_its_owners_alone(tmp_path: Path) -> None:
    """Neither the umask nor the library that writes the draft nor the file that was there gives it to others."""
    path = tmp_path / "file"
    path.touch(0o644)
    before = os.umask(0)
    try:
        with replacing(path, private=True) as draft:
            draft.unlink()  # as safetensors does
            draft.write_text("x")
    finally:
        os.umask(before)
    assert 0o600 == path.stat().st_mode & 0o777


def test_what_is_new_leaves_alone_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, a link or a folder at the place stays and is said, with links or on a file system that has none."""

    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    for name in ("links", "none"):
        (folder := tmp_path / name).mkdir()
        monkeypatch.setattr(os, "link", os.link if name == "links" else no_links)
        (folder / "file").write_text("theirs")
        (folder / "link").symlink_to(folder / "nowhere")
        (folder / "folder").mkdir()
        for taken in ("file", "link", "folder"):
            with pytest.raises(StorageError, match=f"expected room for .*{taken}, got: .*File exists") as caught:
                write_whole(folder / taken, "ours", new=True)
            assert isinstance(caught.value.__cause__, FileExistsError)
        write_whole(folder / "new", "ours", new=True)
        assert ["theirs", "ours"] == [(folder / each).read_text() for each in ("file", "new")]
        assert ["file", "folder", "link", "new"] == sorted(each.name for each in folder.iterdir())


def test_content_is_on_the_disk_before_it_has_its_name_and_the_name_before_the_end(tmp_path: Path, monkeypatch) -> None:
    """A power cut at any moment leaves the old content or the new under the name, never an empty file."""
    done: list[str] = []
    for owner, name in ((os, "fsync"), (os, "replace"), (os, "link")):
        call = getattr(owner, name)
        monkeypatch.setattr(owner, name, noting(call, done, lambda *_, n=name: n))
    write_whole(tmp_path / "file", "x")
    assert ["fsync", "replace", "fsync"] == done
    done.clear()
    write_whole(tmp_path / "new", "x", new=True)
    assert ["fsync", "link", "fsync"] == done


def test_a_link_that_takes_a_drafts_place_later_is_not_followed(tmp_path: Path) -> None:
    """What it points to keeps its mode and its content, and the file does not become a link."""
    other = tmp_path / "other"
    other.write_text("theirs")
    other.chmod(0o640)
    refused = pytest.raises(StorageError, match="expected room for")
    with refused, replacing(tmp_path / "file", private=True) as draft:
        draft.unlink()
        draft.symlink_to(other)
    assert ("theirs", 0o640) == (other.read_text(), other.stat().st_mode & 0o777)
    assert [other] == list(tmp_path.iterdir())


def test_a_folder_may_be_reached_by_a_link(tmp_path: Path) -> None:
    """What is written below a link to a folder is written into that folder, and settled there."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    write_whole(tmp_path / "link" / "file", "x")
    settle(tmp_path / "link")
    own_file(tmp_path / "link" / "mine")
    assert ["file", "mine"] == sorted(path.name for path in (tmp_path / "folder").iterdir())


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems sync no folders; what else goes wrong there is said."""
    real, code = os.fsync, errno.EINVAL

    def no_folders(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(code, os.strerror(code))
        real(handle)

    monkeypatch.setattr(os, "fsync", no_folders)
    write_whole(tmp_path / "file", "x")
    code = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        sync(tmp_path)


def test_a_settled_folder_is_on_the_disk_with_its_usual_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and folder of it is synced, what a link points to is left as it is."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    outside = tmp_path / "outside"
    for path in (outside, tmp_path / "a" / "file", tmp_path / "a" / "b" / "file"):
        path.touch(0o600)
    (tmp_path / "a" / "link").symlink_to(outside)
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync", noting(sync, synced, lambda path, *_: path))
    settle(tmp_path / "a")
    assert {"a", "b", "file"} == {path.name for path in synced}
    assert 4 == len(synced)
    (tmp_path / "plain").touch()
    modes = [path.stat().st_mode for path in (tmp_path / "plain", *synced) if path.is_file()]
    assert 1 == len(set(modes))
    assert 0o600 == outside.stat().st_mode & 0o777


# ---- files of one account alone


def test_a_file_of_ones_own_is_made_and_closed_to_others(tmp_path: Path) -> None:
    """Where there is none it is made, empty, for its owner only; one of before and what lies beside it are closed."""
    own_file(tmp_path / "new")
    assert (b"", 0o600) == ((tmp_path / "new").read_bytes(), (tmp_path / "new").stat().st_mode & 0o777)
    for name in ("old", "old-wal", "old-shm", "old-journal"):
        (tmp_path / name).write_bytes(b"kept")
        (tmp_path / name).chmod(0o644)
    own_file(tmp_path / "old")
    own_file(tmp_path / "old")
    assert {(b"kept", 0o600)} == {(f.read_bytes(), f.stat().st_mode & 0o777) for f in tmp_path.glob("old*")}


def test_what_others_put_in_a_files_place_is_refused(tmp_path: Path) -> None:
    """A link, dangling or not, a folder or a pipe, at the file's place or beside it, is neither followed nor opened."""
    (tmp_path / "theirs").write_text("theirs")
    makers: dict[str, Any] = {
        "link": lambda path: path.symlink_to(tmp_path / "theirs"),
        "dangling": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "folder": Path.mkdir,
        "pipe": os.mkfifo,
    }
    for name, make in makers.items():
        for beside in ("", "-wal", "-journal"):
            (folder := tmp_path / f"{name}{beside}").mkdir()
            make(folder / f"file{beside}")
            with pytest.raises(StorageError, match=f"expected a file at .*file{beside}, got a link or something else"):
                own_file(folder / "file")
    assert "theirs" == (tmp_path / "theirs").read_text()
    assert not (tmp_path / "nowhere").exists()


def test_another_accounts_folder_or_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose it is stands in the text, with what to do; nothing is made there."""
    me = os.geteuid()
    with monkeypatch.context() as patched:
        patched.setattr(os, "geteuid", lambda: me + 1)
        with pytest.raises(StorageError, match=rf"of this account's own, got user {me}'s, .*a new folder in it"):
            own_file(tmp_path / "file")
    assert [] == list(tmp_path.iterdir())
    theirs = SimpleNamespace(st_mode=0o100600, st_uid=me + 1, st_gid=me)
    with pytest.raises(StorageError, match=rf"of this account's own, got user {me + 1}'s"):
        files._require_own(tmp_path / "file", theirs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "own_group", "passes"),
    [(0o700, True, True), (0o755, False, True), (0o775, True, True), (0o775, False, False), (0o1777, True, False)],
)
def test_a_folder_where_others_may_write_is_refused(tmp_path: Path, mode: int, own_group: bool, passes: bool) -> None:
    """Whether all or a group that is not the account's own; a sticky folder too, for a journal can be put there."""
    me = os.geteuid()
    found: Any = SimpleNamespace(st_mode=0o040000 | mode, st_uid=me, st_gid=me + (not own_group))
    if passes:
        files._require_own(tmp_path, found)
        return
    with pytest.raises(StorageError, match=rf"nobody else may write, got .* of mode {mode:o}: chmod go-w {tmp_path}"):
        files._require_own(tmp_path, found)


@pytest.mark.parametrize(("members", "refused"), [([], False), (["me"], False), (["me", "other"], True)])
def test_a_group_of_ones_own_that_others_joined_is_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[str], refused: bool
) -> None:
    """The group may write where nobody else is in it, though it has the account's own number."""
    monkeypatch.setattr(files.grp, "getgrgid", lambda group: SimpleNamespace(gr_mem=members))
    monkeypatch.setattr(files.pwd, "getpwuid", lambda user: SimpleNamespace(pw_name="me"))
    me = os.geteuid()
    found: Any = SimpleNamespace(st_mode=0o040775, st_uid=me, st_gid=me)
    with pytest.raises(StorageError, match="nobody else may write") if refused else contextlib.nullcontext():
        files._require_own(tmp_path, found)


def test_a_file_that_cannot_be_made_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing folder and a full disk are named; a process that was sooner is no failure."""
    with pytest.raises(StorageError, match=r"of this account's own at .*file, got: .*No such file"):
        own_file(tmp_path / "none" / "file")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            own_file(tmp_path / "file")
    (tmp_path / "file").touch(0o600)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    own_file(tmp_path / "file")


def test_what_is_moved_into_a_folder_takes_the_place_of_its_names_alone(tmp_path: Path) -> None:
    """A folder in the draft replaces the one of its name, which may hold files; what else is there stays."""
    draft, folder = tmp_path / "draft", tmp_path / "codec"
    for place, name in ((draft, "new"), (folder, "old")):
        (place / "adapter").mkdir(parents=True)
        (place / "adapter" / name).write_text(name)
        (place / "config").write_text(name)
    (folder / "evidence").write_text("kept")
    move_into(draft, folder)
    assert ["adapter/new", "config", "evidence"] == sorted(
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()
    )
    assert ("new", "kept") == ((folder / "config").read_text(), (folder / "evidence").read_text())
    assert [] == list(draft.iterdir())
