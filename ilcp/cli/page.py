"""``ilcp audit serve`` and ``ilcp audit reader``: the page, and who may look at it."""

import json
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated, Any

import typer

from ilcp.cli.common import interruptible, out
from ilcp.cli.ledgers import LedgerFile
from ilcp.errors import ConfigError, MissingExtraError
from ilcp.files import held, replacing

__all__ = ["reader", "serve"]


def serve(
    ledger: LedgerFile,
    readers: Annotated[Path, typer.Option(help="Who may look: 'ilcp audit reader' writes it.", dir_okay=False)],
    via: Annotated[str, typer.Option("--via", help="Where the guardian takes records: each view is put on record.")],
    host: Annotated[str, typer.Option(help="An address of this machine; another than its own needs --certificate.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for a free one.")] = 0,
    allow_host: Annotated[list[str] | None, typer.Option(help="A name that it is asked by; repeat it.")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The server's certificate (PEM).", dir_okay=False)] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key (PEM).", dir_okay=False)] = None,
    clients: Annotated[
        Path | None, typer.Option(help="Take only clients whose certificates these (PEM) sign.", dir_okay=False)
    ] = None,
) -> None:
    """Shows the ledger to those whom --readers names, as pages without scripts, until Ctrl-C or SIGTERM.

    It reads the ledger and writes nothing to it; a view that cannot be put on record is not shown.
    """
    try:
        from ilcp.audit.page.access import readers_in
        from ilcp.audit.page.serving import serve as served
    except ImportError as error:
        raise MissingExtraError.of(error.name or "starlette", "for the page", "page") from error

    def ready(url: str) -> None:
        out.print(f"shows {ledger} at {url}; a browser asks for the token as a password", soft_wrap=True, markup=False)

    options: dict[str, Any] = {
        "host": host,
        "port": port,
        "hosts": tuple(allow_host or ()),
        "certificate": certificate,
        "key": key,
    }
    with interruptible("every view that was shown is on its way to the record"):
        served(ledger, readers_in(readers), via, clients=clients, ready=ready, **options)


def reader(
    file: Annotated[Path, typer.Argument(help="The file of readers; made where there is none.", dir_okay=False)],
    name: Annotated[str, typer.Argument(help="Who.")],
    run: Annotated[list[str] | None, typer.Option(help="A run that they may see; repeat it. Without: all.")] = None,
) -> None:
    """Adds somebody who may look at the page, and prints their token once: the file keeps its digest."""
    from ilcp.audit.page.access import TOKEN_BYTES, readers_in

    for each in (name, *(run or ())):
        if not each or not each.isprintable():
            raise ConfigError(f"expected a name that can be printed, got {each!r}")
    file = file.resolve()  # a link stays one
    with held(file.with_name(f"{file.name}.lock")):
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        if before.strip():
            if any(each.name == name for each in readers_in(file)):
                raise ConfigError(
                    f"expected a new reader's name in {file}, got {name!r}, which is there: remove it first"
                )
            before += "" if before.endswith("\n") else "\n"
        token = token_urlsafe(TOKEN_BYTES)
        runs = json.dumps(run, ensure_ascii=False) if run else '"all"'
        digest = sha256(token.encode()).hexdigest()
        made = f'[[reader]]\nname = {json.dumps(name, ensure_ascii=False)}\ntoken_sha256 = "{digest}"\nruns = {runs}\n'
        with replacing(file, private=True) as draft:
            draft.write_text(f"{before}{made}", encoding="utf-8")
            readers_in(draft)
    out.print(token, highlight=False, soft_wrap=True, markup=False)
