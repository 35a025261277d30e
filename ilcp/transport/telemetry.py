"""Log records and spans of a hand-off on its way: ids and sizes, never a byte of a message.

Records go to the logger ``ilcp.transport``, at INFO; their fields (`FIELDS`) are attributes, which ``JsonFormatter``
writes as one line of JSON. Spans are made when opentelemetry's API is installed, and cost nothing but a look otherwise.
"""

import json
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ilcp.tracing import mark, tracing

__all__ = ["FIELDS", "LOGGER", "REFUSED", "JsonFormatter", "Sparing", "logged", "mark", "span", "spared"]

LOGGER = "ilcp.transport"
REFUSED = f"{LOGGER}.refused"
TRACER = "ilcp.transport"

SPAN_SEND = "ilcp.handoff send"
SPAN_RECEIVE = "ilcp.handoff receive"
SPAN_SETTLE = "ilcp.handoff settle"

# OpenTelemetry's semantic conventions for messaging, as far as they go.
ATTRIBUTE_OPERATION = "messaging.operation.name"
ATTRIBUTE_QUEUE = "messaging.destination.name"
ATTRIBUTE_ID = "messaging.message.id"
ATTRIBUTE_BYTES = "messaging.message.body.size"
ATTRIBUTE_DUPLICATE = "ilcp.handoff.duplicate"
ATTRIBUTE_ATTEMPT = "ilcp.handoff.attempt"
ATTRIBUTE_RECORD = "ilcp.audit.record"  # the id under which a guardian answers
ATTRIBUTE_RUN = "ilcp.audit.run"
ATTRIBUTE_SEQUENCE = "ilcp.audit.sequence"

FIELDS = ("handoff_id", "queue", "message_bytes", "attempt", "duplicate", "status", "peer")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time, level, event, and the fields that it has."""

    def format(self, record: logging.LogRecord) -> str:
        """Writes the line."""
        line = {"time_unix_s": round(record.created, 6), "level": record.levelname, "event": record.getMessage()}
        line |= {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
        return json.dumps(line)


class Sparing(logging.Filter):
    """Lets some lines a minute pass, and says in the next one how many did not: who is refused writes no log."""

    def __init__(self, most: int = 60, every_s: float = 60.0) -> None:
        super().__init__()
        self.most, self.every_s = most, every_s
        self._began_s, self._count = time.monotonic(), 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Counts a line, and says whether it may be written."""
        if time.monotonic() - self._began_s > self.every_s:
            gone = self._count - self.most
            record.msg = f"{record.msg} ({gone} more were not logged)" if gone > 0 else record.msg
            self._began_s, self._count = time.monotonic(), 0
        self._count += 1
        return self._count <= self.most


def spared(*loggers: str) -> None:
    """Has loggers, whose lines strangers bring out, write some of them only."""
    for logger in map(logging.getLogger, loggers):
        if not any(isinstance(each, Sparing) for each in logger.filters):
            logger.addFilter(Sparing())


def logged(event: str, logger: str = LOGGER, **fields: Any) -> None:
    """Writes one record; only `FIELDS` may be given."""
    logging.getLogger(logger).info(event, extra=fields)


def span(name: str, **attributes: Any) -> AbstractContextManager[Any]:
    """Opens a span of that name in a context manager, which gives the span, or None without opentelemetry."""
    api = tracing()
    if api is None:
        return nullcontext()
    found: AbstractContextManager[Any] = api.get_tracer(TRACER).start_as_current_span(name, attributes=attributes)
    return found
