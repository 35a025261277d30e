"""The command line, which is thin: the other rooms make what it shows."""

import os
import re
import sys
from contextlib import suppress
from typing import Annotated

import typer
from rich.markup import escape

import ilcp
from ilcp.cli.align import align
from ilcp.cli.assure import calibrate, canary, watch
from ilcp.cli.audit import audit
from ilcp.cli.choose import choose
from ilcp.cli.common import err, mild_streams, out
from ilcp.cli.demo import demo
from ilcp.cli.encode import encode
from ilcp.cli.exit_codes import CLOSED, exit_code, help_text
from ilcp.cli.inspect import inspect
from ilcp.cli.measure import compare, measure
from ilcp.cli.send import receive, send, serve
from ilcp.cli.trace import trace
from ilcp.cli.train import train
from ilcp.errors import IlcpError, StorageError

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Hand an agent's working context to the next agent as a learned message of about 100 bytes.

    Start with [bold]ilcp demo[/bold]: two small models inside the package, no download. Then, in Python:

        import ilcp

        pair = ilcp.load_pair()

        message = pair.sender.encode(document)

        answer = pair.receiver.generate(message, question)
    """,
    epilog=help_text(),
)
HOME = re.compile(r"(--[a-z-]+=)(~[^/]*(?=/|$))")  # which a shell leaves as it is behind the sign
for command in (
    demo,
    train,
    align,
    measure,
    compare,
    choose,
    encode,
    inspect,
    send,
    receive,
    serve,
    calibrate,
    canary,
    watch,
):
    app.command()(command)
app.add_typer(trace, name="trace")
app.add_typer(audit, name="audit")


def main() -> None:
    """Runs the command line: an error of ilcp's, or of its output's, becomes one sentence and an exit code."""
    mild_streams()
    sys.argv[1:] = [HOME.sub(lambda found: found[1] + os.path.expanduser(found[2]), word) for word in sys.argv[1:]]
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except IlcpError as error:
        _end(error)
    except BrokenPipeError:
        _end(None)
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):  # which rich and typer exit for by a defect's code
            raise
        _end(None)
    except OSError as error:
        if error.filename is not None:  # a file's, which each command has a sentence for: a defect
            raise
        _end(StorageError(f"expected room for the output, got: {error}; free space, or send it elsewhere"))


def _end(error: IlcpError | None) -> None:
    """Exits with an error's sentence and code, or quietly where nobody reads; what is left to write goes nowhere."""
    with suppress(OSError):
        if error is not None:
            err.print(f"[bold red]ilcp:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # Python would try again at its end, and exit by a code of its own
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(CLOSED if error is None else exit_code(error))


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"ilcp {ilcp.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_version)
    ] = False,
) -> None:
    """The options of ilcp itself."""
