"""The auditor's page: who may see what, each view on record, hostile records shown as they are, and no script."""

import random
import re
import string
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.testclient import TestClient

import ilcp.audit.page as page_module
from ilcp.audit import Draft, Guardian, Ledger, Recorder, Signer
from ilcp.audit.guardian import settings_for
from ilcp.audit.page.access import Reader, admitted, readers_in
from ilcp.audit.page.app import application
from ilcp.audit.page.site import PAGES, policy
from ilcp.audit.page.written import write_pages
from ilcp.audit.submission import VIEWS
from ilcp.errors import AuditError, ConfigError
from ilcp.transport import connect

SIGNER = Signer("example/ledger", bytes(range(32)))
TOKEN, OTHER = "t" * 43, "u" * 43
READERS = [
    Reader("Jane", None, token_sha256=sha256(TOKEN.encode()).hexdigest()),
    Reader("Bob", frozenset(["monday"]), token_sha256=sha256(OTHER.encode()).hexdigest()),
]
HOSTILE = (
    "<script>alert(1)</script>",
    "'\"><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }}{% raw %}",
    "\u202eevil\u2066\u200f",
    "\x00\x1b[31m\x07\r\n\ttabs",
    "javascript:alert(1)",
    "</style></head></textarea>",
    "x" * 1_000_000,
    "<!--",
    "\U000e0041\ufeff\u2028",
)


def handoff(run: str, sequence: int, event: str = "sent", **more: Any) -> Draft:
    """Makes a hand-off as a guardian enters it."""
    digest = sha256(f"{run} {sequence}".encode()).hexdigest()
    known = {"producer": "planner", "run": run, "part": "p", "sequence": sequence, "event": event}
    told = {
        "message_bytes": 100,
        "message_sha256": digest,
        "handoff_id": digest[:32],
        "codec": "vae",
        "codec_id": "c0de",
    }
    return Draft("handoff", {**told, **known, **more}, {"literals": [f"INC-{run}-{sequence}"]})


def account(of: int, run: str, handoff_id: str, answers: list[tuple[Any, Any, Any]], **more: Any) -> Draft:
    """Makes an account of a hand-off."""
    lines = [dict(zip(("question", "answer", "from_text"), each, strict=True)) for each in answers]
    differ = sum(a != t for _, a, t in answers)
    counts = {"asked": len(lines), "compared": len(lines), "differ": differ, "gloss_by": {"codec_id": "c0de"}}
    fields = {"of": of, "run": run, "handoff_id": handoff_id, **counts, **more}
    return Draft("account", fields, {"gloss": lines, "summary": "Mara owns it.\nThe code is B7."})


@pytest.fixture
def place(tmp_path: Path) -> Iterator[SimpleNamespace]:
    """A ledger with two runs, its page, and the guardian who takes the page's views."""
    for name in ("spool", "audit"):
        (tmp_path / name).mkdir(mode=0o700)
    url, path = f"spool://{tmp_path / 'spool'}", tmp_path / "audit" / "ledger"
    with Ledger(path, SIGNER) as ledger:
        ledger.append(
            [handoff("monday", 1), handoff("monday", 2, "refused", error="DecodeError"), handoff("tuesday", 1)]
        )
        ledger.append([handoff("monday", 4, "fell back to text", reason="not measured")])
        agree, differ = ("Who owns it?", "Mara", "Mara"), ("Which code?", "B9", "B7")
        ids = [entry.fields["handoff_id"] for entry in ledger.entries(kinds=["handoff"])]
        ledger.append([account(1, "monday", ids[0], [agree, differ]), account(3, "tuesday", ids[2], [agree])])
        ledger.erase(3, ["literals"], by="the officer", because="the customer of tuesday asked")
        with (
            connect(url, name="guardian", settings=settings_for(url)) as connection,
            Recorder(url, "page", run=VIEWS, unrecorded="told") as recorder,
            Ledger(path) as reading,
        ):
            app = application(reading, READERS, recorder, ["testserver"])
            client = TestClient(app, raise_server_exceptions=True)
            made = {"ledger": ledger, "guardian": Guardian(ledger, connection), "recorder": recorder, "url": url}
            yield SimpleNamespace(client=client, app=app, path=path, **made)


