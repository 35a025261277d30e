"""The accounts of ``ilcp audit guard``: a receiver of the guardian's own, its questions, and a thread that works."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ilcp.cli.common import EMBEDDED
from ilcp.errors import ConfigError, IlcpError, TransportError
from ilcp.folders import read_whole

if TYPE_CHECKING:
    from ilcp.audit import Ledger
    from ilcp.audit.accounts import Accountant, Reads

__all__ = [
    "CodecOption",
    "DtypeOption",
    "FreelyOption",
    "MeasuredOption",
    "ModelOption",
    "QuestionsOption",
    "SummaryOption",
    "accounts",
    "reading",
]

CodecOption = Annotated[
    str | None, typer.Option("--accounts", help="Make accounts of this codec's messages: a folder, or 'embedded'.")
]
ModelOption = Annotated[
    str | None, typer.Option("--receiver", help="The receiver's model, where the codec does not name it.")
]
DtypeOption = Annotated[str | None, typer.Option(help="Of that model, as its codec has it: bfloat16 ...")]
QuestionsOption = Annotated[Path | None, typer.Option(help="What accounts ask, a question a line.")]
MeasuredOption = Annotated[
    Path | None, typer.Option(help="What 'ilcp measure --faithfulness' wrote: stands beside each account.")
]
FreelyOption = Annotated[bool, typer.Option("--freely", help="Also ask a message to say what it says.")]
SummaryOption = Annotated[
    str, typer.Option(help="Ask the receiver's model this of the text, in place of a summary by rule.")
]
LOOK_S = 0.5
AGAIN_S = 2.0  # after something failed
GOODBYE_S = 5.0
MOST_QUESTIONS = 200


def reading(
    codec: str, receiver: str | None, questions: Path | None, freely: bool, summary: str, dtype: str | None
) -> "tuple[Reads, int]":
    """Loads what reads messages, and says how many questions it asks.

    Raises:
        ConfigError, IdentityError, UnmeasuredError: as ``ilcp.load_pair``; or there are no questions.
    """
    from ilcp.codec.registry import codec_class
    from ilcp.embedded import load_receiver
    from ilcp.measure.glosses import Glosses, own_questions

    asked = None if questions is None else _lines(questions)
    text: Any = codec_class("text-plain")
    options: dict[str, Any] = {"receiver": receiver, "beside": [text()], "dtype": dtype}
    end = load_receiver(None if codec == EMBEDDED else codec, **options, allow_unmeasured=True)  # nobody works with it
    found = asked or (_of_dossiers() if codec == EMBEDDED else own_questions(end.codec))
    if not found:
        raise ConfigError(f"expected --questions FILE for accounts of {codec}, which brings none along: one a line")
    made = Glosses(end, found, freely=freely, summary=summary)
    return made, len(made.questions)


def _lines(file: Path) -> list[str]:
    try:
        found = [line.strip() for line in read_whole(file).decode().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected questions in {file}, one a line, got: {error}") from error
    if not 0 < len(found) <= MOST_QUESTIONS:
        raise ConfigError(f"expected 1 to {MOST_QUESTIONS} questions in {file}, got {len(found)}")
    return found


def _of_dossiers() -> list[str]:
    """Returns a question for each attribute of a dossier, of which the embedded pair knows."""
    from ilcp.tasks.dossier import ATTRIBUTES

    return [attribute.questions[0] for attribute in ATTRIBUTES]


@contextmanager
def accounts(via: str, ledger: "Ledger", reads: "Reads | None", measured: Path | None) -> "Iterator[Accountant]":
    """Has a thread make accounts inside the ``with``; what it cannot do it says, and tries again.

    Raises:
        ConfigError: the file of figures is none.
    """
    from ilcp.audit.accounts import Accountant, measured_of
    from ilcp.audit.deposits import ACCOUNTS
    from ilcp.audit.guardian import GUARDIAN, settings_for
    from ilcp.transport import connect

    try:
        figures = None if measured is None else measured_of(read_whole(measured))
    except OSError as error:
        raise ConfigError(f"expected figures in {measured}, got: {error}") from error
    ended = threading.Event()
    with connect(via, name=f"{GUARDIAN}{ACCOUNTS}", settings=settings_for(via)) as connection:
        accountant = Accountant(ledger, connection, reads, figures)
        thread = threading.Thread(target=_work, args=(accountant, ended), name="ilcp accounts", daemon=True)
        thread.start()
        try:
            yield accountant
        finally:
            ended.set()
            thread.join(GOODBYE_S)  # what it has not ended by then is handed out again


def _work(accountant: "Accountant", ended: threading.Event) -> None:
    from ilcp.cli.common import err

    said = ""
    while not ended.is_set():
        try:
            accountant.work(LOOK_S)
        except IlcpError as error:
            if not isinstance(error, TransportError) and str(error) != said:
                said = str(error)
                err.print(f"no account could be entered: {said}", highlight=False, soft_wrap=True, markup=False)
            ended.wait(AGAIN_S)
