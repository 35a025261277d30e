"""The page as a web application: who asks is known first, then the view is put on record, then the page is shown.

Every answer to a stranger is the same 401; what a reader may not see is the same 404 as what is not there. There is
nothing to write: any method but GET and HEAD is refused.
"""

import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ilcp.audit.findings import Verified
from ilcp.audit.ledger import Ledger
from ilcp.audit.page.access import Reader, admitted
from ilcp.audit.page.site import PAGES, Site, policy
from ilcp.audit.page.views import EVENTS, FLAGS, Filter, Overview, View
from ilcp.audit.page.words import said
from ilcp.audit.recorder import Recorder
from ilcp.audit.submission import VIEWED
from ilcp.audit.verify import verify
from ilcp.errors import AuditError, IlcpError

__all__ = ["CERTIFICATE", "application"]

CERTIFICATE = "ilcp.audit.certificate"  # of the client, in DER, where the connection's protocol puts it
DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
NUMBER = re.compile(r"\d{1,15}", re.ASCII)
MOST_RUN = 1000  # characters of a run's name
MOST_PATH = 400  # of a path that is no page, in the record of who asked for it
HEADS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
STRANGER = "expected a reader's token, got none or another one\n"
UNRECORDED = "a view is shown once it is on record, which it cannot be now: tell who keeps the ledger\n"
LOGGER = "ilcp.audit"
NOTHING = "there is no such page, or it is not for you\n"


def application(ledger: Ledger, readers: list[Reader], recorder: Recorder, hosts: list[str]) -> Starlette:
    """Returns the application.

    Args:
        ledger: opened to read.
        recorder: of the run ``VIEWS``, by the policy "told"; a view that it cannot put on record is not shown.
        hosts: the names under which it is asked for, without ports; a request for another is refused.
    """
    pages = _Pages(ledger, readers, recorder, hosts)
    routes = [
        Route("/", pages.shows("cover"), methods=["GET"]),
        Route("/handoffs/{number}", pages.shows("handoff"), methods=["GET"]),
        Route("/compare", pages.shows("compare"), methods=["GET"]),
        *(Route(f"/{name}", pages.shows(name), methods=["GET"]) for name in PAGES if name != "cover"),
    ]
    made = Starlette(routes=routes, exception_handlers={404: pages.nothing, 405: pages.nothing})
    made.router.redirect_slashes = False  # which would answer strangers otherwise
    return made


def _link(name: str, **asked: Any) -> str:
    if name == "handoff":
        return f"/handoffs/{asked['number']}"
    given = urlencode({key: value for key, value in asked.items() if value not in ("", None)})
    return ("/" if name == "cover" else f"/{name}") + (f"?{given}" if given else "")


