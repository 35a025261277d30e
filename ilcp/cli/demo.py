"""``ilcp demo``: the embedded pair at work."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from ilcp.cli.common import busy, err, out
from ilcp.cli.exit_codes import OUTSIDE
from ilcp.errors import ConfigError, EncodeError
from ilcp.inputs import read_text, require_text

if TYPE_CHECKING:
    from ilcp.embedded.demo import Demo

__all__ = ["demo"]


def demo(
    document: Annotated[
        Path | None,
        typer.Option(help="Your own dossier, a text file, or - for standard input. The pair knows no other kind."),
    ] = None,
    ask: Annotated[list[str] | None, typer.Option(help="A question about --document; may be given again.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON, on standard output.")] = False,
) -> None:
    """Runs a pipeline of four agents over one document: by text, by message, and beside the controls.

    With --document and --ask, hands off a document of your own and answers your questions about it.
    """
    if (document is None) != (not ask):
        raise ConfigError(
            "expected --document and --ask together, got one of them: ilcp demo --document FILE --ask '...'"
        )
    for question in ask or ():
        require_text(question, "a question in --ask", error=ConfigError)
    with busy("loading the embedded pair"):
        from ilcp.embedded import load_pair
        from ilcp.embedded.demo import run_demo

        pair = load_pair(assurance=None)  # it says itself what it does not know, and asks controls
    if document is not None:
        _own_document(pair, read_text(document), ask or [], as_json)
        return
    with busy("asking every hop by text and by message, then the controls"):
        result = run_demo(pair)
    if as_json:
        typer.echo(json.dumps(result.to_dict(), indent=2))
    else:
        _show(result)


def _own_document(pair: Any, text: str, questions: list[str], as_json: bool) -> None:
    from ilcp.embedded.domain import familiarity, known_questions

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
    """Answers from the full text; None where it does not fit, which is when a message is needed most."""
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
    names = {"message": "message", "none": "no message", "mismatched": "another case's message", "text": "full text"}
    table = Table("exact match", *kinds, title=f"controls over {result.documents} test documents")
    for arm, figures in result.controls.items():
        table.add_row(names[arm], *(f"{figures[kind]['value']:.3f} (n={figures[kind]['n']})" for kind in kinds))
    out.print(table)
