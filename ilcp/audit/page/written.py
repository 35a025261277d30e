"""The pages written down: a folder of files that can be mailed, printed and kept, and that nobody has to serve."""

import shutil
import time
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from ilcp.audit.ledger import Ledger
from ilcp.audit.page.access import Reader
from ilcp.audit.page.site import PAGES, Site, require_page
from ilcp.audit.page.views import Filter, View
from ilcp.audit.verify import verify
from ilcp.errors import ConfigError, StorageError

__all__ = ["write_pages"]

MOST_PAGES = 20_000  # of hand-offs; a folder of more is opened by nobody
SINGLE = tuple(name for name in PAGES if name not in ("handoffs", "integrity"))


def write_pages(ledger: Ledger, folder: Path, run: str | None = None) -> int:
    """Writes all pages, of one run or all, into a new folder, whole or not at all; returns how many hand-offs.

    Raises:
        ConfigError: the folder is there already, or there are too many hand-offs.
        MissingExtraError: what draws pages is not installed.
        StorageError: the files cannot be written, or the ledger is damaged.
    """
    require_page()
    if run is not None and next(ledger.entries(run=run), None) is None:
        raise ConfigError(f"expected a run of this ledger, got {run!r}, of which nothing is on record")
    if folder.exists():
        raise ConfigError(f"expected a new folder for the pages, got {folder}, which is there: name another")
    reader = Reader("whoever reads this copy", None if run is None else frozenset([run]))
    site = Site(View(ledger, reader), _link, alive=False)
    draft = None
    try:
        draft = Path(mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))  # its owner's alone: it tells what was said
        with ledger.snapshot():
            count = _write(site, draft)
        began = time.monotonic()
        found = verify(ledger.path, keys=ledger.keys[:1])
        _put(draft, "integrity", site.integrity(found, time.monotonic() - began))
        draft.rename(folder)
    except OSError as error:
        raise StorageError(f"expected room for pages in {folder}, got: {error}; free space, or name another") from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)
    return count


def _write(site: Site, draft: Path) -> int:
    for name in SINGLE:
        _put(draft, name, getattr(site, name)())
    count, before = 0, None
    while True:
        rows, onwards = site.listed(Filter(), before)
        _put(draft, "handoffs" if before is None else f"handoffs-{before}", site.listing(Filter(), rows, onwards))
        count += len(rows)
        if count > MOST_PAGES:
            raise ConfigError(f"expected at most {MOST_PAGES} hand-offs to write down, got more: name a --run")
        for row in rows:
            _put(draft, f"handoff-{row.number}", site.handoff(row.number) or "")
        if onwards is None:
            return count
        before = onwards


def _put(folder: Path, name: str, html: str) -> None:
    (folder / _file(name)).write_text(html, encoding="utf-8")


def _file(name: str) -> str:
    return "index.html" if name == "cover" else f"{name}.html"


def _link(name: str, **asked: Any) -> str:
    ending = {"handoff": "number", "handoffs": "before"}.get(name)
    value = asked.get(ending) if ending else None
    return _file(name if value is None else f"{name}-{value}")
