"""The server behind ``ilcp audit serve``: an application on a socket, with TLS unless it is this machine's own."""

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn

from ilcp.audit.ledger import Ledger
from ilcp.audit.page.access import Reader
from ilcp.audit.page.app import CERTIFICATE, application
from ilcp.audit.page.site import require_page
from ilcp.audit.recorder import Recorder
from ilcp.audit.submission import PAGE, VIEWS
from ilcp.errors import ConfigError
from ilcp.transport.door import Door, listening
from ilcp.transport.errors import AddressError
from ilcp.transport.serve import configured, ended_after_closing, require_both
from ilcp.transport.telemetry import spared

__all__ = ["serve"]

OWN = ("127.0.0.1", "::1", "localhost")  # hosts that nobody else reaches
EVERYWHERE = ("0.0.0.0", "::", "")
LOGS = ("asyncio", "uvicorn.error")


class _Seeing(Door):
    """A connection that tells the application its client's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Looks at it: the handshake is over."""
        super().connection_made(transport)
        shown: Any = transport.get_extra_info("ssl_object")
        certificate = shown.getpeercert(binary_form=True) if shown is not None else None
        self.app_state = {**self.app_state, CERTIFICATE: certificate}


def serve(
    ledger: Path,
    readers: list[Reader],
    via: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    hosts: tuple[str, ...] = (),
    certificate: Path | None = None,
    key: Path | None = None,
    clients: Path | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serves until SIGINT or SIGTERM; ``ready`` gets the address once requests are taken (port 0 picks a free one).

    Args:
        via: where views are told to the guardian.
        certificate, key: of the server, in PEM; needed for a host that others reach.
        clients: certificates (PEM) that sign those of readers; a client without one is then refused by TLS.

    Raises:
        ConfigError: no TLS for a host that others reach, certificates for readers without ``clients``, or no ledger.
        AddressError, UnreachableError: as ``ilcp.transport.serve``.
        MissingExtraError: what draws pages is not installed.
    """
    require_page()
    _require_safe(readers, host, certificate, key, clients)
    _require_known(via, host, hosts)

    async def work(opened: Ledger, recorder: Recorder) -> None:
        app = application(opened, readers, recorder, [*hosts, host, "localhost"])
        config = configured(app, certificate, key, door=_Seeing)
        if clients is not None:
            _require_clients(config, clients)
        with listening(host, port) as door:
            where = f"[{host}]" if ":" in host else host
            ready(f"{'http' if certificate is None else 'https'}://{where}:{door.getsockname()[1]}")
            await uvicorn.Server(config).serve(sockets=[door])

    spared(*LOGS)
    with (
        ended_after_closing(),
        Ledger(ledger) as opened,
        Recorder(via, PAGE, run=VIEWS, unrecorded="told") as recorder,
    ):
        asyncio.run(work(opened, recorder))


def _require_safe(
    readers: list[Reader], host: str, certificate: Path | None, key: Path | None, clients: Path | None
) -> None:
    """Refuses what would show a token to a network, or let nobody in.

    Raises:
        ConfigError: with what is missing.
    """
    require_both(certificate, key)
    if certificate is None and host not in OWN:
        raise ConfigError(f"expected --certificate and --key for {host}: a token would cross the network in the clear")
    if certificate is None and clients is not None:
        raise ConfigError("expected --certificate and --key beside certificates of clients, got none")
    if clients is None and any(each.certificate_sha256 and not each.token_sha256 for each in readers):
        raise ConfigError("expected --clients FILE for readers that are known by certificates, got none")


def _require_known(via: str, host: str, hosts: tuple[str, ...]) -> None:
    """Refuses views that nobody would know of, and names that nobody could ask by.

    Raises:
        ConfigError: with what to give.
    """
    if via.partition(":")[0].lower() == "memory":
        raise ConfigError(f"expected an address that a guardian reaches, got {via}: views would be on no record")
    if via.startswith("spool://") and not Path(unquote(via.removeprefix("spool://"))).is_dir():
        raise ConfigError(f"expected the spool from which a guardian takes records, got {via}: there is none")
    if host in EVERYWHERE and not hosts:
        raise ConfigError(f"expected --allow-host NAME beside --host {host}: by which name is it asked for?")
    if odd := [each for each in hosts if not each or set(each) & set("*/:[] ")]:
        raise ConfigError(f"expected a host's name without port or pattern, got {odd[0]!r}")


def _require_clients(config: uvicorn.Config, clients: Path) -> None:
    context: Any = config.ssl
    try:
        context.load_verify_locations(clients)
    except (OSError, ssl.SSLError) as error:
        raise AddressError(f"expected certificates of clients in PEM, got {clients}: {error}") from error
    context.verify_mode = ssl.CERT_REQUIRED