class _Pages:
    """Answers requests."""

    def __init__(self, ledger: Ledger, readers: list[Reader], recorder: Recorder, hosts: list[str]):
        self.ledger, self.readers, self.recorder = ledger, readers, recorder
        self._hosts = {host.lower() for host in hosts}
        self._verifying = threading.Lock()
        self._counted: dict[frozenset[str] | None, Overview] = {}  # by the runs that a reader may see

    async def nothing(self, request: Request, error: Exception) -> Response:
        """Answers what is no page: a stranger is told what every stranger is."""
        reader = self._admitted(request)
        if isinstance(reader, Response):
            return reader
        status = getattr(error, "status_code", 404)
        heads = {"Allow": "GET, HEAD"} if status == 405 else {}
        return PlainTextResponse(NOTHING, status, {**HEADS, **heads})

    def shows(self, name: str) -> Callable[[Request], Any]:
        """Returns what answers requests for pages of a name."""

        async def answer(request: Request) -> Response:
            reader = self._admitted(request)
            if isinstance(reader, Response):
                return reader
            return await run_in_threadpool(self._answer, name, reader, request)

        return answer

    def _admitted(self, request: Request) -> Reader | Response:
        """Returns who asks, or what is answered to who may not."""
        if _host(request.headers.get("host", "")) not in self._hosts:
            return PlainTextResponse("expected one of the names that this page is served by, got another\n", 400, HEADS)
        certificate = request.scope.get("state", {}).get(CERTIFICATE)
        reader = admitted(self.readers, request.headers.get("authorization"), certificate)
        if reader is None:
            return _stranger()
        site, wanted = (request.headers.get(f"sec-fetch-{name}", "") for name in ("site", "dest"))
        if site not in ("", "same-origin", "none") and wanted != "document":  # another site's page asks in their name
            return PlainTextResponse(NOTHING, 403, HEADS)
        return reader

    def _answer(self, name: str, reader: Reader, request: Request) -> Response:
        asked = _asked(name, request)
        try:
            seen = said(request.url.path, MOST_PATH) if asked is None else _link(name, **asked)
            self.recorder.record(VIEWED, {"reader": reader.name, "page": seen})
        except AuditError as error:
            logging.getLogger(LOGGER).error("a view could not be put on record: %s", error)
            return PlainTextResponse(UNRECORDED, 503, HEADS)
        try:
            html = None if asked is None else self._page(name, reader, asked)
        except IlcpError as error:
            return PlainTextResponse(f"the ledger cannot be read: {said(str(error), 400)}\n", 503, HEADS)
        if html is None:
            return PlainTextResponse(NOTHING, 404, HEADS)
        body = "" if request.method == "HEAD" else html
        return Response(body, 200, {**HEADS, "Content-Security-Policy": policy()}, "text/html; charset=utf-8")

    def _page(self, name: str, reader: Reader, asked: dict[str, Any]) -> str | None:
        wanted = bool(asked.get("verify"))
        verified, took_s = self._verify() if wanted else (None, 0.0)
        with self.ledger.snapshot():  # so that proofs and root are of one moment
            counted = self._counted.pop(reader.runs, None)  # which an error in the middle leaves half counted
            site = Site(View(self.ledger, reader), _link, counted=counted)
            if name == "integrity":
                html: str | None = site.integrity(verified, took_s, busy=wanted and verified is None)
            elif name == "handoffs":
                html = site.handoffs(Filter(**{k: v for k, v in asked.items() if k != "before"}), asked["before"])
            else:
                html = getattr(site, name)(**asked)
            found: Overview | None = vars(site).get("overview", counted)  # not every page counts
            if found is not None:
                self._counted[reader.runs] = found
        return html

    def _verify(self) -> tuple[Verified | None, float]:
        """Verifies the ledger anew, for one request at a time; None where another one has it verified."""
        if not self._verifying.acquire(blocking=False):
            return None, 0.0
        try:
            began = time.monotonic()
            return verify(self.ledger.path, keys=self.ledger.keys[:1]), time.monotonic() - began
        finally:
            self._verifying.release()


def _asked(name: str, request: Request) -> dict[str, Any] | None:
    """Returns what a page is asked for, as the record of the view has it too; None where there is no such page."""
    query = request.query_params
    found: dict[str, Any] = {}
    if name == "handoff":
        found = {"number": _number(request.path_params["number"])}
    elif name == "compare":
        found = {"one": _number(query.get("one")), "other": _number(query.get("other"))}
    elif name == "integrity" and query.get("verify") == "now":
        return {"verify": "now"}
    elif name == "handoffs":
        return {**_filter(query), "before": _number(query.get("before"))}
    return None if None in found.values() else found


def _host(head: str) -> str:
    """Returns the name in a Host head, without its port."""
    name = head.partition("]")[0].lstrip("[") if head.startswith("[") else head.partition(":")[0]
    return name.lower()


def _stranger() -> Response:
    asks = {"WWW-Authenticate": 'Basic realm="a reader of the record", charset="UTF-8"'}
    return PlainTextResponse(STRANGER, 401, {**HEADS, **asks})


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and NUMBER.fullmatch(text) else None


def _filter(query: Any) -> dict[str, str]:
    """Returns what a listing is narrowed to; what is none of a form's values narrows nothing."""
    days = {name: query.get(name, "") for name in ("first_day", "last_day")}
    return {
        "run": query.get("run", "")[:MOST_RUN],
        "event": query.get("event", "") if query.get("event") in EVENTS else "",
        "flag": query.get("flag", "") if query.get("flag") in FLAGS else "",
        **{name: day if DAY.fullmatch(day) else "" for name, day in days.items()},
    }
