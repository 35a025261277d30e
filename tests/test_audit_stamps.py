"""Time stamps of a third party over checkpoints, by openssl's authority; and the record's id in an open span."""

import base64
import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ilcp.audit import Draft, Ledger, Recorder, Signer
from ilcp.audit.stamps import asked, note_in, stamp, stamped_at
from ilcp.cli import app
from ilcp.errors import AuditError, ConfigError, DecodeError
from tests.transport_model import OPENSSL, needs_openssl

SIGNER = Signer("example/ledger", bytes(range(32)))
CONFIG = """
[req]
distinguished_name = dn
[dn]
[ca]
basicConstraints = critical,CA:true
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[tsa]
basicConstraints = critical,CA:false
keyUsage = critical,digitalSignature
extendedKeyUsage = critical,timeStamping
authorityKeyIdentifier = keyid
[authority]
serial = serial
default_policy = 1.2.3.4.1
digests = sha256,sha512
accuracy = secs:1
ess_cert_id_alg = sha256
ess_cert_id_chain = no
signer_digest = sha256
"""


class Authority:
    """A time stamping authority in a folder."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder = folder
        (folder / "c").write_text(CONFIG)
        (folder / "serial").write_text("01\n")
        key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        self._run(f"req -x509 {key} -keyout root.key -out root.pem -subj /CN=Root -days 3000 -config c -extensions ca")
        self._run(f"req {key} -keyout t.key -out t.csr -subj /CN=Authority -config c")
        signed = "-CA root.pem -CAkey root.key -CAcreateserial -extfile c -extensions tsa"
        self._run(f"x509 -req -in t.csr -out t.pem -days 2000 {signed}")
        self.roots = (folder / "root.pem").read_bytes()

    def __call__(self, request: bytes) -> bytes:
        (self.folder / "query").write_bytes(request)
        self._run("ts -reply -config c -section authority -queryfile query -signer t.pem -inkey t.key -out answer")
        return (self.folder / "answer").read_bytes()

    def _run(self, words: str) -> None:
        subprocess.run([str(OPENSSL), *words.split()], cwd=self.folder, capture_output=True, check=True)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("stamps") / "one")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "l", SIGNER) as opened:
        opened.append([Draft("note", {"x": 1})])
        yield opened


@needs_openssl
def test_a_stamp_says_when_a_ledger_was_there(authority: Authority, ledger: Ledger) -> None:
    """It holds the checkpoint, and the authority's time; both without the ledger."""
    made = stamp(ledger.checkpoint(), authority.roots, authority).encode()
    assert ledger.checkpoint() == note_in(made)
    assert abs(stamped_at(made, 2 * authority.roots) - datetime.now(UTC)) < timedelta(minutes=1)


@needs_openssl
def test_a_stamp_that_was_changed_does_not_hold(authority: Authority, ledger: Ledger, tmp_path: Path) -> None:
    """Another checkpoint, another's root, any flipped byte of the answer, and what is no stamp at all."""
    made = json.loads(stamp(ledger.checkpoint(), authority.roots, authority))
    other = Authority(tmp_path / "other")
    before = ledger.checkpoint()
    ledger.append([Draft("note", {"x": 2})])
    assert before != ledger.checkpoint()
    answer = base64.b64decode(made["answer"])
    changed = [made | {"checkpoint": ledger.checkpoint()}]
    for at in range(20, len(answer), 37):
        flipped = answer[:at] + bytes([answer[at] ^ 1]) + answer[at + 1 :]
        changed.append(made | {"answer": base64.b64encode(flipped).decode()})
    held = 0
    for each in changed:
        try:
            held += stamped_at(json.dumps(each).encode(), authority.roots) is not None
        except DecodeError:
            continue
    assert held <= 2  # bytes of the answer that no signature covers, such as a certificate's unused copy
    with pytest.raises(DecodeError, match="holds"):
        stamped_at(json.dumps(changed[0]).encode(), authority.roots)
    with pytest.raises(DecodeError, match="holds"):
        stamped_at(json.dumps(made).encode(), other.roots)
    for data in (
        b"",
        b"{}",
        b"[]",
        json.dumps(made | {"answer": "%"}).encode(),
        json.dumps(made | {"answer": 1}).encode(),
    ):
        with pytest.raises(DecodeError):
            stamped_at(data, authority.roots)
    with pytest.raises(ConfigError, match="PEM"):
        stamped_at(json.dumps(made).encode(), b"none")


@needs_openssl
def test_an_authority_that_answers_something_else_gives_no_stamp(authority: Authority, ledger: Ledger) -> None:
    """Nothing, an error page, or the answer to an earlier request, whose nonce is another."""
    stamp(ledger.checkpoint(), authority.roots, authority)
    for answer in (b"", b"<html>", (authority.folder / "answer").read_bytes()):
        with pytest.raises(AuditError, match="expected a time stamp from the authority"):
            stamp(ledger.checkpoint(), authority.roots, lambda _, answer=answer: answer)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="http"):
        asked("file:///etc/passwd")
    for url in ("http://127.0.0.1:1/", "http://x:y", "http://a b/", "http://["):
        with pytest.raises(AuditError, match="expected an answer from"):
            asked(url)(b"x")
    with socket.create_server(("127.0.0.1", 0)) as garbage:

        def say_something() -> None:
            connection, _ = garbage.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"what?\r\n\r\n")

        threading.Thread(target=say_something, daemon=True).start()
        with pytest.raises(AuditError, match="expected an answer from"):
            asked(f"http://127.0.0.1:{garbage.getsockname()[1]}")(b"x")


@needs_openssl
def test_a_stamp_is_a_witness_on_the_command_line(authority: Authority, ledger: Ledger, tmp_path: Path) -> None:
    """It is fetched over HTTP, told by verify, and a ledger that was written anew after it is found out."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = authority(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    def run(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["audit", *map(str, words)], catch_exceptions=False)
        assert code == done.exit_code, done.output
        return done.output

    roots, file = authority.folder / "root.pem", tmp_path / "stamp"
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        assert "2 entries stamped at" in run("stamp", ledger.path, "--tsa", url, "--roots", roots, "--out", file)
    ledger.append([Draft("note", {"x": 3})])
    options = ("--key", ledger.keys[0], "--stamp", file, "--roots", roots)
    assert "stamped: its first 2 entries were there at" in run("verify", ledger.path, *options)
    with Ledger(tmp_path / "anew", SIGNER) as anew:
        anew.append([Draft("note", {"x": number}) for number in range(9)])
    assert "witness" in run("verify", tmp_path / "anew", *options, code=16)
    with pytest.raises(ConfigError, match="--roots"):
        run("verify", ledger.path, "--stamp", file)


def test_an_open_span_gets_the_id_of_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a trace leads to the ledger, under the project's own namespace."""
    trace = pytest.importorskip("opentelemetry.trace")
    told: dict[str, Any] = {}

    class Span(trace.NonRecordingSpan):  # type: ignore[name-defined]
        def set_attributes(self, attributes: Any) -> None:
            told.update(attributes)

    monkeypatch.setattr(trace, "get_current_span", lambda *_: Span(trace.INVALID_SPAN_CONTEXT))
    with Recorder("memory://spans", "planner", run="monday") as audit:
        audit.record("sent", {})
    assert ("monday", 1) == (told["ilcp.audit.run"], told["ilcp.audit.sequence"])
    assert 40 == len(told["ilcp.audit.record"])
