"""Blobs: what every transport does with them, and what a disk, a crash or a stranger may do to those of a spool."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from secrets import token_bytes

import httpx
import pytest

from ilcp.errors import ConfigError, EncodeError, StorageError
from ilcp.message import Blob, Message
from ilcp.transport import (
    AddressError,
    BlobError,
    Connection,
    FullError,
    NotWritableError,
    Settings,
    connect,
)
from ilcp.transport.app import _declared
from ilcp.transport.blobs import CHUNK_BYTES
from ilcp.transport.store import Store
from tests.test_transport_http import TOKEN, Served, ask, served
from tests.transport_model import KINDS, Clock, Kind

DATA = bytes(range(256)) * 1024 + b"end"
TOO_MANY = 1 << 20
SMALL = Settings(power_safe=False)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def end(request: pytest.FixtureRequest) -> Iterator[Connection]:
    """Gives a connection named ``planner`` over each transport."""
    kind: Kind = request.param
    with kind.opened(Settings(lease_s=30)) as door, door("planner") as connection:
        yield connection


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """Runs an ingress in front of a spool."""
    with served(tmp_path) as running:
        yield running


def naming(blob: Blob, payload: bytes = b"") -> bytes:
    """Writes a message that names a blob."""
    return Message(bytes(8), payload, blob=blob).to_bytes()


def finish(c: Connection) -> None:
    """Receives a message and acknowledges it."""
    delivery = c.receive()
    assert delivery is not None
    delivery.ack()


def files(folder: Path) -> dict[str, int]:
    """Lists a spool's blobs and what there is of others, with their sizes."""
    return {each.name: each.stat().st_size for each in (folder / "blobs").iterdir()}


def test_what_was_put_is_got(end: Connection, tmp_path: Path) -> None:
    """Bytes, a path and a binary file, from where it stands, give one blob; it comes back as bytes and as a file."""
    (file := tmp_path / "data").write_bytes(DATA)
    blob = end.put_blob(DATA)
    assert Blob.of(DATA) == blob == end.put_blob(file) == end.put_blob(memoryview(DATA)) == end.put_blob(str(file))
    with open(file, "rb") as opened:
        opened.seek(1)
        assert Blob.of(DATA[1:]) == end.put_blob(opened) == end.put_blob(io.BytesIO(DATA[1:]))
    assert DATA == end.get_blob(blob)
    assert tmp_path / "copy" == end.get_blob(blob, into=tmp_path / "copy")
    assert DATA == (tmp_path / "copy").read_bytes()
    end.send(naming(blob), to="planner")
    delivery = end.receive(5)
    assert delivery is not None
    named = Message.from_bytes(delivery.message).blob
    assert named is not None
    assert DATA == end.get_blob(named)
    delivery.ack()


def test_a_message_whose_blob_is_not_there_is_not_sent(end: Connection) -> None:
    """Neither is one whose blob has another size; the text names the digest, and nothing is kept."""
    blob = Blob.of(b"nobody put this")
    with pytest.raises(BlobError, match=blob.digest.hex()):
        end.send(naming(blob), to="planner")
    there = end.put_blob(DATA)
    with pytest.raises(BlobError, match=there.digest.hex()):
        end.send(naming(Blob(1, there.digest)), to="planner")
    assert end.receive() is None
    end.send(naming(there), to="planner", handoff_id="a")
    assert end.send(naming(there), to="planner", handoff_id="a").duplicate


def test_a_missing_blob_is_named_and_nothing_is_left_of_it(end: Connection, tmp_path: Path) -> None:
    """What is not there, or of another size, is an error with the digest, and no file; limits are looked at first."""
    blob = Blob.of(b"nobody put this")
    there = end.put_blob(DATA)
    for wrong in (blob, Blob(len(DATA) - 1, there.digest), Blob(len(DATA) + 1, there.digest)):
        with pytest.raises(BlobError, match=wrong.digest.hex()):
            end.get_blob(wrong, into=tmp_path / "copy")
    with pytest.raises(ConfigError, match="expected a blob of at most 3 bytes, got 15: raise max_bytes"):
        end.get_blob(blob, max_bytes=3, into=tmp_path / "copy")
    assert [] == list(tmp_path.iterdir())


