"""The auditor's page against its own readers, its producers, and a hostile ledger: what an attack once found."""

import os
import re
import stat
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

import ilcp.audit.page.views as views_module
from ilcp.audit import Draft, Ledger, Recorder
from ilcp.audit.page.access import readers_in
from ilcp.audit.page.serving import serve
from ilcp.audit.page.written import write_pages
from ilcp.audit.submission import VIEWS
from ilcp.cli import app
from ilcp.cli.page import reader
from ilcp.errors import ConfigError
from tests.test_audit_page import OTHER, READERS, TOKEN, account, handoff, place, seen, status

__all__ = ["place"]  # the fixture


def test_a_message_that_crosses_runs_tells_nothing_of_the_other_one(place: SimpleNamespace, tmp_path: Path) -> None:
    """Neither on its page nor in an export of one run; who may see both sees both."""
    entry = place.ledger.entry(1)
    same = {"producer": "secret", "handoff_id": entry.fields["handoff_id"]}
    place.ledger.append([handoff("tuesday", 9, "received", **same)])
    assert "secret" not in seen(place, "/handoffs/1", OTHER)
    assert "Taken by <bdi>secret</bdi>" in seen(place, "/handoffs/1")
    write_pages(place.ledger, tmp_path / "one", "monday")
    assert "secret" not in "".join(file.read_text() for file in (tmp_path / "one").iterdir())
    with pytest.raises(ConfigError, match="a run of this ledger"):
        write_pages(place.ledger, tmp_path / "none", "sunday")