def seen(place: SimpleNamespace, address: str, token: str = TOKEN) -> str:
    """Returns a page, which has to be shown."""
    answer = place.client.get(address, headers={"Authorization": f"Bearer {token}"})
    assert 200 == answer.status_code, (address, answer.text)
    return str(answer.text)


def status(place: SimpleNamespace, address: str, token: str = TOKEN) -> int:
    return int(place.client.get(address, headers={"Authorization": f"Bearer {token}"}).status_code)


ADDRESSES = ("/", *(f"/{name}" for name in PAGES if name != "cover"), "/handoffs/1", "/compare?one=1&other=2")


def test_a_stranger_sees_nothing(place: SimpleNamespace) -> None:
    """No token, another one, or half of one: the same answer for what is there and what is not; none is recorded."""
    basic = b64encode(f"x:{TOKEN[:-1]}".encode()).decode()
    for address in (*ADDRESSES, "/nothing", "/handoffs/999", "/handoffs/../../etc/passwd"):
        answers = {
            place.client.request(method, address, headers={} if head is None else {"Authorization": head}).text
            for head in (None, "Bearer ", f"Bearer {TOKEN}x", f"Basic {basic}", "Basic %%%", TOKEN, b"Bearer \xff")
            for method in ("GET", "POST")
        }
        assert {"expected a reader's token, got none or another one\n"} == answers, address
    assert 0 == place.guardian.work()


def test_a_token_is_taken_as_a_password_too(place: SimpleNamespace) -> None:
    basic = b64encode(f"anybody:{TOKEN}".encode()).decode()
    assert 200 == place.client.get("/", headers={"Authorization": f"Basic {basic}"}).status_code


def test_a_reader_of_one_run_sees_that_run_alone(place: SimpleNamespace) -> None:
    """Listing, pages, comparison, counts, erasures and gaps are of monday; what is tuesday's looks like nothing."""
    assert 200 == status(place, "/handoffs/1", OTHER)
    assert [404] * 3 == [
        status(place, each, OTHER) for each in ("/handoffs/3", "/compare?one=1&other=3", "/handoffs/5")
    ]
    for address in ADDRESSES:
        assert "tuesday" not in seen(place, address, OTHER), address
    assert "planner" not in seen(place, "/handoffs?run=tuesday", OTHER)
    assert "missing 3 of 1 to 4" in seen(place, "/", OTHER)
    assert "the customer of tuesday asked" in seen(place, "/retention")
    place.guardian.work()
    assert "Jane" not in seen(place, "/views", OTHER)


def test_every_view_is_on_record_before_it_is_shown(place: SimpleNamespace) -> None:
    """Who looked at what; also at what is not there."""
    seen(place, "/handoffs?run=monday")
    status(place, "/handoffs/77", OTHER)
    assert 2 == place.guardian.work()
    found = [e.fields for e in place.ledger.entries(kinds=["handoff"], run=VIEWS)]
    assert [("Jane", "/handoffs?run=monday"), ("Bob", "/handoffs/77")] == [(e["reader"], e["page"]) for e in found]
    assert ["viewed"] * 2 == [e["event"] for e in found]
    assert "/handoffs?run=monday" in seen(place, "/views")


