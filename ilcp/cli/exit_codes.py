"""The exit codes of ``ilcp``: the one table that the command line exits by, and that ``ilcp --help`` shows."""

from ilcp.errors import (
    AuditError,
    ConfigError,
    DecodeError,
    DoubtError,
    EncodeError,
    IdentityError,
    IlcpError,
    MissingExtraError,
    ReplayCacheError,
    StorageError,
    TrainingError,
    TransportError,
    UnmeasuredError,
)

__all__ = [
    "ALARMED",
    "CLOSED",
    "ERROR_CODES",
    "INTERRUPTED",
    "NOTHING_CAME",
    "NOTHING_FITS",
    "NOT_SOUND",
    "OTHER_CODES",
    "OUTSIDE",
    "exit_code",
    "help_text",
]

DEFECT = 1  # as Python exits after a traceback
OUTSIDE = 3
NOTHING_CAME = 4
NOTHING_FITS = 14
NOT_SOUND = 16
ALARMED = 18
INTERRUPTED = 128 + 2  # as a shell reports SIGINT
CLOSED = 128 + 13  # and SIGPIPE

# A subclass has its parent's code. 2 is what every command line says to an unknown option.
ERROR_CODES: dict[type[IlcpError], tuple[int, str]] = {
    ConfigError: (2, "wrong use: mend the option, the argument or the file that the text names"),
    EncodeError: (5, "what was given cannot be encoded: mend the text, or shorten it"),
    DecodeError: (6, "these bytes are no message that is to be trusted"),
    IdentityError: (7, "codec, models and message do not belong together"),
    UnmeasuredError: (8, "the codec was not measured, or its message carries nothing"),
    StorageError: (9, "a file cannot be written, or is damaged: disk or permissions"),
    TransportError: (10, "the message could not be moved"),
    ReplayCacheError: (11, "the replay cache cannot say what is new"),
    TrainingError: (12, "the training cannot go on: change the data or the recipe"),
    MissingExtraError: (13, "a package is not installed: run the pip command in the text"),
    AuditError: (15, "a hand-off cannot be put on record, and may not go on without"),
    DoubtError: (17, "a message is in doubt, or an alarm stands: look into it, or send the text"),
}
OTHER_CODES = {
    0: "done",
    DEFECT: "a defect of ilcp: please report the traceback",
    OUTSIDE: "demo: the document is of no kind that the embedded pair knows",
    NOTHING_CAME: "receive: fewer messages came than were asked for",
    NOTHING_FITS: "choose: nothing that was measured keeps every limit",
    NOT_SOUND: "audit verify, audit witness: the ledger is not what it was, or not what it says",
    ALARMED: "watch --check: an alarm stands; canary: the facts are lost",
    INTERRUPTED: "interrupted by Ctrl-C; the text says what is left",
    CLOSED: "who read the output closed it before its end",
}


def exit_code(error: Exception) -> int:
    """Returns the exit code of an error: that of its nearest listed class; of any other exception, a defect's."""
    return next((ERROR_CODES[kind][0] for kind in type(error).__mro__ if kind in ERROR_CODES), DEFECT)


def help_text() -> str:
    """Returns the table as ``ilcp --help`` shows it, a paragraph per code."""
    words = OTHER_CODES | dict(ERROR_CODES.values())
    return "\n\n".join(["[bold]Exit codes[/bold]", *(f"{code:>3}  {words[code]}" for code in sorted(words))])