def test_a_wrong_size_in_a_name_removes_nothing(end: Connection) -> None:
    """A get by the digest of a blob and another size says what size lies there, and the blob is got by its own name."""
    blob = end.put_blob(DATA)
    end.send(naming(blob), to="planner")
    for size in (1, len(DATA) - 1, len(DATA) + 1):
        with pytest.raises(BlobError, match=f"of {size} bytes, got: {len(DATA)} bytes"):
            end.get_blob(Blob(size, blob.digest))
    assert DATA == end.get_blob(blob)


@pytest.mark.parametrize("wrong", ["abc", None, b"abc", ("a", 1)])
def test_what_is_no_blobs_name_is_not_got(wrong: object) -> None:
    """Another thing in place of a name, and a limit that is no number, are said with what was expected."""
    with connect("memory://no-name") as c:
        with pytest.raises(ConfigError, match=r"expected a Blob, got .*: give what put_blob returned"):
            c.get_blob(wrong)  # type: ignore[call-overload]
        with pytest.raises(ConfigError, match=r"expected max_bytes as a whole number, got .*: give bytes, or leave"):
            c.get_blob(c.put_blob(DATA), max_bytes=wrong or "a")  # type: ignore[call-overload]


@pytest.mark.parametrize("wrong", [b"", None, 7, io.StringIO("text"), open(os.devnull)])  # noqa: SIM115
def test_what_is_no_blob_is_not_put(wrong: object) -> None:
    """No bytes, and what is neither bytes nor a file of bytes, are the caller's mistake."""
    with connect("memory://no-blob") as c, pytest.raises(EncodeError, match="expected"):
        c.put_blob(wrong)  # type: ignore[arg-type]


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A path that names no file is an error of storage, with its name."""
    with connect("memory://no-file") as c, pytest.raises(StorageError, match="No such file"):
        c.put_blob(tmp_path / "none")


def test_a_blob_goes_with_the_last_message_that_names_it(tmp_path: Path) -> None:
    """Two messages name it: the first acknowledgement leaves it, the second removes it. A nack does not."""
    with connect(f"spool://{tmp_path}", name="planner", settings=SMALL) as c:
        blob = c.put_blob(DATA)
        for number in range(2):
            c.send(naming(blob, bytes([number])), to="planner")
        first, second = c.receive(), c.receive()
        assert first is not None
        assert second is not None
        first.ack()
        assert {blob.digest.hex(): len(DATA)} == files(tmp_path)
        second.nack()
        assert DATA == c.get_blob(blob)
        finish(c)
        assert {} == files(tmp_path)
        with pytest.raises(BlobError, match="put it again"):
            c.send(naming(blob, b"third"), to="planner")


def test_a_blob_that_was_put_again_waits_for_its_message(tmp_path: Path) -> None:
    """Who put it meanwhile finds it, although another's message that named it is done."""
    with connect(f"spool://{tmp_path}", name="planner", settings=SMALL) as c:
        blob = c.put_blob(DATA)
        c.send(naming(blob), to="planner")
        c.put_blob(DATA)
        finish(c)
        c.send(naming(blob, b"second"), to="planner")
        assert DATA == c.get_blob(blob)


def test_what_no_message_named_goes_by_age_and_dead_letters_keep_theirs(tmp_path: Path) -> None:
    """After ``max_age_s`` a blob that nobody named goes, and one whose message was dropped; a dead letter's stays."""
    clock = Clock()
    settings = Settings(power_safe=False, clock=clock, max_age_s=100, max_deliveries=1, lease_s=1)
    with connect(f"spool://{tmp_path}", name="planner", settings=settings) as c:
        kept = c.put_blob(b"dead letter")
        c.send(naming(kept), to="planner")
        assert c.receive() is not None
        clock.advance(50)
        assert c.receive() is None  # buried
        c.put_blob(b"unnamed")
        assert 2 == len(files(tmp_path))
        clock.advance(40)
        with connect(f"spool://{tmp_path}", name="planner-dead", settings=settings) as dead:
            assert b"dead letter" == dead.get_blob(kept)
            clock.advance(70)
            c.send(b"any", to="critic")
            c.send(b"other", to="critic")
        assert {} == files(tmp_path)