def test_a_view_that_cannot_be_recorded_is_not_shown(place: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise AuditError("expected room, got none")

    monkeypatch.setattr(place.recorder, "record", full)
    answer = place.client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
    assert 503 == answer.status_code
    assert "Cover" not in answer.text


def test_a_hand_off_is_told_in_words(place: SimpleNamespace) -> None:
    """Who handed over what, what both said, where they differ, what was erased by whom, and that the proof holds."""
    page = seen(place, "/handoffs/1")
    for words in (
        "planner handed over a message of 100 bytes, made by codec vae, in run monday.",
        "1 of 2 answers disagree with the text",
        "Which code?",
        "B9",
        "B7",
        "Mara owns it.",
        "INC-monday-1",
        "lead to the root of all",
    ):
        assert words in page, words
    assert "erased on" in seen(place, "/handoffs/3")
    assert "because <bdi>the customer of tuesday asked</bdi>" in seen(place, "/handoffs/3")
    assert "No account was made" in seen(place, "/handoffs/4")
    assert "Nobody is on record to have taken it." in page
    entry = place.ledger.entry(1)
    place.ledger.append([handoff("monday", 9, "received", producer="writer", handoff_id=entry.fields["handoff_id"])])
    assert "Taken by <bdi>writer</bdi>." in seen(place, "/handoffs/1")


def test_two_hand_offs_are_compared_in_plain_english(place: SimpleNamespace) -> None:
    page = seen(place, "/compare?one=1&other=3")
    assert "Hand-off 1 belongs to run monday, hand-off 3 to run tuesday." in page
    assert "Asked the same 1 questions, the two messages answer 1 of them alike." in page
    assert "Hand-off 1 was handed over, hand-off 2 was refused." in seen(place, "/compare?one=1&other=2")
    assert [404] * 3 == [status(place, f"/compare?{q}") for q in ("one=1", "one=1&other=x", "one=1&other=0")]


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ("", [4, 3, 2, 1]),
        ("run=tuesday", [3]),
        ("event=refused", [2]),
        ("flag=differs", [1]),
        ("flag=no+account", []),
        ("flag=not+taken", [4, 3, 1]),
        ("flag=weak", []),
        ("before=3", [2, 1]),
        ("first_day=2100-01-01", []),
        ("last_day=2100-01-01", [4, 3, 2, 1]),
        ("event=%3Cscript%3E&before=-1&first_day=yesterday", [4, 3, 2, 1]),
    ],
)
def test_hand_offs_are_narrowed(place: SimpleNamespace, asked: str, numbers: list[int]) -> None:
    """By run, event, day, and what their accounts say; what is no value of the form narrows nothing."""
    found = re.findall(r'href="/handoffs/(\d+)"', seen(place, f"/handoffs?{asked}"))
    assert numbers == list(map(int, found))


def test_integrity_is_verified_at_the_push_of_a_button(place: SimpleNamespace) -> None:
    """A sound ledger is said to be; one that was changed is not, and the page of the entry says so too."""
    assert "Verify now" in seen(place, "/integrity")
    assert "<strong>Sound</strong>" in seen(place, "/integrity?verify=now")
    place.ledger._db.execute(
        "UPDATE leaves SET body = CAST(replace(body, 'planner', 'plunder') AS BLOB) WHERE number = 1"
    )
    place.ledger.close()
    page = seen(place, "/integrity?verify=now")
    assert "Not sound" in page
    assert "entry 1" in page
    assert "entry 1" not in seen(place, "/integrity?verify=now", OTHER)
    assert "do not lead to the root" in seen(place, "/handoffs/1")


