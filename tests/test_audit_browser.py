"""The auditor's page in a browser: WCAG AA by axe, no sideways scrolling on a phone, and no complaint."""

import json
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from ilcp.audit import Ledger, Signer
from ilcp.audit.page.written import write_pages
from tests.test_audit_page import account, handoff

pytestmark = pytest.mark.browser
SIGNER = Signer("example/ledger", bytes(range(32)))
QUIET = ("gpu", "quic", "component-update", "sync")
# What a page is asked in a browser: axe's rules for WCAG 2.1 AA, and how much wider than its window it is.
ASKED = """
const wanted = {runOnly: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]};
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
axe.run(document, wanted).then(found => {
  const told = {passes: found.passes.length, wide: wide, width: document.documentElement.clientWidth,
    violations: found.violations.map(v => v.id + ": " + v.nodes.map(n => n.html).join(" ").slice(0, 300))};
  document.body.innerHTML = "";
  document.body.textContent = "TOLD" + btoa(unescape(encodeURIComponent(JSON.stringify(told)))) + "END";
});
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of a ledger with hand-offs, accounts, an erasure, and names that are long or of another direction."""
    place = tmp_path_factory.mktemp("pages")
    with Ledger(place / "ledger", SIGNER) as ledger:
        long, hebrew = "w" * 300, "\u05e9\u05dc\u05d5\u05dd"
        ledger.append([handoff("monday", 1, evidence={"n": 3, "task": long}), handoff(long, 2), handoff(hebrew, 3)])
        ledger.append([handoff("monday", n, event) for n, event in ((4, "refused"), (5, "fell back to text"))])
        ids = [entry.fields["handoff_id"] for entry in ledger.entries(kinds=["handoff"])]
        lines = [("Who owns it?", "Mara", "Mara"), ("Which code?", long, hebrew), ("Where?", "Oulu", None)]
        ledger.append([account(1, "monday", ids[0], lines, measured={"figures": {"recall, gloss": {"value": 0.9}}})])
        ledger.erase(2, ["literals"], by="the officer", because=long)
        write_pages(ledger, place / "html")
    return place / "html"


def run(page: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Opens a page in chromium, which has to end well."""
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium, which is not installed")
    command = [browser, "--headless", "--no-sandbox", "--no-first-run", "--disable-background-networking"]
    command += [*(f"--disable-{part}" for part in QUIET), f"--user-data-dir={profile}", *options, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, done.stderr
    return done


NAMES = ("index", "inventory", "handoffs", "handoff-1", "handoff-2", "activity", "integrity", "retention", "signoff")


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_is_for_everybody(pages: Path, tmp_path: Path, name: str, width: int) -> None:
    """Axe finds nothing against WCAG 2.1 AA, and the page is no wider than its window."""
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core-python, which is not installed")
    axe = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", (pages / f"{name}.html").read_text())
    # In a frame, which may be as narrow as a phone: the browser's own window may not.
    inner = tmp_path / "inner.html"
    inner.write_text(html.replace("</body>", f"<script>{axe}</script><script>{ASKED}</script></body>"))
    outer = tmp_path / "outer.html"
    outer.write_text(
        f'<iframe src="inner.html" width="{width}" height="900"></iframe><script>setInterval(() => {{'
        'const t = document.querySelector("iframe").contentDocument.body.textContent;'
        'if (t.startsWith("TOLD")) document.title = t; }, 50)</script>'
    )
    options = ("--allow-file-access-from-files", "--virtual-time-budget=60000", "--dump-dom", "--window-size=1400,1000")
    told = re.search(r"TOLD(.*?)END", run(outer, tmp_path / "profile", *options).stdout)
    assert told is not None
    import base64

    said = json.loads(base64.b64decode(told[1]))
    assert [] == said["violations"]
    assert said["passes"] > 5
    assert said["wide"] <= 0, said
    assert abs(width - said["width"]) < 20


@pytest.mark.parametrize("name", ["index", "handoff-1", "activity"])
def test_a_browser_opens_a_page_without_a_complaint(pages: Path, tmp_path: Path, name: str) -> None:
    """Under its own policy nothing is refused, and nothing is reported."""
    options = ("--enable-logging=stderr", "--v=0", f"--screenshot={tmp_path / 'page.png'}", "--window-size=1280,1600")
    done = run(pages / f"{name}.html", tmp_path / "profile", *options)
    assert [] == [line for line in done.stderr.splitlines() if "CONSOLE" in line or "Refused" in line]
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.parametrize("name", NAMES)
def test_whatever_can_be_used_can_be_used_by_keyboard(pages: Path, name: str) -> None:
    """All of it are links, fields and buttons in the order of the page; what scrolls can be focused; focus is seen."""
    html = (pages / f"{name}.html").read_text(encoding="utf-8")
    assert {"0"} >= set(re.findall(r'tabindex="([^"]*)"', html))
    assert html.count('class="wide"') == html.count('class="wide" tabindex="0" role="region"')
    assert ":focus-visible { outline" in html
    assert html.index('class="skip" href="#main"') < html.index("<nav")
    assert not re.search(r"\son[a-z]+=", html)
