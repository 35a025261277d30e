"""``ilcp inspect``: shows what a message is, without loading a model."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import ilcp
from ilcp.cli.common import out, read_message
from ilcp.message import Description

__all__ = ["inspect"]

EMBEDDED_CONFIG = Path(ilcp.__file__).parent / "embedded" / "codec" / "config.json"


def inspect(
    file: Annotated[Path, typer.Argument(help="A file that holds one message; - for standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """Shows what a message is: version, codec, sizes, identity, check. Garbage gets one clear sentence."""
    _, found = read_message(file)
    if as_json:
        record = asdict(found) | {"codec": _whose(found), "parts": [part._asdict() for part in found.parts]}
        typer.echo(json.dumps(record, indent=2))
        return
    table = Table(
        "part", "offset", "bytes", title=f"{found.kind} message, version {found.version}, {found.total_bytes} bytes"
    )
    for part in found.parts:
        table.add_row(part.name, str(part.offset), str(part.size_bytes))
    out.print(table)
    out.print(f"codec    {found.codec_id} ({_whose(found)})", highlight=False)
    out.print(f"check    {found.check}", highlight=False)
    if found.kind == "encrypted":
        out.print("hidden   payload and literals, which nobody reads without the key", highlight=False)
    if found.blob_digest is not None:
        out.print(f"blob     {found.blob_digest}, {found.blob_bytes} bytes beside the message", highlight=False)
    if found.handoff_id is not None:
        out.print(f"hand-off {found.handoff_id}, expires at {found.expires_unix_s} (unix seconds)", highlight=False)


def _whose(found: Description) -> str:
    config = json.loads(EMBEDDED_CONFIG.read_text(encoding="utf-8"))  # read as JSON: loading the codec would load torch
    return ("" if found.codec_id == config["codec_id"] else "not ") + "the embedded pair's codec"
