"""``ilcp audit serve`` and ``ilcp audit reader`` as processes: tokens, certificates, signals, wrong inputs."""

import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ilcp.audit import Guardian, Ledger, Signer
from ilcp.audit.guardian import settings_for
from ilcp.audit.page.access import Reader, readers_in
from ilcp.audit.page.serving import serve
from ilcp.cli import app
from ilcp.errors import ConfigError
from ilcp.transport import connect
from tests.helpers import environment
from tests.test_audit_page import READERS, handoff
from tests.transport_model import certificate, needs_openssl

SIGNER = Signer("example/ledger", bytes(range(32)))


def run(*words: object) -> str:
    done = CliRunner().invoke(app, ["audit", *map(str, words)], catch_exceptions=False)
    assert 0 == done.exit_code, done.output
    return done.output.strip()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A ledger ``l`` of two hand-offs, and a spool for the views."""
    (tmp_path / "spool").mkdir(mode=0o700)
    with Ledger(tmp_path / "l", SIGNER) as ledger:
        ledger.append([handoff("monday", 1), handoff("tuesday", 1)])
    return tmp_path


@contextmanager
def served(place: Path, *options: object) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Serves the ledger by a process, and gives its address."""
    words = ["serve", place / "l", "--readers", place / "readers", "--via", f"spool://{place / 'spool'}", *options]
    command = [sys.executable, "-m", "ilcp", "audit", *map(str, words)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment() | {"COLUMNS": "300"}
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().partition(" at ")[2].partition(";")[0], process
        finally:
            process.kill()


def asked(url: str, token: str = "", context: ssl.SSLContext | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_reader_is_added_and_let_in(place: Path) -> None:
    """The token is printed once and kept as a digest; its reader sees one run, and each view reaches the guardian."""
    token = run("reader", place / "readers", 'Jane \u00e9 "x"', "--run", "monday")
    other = run("reader", place / "readers", "Bob")
    (one, two), text = readers_in(place / "readers"), (place / "readers").read_text()
    assert ({"monday"}, None) == (one.runs, two.runs)
    assert sha256(token.encode()).hexdigest() == one.token_sha256
    assert not {token, other} & set(text.split('"'))
    assert 0o600 == os.stat(place / "readers").st_mode & 0o777
    with pytest.raises(ConfigError, match="a new reader's name"):
        run("reader", place / "readers", "Bob")
    with served(place) as (url, process):
        assert 401 == asked(url)[0]
        assert [200, 404] == [asked(f"{url}/handoffs/{number}", token)[0] for number in (1, 2)]
        assert 200 == asked(f"{url}/handoffs/2", other)[0]
        process.send_signal(signal.SIGTERM)
        assert -signal.SIGTERM == process.wait(30)
    via = f"spool://{place / 'spool'}"
    with connect(via, name="guardian", settings=settings_for(via)) as c, Ledger(place / "l", SIGNER) as ledger:
        assert 3 == Guardian(ledger, c).work()


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT])
def test_a_page_that_was_shown_is_on_record_however_the_server_ends(place: Path, ending: int) -> None:
    """Killed between two answers, it loses no view that somebody saw, and the next server's views are told apart."""
    token = run("reader", place / "readers", "Jane")
    for _ in range(2):
        with served(place) as (url, process):
            assert [200] * 5 == [asked(url, token)[0] for _ in range(5)]
            process.send_signal(ending)
            process.wait(30)
    via = f"spool://{place / 'spool'}"
    with connect(via, name="guardian", settings=settings_for(via)) as c, Ledger(place / "l", SIGNER) as ledger:
        Guardian(ledger, c).work()
        found = [numbers for (producer, _, _), numbers in ledger.sequences().items() if producer == "page"]
        assert [[[1, 5]]] * 2 == found


@needs_openssl
def test_a_client_without_its_certificate_is_refused(place: Path) -> None:
    """With --clients a reader is known by the certificate that the connection shows, and TLS takes nobody without."""
    for name in ("server", "client"):
        (place / name).mkdir()
    cert, key = certificate(place / "server", "200101000000Z", "491231000000Z")
    own, own_key = certificate(place / "client", "200101000000Z", "491231000000Z")
    digest = sha256(ssl.PEM_cert_to_DER_cert(own.read_text())).hexdigest()
    (place / "readers").write_text(f'[[reader]]\nname = "Jane"\nruns = "all"\ncertificate_sha256 = "{digest}"\n')
    trust, shows = (ssl.create_default_context(cafile=cert) for _ in range(2))
    shows.load_cert_chain(own, own_key)
    options = ("--certificate", cert, "--key", key, "--clients", own)
    with served(place, *options) as (url, _):
        address = url.replace("127.0.0.1", "localhost")
        assert address.startswith("https://")
        assert 200 == asked(f"{address}/handoffs/1", context=shows)[0]
        with pytest.raises((OSError, urllib.error.URLError)):
            asked(address, context=trust)


def test_what_would_show_a_token_to_a_network_is_refused(place: Path) -> None:
    """Another host needs TLS, certificates of readers need --clients, and half a certificate is none."""
    via, cert = f"spool://{place / 'spool'}", place / "cert.pem"
    by_certificate = [Reader("Eve", None, certificate_sha256="ab" * 32)]
    for words, readers, options in (
        ("in the clear", READERS, {"host": "0.0.0.0"}),
        ("--clients FILE", by_certificate, {}),
        ("its key, or neither", READERS, {"certificate": cert}),
        ("beside certificates of clients", READERS, {"clients": cert}),
    ):
        with pytest.raises(ConfigError, match=words):
            serve(place / "l", readers, via, **options)
    with pytest.raises(ConfigError, match="expected a ledger"):
        serve(place / "none", READERS, via)