def test_limits_are_looked_at_before_anything_is_kept(tmp_path: Path) -> None:
    """One blob over its limit, and one over the room of all, are refused; what leaves makes room."""
    settings = Settings(power_safe=False, max_blob_bytes=100, max_blobs_bytes=150)
    with connect(f"spool://{tmp_path}", name="planner", settings=settings) as c:
        with pytest.raises(EncodeError, match="at most 100 bytes, got 101: raise max_blob_bytes"):
            c.put_blob(bytes(101))
        blob = c.put_blob(bytes(100))
        with pytest.raises(FullError, match="raise max_blobs_bytes"):
            c.put_blob(bytes(51))
        c.put_blob(bytes(100))
        c.send(naming(blob), to="planner")
        finish(c)
        c.put_blob(bytes(51))
    for wrong in ({"max_blob_bytes": 0}, {"max_blob_bytes": 2**36 + 1}, {"max_blobs_bytes": 0}):
        with pytest.raises(AddressError, match=next(iter(wrong))):
            Settings(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["altered", "truncated", "longer", "link", "folder", "pipe"])
def test_a_blob_that_was_altered_is_named_and_can_be_put_again(tmp_path: Path, how: str) -> None:
    """Whatever lies in its place, a get says so, keeps nothing, and the message comes again, with the blob put anew."""
    with connect(f"spool://{tmp_path}", name="planner", settings=SMALL) as c:
        blob = c.put_blob(DATA)
        c.send(naming(blob), to="planner")
        delivery = c.receive()
        assert delivery is not None
        file = tmp_path / "blobs" / blob.digest.hex()
        if how in ("altered", "truncated", "longer"):
            file.write_bytes({"altered": b"!" + DATA[1:], "truncated": DATA[:-1], "longer": DATA + b"!"}[how])
        else:
            file.rename(tmp_path / "true")
            make = {"link": lambda: file.symlink_to(tmp_path / "true"), "folder": file.mkdir}
            make.get(how, lambda: os.mkfifo(file))()
        with pytest.raises(BlobError, match=blob.digest.hex()):
            c.get_blob(blob, into=tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
        delivery.nack()
        if how == "folder":
            file.rmdir()
        assert blob == c.put_blob(DATA)
        again = c.receive()
        assert again is not None
        assert DATA == c.get_blob(blob)


def test_the_folder_of_blobs_is_its_accounts_alone(tmp_path: Path) -> None:
    """Folder and files are closed to others; a link in the folder's place, or one where others write, is refused."""
    with connect(f"spool://{tmp_path}", settings=SMALL) as c:
        blob = c.put_blob(DATA)
        folder = tmp_path / "blobs"
        assert 0o700 == folder.stat().st_mode & 0o777
        assert {0o600} == {each.stat().st_mode & 0o777 for each in folder.iterdir()}
        folder.chmod(0o777)
        with pytest.raises(NotWritableError, match="nobody else may write"):
            c.put_blob(b"other")
        with pytest.raises(BlobError, match="nobody else may write"):
            c.get_blob(blob)
        folder.chmod(0o700)
        folder.rename(tmp_path / "elsewhere")
        folder.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(NotWritableError, match="got a link: remove it"):
            c.put_blob(b"other")
        with pytest.raises(BlobError, match="got a link"):
            c.get_blob(blob)


PUT = """
import sys, time
from ilcp.transport import Settings, connect
from ilcp.transport.blobs import Part
write = Part.write
def slow(self, chunk):
    write(self, chunk)
    self.file.flush()
    print(self.offset, flush=True)
    time.sleep(float(sys.argv[3]))
Part.write = slow
with connect(sys.argv[1], settings=Settings(power_safe=False)) as c:
    c.put_blob(sys.argv[2])
"""


def test_a_put_that_is_killed_shows_nothing_and_goes_on(tmp_path: Path) -> None:
    """After kill -9 in the middle no message can name the blob; the next put writes the rest only."""
    url, data = f"spool://{tmp_path}", token_bytes(3 * CHUNK_BYTES)
    (file := tmp_path / "data").write_bytes(data)
    words = [sys.executable, "-c", PUT, url, str(file), "60"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"{CHUNK_BYTES}\n" == process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    blob = Blob.of(data)
    assert {blob.digest.hex() + ".part": CHUNK_BYTES} == files(tmp_path)
    with connect(url, settings=SMALL) as c:
        for refused in (lambda: c.send(naming(blob), to="planner"), lambda: c.get_blob(blob)):
            with pytest.raises(BlobError, match=blob.digest.hex()):
                refused()
    done = subprocess.run([*words[:-1], "0"], capture_output=True, text=True, check=True)
    assert [str(2 * CHUNK_BYTES), str(3 * CHUNK_BYTES)] == done.stdout.split()
    assert {blob.digest.hex(): len(data)} == files(tmp_path)


class Broken(io.BytesIO):
    """A file whose second reading ends after the first chunk with an error of the disk."""

    begun = 0

    def seek(self, *to: int) -> int:
        self.begun += 1
        return super().seek(*to)

    def read(self, size: int | None = -1) -> bytes:
        if self.begun > 1 and self.tell():
            raise OSError("cut")
        return super().read(size)


@pytest.mark.parametrize("over", ["spool", "http"])
@pytest.mark.parametrize("left", ["damaged", "whole, but damaged", "whole"])
def test_a_part_that_was_altered_is_begun_anew(server: Served, tmp_path: Path, over: str, left: str) -> None:
    """What an interrupted put left, and somebody altered, stops no put: the next one succeeds, over HTTP too."""
    data = token_bytes(2 * CHUNK_BYTES)
    blob, settings = Blob.of(data), SMALL if over == "spool" else Settings(token=TOKEN)
    with connect(server.spool, settings=SMALL) as receiver:
        with pytest.raises(StorageError, match="cut"):
            receiver.put_blob(Broken(data))
        part = tmp_path / "blobs" / f"{blob.digest.hex()}.part"
        assert CHUNK_BYTES == part.stat().st_size
        part.write_bytes({"damaged": b"!!!", "whole": data}.get(left, b"!" + data[1:]))
        with connect(server.spool if over == "spool" else server.url, settings=settings) as c:
            assert blob == c.put_blob(data)
        assert data == receiver.get_blob(blob)
    assert {blob.digest.hex(): len(data)} == files(tmp_path)


class Altered(io.BytesIO):
    """A file that is another one after its first reading."""

    def __init__(self, data: bytes, how: str) -> None:
        super().__init__(data)
        self._data, self._how, self._begun = data, how, 0

    def seek(self, *to: int) -> int:
        self._begun += 1
        if self._begun > 1:
            super().__init__({"same": b"!" * 100, "longer": self._data + b"!", "shorter": self._data[1:]}[self._how])
        return super().seek(*to)


# To an ingress a body of another length is one that broke off: it waits for the rest.
WAYS = [(over, how) for over in ("memory", "spool") for how in ("same", "longer", "shorter")] + [("http", "same")]


@pytest.mark.parametrize(("over", "how"), WAYS)
def test_a_put_that_fails_keeps_no_room(server: Served, tmp_path: Path, over: str, how: str) -> None:
    """After a source that was altered while it was put, the whole room is there for the next put, and nothing lies."""
    room = Settings(power_safe=over == "memory", max_blobs_bytes=100)
    url = "memory://no-room" if over == "memory" else server.spool
    with connect(url, settings=room) as c:
        with contextlib.ExitStack() as stack:
            door = stack.enter_context(connect(server.url, settings=Settings(token=TOKEN))) if over == "http" else c
            with pytest.raises(BlobError, match="altered"):
                door.put_blob(Altered(bytes(100), how))
        if over != "memory":
            assert {} == files(tmp_path)
        blob = c.put_blob(b"x" * 100)
        assert b"x" * 100 == c.get_blob(blob)


def test_a_put_that_the_disk_refuses_keeps_no_room(tmp_path: Path) -> None:
    """A folder that others may write takes no blob; once it is closed to them, all of the room is there."""
    with connect(f"spool://{tmp_path}", settings=Settings(power_safe=False, max_blobs_bytes=100)) as c:
        (folder := tmp_path / "blobs").mkdir()
        folder.chmod(0o777)
        with pytest.raises(NotWritableError, match="nobody else may write"):
            c.put_blob(bytes(100))
        folder.chmod(0o700)
        c.put_blob(b"x" * 100)


def test_a_put_that_fails_leaves_another_ones_room() -> None:
    """Of two that put one blob at a time into memory one fails: the other's room stays kept."""
    store, blob = Store(":memory:", Settings(clock=(clock := Clock()), max_blobs_bytes=100)), Blob.of(bytes(100))
    first = store.blob_part(blob)
    clock.advance(1)
    second = store.blob_part(blob)
    assert first is not None
    assert second is not None
    store.drop_blob(first)
    with pytest.raises(FullError, match="take 100 of 100"):
        store.blob_part(Blob.of(b"other"))
    store.drop_blob(second)
    assert store.blob_part(Blob.of(b"other")) is not None
    store.close()


def test_another_size_under_a_blobs_digest_is_no_such_blob_in_memory() -> None:
    """A put that names it is not told that it is there; it fails, and leaves the blob and the room that it takes."""
    with connect("memory://another-size", settings=Settings(max_blobs_bytes=100)) as c:
        store, blob = c._inner._backend._store, c.put_blob(bytes(100))  # type: ignore[attr-defined]
        part = store.blob_part(Blob(1, blob.digest))
        part.write(b"!")
        with pytest.raises(BlobError, match="with the digest"):
            store.blobs.keep(part)
        store.drop_blob(part)
        with pytest.raises(FullError, match="take 100 of 100"):
            c.put_blob(b"other")
        assert bytes(100) == c.get_blob(blob)


def test_two_processes_put_one_blob(tmp_path: Path) -> None:
    """One writes it, the other waits, and both end with the one file."""
    data = token_bytes(3 * CHUNK_BYTES)
    (file := tmp_path / "data").write_bytes(data)
    words = [sys.executable, "-c", PUT, f"spool://{tmp_path}", str(file), "0.3"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    wrote = [len(process.communicate(timeout=60)[0].split()) for process in both]
    assert [0, 3] == sorted(wrote)
    assert [0, 0] == [process.returncode for process in both]
    assert {Blob.of(data).digest.hex(): len(data)} == files(tmp_path)


def put(server: Served, digest: str, content: bytes, **headers: str) -> httpx.Response:
    """Puts a blob, or a part of one, as a client of its own."""
    media = {"content-type": "application/vnd.ilcp.blob"}
    return ask(
        server,
        "PUT",
        f"/v1/blobs/{digest}",
        headers=media | {k.replace("_", "-"): v for k, v in headers.items()},
        content=content,
    )


def test_a_blob_is_put_over_http_into_the_receivers_spool(server: Served) -> None:
    """It is kept once (201, then 200), named by a message, and got by the receiver; nothing is got over HTTP."""
    with connect(server.url, settings=Settings(token=TOKEN)) as c:
        blob = c.put_blob(DATA)
        assert blob == c.put_blob(io.BytesIO(DATA))
        c.send(naming(blob), to="planner")
        with pytest.raises(AddressError, match="take from the spool"):
            c.get_blob(blob)
        with pytest.raises(BlobError, match="put it again"):
            c.send(naming(Blob.of(b"never put")), to="planner")
    with server.behind() as receiver:
        delivery = receiver.receive()
        assert delivery is not None
        assert DATA == receiver.get_blob(blob)
        delivery.ack()
    digest = Blob.of(b"other").digest.hex()
    assert [201, 200] == [put(server, digest, b"other").status_code for _ in range(2)]


def test_a_put_over_http_goes_on_where_it_ended(server: Served) -> None:
    """What arrived of a body that broke off is told, a wrong offset is refused, and the rest makes it whole."""
    blob = Blob.of(DATA)
    path, digest = f"/v1/blobs/{blob.digest.hex()}", blob.digest.hex()

    def broken() -> Iterator[bytes]:
        yield DATA[:100_000]
        raise RuntimeError("cut")

    headers = {"content-type": "application/vnd.ilcp.blob", "content-length": str(len(DATA))}
    with contextlib.suppress(RuntimeError, httpx.HTTPError):
        ask(server, "PUT", path, headers=headers, content=broken())
    until_s, offset = time.monotonic() + 10, 0
    while offset == 0 and time.monotonic() < until_s:
        offset = int(ask(server, "HEAD", path).headers["upload-offset"])
    assert 0 < offset <= 100_000
    wrong = put(server, digest, DATA[1:], content_range=f"bytes 1-{len(DATA) - 1}/{len(DATA)}")
    assert 416 == wrong.status_code
    with connect(server.url, settings=Settings(token=TOKEN)) as c:
        assert blob == c.put_blob(DATA)
    assert str(len(DATA)) == ask(server, "HEAD", path).headers["upload-offset"]
    with server.behind() as receiver:
        assert DATA == receiver.get_blob(blob)


REFUSED = {
    "other content": ({}, b"other", 422),
    "another media type": ({"content_type": "text/plain"}, DATA, 415),
    "an origin": ({"origin": "null"}, DATA, 403),
    "a host": ({"host": "evil.example"}, DATA, 403),
    "no token": ({"authorization": "Bearer wrong"}, DATA, 401),
    "a range that is none": ({"content_range": "bytes 0-1/2"}, DATA, 400),
    "a range of more than there is": ({"content_range": "bytes */9"}, DATA, 400),
    "too large": ({}, bytes(TOO_MANY), 413),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_put_over_http_leaves_nothing(
    server: Served, tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each fault has its status, and no blob comes of it."""
    monkeypatch.setattr("ilcp.transport.app.WRONG_S", 0.0)
    if case == "too large":
        declared = _declared
        monkeypatch.setattr("ilcp.transport.app._declared", lambda request, most: declared(request, min(most, 1 << 19)))
    headers, content, status = REFUSED[case]
    assert status == put(server, Blob.of(DATA).digest.hex(), content, **headers).status_code
    assert not (tmp_path / "blobs").exists() or {} == files(tmp_path)
    assert 404 == put(server, "xy", DATA).status_code


def test_a_wrong_put_under_a_blobs_name_changes_nothing(server: Served) -> None:
    """Bytes of another size, put under the digest of a blob that is there, leave it, and the room that it takes."""
    with connect(server.spool, settings=Settings(power_safe=False, max_blobs_bytes=len(DATA) + 50)) as receiver:
        blob = receiver.put_blob(DATA)
        assert 422 == put(server, blob.digest.hex(), b"!").status_code
        assert DATA == receiver.get_blob(blob)
        assert str(len(DATA)) == ask(server, "HEAD", f"/v1/blobs/{blob.digest.hex()}").headers["upload-offset"]
        with pytest.raises(FullError, match=f"others that take {len(DATA)} of"):
            receiver.put_blob(bytes(51))
        receiver.put_blob(bytes(50))


@pytest.mark.parametrize("how", ["shorter", "longer", "empty"])
def test_a_blob_of_another_size_is_mended_over_http(server: Served, tmp_path: Path, how: str) -> None:
    """What was cut or grew on the disk since is not taken for the blob, nor for its beginning: a put mends it."""
    with connect(server.url, settings=Settings(token=TOKEN, timeout_s=2)) as c, server.behind() as receiver:
        blob = c.put_blob(DATA)
        there = {"shorter": DATA[:-1], "longer": DATA + b"!", "empty": b""}[how]
        (tmp_path / "blobs" / blob.digest.hex()).write_bytes(there)
        with pytest.raises(BlobError, match=blob.digest.hex()):
            receiver.get_blob(blob)
        assert blob == c.put_blob(DATA)
        assert DATA == receiver.get_blob(blob)


def test_what_is_said_over_http_does_not_name_the_spools_place(server: Served, tmp_path: Path) -> None:
    """Whatever is wrong with a blob, or with its folder, the answer says so without a path of the receiver's host."""
    digest, folder = Blob.of(DATA).digest.hex(), tmp_path / "blobs"
    answers = [put(server, digest, b"other")]
    folder.chmod(0o777)
    answers.append(put(server, digest, DATA))
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    answers.append(put(server, digest, DATA))
    assert [422, 503, 503] == [each.status_code for each in answers]
    for each in answers:
        assert str(tmp_path) not in each.text
        assert "expected" in each.json()["error"]
    assert "the spool/blobs" in answers[1].text


def test_a_larger_blob_streams(tmp_path: Path) -> None:
    """A file of several chunks goes in and out in pieces, over the event loop's threads too."""
    data = token_bytes(2 * CHUNK_BYTES + 1)
    (file := tmp_path / "data").write_bytes(data)
    with served(tmp_path / "spool") as server:
        with connect(server.url, settings=Settings(token=TOKEN)) as c:
            blob = c.put_blob(file)
        with server.behind() as receiver:
            assert data == receiver.get_blob(blob, into=tmp_path / "copy").read_bytes()