def test_counts_go_on_from_those_of_before(place: SimpleNamespace) -> None:
    """What is entered between two views is counted, once."""
    words = "<dt>Messages handed over</dt><dd>{}"
    assert words.format(2) in seen(place, "/")
    place.ledger.append([handoff("monday", 5), handoff("tuesday", 2)])
    assert words.format(4) in seen(place, "/")
    assert words.format(2) in seen(place, "/", OTHER)
    assert words.format(4) in seen(place, "/")


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture
def hostile(place: SimpleNamespace) -> SimpleNamespace:
    """The same with records whose every field is a stranger's worst."""
    for number, text in enumerate(HOSTILE, 10):
        short = text[:900]
        known: dict[str, Any] = {
            "error": short,
            "reason": text[:100_000],
            "hop": short,
            "evidence": {"task": short, "n": [short]},
        }
        run = "".join(each for each in short if each.isprintable()) or "run"
        told = handoff(run, number, codec=short, codec_id=short, sender=short, receiver={"weights": short}, **known)
        (made,) = place.ledger.append(
            [
                Draft("handoff", told.fields, {"literals": [text[:300_000]], short[:9] or "x": text})
                if short[:9].isprintable()
                else Draft("handoff", told.fields, {"literals": [text]})
            ]
        )
        place.ledger.append([Draft("account", {"of": made, "run": run, "asked": short, "differ": [1], "measured": 3})])
        lines = [(text[:1000], {"deep": [text[:50]]}, text[:1000]), (1, None, [])]
        by = {"measured": {"figures": {"recall, gloss": {"value": text[:50]}}, "cases": text[:50]}, "error": short}
        draft = account(made, run, str(told.fields["handoff_id"]), lines, **by)
        place.ledger.append([Draft("account", draft.fields, {**draft.personal, "summary": text, "freely": text})])
    place.ledger.append([Draft("handoff", {"run": 7, "event": ["sent"], "producer": {}}), Draft("handoff", {})])
    return place


def test_hostile_records_are_shown_as_they_are(hostile: SimpleNamespace) -> None:
    """No tag or attribute of theirs, nothing that turns the reading direction or rings a bell, and not a megabyte."""
    written = "".join(file.read_text() for file in Path(page_module.__file__).parent.glob("*.jinja"))
    own = {*re.findall(r"<([a-z0-9]+)", written), "h2", "h3"}
    numbers = [entry.number for entry in hostile.ledger.entries(kinds=["handoff"], first=7) if "run" in entry.fields]
    listed = [f"/handoffs/{number}" for number in numbers if "producer" in hostile.ledger.entry(number).fields]
    pairs = [f"/compare?one={a}&other={b}" for a, b in pairwise(numbers)]
    for address in (*ADDRESSES, *listed, *pairs):
        page = seen(hostile, address)
        found = Tags(page)
        assert found.tags <= own, address
        assert not [name for name, _ in found.attributes if name.startswith("on") or name == "src"], address
        assert not [value for name, value in found.attributes if name == "href" and not value.startswith(("/", "#"))]
        bad = {each for each in page if not each.isprintable()} - {"\n"}
        assert set() == bad, (address, bad)
        assert len(page) < 400_000, address


