"""The page as a web application: who asks is known first, then the view is put on record, then the page is shown.

Every answer to a stranger is the same 401; what a reader may not see is the same 404 as what is not there. There is
nothing to write: any method but GET and HEAD is refused.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
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
from ilcp.audit.verify import verify
from ilcp.errors import AuditError, IlcpError

__all__ = ["CERTIFICATE", "VIEWED", "VIEWS", "application"]

VIEWS, VIEWED = "views", "viewed"  # the run of views, and what happened
CERTIFICATE = "ilcp.audit.certificate"  # of the client, in DER, where the connection's protocol puts it
DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
NUMBER = re.compile(r"\d{1,15}", re.ASCII)
MOST_RUN = 1000  # characters of a run's name
MOST_PAGE = 400  # of what was looked at, in the record of it
HEADS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
STRANGER = "expected a reader's token, got none or another one\n"
NOTHING = "there is no such page, or it is not for you\n"


def application(ledger: Ledger, readers: list[Reader], recorder: Recorder, hosts: list[str]) -> Starlette:
    """Returns the application.

    Args:
        ledger: opened to read.
        recorder: of the run ``VIEWS``, by the policy "told"; a view that it cannot put on record is not shown.
        hosts: the names under which it is asked for; a request for another is refused.
    """
    pages = _Pages(ledger, readers, recorder)
    routes = [
        Route("/", pages.shows("cover"), methods=["GET"]),
        Route("/handoffs/{number}", pages.shows("handoff"), methods=["GET"]),
        Route("/compare", pages.shows("compare"), methods=["GET"]),
        *(Route(f"/{name}", pages.shows(name), methods=["GET"]) for name in PAGES if name != "cover"),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)],
        exception_handlers={404: pages.nothing, 405: pages.nothing},
    )


def _link(name: str, **asked: Any) -> str:
    if name == "handoff":
        return f"/handoffs/{asked['number']}"
    given = urlencode({key: value for key, value in asked.items() if value not in ("", None)})
    return ("/" if name == "cover" else f"/{name}") + (f"?{given}" if given else "")


class _Pages:
    """Answers requests."""

    def __init__(self, ledger: Ledger, readers: list[Reader], recorder: Recorder):
        self.ledger, self.readers, self.recorder = ledger, readers, recorder
        self._verifying = threading.Lock()
        self._counted: dict[frozenset[str] | None, Overview] = {}  # by the runs that a reader may see

    async def nothing(self, request: Request, error: Exception) -> Response:
        """Answers what is no page: a stranger is told what every stranger is."""
        reader = self._reader(request)
        if reader is None:
            return _stranger()
        status = getattr(error, "status_code", 404)
        heads = {"Allow": "GET, HEAD"} if status == 405 else {}
        return PlainTextResponse(NOTHING, status, {**HEADS, **heads})

    def shows(self, name: str) -> Callable[[Request], Any]:
        """Returns what answers requests for pages of a name."""

        async def answer(request: Request) -> Response:
            reader = self._reader(request)
            if reader is None:
                return _stranger()
            return await run_in_threadpool(self._answer, name, reader, request)

        return answer

    def _reader(self, request: Request) -> Reader | None:
        certificate = request.scope.get("state", {}).get(CERTIFICATE)
        return admitted(self.readers, request.headers.get("authorization"), certificate)

    def _answer(self, name: str, reader: Reader, request: Request) -> Response:
        looked_at = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        try:
            self.recorder.record(VIEWED, {"reader": reader.name, "page": said(looked_at, MOST_PAGE)})
        except AuditError as error:
            return PlainTextResponse(f"a view is shown once it is on record: {error}\n", 503, HEADS)
        try:
            html = self._page(name, reader, request)
        except IlcpError as error:
            return PlainTextResponse(f"the ledger cannot be read: {said(str(error), 400)}\n", 503, HEADS)
        if html is None:
            return PlainTextResponse(NOTHING, 404, HEADS)
        body = "" if request.method == "HEAD" else html
        return Response(body, 200, {**HEADS, "Content-Security-Policy": policy()}, "text/html; charset=utf-8")

    def _page(self, name: str, reader: Reader, request: Request) -> str | None:
        asked = request.query_params
        verified = self._verify() if name == "integrity" and asked.get("verify") == "now" else ()
        with self.ledger.snapshot():  # so that proofs and root are of one moment
            site = Site(View(self.ledger, reader), _link, counted=self._counted.get(reader.runs))
            html = site.integrity(*verified, busy=verified[0] is None) if verified else self._of(name, site, request)
            self._counted[reader.runs] = site.overview
        return html

    def _of(self, name: str, site: Site, request: Request) -> str | None:
        asked = request.query_params
        if name == "handoff":
            return _of_number(request.path_params["number"], site.handoff)
        if name == "compare":
            first, second = (_number(asked.get(key)) for key in ("one", "other"))
            return None if first is None or second is None else site.compare(first, second)
        if name == "handoffs":
            return site.handoffs(_filter(asked), _number(asked.get("before")))
        return str(getattr(site, name)())

    def _verify(self) -> tuple[Verified | None, float]:
        """Verifies the ledger anew, for one request at a time; None where another one has it verified."""
        if not self._verifying.acquire(blocking=False):
            return None, 0.0
        try:
            began = time.monotonic()
            return verify(self.ledger.path, keys=self.ledger.keys[:1]), time.monotonic() - began
        finally:
            self._verifying.release()


def _stranger() -> Response:
    asks = {"WWW-Authenticate": 'Basic realm="a reader of the record", charset="UTF-8"'}
    return PlainTextResponse(STRANGER, 401, {**HEADS, **asks})


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and NUMBER.fullmatch(text) else None


def _of_number(text: str, page: Callable[[int], str | None]) -> str | None:
    number = _number(text)
    return None if number is None else page(number)


def _filter(asked: Any) -> Filter:
    """Returns what a listing is narrowed to; what is none of a form's values narrows nothing."""
    days = {name: asked.get(name, "") for name in ("first_day", "last_day")}
    return Filter(
        run=asked.get("run", "")[:MOST_RUN],
        event=asked.get("event", "") if asked.get("event") in EVENTS else "",
        flag=asked.get("flag", "") if asked.get("flag") in FLAGS else "",
        **{name: day if DAY.fullmatch(day) else "" for name, day in days.items()},
    )
