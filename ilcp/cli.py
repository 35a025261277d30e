"""The command line: thin. What it shows is made elsewhere."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import ilcp
from ilcp.errors import EncodeError, IlcpError
from ilcp.message import MAX_MESSAGE_BYTES, Description, describe

if TYPE_CHECKING:
    from ilcp.demo import Demo
    from ilcp.measure import Report

__all__ = ["app", "main"]

EMBEDDED_CONFIG = Path(ilcp.__file__).parent / "pair" / "codec" / "config.json"
EMBEDDED = "embedded"
BAD_INPUT = 2
INTERRUPTED = 130
OUTSIDE = 3

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
)
out = Console()
err = Console(stderr=True)


def main() -> None:
    """The entry point: an ilcp error becomes one sentence and exit code 2."""
    try:
        app()
    except IlcpError as error:
        err.print(f"[bold red]ilcp:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(BAD_INPUT)


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


@app.command()
def demo(
    document: Annotated[
        Path | None, typer.Option(help="Your own dossier, a text file. The embedded pair knows incident dossiers only.")
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="A question about --document; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """A pipeline of four agents over one document: by text, by message, and beside the controls.

    With --document and --ask, hands off a document of your own and answers your questions about it.
    """
    if (document is None) != (not ask):
        raise EncodeError(
            "expected --document and --ask together, got one of them: ilcp demo --document FILE --ask '...'"
        )
    with _busy("loading the embedded pair"):
        from ilcp import demo as demonstration
        from ilcp.pair import load_pair

        pair = load_pair()
    if document is not None:
        _own_document(pair, _read_text(document), ask or [], as_json)
        return
    with _busy("asking every hop by text and by message, then the controls"):
        result = demonstration.run(pair)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="A file that holds one message; - for standard input.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """What a message is: version, codec, sizes, identity, check. Garbage gets a clear error and exit code 2."""
    found = describe(_read_bytes(file))
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
    if found.handoff_id is not None:
        out.print(f"hand-off {found.handoff_id}, expires at {found.expires_unix_s} (unix seconds)", highlight=False)


@app.command()
def measure(
    codec: Annotated[str, typer.Argument(help="A codec's folder, or 'embedded'.")],
    task: Annotated[str, typer.Option(help="'case-files', or a JSONL file of cases.")] = "case-files",
    n: Annotated[int, typer.Option(help="How many cases.")] = 500,
    seed: Annotated[int, typer.Option(help="Of the test documents, the intervals and the random payloads.")] = 7,
    sender: Annotated[Path | None, typer.Option(help="The sender's folder; without it, the embedded sender.")] = None,
    receiver: Annotated[Path | None, typer.Option(help="The receiver's folder; without it, the embedded one.")] = None,
    hops: Annotated[int, typer.Option(help="How many hops to hand on (case files only); 0: not measured.")] = 0,
    repetitions: Annotated[int, typer.Option(help="Of the times, at least 50; 0: not measured.")] = 60,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", help="Keep the report here; an interrupted run goes on from it.", dir_okay=False),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="A page with plots; needs ilcp\\[plots].", dir_okay=False)] = None,
    png: Annotated[Path | None, typer.Option(help="A folder for the plots; needs ilcp\\[plots].")] = None,
    prove: Annotated[bool, typer.Option("--prove", help="Write the result into the codec's folder.")] = False,
) -> None:
    """What a codec's message is worth, against everything that it must beat, on any pair of models.

    Every question is asked with the full text, with the message at each length, with nothing, with another case's
    message, with text of as many bytes, and more; every figure stands beside its interval. Ctrl-C leaves what was
    measured in --json, marked incomplete; the same command goes on with it.
    """
    _check_measure(codec, prove, plots=html is not None or png is not None)
    with _busy("loading both models and the codec"):
        from ilcp.measure import equal_texts, run
        from ilcp.measure.table import show
        from ilcp.pair import load_pair
        from ilcp.tasks import task as named

        folder = None if codec == EMBEDDED else Path(codec)
        pair = load_pair(folder, sender=sender, receiver=receiver, allow_unproven=True)
        asked = named(task, n=n, seed=seed)
        texts = equal_texts(pair.sender, asked.samples())
    with _interruptible(as_json):
        report = run(
            pair.sender,
            pair.receiver,
            asked.cases,
            task=asked.name,
            seed=seed,
            closed=asked.closed,
            texts=texts,
            hops=hops,
            repetitions=repetitions,
            keep=as_json,
            progress=True,
        )
    show(report, out if out.is_terminal else Console(width=100))
    _draw(report, html, png)
    if prove:
        from ilcp.codec import prove as write

        write(pair.path, report.proof())


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="A report: JSON of 'ilcp measure'.")],
    after: Annotated[Path, typer.Argument(help="Another report of the same questions.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """What changed between two reports, with intervals, and how many single answers flipped (churn)."""
    with _busy("making all figures of both reports anew"):
        from ilcp.measure import compare as changes_of
        from ilcp.measure import load_report

        found = changes_of(load_report(before), load_report(after))
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    from ilcp.measure.table import show_comparison

    show_comparison(found, out)


def _check_measure(codec: str, prove: bool, *, plots: bool) -> None:
    """Refuses now what would fail after an hour of measuring."""
    if prove and codec == EMBEDDED:
        raise EncodeError("expected a codec's folder to --prove, got 'embedded': name the folder")
    if plots:
        from ilcp.measure.plots import require_matplotlib

        require_matplotlib()


@contextmanager
def _interruptible(kept: Path | None) -> Iterator[None]:
    """Ctrl-C says what is left of the run."""
    try:
        yield
    except KeyboardInterrupt:
        left = "nothing was kept: name a file with --json" if kept is None else f"{kept} holds what was measured so far"
        go_on = "" if kept is None else "; the same command goes on with it"
        err.print(f"[bold red]ilcp:[/] interrupted; {escape(left)}{go_on}", highlight=False, soft_wrap=True)
        raise typer.Exit(INTERRUPTED) from None


def _draw(report: "Report", html: Path | None, png: Path | None) -> None:
    if html is not None:
        from ilcp.measure.page import page

        html.write_text(page(report), encoding="utf-8")
    if png is not None:
        from ilcp.measure.plots import save_plots

        save_plots(report, png)


def _own_document(pair: Any, text: str, questions: list[str], as_json: bool) -> None:
    from ilcp.pair.domain import familiarity, known_questions

    seen = familiarity(pair.sender, text)
    if seen.outside:
        if as_json:
            typer.echo(json.dumps({"outside": True, **asdict(seen)}, indent=2))
        else:
            err.print(f"This text is {seen}. No question about it is answered.", highlight=False, soft_wrap=True)
        raise typer.Exit(OUTSIDE)
    message = pair.sender.encode(text)
    memory = pair.receiver.decode(message)
    answers = [
        {
            "question": question,
            "known": question in known_questions(),
            "message": pair.receiver.generate(memory, question),
            "none": pair.receiver.generate(None, question),
            "text": _ceiling(pair, question, text),
        }
        for question in questions
    ]
    if as_json:
        typer.echo(
            json.dumps({"outside": False, **asdict(seen), "message_bytes": len(message), "answers": answers}, indent=2)
        )
        return
    out.print(f"The text is {seen}.", highlight=False, soft_wrap=True)
    table = Table("question", f"message ({len(message)} B)", "no message", f"full text ({len(text.encode())} B)")
    for answer in answers:
        note = "" if answer["known"] else " (in no form that the pair was trained on: expect noise)"
        cells = (f"{answer['question']}{note}", str(answer["message"]), str(answer["none"]), str(answer["text"]))
        table.add_row(*map(escape, cells))
    out.print(table)


def _ceiling(pair: Any, question: str, text: str) -> str | None:
    """The answer from the full text; None where the text does not fit, which is when a message is needed most."""
    try:
        return str(pair.receiver.generate(None, question, context=text))
    except EncodeError:
        return None


def _show(result: "Demo") -> None:
    table = Table(title=f"four hops over document {result.document}: text | message")
    for column in ("hop", "tokens pre-filled", "bytes that crossed", "first token, ms", "answers right"):
        table.add_column(column, justify="left" if column == "hop" else "right")
    for hop in result.hops:
        a, b = hop.text, hop.latent
        table.add_row(
            hop.name,
            f"{a.prefilled_tokens} | {b.prefilled_tokens}",
            f"{a.wire_bytes} | {b.wire_bytes}",
            f"{a.first_token_ms:.1f} | {b.first_token_ms:.1f}",
            f"{a.right} | {b.right} of {hop.questions}",
        )
    out.print(table)
    out.print(f"Encoding the message took the sender {result.encode_ms:.1f} ms, once.", highlight=False)
    kinds = list(next(iter(result.controls.values())))
    names = {"message": "message", "none": "no message", "other": "another case's message", "text": "full text"}
    table = Table("exact match", *kinds, title=f"controls over {result.documents} test documents")
    for arm, figures in result.controls.items():
        table.add_row(names[arm], *(f"{figures[kind]['value']:.3f} (n={figures[kind]['n']})" for kind in kinds))
    out.print(table)


def _whose(found: Description) -> str:
    config = json.loads(EMBEDDED_CONFIG.read_text(encoding="utf-8"))  # read as JSON: loading the codec would load torch
    return ("" if found.codec_id == config["codec_id"] else "not ") + "the embedded pair's codec"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise EncodeError(f"expected a readable text file, got {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise EncodeError(
            f"expected UTF-8 text in {path}, got byte {error.object[error.start]:#04x} at {error.start}"
        ) from error


def _read_bytes(path: Path) -> bytes:
    limit = MAX_MESSAGE_BYTES + 1  # one more than a message may have is enough to refuse it
    try:
        if str(path) == "-":
            return sys.stdin.buffer.read(limit)
        with open(path, "rb") as file:
            return file.read(limit)
    except OSError as error:
        raise EncodeError(f"expected a readable message file, got {path}: {error.strerror}") from error


@contextmanager
def _busy(what: str) -> Iterator[None]:
    with err.status(what):
        yield
