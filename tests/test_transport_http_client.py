"""The HTTP client, when somebody else answers than an endpoint, or not as one does."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from ilcp.transport import ProtocolError, Settings, UnreachableError, connect
from ilcp.transport.http import client_for


@contextlib.contextmanager
def peer(*parts: bytes, pause_s: float = 0.0) -> Iterator[str]:
    """Gives the address of somebody who says the parts to each who connects, whatever is asked."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def work() -> None:
            with contextlib.suppress(OSError):
                while True:
                    talk(listening.accept()[0])

        def talk(s: socket.socket) -> None:
            with s, contextlib.suppress(OSError):
                s.recv(65536)
                for part in parts:
                    s.sendall(part)
                    if stop.wait(pause_s):
                        return

        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop.set()
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_a_peer_that_drips_is_not_waited_for() -> None:
    """``timeout_s`` bounds the whole of an answer, not each of its bytes."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    with peer(head, *[b" "] * 100, pause_s=0.1) as url:
        began = time.monotonic()
        with pytest.raises(UnreachableError, match="none in time"):
            connect(url, settings=Settings(timeout_s=0.5)).__enter__()
        assert time.monotonic() - began < 3


def test_a_body_that_was_encoded_on_its_way_is_refused() -> None:
    """The client asks for bodies as they are, and takes no compressed one for a message."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-encoding: gzip\r\ncontent-length: 6\r\n\r\n"
    assert "identity" == client_for("http://x", Settings()).headers["accept-encoding"]
    with peer(head + b'"ilcp"') as url, pytest.raises(ProtocolError, match="content-encoding"):
        connect(url).__enter__()


def test_another_page_is_no_endpoint() -> None:
    """A server that says something else is told from one that is not there."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_: object) -> None:
            pass

    other = HTTPServer(("127.0.0.1", 0), Other)
    thread = threading.Thread(target=other.serve_forever)
    thread.start()
    try:
        with pytest.raises(ProtocolError, match="got another page"):
            connect(f"http://127.0.0.1:{other.server_port}").__enter__()
    finally:
        other.shutdown()
        thread.join()
        other.server_close()