def test_a_page_loads_nothing_and_runs_nothing(place: SimpleNamespace) -> None:
    """Its policy allows one style, by its digest, and no script; it is neither kept nor framed, nor told to others."""
    answer = place.client.get("/", headers={"Authorization": f"Bearer {TOKEN}"})
    style = re.search(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    assert style is not None
    digest = b64encode(sha256(style[1].encode()).digest()).decode()
    assert policy() == answer.headers["content-security-policy"]
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in policy()
    wanted = {"cache-control": "no-store", "x-frame-options": "DENY", "referrer-policy": "no-referrer"}
    assert wanted == {name: answer.headers[name] for name in wanted}
    assert "style=" not in answer.text


def test_nothing_can_be_written(place: SimpleNamespace) -> None:
    """Every method but GET and HEAD is refused, and HEAD shows nothing."""
    heads = {"Authorization": f"Bearer {TOKEN}"}
    before = place.ledger.checkpoint()
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        assert 405 == place.client.request(method, "/handoffs", headers=heads, content=b"x" * 1000).status_code
    answer = place.client.head("/handoffs", headers=heads)
    assert (200, "") == (answer.status_code, answer.text)
    assert before == place.ledger.checkpoint()


def test_another_host_name_is_refused(place: SimpleNamespace) -> None:
    heads = {"Authorization": f"Bearer {TOKEN}", "Host": "evil.example"}
    assert 400 == place.client.get("/", headers=heads).status_code


def test_no_hostile_request_is_let_in(place: SimpleNamespace) -> None:
    """Random paths, queries, methods and heads without a token: nothing but refusals, and no failure."""
    rng = random.Random(7)
    letters = string.printable.strip() + "\u00e9%2e/..;{}"
    for _ in range(1000):
        path = "/" + "".join(rng.choices(letters, k=rng.randint(0, 60))).replace("#", "").replace("?", "?a=")
        token = "".join(rng.choices(string.ascii_letters, k=rng.randint(0, 60)))
        head = rng.choice(["Bearer {}", "Basic {}", "Digest {}", "{}", "bearer  {}"]).format(token)
        address = rng.choice([path, *ADDRESSES, f"/handoffs/{rng.randint(0, 10**18)}"])
        answer = place.client.request(rng.choice(["GET", "HEAD", "POST"]), address, headers={"Authorization": head})
        assert answer.status_code in (400, 401), (address, answer.status_code)


def test_a_file_of_readers_is_checked(tmp_path: Path) -> None:
    """What is none, or names somebody twice, is refused with a sentence."""
    file, digest = tmp_path / "readers", "ab" * 32
    one = f'[[reader]]\nname = "Jane"\nruns = "all"\ntoken_sha256 = "{digest}"\n'
    file.write_text(one)
    assert [Reader("Jane", None, digest)] == readers_in(file)
    for text, words in {
        "": "1 to 1000 tables",
        "x = 1\n": "1 to 1000 tables",
        "[[reader]": "TOML",
        one + one: "twice",
        one.replace("Jane", "\\u202e"): "a reader's name",
        one.replace('"all"', "[]"): "runs",
        one.replace('"all"', '"some"'): "runs",
        one.replace(digest, "AB"): "64 hex digits",
        one.replace("token_sha256", "token"): "name, runs and token_sha256",
        '[[reader]]\nname = "Jane"\nruns = "all"\n': "64 hex digits",
        "reader = 3\n": "1 to 1000 tables",
    }.items():
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            readers_in(file)
    with pytest.raises(ConfigError, match="TOML"):
        readers_in(tmp_path / "none")


def test_a_certificate_admits_its_reader() -> None:
    """By the digest of what the connection showed; a token is not needed then, and another certificate is nobody's."""
    own = Reader("Eve", None, certificate_sha256=sha256(b"der").hexdigest())
    assert own == admitted([*READERS, own], None, b"der")
    assert READERS[0] == admitted([*READERS, own], f"Bearer {TOKEN}", b"other")
    assert None is admitted([*READERS, own], None, b"other")
    assert None is admitted([*READERS, own], None, None)


def test_pages_are_written_down(place: SimpleNamespace, tmp_path: Path) -> None:
    """Every link leads to a file of the folder, nothing is loaded from elsewhere, and no folder is written over."""
    folder = tmp_path / "pages"
    assert 4 == write_pages(place.ledger, folder)
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert {"index.html", "handoffs.html", "handoff-1.html", "integrity.html"} <= set(files)
    assert ["4", "3", "2", "1"] == re.findall(r'href="handoff-(\d+).html"', files["handoffs.html"])
    for name, text in files.items():
        links = [value for key, value in Tags(text).attributes if key == "href" and not value.startswith("#")]
        assert set(links) <= set(files), name
        assert "<form" not in text
    assert "<strong>Sound</strong>" in files["integrity.html"]
    assert 0o700 == folder.stat().st_mode & 0o777
    with pytest.raises(ConfigError, match="a new folder"):
        write_pages(place.ledger, folder)
    assert 1 == write_pages(place.ledger, tmp_path / "one", "tuesday")
    assert "monday" not in "".join(file.read_text() for file in (tmp_path / "one").iterdir())
    assert ["one", "pages"] == sorted(
        each.name for each in tmp_path.iterdir() if each.name in ("one", "pages") or each.name.startswith(".")
    )
