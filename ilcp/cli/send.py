"""``ilcp send``, ``ilcp receive``, ``ilcp serve``: messages on their way between processes."""

import logging
import os
from pathlib import Path
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated

import typer

from ilcp.cli.common import err, interruptible, out, read_message
from ilcp.cli.exit_codes import NOTHING_CAME
from ilcp.errors import ConfigError, MissingExtraError, StorageError
from ilcp.files import require_writable, write_whole

if TYPE_CHECKING:
    from ilcp.transport import Settings

__all__ = ["receive", "send", "serve"]

SUFFIX = ".ilcp"
TOKEN = "ILCP_TOKEN"

Via = Annotated[str, typer.Option("--via", help="spool:///folder, nats://host:port or, to send, https://host:port.")]
Token = Annotated[str | None, typer.Option(help="The other side's token; better in ILCP_TOKEN, which it is without.")]
Ca = Annotated[Path | None, typer.Option("--ca", help="Trust this certificate (PEM) in place of the system's.")]
Creds = Annotated[Path | None, typer.Option("--credentials", help="NATS: a .creds file.")]
Logs = Annotated[bool, typer.Option("--log-json", help="Log every step to standard error, a JSON object per line.")]


def send(
    file: Annotated[Path, typer.Argument(help="A file that holds one message; - for standard input.")],
    via: Via,
    to: Annotated[str, typer.Option("--to", help="The receiver's name.")],
    handoff_id: Annotated[
        str | None, typer.Option("--id", help="The id of a bare message: sent again under it, it is kept once.")
    ] = None,
    token: Token = None,
    ca: Ca = None,
    credentials: Creds = None,
    log_json: Logs = False,
) -> None:
    """Hands a message to a transport; once this returns, it is kept for the receiver."""
    from ilcp.transport import connect

    _log(log_json)
    message, _ = read_message(file)
    with connect(via, settings=_settings(via, token, ca, credentials)) as c:
        receipt = c.send(message, to=to, handoff_id=handoff_id)
    kept = "was there already" if receipt.duplicate else "sent"
    out.print(
        f"{receipt.handoff_id}  {len(message)} bytes to {to}: {kept}", highlight=False, soft_wrap=True, markup=False
    )


def receive(
    via: Via,
    name: Annotated[str, typer.Option("--as", help="Whose messages.")],
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    to: Annotated[Path, typer.Option("--out", help="Where they go: ID.ilcp each.", file_okay=False)] = Path("."),
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="How long to wait for each, in seconds.")] = 10.0,
    token: Token = None,
    ca: Ca = None,
    credentials: Creds = None,
    log_json: Logs = False,
) -> None:
    """Writes messages to files, overwriting none, each acknowledged once its file is on the disk."""
    from ilcp.transport import connect
    from ilcp.transport.backend import checked_name

    _log(log_json)
    require_writable(to / f"message{SUFFIX}")  # before a message is taken that could not be kept
    came = 0
    with (
        interruptible("what was written is acknowledged, the rest is still there"),
        connect(via, name=name, settings=_settings(via, token, ca, credentials)) as c,
    ):
        while came < count:
            delivery = c.receive(timeout_s)
            if delivery is None:
                break
            path = to / (checked_name("a hand-off's id", delivery.handoff_id) + SUFFIX)
            try:
                to.mkdir(parents=True, exist_ok=True)
                _keep(path, delivery.message)
            except (OSError, StorageError) as error:
                delivery.nack(unseen=True)
                said = error.__cause__ or error
                raise StorageError(f"expected room for a message in {to}, got: {said}; it is still there") from error
            delivery.ack()
            came += 1
            out.print(
                f"{delivery.handoff_id}  {len(delivery.message)} bytes: {path}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
    if came < count:
        err.print(f"{came} of {count} came within {timeout_s:g} s each", highlight=False)
        raise typer.Exit(NOTHING_CAME)


def serve(
    spool: Annotated[Path, typer.Option("--spool", help="The receiver's spool, a folder.", file_okay=False)],
    name: Annotated[str, typer.Option("--as", help="Whose messages come in.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name by which senders reach it, beside its IP address; repeat it."),
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar=TOKEN, help="Who sends has to show it; made up and printed once without.")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="TLS: the certificate, PEM.", dir_okay=False)] = None,
    key: Annotated[Path | None, typer.Option(help="TLS: its key, PEM.", dir_okay=False)] = None,
    log_json: Logs = False,
) -> None:
    """Takes messages for one receiver over HTTP and puts them into its spool, until Ctrl-C or SIGTERM.

    The receiver takes them from there: ilcp receive --via spool://DIR. /health and Prometheus' /metrics are served too.

    Exit code 130 after Ctrl-C; after SIGTERM it ends by that signal, which a shell shows as 143.
    """
    try:
        import ilcp.transport.serve
    except ModuleNotFoundError as error:
        raise MissingExtraError.of(str(error.name), "to serve with", "http") from error
    _log(log_json)
    made_up = None if token else token_urlsafe(32)

    def ready(url: str) -> None:
        text = f"taking messages for {name} into {spool} at {url}"
        out.print(text, highlight=False, soft_wrap=True, markup=False)
        if made_up:
            out.print(f"{TOKEN}={made_up}", highlight=False, soft_wrap=True, markup=False)

    with interruptible("every message that was kept is in the spool"):
        ilcp.transport.serve.serve(
            spool,
            name,
            token=token or str(made_up),
            host=host,
            port=port,
            hosts=allow_host or (),
            certificate=certificate,
            key=key,
            ready=ready,
        )


def _keep(path: Path, message: bytes) -> None:
    """Writes a message, and leaves alone what is there: the same, as after a death before the ack, or another's."""
    try:
        write_whole(path, message, private=True, new=True)
    except StorageError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        if not path.is_file() or path.read_bytes() != message:
            raise StorageError(
                f"another message at {path}, such as another recipient's: move it away, or choose another --out"
            ) from None


def _settings(via: str, token: str | None, ca: Path | None, credentials: Path | None) -> "Settings":
    """Makes the settings; a token of the environment is for whoever is asked for one, and no spool is."""
    scheme = via.partition(":")[0].lower()
    if scheme == "memory":
        raise ConfigError(
            f"expected an address that other processes reach, got {via}: what it holds ends with this command; use "
            "spool:// or nats://"
        )
    import ssl

    from ilcp.transport import AddressError, Settings

    try:
        tls = None if ca is None else ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise AddressError(f"expected a certificate in PEM, got {ca}: {error}") from error
    if token is None and scheme != "spool" and credentials is None:
        token = os.environ.get(TOKEN) or None
    return Settings(token=token, tls=tls, credentials=credentials)


def _log(wanted: bool) -> None:
    if wanted:
        from ilcp.transport.telemetry import LOGGER, JsonFormatter

        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger = logging.getLogger(LOGGER)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