def test_views_do_not_push_hand_offs_off_the_page(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are, they are neither counted nor listed among hand-offs."""
    monkeypatch.setattr(views_module, "MOST_LOOKED_AT", 20)
    told = {"producer": "page", "part": "p", "event": "viewed", "reader": "Jane", "page": "/"}
    place.ledger.append([Draft("handoff", {**told, "run": VIEWS, "sequence": n}) for n in range(1, 40)])
    assert [4, 3, 2, 1] == list(map(int, re.findall(r'href="/handoffs/(\d+)"', seen(place, "/handoffs"))))
    assert "<dt>Messages handed over</dt><dd>2" in seen(place, "/")
    assert "the newest 20,000" not in seen(place, "/signoff")


def test_a_producer_cannot_hide_an_account(place: SimpleNamespace) -> None:
    """Not under a thousand entries of the same id, nor by telling none; and no page takes long for it."""
    (bare,) = place.ledger.append([Draft("handoff", {"run": "monday", "producer": "x", "event": "sent"})])
    made = account(bare, "monday", "", [("Which code?", "B9", "B7")])
    place.ledger.append([Draft("account", {k: v for k, v in made.fields.items() if k != "handoff_id"}, made.personal)])
    handoff_id = place.ledger.entry(1).fields["handoff_id"]
    place.ledger.append([handoff("monday", n, handoff_id=handoff_id) for n in range(100, 2100)])
    assert "1 of 1 answers disagree" in seen(place, f"/handoffs/{bare}")
    assert "1 of 2 answers disagree" in seen(place, "/handoffs/1")
    began = time.monotonic()
    seen(place, "/handoffs?flag=differs")
    assert time.monotonic() - began < 20
    found = re.findall(r'href="/handoffs/(\d+)"', seen(place, f"/handoffs?flag=differs&before={bare + 1}"))
    assert [bare, 1] == list(map(int, found))
    place.ledger.append([account(bare, "monday", "", [("Which code?", "B7", "B7")])])
    assert "all 1 answers agree" in seen(place, f"/handoffs/{bare}")  # the newest account counts


def test_a_listing_stops_in_time_and_goes_on(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did not look at is behind "older ones", and exactly a page of rows has no older ones."""
    monkeypatch.setattr(views_module, "MOST_LOOKING_S", -1.0)
    assert "before=5" in seen(place, "/handoffs")
    monkeypatch.setattr(views_module, "MOST_LOOKING_S", 9.0)
    monkeypatch.setattr(views_module, "PER_PAGE", 4)
    assert "Older ones" not in seen(place, "/handoffs")
    monkeypatch.setattr(views_module, "PER_PAGE", 3)
    assert 'before=2">Older ones' in seen(place, "/handoffs")
    assert ["1"] == re.findall(r'href="/handoffs/(\d+)"', seen(place, "/handoffs?before=2"))


def test_an_erasure_stays_on_the_page_when_what_was_erased_is_retired(place: SimpleNamespace) -> None:
    assert "<dt>Messages handed over</dt><dd>2" in seen(place, "/")
    place.ledger._clock = lambda: time.time() + 400 * 86_400
    assert place.ledger.retire(12, by="the rule") is not None
    assert "the customer of tuesday asked" in seen(place, "/retention")
    assert "6 older entries were removed by age" in seen(place, "/")
    assert "<dt>Messages handed over</dt><dd>0" in seen(place, "/")
    assert "tuesday" not in seen(place, "/retention", OTHER)


def test_the_record_of_a_view_says_what_was_shown(place: SimpleNamespace) -> None:
    """In the page's own words, whatever else was in the address."""
    seen(place, f"/compare?pad={'x' * 3000}&one=1&other=2&one=1")
    seen(place, f"/handoffs?a={'y' * 3000}&run=monday&event=refused")
    status(place, "/handoffs/" + "1" * 16)
    place.guardian.work()
    found = [e.fields["page"] for e in place.ledger.entries(kinds=["handoff"], run=VIEWS)]
    assert ["/compare?one=1&other=2", "/handoffs?run=monday&event=refused", "/handoffs/" + "1" * 16] == found


def test_views_are_the_page_s_alone(place: SimpleNamespace) -> None:
    """No recorder takes their run by mistake, and what is told there of something else is not shown as a view."""
    with pytest.raises(ConfigError, match="another run than 'views'"):
        Recorder(place.url, "planner", run=VIEWS)
    forged = {"producer": "planner", "run": VIEWS, "sequence": 1, "event": "sent", "reader": "Bob", "page": "/forged"}
    place.ledger.append([Draft("handoff", forged), Draft("handoff", {"run": VIEWS})])
    assert "/forged" not in seen(place, "/views")


def test_a_run_that_a_reader_may_not_see_is_not_looked_through(place: SimpleNamespace) -> None:
    """It takes as long as one that there is not: nothing is read of it."""
    read: list[Any] = []
    usual = Ledger.entries
    view = views_module.View(place.ledger, READERS[1])
    place.ledger.entries = lambda **options: read.append(options) or usual(place.ledger, **options)  # type: ignore[func-returns-value]
    assert [] == list(view.newest(["handoff"], "tuesday"))
    assert [] == read


@pytest.mark.parametrize(
    "fields",
    [
        {"run": ["monday"], "event": "sent"},
        {"run": {"a": 1}, "event": ["sent"], "handoff_id": 3},
        {"run": "monday", "event": "sent", "evidence": [], "sender": [1], "codec": {}, "codec_id": "c"},
        {"run": "monday", "event": "sent", "evidence": {"unit": 3, "content_gain": "x", "low": [], "n": {}}},
        {"of": "1", "run": "monday"},
        {"handed": [["a", "b", "c", []]], "numbers": 3, "months": {}, "before_unix_ms": "x"},
        {"of": 1, "names": 7, "by": {}, "because": None},
        {"of": 1, "run": "monday", "asked": True, "compared": [], "gloss_by": [], "measured": {"figures": 3}},
        {
            "of": 1,
            "run": "monday",
            "asked": 1,
            "compared": 1,
            "differ": 1,
            "measured": {"figures": {"recall, gloss": 1}},
        },
        {},
    ],
)
def test_a_hostile_entry_of_any_kind_breaks_no_page(place: SimpleNamespace, fields: dict[str, Any]) -> None:
    """Before it was counted, and while it is."""
    pages = ("/", "/inventory", "/handoffs", "/activity", "/retention", "/views", "/signoff", "/handoffs/1")
    for page in pages:
        seen(place, page, OTHER)
    kinds = ("handoff", "account", "erasure", "retention", "conflict", "unreadable", "stranger")
    beside = {"gloss": [3, {"question": 1, "answer": None, "from_text": []}], "summary": {"a": 1}, "freely": 3}
    numbers = place.ledger.append([Draft(kind, fields, beside) for kind in kinds])
    for token in (TOKEN, OTHER):
        for page in (*pages, f"/handoffs/{numbers[0]}"):
            assert status(place, page, token) in (200, 404), (page, token)


def test_a_count_that_was_interrupted_begins_anew(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "<dt>Messages handed over</dt><dd>{}"
    assert words.format(2) in seen(place, "/")
    place.ledger.append([handoff("monday", n) for n in range(20, 25)])
    usual, count = views_module.Overview.add, iter(range(100))

    def failing(self: Any, entry: Any) -> None:
        usual(self, entry)
        if next(count) == 2:
            raise ConfigError("expected nothing, got an error in the middle")

    monkeypatch.setattr(views_module.Overview, "add", failing)
    assert 503 == status(place, "/")
    monkeypatch.setattr(views_module.Overview, "add", usual)
    assert words.format(7) in seen(place, "/")


def test_other_hosts_slashes_and_sites_are_refused(place: SimpleNamespace) -> None:
    """By names, whatever the port; a stranger is not even sent elsewhere; another site's page shows nothing of it."""
    heads = {"Authorization": f"Bearer {TOKEN}"}
    assert 200 == place.client.get("/", headers=heads | {"Host": "TestServer:8443"}).status_code
    for host in ("evil.example", "testserver.evil.example", "", "[::1]:80", "testserver@evil"):
        assert 400 == place.client.get("/", headers=heads | {"Host": host}).status_code, host
    assert 401 == place.client.get("/handoffs/1/", follow_redirects=False).status_code
    cross = heads | {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "image"}
    assert 403 == place.client.get("/handoffs/1", headers=cross).status_code
    assert 200 == place.client.get("/handoffs/1", headers=cross | {"Sec-Fetch-Dest": "document"}).status_code


def test_what_nobody_could_ask_by_is_refused_before_it_is_served(place: SimpleNamespace) -> None:
    ready: dict[str, Any] = {"certificate": Path("c"), "key": Path("k")}
    for words, via, options in (
        ("on no record", "memory://x", {}),
        ("the spool from which", f"{place.url}-mistyped", {}),
        ("--allow-host NAME", place.url, {"host": "0.0.0.0", **ready}),
        ("without port or pattern", place.url, {"hosts": ("a*b",)}),
        ("without port or pattern", place.url, {"hosts": ("a:80",)}),
    ):
        with pytest.raises(ConfigError, match=words):
            serve(place.path, READERS, via, **options)


def test_readers_are_added_one_after_the_other(tmp_path: Path) -> None:
    """Several at once, into an empty file, one without an end of line, behind a link; odd names are refused."""

    def run(*words: object) -> None:
        done = CliRunner().invoke(app, ["audit", "reader", *map(str, words)], catch_exceptions=False)
        assert 0 == done.exit_code, done.output

    file, link = tmp_path / "readers", tmp_path / "link"
    file.write_text("")
    link.symlink_to(file)
    run(link, "Jane")
    file.write_text(file.read_text().rstrip("\n"))
    run(link, "Bob", "--run", "monday")
    assert stat.S_ISLNK(os.lstat(link).st_mode)
    assert ["Jane", "Bob"] == [each.name for each in readers_in(file)]
    for words in (("\udcff",), ("x\x7f",), ("Eve", "--run", "\udcff"), ("",)):
        with pytest.raises(ConfigError, match="a name that can be printed"):
            run(file, *words)
    before = len(readers_in(file))
    errors: list[BaseException] = []

    def add(number: int) -> None:
        for _ in range(200):
            try:
                reader(file, f"reader {number}", None)
                return
            except ConfigError:  # another one holds the file
                time.sleep(0.01)
            except BaseException as error:
                errors.append(error)
                return

    threads = [threading.Thread(target=add, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert before + 2 == len(readers_in(file))


def test_a_page_is_of_one_moment(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is entered while it is made does not make its proof fail."""
    usual = Ledger.inclusion

    def growing(self: Ledger, *options: Any) -> list[bytes]:
        found = usual(self, *options)
        place.ledger.append([handoff("monday", 50 + place.ledger.size)])
        return found

    monkeypatch.setattr(Ledger, "inclusion", growing)
    assert "lead to the root of all 8 entries" in seen(place, "/handoffs/1")


def test_a_page_counts_what_came_since_and_only_where_it_shows_counts(place: SimpleNamespace, monkeypatch) -> None:
    """The first view goes through all entries, the next ones through new ones."""
    counted: list[int] = []
    usual = views_module.Overview.add

    def noting(self: Any, entry: Any) -> None:
        counted.append(entry.number)
        usual(self, entry)

    monkeypatch.setattr(views_module.Overview, "add", noting)
    seen(place, "/handoffs/1")
    assert [] == counted
    seen(place, "/")
    first = len(counted)
    (made,) = place.ledger.append([handoff("monday", 60)])
    seen(place, "/handoffs/1")
    seen(place, "/")
    assert [made] == counted[first:]
